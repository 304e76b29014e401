/* model.h: a GPT's parameters and buffers, and its forward and backward passes. See model.c. */

#ifndef SAMPAN_MODEL_H
#define SAMPAN_MODEL_H

#include "ops/ops.h"
#include "parameters.h"
#include "parts.h"
#include "platform/memory.h"
#include "sampan.h"

#define PARAMETER_FIELD(field, name, rows, columns, present) parameter *field; /* NULL where absent */
typedef struct block_parameters {
    PARAMETERS_OF_BLOCK(PARAMETER_FIELD)
} block_parameters;

typedef struct model {
    sampan_config config; /* without its texts and arrays, which are the caller's */
    parts parts;
    const ops *op;
    parameter *table; /* (count) */
    int64_t count;
    PARAMETERS_BEFORE(PARAMETER_FIELD)
    block_parameters *h; /* (n_layer) */
    PARAMETERS_AFTER(PARAMETER_FIELD)
    parameter *head;         /* lm_head, or wte where tied */
    hidden_matrix *matrices; /* (n_matrices): what an optimizer of matrices updates; none with another */
    int64_t n_matrices;
    float *cosine, *sine; /* (block_size, D / 2) each; NULL unless rotary */
    int64_t floats;       /* of all parameters, each padded to 64 bytes */
    float *gradients;     /* (floats): all of them; NULL if not training */
    memory_block tables, weights, gradient_memory, moments;
} model;

/* Fills in the tables: names, sizes, and the optimizer of each parameter; `parts` are those of `config`. Returns 0, or 1
   without memory. */
int32_t model_describe(model *m, const sampan_config *config, const parts *parts);

/* Bytes of the described model by purpose (weights, gradients, optimizer); -1 where they cannot be counted. */
void model_count_bytes(model *m, int64_t threads, sampan_memory_sizes *sizes);

/* Allocates the described model; its weights are zero. 0; or 1 with *bytes that were refused. */
int32_t model_allocate(model *m, const sampan_config *config, const ops *op, int64_t *bytes);
void model_destroy(model *m);

/* Floats of the optimizer's scratch for each thread. */
int64_t model_scratch_stride(const model *m);

static inline int32_t model_trains(const model *m) { return m->parts.optimizer != OPTIMIZER_NONE; }

/* ---- buffers of the passes, in one piece of memory ---- */

#define BUFFER_FIELD(field, floats) float *field;
typedef struct block_buffers {
    BUFFERS_OF_BLOCK(BUFFER_FIELD)
} block_buffers;

typedef struct buffers {
    const model *m;
    int64_t B, T, S; /* room for B * T rows, and for attention over S keys */
    int64_t chunk;   /* rows of logits at a time; 0: no losses */
    int64_t threads;
    int32_t backward;
    block_buffers
        *h; /* (n_layer): each its own for a backward pass (only x with gradient_checkpointing), else one set */
    BUFFERS_SHARED(BUFFER_FIELD)
    memory_block memory;
} buffers;

/* Buffers for B sequences of T tokens: to train or to evaluate, and to decode with a cache of all positions. */
buffers buffers_of_batch(const model *m, int64_t B, int64_t T, int64_t threads);
buffers buffers_of_session(const model *m, int64_t B, int64_t T, int64_t threads);

int64_t buffers_count_bytes(buffers *b);              /* -1: cannot be counted */
int32_t buffers_allocate(buffers *b, int64_t *bytes); /* 0; or 1 with *bytes that were refused */
void buffers_destroy(buffers *b);

/* ---- passes ---- */

/* Keys and values of all layers in slots for B sequences: (n_layer, 2, B, KV, block_size, D), in the products'
   precision. */
typedef struct cache {
    int64_t B;
    int32_t type; /* MATMUL_FLOAT32 | MATMUL_BFLOAT16 */
    memory_block memory;
} cache;

int64_t cache_count_bytes(const model *m, int64_t B); /* -1: cannot be counted */

/* MATMUL_...: of the products, and of what a cache keeps */
int32_t model_precision(const model *m);

/* One micro-batch, or a piece of sequences in decoding. */
typedef struct pass {
    const model *m;
    buffers *a;
    const cache *cache;           /* NULL: the sequences begin here */
    places at;                    /* where they are in the cache */
    const int32_t *ids, *targets; /* (B, T) each; targets NULL: no loss */
    const int32_t *first; /* (B, T): where the document of a token begins; NULL: the attention sees all before */
    int64_t B, T;
    int32_t backward;
    float dropout;        /* 0 in evaluation */
    uint64_t dropout_key; /* of (seed, step, micro-batch) */
    float *logits;        /* (B, V): those after each sequence's last token, or NULL */
} pass;

/* By every thread of a region. */
void model_forward(const team *t, const pass *p);
void model_backward(const team *t, const pass *p);

#endif
