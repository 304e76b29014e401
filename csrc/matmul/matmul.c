/* matmul.c: cuts a product into tiles that stay in registers, from panels that stay in caches.

   C (m, n) is done in blocks, each as a sum over slabs of k. In a slab one operand is stationary, the other streams:

     by rows       (C is high: dw, or many tokens and few outputs) each thread has rows of C. B's slab is packed by all,
                   then a barrier, and each thread packs CHUNK_ROWS of its A at a time and multiplies them with all of B
     by columns    (C is wide: few tokens) each thread has columns of C. A's slab is packed by all, then a barrier, and
                   each thread packs one panel of its B at a time and multiplies all of A with it

   To pack is to bring 32-bit words (kernels.h) into the order in which a tile reads them: converted, transposed,
   contiguous. What streams is packed just before it is used, so it is still in L1; what is stationary is kept twice, so
   that the next slab can be packed while slower threads still read this one: one barrier a slab is enough. The first
   slab overwrites C, later ones add to it, and the last is followed by the epilogue, tile by tile, in L1.

   A product with few rows (a token being decoded) is another problem: reading the weights once is all the time it
   takes, so nothing is packed but those rows, and each output is a dot product over the weights where they lie.

   Who computes a tile does not change its value: k is never split between threads, and slabs depend on k alone. */

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "platform/cpu.h"
#include "matmul.h"
#include "kernels.h"
#include "activations.inc"

enum {
    SLAB_STEPS = 256, /* 32-bit words along k: 256 floats or 512 bfloat16; a panel of B is 48 KiB for AVX-512, as L1 */
    STATIONARY_ROWS =
        1024, /* of A: 1 MiB, it may be more than L2 holds, since each byte that is read is used 48 times */
    STATIONARY_COLUMNS = 768, /* of B: 768 KiB */
    SOLO_STATIONARY = 496,    /* rows or columns for one thread alone */
    BLOCK_ROWS = 1024, /* the other side of a block: each slab reads and writes all of C's, which should stay in L3 */
    BLOCK_COLUMNS = 1536,
    CHUNK_ROWS = 240, /* 240 KiB in L2; a multiple of every tile height: 4, 6, 8 */
    PANEL_COLUMNS_MAX = TILE_VECTORS_MAX * LANES_MAX,
    FEW_ROWS = 16,         /* up to here the dot products win against packing B; a power of two */
    FEW_ROWS_STEPS = 8192, /* the longest row of x, in words; a product with longer ones goes the other way */
    BUFFER_ALIGNMENT = 64,

    STATIONARY_WORDS = (STATIONARY_ROWS + TILE_ROWS_MAX) * SLAB_STEPS,
    STREAMED_WORDS = CHUNK_ROWS * SLAB_STEPS,
    FEW_ROWS_WORDS = FEW_ROWS * FEW_ROWS_STEPS,
    OWN_WORDS = STREAMED_WORDS + FEW_ROWS_WORDS,
};
_Static_assert(PANEL_COLUMNS_MAX <= CHUNK_ROWS, "a panel of B must fit where a chunk of A does");
_Static_assert((SOLO_STATIONARY + TILE_ROWS_MAX) * SLAB_STEPS <= FEW_ROWS_WORDS,
               "one thread's stationary panels must fit where few rows do");
_Static_assert(STATIONARY_COLUMNS <= STATIONARY_ROWS, "B's panels must fit where A's do");

struct matmul_context {
    thread_pool *pool;
    const matmul_kernels *kernels[2]; /* by precision */
    float *stationary[2];             /* (STATIONARY_ROWS + TILE_ROWS_MAX, SLAB_STEPS) each, shared, used in turn */
    float *own;   /* (n_threads, OWN_WORDS): a thread's streamed panels, and few rows or its stationary ones */
    void *memory; /* all of these */
};

/* Who works on a product: a pool's thread among others, or one alone. */
typedef struct crew {
    thread_pool *pool; /* NULL: alone */
    int32_t thread, n_threads;
    int64_t stationary_rows, stationary_columns;
    float *stationary[2];
    float *streamed; /* STREAMED_WORDS: a chunk of A or a panel of B */
    float *few_rows; /* FEW_ROWS_WORDS, (FEW_ROWS, FEW_ROWS_STEPS) at most */
} crew;

