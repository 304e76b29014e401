/* api.c: the functions of sampan.h. It checks what comes in, owns threads and memory, and opens one parallel region for
   each call; what happens inside of a region is in model.c.

   Losses and gradients are kept as sums over targets, and divided by their number when somebody asks, so that
   micro-batches with different numbers of ignored targets add up to the mean of the whole batch. */

#include "sampan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform/bfloat16.h"
#include "platform/clock.h"
#include "platform/cpu.h"
#include "model.h"

struct sampan_engine {
    sampan_config config;
    model model;
    activations activations; /* of the largest batch so far */
    thread_pool *pool;
    matmul_context *matmul, *matmul_alone; /* of the pool; of one thread, for passes that are too small to share */
    memory_block squares; /* partial sums of the gradient norm, double */
    memory_block muon; /* scratch of Muon: muon_stride floats for each thread */
    int64_t muon_stride;
    int64_t step, applied, micro; /* updates so far; those that were finite; micro-batches since the last */
    double loss_sum; /* since the last update */
    int64_t targets;
    char message[256], description[96];
};

struct sampan_session {
    sampan_engine *engine;
    cache cache;
    activations activations;
    int32_t *ids; /* (batch, piece) */
};

enum {
    LOGIT_BYTES = 64 << 20, /* of logits at a time */
    PIECE_ROWS = 256, /* of a prompt at a time, over all sequences */
    ALONE = 1 << 18, /* multiply-adds that one thread does in the time of a few tens of barriers */
};

/* ---- errors ---- */

static int32_t engine_fail(sampan_engine *e, int32_t code, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(e->message, sizeof e->message, format, values);
    va_end(values);
    return code;
}

static int32_t engine_fail_memory(sampan_engine *e, const char *what, int64_t needs) {
    if (needs < 0) return engine_fail(e, SAMPAN_NO_MEMORY, "%s needs more bytes than can be counted", what);
    return engine_fail(e, SAMPAN_NO_MEMORY, "%s needs %lld bytes (%.1f GB), which this machine refuses", what,
                       (long long)needs, (double)needs / 1e9);
}

static int32_t engine_fail_missing(sampan_engine *e) {
    return engine_fail(e, SAMPAN_BAD_ARGUMENT, "an array or a place for a result is missing");
}

const char *sampan_error(const sampan_engine *engine) { return engine->message; }
const char *sampan_description(const sampan_engine *engine) { return engine->description; }

/* ---- creation ---- */

/* Every size is bounded so that products of a few of them, and of a batch of up to 2^31 rows, stay below 2^62. */
static const char *config_complaint(const sampan_config *c) {
    const int32_t most = 1 << 28;
    const int32_t sizes[] = {c->n_layer, c->n_head,   c->n_kv_head,  c->n_embd,
                             c->n_inner, c->head_dim, c->block_size, c->vocab_size};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 1 || sizes[i] > most) return "a size is not between 1 and 2^28";
    if (c->family < SAMPAN_GPT2 || c->family > SAMPAN_QWEN3) return "the family is none of gpt2, llama and qwen3";
    if (c->n_layer > 1 << 16 || c->block_size > 1 << 24) return "more than 2^16 layers or 2^24 positions";
    if (c->n_head % c->n_kv_head) return "n_head is not a multiple of n_kv_head";
    if (((int64_t)c->n_head + 2 * (int64_t)c->n_kv_head) * c->head_dim > most) return "the heads are too wide together";
    if (c->family == SAMPAN_GPT2 && (c->n_kv_head != c->n_head || (int64_t)c->n_head * c->head_dim != c->n_embd))
        return "gpt2 has as many key heads as heads, each n_embd / n_head wide";
    if (c->family != SAMPAN_GPT2 && c->head_dim % 2) return "rotary positions need an even head_dim";
    if (!(c->dropout >= 0.0f && c->dropout < 1.0f)) return "dropout is not in [0, 1)";
    if (c->family != SAMPAN_GPT2 && !c->rotary_frequencies) return "rotary_frequencies are missing";
    if (!(c->norm_eps >= 0.0f)) return "norm_eps is below 0";
    if (!(c->beta1 >= 0 && c->beta1 < 1 && c->beta2 >= 0 && c->beta2 < 1)) return "a beta of AdamW is not in [0, 1)";
    if (!(c->weight_decay >= 0) || !(c->grad_clip >= 0)) return "weight_decay or grad_clip is below 0";
    if (c->optimizer < SAMPAN_ADAMW || c->optimizer > SAMPAN_MUON) return "the optimizer is neither AdamW nor Muon";
    if (c->optimizer == SAMPAN_MUON && !(c->momentum >= 0 && c->momentum < 1 && c->adamw_lr_ratio >= 0))
        return "Muon's momentum is not in [0, 1), or adamw_lr_ratio below 0";
    if (c->dtype != SAMPAN_FLOAT32 && c->dtype != SAMPAN_BFLOAT16) return "the dtype is neither float32 nor bfloat16";
    if (c->threads < 0 || c->threads > 1024) return "the number of threads is not between 1 and 1024";
    return NULL;
}

