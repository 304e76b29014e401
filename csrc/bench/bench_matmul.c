/* bench_matmul.c: the matrix product as a share of what this machine can do, both measured in the same minute.

   make bench                                   all shapes, both precisions, as many threads as cores
   ./bench_matmul 1                             on 1 thread
   ./bench_matmul 2 tiny                        only the groups whose name contains "tiny"
   SAMPAN_ISA=avx2 ./bench_matmul               with another instruction set

   Peak is independent multiply-adds in registers, bandwidth a sum over 256 MiB. Every repetition measures peak (or
   bandwidth) and then each shape, so that a noisy neighbour or a clock that falls is in both; medians of the
   repetitions are printed. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "platform/clock.h"
#include "platform/cpu.h"
#include "matmul/matmul.h"
#include "platform/threads.h"

enum { REPETITIONS = 11, MAX_SHAPES = 64 };

/* ---- peak: 12 chains, more than latency times units on these CPUs, and no more than 16 registers hold ---- */

enum { PEAK_LOOPS = 500000, CHAINS = 12 };

#define PEAK(name, target, vector, zero, fma) \
    target static float name(float seed) { \
        vector sums[CHAINS], x = zero + seed; \
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) sums[i] = zero; \
        for (int loop = 0; loop < PEAK_LOOPS; loop++) { \
            _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) { \
                sums[i] = fma; \
                __asm__ volatile("" : VECTOR_CONSTRAINT(sums[i])); \
            } \
        } \
        _Pragma("GCC unroll 16") for (int i = 1; i < CHAINS; i++) sums[0] = sums[0] + sums[i]; \
        return sums[0][0]; \
    }

#if CPU_X86
#include <immintrin.h>
#define VECTOR_CONSTRAINT(v) "+v"(v)
typedef __m128 four_floats;
PEAK(peak_avx2, TARGET_AVX2, __m256, _mm256_setzero_ps(), _mm256_fmadd_ps(x, x, sums[i]))
PEAK(peak_avx512, TARGET_AVX512, __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(x, x, sums[i]))
PEAK(peak_avx512bf16, TARGET_AVX512BF16, __m512, _mm512_setzero_ps(),
     _mm512_dpbf16_ps(sums[i], (__m512bh)x, (__m512bh)x))
#elif CPU_NEON
#include <arm_neon.h>
#define VECTOR_CONSTRAINT(v) "+w"(v)
typedef float32x4_t four_floats;
PEAK(peak_neon, , four_floats, vdupq_n_f32(0.0f), vfmaq_f32(sums[i], x, x))
#else
#define VECTOR_CONSTRAINT(v) "+m"(v)
typedef float four_floats __attribute__((vector_size(16)));
#endif
PEAK(peak_c, , four_floats, ((four_floats){0.0f, 0.0f, 0.0f, 0.0f}), (sums[i] + x * x))

typedef struct peak_kernel {
    float (*run)(float);
    double flops_per_operation;
} peak_kernel;

static peak_kernel peak_of(int32_t isa, int32_t precision) {
#if CPU_X86
    if (isa == ISA_AVX512BF16 && precision == MATMUL_BFLOAT16) return (peak_kernel){peak_avx512bf16, 64};
    if (isa >= ISA_AVX512) return (peak_kernel){peak_avx512, 32};
    if (isa == ISA_AVX2) return (peak_kernel){peak_avx2, 16};
#elif CPU_NEON
    if (isa == ISA_NEON) return (peak_kernel){peak_neon, 8};
#endif
    (void)precision, (void)isa;
    return (peak_kernel){peak_c, 8};
}

typedef struct peak_call {
    peak_kernel kernel;
    volatile float sink;
} peak_call;

static void run_peak(void *arg, int32_t thread, int32_t n_threads) {
    (void)thread, (void)n_threads;
    peak_call *call = arg;
    call->sink = call->kernel.run(1e-3f);
}

static double measure_peak(thread_pool *pool, int32_t isa, int32_t precision) {
    peak_call call = {peak_of(isa, precision), 0};
    const double start = clock_seconds();
    pool_run(pool, run_peak, &call);
    return (double)PEAK_LOOPS * CHAINS * call.kernel.flops_per_operation * pool_count_threads(pool)
           / (clock_seconds() - start);
}

typedef struct bandwidth_call {
    const uint64_t *data;
    int64_t count;
    volatile uint64_t sink;
} bandwidth_call;

