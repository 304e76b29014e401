/* test_matmul.c: every kernel that this machine can run, against the three loops of matmul_run_naive() in double.

   make test                          all of them
   SAMPAN_ISA=avx2 ./test_matmul      one instruction set
   ./test_matmul 200                  fewer cases per instruction set (sanitizers)

   An element's error is held against what rounding can do to it: sum of |a b| + |c| + |bias|, times 2^-24 for each of
   about 2 k roundings. A product that is left out or counted twice is thousands of times larger. Also: nothing outside
   of C is written, and 1 to 4 threads and a single one alone give the same bits. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "platform/cpu.h"
#include "matmul/matmul.h"
#include "platform/threads.h"

enum { MAX_THREADS = 4 };

static uint64_t random_state = 1;

static uint32_t random_bits(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}
static int64_t random_between(int64_t low, int64_t high) {
    return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1));
}
static float random_float(void) { return (float)random_bits() / 2147483648.0f - 1.0f; }

static void *allocate(size_t bytes) { /* exactly: AddressSanitizer sees one float too many */
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return memory;
}

static float *random_floats(int64_t count) {
    float *values = allocate((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = random_float();
    return values;
}

/* A random matrix (rows, columns): by rows, by columns or with neither stride 1, as float or bfloat16, with gaps
 * between rows. */
static matmul_matrix random_matrix(int64_t rows, int64_t columns) {
    matmul_matrix matrix;
    const int64_t gap = random_bits() % 3 ? 0 : random_between(1, 9);
    switch (random_bits() % 5) {
    case 0:
    case 1: matrix.column_stride = 1, matrix.row_stride = columns + gap; break;
    case 2:
    case 3: matrix.row_stride = 1, matrix.column_stride = rows + gap; break;
    default: matrix.column_stride = 2, matrix.row_stride = 2 * columns + gap; break;
    }
    matrix.type = random_bits() % 3 ? MATMUL_FLOAT32 : MATMUL_BFLOAT16;
    const int64_t count = (rows - 1) * matrix.row_stride + (columns - 1) * matrix.column_stride + 1;
    const size_t size = matrix.type == MATMUL_BFLOAT16 ? 2 : 4;
    char *data = allocate((size_t)count * size);
    for (int64_t i = 0; i < count; i++) {
        const float value = random_float();
        const uint16_t half = bfloat16_from_float(value);
        memcpy(data + (size_t)i * size, matrix.type == MATMUL_BFLOAT16 ? (const void *)&half : (const void *)&value,
               size);
    }
    matrix.data = data;
    return matrix;
}

static double magnitude_at(const matmul_matrix *matrix, int64_t i, int64_t j) {
    const int64_t at = i * matrix->row_stride + j * matrix->column_stride;
    return fabs(matrix->type == MATMUL_BFLOAT16 ? bfloat16_to_float(((const uint16_t *)matrix->data)[at])
                                                : ((const float *)matrix->data)[at]);
}

typedef struct contexts {
    thread_pool *pools[MAX_THREADS];
    matmul_context *matmuls[MAX_THREADS];
} contexts;

typedef struct solo_call {
    matmul_context *context;
    const matmul_problem *problems;
} solo_call;

static void run_solo(void *arg, int32_t thread, int32_t n_threads) {
    (void)n_threads;
    const solo_call *call = arg;
    matmul_run_solo(call->context, thread, &call->problems[thread]);
}

/* What |a| |b| + |c| + |bias| sums up to for each element: (m, n) */
static double *sum_magnitudes(const matmul_problem *p, const float *old) {
    double *sums = allocate((size_t)(p->m * p->n) * sizeof *sums);
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            double sum = p->accumulate ? fabs(old[i * p->c_stride + j]) : 0.0;
            for (int64_t k = 0; k < p->k; k++) sum += magnitude_at(&p->a, i, k) * magnitude_at(&p->b, k, j);
            if (p->precision == MATMUL_BFLOAT16) sum *= 1.02; /* rounding may have made the operands larger */
            sums[i * p->n + j] = sum + (p->bias ? fabs(p->bias[j]) : 0.0);
        }
    }
    return sums;
}

