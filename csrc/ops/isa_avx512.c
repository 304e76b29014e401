/* isa_avx512.c: the ops for AVX-512. Only called where cpu.h finds it; the build needs no flags for it. */

#include "platform/cpu.h"
#if CPU_X86

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "matmul/matmul.h"
#include "platform/threads.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#define LANES 16
#include "table.inc"

extern const ops ops_avx512;
const ops ops_avx512 = OPS_TABLE;

#ifdef __clang__
#pragma clang attribute pop
#endif

#else
typedef int nothing_here;
#endif
