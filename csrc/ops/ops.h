/* ops.h: everything that a GPT's forward and backward pass call, and the optimizer.

   Every thread of a parallel region calls an op with the same arguments. Each does its share of the work, and a barrier
   at the end makes the whole output visible to all. The result never depends on the number of threads: one thread adds
   up a sum, or it is over fixed pieces.

   The sources are the .inc files of this folder. isa_*.c include all of them (table.inc), each for one instruction set,
   so the ops are reached through a table of functions that is chosen when an engine is created:

       const ops *op = ops_for_isa(cpu_best_isa());
       op->norm_forward(t, out, stats, x, weight, bias, rows, columns, 1, eps);

   Letters, everywhere: B sequences of T tokens, M = B * T rows; C channels; H heads and KV key-value heads of D
   channels; F the width inside the MLP; V the vocabulary. Buffers are float32, by rows, without gaps unless a stride
   says so. */

#ifndef SAMPAN_OPS_H
#define SAMPAN_OPS_H

#include <stdint.h>
#include "matmul/matmul.h"
#include "optimizers.h"
#include "platform/threads.h"
#include "sampan.h"

/* One thread's place in a region. */
typedef struct team {
    thread_pool *pool;
    matmul_context *matmul;
    int32_t thread, n_threads;
    int32_t precision; /* MATMUL_FLOAT32 | MATMUL_BFLOAT16 */
    int32_t fresh;     /* 1: gradients of parameters are overwritten (first micro-batch), 0: added to */
} team;

/* A trained tensor. Pointers that an engine does not need are NULL. */
typedef struct parameter {
    char name[40];                          /* "h.0.attn.c_attn.weight" */
    int64_t rows, columns;                  /* a matrix is (out, in); a vector has columns 0 */
    int64_t size;                           /* elements */
    float *value;                           /* NULL if only `bfloat16` is kept (a matrix, in bfloat16, not training) */
    uint16_t *bfloat16;                     /* a rounded copy of a matrix, where products are bfloat16 */
    int32_t optimizer;                      /* OPTIMIZER_... */
    float *gradient, *exp_avg, *exp_avg_sq; /* moments that its optimizer does not keep are NULL */
} parameter;

/* Which elements dropout keeps is a function of this key, the row and the column. p = 0: no dropout. */
typedef struct dropout {
    float p;
    uint64_t key; /* of (seed, step, micro-batch, place in the model): dropout_key() */
} dropout;

/* Where the sequences of a pass are in a cache: sequence b in slot[b], behind start[b] tokens; NULL: b, and 0. */
typedef struct places {
    const int32_t *slot, *start;
} places;

static inline int64_t places_slot(places at, int64_t b) { return at.slot ? at.slot[b] : b; }
static inline int64_t places_start(places at, int64_t b) { return at.start ? at.start[b] : 0; }

/* Causal attention of T queries per sequence: query i of sequence b sees its keys first[i] .. start[b] + i. Head h uses
 * key-value head h / (H / KV). */
typedef struct attention {
    int64_t B, T, H, KV, D;
    places at;
    const float *q; /* (b, t, h) at q + b * q_batch + t * q_row + h * D */
    int64_t q_batch, q_row;
    matmul_matrix k, v; /* (b, kv, s) at data + slot[b] * kv_batch + kv * kv_head + s * row_stride, in elements */
    int64_t kv_batch, kv_head;
    const int32_t *first; /* (B, T), never falling along a sequence, which has no cache; NULL: all 0 */
    float *y;             /* (B, T, H * D) */
    float *lse;           /* (B, H, T) log of the sum of the exponentials, for the backward pass, or NULL */
    float *scratch;       /* attention_scratch() floats for each thread */
    int64_t scratch_stride;
    dropout drop;    /* of the probabilities */
    const float *dy; /* backward only: like y; and out: (M, (H + 2 KV) * D), all of it written */
    float *dqkv;
} attention;

/* One step of an optimizer. */
typedef struct optimizer_step {
    const sampan_config *config;  /* beta1, momentum, ... */
    double gradient_scale;        /* of the mean, and of clipping */
    double learning_rate, number; /* number: 1 in the first step */
} optimizer_step;

/* Rows of a parameter that are a matrix of their own: q, k and v of c_attn, gate and up of c_fc; else all of them. */
typedef struct hidden_matrix {
    parameter *of;
    int64_t first_row, rows;
} hidden_matrix;

enum { ATTENTION_STRIP = 64 }; /* queries at a time: a strip of scores is (64, S), never (T, S) */
static inline int64_t attention_scratch(int64_t S) { return 2 * (int64_t)ATTENTION_STRIP * S; }