static void engine_describe(sampan_engine *e, int32_t isa) {
    const char *names[ISA_COUNT] = {[ISA_C] = "plain C",
                                    [ISA_NEON] = "NEON",
                                    [ISA_AVX2] = "AVX2",
                                    [ISA_AVX512] = "AVX-512",
                                    [ISA_AVX512BF16] = "AVX-512 BF16"};
    int32_t n = pool_count_threads(e->pool);
    snprintf(e->description, sizeof e->description, "C on cpu (%s), %d thread%s, %s", names[isa], (int)n,
             n > 1 ? "s" : "", e->config.dtype == SAMPAN_BFLOAT16 ? "bfloat16" : "float32");
}

static int32_t engine_open(sampan_engine *e) {
    const char *complaint = config_complaint(&e->config);
    if (complaint) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%s", complaint);
    int32_t isa = cpu_best_isa();
    if (isa == ISA_NONE)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "this machine has not the instructions that SAMPAN_ISA names");
    int32_t threads = e->config.threads ? e->config.threads : cpu_count_cores();
    int32_t code = pool_create(&e->pool, threads);
    if (code == POOL_NO_MEMORY) return engine_fail(e, SAMPAN_NO_MEMORY, "no memory for %d threads", (int)threads);
    if (code) return engine_fail(e, SAMPAN_NO_THREADS, "the system does not start %d threads", (int)threads);
    code = matmul_create(&e->matmul, e->pool, isa);
    if (!code) code = matmul_create(&e->matmul_alone, NULL, isa);
    if (code) return engine_fail(e, SAMPAN_NO_MEMORY, "no memory for the products' buffers");
    int64_t needs;
    if (model_create(&e->model, &e->config, ops_for_isa(isa), &needs)) return engine_fail_memory(e, "the model", needs);
    needs = (e->model.floats + OPTIM_PIECE - 1) / OPTIM_PIECE * (int64_t)sizeof(double);
    if (e->config.training && memory_allocate(&e->squares, needs))
        return engine_fail_memory(e, "the gradient norm", needs);
    for (const hidden_matrix *w = e->model.matrices; w < e->model.matrices + e->model.n_matrices; w++) {
        int64_t floats = (muon_scratch(w->rows, w->of->columns) + 15) / 16 * 16;
        if (floats > e->muon_stride) e->muon_stride = floats;
    }
    needs = e->muon_stride * threads * (int64_t)sizeof(float);
    if (e->config.training && needs && memory_allocate(&e->muon, needs))
        return engine_fail_memory(e, "the optimizer", needs);
    engine_describe(e, isa);
    return SAMPAN_OK;
}

static void message_copy(char *message, int64_t size, const char *text) {
    if (message && size > 0) snprintf(message, (size_t)size, "%s", text);
}

int32_t sampan_create(sampan_engine **engine, const sampan_config *config, char *message, int64_t message_size) {
    *engine = NULL;
    if (config->struct_size != (int64_t)sizeof(sampan_config)) {
        message_copy(message, message_size, "the library and its caller are of different versions");
        return SAMPAN_BAD_ARGUMENT;
    }
    sampan_engine *e = calloc(1, sizeof *e);
    if (!e) {
        message_copy(message, message_size, "no memory for an engine");
        return SAMPAN_NO_MEMORY;
    }
    e->config = *config;
    int32_t code = engine_open(e);
    if (code) {
        message_copy(message, message_size, e->message);
        sampan_destroy(e);
        return code;
    }
    *engine = e;
    return SAMPAN_OK;
}

