/* cpu.c: what this CPU can run. */

#include <stdlib.h>
#include <string.h>
#include "cpu.h"

static const char *const isa_names[ISA_COUNT] = {
    [ISA_C] = "c", [ISA_NEON] = "neon", [ISA_AVX2] = "avx2", [ISA_AVX512] = "avx512", [ISA_AVX512BF16] = "avx512bf16",
};

int32_t cpu_has_isa(int32_t isa) {
#if CPU_X86
    __builtin_cpu_init(); /* these look at the operating system's side (XCR0) too */
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                 && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (isa == ISA_AVX2) return avx2;
    if (isa == ISA_AVX512) return avx512;
    if (isa == ISA_AVX512BF16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    if (isa == ISA_NEON) return CPU_NEON;
    return isa == ISA_C;
}

int32_t cpu_best_isa(void) {
    const char *wanted = getenv("SAMPAN_ISA");
    if (wanted && *wanted) {
        for (int32_t isa = 0; isa < ISA_COUNT; isa++)
            if (strcmp(wanted, isa_names[isa]) == 0 && cpu_has_isa(isa)) return isa;
        return ISA_NONE;
    }
    int32_t best = ISA_COUNT - 1;
    while (!cpu_has_isa(best)) best--;
    return best;
}

const char *cpu_isa_name(int32_t isa) { return isa >= 0 && isa < ISA_COUNT ? isa_names[isa] : "none"; }
