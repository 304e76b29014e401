/* model.h: a GPT's parameters and activations, and its forward and backward passes. See model.c. */

#ifndef SAMPAN_MODEL_H
#define SAMPAN_MODEL_H

#include "platform/memory.h"
#include "ops/ops.h"
#include "sampan.h"

/* ---- parameters ---- */

/* One table, in the order of model.py's; api.c hands it to the caller, who checks it against that one.
   X(field, name, rows, columns, present); columns 0: a vector. The letters are those of ops.h; SwiGLU has gate and up
   in one matrix. */

// clang-format off
#define PARAMETERS_BEFORE(X) \
    X(wte,               "wte.weight",          V,               C,     1) \
    X(wpe,               "wpe.weight",          c->block_size,   C,     gpt2)

#define PARAMETERS_OF_BLOCK(X) \
    X(ln_1_weight,       "ln_1.weight",         C,               0,     1) \
    X(ln_1_bias,         "ln_1.bias",           C,               0,     gpt2 && c->bias) \
    X(c_attn_weight,     "attn.c_attn.weight",  (H + 2 * KV) * D, C,    1) \
    X(c_attn_bias,       "attn.c_attn.bias",    (H + 2 * KV) * D, 0,    c->bias) \
    X(q_norm_weight,     "attn.q_norm.weight",  D,               0,     c->family == SAMPAN_QWEN3) \
    X(k_norm_weight,     "attn.k_norm.weight",  D,               0,     c->family == SAMPAN_QWEN3) \
    X(attn_proj_weight,  "attn.c_proj.weight",  C,               H * D, 1) \
    X(attn_proj_bias,    "attn.c_proj.bias",    C,               0,     c->bias) \
    X(ln_2_weight,       "ln_2.weight",         C,               0,     1) \
    X(ln_2_bias,         "ln_2.bias",           C,               0,     gpt2 && c->bias) \
    X(c_fc_weight,       "mlp.c_fc.weight",     gpt2 ? F : 2 * F, C,    1) \
    X(c_fc_bias,         "mlp.c_fc.bias",       gpt2 ? F : 2 * F, 0,    c->bias && c->family != SAMPAN_QWEN3) \
    X(mlp_proj_weight,   "mlp.c_proj.weight",   C,               F,     1) \
    X(mlp_proj_bias,     "mlp.c_proj.bias",     C,               0,     c->bias && c->family != SAMPAN_QWEN3)

#define PARAMETERS_AFTER(X) \
    X(ln_f_weight,       "ln_f.weight",         C,               0,     1) \
    X(ln_f_bias,         "ln_f.bias",           C,               0,     gpt2 && c->bias) \
    X(lm_head,           "lm_head.weight",      V,               C,     !c->tie_word_embeddings)
// clang-format on

#define PARAMETER_FIELD(field, name, rows, columns, present) parameter *field;      /* NULL where absent */
typedef struct block_parameters {
    PARAMETERS_OF_BLOCK(PARAMETER_FIELD)
} block_parameters;

typedef struct model {
    sampan_config config;
    const ops *op;
    parameter *table;                 /* (count) */
    int64_t count;
    PARAMETERS_BEFORE(PARAMETER_FIELD)
    block_parameters *h;              /* (n_layer) */
    PARAMETERS_AFTER(PARAMETER_FIELD)
    parameter *head;                  /* lm_head, or wte where tied */
    hidden_matrix *matrices;          /* (n_matrices): what Muon updates; none with AdamW */
    int64_t n_matrices;
    float *cosine, *sine;             /* (block_size, D/2) each; llama, qwen3 */
    int64_t floats;                   /* of all parameters, each padded to 64 bytes: the length of these: */
    float *gradients;                 /* all of them in one piece; NULL if not training */
    memory_block tables, memory;
} model;

/* Fills in everything of `m` but the values, which are zero. 0; or 1 with *needs = bytes that were refused (-1: too
 * large to count). */
int32_t model_create(model *m, const sampan_config *config, const ops *op, int64_t *needs);
void model_destroy(model *m);