static int64_t count_wrong(const matmul_problem *p, const double *magnitudes, const float *got, const float *want,
                           const float *pre_got, const float *pre_want, double *worst) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            const int64_t at = i * p->c_stride + j;
            const double magnitude = magnitudes[i * p->n + j],
                         sum_bound = magnitude * (2.0 * (double)p->k + 8.0) * 0x1p-24;
            const double steepest = p->activation == ACTIVATION_relu2 ? 2.0 * fmax(magnitude, 6.0) : 1.2;
            double bound = sum_bound;
            if (p->activation) bound = steepest * sum_bound + 1e-6 * (1.0 + magnitude);
            if (p->residual) bound += (fabs(want[at]) + magnitude) * 0x1p-23;
            const double error = fabs((double)got[at] - (double)want[at]);
            if (!(error <= bound)) wrong++;
            if (bound > 0 && error / bound > *worst) *worst = error / bound;
            if (p->activation && !p->backward && pre_got) {
                const int64_t pre_at = i * p->pre_activation_stride + j;
                if (!(fabs((double)pre_got[pre_at] - (double)pre_want[pre_at]) <= sum_bound)) wrong++;
            }
        }
    }
    return wrong;
}

static void print_case(const matmul_problem *p) {
    printf("    m %lld n %lld k %lld  a (%lld, %lld) type %d  b (%lld, %lld) type %d  precision %d accumulate %d bias "
           "%d activation %d residual %d\n",
           (long long)p->m, (long long)p->n, (long long)p->k, (long long)p->a.row_stride, (long long)p->a.column_stride,
           p->a.type, (long long)p->b.row_stride, (long long)p->b.column_stride, p->b.type, p->precision, p->accumulate,
           p->bias != NULL, p->activation, p->residual != NULL);
}

/* One random problem in all ways to run it. Returns the number of ways that failed. */
static int test_case(const contexts *contexts, int64_t m, int64_t n, int64_t k, double *worst) {
    enum { WAYS = 2 * MAX_THREADS }; /* 1 to 4 threads together, and four side by side, each alone */
    matmul_problem p = {
        .m = m, .n = n, .k = k, .a = random_matrix(m, k > 0 ? k : 1), .b = random_matrix(k > 0 ? k : 1, n)};
    p.precision = (int32_t)(random_bits() % 2);
    p.accumulate = (int32_t)(random_bits() % 2);
    p.c_stride = n + (int64_t)(random_bits() % 4);
    const int64_t count = m * p.c_stride;
    float *old = random_floats(count), *want = allocate((size_t)count * 4), *got[WAYS];
    float *bias = random_bits() % 2 ? random_floats(n) : NULL, *residual = NULL, *old_pre = NULL, *want_pre = NULL,
          *got_pre[WAYS] = {0};
    p.bias = bias;
    if (random_bits() % 3 == 0) {
        p.residual_stride = n + (int64_t)(random_bits() % 4);
        p.residual = residual = random_floats(m * p.residual_stride);
    }
    p.activation = random_bits() % 2 ? ACTIVATION_NONE : (int32_t)(1 + random_bits() % (ACTIVATION_COUNT - 1));
    p.backward = p.activation && random_bits() % 2;
    if (p.backward || (p.activation && random_bits() % 2)) {
        p.pre_activation_stride = n + (int64_t)(random_bits() % 4);
        old_pre = random_floats(m * p.pre_activation_stride);
        for (int64_t i = 0; i < m * p.pre_activation_stride; i++) old_pre[i] *= 6.0f;
        want_pre = allocate((size_t)(m * p.pre_activation_stride) * 4);
        memcpy(want_pre, old_pre, (size_t)(m * p.pre_activation_stride) * 4);
    }

    matmul_problem naive = p;
    memcpy(want, old, (size_t)count * 4);
    naive.c = want;
    naive.pre_activation = want_pre;
    matmul_run_naive(&naive);

    double *magnitudes = sum_magnitudes(&p, old);
    int failures = 0;
    double size = 0.0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) size += fabs(want[i * p.c_stride + j]);
    if (!(size > 0.0) && (k > 0 || p.accumulate || bias || residual) && p.activation != ACTIVATION_relu2) {
        printf("FAIL the reference is zero\n");
        print_case(&p);
        failures++;
    }

    matmul_problem problems[WAYS];
    for (int way = 0; way < WAYS; way++) {
        got[way] = allocate((size_t)count * 4);
        memcpy(got[way], old, (size_t)count * 4);
        if (old_pre) {
            got_pre[way] = allocate((size_t)(m * p.pre_activation_stride) * 4);
            memcpy(got_pre[way], old_pre, (size_t)(m * p.pre_activation_stride) * 4);
        }
        problems[way] = p;
        problems[way].c = got[way];
        problems[way].pre_activation = got_pre[way];
        if (way < MAX_THREADS) matmul_run(contexts->matmuls[way], &problems[way]);
    }
    solo_call call = {contexts->matmuls[MAX_THREADS - 1], problems + MAX_THREADS};
    pool_run(contexts->pools[MAX_THREADS - 1], run_solo, &call);

    for (int way = 0; way < WAYS; way++) {
        char name[64];
        snprintf(name, sizeof name, way < MAX_THREADS ? "%d threads" : "alone as thread %d",
                 way < MAX_THREADS ? way + 1 : way - MAX_THREADS);
        const int64_t wrong = count_wrong(&p, magnitudes, got[way], want, got_pre[way], want_pre, worst);
        int64_t outside = 0;
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = n; j < p.c_stride; j++)
                outside += memcmp(&got[way][i * p.c_stride + j], &old[i * p.c_stride + j], 4) != 0;
        const int differs = memcmp(got[way], got[0], (size_t)count * 4) != 0;
        if (wrong || outside || differs) {
            printf("FAIL %s: %lld elements wrong, %lld written outside, %s\n", name, (long long)wrong,
                   (long long)outside, differs ? "not the bits of 1 thread" : "same bits");
            print_case(&p);
            failures++;
        }
    }
    for (int way = 0; way < WAYS; way++) {
        free(got[way]);
        free(got_pre[way]);
    }
    free((void *)p.a.data);
    free((void *)p.b.data);
    free(old);
    free(want);
    free(magnitudes);
    free(bias);
    free(residual);
    free(old_pre);
    free(want_pre);
    return failures;
}

