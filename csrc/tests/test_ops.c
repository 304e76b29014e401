/* test_ops.c: every op's backward pass against finite differences of its forward pass, for every instruction set of
   this machine and 1 to 3 threads; and the parts of ops that are not differentiated against plain loops in double.

       make test

   The error is relative, over a whole tensor, and a reference that is zero fails too. It does not test speed, or whole
   models (tests/test_engine.c, and tests/test_c_engine.py against PyTorch). */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform/bfloat16.h"
#include "platform/cpu.h"
#include "ops/ops.h"
#define LANES 4
#include "platform/vec.h"

static int32_t checks, failures;

static void check(int32_t good, const char *what, double value) {
    checks++;
    if (!good) {
        failures++;
        printf("FAILED %s: %g\n", what, value);
    }
}

static uint64_t state = 1;
static float uniform(void) { /* in [-1, 1) */
    state = dropout_key(state, 7);
    return (float)((double)(state >> 11) / 4503599627370496.0 - 1.0);
}
static void *blocks[8192]; /* freed together, at the end */
static int32_t n_blocks;
static void *keep(size_t bytes) { return n_blocks < 8192 ? blocks[n_blocks++] = malloc(bytes) : NULL; }

static float *random_floats(int64_t n) {
    float *x = keep((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) x[i] = uniform();
    return x;
}
static parameter random_parameter(int64_t rows, int64_t columns) {
    int64_t size = rows * (columns ? columns : 1);
    parameter p = {
        .rows = rows, .columns = columns, .size = size, .value = random_floats(size), .gradient = random_floats(size)};
    p.bfloat16 = keep((size_t)size * sizeof(uint16_t));
    for (int64_t i = 0; i < size; i++) p.bfloat16[i] = bfloat16_from_float(p.value[i]);
    return p;
}

/* ---- one op under test: out = f(inputs), and the gradients of sum(out * dout) ---- */

enum { INPUTS = 4 };
typedef struct trial {
    const char *name;
    const ops *op;
    thread_pool *pool;
    matmul_context *matmul;
    void (*forward)(const team *t, struct trial *s), (*backward)(const team *t, struct trial *s);
    float *out, *dout;
    int64_t out_size;
    struct {
        const char *name;
        float *x, *dx;
        int64_t size;
    } input[INPUTS];
    int64_t B, T, C, H, KV, D, V, M;
    const int32_t *ids;
    parameter w, v, b; /* parameters, as an op needs them */
    float *x, *dx, *more, *stats;
    float *scratch, *lse, *dqkv;
    int32_t flag, back;
    dropout drop;
} trial;

static void trial_region(void *arg, int32_t thread, int32_t n_threads) {
    trial *s = arg;
    team t = {s->pool, s->matmul, thread, n_threads, MATMUL_FLOAT32, 1};
    (s->back ? s->backward : s->forward)(&t, s);
}
static double trial_value(trial *s) {
    double sum = 0.0;
    s->back = 0;
    pool_run(s->pool, trial_region, s);
    for (int64_t i = 0; i < s->out_size; i++) sum += (double)s->out[i] * (double)s->dout[i];
    return sum;
}

static void trial_check(trial *s) {
    trial_value(s);
    s->back = 1;
    pool_run(s->pool, trial_region, s);
    for (int32_t k = 0; k < INPUTS && s->input[k].x; k++) {
        float *x = s->input[k].x, h = 1.0f / 128;
        double difference = 0.0, reference = 0.0;
        int64_t every = s->input[k].size / 60 + 1;
        for (int64_t i = 0; i < s->input[k].size; i += every) {
            float kept = x[i];
            double at[4];
            for (int32_t j = 0; j < 4; j++) {
                x[i] = kept + h * (float)((int32_t[]){-2, -1, 1, 2})[j];
                at[j] = trial_value(s);
            }
            x[i] = kept;
            double slope = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12.0 * (double)h); /* error of order h^4 */
            difference += (slope - (double)s->input[k].dx[i]) * (slope - (double)s->input[k].dx[i]);
            reference += slope * slope;
        }
        char what[160];
        double error = sqrt(difference / reference);
        snprintf(what, sizeof what, "%s by %s", s->name, s->input[k].name);
        check(reference > 1e-6 && error < 2e-3, what, error);
    }
}

/* ---- the ops ---- */

