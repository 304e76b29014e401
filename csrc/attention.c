/* attention.c: softmax(q k^T / sqrt(D)) v, causal, with grouped key-value heads and dropout; forward and backward.

   A strip of ATTENTION_STRIP queries of one head is worked on at a time, against the keys that it can see: its scores are (64, S) floats
   that stay in the second-level cache, so memory grows with T, not with T x T. The backward pass computes the probabilities
   again from q, k and the saved log-sum-exp (Dao et al. 2022, without their online softmax: a strip has whole rows).
   A thread has whole query heads, and in the backward pass whole key-value heads, with all query heads that share them.

   Not compiled by itself: kernels_*.c include it after ops.c. */

#include "ops.h"
#include "vec.h"

/* Where a head's rows are. */
static const float *attention_q(const attention *a, int64_t b, int64_t h, int64_t i) { return a->q + b * a->q_batch + i * a->q_row + h * a->D; }

static matmul_matrix attention_kv(const attention *a, matmul_matrix kv, int64_t b, int64_t h, int32_t transposed) {
    int64_t offset = b * a->kv_batch + h / (a->H / a->KV) * a->kv_head;
    kv.data = (const char *)kv.data + offset * (kv.type == MATMUL_BFLOAT16 ? 2 : 4);
    if (transposed) { int64_t rows = kv.row_stride; kv.row_stride = kv.column_stride; kv.column_stride = rows; }
    return kv;
}

/* scores (rows, keys) = q k^T for queries i0 .. i0 + rows */
static void attention_scores(const team *t, const attention *a, float *scores, int64_t b, int64_t h, int64_t i0, int64_t rows, int64_t keys) {
    matmul_run_solo(t->matmul, t->thread, &(matmul_problem){
        .m = rows, .n = keys, .k = a->D, .a = matmul_rows(attention_q(a, b, h, i0), a->q_row), .b = attention_kv(a, a->k, b, h, 1),
        .c = scores, .c_stride = keys, .precision = t->precision,
    });
}

/* Dropout of the probabilities of query i: a key for each (b, h, i). */
static uint64_t attention_row_key(const attention *a, int64_t b, int64_t h, int64_t i) {
    return dropout_key(a->drop.key, (uint64_t)((b * a->H + h) * a->T + i));
}

/* Row of scores -> probabilities of the first `seen` keys, zero for the others; returns log(sum(exp(scale * score))). */
static float attention_softmax_row(float *row, int64_t seen, int64_t keys, float scale) {
    vec largest = vec_all(-INFINITY);
    for (int64_t j = 0; j < seen; j += LANES) largest = vec_max(largest, vec_load_or(row + j, seen - j, -INFINITY));
    float max = vec_largest(largest);
    vec sums = {0};
    for (int64_t j = 0; j < seen; j += LANES) {
        vec e = vec_exp((vec_load(row + j, seen - j) - max) * scale);
        if (seen - j < LANES) e = vec_load((float *)&e, seen - j);
        sums += e;
        vec_store(row + j, seen - j, e);
    }
    float sum = vec_total(sums), inverse = 1.0f / sum;
    for (int64_t j = 0; j < seen; j += LANES) vec_store(row + j, seen - j, vec_load(row + j, seen - j) * inverse);
    memset(row + seen, 0, (size_t)(keys - seen) * sizeof(float));
    return max * scale + logf(sum);
}

static void cache_append(const team *t, void *keys, void *values, int32_t type, const float *qkv,
                         int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, int64_t S, int64_t position) {
    int64_t begin, end;
    pool_split(B * KV, 1, t->thread, t->n_threads, &begin, &end);
    for (int64_t item = begin; item < end; item++)
        for (int64_t i = 0; i < T; i++) {
            const float *k = qkv + (item / KV * T + i) * (H + 2 * KV) * D + (H + item % KV) * D, *v = k + KV * D;
            int64_t at = (item * S + position + i) * D;
            for (int64_t d = 0; d < D; d += LANES) {
                vec k_d = vec_load(k + d, D - d), v_d = vec_load(v + d, D - d);
                if (type == MATMUL_BFLOAT16) {
                    vec_store_bfloat16((uint16_t *)keys + at + d, D - d, k_d);
                    vec_store_bfloat16((uint16_t *)values + at + d, D - d, v_d);
                } else {
                    vec_store((float *)keys + at + d, D - d, k_d);
                    vec_store((float *)values + at + d, D - d, v_d);
                }
            }
        }
    pool_barrier(t->pool);
}

static void attention_head_forward(const team *t, const attention *a, int64_t b, int64_t h) {
    int64_t T = a->T, D = a->D, HD = a->H * a->D;
    float *scores = a->scratch + t->thread * a->scratch_stride, scale = 1.0f / sqrtf((float)D);
    for (int64_t i0 = 0; i0 < T; i0 += ATTENTION_STRIP) {
        int64_t rows = T - i0 < ATTENTION_STRIP ? T - i0 : ATTENTION_STRIP, keys = a->S - T + i0 + rows;
        attention_scores(t, a, scores, b, h, i0, rows, keys);
        for (int64_t i = 0; i < rows; i++) {
            float *row = scores + i * keys, lse = attention_softmax_row(row, a->S - T + i0 + i + 1, keys, scale);
            if (a->lse) a->lse[(b * a->H + h) * T + i0 + i] = lse;
            if (a->drop.p > 0.0f) {
                uint64_t key = attention_row_key(a, b, h, i0 + i);
                for (int64_t j = 0; j < keys; j += LANES)
                    vec_store(row + j, keys - j, vec_load(row + j, keys - j) * dropout_factor(a->drop.p, key, j));
            }
        }
        matmul_run_solo(t->matmul, t->thread, &(matmul_problem){            /* y = p v */
            .m = rows, .n = D, .k = keys, .a = matmul_rows(scores, keys), .b = attention_kv(a, a->v, b, h, 0),
            .c = a->y + (b * T + i0) * HD + h * D, .c_stride = HD, .precision = t->precision,
        });
    }
}