void sampan_destroy(sampan_engine *e) {
    if (!e) return;
    activations_destroy(&e->activations);
    model_destroy(&e->model);
    memory_free(&e->squares);
    memory_free(&e->muon);
    matmul_destroy(e->matmul);
    matmul_destroy(e->matmul_alone);
    pool_destroy(e->pool);
    free(e);
}

int32_t sampan_preferred_dtype(void) { return cpu_best_isa() == ISA_AVX512BF16 ? SAMPAN_BFLOAT16 : SAMPAN_FLOAT32; }

/* Of the products, and of what a cache keeps. */
static int32_t engine_precision(const sampan_engine *e) {
    return e->config.dtype == SAMPAN_BFLOAT16 ? MATMUL_BFLOAT16 : MATMUL_FLOAT32;
}

/* ---- threads ---- */

static team engine_team(const sampan_engine *e, int32_t thread, int32_t n_threads) {
    return (team){e->pool, e->matmul, thread, n_threads, engine_precision(e), e->micro == 0};
}

static team engine_team_of_one(const sampan_engine *e) {
    team t = engine_team(e, 0, 1);
    t.pool = NULL;
    t.matmul = e->matmul_alone;
    return t;
}

/* ---- tensors ---- */

int64_t sampan_count_parameters(const sampan_engine *e) { return e->model.count; }

static parameter *engine_find_parameter(sampan_engine *e, int64_t index) {
    return index >= 0 && index < e->model.count ? &e->model.table[index] : NULL;
}

int32_t sampan_get_parameter(sampan_engine *e, int64_t index, sampan_parameter *out) {
    const parameter *p = engine_find_parameter(e, index);
    if (!p) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "there is no parameter %lld", (long long)index);
    *out = (sampan_parameter){p->name, p->rows, p->columns};
    return SAMPAN_OK;
}

/* The tensor's floats, or NULL where they are not kept. */
static float *parameter_floats(const parameter *p, int32_t what) {
    return what == SAMPAN_WEIGHT       ? p->value
           : what == SAMPAN_GRADIENT   ? p->gradient
           : what == SAMPAN_EXP_AVG    ? p->exp_avg
           : what == SAMPAN_EXP_AVG_SQ ? p->exp_avg_sq
                                       : NULL;
}

int32_t sampan_read(sampan_engine *e, int32_t what, int64_t index, float *values) {
    const parameter *p = engine_find_parameter(e, index);
    if (!p) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "there is no parameter %lld", (long long)index);
    if (!values) return engine_fail_missing(e);
    const float *kept = parameter_floats(p, what);
    if (kept) {
        memcpy(values, kept, (size_t)p->size * sizeof(float));
    } else if (what == SAMPAN_WEIGHT) {
        for (int64_t i = 0; i < p->size; i++) values[i] = bfloat16_to_float(p->bfloat16[i]);
    } else {
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "this engine does not train, or has no tensor of kind %d",
                           (int)what);
    }
    if (what == SAMPAN_GRADIENT) {
        if (!e->micro) memset(values, 0, (size_t)p->size * sizeof(float));
        float scale = 1.0f / (float)(e->targets > 0 ? e->targets : 1);
        for (int64_t i = 0; i < p->size; i++) values[i] *= scale;
    }
    return SAMPAN_OK;
}

int32_t sampan_write(sampan_engine *e, int32_t what, int64_t index, const float *values) {
    parameter *p = engine_find_parameter(e, index);
    if (!p) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "there is no parameter %lld", (long long)index);
    if (!values) return engine_fail_missing(e);
    float *kept = parameter_floats(p, what);
    if (what == SAMPAN_GRADIENT || (!kept && what != SAMPAN_WEIGHT))
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "this engine does not train, or tensors of kind %d are not written",
                           (int)what);
    if (kept) memcpy(kept, values, (size_t)p->size * sizeof(float));
    if (what == SAMPAN_WEIGHT && p->bfloat16) {
        team t = engine_team_of_one(e);
        e->model.op->bfloat16_copy(&t, p->bfloat16, values, p->size);
    }
    return SAMPAN_OK;
}

int64_t sampan_get_step(const sampan_engine *e) { return e->step; }
int64_t sampan_get_applied(const sampan_engine *e) { return e->applied; }

