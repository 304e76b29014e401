/* gpt.c: GPT-2 in one file of plain loops: forward pass, backward pass and AdamW. docs/en/lesson.md walks through it.

       cc -O3 -ffast-math -o gpt gpt.c -lm                   or: make -C csrc lesson, which makes csrc/build/gpt
       ./gpt train --data novel.txt                          a small model from random weights; each byte is a token
       ./gpt train --data shakespeare_train.bin --init_from gpt2_124M.bin --learning_rate 1e-4
       ./gpt state --data shakespeare_val.bin --init_from gpt2_124M.bin --out state.bin
       cc -O2 -DDOUBLE -o gpt64 gpt.c -lm && ./gpt64 check   every gradient against finite differences

   `state` writes the logits, the loss and every gradient of one batch; `sampan-c test` compares its own with them.
   Files are llm.c's: weights (version 3, float32), GPT-2's tokens (uint16) and the debug state. `sampan export` with
   `--to llmc` writes them, `sampan import` reads them. A file that does not begin as a token file is read as text.

   What it does not do: validation, threads, vector instructions, a key-value cache, dropout, a learning-rate schedule.
   The fast engine (csrc/engine) does, and computes the same numbers: tests/test_lesson.py compares the two.

   Letters: B sequences of T tokens, M = B * T rows; C channels, H heads of D = C / H channels; V tokens in the
   vocabulary; L blocks. An array (M, C) has C numbers in each of M rows. dX is the gradient of the loss by X. */

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h> /* sqrt, exp, tanh: of a float in float, of a double in double */
#include <time.h>

#ifdef DOUBLE
typedef double real; /* for finite differences, which lose half of the digits */
#else
typedef float real;
#endif

static _Noreturn void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("gpt: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    exit(2);
}

static void *allocate(size_t count, size_t width) { /* filled with zeros */
    void *p = calloc(count, width);
    if (!p) fail("cannot allocate %.1f GB", 1e-9 * (double)count * (double)width);
    return p;
}

/* ---- the ops: next to each forward pass its backward pass, which quotes the lines that it differentiates ----
   A backward pass adds to gradients (+=): what is used in two places gets a gradient from both. */

/* x (M, C): a token's row of wte (V, C) plus its position's row of wpe (T, C) */
static void embedding_forward(real *x, const int32_t *ids, const real *wte, const real *wpe, int B, int T, int C) {
    for (int m = 0; m < B * T; m++)
        for (int c = 0; c < C; c++) x[m * C + c] = wte[ids[m] * C + c] + wpe[m % T * C + c];
}

/* x = wte[id] + wpe[t] */
static void embedding_backward(real *dwte, real *dwpe, const real *dx, const int32_t *ids, int B, int T, int C) {
    for (int m = 0; m < B * T; m++)
        for (int c = 0; c < C; c++) {
            dwte[ids[m] * C + c] += dx[m * C + c];
            dwpe[m % T * C + c] += dx[m * C + c];
        }
}

/* Each row of x (M, C) gets mean 0 and variance 1, then a weight and a bias for each channel (Ba et al. 2016).
   mean and rstd (M) are kept for the backward pass; rstd = 1 / standard deviation. */
static void layernorm_forward(real *out, real *mean, real *rstd, const real *x, const real *weight, const real *bias,
                              int M, int C) {
    for (int m = 0; m < M; m++, x += C, out += C) {
        real sum = 0, squares = 0;
        for (int c = 0; c < C; c++) sum += x[c];
        mean[m] = sum / C;
        for (int c = 0; c < C; c++) squares += (x[c] - mean[m]) * (x[c] - mean[m]);
        rstd[m] = 1 / sqrt(squares / C + (real)1e-5f);
        for (int c = 0; c < C; c++) out[c] = (x[c] - mean[m]) * rstd[m] * weight[c] + bias[c];
    }
}

/* out = normed * weight + bias:       dbias = dout,  dweight = dout * normed,  dnormed = dout * weight
   normed = (x - mean(x)) * rstd(x):   dx = (dnormed - mean(dnormed) - normed * mean(dnormed * normed)) * rstd */
static void layernorm_backward(real *dx, real *dweight, real *dbias, const real *dout, const real *x, const real *mean,
                               const real *rstd, const real *weight, int M, int C) {
    for (int m = 0; m < M; m++, x += C, dx += C, dout += C) {
        real mean_d = 0, mean_dn = 0;
        for (int c = 0; c < C; c++) {
            real normed = (x[c] - mean[m]) * rstd[m], dnormed = dout[c] * weight[c];
            dbias[c] += dout[c];
            dweight[c] += dout[c] * normed;
            mean_d += dnormed / C;
            mean_dn += dnormed * normed / C;
        }
        for (int c = 0; c < C; c++) {
            real normed = (x[c] - mean[m]) * rstd[m], dnormed = dout[c] * weight[c];
            dx[c] += (dnormed - mean_d - normed * mean_dn) * rstd[m];
        }
    }
}

