/* isa_c.c: the ops for what every CPU of the architecture has (SSE2 on x86-64, NEON on aarch64), and the choice between
 * all of them. */

#include "platform/cpu.h"
#define LANES 4
#include "table.inc"

static const ops ops_c = OPS_TABLE;

const ops *ops_for_isa(int32_t isa) {
#if CPU_X86
    if (isa >= ISA_AVX512) return &ops_avx512;
    if (isa >= ISA_AVX2) return &ops_avx2;
#endif
    (void)isa;
    return &ops_c;
}