/* Whether Muon updates it: a matrix of a block, where the optimizer is Muon. */
int32_t model_is_muons(const model *m, const parameter *p);

/* ---- activations ---- */

/* One piece of memory, computed from (B, T).
   X(field, floats). M = B * T rows. */

// clang-format off
#define ACTIVATIONS_OF_BLOCK(X) \
    X(x,           M * C)                         /* what enters the block: the residual stream */ \
    X(ln_1,        M * C) \
    X(ln_1_stats,  M * 2) \
    X(qkv,         M * (H + 2 * KV) * D)          /* after head norms and rotation */ \
    X(qk_raw,      qwen3 ? M * (H + KV) * D : 0)  /* before them */ \
    X(qk_stats,    qwen3 ? M * (H + KV) : 0) \
    X(lse,         M * H) \
    X(y,           M * H * D)                     /* attention's output */ \
    X(x_mid,       M * C)                         /* the residual stream after attention */ \
    X(ln_2,        M * C) \
    X(ln_2_stats,  M * 2) \
    X(fc,          M * (gpt2 ? F : 2 * F))        /* before GELU; gate and up */ \
    X(act,         M * F)                         /* after GELU or SwiGLU */

#define ACTIVATIONS_SHARED(X) \
    X(x_out,       M * C)                         /* what leaves the last block */ \
    X(ln_f,        M * C) \
    X(ln_f_stats,  M * 2) \
    X(losses,      M) \
    X(last,        B * C)                         /* the last row of each sequence */ \
    X(projected,   drops ? M * C : 0)             /* a projection before its dropout, and its gradient */ \
    X(logits,      chunk * V)                     /* of `chunk` rows at a time; then their gradient */ \
    X(scratch,     n_threads * attention_scratch(S)) \
    X(dx,          backward ? M * C : 0)          /* gradients, shared by the blocks: of the residual stream, */ \
    X(dln,         backward ? M * C : 0)          /* of a norm's output, */ \
    X(dqkv,        backward ? M * (H + 2 * KV) * D : 0) \
    X(dy,          backward ? M * H * D : 0) \
    X(dfc,         backward ? M * (gpt2 ? F : 2 * F) : 0) \
    X(dact,        backward && !gpt2 ? M * F : 0)
// clang-format on

#define ACTIVATION_FIELD(field, floats) float *field;
typedef struct block_activations {
    ACTIVATIONS_OF_BLOCK(ACTIVATION_FIELD)
} block_activations;

typedef struct activations {
    int64_t B, T;                     /* room for B * T rows, and for attention over S keys */
    int64_t S, chunk;
    block_activations
        *h; /* (n_layer): each its own for a backward pass, or with gradient_checkpointing its own x; else one set */
    ACTIVATIONS_SHARED(ACTIVATION_FIELD)
    memory_block blocks, memory;
} activations;

/* 0; or 1 with *needs as above. */
int32_t activations_create(activations *a, const model *m, int64_t B, int64_t T, int64_t S, int64_t n_threads,
                           int64_t logit_rows, int32_t backward, int64_t *needs);
void activations_destroy(activations *a);

/* ---- passes ---- */

/* Keys and values of all layers for B sequences: (n_layer, 2, B, KV, block_size, D), in the precision of the products.
 */
typedef struct cache {
    int64_t B, position;
    int32_t type; /* MATMUL_FLOAT32 | MATMUL_BFLOAT16 */
    memory_block memory;
} cache;

/* One micro-batch, or a piece of sequences in decoding. */
typedef struct pass {
    const model *m;
    activations *a;
    cache *cache; /* NULL: the sequences begin here */
    const int32_t *ids, *targets; /* (B, T) each; targets NULL: no loss */
    int64_t B, T;
    int32_t backward;
    float dropout; /* 0 in evaluation */
    uint64_t dropout_key; /* of (seed, step, micro-batch) */
    float *logits; /* (B, V): those after each sequence's last token, or NULL */
} pass;

/* By every thread of a region. */
void model_forward(const team *t, const pass *p);
void model_backward(const team *t, const pass *p);

#endif
