/* isa_avx512.c: kernels for AVX-512, with float words, and for AVX-512 BF16, with pairs of bfloat16. */

#include <math.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "kernels.h"

#if CPU_X86

#include <immintrin.h>

#define LANES 16
CPU_TARGET_BEGIN(CPU_AVX512)
#include "platform/vec.h"
#include "activations.inc"
CPU_TARGET_END

#define UNROLLED _Pragma("GCC unroll 16")

#define INLINE_512 static inline __attribute__((always_inline)) TARGET_AVX512
#define INLINE_BF16 static inline __attribute__((always_inline)) TARGET_AVX512BF16

/* words[j * stride + i] = lane j of r[i]: three rounds of exchanges, of 32, 64 and then 128-bit parts. */
INLINE_512 void transpose_registers(__m512 r[16], float *words, int64_t stride) {
    __m512 s[16];
    UNROLLED for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLLED for (int i = 0; i < 16; i += 4) { /* r[i + j], part p: column 4 p + j of rows i .. i + 3 */
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(s[i]), _mm512_castps_pd(s[i + 2])));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(s[i]), _mm512_castps_pd(s[i + 2])));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(s[i + 1]), _mm512_castps_pd(s[i + 3])));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(s[i + 1]), _mm512_castps_pd(s[i + 3])));
    }
    UNROLLED for (int j = 0; j < 4; j++) {
        __m512 even_low = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88),
               even_high = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
        __m512 odd_low = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd),
               odd_high = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
        _mm512_storeu_ps(words + j * stride, _mm512_shuffle_f32x4(even_low, even_high, 0x88));
        _mm512_storeu_ps(words + (4 + j) * stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
        _mm512_storeu_ps(words + (8 + j) * stride, _mm512_shuffle_f32x4(even_low, even_high, 0xdd));
        _mm512_storeu_ps(words + (12 + j) * stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
    }
}

INLINE_512 void transpose_avx512(const void *source, int64_t bytes, float *words, int64_t stride) {
    __m512 r[16];
    UNROLLED for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_ps((const char *)source + i * bytes);
    transpose_registers(r, words, stride);
}

/* float32 -> the nearest bfloat16, as float32; a NaN keeps its bits */
INLINE_512 __m512 round_avx512(__m512 v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i rounded = _mm512_and_si512(sum, _mm512_set1_epi32((int)0xffff0000u));
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_castsi512_ps(rounded), v);
}

INLINE_512 __m512 weights_avx512(const void *p, int type, int rounds) {
    if (type == MATMUL_BFLOAT16)
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
    return rounds ? round_avx512(_mm512_loadu_ps(p)) : _mm512_loadu_ps(p);
}

/* What both have in common: 24 sums, 3 columns and a row of 32 registers. */
#define TILE_ROWS 8
#define TILE_VECTORS 3
#define TILES_OF(T, rows) T(rows, 1) T(rows, 2) T(rows, 3)
#define TILES(T) \
    TILES_OF(T, 1) \
    TILES_OF(T, 2) TILES_OF(T, 3) TILES_OF(T, 4) TILES_OF(T, 5) TILES_OF(T, 6) TILES_OF(T, 7) TILES_OF(T, 8)
#define DOT_ROWS 8
#define DOT_COLUMNS(rows) ((rows) == 8 ? 3 : 4)
#define vec_read(p) _mm512_loadu_ps(p)
#define vec_write(p, v) _mm512_storeu_ps(p, v)
#define vec_broadcast(p) _mm512_set1_ps(*(p))
#define vec_sum(v) _mm512_reduce_add_ps(v)
#define transpose(source, bytes, words, stride) transpose_avx512(source, bytes, words, stride)

/* ---- float words ---- */

#define NAME(x) x##_avx512
#define TARGET TARGET_AVX512
#define PAIRS 0
#define vec_multiply_add(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#define vec_weights(p, type, rounds) weights_avx512(p, type, rounds)
#include "template.inc"

const matmul_kernels matmul_kernels_avx512[2] = {KERNELS(0), KERNELS(1)};

#undef NAME
#undef TARGET
#undef PAIRS
#undef vec_multiply_add
#undef vec_weights

/* ---- pairs of bfloat16 ---- */

/* 32 floats in a row -> 16 pairs */
INLINE_BF16 __m512 pairs_avx512bf16(const float *p) {
    return (__m512)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p));
}

INLINE_BF16 __m512 weights_avx512bf16(const void *p, int type) {
    return type == MATMUL_BFLOAT16 ? _mm512_loadu_ps(p) : pairs_avx512bf16(p);
}

INLINE_BF16 void transpose_rounding_avx512bf16(const void *source, int64_t bytes, float *words, int64_t stride) {
    __m512 r[16];
    UNROLLED for (int i = 0; i < 16; i++)
        r[i] = pairs_avx512bf16((const float *)((const char *)source + i * bytes));
    transpose_registers(r, words, stride);
}

INLINE_BF16 void round_pairs_avx512bf16(const float *p, float *words, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) _mm512_storeu_ps(words + i, pairs_avx512bf16(p + 2 * i));
    if (i == count) return;
    const uint64_t left = 2 * (uint64_t)(count - i); /* floats, 2 to 30 */
    const uint32_t mask = (uint32_t)((1ull << left) - 1);
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, p + 2 * i);
    __m512 high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), p + 2 * i + 16);
    _mm512_mask_storeu_ps(words + i, (__mmask16)((1u << (count - i)) - 1), (__m512)_mm512_cvtne2ps_pbh(high, low));
}

INLINE_BF16 void round_row_avx512bf16(const float *p, const float *q, float *words, int64_t count) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = (__mmask16)(count - i >= 16 ? 0xffffu : (1u << (count - i)) - 1);
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(mask, q + i),
                                                    _mm512_maskz_loadu_ps(mask, p + i));
        _mm512_mask_storeu_ps(words + i, mask, _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleave, both)));
    }
}

#define NAME(x) x##_avx512bf16
#define TARGET TARGET_AVX512BF16
#define PAIRS 1
#define vec_multiply_add(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
#define vec_weights(p, type, rounds) ((void)rounds, weights_avx512bf16(p, type))
#define transpose_rounding(source, bytes, words, stride) transpose_rounding_avx512bf16(source, bytes, words, stride)
#define round_row(p, q, words, count) round_row_avx512bf16(p, q, words, count)
#define round_pairs(p, words, count) round_pairs_avx512bf16(p, words, count)
#include "template.inc"

const matmul_kernels matmul_kernels_avx512bf16[1] = {KERNELS(0)};

#endif
