/* isa_c.c: kernels in plain C, for every other machine: vectors of four floats that the compiler makes of whatever
   there is (SSE2 on x86-64). */

#include <string.h>
#include "platform/bfloat16.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

typedef float four_floats __attribute__((vector_size(16)));

INLINE four_floats load_c(const float *p) {
    four_floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store_c(float *p, four_floats v) { memcpy(p, &v, sizeof v); }

INLINE four_floats min_c(four_floats a, four_floats b) {
    for (int i = 0; i < 4; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}

INLINE four_floats max_c(four_floats a, four_floats b) {
    for (int i = 0; i < 4; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

INLINE void transpose_c(const void *source, int64_t bytes, float *words, int64_t stride) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) memcpy(&words[j * stride + i], (const char *)source + i * bytes + 4 * j, 4);
}

INLINE four_floats weights_c(const void *p, int type, int rounds) {
    const uint16_t *halves = p;
    if (type == MATMUL_BFLOAT16)
        return (four_floats){bfloat16_to_float(halves[0]), bfloat16_to_float(halves[1]), bfloat16_to_float(halves[2]),
                             bfloat16_to_float(halves[3])};
    four_floats v = load_c(p);
    if (rounds)
        for (int i = 0; i < 4; i++) v[i] = bfloat16_to_float(bfloat16_from_float(v[i]));
    return v;
}

/* 8 sums, 2 columns and a row of SSE2's 16 registers, which has no multiply-add to save one */
#define NAME(x) x##_c
#define TARGET
#define PAIRS 0
#define LANES 4
#define TILE_ROWS 4
#define TILE_VECTORS 2
#define TILES(T) T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(1, 2) T(2, 2) T(3, 2) T(4, 2)
#define DOT_ROWS 4
#define DOT_COLUMNS(rows) ((rows) == 4 ? 2 : 4)
#define vec four_floats
#define vec_load(p) load_c(p)
#define vec_store(p, v) store_c(p, v)
#define vec_broadcast(p) ((four_floats){*(p), *(p), *(p), *(p)})
#define vec_zero() ((four_floats){0.0f, 0.0f, 0.0f, 0.0f})
#define vec_multiply_add(sum, a, b) ((sum) + (a) * (b))
#define vec_min(a, b) min_c(a, b)
#define vec_max(a, b) max_c(a, b)
#define vec_sum(v) (((v)[0] + (v)[2]) + ((v)[1] + (v)[3]))
#define vec_weights(p, type, rounds) weights_c(p, type, rounds)
#define transpose(source, bytes, words, stride) transpose_c(source, bytes, words, stride)
#include "template.inc"

const matmul_kernels matmul_kernels_c[2] = {KERNELS(0), KERNELS(1)};
