/* isa_avx2.c: the ops for AVX2. Only called where cpu.h finds it; the build needs no flags for it. */

#include "platform/cpu.h"
#if CPU_X86

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "ops.h"

CPU_TARGET_BEGIN(CPU_AVX2)
#define LANES 8
#include "table.inc"
const ops ops_avx2 = OPS_TABLE;
CPU_TARGET_END

#else
typedef int nothing_here;
#endif
