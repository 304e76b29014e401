/* isa_avx2.c: the ops for AVX2. Only called where cpu.h finds it; the build needs no flags for it. */

#include "platform/cpu.h"
#if CPU_X86

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "matmul/matmul.h"
#include "platform/threads.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define LANES 8
#include "table.inc"

extern const ops ops_avx2;
const ops ops_avx2 = OPS_TABLE;

#ifdef __clang__
#pragma clang attribute pop
#endif

#else
typedef int nothing_here;
#endif
