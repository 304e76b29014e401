/* matmul.h: C = A B, for every linear layer, attention head and decoding step of the engine.

   One description of a product (matmul_problem) and two ways to run it:
     matmul_run_team()   all threads of a region work on one product
     matmul_run_solo()   one thread works on its own product (attention: a head per thread)

   A linear layer with weights w (N, K), input x (M, K), output y (M, N), all rows contiguous, is

     y  = x w^T + bias    p = matmul_product(M, N, K, matmul_rows(x, K), matmul_columns(w, K), y, N, precision)
                          p.bias = bias
     dx = dy w            p = matmul_product(M, K, N, matmul_rows(dy, N), matmul_rows(w, K), dx, K, precision)
     dw += dy^T x         p = matmul_product(N, K, M, matmul_columns(dy, N), matmul_rows(x, K), dw, K, precision)
                          p.accumulate = 1

   Fields that are not named are zero, and zero always means "without". Nothing is allocated and nothing can fail after
   matmul_create().

   The order in which an element's products are added depends on the problem, the precision and the instruction set,
   never on the number of threads or on timing: the same call gives the same bits with 1 thread and with 64.

   What it does not do: batches (call it per head), float64, integers, C by columns, C in bfloat16. */

#ifndef SAMPAN_MATMUL_H
#define SAMPAN_MATMUL_H

#include <stdint.h>
#include "activations.h"
#include "platform/threads.h"

/* How a matrix is stored, and in which precision it is multiplied. Sums are float32 in both.
   With MATMUL_BFLOAT16 products, float32 matrices are rounded (to nearest even) on their way into the multiplier.
   The AVX-512 BF16 instruction adds products in pairs and flushes denormals, other instruction sets do not:
   between them results differ by float32 rounding, about 1e-7 times the sum of the absolute products. */
enum { MATMUL_FLOAT32 = 0, MATMUL_BFLOAT16 = 1 };

/* Element (i, j) is data[i * row_stride + j * column_stride], of float or of uint16_t (bfloat16). */
typedef struct matmul_matrix {
    const void *data;
    int64_t row_stride, column_stride;
    int32_t type; /* MATMUL_FLOAT32 | MATMUL_BFLOAT16: what is stored */
} matmul_matrix;

typedef struct matmul_problem {
    int64_t m, n, k;
    matmul_matrix a;    /* (m, k) */
    matmul_matrix b;    /* (k, n) */
    float *c;           /* (m, n), rows of n contiguous floats; overlaps neither a nor b */
    int64_t c_stride;   /* from row to row of c */
    int32_t precision;  /* MATMUL_FLOAT32 | MATMUL_BFLOAT16: the products */
    int32_t accumulate; /* 1: c is added to, 0: c is overwritten */

    /* What is done to each finished sum v while it is in the first-level cache, in this order: */
    const float *bias;     /* (n): v += bias */
    int32_t activation;    /* ACTIVATION_...: pre_activation = v if given, v = value(v) */
    int32_t backward;      /* 1, with an activation: v *= slope(pre_activation) instead */
    float *pre_activation; /* (m, n), written by the activation, read by its backward pass */
    int64_t pre_activation_stride;
    const float *residual; /* (m, n): v += residual; not c itself: that is `accumulate` */
    int64_t residual_stride;
} matmul_problem;

/* A matrix by its rows: element (i, j) at data[i * stride + j]; and the transpose of one: (i, j) at data[j * stride +
 * i]. */
static inline matmul_matrix matmul_rows(const float *data, int64_t stride) {
    return (matmul_matrix){data, stride, 1, MATMUL_FLOAT32};
}
static inline matmul_matrix matmul_columns(const float *data, int64_t stride) {
    return (matmul_matrix){data, 1, stride, MATMUL_FLOAT32};
}
static inline matmul_matrix matmul_rows_bfloat16(const uint16_t *data, int64_t stride) {
    return (matmul_matrix){data, stride, 1, MATMUL_BFLOAT16};
}
static inline matmul_matrix matmul_columns_bfloat16(const uint16_t *data, int64_t stride) {
    return (matmul_matrix){data, 1, stride, MATMUL_BFLOAT16};
}

/* c (m, n) = a (m, k) b (k, n), without anything else. */
static inline matmul_problem matmul_product(int64_t m, int64_t n, int64_t k, matmul_matrix a, matmul_matrix b, float *c,
                                            int64_t c_stride, int32_t precision) {
    return (matmul_problem){
        .m = m, .n = n, .k = k, .a = a, .b = b, .c = c, .c_stride = c_stride, .precision = precision};
}

/* The kernels for an instruction set and the buffers for packed panels: a few MB in all, whatever the sizes. */
typedef struct matmul_context matmul_context;

enum { MATMUL_OK = 0, MATMUL_NO_MEMORY = 1, MATMUL_NO_INSTRUCTIONS = 2 };

/* `pool` runs the regions in which the context is used; NULL: one thread. `isa`: an ISA_... of cpu.h that this machine
   has, ISA_BEST for the best one (which SAMPAN_ISA lowers). On failure *context is NULL. */
int32_t matmul_create(matmul_context **context, thread_pool *pool, int32_t isa);
void matmul_destroy(matmul_context *context);

/* Inside a region of the context's pool, by every thread, with the same problem: the threads share the work.
   A and B must be complete when the first thread enters (a barrier after writing them is the caller's); it ends with a
   barrier, so every thread sees all of C on return. */
void matmul_run_team(matmul_context *context, int32_t thread, const matmul_problem *problem);

/* On one thread, no barrier. Thread indices keep the buffers apart: two threads may not use the same one at a time. */
void matmul_run_solo(matmul_context *context, int32_t thread, const matmul_problem *problem);

/* Outside of any region: opens one for this product. */
void matmul_run(matmul_context *context, const matmul_problem *problem);

/* The oracle: three loops in the order that everyone would write, sums in double, on one thread, needs no context.
   Operands are rounded to bfloat16 if the problem's precision says so. */
void matmul_run_naive(const matmul_problem *problem);

#endif