/* out (M, N) = x (M, K) times the transpose of weight (N, K), plus bias (N) if there is one. Nearly all time is spent
   here. n is the outer loop so that a row of the weight stays in the cache while it meets all rows of x. */
static void linear_forward(real *out, const real *x, const real *weight, const real *bias, int M, int K, int N) {
    for (int n = 0; n < N; n++)
        for (int m = 0; m < M; m++) {
            real sum = bias ? bias[n] : 0;
            for (int k = 0; k < K; k++) sum += x[m * K + k] * weight[n * K + k];
            out[m * N + n] = sum;
        }
}

/* out[m][n] = bias[n] + sum_k x[m][k] * weight[n][k]: a factor's gradient is dout times the other factor */
static void linear_backward(real *dx, real *dweight, real *dbias, const real *dout, const real *x, const real *weight,
                            int M, int K, int N) {
    for (int n = 0; n < N; n++)
        for (int m = 0; m < M; m++) {
            real d = dout[m * N + n];
            if (dbias) dbias[n] += d;
            for (int k = 0; k < K; k++) dx[m * K + k] += d * weight[n * K + k];
            for (int k = 0; k < K; k++) dweight[n * K + k] += d * x[m * K + k];
        }
}

/* p_i = e^x_i / sum_j e^x_j for n numbers; p may be x. Returns log(sum_j e^x_j). The largest x is subtracted from all,
   which changes no quotient: e^100 would be too large for a float. */
static real softmax(real *p, const real *x, int n) {
    real largest = x[0], sum = 0;
    for (int i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    for (int i = 0; i < n; i++) sum += p[i] = exp(x[i] - largest);
    for (int i = 0; i < n; i++) p[i] /= sum;
    return largest + log(sum);
}

/* y (M, C) = p v with p = softmax(q k^T / sqrt(D)), for each head. Token t sees the tokens s <= t. A row of qkv (M, 3C)
   holds q, k and v of a token, each of them H heads of D channels. att (B, H, T, T) keeps p; it is 0 where s > t. */
static void attention_forward(real *y, real *att, const real *qkv, int B, int T, int C, int H) {
    int D = C / H;
    real scale = 1 / sqrt((real)D);
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++)
            for (int t = 0; t < T; t++) {
                const real *q = qkv + (b * T + t) * 3 * C + h * D;           /* of token t */
                const real *k = qkv + b * T * 3 * C + h * D + C, *v = k + C; /* of token 0; of token s 3C * s further */
                real *p = att + ((b * H + h) * T + t) * T, *out = y + (b * T + t) * C + h * D;
                for (int s = 0; s <= t; s++) {
                    real dot = 0;
                    for (int d = 0; d < D; d++) dot += q[d] * k[s * 3 * C + d];
                    p[s] = scale * dot;
                }
                softmax(p, p, t + 1);
                for (int d = 0; d < D; d++) out[d] = 0;
                for (int s = 0; s <= t; s++)
                    for (int d = 0; d < D; d++) out[d] += p[s] * v[s * 3 * C + d];
            }
}

/* out = sum_s p_s v_s:       dp_s = dout . v_s,  dv_s = p_s dout
   p = softmax(score):        dscore_s = p_s (dp_s - sum_j p_j dp_j)
   score_s = scale q . k_s:   dq = sum_s scale dscore_s k_s,  dk_s = scale dscore_s q */
static void attention_backward(real *dqkv, real *datt, const real *dy, const real *qkv, const real *att, int B, int T,
                               int C, int H) {
    int D = C / H;
    real scale = 1 / sqrt((real)D);
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++)
            for (int t = 0; t < T; t++) {
                int at_q = (b * T + t) * 3 * C + h * D, at_k = b * T * 3 * C + h * D + C, row = (b * H + h) * T + t;
                const real *q = qkv + at_q, *k = qkv + at_k, *v = k + C, *p = att + row * T;
                const real *dout = dy + (b * T + t) * C + h * D;
                real *dq = dqkv + at_q, *dk = dqkv + at_k, *dv = dk + C, *dp = datt + row * T, sum = 0;
                for (int s = 0; s <= t; s++) {
                    for (int d = 0; d < D; d++) {
                        dp[s] += dout[d] * v[s * 3 * C + d];
                        dv[s * 3 * C + d] += p[s] * dout[d];
                    }
                    sum += p[s] * dp[s];
                }
                for (int s = 0; s <= t; s++) {
                    real dscore = p[s] * (dp[s] - sum);
                    for (int d = 0; d < D; d++) {
                        dq[d] += scale * dscore * k[s * 3 * C + d];
                        dk[s * 3 * C + d] += scale * dscore * q[d];
                    }
                }
            }
}