#define ACTIVATION_NAME(name, value, slope) #name,
static const char *const activation_names[] = {"none", ACTIVATIONS(ACTIVATION_NAME)};

static void embedding_f(const team *t, trial *s) {
    s->op->embedding_forward(t, s->out, s->ids, &s->w, &s->v, s->B, s->T, s->C, (places){0});
}
static void embedding_b(const team *t, trial *s) {
    s->op->embedding_backward(t, s->dout, s->ids, &s->w, &s->v, 1, s->B, s->T, s->C);
}

static void norm_f(const team *t, trial *s) {
    s->op->norm_forward(t, s->out, s->stats, s->x, &s->w, s->flag ? &s->b : NULL, s->M, s->C, s->flag, 1e-5f);
}
static void norm_b(const team *t, trial *s) {
    s->op->zero(t, s->dx, s->M * s->C);
    s->op->norm_backward(t, s->dx, s->dout, s->x, s->stats, &s->w, s->flag ? &s->b : NULL, s->M, s->C, s->flag);
}

static void copy_in(const team *t, trial *s) {
    if (t->thread == 0) memcpy(s->out, s->x, (size_t)s->out_size * sizeof(float));
    pool_barrier(t->pool);
}
static void copy_back(const team *t, trial *s) {
    if (t->thread == 0) memcpy(s->dx, s->dout, (size_t)s->out_size * sizeof(float));
    pool_barrier(t->pool);
}
static void head_norm_f(const team *t, trial *s) {
    copy_in(t, s);
    s->op->head_norm_forward(t, s->out, s->more, s->stats, &s->w, &s->v, s->M, s->H, s->KV, s->D, 1e-5f);
}
static void head_norm_b(const team *t, trial *s) {
    copy_back(t, s);
    s->op->head_norm_backward(t, s->dx, s->more, s->stats, &s->w, &s->v, s->M, s->H, s->KV, s->D);
}
static void rotary_f(const team *t, trial *s) {
    copy_in(t, s);
    s->op->rotary_forward(t, s->out, s->more, s->stats, s->B, s->T, s->H, s->KV, s->D, (places){0});
}
static void rotary_b(const team *t, trial *s) {
    copy_back(t, s);
    s->op->rotary_backward(t, s->dx, s->more, s->stats, s->B, s->T, s->H, s->KV, s->D);
}
static void linear_f(const team *t, trial *s) { s->op->linear_forward(t, s->out, s->x, &s->w, &s->b, s->more, s->M); }
static void linear_b(const team *t, trial *s) {
    s->op->linear_backward(t, s->dx, s->dout, s->x, ACTIVATION_NONE, NULL, &s->w, &s->b, s->M);
}

/* two layers, because the activation of the first is undone in the backward pass of the second; w: first, v: second */
static void activation_f(const team *t, trial *s) {
    s->op->linear_activation_forward(t, s->flag, s->more, s->stats, s->x, &s->w, &s->b, s->M);
    s->op->linear_forward(t, s->out, s->more, &s->v, NULL, NULL, s->M);
}
static void activation_b(const team *t, trial *s) {
    s->op->linear_backward(t, s->scratch, s->dout, s->more, s->flag, s->stats, &s->v, NULL, s->M);
    s->op->linear_backward(t, s->dx, s->scratch, s->x, ACTIVATION_NONE, NULL, &s->w, &s->b, s->M);
}
static attention attention_of(trial *s) {
    int64_t width = (s->H + 2 * s->KV) * s->D;
    return (attention){.B = s->B,
                       .T = s->T,
                       .H = s->H,
                       .KV = s->KV,
                       .D = s->D,
                       .q = s->x,
                       .q_batch = s->T * width,
                       .q_row = width,
                       .k = matmul_rows(s->x + s->H * s->D, width),
                       .v = matmul_rows(s->x + (s->H + s->KV) * s->D, width),
                       .kv_batch = s->T * width,
                       .kv_head = s->D,
                       .y = s->out,
                       .lse = s->lse,
                       .scratch = s->scratch,
                       .scratch_stride = attention_scratch(s->T),
                       .drop = s->drop,
                       .dy = s->dout,
                       .dqkv = s->dx};
}
static void attention_f(const team *t, trial *s) {
    attention a = attention_of(s);
    s->op->attention_forward(t, &a);
}
static void attention_b(const team *t, trial *s) {
    attention a = attention_of(s);
    s->op->attention_backward(t, &a);
}
static void gated_f(const team *t, trial *s) { s->op->gated_forward(t, s->flag, s->out, s->x, s->M, s->C); }
static void gated_b(const team *t, trial *s) { s->op->gated_backward(t, s->flag, s->dx, s->dout, s->x, s->M, s->C); }
static void dropout_f(const team *t, trial *s) {
    s->op->dropout_forward(t, s->out, s->x, s->more, s->M, s->C, s->drop);
}
static void dropout_b(const team *t, trial *s) { s->op->dropout_forward(t, s->dx, s->dout, NULL, s->M, s->C, s->drop); }