static void run_bandwidth(void *arg, int32_t thread, int32_t n_threads) {
    bandwidth_call *call = arg;
    int64_t begin, end;
    uint64_t sums[8] = {0};
    pool_split(call->count, 512, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i + 8 <= end; i += 8)
        for (int j = 0; j < 8; j++) sums[j] += call->data[i + j];
    for (int j = 1; j < 8; j++) sums[0] += sums[j];
    call->sink = sums[0];
}

static double measure_bandwidth(thread_pool *pool, const void *data, int64_t bytes) {
    bandwidth_call call = {data, bytes / 8, 0};
    const double start = clock_seconds();
    pool_run(pool, run_bandwidth, &call);
    return (double)bytes / (clock_seconds() - start);
}

/* ---- shapes ---- */

enum { FORWARD, FORWARD_GELU, BACKWARD_INPUT, BACKWARD_WEIGHTS, SOLO_SCORES, SOLO_VALUES };
static const char *const form_names[] = {"y = x w^T + b", "gelu(x w^T + b)", "dx = dy w",
                                         "dw += dy^T x",  "alone: q k^T",    "alone: p v"};

/* A linear layer of M rows, K inputs and N outputs, in one of its three products. */
typedef struct shape {
    const char *group;
    int32_t form;
    int64_t m, n, k;
} shape;

