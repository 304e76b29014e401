/* isa_c.c: kernels in plain C, for every other machine: vectors of four floats that the compiler makes of whatever
   there is (SSE2 on x86-64). */

#include <math.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "kernels.h"

#define LANES 4
#include "platform/vec.h"
#include "activations.inc"

#define INLINE static inline __attribute__((always_inline))

INLINE void transpose_c(const void *source, int64_t bytes, float *words, int64_t stride) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) memcpy(&words[j * stride + i], (const char *)source + i * bytes + 4 * j, 4);
}

INLINE vec weights_c(const void *p, int type, int rounds) {
    const uint16_t *halves = p;
    if (type == MATMUL_BFLOAT16)
        return (vec){bfloat16_to_float(halves[0]), bfloat16_to_float(halves[1]), bfloat16_to_float(halves[2]),
                     bfloat16_to_float(halves[3])};
    vec v = vec_load(p, LANES);
    if (rounds)
        for (int i = 0; i < 4; i++) v[i] = bfloat16_to_float(bfloat16_from_float(v[i]));
    return v;
}

/* 8 sums, 2 columns and a row of SSE2's 16 registers, which has no multiply-add to save one */
#define NAME(x) x##_c
#define TARGET
#define PAIRS 0
#define TILE_ROWS 4
#define TILE_VECTORS 2
#define TILES(T) T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(1, 2) T(2, 2) T(3, 2) T(4, 2)
#define DOT_ROWS 4
#define DOT_COLUMNS(rows) ((rows) == 4 ? 2 : 4)
#define vec_read(p) vec_load(p, LANES)
#define vec_write(p, v) vec_store(p, LANES, v)
#define vec_broadcast(p) vec_all(*(p))
#define vec_multiply_add(sum, a, b) ((sum) + (a) * (b))
#define vec_sum(v) (((v)[0] + (v)[2]) + ((v)[1] + (v)[3]))
#define vec_weights(p, type, rounds) weights_c(p, type, rounds)
#define transpose(source, bytes, words, stride) transpose_c(source, bytes, words, stride)
#include "template.inc"

const matmul_kernels matmul_kernels_c[2] = {KERNELS(0), KERNELS(1)};