/* its backward pass is of the sum of the losses, so dout is 1 */
static void loss_f(const team *t, trial *s) {
    s->op->loss_forward_backward(t, s->out, NULL, s->more, 4, s->x, s->ids, &s->w, s->M);
}
static void loss_b(const team *t, trial *s) {
    s->op->loss_forward_backward(t, s->out, s->dx, s->more, 4, s->x, s->ids, &s->w, s->M);
}

typedef void trial_op(const team *t, trial *s);

static trial trial_of(const trial *base, const char *name, trial_op *forward, trial_op *backward, int64_t out_size) {
    trial s = *base;
    s.name = name;
    s.forward = forward;
    s.backward = backward;
    s.out_size = out_size;
    s.out = random_floats(out_size);
    s.dout = random_floats(out_size);
    return s;
}
static void add_input(trial *s, const char *name, float *x, float *dx, int64_t size) {
    int32_t k = 0;
    while (s->input[k].x) k++;
    s->input[k].name = name;
    s->input[k].x = x;
    s->input[k].dx = dx;
    s->input[k].size = size;
}
static void add_x(trial *s, const char *name, int64_t size) {
    s->x = random_floats(size);
    s->dx = random_floats(size);
    add_input(s, name, s->x, s->dx, size);
}
static void add_parameter(trial *s, const char *name, parameter *p, int64_t rows, int64_t columns) {
    *p = random_parameter(rows, columns);
    add_input(s, name, p->value, p->gradient, p->size);
}