int32_t sampan_set_step(sampan_engine *e, int64_t step, int64_t applied) {
    if (step < 0 || step >= (int64_t)1 << 53)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "step %lld is not between 0 and 2^53", (long long)step);
    if (applied < 0 || applied > step)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%lld of %lld updates applied", (long long)applied, (long long)step);
    e->step = step;
    e->applied = applied;
    e->micro = e->targets = 0;
    e->loss_sum = 0.0;
    return SAMPAN_OK;
}

/* ---- training ---- */

typedef struct region {
    sampan_engine *engine;
    const pass *pass;
    double learning_rate, loss, grad_norm;
} region;

static void pass_run(const team *t, const pass *p) {
    model_forward(t, p);
    if (p->backward) model_backward(t, p);
}

static void pass_region(void *arg, int32_t thread, int32_t n_threads) {
    const region *r = arg;
    team t = engine_team(r->engine, thread, n_threads);
    pass_run(&t, r->pass);
}

/* One thread for a pass whose products are fewer than ALONE: it would be over before the others have met (and the
 * result is the same). */
static void engine_run(sampan_engine *e, const pass *p) {
    if (p->B * p->T * e->model.floats < ALONE) {
        team t = engine_team_of_one(e);
        pass_run(&t, p);
    } else {
        pool_run(e->pool, pass_region, &(region){.engine = e, .pass = p});
    }
}

static int32_t ids_check(sampan_engine *e, const int32_t *ids, int64_t n, int32_t lowest, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < lowest || ids[i] >= e->config.vocab_size)
            return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%s %d is not among the %d of the vocabulary", what, (int)ids[i],
                               (int)e->config.vocab_size);
    return SAMPAN_OK;
}

/* Room for B sequences of T tokens; rows of logits so that they take LOGIT_BYTES, in chunks of about equal size. */
static int32_t engine_reserve(sampan_engine *e, int64_t B, int64_t T) {
    activations *a = &e->activations;
    if (B < 1 || T < 1 || T > e->config.block_size || B > INT32_MAX / T)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "a batch of %lld sequences of %lld tokens; block_size is %d",
                           (long long)B, (long long)T, (int)e->config.block_size);
    if (a->h && B * T <= a->B * a->T && B <= a->B && T <= a->S) return SAMPAN_OK;
    int64_t most = LOGIT_BYTES / 4 / e->config.vocab_size, needs;
    if (most < 16) most = 16;
    int64_t chunks = (B * T + most - 1) / most, rows = (B * T + chunks - 1) / chunks;
    activations_destroy(a);
    if (activations_create(a, &e->model, B, T, T, pool_count_threads(e->pool), rows, e->config.training, &needs))
        return engine_fail_memory(e, "a batch of this size", needs);
    return SAMPAN_OK;
}

/* Sum of the losses of x, y, and with `backward` the gradients; *targets = how many there were. */
static int32_t engine_pass(sampan_engine *e, const int32_t *x, const int32_t *y, int64_t B, int64_t T, int32_t backward,
                           double *loss, int64_t *targets) {
    if (!x || !y || !loss) return engine_fail_missing(e);
    int32_t code = engine_reserve(e, B, T);
    if (code || (code = ids_check(e, x, B * T, 0, "token")) || (code = ids_check(e, y, B * T, -1, "target")))
        return code;
    uint64_t key = dropout_key(dropout_key(dropout_key(0, e->config.seed), (uint64_t)e->step), (uint64_t)e->micro);
    pass p = {.m = &e->model,
              .a = &e->activations,
              .ids = x,
              .targets = y,
              .B = B,
              .T = T,
              .backward = backward,
              .dropout = backward ? e->config.dropout : 0.0f,
              .dropout_key = key};
    engine_run(e, &p);
    *loss = 0.0;
    *targets = 0;
    for (int64_t i = 0; i < B * T; i++) {
        *loss += (double)e->activations.losses[i];
        *targets += y[i] >= 0;
    }
    return SAMPAN_OK;
}

int32_t sampan_accumulate(sampan_engine *e, const int32_t *x, const int32_t *y, int64_t batch, int64_t tokens) {
    if (!e->config.training) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "this engine was created without training");
    double loss;
    int64_t targets;
    int32_t code = engine_pass(e, x, y, batch, tokens, 1, &loss, &targets);
    if (code) return code;
    e->loss_sum += loss;
    e->targets += targets;
    e->micro++;
    return SAMPAN_OK;
}

