/* parameters.h: the two tables that the engine is built from: its parameters, and the buffers of its passes. Everything
   that is allocated, read, written, counted or named comes from here.

   Where a table is used, the letters of ops/ops.h are variables, and so are m (the model) and c (its sampan_config). FC
   is the rows of c_fc: F, or 2 F where gate and up are in one matrix. */

#ifndef SAMPAN_PARAMETERS_H
#define SAMPAN_PARAMETERS_H

// clang-format off

/* X(field, name, rows, columns, present), in the order of the package's `parameters`; columns 0: a vector. */

#define PARAMETERS_BEFORE(X) \
    X(wte,               "wte.weight",           V,                C,     1) \
    X(wpe,               "wpe.weight",           c->block_size,    C,     m->parts.positions == POSITIONS_LEARNED)

#define PARAMETERS_OF_BLOCK(X) \
    X(ln_1_weight,       "ln_1.weight",          C,                0,     1) \
    X(ln_1_bias,         "ln_1.bias",            C,                0,     c->norm_bias) \
    X(c_attn_weight,     "attn.c_attn.weight",   (H + 2 * KV) * D, C,     1) \
    X(c_attn_bias,       "attn.c_attn.bias",     (H + 2 * KV) * D, 0,     c->qkv_bias) \
    X(q_norm_weight,     "attn.q_norm.weight",   D,                0,     c->qk_norm) \
    X(k_norm_weight,     "attn.k_norm.weight",   D,                0,     c->qk_norm) \
    X(attn_proj_weight,  "attn.c_proj.weight",   C,                H * D, 1) \
    X(attn_proj_bias,    "attn.c_proj.bias",     C,                0,     c->attn_proj_bias) \
    X(ln_2_weight,       "ln_2.weight",          C,                0,     1) \
    X(ln_2_bias,         "ln_2.bias",            C,                0,     c->norm_bias) \
    X(c_fc_weight,       "mlp.c_fc.weight",      FC,               C,     1) \
    X(c_fc_bias,         "mlp.c_fc.bias",        FC,               0,     c->mlp_bias) \
    X(mlp_proj_weight,   "mlp.c_proj.weight",    C,                F,     1) \
    X(mlp_proj_bias,     "mlp.c_proj.bias",      C,                0,     c->mlp_bias)

#define PARAMETERS_AFTER(X) \
    X(ln_f_weight,       "ln_f.weight",          C,                0,     1) \
    X(ln_f_bias,         "ln_f.bias",            C,                0,     c->norm_bias) \
    X(lm_head,           "lm_head.weight",       V,                C,     !c->tie_word_embeddings)

enum { PARAMETERS_MOST_OF_BLOCK = 14, PARAMETERS_MOST_OTHERS = 5 };

/* X(field, floats). M = B * T rows; the attention sees S keys; `backward`: there will be a backward pass. */

#define BUFFERS_OF_BLOCK(X) \
    X(x,           M * C)                              /* what enters the block: the residual stream */ \
    X(ln_1,        M * C) \
    X(ln_1_stats,  M * 2) \
    X(qkv,         M * (H + 2 * KV) * D)               /* after head norms and rotation */ \
    X(qk_raw,      c->qk_norm ? M * (H + KV) * D : 0)  /* before them */ \
    X(qk_stats,    c->qk_norm ? M * (H + KV) : 0) \
    X(lse,         M * H) \
    X(y,           M * H * D)                          /* attention's output */ \
    X(x_mid,       M * C)                              /* the residual stream after attention */ \
    X(ln_2,        M * C) \
    X(ln_2_stats,  M * 2) \
    X(fc,          M * FC)                             /* before the activation; gate and up */ \
    X(act,         M * F)                              /* after it */

#define BUFFERS_SHARED(X) \
    X(x_out,       M * C)                              /* what leaves the last block */ \
    X(ln_f,        M * C) \
    X(ln_f_stats,  M * 2) \
    X(losses,      M) \
    X(first,       c->document_mask ? M : 0)           /* int32: where the document of a token begins */ \
    X(last,        B * C)                              /* the last row of each sequence */ \
    X(projected,   c->dropout > 0 && backward ? M * C : 0)  /* a projection before its dropout, and its gradient */ \
    X(logits,      chunk * V)                          /* of `chunk` rows at a time; then their gradient */ \
    X(scratch,     threads * attention_scratch(S)) \
    X(dx,          backward ? M * C : 0)               /* gradients, shared by the blocks: of the residual stream, */ \
    X(dln,         backward ? M * C : 0)               /* of a norm's output, */ \
    X(dqkv,        backward ? M * (H + 2 * KV) * D : 0) \
    X(dy,          backward ? M * H * D : 0) \
    X(dfc,         backward ? M * FC : 0) \
    X(dact,        backward && c->gated ? M * F : 0)

// clang-format on

#endif