static void residual_forward(real *out, const real *x, const real *branch, int n) {
    for (int i = 0; i < n; i++) out[i] = x[i] + branch[i];
}

/* out = x + branch: both get the whole gradient. Along x it reaches the first block undiminished. */
static void residual_backward(real *dx, real *dbranch, const real *dout, int n) {
    for (int i = 0; i < n; i++) dx[i] += dout[i], dbranch[i] += dout[i];
}

/* x times the probability that a normal variable is below x, approximated as in GPT-2 (Hendrycks & Gimpel 2016) */
static const real GELU_SCALE = (real)0.7978845608028654, GELU_CUBIC = (real)0.044715; /* the first is sqrt(2 / pi) */

static void gelu_forward(real *out, const real *x, int n) {
    for (int i = 0; i < n; i++) {
        real th = tanh(GELU_SCALE * (x[i] + GELU_CUBIC * x[i] * x[i] * x[i]));
        out[i] = x[i] / 2 * (1 + th);
    }
}

/* out = x/2 (1 + th), th = tanh(u), u = scale (x + cubic x^3):   dx = dout ((1 + th)/2 + x/2 (1 - th^2) du/dx) */
static void gelu_backward(real *dx, const real *dout, const real *x, int n) {
    for (int i = 0; i < n; i++) {
        real th = tanh(GELU_SCALE * (x[i] + GELU_CUBIC * x[i] * x[i] * x[i]));
        real du_dx = GELU_SCALE * (1 + 3 * GELU_CUBIC * x[i] * x[i]);
        dx[i] += dout[i] * ((1 + th) / 2 + x[i] / 2 * (1 - th * th) * du_dx);
    }
}

/* probs (M, V) = softmax(logits). Returns the loss in nats per token: the mean of -log(p_target) over the M rows. */
static double cross_entropy_forward(real *probs, const real *logits, const int32_t *targets, int M, int V) {
    double sum = 0;
    for (int m = 0; m < M; m++) sum += softmax(probs + m * V, logits + m * V, V) - logits[m * V + targets[m]];
    return sum / M;
}

/* loss = mean over rows of log(sum_j e^logit_j) - logit_target:   dlogit_i = (p_i - (1 if i is the target)) / M */
static void cross_entropy_backward(real *dlogits, const real *probs, const int32_t *targets, int M, int V) {
    for (int m = 0; m < M; m++)
        for (int i = 0; i < V; i++) dlogits[m * V + i] += (probs[m * V + i] - (i == targets[m])) / M;
}

/* ---- the model ---- */

enum { MAX_LAYERS = 96, PADDED_TO = 128 };

/* clang-format off */

/* The sizes, in the order of a weights file. padded_vocab is vocab_size rounded up, with rows that are never used. */
typedef struct config { int32_t block_size, vocab_size, n_layer, n_head, n_embd, padded_vocab; } config;

/* The parameters of a block, in the order of a weights file: X(field, name, rows, columns), columns 1 for a vector.
   A matrix is (out, in). X is defined where the list is used. */
#define BLOCK_PARAMETERS(X) \
    X(ln_1_weight, "ln_1.weight", C, 1)              X(ln_1_bias, "ln_1.bias", C, 1) \
    X(c_attn_weight, "attn.c_attn.weight", 3 * C, C) X(c_attn_bias, "attn.c_attn.bias", 3 * C, 1) \
    X(attn_weight, "attn.c_proj.weight", C, C)       X(attn_bias, "attn.c_proj.bias", C, 1) \
    X(ln_2_weight, "ln_2.weight", C, 1)              X(ln_2_bias, "ln_2.bias", C, 1) \
    X(c_fc_weight, "mlp.c_fc.weight", 4 * C, C)      X(c_fc_bias, "mlp.c_fc.bias", 4 * C, 1) \
    X(mlp_weight, "mlp.c_proj.weight", C, 4 * C)     X(mlp_bias, "mlp.c_proj.bias", C, 1)

/* Its activations, which the backward pass reads again: X(field, size). x is the residual stream, as it enters. */
#define BLOCK_ACTIVATIONS(X) \
    X(x, M * C) X(ln_1, M * C) X(mean_1, M) X(rstd_1, M) X(qkv, M * 3 * C) X(att, M * H * T) X(y, M * C) \
    X(attn, M * C) X(x_mid, M * C) X(ln_2, M * C) X(mean_2, M) X(rstd_2, M) X(fc, M * 4 * C) X(act, M * 4 * C) \
    X(mlp, M * C)