static double mean(double sum, int64_t count) { return sum / (double)(count > 0 ? count : 1); }

int32_t sampan_loss(sampan_engine *e, const int32_t *x, const int32_t *y, int64_t batch, int64_t tokens, double *loss) {
    int64_t targets;
    int32_t code = engine_pass(e, x, y, batch, tokens, 0, loss, &targets);
    if (!code) *loss = mean(*loss, targets);
    return code;
}

static void update_region(void *arg, int32_t thread, int32_t n_threads) {
    region *r = arg;
    sampan_engine *e = r->engine;
    const sampan_config *c = &e->config;
    team t = engine_team(e, thread, n_threads);
    double *squares = (double *)e->squares.data, sum = 0.0;
    e->model.op->squares_sum(&t, squares, e->model.gradients, e->model.floats);
    for (int64_t i = 0; i < (e->model.floats + OPTIM_PIECE - 1) / OPTIM_PIECE; i++)
        sum += squares[i]; /* by every thread, the same */

    double scale = mean(1.0, e->targets), norm = scale * sqrt(sum), clip = c->grad_clip / (norm + 1e-6),
           step = (double)(e->applied + 1);
    if (thread == 0) r->grad_norm = norm;
    if (!isfinite(r->loss) || !isfinite(norm)) return; /* every thread sees the same */
    if (c->grad_clip > 0.0 && clip < 1.0) scale *= clip;
    const double adamw_lr = r->learning_rate * (c->optimizer == SAMPAN_MUON ? c->adamw_lr_ratio : 1.0);
    adamw a = {.gradient_scale = (float)scale,
               .keep = (float)(1.0 - adamw_lr * c->weight_decay),
               .step_size = (float)(adamw_lr / (1.0 - pow(c->beta1, step))),
               .beta2 = (float)c->beta2,
               .rest1 = (float)(1.0 - c->beta1),
               .rest2 = (float)(1.0 - c->beta2),
               .inverse_correction = (float)(1.0 / sqrt(1.0 - pow(c->beta2, step))),
               .eps = 1e-8f};
    muon u = {.gradient_scale = (float)scale,
              .keep = (float)(1.0 - r->learning_rate * c->weight_decay),
              .learning_rate = (float)r->learning_rate,
              .momentum = (float)c->momentum,
              .rest = (float)(1.0 - c->momentum)};
    const ops *op = e->model.op;
    for (parameter *p = e->model.table; p < e->model.table + e->model.count; p++)
        if (!model_is_muons(&e->model, p)) op->adamw_update(&t, p, &a);
    for (int64_t i = thread; i < e->model.n_matrices; i += n_threads)
        op->muon_update(&t, &e->model.matrices[i], &u, (float *)e->muon.data + thread * e->muon_stride);
}

static int32_t floats_are_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

/* Names what kept an update from being applied: a weight is the cause where one is not finite, and every gradient a
 * consequence. */
static int32_t engine_fail_update(sampan_engine *e, double loss) {
    const parameter *table = e->model.table, *end = table + e->model.count;
    for (const parameter *p = table; p < end; p++)
        if (!floats_are_finite(p->value, p->size))
            return engine_fail(e, SAMPAN_NOT_FINITE, "the weights of %s are not finite", p->name);
    for (const parameter *p = table; p < end; p++)
        if (!floats_are_finite(p->gradient, p->size))
            return engine_fail(e, SAMPAN_NOT_FINITE, "the gradient of %s is not finite", p->name);
    return engine_fail(e, SAMPAN_NOT_FINITE,
                       isfinite(loss) ? "the norm of the gradient is not finite" : "the loss is not finite");
}

int32_t sampan_update(sampan_engine *e, double learning_rate, double *loss, double *grad_norm) {
    if (!e->config.training || !e->micro)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "nothing was accumulated for an update");
    if (!loss || !grad_norm) return engine_fail_missing(e);
    region r = {.engine = e, .learning_rate = learning_rate, .loss = mean(e->loss_sum, e->targets)};
    pool_run(e->pool, update_region, &r);
    *loss = r.loss;
    *grad_norm = r.grad_norm;
    int32_t applied = isfinite(r.loss) && isfinite(r.grad_norm),
            code = applied ? SAMPAN_OK : engine_fail_update(e, r.loss);
    int32_t counted = sampan_set_step(e, e->step + 1, e->applied + applied);
    return code ? code : counted;
}