static void attention_forward(const team *t, const attention *a) {
    int64_t begin, end;
    pool_split(a->B * a->H, 1, t->thread, t->n_threads, &begin, &end);
    for (int64_t item = begin; item < end; item++) attention_head_forward(t, a, item / a->H, item % a->H);
    pool_barrier(t->pool);
}

/* Row i of the softmax and of its gradient. p, dp (keys) hold scores and dy v^T; they become the dropped probabilities and ds.
     p = softmax(scale * s), y = (p * m) v with m the dropout factors:
     dp = m * (dy v^T);  ds = scale * p * (dp - sum_j p_j dp_j), and that sum is dy . y */
static void attention_softmax_row_backward(float *p, float *dp, int64_t seen, int64_t keys, float scale, float lse, float dy_y,
                                           dropout drop, uint64_t key) {
    for (int64_t j = 0; j < seen; j += LANES) {
        vec e = vec_exp(vec_load(p + j, seen - j) * scale - lse), d = vec_load(dp + j, seen - j), dropped = e;
        if (drop.p > 0.0f) {
            vec m = dropout_factor(drop.p, key, j);
            d *= m;
            dropped *= m;
        }
        vec_store(p + j, seen - j, dropped);
        vec_store(dp + j, seen - j, e * (d - dy_y) * scale);
    }
    memset(p + seen, 0, (size_t)(keys - seen) * sizeof(float));
    memset(dp + seen, 0, (size_t)(keys - seen) * sizeof(float));
}

/* s = q k^T, y = p v:  dv = p^T dy;  dq = ds k;  dk = ds^T q. dk and dv add up over strips and over the query heads of a group: the last
   strip sees every key, so it goes first and overwrites (`add` 0). */
static void attention_head_backward(const team *t, const attention *a, int64_t b, int64_t h, int32_t add) {
    int64_t T = a->T, D = a->D, HD = a->H * D, width = (a->H + 2 * a->KV) * D, kv = h / (a->H / a->KV);
    float *p = a->scratch + t->thread * a->scratch_stride, *dp = p + ATTENTION_STRIP * T, scale = 1.0f / sqrtf((float)D);
    float *dq = a->dqkv + b * T * width + h * D, *dk = a->dqkv + b * T * width + (a->H + kv) * D, *dv = dk + a->KV * D;   /* rows `width` apart */
    for (int64_t i0 = (T - 1) / ATTENTION_STRIP * ATTENTION_STRIP; i0 >= 0; i0 -= ATTENTION_STRIP, add = 1) {
        int64_t rows = T - i0 < ATTENTION_STRIP ? T - i0 : ATTENTION_STRIP, keys = i0 + rows;
        const float *dy = a->dy + (b * T + i0) * HD + h * D, *y = a->y + (b * T + i0) * HD + h * D;
        attention_scores(t, a, p, b, h, i0, rows, keys);
        matmul_run_solo(t->matmul, t->thread, &(matmul_problem){            /* dp = dy v^T */
            .m = rows, .n = keys, .k = D, .a = matmul_rows(dy, HD), .b = attention_kv(a, a->v, b, h, 1),
            .c = dp, .c_stride = keys, .precision = t->precision,
        });
        for (int64_t i = 0; i < rows; i++) {
            vec sum = {0};
            for (int64_t d = 0; d < D; d += LANES) sum += vec_load(dy + i * HD + d, D - d) * vec_load(y + i * HD + d, D - d);
            float lse = a->lse[(b * a->H + h) * T + i0 + i];
            attention_softmax_row_backward(p + i * keys, dp + i * keys, i0 + i + 1, keys, scale, lse, vec_total(sum),
                                           a->drop, attention_row_key(a, b, h, i0 + i));
        }
        matmul_run_solo(t->matmul, t->thread, &(matmul_problem){            /* dv = p^T dy */
            .m = keys, .n = D, .k = rows, .a = matmul_columns(p, keys), .b = matmul_rows(dy, HD),
            .c = dv, .c_stride = width, .precision = t->precision, .accumulate = add,
        });
        matmul_run_solo(t->matmul, t->thread, &(matmul_problem){            /* dq = ds k */
            .m = rows, .n = D, .k = keys, .a = matmul_rows(dp, keys), .b = attention_kv(a, a->k, b, h, 0),
            .c = dq + i0 * width, .c_stride = width, .precision = t->precision,
        });
        matmul_run_solo(t->matmul, t->thread, &(matmul_problem){            /* dk = ds^T q */
            .m = keys, .n = D, .k = rows, .a = matmul_columns(dp, keys), .b = matmul_rows(attention_q(a, b, h, i0), a->q_row),
            .c = dk, .c_stride = width, .precision = t->precision, .accumulate = add,
        });
    }
}

static void attention_backward(const team *t, const attention *a) {
    int64_t begin, end, group = a->H / a->KV;
    pool_split(a->B * a->KV, 1, t->thread, t->n_threads, &begin, &end);
    for (int64_t item = begin; item < end; item++)
        for (int64_t g = 0; g < group; g++) attention_head_backward(t, a, item / a->KV, item % a->KV * group + g, g > 0);
    pool_barrier(t->pool);
}