#define LAST_ACTIVATIONS(X) X(ln_f, M * C) X(mean_f, M) X(rstd_f, M) X(logits, M * V) X(probs, M * V)

#define FIELD(field, ...) real *field;
typedef struct block { BLOCK_PARAMETERS(FIELD) } block;
typedef struct parameters { real *wte, *wpe, *ln_f_weight, *ln_f_bias; block h[MAX_LAYERS]; } parameters;
typedef struct block_activations { BLOCK_ACTIVATIONS(FIELD) } block_activations;
typedef struct activations {
    block_activations h[MAX_LAYERS + 1]; /* h[L].x is what leaves the last block */
    LAST_ACTIVATIONS(FIELD)
    real *memory; /* all of the above, in one piece of `count` numbers */
    size_t count;
} activations;

/* A parameter for code that treats all parameters alike: AdamW and the files. m and v are AdamW's moments. */
typedef struct tensor { char name[40]; int size, is_matrix; real *value, *gradient, *m, *v; } tensor;

/* clang-format on */

typedef struct gpt {
    config c;
    parameters w, dw; /* the tensors' values and gradients, by field */
    activations a, da;
    tensor table[4 + 12 * MAX_LAYERS];
    int n_tensors;
} gpt;

static void add_tensor(gpt *g, real **value, real **gradient, const char *name, int layer, int rows, int columns) {
    tensor *t = &g->table[g->n_tensors++];
    snprintf(t->name, sizeof t->name, name, layer);
    t->size = rows * columns;
    t->is_matrix = columns > 1;
    t->value = *value = allocate(4 * (size_t)t->size, sizeof(real)); /* four arrays, one after the other */
    t->gradient = *gradient = t->value + t->size;
    t->m = t->gradient + t->size;
    t->v = t->m + t->size;
}

static void place_activations(activations *a, const config *c, int B, int T) {
    size_t M = (size_t)B * T, C = c->n_embd, H = c->n_head, V = c->vocab_size, L = c->n_layer;
#define PLUS(field, size) +size
    a->count = 0 LAST_ACTIVATIONS(PLUS) + (L + 1) * (0 BLOCK_ACTIVATIONS(PLUS));
    real *next = a->memory = allocate(a->count, sizeof(real));
#define PLACE(field, size) a->field = next, next += size;
    LAST_ACTIVATIONS(PLACE)
#define PLACE_IN_BLOCK(field, size) a->h[l].field = next, next += size;
    for (size_t l = 0; l <= L; l++) {
        BLOCK_ACTIVATIONS(PLACE_IN_BLOCK)
    }
}

/* Makes a model whose parameters are zero, with room for batches (B, T). */
static void gpt_create(gpt *g, config c, int B, int T) {
    int C = c.n_embd;
    g->c = c;
    add_tensor(g, &g->w.wte, &g->dw.wte, "wte.weight", 0, c.padded_vocab, C);
    add_tensor(g, &g->w.wpe, &g->dw.wpe, "wpe.weight", 0, c.block_size, C);
#define ADD(field, name, rows, columns) \
    for (int l = 0; l < c.n_layer; l++) \
        add_tensor(g, &g->w.h[l].field, &g->dw.h[l].field, "h.%d." name, l, rows, columns);
    BLOCK_PARAMETERS(ADD)
    add_tensor(g, &g->w.ln_f_weight, &g->dw.ln_f_weight, "ln_f.weight", 0, C, 1);
    add_tensor(g, &g->w.ln_f_bias, &g->dw.ln_f_bias, "ln_f.bias", 0, C, 1);
    place_activations(&g->a, &c, B, T);
    place_activations(&g->da, &c, B, T);
}

/* A block reads the residual stream in a->x and leaves it in a[1].x, for the next block: ten calls, ... */
static void block_forward(const block *w, const block_activations *a, int B, int T, int C, int H) {
    int M = B * T;
    layernorm_forward(a->ln_1, a->mean_1, a->rstd_1, a->x, w->ln_1_weight, w->ln_1_bias, M, C);
    linear_forward(a->qkv, a->ln_1, w->c_attn_weight, w->c_attn_bias, M, C, 3 * C);
    attention_forward(a->y, a->att, a->qkv, B, T, C, H);
    linear_forward(a->attn, a->y, w->attn_weight, w->attn_bias, M, C, C);
    residual_forward(a->x_mid, a->x, a->attn, M * C);
    layernorm_forward(a->ln_2, a->mean_2, a->rstd_2, a->x_mid, w->ln_2_weight, w->ln_2_bias, M, C);
    linear_forward(a->fc, a->ln_2, w->c_fc_weight, w->c_fc_bias, M, C, 4 * C);
    gelu_forward(a->act, a->fc, M * 4 * C);
    linear_forward(a->mlp, a->act, w->mlp_weight, w->mlp_bias, M, 4 * C, C);
    residual_forward(a[1].x, a->x_mid, a->mlp, M * C);
}

