/* kernels.h: between matmul.c, which cuts a product into tiles, and isa_<isa>.c, which multiply them.

   Packed operands are made of 32-bit words. A word is one float, or in kernels with pairs two bfloat16 neighbours along
   k, the earlier one in the low half. A "step" is one word along k. Buffers of words are float *, whatever they hold.
 */

#ifndef SAMPAN_MATMUL_KERNELS_H
#define SAMPAN_MATMUL_KERNELS_H

#include <stdint.h>
#include "platform/cpu.h"
#include "matmul.h"

enum { TILE_ROWS_MAX = 16, TILE_VECTORS_MAX = 4, LANES_MAX = 16 };

/* c (rows, vectors * lanes) = a (rows, steps) b (steps, vectors * lanes) + bias + add. The rows and vectors are the
 * function's. */
typedef struct matmul_tile {
    int64_t steps;
    const float *a; /* word (i, s) at a[i * a_row + s * a_step] */
    int64_t a_row, a_step;
    const float *b; /* row s at b[s * b_step] */
    int64_t b_step;
    const float *bias; /* (vectors * lanes), the same for each row; NULL: none */
    const float *add;  /* (rows, vectors * lanes); may be c; NULL: none */
    int64_t add_stride;
    float *c;
    int64_t c_stride;
} matmul_tile;

typedef void matmul_tile_function(const matmul_tile *tile);

typedef struct matmul_kernels {
    int32_t tile_rows, tile_vectors, lanes; /* the largest tile: tile_rows x (tile_vectors * lanes) */
    int32_t pairs;                          /* elements per word - 1 */
    int32_t rounds;                         /* 1: float words that hold bfloat16 values (no BF16 instruction) */
    int32_t dot_rows;                       /* the most rows of `dot` */

    matmul_tile_function *tile[TILE_ROWS_MAX + 1][TILE_VECTORS_MAX + 1]; /* [rows][vectors] */

    /* Panels (steps, width) of words from source (depth, lanes), with (lane, k) at lane * lane_stride + k * k_stride:
       lane j of a panel at words[s * width + j], zero beyond the last; panel after panel if there are more than `width`
       lanes. width is a multiple of `lanes` above, or tile_rows if lane_stride is 1. */
    void (*pack_lanes)(int32_t rounds, const void *source, int32_t type, int64_t lane_stride, int64_t k_stride,
                       int64_t lanes, int64_t depth, int64_t width, float *words);

    /* words (steps) from `depth` elements at k * k_stride */
    void (*pack_row)(int32_t rounds, const void *source, int32_t type, int64_t k_stride, int64_t depth, float *words);

    /* c (rows, columns) = or += x (rows, depth) w (columns, depth)^T, for few rows: w is read once, where it lies.
       x: words, each row zero-padded to whole vectors, x_stride apart. */
    void (*dot)(int32_t rounds, int64_t rows, int64_t columns, int64_t depth, const float *x, int64_t x_stride,
                const void *w, int32_t type, int64_t w_stride, float *c, int64_t c_stride, int32_t accumulate);

    /* the problem's activation, and after it its residual, on c's rows [row, row + rows) x columns [column, column +
     * columns) */
    void (*finish)(const matmul_problem *problem, int64_t row, int64_t column, int64_t rows, int64_t columns);
} matmul_kernels;

/* [MATMUL_FLOAT32], [MATMUL_BFLOAT16]; the one of AVX-512 BF16 is for the latter, its float32 is AVX-512's */
extern const matmul_kernels matmul_kernels_c[2];
#if CPU_X86
extern const matmul_kernels matmul_kernels_avx2[2];
extern const matmul_kernels matmul_kernels_avx512[2];
extern const matmul_kernels matmul_kernels_avx512bf16[1];
#endif
#if CPU_NEON
extern const matmul_kernels matmul_kernels_neon[2];
#endif

static inline const void *matmul_at(const void *data, int32_t type, int64_t offset) {
    return (const char *)data + offset * (type == MATMUL_BFLOAT16 ? 2 : 4);
}

#endif