static void ops_check(int32_t isa, int32_t n_threads) {
    thread_pool *pool;
    matmul_context *matmul;
    if (pool_create(&pool, n_threads) || matmul_create(&matmul, pool, isa)) {
        check(0, "creating a pool", n_threads);
        return;
    }
    enum { B = 2, T = 7, M = B * T, C = 19, N = 23, H = 4, KV = 2, D = 6, V = 21, WIDTH = (H + 2 * KV) * D };
    trial base = {.op = ops_for_isa(isa), .pool = pool, .matmul = matmul, .B = B, .T = T, .M = M, .C = C, .H = H};
    base.KV = KV;
    base.D = D;
    base.V = V;
    int32_t ids[M], targets[M];
    for (int32_t i = 0; i < M; i++) {
        ids[i] = (i * 5) % V;
        targets[i] = i % 4 == 1 ? -1 : (i * 3) % V;
    }

    trial s = trial_of(&base, "embedding", embedding_f, embedding_b, M * C);
    s.ids = ids;
    add_parameter(&s, "wte", &s.w, V, C);
    add_parameter(&s, "wpe", &s.v, T, C);
    trial_check(&s);

    for (int32_t centered = 0; centered < 2; centered++) {
        s = trial_of(&base, centered ? "LayerNorm" : "RMSNorm", norm_f, norm_b, M * C);
        s.flag = centered;
        s.stats = random_floats(2 * M);
        add_x(&s, "x", M * C);
        add_parameter(&s, "weight", &s.w, C, 0);
        if (centered) add_parameter(&s, "bias", &s.b, C, 0);
        trial_check(&s);
    }

    s = trial_of(&base, "head norm", head_norm_f, head_norm_b, M * WIDTH);
    s.more = random_floats(M * (H + KV) * D);
    s.stats = random_floats(M * (H + KV));
    add_x(&s, "qkv", M * WIDTH);
    add_parameter(&s, "q weight", &s.w, D, 0);
    add_parameter(&s, "k weight", &s.v, D, 0);
    trial_check(&s);

    s = trial_of(&base, "rotary", rotary_f, rotary_b, M * WIDTH);
    s.more = random_floats(T * D);
    s.stats = random_floats(T * D);
    for (int32_t i = 0; i < T * D / 2; i++) {
        s.more[i] = cosf(1.7f * (float)i);
        s.stats[i] = sinf(1.7f * (float)i);
    }
    add_x(&s, "qkv", M * WIDTH);
    trial_check(&s);

    s = trial_of(&base, "linear", linear_f, linear_b, M * N);
    add_x(&s, "x", M * C);
    add_parameter(&s, "weight", &s.w, N, C);
    add_parameter(&s, "bias", &s.b, N, 0);
    s.more = random_floats(M * N);
    add_input(&s, "residual", s.more, s.dout, M * N);
    trial_check(&s);

    for (int32_t activation = 1; activation < ACTIVATION_COUNT; activation++) {
        s = trial_of(&base, activation_names[activation], activation_f, activation_b, M * 11);
        s.flag = activation;
        s.more = random_floats(M * N);
        s.stats = random_floats(M * N);
        s.scratch = random_floats(M * N);
        add_x(&s, "x", M * C);
        add_parameter(&s, "weight", &s.w, N, C);
        add_parameter(&s, "bias", &s.b, N, 0);
        add_parameter(&s, "second weight", &s.v, 11, N);
        trial_check(&s);

        s = trial_of(&base, activation_names[activation], gated_f, gated_b, M * C);
        s.flag = activation;
        add_x(&s, "gate and up", M * 2 * C);
        trial_check(&s);
    }

    for (int32_t drops = 0; drops < 2; drops++)
        for (int32_t k = 0; k < 3; k++) {
            const int64_t n_tokens = (int64_t[]){1, 40, 140}[k], kv = (int64_t[]){4, 2, 1}[k];
            const int64_t d = (int64_t[]){6, 5, 32}[k], rows = B * n_tokens;
            s = trial_of(&base, drops ? "attention with dropout" : "attention", attention_f, attention_b, rows * H * d);
            s.T = n_tokens;
            s.KV = kv;
            s.D = d;
            s.drop = (dropout){drops ? 0.3f : 0.0f, 99};
            s.lse = random_floats(rows * H);
            s.scratch = random_floats(n_threads * attention_scratch(n_tokens));
            add_x(&s, "qkv", rows * (H + 2 * kv) * d);
            trial_check(&s);
        }

    s = trial_of(&base, "dropout", dropout_f, dropout_b, M * C);
    s.drop = (dropout){0.4f, 5};
    s.more = random_floats(M * C);
    add_x(&s, "x", M * C);
    add_input(&s, "residual", s.more, s.dout, M * C);
    trial_check(&s);

    s = trial_of(&base, "loss", loss_f, loss_b, M);
    s.ids = targets;
    s.more = random_floats(4 * V);
    for (int32_t i = 0; i < M; i++) s.dout[i] = 1.0f;
    add_x(&s, "x", M * C);
    add_parameter(&s, "weight", &s.w, V, C);
    trial_check(&s);

    matmul_destroy(matmul);
    pool_destroy(pool);
}

/* ---- against plain loops in double ---- */

static void exp_check(void) {
    double worst = 0.0;
    for (double x = -87.0; x < 88.0; x += 1e-3) {
        vec y = vec_exp(vec_all((float)x));
        double exact = exp((double)(float)x), error = fabs((double)y[0] - exact) / exact;
        worst = error > worst ? error : worst;
    }
    check(worst < 1.5e-7, "vec_exp, largest relative error", worst);
    vec special = vec_exp((vec){NAN, -INFINITY, -200.0f, 0.0f});
    check(isnan(special[0]) && special[1] < 2e-38f && special[2] < 2e-38f && special[3] == 1.0f,
          "vec_exp of special values", (double)special[3]);
}

