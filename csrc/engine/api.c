/* api.c: the functions of sampan.h. It checks what comes in, owns threads and memory, and opens one parallel region for
   each call; what happens inside a region is in model.c.

   Losses and gradients are kept as sums over targets, and divided by their number when they are asked for, so that
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
    sampan_config config; /* without its texts and arrays, as the model's */
    model model;
    buffers buffers; /* of the largest batch so far */
    thread_pool *pool;
    matmul_context *matmul, *matmul_alone; /* of the pool; of one thread, for passes that are too small to share */
    memory_block squares;                  /* partial sums of the gradient norm, double */
    memory_block scratch;                  /* of the optimizer: scratch_stride floats for each thread */
    int64_t scratch_stride;
    int64_t step, applied, micro; /* updates so far; those that were applied; micro-batches since the last */
    double loss_sum;              /* since the last update */
    int64_t targets;
    char message[256], description[96];
};

struct sampan_session {
    sampan_engine *engine;
    cache cache;
    buffers buffers;
    int32_t *position, *all; /* (slots): tokens in each; 0, 1, 2, ... */
};

enum {
    PIECE_ROWS = 256, /* of a prompt at a time */
    TOGETHER_MOST =
        16,          /* sequences that get a token each in one pass: what matmul.c takes as few rows, where a row's sums
                           are the same whatever the others are */
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

static int32_t engine_fail_memory(sampan_engine *e, const char *what, int64_t bytes) {
    if (bytes < 0) return engine_fail(e, SAMPAN_NO_MEMORY, "%s needs more bytes than can be counted", what);
    return engine_fail(e, SAMPAN_NO_MEMORY, "cannot allocate %lld bytes (%.1f GB) for %s", (long long)bytes,
                       (double)bytes / 1e9, what);
}

static int32_t engine_fail_missing(sampan_engine *e) {
    return engine_fail(e, SAMPAN_BAD_ARGUMENT, "an array or a result pointer is NULL");
}

const char *sampan_error(const sampan_engine *engine) { return engine->message; }
const char *sampan_description(const sampan_engine *engine) { return engine->description; }

/* ---- creation ---- */

static void engine_describe(sampan_engine *e, int32_t isa) {
    const char *names[ISA_COUNT] = {"plain C", "NEON", "AVX2", "AVX-512", "AVX-512 BF16"};
    int32_t n = pool_count_threads(e->pool);
    snprintf(e->description, sizeof e->description, "C on cpu (%s), %d thread%s, %s", names[isa], (int)n,
             n > 1 ? "s" : "", model_precision(&e->model) == MATMUL_BFLOAT16 ? "bfloat16" : "float32");
}

/* Partial sums of the gradient norm. */
static int64_t squares_count(int64_t floats) { return (floats + OPTIM_PIECE - 1) / OPTIM_PIECE; }

static int32_t engine_open(sampan_engine *e, const sampan_config *config) {
    parts parts;
    if (parts_read(&parts, config, e->message, sizeof e->message)) return SAMPAN_BAD_ARGUMENT;
    if (config->document_mask && (config->end_of_text < 0 || config->end_of_text >= config->vocab_size))
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "document_mask needs end_of_text, a token of the vocabulary");
    int32_t isa = cpu_best_isa();
    if (isa == ISA_NONE)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "SAMPAN_ISA names an instruction set that this CPU lacks");
    int32_t threads = config->threads ? config->threads : cpu_count_threads();
    int32_t code = pool_create(&e->pool, threads);
    if (code == POOL_NO_MEMORY) return engine_fail(e, SAMPAN_NO_MEMORY, "no memory for %d threads", (int)threads);
    if (code) return engine_fail(e, SAMPAN_NO_THREADS, "the system cannot start %d threads", (int)threads);
    code = matmul_create(&e->matmul, e->pool, isa);
    if (!code) code = matmul_create(&e->matmul_alone, NULL, isa);
    if (code || model_describe(&e->model, config, &parts))
        return engine_fail(e, SAMPAN_NO_MEMORY, "no memory for the engine's tables");
    e->config = e->model.config;
    int64_t bytes;
    if (model_allocate(&e->model, config, ops_for_isa(isa), &bytes)) return engine_fail_memory(e, "the model", bytes);
    if (model_trains(&e->model)) {
        bytes = squares_count(e->model.floats) * (int64_t)sizeof(double);
        if (memory_allocate(&e->squares, bytes)) return engine_fail_memory(e, "the gradient norm", bytes);
        e->scratch_stride = model_scratch_stride(&e->model);
        bytes = e->scratch_stride * threads * (int64_t)sizeof(float);
        if (bytes && memory_allocate(&e->scratch, bytes)) return engine_fail_memory(e, "the optimizer", bytes);
    }
    engine_describe(e, isa);
    return SAMPAN_OK;
}