typedef struct range {
    int64_t begin, end;
} range;

static int64_t min_int64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t count_groups(int64_t count, int64_t group) { return (count + group - 1) / group; }
static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/* Is there something to do after the last sum that the sum cannot begin with? */
static int finishes(const matmul_problem *p) { return p->activation || (p->residual && p->accumulate); }

static range split(int64_t count, int64_t group, int32_t thread, int32_t n_threads) {
    range share;
    pool_split(count, group, thread, n_threads, &share.begin, &share.end);
    return share;
}

/* ---- the context ---- */

static const matmul_kernels *kernels_of(int32_t isa, int32_t precision) {
    switch (isa) {
#if CPU_X86
    case ISA_AVX512BF16:
        return precision == MATMUL_BFLOAT16 ? &matmul_kernels_avx512bf16[0] : &matmul_kernels_avx512[MATMUL_FLOAT32];
    case ISA_AVX512: return &matmul_kernels_avx512[precision];
    case ISA_AVX2: return &matmul_kernels_avx2[precision];
#endif
#if CPU_NEON
    case ISA_NEON: return &matmul_kernels_neon[precision];
#endif
    default: return &matmul_kernels_c[precision];
    }
}

int32_t matmul_create(matmul_context **result, thread_pool *pool, int32_t isa) {
    *result = NULL;
    if (isa == ISA_BEST) isa = cpu_best_isa();
    if (!cpu_has_isa(isa)) return MATMUL_NO_INSTRUCTIONS;
    const int32_t n_threads = pool_count_threads(pool);
    const size_t words = 2 * STATIONARY_WORDS + (size_t)n_threads * OWN_WORDS;
    matmul_context *context = calloc(1, sizeof *context);
    void *memory = malloc(words * sizeof(float) + BUFFER_ALIGNMENT);
    if (!context || !memory) {
        free(context);
        free(memory);
        return MATMUL_NO_MEMORY;
    }
    float *first = (float *)(((uintptr_t)memory + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT);
    *context = (matmul_context){
        .pool = pool,
        .kernels = {kernels_of(isa, MATMUL_FLOAT32), kernels_of(isa, MATMUL_BFLOAT16)},
        .stationary = {first, first + STATIONARY_WORDS},
        .own = first + 2 * STATIONARY_WORDS,
        .memory = memory,
    };
    *result = context;
    return MATMUL_OK;
}

void matmul_destroy(matmul_context *context) {
    if (!context) return;
    free(context->memory);
    free(context);
}

/* ---- few rows ---- */

/* A vector holds `lanes` words: x's rows are padded with zeros to whole ones. */
static int64_t few_rows_stride(const matmul_problem *p, const matmul_kernels *kernels) {
    const int64_t per_word = 1 + kernels->pairs;
    return round_up(p->k, kernels->lanes * per_word) / per_word;
}

/* B's columns must be contiguous, as a linear layer's weights are. */
static int is_few_rows(const matmul_problem *p, const matmul_kernels *kernels) {
    return p->m <= FEW_ROWS && p->b.row_stride == 1 && few_rows_stride(p, kernels) <= FEW_ROWS_STEPS;
}

static void multiply_few_rows(const matmul_problem *p, const matmul_kernels *kernels, const crew *crew) {
    enum { COLUMNS_AT_ONCE = 48 }; /* whose weights stay in L2 for the next rows */
    const int64_t steps = (p->k + kernels->pairs) / (1 + kernels->pairs), x_stride = few_rows_stride(p, kernels);
    const range columns = split(p->n, 16, crew->thread, crew->n_threads);
    float *x = crew->few_rows;
    for (int64_t i = 0; i < p->m; i++) {
        kernels->pack_row(kernels->rounds, matmul_at(p->a.data, p->a.type, i * p->a.row_stride), p->a.type,
                          p->a.column_stride, p->k, x + i * x_stride);
        memset(x + i * x_stride + steps, 0, (size_t)(x_stride - steps) * sizeof *x);
    }
    for (int64_t i = p->m; i & (i - 1); i++)
        memset(x + i * x_stride, 0, (size_t)x_stride * sizeof *x); /* up to a power of two */
    for (int64_t j = columns.begin; j < columns.end; j += COLUMNS_AT_ONCE) {
        const int64_t n = min_int64(columns.end - j, COLUMNS_AT_ONCE);
        const void *w = matmul_at(p->b.data, p->b.type, j * p->b.column_stride);
        for (int64_t i = 0; i < p->m; i += kernels->dot_rows) {
            const int64_t rows = min_int64(p->m - i, kernels->dot_rows);
            kernels->dot(kernels->rounds, rows, n, p->k, x + i * x_stride, x_stride, w, p->b.type, p->b.column_stride,
                         p->c + i * p->c_stride + j, p->c_stride, p->accumulate);
        }
        for (int64_t i = 0; i < p->m && p->bias; i++)
            for (int64_t q = j; q < j + n; q++) p->c[i * p->c_stride + q] += p->bias[q];
        if (p->activation || p->residual) kernels->finish(p, 0, j, p->m, n);
    }
}

/* ---- many rows ---- */

/* One slab of one block of C. Rows and columns are counted from the block's first. */
typedef struct slab {
    const matmul_problem *problem;
    const matmul_kernels *kernels;
    int64_t row, column, k; /* the block's first in C, and the slab's in A and B */
    int64_t depth, steps;   /* the slab's, in elements and in words */
    int32_t first, last;    /* of the block's slabs? */
} slab;

/* Packed words of A: (i, s) of the tile that begins at row i at words[i * steps + (row in tile) * row_stride + s *
 * step_stride]. */
typedef struct packed_a {
    const float *words;
    int64_t row_stride, step_stride;
} packed_a;

/* A is read in place if its elements along k are words already. */
static int reads_a_in_place(const matmul_problem *p, const matmul_kernels *kernels) {
    if (p->a.column_stride != 1) return 0;
    if (!kernels->pairs) return p->a.type == MATMUL_FLOAT32 && !kernels->rounds;
    return p->a.type == MATMUL_BFLOAT16 && p->a.row_stride % 2 == 0 && p->k % 2 == 0;
}

/* A by columns (dy^T) becomes panels (steps, tile_rows), anything else rows (rows, steps). */
static int packs_a_in_panels(const matmul_problem *p) { return p->a.row_stride == 1 && p->a.column_stride != 1; }

/* Row i goes to words[(i - rows.begin) * steps]; panels are padded to a whole one. */
static void pack_a(const slab *s, range rows, float *words) {
    const matmul_problem *p = s->problem;
    const void *from = matmul_at(p->a.data, p->a.type,
                                 (s->row + rows.begin) * p->a.row_stride + s->k * p->a.column_stride);
    if (packs_a_in_panels(p)) {
        enum {
            PANELS_AT_ONCE = 6
        }; /* whole cache lines of A, but fewer places to write to than L1 has ways: they may be 8 KiB apart */
        const int64_t height = s->kernels->tile_rows;
        for (int64_t i = 0; i < rows.end - rows.begin; i += PANELS_AT_ONCE * height)
            s->kernels->pack_lanes(s->kernels->rounds, matmul_at(from, p->a.type, i), p->a.type, 1, p->a.column_stride,
                                   min_int64(PANELS_AT_ONCE * height, rows.end - rows.begin - i), s->depth, height,
                                   words + i * s->steps);
        return;
    }
    for (int64_t i = 0; i < rows.end - rows.begin; i++)
        s->kernels->pack_row(s->kernels->rounds, matmul_at(from, p->a.type, i * p->a.row_stride), p->a.type,
                             p->a.column_stride, s->depth, words + i * s->steps);
}

/* Columns j go to words[(j - columns.begin) * steps], in panels (steps, width): as wide as a tile, the last as its
 * vectors. */
static void pack_b(const slab *s, range columns, float *words) {
    const matmul_problem *p = s->problem;
    const int64_t width = (int64_t)s->kernels->tile_vectors * s->kernels->lanes;
    for (int64_t j = columns.begin; j < columns.end; j += width) {
        const int64_t lanes = min_int64(width, columns.end - j);
        s->kernels->pack_lanes(
            s->kernels->rounds,
            matmul_at(p->b.data, p->b.type, s->k * p->b.row_stride + (s->column + j) * p->b.column_stride), p->b.type,
            p->b.column_stride, p->b.row_stride, lanes, s->depth, round_up(lanes, s->kernels->lanes),
            words + (j - columns.begin) * s->steps);
    }
}

static packed_a packed_a_of(const slab *s, int in_place, const float *words) {
    const matmul_problem *p = s->problem;
    if (in_place) return (packed_a){NULL, p->a.row_stride / (1 + s->kernels->pairs), 1};
    return packs_a_in_panels(p) ? (packed_a){words, 1, s->kernels->tile_rows} : (packed_a){words, s->steps, 1};
}

/* Lines of memory that will be packed next, asked for a few at a time while tiles are multiplied: packing then finds
   them in L2, and memory works at the same time as the multipliers. */
typedef struct stream {
    const char *at; /* row by row: the next line */
    int64_t row_bytes, stride, rows, column, lines_at_once;
} stream;

/* The part of a matrix from (i, j) on, to be asked for during `tiles` tiles; nothing if all of it may well be in L2. */
static stream stream_of(const matmul_matrix *matrix, int64_t elements, int64_t i, int64_t j, int64_t rows,
                        int64_t columns, int64_t tiles) {
    enum { L2_ELEMENTS = 1 << 18 };
    if (elements <= L2_ELEMENTS) return (stream){0};
    const int64_t size = matrix->type == MATMUL_BFLOAT16 ? 2 : 4;
    const char *first = matmul_at(matrix->data, matrix->type, i * matrix->row_stride + j * matrix->column_stride);
    stream s = {first, columns * size, matrix->row_stride * size, rows, 0, 0};
    if (matrix->column_stride != 1)
        s.row_bytes = rows * size, s.stride = matrix->column_stride * size, s.rows = columns;
    s.lines_at_once = (s.rows * (s.row_bytes / 64 + 1) + tiles - 1) / tiles;
    return s;
}

static void stream_ask(stream *s) {
    for (int64_t line = 0; line < s->lines_at_once && s->rows > 0; line++) {
        __builtin_prefetch(s->at + s->column, 0, 2);
        s->column += 64;
        if (s->column >= s->row_bytes) s->column = 0, s->at += s->stride, s->rows--;
    }
}

/* C's rows x (one panel of columns), with A's packed rows and B's packed panel. Bias and residual enter as what sums
   begin with and are added to, for nothing; only a residual that comes after an activation is left to `finish`. */
static void multiply_panel(const slab *s, range rows, packed_a a, range columns, const float *b, stream *next) {
    const matmul_problem *p = s->problem;
    const matmul_kernels *kernels = s->kernels;
    const int64_t n = columns.end - columns.begin, width = round_up(n, kernels->lanes),
                  vectors = width / kernels->lanes;
    const int64_t first_column = s->column + columns.begin;
    const int adds_residual = s->first && p->residual && !finishes(p);
    float bias[PANEL_COLUMNS_MAX] = {0},
          aside[TILE_ROWS_MAX * PANEL_COLUMNS_MAX]; /* (width), (m, width): kernels use whole vectors */
    if (s->first && p->bias) memcpy(bias, p->bias + first_column, (size_t)n * sizeof *bias);
    matmul_tile tile = {.steps = s->steps,
                        .a_row = a.row_stride,
                        .a_step = a.step_stride,
                        .b = b,
                        .b_step = width,
                        .bias = s->first && p->bias ? bias : NULL};
    for (int64_t i = rows.begin; i < rows.end; i += kernels->tile_rows) {
        const int64_t m = min_int64(kernels->tile_rows, rows.end - i);
        float *c = p->c + (s->row + i) * p->c_stride + first_column;
        const float *add = adds_residual                ? p->residual + (s->row + i) * p->residual_stride + first_column
                           : p->accumulate || !s->first ? c
                                                        : NULL;
        const int64_t add_stride = adds_residual ? p->residual_stride : p->c_stride;
        tile.a = a.words ? a.words + (i - rows.begin) * s->steps
                         : matmul_at(p->a.data, p->a.type, (s->row + i) * p->a.row_stride + s->k);
        stream_ask(next);
        if (n == width) {
            tile.add = add, tile.add_stride = add_stride, tile.c = c, tile.c_stride = p->c_stride;
            kernels->tile[m][vectors](&tile);
        } else {
            tile.add = NULL, tile.c = aside, tile.c_stride = width;
            kernels->tile[m][vectors](&tile);
            for (int64_t r = 0; r < m; r++)
                for (int64_t j = 0; j < n; j++)
                    c[r * p->c_stride + j] = aside[r * width + j] + (add ? add[r * add_stride + j] : 0.0f);
        }
        if (s->last && finishes(p)) kernels->finish(p, s->row + i, first_column, m, n);
    }
}

/* B is stationary, each thread has rows of C and streams its rows of A. */
static void multiply_by_rows(const slab *s, const crew *crew, int in_place, int64_t rows, int64_t columns,
                             float *stationary) {
    const int64_t panel = (int64_t)s->kernels->tile_vectors * s->kernels->lanes;
    const range to_pack = split(columns, panel, crew->thread, crew->n_threads),
                mine = split(rows, s->kernels->tile_rows, crew->thread, crew->n_threads);
    pack_b(s, to_pack, stationary + to_pack.begin * s->steps);
    pool_barrier(crew->pool);
    for (int64_t i = mine.begin; i < mine.end; i += CHUNK_ROWS) {
        const range chunk = {i, min_int64(i + CHUNK_ROWS, mine.end)};
        if (!in_place) pack_a(s, chunk, crew->streamed);
        const packed_a a = packed_a_of(s, in_place, crew->streamed);
        const int64_t left = min_int64(CHUNK_ROWS, mine.end - chunk.end),
                      tiles = count_groups(columns, panel) * count_groups(CHUNK_ROWS, s->kernels->tile_rows);
        stream next = stream_of(&s->problem->a, s->problem->m * s->problem->k, s->row + chunk.end, s->k, left, s->depth,
                                tiles);
        for (int64_t j = 0; j < columns; j += panel)
            multiply_panel(s, chunk, a, (range){j, min_int64(j + panel, columns)}, stationary + j * s->steps, &next);
    }
}

/* A is stationary, each thread has columns of C and streams its columns of B. */
static void multiply_by_columns(const slab *s, const crew *crew, int in_place, int64_t rows, int64_t columns,
                                float *stationary) {
    const int64_t panel = (int64_t)s->kernels->tile_vectors * s->kernels->lanes;
    const range to_pack = split(rows, s->kernels->tile_rows, crew->thread, crew->n_threads),
                mine = split(columns, s->kernels->lanes, crew->thread, crew->n_threads);
    if (!in_place) {
        pack_a(s, to_pack, stationary + to_pack.begin * s->steps);
        pool_barrier(crew->pool);
    }
    const packed_a a = packed_a_of(s, in_place, stationary);
    for (int64_t j = mine.begin; j < mine.end; j += panel) {
        const range part = {j, min_int64(j + panel, mine.end)};
        pack_b(s, part, crew->streamed);
        stream next = stream_of(&s->problem->b, s->problem->k * s->problem->n, s->k, s->column + part.end, s->depth,
                                min_int64(panel, mine.end - part.end), count_groups(rows, s->kernels->tile_rows));
        multiply_panel(s, (range){0, rows}, a, part, crew->streamed, &next);
    }
}

/* Whichever leaves the busiest thread less to do; if that is equal, the smaller operand is the stationary one. */
static int goes_by_rows(const matmul_problem *p, const matmul_kernels *kernels, int32_t n_threads) {
    const range rows = split(p->m, kernels->tile_rows, 0, n_threads),
                columns = split(p->n, kernels->lanes, 0, n_threads);
    const int64_t by_rows = round_up(rows.end, kernels->tile_rows) * round_up(p->n, kernels->lanes);
    const int64_t by_columns = round_up(p->m, kernels->tile_rows) * round_up(columns.end, kernels->lanes);
    if (by_rows * 16 < by_columns * 15) return 1;
    if (by_columns * 16 < by_rows * 15) return 0;
    return p->n <= p->m;
}

static void multiply_many_rows(const matmul_problem *p, const matmul_kernels *kernels, const crew *crew) {
    const int64_t per_word = 1 + kernels->pairs, steps = (p->k + per_word - 1) / per_word;
    const int64_t slabs = steps > SLAB_STEPS ? (steps + SLAB_STEPS - 1) / SLAB_STEPS : 1;
    const int64_t slab_depth = round_up((steps + slabs - 1) / slabs, 16)
                               * per_word; /* equal slabs, in whole cache lines */
    const int in_place = reads_a_in_place(p, kernels), by_rows = goes_by_rows(p, kernels, crew->n_threads);
    const int64_t block_rows = by_rows ? BLOCK_ROWS : crew->stationary_rows,
                  block_columns = by_rows ? crew->stationary_columns : BLOCK_COLUMNS;
    int turn = 0;
    for (int64_t row = 0; row < p->m; row += block_rows) {
        for (int64_t column = 0; column < p->n; column += block_columns) {
            const int64_t rows = min_int64(block_rows, p->m - row), columns = min_int64(block_columns, p->n - column);
            int64_t k = 0;
            do { /* once for k = 0 too: C = 0, and the epilogue */
                slab s = {
                    p, kernels, row, column, k, min_int64(slab_depth, p->k - k), 0, k == 0, k + slab_depth >= p->k};
                s.steps = (s.depth + per_word - 1) / per_word;
                if (by_rows) multiply_by_rows(&s, crew, in_place, rows, columns, crew->stationary[turn]);
                else multiply_by_columns(&s, crew, in_place, rows, columns, crew->stationary[turn]);
                turn = !turn;
                k += slab_depth;
            } while (k < p->k);
        }
    }
}

/* ---- the three ways in ---- */

static void run(const matmul_context *context, const matmul_problem *p, const crew *crew) {
    const matmul_kernels *kernels = context->kernels[p->precision];
    if (p->m > 0 && p->n > 0) {
        if (is_few_rows(p, kernels)) multiply_few_rows(p, kernels, crew);
        else multiply_many_rows(p, kernels, crew);
    }
    pool_barrier(crew->pool);
}

void matmul_run_team(matmul_context *context, int32_t thread, const matmul_problem *problem) {
    float *own = context->own + thread * (int64_t)OWN_WORDS;
    const crew crew = {context->pool,
                       thread,
                       pool_count_threads(context->pool),
                       STATIONARY_ROWS,
                       STATIONARY_COLUMNS,
                       {context->stationary[0], context->stationary[1]},
                       own,
                       own + STREAMED_WORDS};
    run(context, problem, &crew);
}

void matmul_run_solo(matmul_context *context, int32_t thread, const matmul_problem *problem) {
    float *own = context->own + thread * (int64_t)OWN_WORDS, *rest = own + STREAMED_WORDS;
    const crew crew = {NULL, 0, 1, SOLO_STATIONARY, SOLO_STATIONARY, {rest, rest}, own, rest};
    run(context, problem, &crew);
}

typedef struct call {
    matmul_context *context;
    const matmul_problem *problem;
} call;

static void run_call(void *arg, int32_t thread, int32_t n_threads) {
    (void)n_threads;
    const call *call = arg;
    matmul_run_team(call->context, thread, call->problem);
}

void matmul_run(matmul_context *context, const matmul_problem *problem) {
    call call = {context, problem};
    pool_run(context->pool, run_call, &call);
}

/* ---- the oracle ---- */

static double element(const matmul_matrix *matrix, int64_t i, int64_t j, int32_t precision) {
    const void *at = matmul_at(matrix->data, matrix->type, i * matrix->row_stride + j * matrix->column_stride);
    if (matrix->type == MATMUL_BFLOAT16) return bfloat16_to_float(*(const uint16_t *)at);
    const float value = *(const float *)at;
    return precision == MATMUL_BFLOAT16 ? bfloat16_to_float(bfloat16_from_float(value)) : value;
}

void matmul_run_naive(const matmul_problem *p) {
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            float *c = p->c + i * p->c_stride + j,
                  *pre = p->pre_activation ? p->pre_activation + i * p->pre_activation_stride + j : NULL;
            double v = p->accumulate ? *c : 0.0;
            for (int64_t k = 0; k < p->k; k++)
                v += element(&p->a, i, k, p->precision) * element(&p->b, k, j, p->precision);
            if (p->bias) v += p->bias[j];
            if (p->activation && p->backward) {
                v *= activation_slope(p->activation, *pre);
            } else if (p->activation) {
                if (pre) *pre = (float)v;
                v = activation_value(p->activation, v);
            }
            if (p->residual) v += p->residual[i * p->residual_stride + j];
            *c = (float)v;
        }
    }
}
