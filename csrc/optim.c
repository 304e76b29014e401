/* optim.c: gradient norm, AdamW, Muon, and the bfloat16 copies of the weights that the products read.

   The arithmetic is that of torch.optim.AdamW: decoupled decay (Loshchilov & Hutter 2019), bias-corrected moments; and that of Muon (Jordan
   et al. 2024, https://kellerjordan.github.io/posts/muon/). Gradients are read once for their norm and once for the step; they are not
   zeroed (the next micro-batch overwrites them).

   Not compiled by itself: kernels_*.c include it. It knows no learning-rate schedule, and not which optimizer a parameter has. */

#include <math.h>
#include "ops.h"
#include "vec.h"

static void squares_sum(const team *t, double *sums, const float *x, int64_t n) {
    int64_t begin, end;
    pool_split((n + OPTIM_PIECE - 1) / OPTIM_PIECE, 1, t->thread, t->n_threads, &begin, &end);
    for (int64_t piece = begin; piece < end; piece++) {
        const int64_t first = piece * OPTIM_PIECE, last = first + OPTIM_PIECE < n ? first + OPTIM_PIECE : n;
        double total = 0.0;
        for (int64_t i = first; i < last; i += 2048) {           /* float32 sums stay short */
            vec even = {0}, odd = {0};
            for (int64_t j = i; j < i + 2048 && j < last; j += 2 * LANES) {
                vec a = vec_load(x + j, last - j), b = vec_load(x + j + LANES, last - j - LANES);
                even += a * a;
                odd += b * b;
            }
            total += (double)vec_total(even + odd);
        }
        sums[piece] = total;
    }
    pool_barrier(t->pool);
}

/* Each thread its share; no barrier, so that a loop over all parameters needs only one behind it. */
static void adamw_update(const team *t, parameter *p, const adamw *a) {
    int64_t begin, end;
    pool_split(p->size, 1024, t->thread, t->n_threads, &begin, &end);
    float keep = p->columns ? a->keep : 1.0f;                    /* no decay of biases and norms */
    for (int64_t i = begin; i < end; i += LANES) {
        int64_t left = end - i;
        vec g = vec_load(p->gradient + i, left) * a->gradient_scale;
        vec m = vec_load(p->exp_avg + i, left), v = vec_load(p->exp_avg_sq + i, left);
        m = m + (g - m) * a->rest1;
        v = v * a->beta2 + g * g * a->rest2;
        vec w = vec_load(p->value + i, left) * keep - a->step_size * m / (vec_sqrt(v) * a->inverse_correction + a->eps);
        vec_store(p->exp_avg + i, left, m);
        vec_store(p->exp_avg_sq + i, left, v);
        vec_store(p->value + i, left, w);
        if (p->bfloat16) vec_store_bfloat16(p->bfloat16 + i, left, w);
    }
}

/* ---- Muon: momentum, then the nearest matrix whose singular values are all alike ---- */

/* product (m, n) = a (m, k) b (k, n), on this thread alone */
static void muon_multiply(const team *t, float *product, int64_t m, int64_t n, int64_t k, matmul_matrix a, matmul_matrix b) {
    matmul_run_solo(t->matmul, t->thread, &(matmul_problem){
        .m = m, .n = n, .k = k, .a = a, .b = b, .c = product, .c_stride = n, .precision = t->precision,
    });
}

static void muon_add_to_diagonal(float *square, int64_t n, float value) {
    for (int64_t i = 0; i < n; i++) square[i * n + i] += value;
}

/* x (R, C) with norm <= 1 becomes about U V^T of its singular value decomposition U S V^T, by Newton-Schulz: p(s) = a s + b s^3 + c s^5,
   five times over, takes every s that is not tiny to between 0.7 and 1.2. With G = x x^T, or x^T x where that is smaller, one step is
   x = (a I + b G + c G G) x, or x (...). `next` (R, C), `gram` and `square` (S, S) with S = min(R, C) are scratch; returns x or next. */
static float *muon_orthogonalize(const team *t, float *x, float *next, float *gram, float *square, int64_t R, int64_t C) {
    const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    const int64_t S = R < C ? R : C;
    for (int32_t turn = 0; turn < 5; turn++) {
        if (R <= C) muon_multiply(t, gram, S, S, C, matmul_rows(x, C), matmul_columns(x, C));
        else muon_multiply(t, gram, S, S, R, matmul_columns(x, C), matmul_rows(x, C));
        float *shifted = next;                                   /* b I + c G, for a moment */
        for (int64_t i = 0; i < S * S; i++) shifted[i] = c * gram[i];
        muon_add_to_diagonal(shifted, S, b);
        muon_multiply(t, square, S, S, S, matmul_rows(shifted, S), matmul_rows(gram, S));
        muon_add_to_diagonal(square, S, a);
        if (R <= C) muon_multiply(t, next, R, C, S, matmul_rows(square, S), matmul_rows(x, C));
        else muon_multiply(t, next, R, C, S, matmul_rows(x, C), matmul_rows(square, S));
        float *swap = x;
        x = next;
        next = swap;
    }
    return x;
}

/* All of one matrix, by the calling thread: no barrier. scratch: muon_scratch() floats. */
static void muon_update(const team *t, const hidden_matrix *w, const muon *u, float *scratch) {
    const int64_t R = w->rows, C = w->of->columns, n = R * C, S = R < C ? R : C, first = w->first_row * C;
    float *x = scratch, *next = x + n, *gram = next + n, *square = gram + S * S;
    double total = 0.0;
    for (int64_t i = 0; i < n; i += 2048) {                      /* float32 sums stay short */
        vec sum = {0};
        for (int64_t j = i; j < i + 2048 && j < n; j += LANES) {
            vec g = vec_load(w->of->gradient + first + j, n - j) * u->gradient_scale, m = vec_load(w->of->exp_avg + first + j, n - j);
            m = m + (g - m) * u->rest;
            g = g + (m - g) * u->momentum;                       /* Nesterov's */
            vec_store(w->of->exp_avg + first + j, n - j, m);
            vec_store(x + j, n - j, g);
            sum += g * g;
        }
        total += (double)vec_total(sum);
    }
    const float inverse_norm = 1.0f / ((float)sqrt(total) + 1e-7f);
    for (int64_t i = 0; i < n; i += LANES) vec_store(x + i, n - i, vec_load(x + i, n - i) * inverse_norm);
    x = muon_orthogonalize(t, x, next, gram, square, R, C);
    const float step_size = u->learning_rate * (R > C ? sqrtf((float)R / (float)C) : 1.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        vec v = vec_load(w->of->value + first + i, n - i) * u->keep - step_size * vec_load(x + i, n - i);
        vec_store(w->of->value + first + i, n - i, v);
        if (w->of->bfloat16) vec_store_bfloat16(w->of->bfloat16 + first + i, n - i, v);
    }
}

static void bfloat16_copy(const team *t, uint16_t *out, const float *x, int64_t n) {
    int64_t begin, end;
    pool_split(n, 1024, t->thread, t->n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i += LANES) vec_store_bfloat16(out + i, end - i, vec_load(x + i, end - i));
    pool_barrier(t->pool);
}