/* ---- decoding ---- */

int32_t sampan_session_create(sampan_session **session, sampan_engine *e, int64_t batch) {
    *session = NULL;
    const sampan_config *c = &e->config;
    if (batch < 1 || batch > 1 << 20)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%lld sequences in a session", (long long)batch);
    sampan_session *s = calloc(1, sizeof *s);
    int64_t piece = PIECE_ROWS / batch > 0 ? PIECE_ROWS / batch : 1, needs = 0, per_sequence = 0,
            element = c->dtype == SAMPAN_BFLOAT16 ? 2 : 4;
    if (piece > c->block_size) piece = c->block_size;
    if (!s || !(s->ids = calloc((size_t)(batch * piece), sizeof(int32_t)))) {
        sampan_session_destroy(s);
        return engine_fail(e, SAMPAN_NO_MEMORY, "no memory for a session");
    }
    s->engine = e;
    s->cache = (cache){.B = batch, .type = engine_precision(e)};
    if (!size_multiply(&per_sequence, 2 * (int64_t)c->n_layer * c->block_size, (int64_t)c->n_kv_head * c->head_dim)
        || !size_multiply(&per_sequence, per_sequence, batch) || !size_multiply(&needs, per_sequence, element)) {
        needs = -1;
    } else if (!memory_allocate(&s->cache.memory, needs)
               && !activations_create(&s->activations, &e->model, batch, piece, c->block_size,
                                      pool_count_threads(e->pool), 0, 0, &needs)) {
        *session = s;
        return SAMPAN_OK;
    }
    sampan_session_destroy(s);
    return engine_fail_memory(e, "a session of this size", needs);
}

void sampan_session_destroy(sampan_session *s) {
    if (!s) return;
    activations_destroy(&s->activations);
    memory_free(&s->cache.memory);
    free(s->ids);
    free(s);
}

int64_t sampan_session_position(const sampan_session *s) { return s->cache.position; }

int32_t sampan_session_feed(sampan_session *s, const int32_t *ids, int64_t tokens, float *logits) {
    sampan_engine *e = s->engine;
    int64_t B = s->cache.B, left = e->config.block_size - s->cache.position;
    if (tokens < 1 || tokens > left)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%lld tokens for a cache with room for %lld", (long long)tokens,
                           (long long)left);
    if (!ids || !logits) return engine_fail_missing(e);
    int32_t code = ids_check(e, ids, B * tokens, 0, "token");
    if (code) return code;
    for (int64_t first = 0, n; first < tokens; first += n) { /* a long prompt goes in pieces */
        n = tokens - first < s->activations.T ? tokens - first : s->activations.T;
        for (int64_t b = 0; b < B; b++) memcpy(s->ids + b * n, ids + b * tokens + first, (size_t)n * sizeof(int32_t));
        pass p = {
            .m = &e->model,
            .a = &s->activations,
            .cache = &s->cache,
            .ids = s->ids,
            .B = B,
            .T = n,
            .logits = first + n == tokens ? logits : NULL,
        };
        engine_run(e, &p);
        s->cache.position += n;
    }
    return SAMPAN_OK;
}

/* ---- speed ---- */

int32_t sampan_measure_peak(sampan_engine *e, double *flops) {
    enum { N = 1024 };
    memory_block block;
    int64_t bytes = 3 * (int64_t)N * N * (int64_t)sizeof(float);
    if (memory_allocate(&block, bytes)) return engine_fail_memory(e, "the measurement", bytes);
    float *a = (float *)block.data, *b = a + N * N, *c = b + N * N;
    for (int64_t i = 0; i < 2 * N * N; i++) a[i] = (float)(i % 97) * 0.01f - 0.5f;
    matmul_problem problem = {
        .m = N,
        .n = N,
        .k = N,
        .a = matmul_rows(a, N),
        .b = matmul_columns(b, N),
        .c = c,
        .c_stride = N,
        .precision = engine_precision(e),
    };
    double best = INFINITY;
    for (int32_t i = 0; i < 6; i++) {
        double start = clock_seconds();
        matmul_run(e->matmul, &problem);
        double seconds = clock_seconds() - start;
        if (seconds > 0.0 && seconds < best) best = seconds;
    }
    memory_free(&block);
    *flops = 2.0 * N * N * N / best;
    return SAMPAN_OK;
}