static int test_isa(int32_t isa, int cases) {
    /* Over the edges of blocks, slabs and tiles; nothing to add; one of anything. */
    static const int64_t shapes[][3] = {
        {1, 1, 1},     {1, 1, 0},     {5, 7, 0},       {1, 130, 1},  {130, 1, 1},   {1, 1, 130},    {2, 3, 1000},
        {16, 65, 127}, {17, 65, 127}, {64, 65, 128},   {8, 48, 192}, {8, 48, 193},  {9, 49, 385},   {31, 97, 769},
        {1030, 17, 5}, {40, 1550, 7}, {1100, 50, 200}, {3, 9, 9300}, {3, 9, 17000}, {24, 33, 3072}, {259, 389, 64}};
    contexts contexts;
    int failures = 0;
    double worst = 0.0;
    for (int32_t i = 0; i < MAX_THREADS; i++) {
        if (pool_create(&contexts.pools[i], i + 1) != POOL_OK
            || matmul_create(&contexts.matmuls[i], contexts.pools[i], isa) != MATMUL_OK) {
            printf("FAIL no context for %d threads\n", i + 1);
            return 1;
        }
    }
    int done = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int repeat = 0; repeat < 4; repeat++, done++)
            failures += test_case(&contexts, shapes[i][0], shapes[i][1], shapes[i][2], &worst);
    for (int i = 0; i < cases; i++, done++) {
        const int64_t limit = i % 3 == 0 ? 20 : 130;
        failures += test_case(&contexts, random_between(1, limit), random_between(1, limit), random_between(1, limit),
                              &worst);
    }
    for (int32_t i = 0; i < MAX_THREADS; i++) {
        matmul_destroy(contexts.matmuls[i]);
        pool_destroy(contexts.pools[i]);
    }
    printf("%-10s %d problems, largest error %.3f of its bound, %d failures\n", cpu_isa_name(isa), done, worst,
           failures);
    return failures;
}

static int test_bfloat16(void) {
    int failures = 0;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const float value = bfloat16_to_float((uint16_t)bits);
        const uint16_t back = bfloat16_from_float(value);
        if (value == value ? back != bits : bfloat16_to_float(back) == bfloat16_to_float(back)) failures++;
        if ((bits & 0x7f80u) >= 0x7f00u) continue; /* the next one is infinite, or it is a NaN */
        const float next = bfloat16_to_float((uint16_t)(bits + 1)), middle = 0.5f * value + 0.5f * next;
        const uint16_t even = (uint16_t)(bits % 2 ? bits + 1 : bits);
        if ((bits & 0x7fffu) >= 0x100u && bfloat16_from_float(middle) != even) failures++;
        if ((bits & 0x7fffu) >= 0x100u && bfloat16_from_float(nextafterf(middle, next)) != bits + 1) failures++;
    }
    printf("bfloat16   65536 values, %d failures\n", failures);
    return failures;
}

int main(int argc, char **argv) {
    const int cases = argc > 1 ? atoi(argv[1]) : 1500;
    int failures = test_bfloat16(), tested = 0;
    const char *only = getenv("SAMPAN_ISA");
    for (int32_t isa = 0; isa < ISA_COUNT; isa++) {
        if (!cpu_has_isa(isa) || (only && *only && isa != cpu_best_isa())) continue;
        failures += test_isa(isa, cases);
        tested++;
    }
    if (!tested) printf("FAIL no instruction set to test\n");
    return failures > 0 || !tested;
}
