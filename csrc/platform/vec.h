/* vec.h: LANES floats at a time, for loops over rows.

   These are the compiler's own vectors (GCC and Clang): `a * b + c` is the instruction of whichever set the file is
   compiled for, and isa_*.c compile it for several. Whoever includes this has defined LANES (4, 8 or 16).

       for (int64_t i = 0; i < n; i += LANES)
           vec_store(y + i, n - i, vec_exp(vec_load(x + i, n - i)));       // also right where n is no multiple of LANES

   What it does not do: gather, doubles, alignment (every load may be unaligned). */

#ifndef SAMPAN_VEC_H
#define SAMPAN_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t vec_int __attribute__((vector_size(LANES * 4)));
typedef uint32_t vec_uint __attribute__((vector_size(LANES * 4)));
typedef uint16_t vec_half __attribute__((vector_size(LANES * 2)));

#define VEC_INLINE static inline __attribute__((always_inline, unused))

VEC_INLINE vec vec_all(float value) { return value - (vec){0}; }

/* The first min(LANES, left) floats at p; the other lanes are `fill`. */
VEC_INLINE vec vec_load_or(const float *p, int64_t left, float fill) {
    vec v;
    if (left >= LANES) {
        memcpy(&v, p, sizeof v);
        return v;
    }
    v = vec_all(fill);
    for (int j = 0; j < LANES - 1; j++)
        if (j < left) v[j] = p[j];
    return v;
}
VEC_INLINE vec vec_load(const float *p, int64_t left) { return vec_load_or(p, left, 0.0f); }

VEC_INLINE void vec_store(float *p, int64_t left, vec v) {
    if (left >= LANES) {
        memcpy(p, &v, sizeof v);
        return;
    }
    for (int j = 0; j < LANES - 1; j++)
        if (j < left) p[j] = v[j];
}

VEC_INLINE vec vec_select(vec_int mask, vec yes, vec no) {
    return (vec)((mask & (vec_int)yes) | (~mask & (vec_int)no));
}
VEC_INLINE vec vec_max(vec a, vec b) { return vec_select(a > b, a, b); }

VEC_INLINE vec vec_sqrt(vec a) {
    vec v;
    for (int j = 0; j < LANES; j++) v[j] = sqrtf(a[j]); /* one instruction with -fno-math-errno */
    return v;
}

/* Sum and maximum of the lanes, by halves. */
VEC_INLINE float vec_total(vec v) {
    float lane[LANES];
    memcpy(lane, &v, sizeof lane);
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}
VEC_INLINE float vec_largest(vec v) {
    float lane[LANES];
    memcpy(lane, &v, sizeof lane);
    float best = lane[0];
    for (int j = 1; j < LANES; j++) best = lane[j] > best ? lane[j] : best;
    return best;
}

/* e^x for x <= 88; below -87.3 the smallest normal number, about 1e-38. Relative error below 1.5e-7 (tests/test_ops.c
   measures it). x = n ln 2 + r with |r| <= ln 2 / 2: e^r by a polynomial (minimax, degree 6), 2^n by adding n to the
   exponent's bits. */
VEC_INLINE vec vec_exp(vec x) {
    const float round_to_integer = 12582912.0f; /* 1.5 * 2^23: the sum's last bits are the integer */
    x = vec_select(x < -87.3f, vec_all(-87.3f), x);
    x = vec_select(x > 88.0f, vec_all(88.0f), x); /* a NaN passes both and stays one */
    vec n = x * 1.44269504f + round_to_integer;
    vec_int exponent = (vec_int)n << 23;
    n = n - round_to_integer;
    vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f; /* ln 2 in two parts, the first exact for small n */
    vec p = r * 1.38144667e-3f + 8.36878043e-3f;
    p = p * r + 4.16683942e-2f;
    p = p * r + 1.66665201e-1f;
    p = p * r + 4.99999934e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vec)((vec_int)p + exponent);
}

/* 1 / (1 + e^-x) */
VEC_INLINE vec vec_sigmoid(vec x) { return 1.0f / (1.0f + vec_exp(-x)); }

/* Rounded to bfloat16, ties to even, as bfloat16.h does for one (a NaN stays a NaN). */
VEC_INLINE void vec_store_bfloat16(uint16_t *p, int64_t left, vec v) {
    vec_uint word = (vec_uint)v;
    vec_uint rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    vec_int is_nan = v != v;
    rounded = ((vec_uint)is_nan & ((word >> 16) | 0x40u)) | (~(vec_uint)is_nan & rounded);
    vec_half half = __builtin_convertvector(rounded, vec_half);
    if (left >= LANES) {
        memcpy(p, &half, sizeof half);
        return;
    }
    for (int j = 0; j < LANES - 1; j++)
        if (j < left) p[j] = half[j];
}

/* 0, 1, 2, ... */
VEC_INLINE vec_uint vec_iota(void) {
    vec_uint v;
    for (int j = 0; j < LANES; j++) v[j] = (uint32_t)j;
    return v;
}

/* A well-mixed 32-bit number of each counter under a 64-bit key: two rounds of a multiply-xorshift hash ("lowbias32",
 * Wellons 2018). */
VEC_INLINE vec_uint vec_hash(vec_uint x, uint64_t key) {
    x = x + (uint32_t)key;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x = (x ^ (x >> 16)) + (uint32_t)(key >> 32);
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

#endif