static void message_copy(char *message, int64_t size, const char *text) {
    if (message && size > 0) snprintf(message, (size_t)size, "%s", text);
}

int32_t sampan_create(sampan_engine **engine, const sampan_config *config, char *message, int64_t message_size) {
    *engine = NULL;
    sampan_engine *e = calloc(1, sizeof *e);
    if (!e) {
        message_copy(message, message_size, "no memory for an engine");
        return SAMPAN_NO_MEMORY;
    }
    int32_t code = engine_open(e, config);
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
    buffers_destroy(&e->buffers);
    model_destroy(&e->model);
    memory_free(&e->squares);
    memory_free(&e->scratch);
    matmul_destroy(e->matmul);
    matmul_destroy(e->matmul_alone);
    pool_destroy(e->pool);
    free(e);
}

/* Buffers for a piece of a prompt, or for a token of each of several sequences. */
static buffers session_buffers(const model *m, int64_t slots, int64_t threads) {
    int64_t B = slots < TOGETHER_MOST ? slots : TOGETHER_MOST, block = m->config.block_size;
    return buffers_of_session(m, B, PIECE_ROWS / B < block ? PIECE_ROWS / B : block, threads);
}

/* 1 with an error in `message` where no engine of this model takes such a batch. */
static int32_t refuse_batch(const sampan_config *c, int64_t batch, int64_t tokens, char *message,
                            int64_t message_size) {
    if (batch >= 1 && tokens >= 1 && tokens <= c->block_size && batch <= INT32_MAX / tokens) return 0;
    snprintf(message, (size_t)message_size, "cannot take a batch of %lld x %lld tokens; block_size is %d",
             (long long)batch, (long long)tokens, (int)c->block_size);
    return 1;
}

int32_t sampan_memory(const sampan_config *config, int64_t batch, int64_t tokens, sampan_memory_sizes *sizes,
                      char *message, int64_t message_size) {
    char error[256] = "";
    parts parts;
    model m = {0};
    int32_t code = SAMPAN_OK;
    if (parts_read(&parts, config, error, sizeof error)) code = SAMPAN_BAD_ARGUMENT;
    else if (refuse_batch(config, batch, tokens, error, sizeof error)) code = SAMPAN_BAD_ARGUMENT;
    else if (model_describe(&m, config, &parts)) code = SAMPAN_NO_MEMORY;
    if (code == SAMPAN_OK) {
        int64_t threads = config->threads ? config->threads : cpu_count_threads();
        buffers pass = buffers_of_batch(&m, batch, tokens, threads);
        buffers session = session_buffers(&m, batch, threads);
        model_count_bytes(&m, threads, sizes);
        sizes->activations = buffers_count_bytes(&pass);
        int64_t cache = cache_count_bytes(&m, batch), work = buffers_count_bytes(&session);
        sizes->cache = cache < 0 || work < 0 ? -1 : cache + work;
        const int64_t all[] = {sizes->weights, sizes->gradients, sizes->optimizer, sizes->activations, sizes->cache};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i] < 0) code = SAMPAN_NO_MEMORY;
    }
    model_destroy(&m);
    if (code == SAMPAN_NO_MEMORY) message_copy(error, sizeof error, "this model needs more bytes than can be counted");
    if (code) message_copy(message, message_size, error);
    return code;
}

/* ---- threads ---- */

static team engine_team(const sampan_engine *e, int32_t thread, int32_t n_threads) {
    return (team){e->pool, e->matmul, thread, n_threads, model_precision(&e->model), e->micro == 0};
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

/* The tensor's floats; NULL where they are not kept. */
static float *parameter_floats(const parameter *p, int32_t kind) {
    float *const floats[] = {p->value, p->gradient, p->exp_avg, p->exp_avg_sq};
    return floats[kind];
}

/* Finds the parameter and the number of its tensor's kind. */
static int32_t engine_find_tensor(sampan_engine *e, const char *kind, int64_t index, const float *values, parameter **p,
                                  int32_t *number) {
    *p = engine_find_parameter(e, index);
    *number = parts_find_tensor(kind, e->message, sizeof e->message);
    if (*number < 0) return SAMPAN_BAD_ARGUMENT;
    if (!*p) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "there is no parameter %lld", (long long)index);
    if (!values) return engine_fail_missing(e);
    if (parameter_floats(*p, *number) || *number == TENSOR_WEIGHT) return SAMPAN_OK;
    return engine_fail(e, SAMPAN_BAD_ARGUMENT, "this engine keeps no %s of %s", kind, (*p)->name);
}

