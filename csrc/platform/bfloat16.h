/* bfloat16.h: a float32 with the low 16 bits of its mantissa rounded away, stored as uint16_t. */

#ifndef SAMPAN_BFLOAT16_H
#define SAMPAN_BFLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float bfloat16_to_float(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Round to nearest, ties to even: 1.00390625f (0x3f808000, half way) -> 0x3f80. A NaN stays a (quiet) NaN. */
static inline uint16_t bfloat16_from_float(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    uint32_t quieted = (word >> 16) | 0x40u;
    return (uint16_t)((word & 0x7fffffffu) > 0x7f800000u ? quieted : rounded);
}

#endif