/* ... and the same ten in reverse. d has the gradient of each activation in a, dw of each parameter in w. */
static void block_backward(const block *dw, const block_activations *d, const block *w, const block_activations *a,
                           int B, int T, int C, int H) {
    int M = B * T;
    residual_backward(d->x_mid, d->mlp, d[1].x, M * C);
    linear_backward(d->act, dw->mlp_weight, dw->mlp_bias, d->mlp, a->act, w->mlp_weight, M, 4 * C, C);
    gelu_backward(d->fc, d->act, a->fc, M * 4 * C);
    linear_backward(d->ln_2, dw->c_fc_weight, dw->c_fc_bias, d->fc, a->ln_2, w->c_fc_weight, M, C, 4 * C);
    layernorm_backward(d->x_mid, dw->ln_2_weight, dw->ln_2_bias, d->ln_2, a->x_mid, a->mean_2, a->rstd_2,
                       w->ln_2_weight, M, C);
    residual_backward(d->x, d->attn, d->x_mid, M * C);
    linear_backward(d->y, dw->attn_weight, dw->attn_bias, d->attn, a->y, w->attn_weight, M, C, C);
    attention_backward(d->qkv, d->att, d->y, a->qkv, a->att, B, T, C, H);
    linear_backward(d->ln_1, dw->c_attn_weight, dw->c_attn_bias, d->qkv, a->ln_1, w->c_attn_weight, M, C, 3 * C);
    layernorm_backward(d->x, dw->ln_1_weight, dw->ln_1_bias, d->ln_1, a->x, a->mean_1, a->rstd_1, w->ln_1_weight, M, C);
}

/* Fills g->a from ids (B, T). Returns the loss if there are targets (B, T), else 0. */
static double gpt_forward(gpt *g, const int32_t *ids, const int32_t *targets, int B, int T) {
    const int M = B * T, C = g->c.n_embd, H = g->c.n_head, V = g->c.vocab_size, L = g->c.n_layer;
    const parameters *w = &g->w;
    const activations *a = &g->a;
    embedding_forward(a->h[0].x, ids, w->wte, w->wpe, B, T, C);
    for (int l = 0; l < L; l++) block_forward(&w->h[l], &a->h[l], B, T, C, H);
    layernorm_forward(a->ln_f, a->mean_f, a->rstd_f, a->h[L].x, w->ln_f_weight, w->ln_f_bias, M, C);
    linear_forward(a->logits, a->ln_f, w->wte, NULL, M, C, V); /* the head's weight is the token embedding */
    return targets ? cross_entropy_forward(a->probs, a->logits, targets, M, V) : 0;
}

/* Fills g->dw, after gpt_forward with the same arguments. */
static void gpt_backward(gpt *g, const int32_t *ids, const int32_t *targets, int B, int T) {
    const int M = B * T, C = g->c.n_embd, H = g->c.n_head, V = g->c.vocab_size, L = g->c.n_layer;
    const parameters *w = &g->w, *dw = &g->dw;
    const activations *a = &g->a, *d = &g->da;
    for (int i = 0; i < g->n_tensors; i++) memset(g->table[i].gradient, 0, (size_t)g->table[i].size * sizeof(real));
    memset(d->memory, 0, d->count * sizeof(real));
    cross_entropy_backward(d->logits, a->probs, targets, M, V);
    linear_backward(d->ln_f, dw->wte, NULL, d->logits, a->ln_f, w->wte, M, C, V);
    layernorm_backward(d->h[L].x, dw->ln_f_weight, dw->ln_f_bias, d->ln_f, a->h[L].x, a->mean_f, a->rstd_f,
                       w->ln_f_weight, M, C);
    for (int l = L - 1; l >= 0; l--) block_backward(&dw->h[l], &d->h[l], &w->h[l], &a->h[l], B, T, C, H);
    embedding_backward(dw->wte, dw->wpe, d->h[0].x, ids, B, T, C);
}

/* ---- AdamW (Loshchilov & Hutter 2019) ---- */

typedef struct adamw {
    double learning_rate, beta1, beta2, weight_decay, grad_clip;
} adamw;

/* Takes step number `step`, counted from 1. Returns the norm of the gradient over all parameters, before it is clipped:
   shortened to grad_clip if it is longer. Only matrices decay: a norm's weight belongs near 1, not near 0. */