int32_t sampan_read(sampan_engine *e, const char *kind, int64_t index, float *values) {
    parameter *p;
    int32_t number, code = engine_find_tensor(e, kind, index, values, &p, &number);
    if (code) return code;
    const float *kept = parameter_floats(p, number);
    if (kept) memcpy(values, kept, (size_t)p->size * sizeof(float));
    else
        for (int64_t i = 0; i < p->size; i++) values[i] = bfloat16_to_float(p->bfloat16[i]);
    if (number == TENSOR_GRADIENT) {
        if (!e->micro) memset(values, 0, (size_t)p->size * sizeof(float));
        float scale = 1.0f / (float)(e->targets > 0 ? e->targets : 1);
        for (int64_t i = 0; i < p->size; i++) values[i] *= scale;
    }
    return SAMPAN_OK;
}

int32_t sampan_write(sampan_engine *e, const char *kind, int64_t index, const float *values) {
    parameter *p;
    int32_t number, code = engine_find_tensor(e, kind, index, values, &p, &number);
    if (code) return code;
    if (number == TENSOR_GRADIENT) return engine_fail(e, SAMPAN_BAD_ARGUMENT, "gradients are read only");
    float *kept = parameter_floats(p, number);
    if (kept) memcpy(kept, values, (size_t)p->size * sizeof(float));
    if (number == TENSOR_WEIGHT && p->bfloat16) {
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

/* Room for B sequences of T tokens. */
static int32_t engine_reserve(sampan_engine *e, int64_t B, int64_t T) {
    buffers *a = &e->buffers;
    if (refuse_batch(&e->config, B, T, e->message, sizeof e->message)) return SAMPAN_BAD_ARGUMENT;
    if (a->h && B * T <= a->B * a->T && B <= a->B && T <= a->S) return SAMPAN_OK;
    int64_t bytes;
    buffers_destroy(a);
    *a = buffers_of_batch(&e->model, B, T, pool_count_threads(e->pool));
    return buffers_allocate(a, &bytes) ? engine_fail_memory(e, "a batch of this size", bytes) : SAMPAN_OK;
}

/* Where the document of each token begins: at the last end of text up to it. */
static const int32_t *engine_documents(sampan_engine *e, const int32_t *x, int64_t B, int64_t T) {
    if (!e->config.document_mask) return NULL;
    int32_t *first = (int32_t *)(void *)e->buffers.first; /* written as int32 only */
    for (int64_t i = 0; i < B * T; i++)
        first[i] = i % T == 0 || x[i] == e->config.end_of_text ? (int32_t)(i % T) : first[i - 1];
    return first;
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
              .a = &e->buffers,
              .ids = x,
              .targets = y,
              .first = engine_documents(e, x, B, T),
              .B = B,
              .T = T,
              .backward = backward,
              .dropout = backward ? e->config.dropout : 0.0f,
              .dropout_key = key};
    engine_run(e, &p);
    *loss = 0.0;
    *targets = 0;
    for (int64_t i = 0; i < B * T; i++) {
        *loss += (double)e->buffers.losses[i];
        *targets += y[i] >= 0;
    }
    return SAMPAN_OK;
}

int32_t sampan_accumulate(sampan_engine *e, const int32_t *x, const int32_t *y, int64_t batch, int64_t tokens) {
    if (!model_trains(&e->model))
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "this engine has no optimizer: it was not created to train");
    double loss = 0.0;
    int64_t targets = 0;
    int32_t code = engine_pass(e, x, y, batch, tokens, 1, &loss, &targets);
    if (code) return code;
    e->loss_sum += loss;
    e->targets += targets;
    e->micro++;
    return SAMPAN_OK;
}

static double mean(double sum, int64_t count) { return sum / (double)(count > 0 ? count : 1); }