typedef struct ops {
    void (*zero)(const team *t, float *x, int64_t n);

    /* out (B, C): the last row of each sequence of x (B, T, C) */
    void (*last_rows)(const team *t, float *out, const float *x, int64_t B, int64_t T, int64_t C);

    /* x (B*T, C) = wte[id] + wpe[start[b] + t]; wpe NULL: tokens only */
    void (*embedding_forward)(const team *t, float *x, const int32_t *ids, const parameter *wte, const parameter *wpe,
                              int64_t B, int64_t T, int64_t C, places at);
    void (*embedding_backward)(const team *t, const float *dx, const int32_t *ids, parameter *wte, parameter *wpe,
                               int32_t wte_is_fresh, int64_t B, int64_t T, int64_t C);

    /* out (M, C) = (x - mean) * rstd * weight + bias; stats (M, 2) = mean, rstd. centered 0: RMSNorm, mean is 0. bias
     * may be NULL. */
    void (*norm_forward)(const team *t, float *out, float *stats, const float *x, const parameter *weight,
                         const parameter *bias, int64_t M, int64_t C, int32_t centered, float eps);
    void (*norm_backward)(const team *t, float *dx, const float *dout, const float *x, const float *stats,
                          parameter *weight, parameter *bias, int64_t M, int64_t C, int32_t centered); /* adds to dx */

    /* RMSNorm of every head of q and k, in place in qkv (M, (H + 2 KV) * D); raw (M, (H + KV) * D) keeps what they
     * were, stats (M, H + KV) rstd */
    void (*head_norm_forward)(const team *t, float *qkv, float *raw, float *stats, const parameter *q_weight,
                              const parameter *k_weight, int64_t M, int64_t H, int64_t KV, int64_t D, float eps);
    void (*head_norm_backward)(const team *t, float *dqkv, const float *raw, const float *stats, parameter *q_weight,
                               parameter *k_weight, int64_t M, int64_t H, int64_t KV, int64_t D);

    /* turns channel pairs (i, i + D/2) of q and k, in place in qkv, by their position's angle; cosine, sine
     * (block_size, D/2) */
    void (*rotary_forward)(const team *t, float *qkv, const float *cosine, const float *sine, int64_t B, int64_t T,
                           int64_t H, int64_t KV, int64_t D, places at);
    void (*rotary_backward)(const team *t, float *dqkv, const float *cosine, const float *sine, int64_t B, int64_t T,
                            int64_t H, int64_t KV, int64_t D);

    /* out (M, N) = x (M, K) w^T + bias, + residual if there is one; w is (N, K) */
    void (*linear_forward)(const team *t, float *out, const float *x, const parameter *weight, const parameter *bias,
                           const float *residual, int64_t M);
    /* out = activation(pre), pre (M, N) = x w^T + bias */
    void (*linear_activation_forward)(const team *t, int32_t activation, float *out, float *pre, const float *x,
                                      const parameter *weight, const parameter *bias, int64_t M);
    /* dx (M, K). With an activation, x was activation(pre), pre (M, K), and dx becomes the gradient of pre. */
    void (*linear_backward)(const team *t, float *dx, const float *dout, const float *x, int32_t activation,
                            const float *pre, parameter *weight, parameter *bias, int64_t M);

    /* puts k and v of qkv (B, T, (H + 2 KV) * D) at their places in keys and values (slots, KV, S, D) of `type` */
    void (*cache_append)(const team *t, void *keys, void *values, int32_t type, const float *qkv, int64_t B, int64_t T,
                         int64_t H, int64_t KV, int64_t D, int64_t S, places at);
    void (*attention_forward)(const team *t, const attention *a);
    void (*attention_backward)(const team *t, const attention *a);

    /* out (M, F) = activation(gate) * up; gate_up (M, 2 F) */
    void (*gated_forward)(const team *t, int32_t activation, float *out, const float *gate_up, int64_t M, int64_t F);
    void (*gated_backward)(const team *t, int32_t activation, float *dgate_up, const float *dout, const float *gate_up,
                           int64_t M, int64_t F);

    /* out (M, C) = residual + dropped x; residual may be NULL. The backward pass is the same call on gradients, without
     * residual. */
    void (*dropout_forward)(const team *t, float *out, const float *x, const float *residual, int64_t M, int64_t C,
                            dropout d);

    /* losses (M) of logits x w^T against targets (-1: ignored, loss 0), `chunk` rows of logits (chunk, V) at a time.
       dx not NULL: also dx (M, C) and the gradient of w, of the sum of the losses. */
    void (*loss_forward_backward)(const team *t, float *losses, float *dx, float *logits, int64_t chunk, const float *x,
                                  const int32_t *targets, parameter *weight, int64_t M);

    /* sums[i] = sum of squares of the i-th OPTIM_PIECE elements of x (n) */
    void (*squares_sum)(const team *t, double *sums, const float *x, int64_t n);

    /* one step, without a barrier: of a parameter, each thread its share; or of a matrix, all of it by this thread */
    void (*optimizer_update[OPTIMIZER_COUNT])(const team *t, const hidden_matrix *w, const optimizer_step *s,
                                              float *scratch);
    void (*bfloat16_copy)(const team *t, uint16_t *out, const float *x, int64_t n);
} ops;

enum { OPTIM_PIECE = 65536 };

extern const ops ops_avx2, ops_avx512; /* x86-64 only */
const ops *ops_for_isa(int32_t isa);

/* A key of the words' values and order (splitmix64 over them). */
static inline uint64_t dropout_key(uint64_t key, uint64_t word) {
    uint64_t z = (key ^ word) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