static double gpt_update(gpt *g, const adamw *o, int step) {
    double squares = 0;
    for (tensor *t = g->table; t < g->table + g->n_tensors; t++)
        for (int i = 0; i < t->size; i++) squares += (double)t->gradient[i] * t->gradient[i];
    double norm = sqrt(squares), scale = o->grad_clip > 0 ? fmin(1.0, o->grad_clip / (norm + 1e-6)) : 1;
    double correct1 = 1 - pow(o->beta1, (double)step), correct2 = 1 - pow(o->beta2, (double)step);
    for (tensor *t = g->table; t < g->table + g->n_tensors; t++)
        for (int i = 0; i < t->size; i++) {
            double d = t->gradient[i] * scale, decay = t->is_matrix ? o->weight_decay * t->value[i] : 0;
            t->m[i] = o->beta1 * t->m[i] + (1 - o->beta1) * d;     /* the gradient, averaged over the last steps */
            t->v[i] = o->beta2 * t->v[i] + (1 - o->beta2) * d * d; /* its square, averaged over more of them */
            double mean = t->m[i] / correct1, square = t->v[i] / correct2; /* as both averages began with 0 */
            t->value[i] -= o->learning_rate * (mean / (sqrt(square) + 1e-8) + decay);
        }
    return norm;
}

/* ---- random numbers and initial weights ---- */

static uint64_t random_state;

static double random_uniform(void) { /* between 0 and 1, both excluded; splitmix64 (Steele et al. 2014) */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return ((double)((z ^ z >> 31) >> 11) + 0.5) / 9007199254740992.0;
}

static double random_normal(void) { /* Box & Muller 1958 */
    double radius = sqrt(-2 * log(random_uniform()));
    return radius * cos(6.283185307179586 * random_uniform());
}

/* As in GPT-2. The 2L matrices that write to the residual stream start smaller, because their outputs add up. */
static void gpt_initialize(gpt *g) {
    for (tensor *t = g->table; t < g->table + g->n_tensors; t++) {
        double std = strstr(t->name, "c_proj") ? 0.02 / sqrt(2.0 * g->c.n_layer) : 0.02;
        int used = t == g->table ? g->c.vocab_size * g->c.n_embd : t->size;
        for (int i = 0; i < used; i++) t->value[i] = t->is_matrix ? std * random_normal() : !strstr(t->name, "bias");
    }
}

/* ---- files: 256 int32, which say what the file is, its version and sizes; then the values ---- */

enum { HEADER = 256, WEIGHTS = 20240326, STATE = 20240327, TOKENS = 20240520 };

static FILE *open_file(const char *path, const char *mode) {
    if (sizeof(real) != 4) fail("%s: files have float32 values; compile without -DDOUBLE", path);
    FILE *file = fopen(path, mode);
    if (!file) fail("%s: %s", path, strerror(errno));
    return file;
}

static FILE *create_file(const char *path, int32_t kind, int32_t version, const int32_t *sizes, size_t count) {
    int32_t header[HEADER] = {kind, version};
    FILE *file = open_file(path, "wb");
    memcpy(header + 2, sizes, count * sizeof *sizes);
    fwrite(header, 4, HEADER, file);
    return file;
}

/* Writes the values or the gradients of all tensors, and closes the file. */
static void finish_file(FILE *file, const char *path, const gpt *g, int gradients) {
    for (const tensor *t = g->table; t < g->table + g->n_tensors; t++)
        fwrite(gradients ? t->gradient : t->value, 4, (size_t)t->size, file);
    int failed = ferror(file);
    if (fclose(file) || failed) fail("%s: cannot write: %s", path, strerror(errno));
}

/* Returns the sizes of a weights file; if there is a model, also fills it with the values. */
static config read_weights(const char *path, gpt *g) {
    int32_t h[HEADER] = {0};
    config c;
    FILE *file = open_file(path, "rb");
    if (fread(h, 4, HEADER, file) != HEADER || h[0] != WEIGHTS || h[1] != 3)
        fail("%s: not a weights file of llm.c, version 3 (float32)", path);
    memcpy(&c, h + 2, sizeof c);
    for (int i = 2; i < 8; i++)
        if (h[i] < 1 || (i == 7 && h[i] < c.vocab_size)) fail("%s: impossible size %d in the header", path, (int)h[i]);
    for (tensor *t = g ? g->table : NULL; t && t < g->table + g->n_tensors; t++)
        if (fread(t->value, 4, (size_t)t->size, file) != (size_t)t->size) fail("%s: ends inside %s", path, t->name);
    if (g && fgetc(file) != EOF) fail("%s: longer than its header says", path);
    fclose(file);
    return c;
}

typedef struct tokens {
    int32_t *ids;
    int batches, is_text;
} tokens; /* the last id is only a target */

