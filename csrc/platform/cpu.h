/* cpu.h: which instruction set to use, decided at run time, so that one library runs on every CPU of its architecture;
   and how many cores.

   A function for one instruction set is compiled with TARGET_AVX2 etc. before it, whatever the compiler's flags, and
   called only when cpu_best_isa() says so:

       #if CPU_X86
       TARGET_AVX2 static void scale_avx2(float *x, int64_t n) { ... _mm256_mul_ps ... }
       #endif
*/

#ifndef SAMPAN_CPU_H
#define SAMPAN_CPU_H

#include <stdint.h>

/* In order: a machine that has one has those before it (of its architecture). */
enum { ISA_NONE = -2, ISA_BEST = -1, ISA_C = 0, ISA_NEON, ISA_AVX2, ISA_AVX512, ISA_AVX512BF16, ISA_COUNT };

#if defined(__x86_64__) || defined(_M_X64)
#define CPU_X86 1
#else
#define CPU_X86 0
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
#define CPU_NEON 1
#else
#define CPU_NEON 0
#endif

#define CPU_AVX2 "avx2,fma"
#define CPU_AVX512 "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"
#define CPU_AVX512BF16 CPU_AVX512 ",avx512bf16"
#define TARGET_AVX2 __attribute__((target(CPU_AVX2)))
#define TARGET_AVX512 __attribute__((target(CPU_AVX512)))
#define TARGET_AVX512BF16 __attribute__((target(CPU_AVX512BF16)))

/* The same for all functions between CPU_TARGET_BEGIN(CPU_AVX2) and CPU_TARGET_END, after the system's headers. */
#define CPU_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define CPU_WIDE
#define CPU_TARGET_BEGIN(set) CPU_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define CPU_TARGET_END _Pragma("clang attribute pop")
#else
#define CPU_WIDE ",prefer-vector-width=512" /* behind CPU_AVX512: the compiler's own vectors too */
#define CPU_TARGET_BEGIN(set) _Pragma("GCC push_options") CPU_PRAGMA(GCC target(set))
#define CPU_TARGET_END _Pragma("GCC pop_options")
#endif

/* Whether this CPU and operating system can run it. */
int32_t cpu_has_isa(int32_t isa);

/* The best one that the machine has, or the one that the environment variable SAMPAN_ISA names
   (c, neon, avx2, avx512, avx512bf16); ISA_NONE if this machine lacks it. */
int32_t cpu_best_isa(void);

/* Cores that this process may use, at least 1. They are the physical cores among the CPUs that the process is allowed
   (on Apple silicon the fast ones), or fewer if a container's CPU quota (control groups 1 and 2) is less, rounded down. */
int32_t cpu_count_cores(void);

/* The default number of threads: the environment variable OMP_NUM_THREADS, up to 1024, else cpu_count_cores(). */
int32_t cpu_count_threads(void);

/* Hardware threads that this process may use, at least 1: more threads than that take turns. */
int32_t cpu_count_logical(void);

/* Linux: the CPU quota of the control groups listed in the file `groups` and of all groups around each, in whole cores,
   at least 1; a large number without one. The tests give it other places than /proc/self/cgroup and /sys/fs/cgroup. */
int32_t cpu_read_quota(const char *groups, const char *root);

/* "avx512bf16" etc., as SAMPAN_ISA spells it. */
const char *cpu_isa_name(int32_t isa);

#endif
