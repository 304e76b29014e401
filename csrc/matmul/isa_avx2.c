/* isa_avx2.c: kernels for AVX2 with FMA. */

#include <math.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "kernels.h"

#if CPU_X86

#include <immintrin.h>

#define LANES 8
CPU_TARGET_BEGIN(CPU_AVX2)
#include "platform/vec.h"
#include "activations.inc"
CPU_TARGET_END

#define UNROLLED _Pragma("GCC unroll 8")

#define INLINE static inline __attribute__((always_inline)) TARGET_AVX2

INLINE void transpose_avx2(const void *source, int64_t bytes, float *words, int64_t stride) {
    __m256 r[8], s[8];
    UNROLLED for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps((const float *)((const char *)source + i * bytes));
    UNROLLED for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLLED for (int i = 0; i < 8; i += 4) { /* r[i + j], part p: column 4 p + j of rows i .. i + 3 */
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    UNROLLED for (int j = 0; j < 4; j++) {
        _mm256_storeu_ps(words + j * stride, _mm256_permute2f128_ps(r[j], r[4 + j], 0x20));
        _mm256_storeu_ps(words + (4 + j) * stride, _mm256_permute2f128_ps(r[j], r[4 + j], 0x31));
    }
}

/* float32 -> the nearest bfloat16, as float32; a NaN keeps its bits */
INLINE __m256 round_avx2(__m256 v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i rounded = _mm256_and_si256(sum, _mm256_set1_epi32((int)0xffff0000u));
    return _mm256_blendv_ps(_mm256_castsi256_ps(rounded), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

INLINE __m256 weights_avx2(const void *p, int type, int rounds) {
    if (type == MATMUL_BFLOAT16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
    return rounds ? round_avx2(_mm256_loadu_ps(p)) : _mm256_loadu_ps(p);
}

INLINE float sum_avx2(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* 12 sums, 2 columns and a row of 16 registers */
#define NAME(x) x##_avx2
#define TARGET TARGET_AVX2
#define PAIRS 0
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define TILES(T) T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(5, 1) T(6, 1) T(1, 2) T(2, 2) T(3, 2) T(4, 2) T(5, 2) T(6, 2)
#define DOT_ROWS 4
#define DOT_COLUMNS(rows) ((rows) == 4 ? 2 : 4)
#define vec_read(p) _mm256_loadu_ps(p)
#define vec_write(p, v) _mm256_storeu_ps(p, v)
#define vec_broadcast(p) _mm256_broadcast_ss(p)
#define vec_multiply_add(sum, a, b) _mm256_fmadd_ps(a, b, sum)
#define vec_sum(v) sum_avx2(v)
#define vec_weights(p, type, rounds) weights_avx2(p, type, rounds)
#define transpose(source, bytes, words, stride) transpose_avx2(source, bytes, words, stride)
#include "template.inc"

const matmul_kernels matmul_kernels_avx2[2] = {KERNELS(0), KERNELS(1)};

#endif
