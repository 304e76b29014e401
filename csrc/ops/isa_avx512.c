/* isa_avx512.c: the ops for AVX-512. Only called where cpu.h finds it; the build needs no flags for it. */

#include "platform/cpu.h"
#if CPU_X86

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "ops.h"

CPU_TARGET_BEGIN(CPU_AVX512 CPU_WIDE)
#define LANES 16
#include "table.inc"
const ops ops_avx512 = OPS_TABLE;
CPU_TARGET_END

#else
typedef int nothing_here;
#endif