/* Reads a token file, or the bytes of any other file; `batch` of the tokens make a batch. */
static tokens read_tokens(const char *path, int batch, int vocab_size) {
    int32_t h[HEADER] = {0};
    FILE *file = open_file(path, "rb");
    tokens t = {.is_text = fread(h, 4, HEADER, file) != HEADER || h[0] != TOKENS || h[1] != 1};
    int count = 0, room = 0;
    if (t.is_text && h[0] / 10000 == 2024) fail("%s: a file of llm.c, but not GPT-2's tokens (version 1)", path);
    if (t.is_text) rewind(file);
    for (unsigned char bytes[2] = {0}; fread(bytes, t.is_text ? 1 : 2, 1, file) == 1; count++) {
        if (count == room) t.ids = realloc(t.ids, (size_t)(room = 2 * room + 1024) * sizeof *t.ids);
        if (!t.ids || room > 1 << 29) fail("%s: does not fit into memory", path);
        t.ids[count] = bytes[0] + 256 * bytes[1];
        if (t.ids[count] >= vocab_size) fail("%s: token %d; vocab_size is %d", path, (int)t.ids[count], vocab_size);
    }
    fclose(file);
    if (!t.is_text && count != h[2]) fail("%s: %d tokens; the header says %d", path, count, (int)h[2]);
    if (count <= batch) fail("%s: %d tokens; a batch needs %d", path, count, batch + 1);
    t.batches = (count - 1) / batch;
    return t;
}

/* ---- settings: --name value ---- */

/* clang-format off */
static struct { const char *name, *value; } SETTINGS[] = {
    {"data", NULL}, {"init_from", NULL}, {"out", NULL},                          /* files */
    {"n_layer", "4"}, {"n_head", "4"}, {"n_embd", "128"}, {"vocab_size", "256"}, /* of a new model */
    {"batch_size", "4"}, {"block_size", "64"}, {"max_iters", "200"}, {"max_new_tokens", "100"}, {"seed", "1337"},
    {"learning_rate", "1e-3"}, {"beta1", "0.9"}, {"beta2", "0.95"}, {"weight_decay", "0.1"}, {"grad_clip", "1"},
};
/* clang-format on */

static const char **find_setting(const char *name) {
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++)
        if (!strcmp(SETTINGS[i].name, name)) return &SETTINGS[i].value;
    fail("unknown setting --%s", name);
}

static const char *text(const char *name, int required) {
    if (required && !*find_setting(name)) fail("--%s is required: a file", name);
    return *find_setting(name);
}

static double number(const char *name, double least) {
    const char *value = text(name, 1);
    char *end;
    double found = strtod(value, &end);
    if (end == value || *end || !(found >= least && found <= 1e9))
        fail("--%s %s: expected a number from %g to 1e9", name, value, least);
    return found;
}

/* ---- the commands ---- */

/* Draws `count` tokens one by one, from the probabilities after the T tokens before, and prints them: bytes or ids. */
static void generate(gpt *g, int32_t first, int count, int T, int is_text) {
    int32_t *ids = allocate(count + 1, sizeof *ids);
    ids[0] = first;
    for (int n = 1; n <= count; n++) {
        int seen = n < T ? n : T, V = g->c.vocab_size;
        gpt_forward(g, ids + n - seen, NULL, 1, seen); /* earlier tokens too, again and again: see the exercises */
        real *p = g->a.logits + (seen - 1) * V;
        softmax(p, p, V);
        for (double left = random_uniform() - p[0]; left > 0 && ids[n] < V - 1; left -= p[ids[n]]) ids[n]++;
        printf(is_text ? "%c" : "%d ", (int)ids[n]);
    }
    putchar('\n');
    free(ids);
}

static void train(gpt *g, int B, int T) {
    adamw o = {number("learning_rate", 0), number("beta1", 0), number("beta2", 0), number("weight_decay", 0),
               number("grad_clip", 0)};
    int steps = number("max_iters", 0);
    tokens data = read_tokens(text("data", 1), B * T, g->c.vocab_size);
    for (int step = 0; step < steps; step++) {
        clock_t start = clock();
        const int32_t *ids = data.ids + step % data.batches * B * T, *targets = ids + 1; /* in the order of the file */
        double loss = gpt_forward(g, ids, targets, B, T);
        gpt_backward(g, ids, targets, B, T);
        double norm = gpt_update(g, &o, step + 1), ms = 1000.0 * (double)(clock() - start) / CLOCKS_PER_SEC;
        printf("step %d/%d: loss %.6f, norm %.4f, %.1f ms\n", step + 1, steps, loss, norm, ms);
        fflush(stdout);
    }
    if (text("out", 0)) finish_file(create_file(text("out", 0), WEIGHTS, 3, &g->c.block_size, 6), text("out", 0), g, 0);
    generate(g, data.ids[0], number("max_new_tokens", 0), T, data.is_text);
    free(data.ids);
}