int32_t sampan_loss(sampan_engine *e, const int32_t *x, const int32_t *y, int64_t batch, int64_t tokens, double *loss,
                    float *losses) {
    int64_t targets = 0;
    int32_t code = engine_pass(e, x, y, batch, tokens, 0, loss, &targets);
    if (code) return code;
    *loss = mean(*loss, targets);
    if (losses) memcpy(losses, e->buffers.losses, (size_t)(batch * tokens) * sizeof *losses);
    return SAMPAN_OK;
}

static void update_region(void *arg, int32_t thread, int32_t n_threads) {
    region *r = arg;
    sampan_engine *e = r->engine;
    const sampan_config *c = &e->config;
    team t = engine_team(e, thread, n_threads);
    double *squares = (double *)e->squares.data, sum = 0.0;
    e->model.op->squares_sum(&t, squares, e->model.gradients, e->model.floats);
    for (int64_t i = 0; i < squares_count(e->model.floats); i++) sum += squares[i]; /* by every thread, the same */

    double scale = mean(1.0, e->targets), norm = scale * sqrt(sum), clip = c->grad_clip / (norm + 1e-6),
           number = (double)(e->applied + 1);
    if (thread == 0) r->grad_norm = norm;
    if (!isfinite(r->loss) || !isfinite(norm)) return; /* every thread sees the same */
    if (c->grad_clip > 0.0 && clip < 1.0) scale *= clip;
    const optimizer_step step = {c, scale, r->learning_rate, number};
    optimizer_step beside = step; /* AdamW's, for what an optimizer of matrices leaves */
    if (e->model.n_matrices) beside.learning_rate *= c->adamw_lr_ratio;
    const ops *op = e->model.op;
    for (parameter *p = e->model.table; p < e->model.table + e->model.count; p++)
        if (OPTIMIZER_KINDS[p->optimizer].updates == UPDATES_ALL)
            op->optimizer_update[p->optimizer](&t, &(hidden_matrix){p, 0, p->rows}, &beside, NULL);
    for (int64_t i = thread; i < e->model.n_matrices; i += n_threads) {
        const hidden_matrix *w = &e->model.matrices[i];
        op->optimizer_update[w->of->optimizer](&t, w, &step, (float *)e->scratch.data + thread * e->scratch_stride);
    }
}

static int32_t floats_are_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

/* Why an update was refused. Where a weight is NaN or infinite it is the cause, and every gradient a consequence. */
static const char *engine_refusal(sampan_engine *e, double loss) {
    for (int32_t gradients = 0; gradients < 2; gradients++)
        for (const parameter *p = e->model.table; p < e->model.table + e->model.count; p++) {
            if (floats_are_finite(gradients ? p->gradient : p->value, p->size)) continue;
            const char *what = gradients ? "the gradient of %s is not finite" : "the weights of %s are not finite";
            snprintf(e->message, sizeof e->message, what, p->name);
            return e->message;
        }
    return isfinite(loss) ? "the norm of the gradient is not finite" : "the loss is not finite";
}

int32_t sampan_update(sampan_engine *e, double learning_rate, double *loss, double *grad_norm, const char **refused) {
    if (!model_trains(&e->model) || !e->micro)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "nothing was accumulated for an update");
    if (!loss || !grad_norm || !refused) return engine_fail_missing(e);
    region r = {.engine = e, .learning_rate = learning_rate, .loss = mean(e->loss_sum, e->targets)};
    pool_run(e->pool, update_region, &r);
    *loss = r.loss;
    *grad_norm = r.grad_norm;
    int32_t applied = isfinite(r.loss) && isfinite(r.grad_norm);
    *refused = applied ? NULL : engine_refusal(e, r.loss);
    return sampan_set_step(e, e->step + 1, e->applied + applied);
}

/* ---- decoding ---- */

int32_t sampan_session_create(sampan_session **session, sampan_engine *e, int64_t slots) {
    *session = NULL;
    if (slots < 1 || slots > 1 << 20)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "a session of %lld sequences", (long long)slots);
    sampan_session *s = calloc(1, sizeof *s);
    if (!s || !(s->position = calloc((size_t)slots, sizeof(int32_t)))
        || !(s->all = calloc((size_t)slots, sizeof(int32_t)))) {
        sampan_session_destroy(s);
        return engine_fail(e, SAMPAN_NO_MEMORY, "no memory for a session");
    }
    for (int32_t slot = 0; slot < slots; slot++) s->all[slot] = slot;
    s->engine = e;
    s->cache = (cache){.B = slots, .type = model_precision(&e->model)};
    s->buffers = session_buffers(&e->model, slots, pool_count_threads(e->pool));
    int64_t bytes = cache_count_bytes(&e->model, slots);
    if (memory_allocate(&s->cache.memory, bytes) || buffers_allocate(&s->buffers, &bytes)) {
        sampan_session_destroy(s);
        return engine_fail_memory(e, "a session of this size", bytes);
    }
    *session = s;
    return SAMPAN_OK;
}