static void optimizer_check(int32_t isa) {
    enum { N = 70001 };
    const ops *op = ops_for_isa(isa);
    team t = {.n_threads = 1};
    parameter p = random_parameter(N, 1);
    p.exp_avg = random_floats(N), p.exp_avg_sq = random_floats(N);
    double sums[2], exact = 0.0, worst = 0.0, worst_moment = 0.0;
    op->squares_sum(&t, sums, p.gradient, N);
    for (int32_t i = 0; i < N; i++) {
        exact += (double)p.gradient[i] * (double)p.gradient[i];
        p.exp_avg_sq[i] = 0.1f + p.exp_avg_sq[i] * p.exp_avg_sq[i];
    }
    check(fabs(sums[0] + sums[1] - exact) < 1e-6 * exact, "squares_sum", sums[0] + sums[1] - exact);
    float *w = random_floats(N), *m = random_floats(N), *v = random_floats(N);
    memcpy(w, p.value, N * sizeof(float)), memcpy(m, p.exp_avg, N * sizeof(float)),
        memcpy(v, p.exp_avg_sq, N * sizeof(float));
    double lr = 1e-2, b1 = 0.9, b2 = 0.95, decay = 0.1, scale = 0.7, step = 3;
    sampan_config c = {.beta1 = b1, .beta2 = b2, .weight_decay = decay};
    optimizer_step s = {&c, scale, lr, step};
    op->optimizer_update[OPTIMIZER_adamw](&t, &(hidden_matrix){&p, 0, N}, &s, NULL);
    for (int32_t i = 0; i < N; i++) {
        double g = (double)p.gradient[i] * scale, m1 = b1 * (double)m[i] + (1 - b1) * g,
               v1 = b2 * (double)v[i] + (1 - b2) * g * g;
        double w1 = (double)w[i] * (1 - lr * decay)
                    - lr * (m1 / (1 - pow(b1, step))) / (sqrt(v1 / (1 - pow(b2, step))) + 1e-8);
        worst = fmax(worst, fabs(w1 - (double)p.value[i]));
        worst_moment = fmax(worst_moment, fmax(fabs(m1 - (double)p.exp_avg[i]), fabs(v1 - (double)p.exp_avg_sq[i])));
        if (p.bfloat16[i] != bfloat16_from_float(p.value[i])) check(0, "adamw's bfloat16 copy", i);
    }
    check(worst < 1e-6, "adamw weights", worst); /* values are of size 1 */
    check(worst_moment < 2e-7, "adamw moments", worst_moment);
    for (int32_t i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)dropout_key((uint64_t)i, 3);
        memcpy(&p.value[i], &bits, 4);
    }
    op->bfloat16_copy(&t, p.bfloat16, p.value, N);
    for (int32_t i = 0; i < N; i++)
        if (p.bfloat16[i] != bfloat16_from_float(p.value[i])) {
            check(0, "bfloat16_copy", i);
            break;
        }
}

static void dropout_check(int32_t isa) {
    enum { M = 400, C = 1000 };
    const ops *op = ops_for_isa(isa);
    team t = {.n_threads = 1};
    float *x = random_floats(M * C), *a = random_floats(M * C), *b = random_floats(M * C);
    for (int32_t i = 0; i < M * C; i++) x[i] = 1.0f;
    op->dropout_forward(&t, a, x, NULL, M, C, (dropout){0.25f, 11});
    op->dropout_forward(&t, b, x, NULL, M, C, (dropout){0.25f, 12});
    double kept = 0, both = 0, neighbours = 0, below = 0;
    for (int32_t i = 0; i < M * C; i++) {
        check(a[i] == 0.0f || a[i] == 1.0f / 0.75f, "dropout's values", (double)a[i]);
        kept += a[i] > 0;
        both += a[i] > 0 && b[i] > 0;
        neighbours += i % C && a[i] > 0 && a[i - 1] > 0;
        below += i >= C && a[i] > 0 && a[i - C] > 0;
    }
    double n = M * C, sigma = sqrt(0.75 * 0.25 / n);
    check(fabs(kept / n - 0.75) < 5 * sigma, "dropout's share", kept / n);
    sigma = sqrt(0.5625 * 0.4375 / n) * 1.5; /* pairs that share an element are not independent */
    check(fabs(both / n - 0.5625) < 5 * sigma, "dropout under two keys", both / n);
    check(fabs(neighbours / (n - M) - 0.5625) < 5 * sigma, "dropout of neighbours in a row", neighbours / (n - M));
    check(fabs(below / (n - C) - 0.5625) < 5 * sigma, "dropout of neighbours in a column", below / (n - C));
}

int main(void) {
    exp_check();
    for (int32_t isa = 0; isa < ISA_COUNT; isa++) {
        if (!cpu_has_isa(isa)) continue;
        for (int32_t n_threads = 1; n_threads <= 3; n_threads++) ops_check(isa, n_threads);
        optimizer_check(isa);
        dropout_check(isa);
    }
    while (n_blocks) free(blocks[--n_blocks]);
    printf("test_ops: %d checks, %d failed\n", (int)checks, (int)failures);
    return failures > 0;
}