/* Writes the debug state of llm.c's own test: inputs, targets, logits, loss and gradients of the first batch. */
static void state(gpt *g, int B, int T) {
    const char *path = text("out", 1);
    tokens data = read_tokens(text("data", 1), B * T, g->c.vocab_size);
    real loss = gpt_forward(g, data.ids, data.ids + 1, B, T);
    gpt_backward(g, data.ids, data.ids + 1, B, T);
    FILE *file = create_file(path, STATE, 2, (int32_t[]){B, T}, 2);
    fwrite(data.ids, 4, (size_t)B * T, file);
    fwrite(data.ids + 1, 4, (size_t)B * T, file);
    fwrite(g->a.logits, 4, (size_t)B * T * g->c.vocab_size, file);
    fwrite(&loss, 4, 1, file);
    finish_file(file, path, g, 1);
    printf("%s: loss %.6f, and the gradients of %d tensors\n", path, (double)loss, g->n_tensors);
    free(data.ids);
}

/* Moves each parameter in a random direction u of -1s and 1s: (loss(w + h u) - loss(w - h u)) / 2h must be dw . u. */
static int check(gpt *g, int B, int T) {
    const double h = 1e-5;
    double largest = 0;
    int32_t *ids = allocate((size_t)B * T + 1, sizeof *ids), *targets = ids + 1;
    for (int i = 0; i <= B * T; i++) ids[i] = (int32_t)(random_uniform() * g->c.vocab_size);
    for (tensor *t = g->table; t < g->table + g->n_tensors; t++) /* a weight of 1 or a bias of 0 could hide a mistake */
        for (int i = 0; i < t->size; i++) t->value[i] += 0.1 * random_normal();
    gpt_forward(g, ids, targets, B, T);
    gpt_backward(g, ids, targets, B, T);
    for (tensor *t = g->table; t < g->table + g->n_tensors; t++) {
        double slope = 0, squares = 0, loss[3];
        uint64_t direction = random_state;
        for (int side = 0; side < 3; side++) { /* to w + h u, from there to w - h u, and back to w */
            random_state = direction;
            for (int i = 0; i < t->size; i++) {
                double u = random_uniform() < 0.5 ? -1 : 1;
                t->value[i] += (side == 1 ? -2 : 1) * h * u;
                if (side == 0) slope += u * t->gradient[i], squares += (double)t->gradient[i] * t->gradient[i];
            }
            loss[side] = gpt_forward(g, ids, targets, B, T);
        }
        double difference = (loss[0] - loss[1]) / (2 * h), error = fabs(difference - slope) / sqrt(squares);
        printf("%-24s %11.8f, by differences %11.8f: error %.0e\n", t->name, slope, difference, error);
        largest = error <= largest ? largest : error; /* NaN too */
    }
    free(ids);
    int right = largest < 1e-6;
    printf("largest error %.0e: %s\n", largest, right ? "every gradient is right" : "WRONG, or without -DDOUBLE");
    return !right;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "train") && strcmp(command, "state") && strcmp(command, "check"))
        fail("usage: gpt train|state|check --NAME VALUE ...; SETTINGS in gpt.c lists the names");
    for (int i = 2; i < argc; i += 2) {
        if (strncmp(argv[i], "--", 2) || i + 1 == argc) fail("%s: expected --NAME VALUE", argv[i]);
        *find_setting(argv[i] + 2) = argv[i + 1];
    }
    random_state = (uint64_t)number("seed", 0);
    int B = number("batch_size", 1), T = number("block_size", 1), V = number("vocab_size", 1);
    config c = {T, V, number("n_layer", 1), number("n_head", 1), number("n_embd", 1), 0};
    c.padded_vocab = (V + PADDED_TO - 1) / PADDED_TO * PADDED_TO;
    if (text("init_from", 0)) c = read_weights(text("init_from", 0), NULL);
    if (T > c.block_size) T = c.block_size;
    if (c.n_layer > MAX_LAYERS) fail("n_layer is %d; at most %d is possible", (int)c.n_layer, MAX_LAYERS);
    if (c.n_embd % c.n_head) fail("n_embd %d is not a multiple of n_head %d", (int)c.n_embd, (int)c.n_head);
    double rows = fmax(fmax((double)B * T, c.n_embd), c.block_size), columns = fmax(4.0 * c.n_embd, c.padded_vocab);
    if (rows * fmax(columns, (double)c.n_head * T) > INT_MAX) fail("an array would be too large for int indices");
    static gpt g;
    gpt_create(&g, c, B, T);
    if (text("init_from", 0)) read_weights(text("init_from", 0), &g);
    else gpt_initialize(&g);
    if (!strcmp(command, "check")) return check(&g, B, T);
    strcmp(command, "train") ? state(&g, B, T) : train(&g, B, T);
    return 0;
}