static const shape shapes[] = {{"tiny", FORWARD, 768, 384, 128},
                               {"tiny", FORWARD, 768, 128, 128},
                               {"tiny", FORWARD_GELU, 768, 512, 128},
                               {"tiny", FORWARD, 768, 128, 512},
                               {"tiny", FORWARD, 768, 65, 128},
                               {"tiny", BACKWARD_INPUT, 768, 384, 128},
                               {"tiny", BACKWARD_INPUT, 768, 128, 512},
                               {"tiny", BACKWARD_INPUT, 768, 512, 128},
                               {"tiny", BACKWARD_WEIGHTS, 768, 384, 128},
                               {"tiny", BACKWARD_WEIGHTS, 768, 128, 512},
                               {"tiny", BACKWARD_WEIGHTS, 768, 512, 128},
                               {"gpt2 256", FORWARD, 256, 2304, 768},
                               {"gpt2 256", FORWARD, 256, 768, 768},
                               {"gpt2 256", FORWARD_GELU, 256, 3072, 768},
                               {"gpt2 256", FORWARD, 256, 768, 3072},
                               {"gpt2 256", BACKWARD_INPUT, 256, 3072, 768},
                               {"gpt2 256", BACKWARD_INPUT, 256, 768, 3072},
                               {"gpt2 256", BACKWARD_WEIGHTS, 256, 3072, 768},
                               {"gpt2 256", BACKWARD_WEIGHTS, 256, 768, 3072},
                               {"gpt2 256 head", FORWARD, 256, 50257, 768},
                               {"gpt2 256 head", BACKWARD_INPUT, 256, 50257, 768},
                               {"gpt2 256 head", BACKWARD_WEIGHTS, 256, 50257, 768},
                               {"gpt2 1024", FORWARD, 1024, 2304, 768},
                               {"gpt2 1024", FORWARD, 1024, 768, 768},
                               {"gpt2 1024", FORWARD_GELU, 1024, 3072, 768},
                               {"gpt2 1024", FORWARD, 1024, 768, 3072},
                               {"gpt2 1024", BACKWARD_INPUT, 1024, 3072, 768},
                               {"gpt2 1024", BACKWARD_INPUT, 1024, 768, 3072},
                               {"gpt2 1024", BACKWARD_WEIGHTS, 1024, 3072, 768},
                               {"gpt2 1024", BACKWARD_WEIGHTS, 1024, 768, 3072},
                               {"attention", SOLO_SCORES, 64, 64, 32},
                               {"attention", SOLO_VALUES, 64, 32, 64},
                               {"attention", SOLO_SCORES, 64, 64, 64},
                               {"attention", SOLO_SCORES, 256, 256, 64},
                               {"attention", SOLO_VALUES, 256, 64, 256},
                               {"decode tiny", FORWARD, 1, 384, 128},
                               {"decode tiny", FORWARD, 1, 512, 128},
                               {"decode tiny", FORWARD, 1, 128, 512},
                               {"decode", FORWARD, 1, 50257, 768},
                               {"decode", FORWARD, 4, 50257, 768},
                               {"decode", FORWARD, 8, 50257, 768},
                               {"decode", FORWARD, 1, 32000, 2048}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct buffers {
    float *x, *y, *w, *b;
    uint16_t *w_half;
} buffers;

static matmul_problem problem_of(const shape *s, const buffers *buffers, int32_t precision) {
    matmul_problem p = {.precision = precision};
    const int64_t m = s->m, n = s->n, k = s->k;
    const int decoding = strncmp(s->group, "decode", 6) == 0;
    switch (s->form) {
    case FORWARD:
    case FORWARD_GELU:
    case SOLO_SCORES:
        p.m = m, p.n = n, p.k = k, p.a = matmul_rows(buffers->x, k), p.b = matmul_columns(buffers->w, k),
        p.c = buffers->y, p.c_stride = n;
        if (s->form != SOLO_SCORES) p.bias = buffers->b;
        if (s->form == FORWARD_GELU)
            p.activation = ACTIVATION_gelu_new, p.pre_activation = buffers->y + m * n, p.pre_activation_stride = n;
        if (decoding && precision == MATMUL_BFLOAT16) p.b = matmul_columns_bfloat16(buffers->w_half, k);
        break;
    case SOLO_VALUES:
        p.m = m, p.n = n, p.k = k, p.a = matmul_rows(buffers->x, k), p.b = matmul_rows(buffers->w, n), p.c = buffers->y,
        p.c_stride = n;
        break;
    case BACKWARD_INPUT:
        p.m = m, p.n = k, p.k = n, p.a = matmul_rows(buffers->y, n), p.b = matmul_rows(buffers->w, k), p.c = buffers->x,
        p.c_stride = k;
        break;
    default:
        p.m = n, p.n = k, p.k = m, p.a = matmul_columns(buffers->y, n), p.b = matmul_rows(buffers->x, k),
        p.c = buffers->w, p.c_stride = k;
        p.accumulate = 1;
    }
    return p;
}

typedef struct team_call {
    matmul_context *context;
    matmul_problem problem;
    int64_t times;
    int32_t solo;
    matmul_problem *own;
} team_call;

static void run_team(void *arg, int32_t thread, int32_t n_threads) {
    (void)n_threads;
    team_call *call = arg;
    for (int64_t i = 0; i < call->times; i++) {
        if (call->solo) matmul_run_solo(call->context, thread, &call->own[thread]);
        else matmul_run_team(call->context, thread, &call->problem);
    }
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return values[count / 2];
}

static float *random_floats(int64_t count) {
    float *values = malloc((size_t)count * sizeof *values);
    if (!values) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    uint32_t state = 12345;
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 16777216.0f - 0.5f;
    return values;
}

static void nothing(void *arg, int32_t thread, int32_t n_threads) { (void)arg, (void)thread, (void)n_threads; }

static void barriers(void *arg, int32_t thread, int32_t n_threads) {
    (void)thread, (void)n_threads;
    for (int i = 0; i < 1000; i++) pool_barrier(arg);
}

int main(int argc, char **argv) {
    const int32_t n_threads = argc > 1 ? (int32_t)atoi(argv[1]) : cpu_count_cores(), isa = cpu_best_isa();
    const char *wanted = argc > 2 ? argv[2] : "";
    thread_pool *pool;
    matmul_context *context;
    if (pool_create(&pool, n_threads) != POOL_OK || matmul_create(&context, pool, isa) != MATMUL_OK) {
        fprintf(stderr, "no pool of %d threads, or no such instructions\n", n_threads);
        return 1;
    }
    const int64_t weights = 32000 * 2048; /* 262 MB */
    buffers buffers = {random_floats(1024 * 3072), random_floats(256 * 50257 + 4 * 1024 * 3072), random_floats(weights),
                       random_floats(50257), malloc((size_t)weights * 2)};
    if (!buffers.w_half) return 2;
    for (int64_t i = 0; i < weights; i++) buffers.w_half[i] = bfloat16_from_float(buffers.w[i]);

    double regions[REPETITIONS], meetings[REPETITIONS];
    for (int r = 0; r < REPETITIONS; r++) {
        double start = clock_seconds();
        for (int i = 0; i < 1000; i++) pool_run(pool, nothing, NULL);
        regions[r] = (clock_seconds() - start) * 1e3;
        start = clock_seconds();
        pool_run(pool, barriers, pool);
        meetings[r] = (clock_seconds() - start) * 1e3;
    }
    printf("%s, %d threads: a region costs %.2f us, a barrier %.2f us\n", cpu_isa_name(isa), n_threads,
           median(regions, REPETITIONS), median(meetings, REPETITIONS));

    for (int32_t precision = 0; precision < 2; precision++) {
        static double times[SHAPES][REPETITIONS], peaks[SHAPES][REPETITIONS], bandwidths[SHAPES][REPETITIONS];
        for (int r = 0; r < REPETITIONS; r++) {
            for (int i = 0; i < (int)SHAPES; i++) {
                const shape *s = &shapes[i];
                if (!strstr(s->group, wanted)) continue;
                team_call call = {context, problem_of(s, &buffers, precision), 1, s->form >= SOLO_SCORES, NULL};
                const double flops = 2.0 * (double)(s->m * s->n * s->k);
                if (call.solo) {
                    call.own = malloc((size_t)n_threads * sizeof *call.own);
                    if (!call.own) return 2;
                    for (int32_t t = 0; t < n_threads; t++) {
                        call.own[t] = call.problem;
                        call.own[t].c += t
                                         * (s->m * s->n
                                            + 4096); /* apart, or one thread prefetches what the other writes */
                    }
                }
                peaks[i][r] = measure_peak(pool, isa, precision);
                bandwidths[i][r] = s->m <= 8 ? measure_bandwidth(pool, buffers.w, weights * 4) : 0.0;
                call.times = flops < 4e8 ? (int64_t)(4e8 / flops) : 1;
                if (s->m <= 8 && s->n < 1000) call.times = 1000;
                if (s->n * s->k < 10000000) { /* warm; the big ones come from memory in any case */
                    team_call once = call;
                    once.times = 1;
                    pool_run(pool, run_team, &once);
                }
                const double start = clock_seconds();
                pool_run(pool, run_team, &call);
                times[i][r] = (clock_seconds() - start) / (double)call.times / (call.solo ? n_threads : 1);
                free(call.own);
                if (s->form == BACKWARD_WEIGHTS)
                    memset(buffers.w, 0, (size_t)(s->n * s->k) * 4); /* or it grows to infinity */
                if (s->form == BACKWARD_INPUT) memset(buffers.x, 0, (size_t)(s->m * s->k) * 4);
            }
        }
        double peak = 0, bandwidth = 0;
        printf("\n%s products\n%-14s %-16s %6s %6s %6s %10s %9s %8s\n", precision ? "bfloat16" : "float32", "group",
               "product", "M", "N", "K", "us", "GFLOP/s", "of peak");
        for (int i = 0; i < (int)SHAPES; i++) {
            const shape *s = &shapes[i];
            if (!strstr(s->group, wanted)) continue;
            double ratios[REPETITIONS], streams[REPETITIONS];
            const double flops = 2.0 * (double)(s->m * s->n * s->k),
                         bytes = (double)(s->n * s->k) * (precision ? 2 : 4);
            for (int r = 0; r < REPETITIONS; r++) {
                ratios[r] = flops / times[i][r] / peaks[i][r];
                streams[r] = bandwidths[i][r] > 0 ? bytes / times[i][r] / bandwidths[i][r] : 0;
            }
            const double time = median(times[i], REPETITIONS);
            peak = fmax(peak, median(peaks[i], REPETITIONS));
            bandwidth = fmax(bandwidth, median(bandwidths[i], REPETITIONS));
            printf("%-14s %-16s %6lld %6lld %6lld %10.2f %9.1f %7.1f%%", s->group, form_names[s->form], (long long)s->m,
                   (long long)s->n, (long long)s->k, time * 1e6, flops / time * 1e-9,
                   100 * median(ratios, REPETITIONS));
            if (s->m <= 8)
                printf("   %6.1f GB/s, %.0f%% of memory's", bytes / time * 1e-9, 100 * median(streams, REPETITIONS));
            printf("\n");
        }
        printf("peak %.1f GFLOP/s", peak * 1e-9);
        if (bandwidth > 0) printf(", memory %.1f GB/s", bandwidth * 1e-9);
        printf("\n");
    }
    matmul_destroy(context);
    pool_destroy(pool);
    free(buffers.x), free(buffers.y), free(buffers.w), free(buffers.b), free(buffers.w_half);
    return 0;
}