void sampan_session_destroy(sampan_session *s) {
    if (!s) return;
    buffers_destroy(&s->buffers);
    memory_free(&s->cache.memory);
    free(s->position);
    free(s->all);
    free(s);
}

int64_t sampan_session_position(const sampan_session *s, int64_t slot) {
    return slot < 0 || slot >= s->cache.B ? -1 : s->position[slot];
}

int32_t sampan_session_clear(sampan_session *s, int64_t slot) {
    if (slot < 0 || slot >= s->cache.B)
        return engine_fail(s->engine, SAMPAN_BAD_ARGUMENT, "no slot %lld among %lld", (long long)slot,
                           (long long)s->cache.B);
    s->position[slot] = 0;
    return SAMPAN_OK;
}

/* Appends T tokens to each of B sequences, with room for all. */
static void session_pass(sampan_session *s, const int32_t *slots, int64_t B, const int32_t *ids, int64_t T,
                         float *logits) {
    int32_t start[TOGETHER_MOST];
    for (int64_t b = 0; b < B; b++) start[b] = s->position[slots[b]];
    pass p = {
        .m = &s->engine->model,
        .a = &s->buffers,
        .cache = &s->cache,
        .at = {slots, start},
        .ids = ids,
        .B = B,
        .T = T,
        .logits = logits,
    };
    engine_run(s->engine, &p);
    for (int64_t b = 0; b < B; b++) s->position[slots[b]] += (int32_t)T;
}

/* 0 if all slots exist, differ, and have room for so many tokens. */
static int32_t slots_check(const sampan_session *s, const int32_t *slots, int64_t count, int64_t tokens) {
    sampan_engine *e = s->engine;
    if (count < 1 || count > s->cache.B)
        return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%lld sequences for a session of %lld", (long long)count,
                           (long long)s->cache.B);
    for (int64_t b = 0; b < count; b++) {
        if (slots[b] < 0 || slots[b] >= s->cache.B || (b && slots[b] <= slots[b - 1]))
            return engine_fail(e, SAMPAN_BAD_ARGUMENT, "slot %d: slots are ascending, below %lld", (int)slots[b],
                               (long long)s->cache.B);
        int64_t left = e->config.block_size - s->position[slots[b]];
        if (tokens < 1 || tokens > left)
            return engine_fail(e, SAMPAN_BAD_ARGUMENT, "%lld tokens for a cache with room for %lld", (long long)tokens,
                               (long long)left);
    }
    return SAMPAN_OK;
}

/* A prompt goes by itself and in pieces, and sequences of one token go together: so each logit follows from its own
 * sequence alone, bit by bit. */
int32_t sampan_session_feed(sampan_session *s, const int32_t *slots, int64_t count, const int32_t *ids, int64_t tokens,
                            float *logits) {
    sampan_engine *e = s->engine;
    if (!ids || !logits) return engine_fail_missing(e);
    if (!slots) slots = s->all;
    int32_t code = slots_check(s, slots, count, tokens);
    if (code || (code = ids_check(e, ids, count * tokens, 0, "token"))) return code;
    const int64_t V = e->config.vocab_size, piece = s->buffers.B * s->buffers.T;
    if (tokens == 1)
        for (int64_t b = 0; b < count; b += s->buffers.B) {
            int64_t B = count - b < s->buffers.B ? count - b : s->buffers.B;
            session_pass(s, slots + b, B, ids + b, 1, logits + b * V);
        }
    else
        for (int64_t b = 0; b < count; b++)
            for (int64_t first = 0, n; first < tokens; first += n) {
                n = tokens - first < piece ? tokens - first : piece;
                session_pass(s, slots + b, 1, ids + b * tokens + first, n, first + n == tokens ? logits + b * V : NULL);
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
    matmul_problem problem = matmul_product(N, N, N, matmul_rows(a, N), matmul_columns(b, N), c, N,
                                            model_precision(&e->model));
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
