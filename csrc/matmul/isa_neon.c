/* isa_neon.c: kernels for NEON on 64-bit ARM, which always has it. */

#include <math.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "kernels.h"

#if CPU_NEON

#include <arm_neon.h>

#define LANES 4
#include "platform/vec.h"
#include "activations.inc"

#define INLINE static inline __attribute__((always_inline))

INLINE void transpose_neon(const void *source, int64_t bytes, float *words, int64_t stride) {
    float32x4_t r0 = vld1q_f32((const float *)source), r1 = vld1q_f32((const float *)((const char *)source + bytes));
    float32x4_t r2 = vld1q_f32((const float *)((const char *)source + 2 * bytes)),
                r3 = vld1q_f32((const float *)((const char *)source + 3 * bytes));
    float32x4_t s0 = vzip1q_f32(r0, r2), s1 = vzip2q_f32(r0, r2), s2 = vzip1q_f32(r1, r3), s3 = vzip2q_f32(r1, r3);
    vst1q_f32(words, vzip1q_f32(s0, s2));
    vst1q_f32(words + stride, vzip2q_f32(s0, s2));
    vst1q_f32(words + 2 * stride, vzip1q_f32(s1, s3));
    vst1q_f32(words + 3 * stride, vzip2q_f32(s1, s3));
}

/* float32 -> the nearest bfloat16, as float32; a NaN keeps its bits */
INLINE float32x4_t round_neon(float32x4_t v) {
    uint32x4_t bits = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vandq_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), vdupq_n_u32(0xffff0000u));
    return vbslq_f32(vceqq_f32(v, v), vreinterpretq_f32_u32(rounded), v);
}

INLINE float32x4_t weights_neon(const void *p, int type, int rounds) {
    if (type == MATMUL_BFLOAT16) return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)p), 16));
    return rounds ? round_neon(vld1q_f32((const float *)p)) : vld1q_f32((const float *)p);
}

/* 24 sums, 3 columns and a row of 32 registers */
#define NAME(x) x##_neon
#define TARGET
#define PAIRS 0
#define TILE_ROWS 8
#define TILE_VECTORS 3
#define TILES_OF(T, rows) T(rows, 1) T(rows, 2) T(rows, 3)
#define TILES(T) \
    TILES_OF(T, 1) \
    TILES_OF(T, 2) TILES_OF(T, 3) TILES_OF(T, 4) TILES_OF(T, 5) TILES_OF(T, 6) TILES_OF(T, 7) TILES_OF(T, 8)
#define DOT_ROWS 8
#define DOT_COLUMNS(rows) ((rows) == 8 ? 2 : 4)
#define vec_read(p) vld1q_f32(p)
#define vec_write(p, v) vst1q_f32(p, v)
#define vec_broadcast(p) vld1q_dup_f32(p)
#define vec_multiply_add(sum, a, b) vfmaq_f32(sum, a, b)
#define vec_sum(v) vaddvq_f32(v)
#define vec_weights(p, type, rounds) weights_neon(p, type, rounds)
#define transpose(source, bytes, words, stride) transpose_neon(source, bytes, words, stride)
#include "template.inc"

const matmul_kernels matmul_kernels_neon[2] = {KERNELS(0), KERNELS(1)};

#endif
