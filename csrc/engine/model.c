/* model.c: the GPT. The forward pass is torch_model.py's, call by call; the backward pass is the same calls in reverse.

   The three families differ in the norm (LayerNorm, RMSNorm), in positions (learned, rotary), in the MLP (GELU, SwiGLU)
   and, for qwen3, in normed queries and keys. What each op computes is in ops.h; buffers and parameters, with their
   sizes, are the tables of model.h.

   It holds no optimizer, API or error messages: those are api.c's. */

#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The letters of ops.h, from a config `c`. */
#define MODEL_SIZES \
    const int64_t C = c->n_embd, H = c->n_head, KV = c->n_kv_head, D = c->head_dim, F = c->n_inner, V = c->vocab_size; \
    const int32_t gpt2 = c->family == SAMPAN_GPT2; \
    (void)C; \
    (void)H; \
    (void)KV; \
    (void)D; \
    (void)F; \
    (void)V; \
    (void)gpt2

/* Places in a block whose dropout masks are drawn separately. */
enum { DROP_EMBEDDING, DROP_ATTENTION, DROP_ATTENTION_PROJECTION, DROP_MLP_PROJECTION, DROP_PLACES };

static dropout pass_dropout(const pass *p, int64_t layer, int32_t place) {
    return (dropout){p->dropout, dropout_key(p->dropout_key, (uint64_t)(layer * DROP_PLACES + place))};
}

/* ---- forward ---- */

/* The columns of qkv (M, (H + 2 KV) * D) are q, k, v, each by heads. */
static attention attention_of_batch(const pass *p, int64_t layer) {
    const sampan_config *c = &p->m->config;
    MODEL_SIZES;
    block_activations *a = &p->a->h[layer];
    int64_t width = (H + 2 * KV) * D;
    return (attention){.B = p->B,
                       .T = p->T,
                       .S = p->T,
                       .H = H,
                       .KV = KV,
                       .D = D,
                       .q = a->qkv,
                       .q_batch = p->T * width,
                       .q_row = width,
                       .k = matmul_rows(a->qkv + H * D, width),
                       .v = matmul_rows(a->qkv + (H + KV) * D, width),
                       .kv_batch = p->T * width,
                       .kv_head = D,
                       .y = a->y,
                       .lse = p->backward ? a->lse : NULL,
                       .scratch = p->a->scratch,
                       .scratch_stride = attention_scratch(p->a->S),
                       .drop = pass_dropout(p, layer, DROP_ATTENTION),
                       .dy = p->a->dy,
                       .dqkv = p->a->dqkv};
}

/* Puts k and v of the pass behind what the cache holds; the attention over all of it. */
static attention attention_of_cache(const team *t, const pass *p, int64_t layer) {
    const sampan_config *c = &p->m->config;
    MODEL_SIZES;
    cache *kept = p->cache;
    int64_t S = c->block_size, element = kept->type == MATMUL_BFLOAT16 ? 2 : 4;
    char *k = kept->memory.data + layer * 2 * kept->B * KV * S * D * element, *v = k + kept->B * KV * S * D * element;
    p->m->op->cache_append(t, k, v, kept->type, p->a->h[layer].qkv, p->B, p->T, H, KV, D, S, kept->position);
    attention a = attention_of_batch(p, layer);
    a.S = kept->position + p->T;
    a.k = (matmul_matrix){k, D, 1, kept->type};
    a.v = (matmul_matrix){v, D, 1, kept->type};
    a.kv_batch = KV * S * D;
    a.kv_head = S * D;
    return a;
}

/* out (M, C) = residual + dropout(x w^T + bias) */
static void project(const team *t, const pass *p, float *out, const float *x, const parameter *weight,
                    const parameter *bias, const float *residual, int64_t layer, int32_t place) {
    const ops *op = p->m->op;
    int64_t M = p->B * p->T;
    if (p->dropout == 0.0f) {
        op->linear_forward(t, out, x, weight, bias, residual, M);
    } else {
        op->linear_forward(t, p->a->projected, x, weight, bias, NULL, M);
        op->dropout_forward(t, out, p->a->projected, residual, M, weight->rows, pass_dropout(p, layer, place));
    }
}

/* out: the residual stream after the block */
static void block_forward(const team *t, const pass *p, int64_t layer, float *out) {
    const sampan_config *c = &p->m->config;
    const block_parameters *w = &p->m->h[layer];
    const block_activations *a = &p->a->h[layer];
    const ops *op = p->m->op;
    MODEL_SIZES;
    const int64_t B = p->B, T = p->T, M = B * T, start = p->cache ? p->cache->position : 0;

    op->norm_forward(t, a->ln_1, a->ln_1_stats, a->x, w->ln_1_weight, w->ln_1_bias, M, C, gpt2, c->norm_eps);
    op->linear_forward(t, a->qkv, a->ln_1, w->c_attn_weight, w->c_attn_bias, NULL, M);
    if (w->q_norm_weight)
        op->head_norm_forward(t, a->qkv, a->qk_raw, a->qk_stats, w->q_norm_weight, w->k_norm_weight, M, H, KV, D,
                              c->norm_eps);
    if (!gpt2) op->rotary_forward(t, a->qkv, p->m->cosine, p->m->sine, B, T, H, KV, D, start);
    attention attend = p->cache ? attention_of_cache(t, p, layer) : attention_of_batch(p, layer);
    op->attention_forward(t, &attend);
    project(t, p, a->x_mid, a->y, w->attn_proj_weight, w->attn_proj_bias, a->x, layer, DROP_ATTENTION_PROJECTION);

    op->norm_forward(t, a->ln_2, a->ln_2_stats, a->x_mid, w->ln_2_weight, w->ln_2_bias, M, C, gpt2, c->norm_eps);
    if (gpt2) {
        op->linear_gelu_forward(t, a->act, a->fc, a->ln_2, w->c_fc_weight, w->c_fc_bias, M);
    } else {
        op->linear_forward(t, a->fc, a->ln_2, w->c_fc_weight, w->c_fc_bias, NULL, M);
        op->swiglu_forward(t, a->act, a->fc, M, F);
    }
    project(t, p, out, a->act, w->mlp_proj_weight, w->mlp_proj_bias, a->x_mid, layer, DROP_MLP_PROJECTION);
}

void model_forward(const team *t, const pass *p) {
    const model *m = p->m;
    const sampan_config *c = &m->config;
    activations *a = p->a;
    const ops *op = m->op;
    MODEL_SIZES;
    const int64_t B = p->B, T = p->T, start = p->cache ? p->cache->position : 0;
    int64_t M = B * T;

    float *x = a->h[0].x;
    op->embedding_forward(t, x, p->ids, m->wte, m->wpe, B, T, C, start);
    if (p->dropout > 0.0f) op->dropout_forward(t, x, x, NULL, M, C, pass_dropout(p, 0, DROP_EMBEDDING));
    for (int64_t layer = 0; layer < c->n_layer; layer++) {
        x = layer + 1 < c->n_layer ? a->h[layer + 1].x : a->x_out;
        block_forward(t, p, layer, x);
    }
    if (p->logits) { /* only the last token of each sequence has a successor to choose */
        op->last_rows(t, a->last, x, B, T, C);
        x = a->last;
        M = B;
    }
    if (p->logits || p->targets)
        op->norm_forward(t, a->ln_f, a->ln_f_stats, x, m->ln_f_weight, m->ln_f_bias, M, C, gpt2, c->norm_eps);
    if (p->logits) op->linear_forward(t, p->logits, a->ln_f, m->head, NULL, NULL, M);
    if (p->targets)
        op->loss_forward_backward(t, a->losses, p->backward ? a->dln : NULL, a->logits, a->chunk, a->ln_f, p->targets,
                                  m->head, M);
}

/* ---- backward ---- */

/* out = residual + dropout(x w^T + bias):  the gradient of the product is dout with the same elements dropped; the
   residual's is dout. dx, and through GELU: see linear_backward in ops.h. */
static void project_backward(const team *t, const pass *p, float *dx, const float *dout, const float *x,
                             const float *pre, parameter *weight, parameter *bias, int64_t layer, int32_t place) {
    const ops *op = p->m->op;
    int64_t M = p->B * p->T;
    if (p->dropout > 0.0f) {
        op->dropout_forward(t, p->a->projected, dout, NULL, M, weight->rows, pass_dropout(p, layer, place));
        dout = p->a->projected;
    }
    op->linear_backward(t, dx, dout, x, pre, weight, bias, M);
}

/* g->dx holds the gradient of the residual stream after the block, and then that of the stream before it. */
static void block_backward(const team *t, const pass *p, int64_t layer) {
    const sampan_config *c = &p->m->config;
    const block_parameters *w = &p->m->h[layer];
    const block_activations *a = &p->a->h[layer];
    const activations *g = p->a;
    const ops *op = p->m->op;
    MODEL_SIZES;
    const int64_t B = p->B, T = p->T, M = B * T;

    if (gpt2) {
        project_backward(t, p, g->dfc, g->dx, a->act, a->fc, w->mlp_proj_weight, w->mlp_proj_bias, layer,
                         DROP_MLP_PROJECTION);
    } else {
        project_backward(t, p, g->dact, g->dx, a->act, NULL, w->mlp_proj_weight, w->mlp_proj_bias, layer,
                         DROP_MLP_PROJECTION);
        op->swiglu_backward(t, g->dfc, g->dact, a->fc, M, F);
    }
    op->linear_backward(t, g->dln, g->dfc, a->ln_2, NULL, w->c_fc_weight, w->c_fc_bias, M);
    op->norm_backward(t, g->dx, g->dln, a->x_mid, a->ln_2_stats, w->ln_2_weight, w->ln_2_bias, M, C, gpt2);

    project_backward(t, p, g->dy, g->dx, a->y, NULL, w->attn_proj_weight, w->attn_proj_bias, layer,
                     DROP_ATTENTION_PROJECTION);
    attention attend = attention_of_batch(p, layer);
    op->attention_backward(t, &attend);
    if (!gpt2) op->rotary_backward(t, g->dqkv, p->m->cosine, p->m->sine, B, T, H, KV, D);
    if (w->q_norm_weight)
        op->head_norm_backward(t, g->dqkv, a->qk_raw, a->qk_stats, w->q_norm_weight, w->k_norm_weight, M, H, KV, D);
    op->linear_backward(t, g->dln, g->dqkv, a->ln_1, NULL, w->c_attn_weight, w->c_attn_bias, M);
    op->norm_backward(t, g->dx, g->dln, a->x, a->ln_1_stats, w->ln_1_weight, w->ln_1_bias, M, C, gpt2);
}

/* After model_forward with `backward`, which has left the gradient of ln_f in a->dln. */
void model_backward(const team *t, const pass *p) {
    const model *m = p->m;
    const sampan_config *c = &m->config;
    activations *a = p->a;
    const ops *op = m->op;
    MODEL_SIZES;
    const int64_t B = p->B, T = p->T, M = B * T;

    op->zero(t, a->dx, M * C);
    op->norm_backward(t, a->dx, a->dln, a->x_out, a->ln_f_stats, m->ln_f_weight, m->ln_f_bias, M, C, gpt2);
    for (int64_t layer = c->n_layer - 1; layer >= 0; layer--) {
        if (c->gradient_checkpointing && layer < c->n_layer - 1)
            block_forward(t, p, layer, a->x_out); /* again; x_out has been used */
        block_backward(t, p, layer);
    }
    if (p->dropout > 0.0f) op->dropout_forward(t, a->dx, a->dx, NULL, M, C, pass_dropout(p, 0, DROP_EMBEDDING));
    op->embedding_backward(t, a->dx, p->ids, m->wte, m->wpe, t->fresh && m->head != m->wte, B, T, C);
}

/* ---- parameters ---- */

static void model_add_parameter(model *m, parameter **field, int64_t layer, const char *name, int64_t rows,
                                int64_t columns) {
    parameter *p = &m->table[m->count++];
    if (layer >= 0) snprintf(p->name, sizeof p->name, "h.%lld.%s", (long long)layer, name);
    else snprintf(p->name, sizeof p->name, "%s", name);
    p->rows = rows;
    p->columns = columns;
    p->size = rows * (columns ? columns : 1);
    *field = p;
}

static void model_add_matrix(model *m, parameter *of, int64_t first_row, int64_t rows) {
    m->matrices[m->n_matrices++] = (hidden_matrix){of, first_row, rows};
}

/* Every linear layer of every block by itself, as model.py's Param.pieces. */
static void model_list_matrices(model *m) {
    const sampan_config *c = &m->config;
    MODEL_SIZES;
    for (int64_t layer = 0; layer < c->n_layer; layer++) {
        const block_parameters *w = &m->h[layer];
        model_add_matrix(m, w->c_attn_weight, 0, H * D); /* q */
        model_add_matrix(m, w->c_attn_weight, H * D, KV * D); /* k */
        model_add_matrix(m, w->c_attn_weight, (H + KV) * D, KV * D); /* v */
        model_add_matrix(m, w->attn_proj_weight, 0, C);
        model_add_matrix(m, w->c_fc_weight, 0, F); /* gate */
        if (!gpt2) model_add_matrix(m, w->c_fc_weight, F, F); /* up */
        model_add_matrix(m, w->mlp_proj_weight, 0, C);
    }
}

int32_t model_is_muons(const model *m, const parameter *p) {
    return m->n_matrices > 0 && p->columns && p >= m->matrices[0].of && p <= m->matrices[m->n_matrices - 1].of;
}

/* cos and sin of every position's angles, in double, as model.py's rotary_tables */
static void model_fill_rotary(model *m) {
    const sampan_config *c = &m->config;
    int64_t half = c->head_dim / 2;
    for (int64_t s = 0; s < c->block_size; s++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)s * c->rotary_frequencies[i];
            m->cosine[s * half + i] = (float)cos(angle);
            m->sine[s * half + i] = (float)sin(angle);
        }
}

int32_t model_create(model *m, const sampan_config *config, const ops *op, int64_t *needs) {
    *m = (model){.config = *config, .op = op};
    const sampan_config *c = &m->config;
    MODEL_SIZES;
    enum { PER_BLOCK = 14, OTHERS = 5, MATRICES = 7 }; /* rows of the tables of model.h, at most; a block's matrices */
    int64_t bytes = 0, rotary = gpt2 ? 0 : (int64_t)c->block_size * (D / 2);
    *needs = -1;
    if (!size_add(&bytes, PER_BLOCK * (int64_t)c->n_layer + OTHERS, sizeof(parameter))) return 1;
    int64_t blocks_at = bytes;
    if (!size_add(&bytes, c->n_layer, sizeof(block_parameters))) return 1;
    int64_t matrices_at = bytes;
    if (!size_add(&bytes, MATRICES * (int64_t)c->n_layer, sizeof(hidden_matrix))) return 1;
    int64_t cosine_at = bytes;
    if (!size_add(&bytes, rotary, sizeof(float))) return 1;
    int64_t sine_at = bytes;
    if (!size_add(&bytes, rotary, sizeof(float))) return 1;
    *needs = bytes;
    if (memory_allocate(&m->tables, bytes)) return 1;
    m->table = (parameter *)m->tables.data;
    m->h = (block_parameters *)(m->tables.data + blocks_at);
    m->matrices = (hidden_matrix *)(m->tables.data + matrices_at);
    m->cosine = (float *)(m->tables.data + cosine_at);
    m->sine = (float *)(m->tables.data + sine_at);
    if (!gpt2) model_fill_rotary(m);
    m->config.rotary_frequencies = NULL; /* the caller's; not needed any more */

#define ADD(field, name, rows, columns, present) \
    if (present) model_add_parameter(m, &m->field, -1, name, rows, columns);
#define ADD_TO_BLOCK(field, name, rows, columns, present) \
    if (present) model_add_parameter(m, &m->h[layer].field, layer, name, rows, columns);
    PARAMETERS_BEFORE(ADD)
    for (int64_t layer = 0; layer < c->n_layer; layer++) {
        PARAMETERS_OF_BLOCK(ADD_TO_BLOCK)
    }
    PARAMETERS_AFTER(ADD)
    m->head = m->lm_head ? m->lm_head : m->wte;
    if (c->optimizer == SAMPAN_MUON) model_list_matrices(m);

    /* One piece: values, gradients, first moments (each `floats` long), second moments, bfloat16 copies. */
    int32_t bfloat16 = c->dtype == SAMPAN_BFLOAT16, only_bfloat16 = bfloat16 && !c->training;
    int64_t value_bytes = 0, all_bytes = 0, second_bytes = 0, copy_bytes = 0;
    *needs = -1;
    for (parameter *p = m->table; p < m->table + m->count; p++) {
        if (!size_add(&all_bytes, p->size, sizeof(float))) return 1;
        if (!(only_bfloat16 && p->columns) && !size_add(&value_bytes, p->size, sizeof(float))) return 1;
        if (!model_is_muons(m, p) && !size_add(&second_bytes, p->size, sizeof(float))) return 1;
        if (bfloat16 && p->columns && !size_add(&copy_bytes, p->size, sizeof(uint16_t))) return 1;
    }
    int64_t total = 0;
    if (!size_add(&total, value_bytes, 1) || !size_add(&total, copy_bytes, 1)) return 1;
    if (c->training && (!size_add(&total, all_bytes, 2) || !size_add(&total, second_bytes, 1))) return 1;
    *needs = total;
    if (memory_allocate(&m->memory, total)) return 1;
    m->floats = all_bytes / (int64_t)sizeof(float);
    float *value = (float *)m->memory.data, *gradient = (float *)(m->memory.data + value_bytes),
          *second = gradient + 2 * m->floats;
    uint16_t *copy = (uint16_t *)(m->memory.data + total - copy_bytes);
    m->gradients = c->training ? gradient : NULL;
    for (parameter *p = m->table; p < m->table + m->count; p++) {
        int64_t padded = (p->size + 15) / 16 * 16;
        if (!(only_bfloat16 && p->columns)) {
            p->value = value;
            value += padded;
        }
        if (bfloat16 && p->columns) {
            p->bfloat16 = copy;
            copy += (p->size + 31) / 32 * 32;
        }
        if (c->training) {
            p->gradient = gradient;
            p->exp_avg = gradient + m->floats;
            gradient += padded;
            if (model_is_muons(m, p)) continue;
            p->exp_avg_sq = second;
            second += padded;
        }
    }
    return 0;
}

void model_destroy(model *m) {
    memory_free(&m->tables);
    memory_free(&m->memory);
}

/* ---- activations ---- */

int32_t activations_create(activations *a, const model *m, int64_t B, int64_t T, int64_t S, int64_t n_threads,
                           int64_t logit_rows, int32_t backward, int64_t *needs) {
    const sampan_config *c = &m->config;
    MODEL_SIZES;
    const int32_t qwen3 = c->family == SAMPAN_QWEN3, drops = c->dropout > 0.0f && backward;
    const int64_t M = B * T, chunk = logit_rows, sets = backward && !c->gradient_checkpointing ? c->n_layer : 1;
    const int64_t inputs = backward ? c->n_layer - sets : 0; /* blocks that keep only x */
    *a = (activations){.B = B, .T = T, .S = S, .chunk = chunk};
    *needs = -1;
    int64_t per_block = 0, total = 0;
#define COUNT_OF_BLOCK(field, floats) \
    if (!size_add(&per_block, floats, sizeof(float))) return 1;
#define COUNT(field, floats) \
    if (!size_add(&total, floats, sizeof(float))) return 1;
    ACTIVATIONS_OF_BLOCK(COUNT_OF_BLOCK)
    ACTIVATIONS_SHARED(COUNT)
    if (!size_add(&total, per_block, sets)
        || !size_add(&total, inputs, (M * C * (int64_t)sizeof(float) + 63) & ~(int64_t)63))
        return 1;
    *needs = total;
    if (memory_allocate(&a->memory, total)
        || memory_allocate(&a->blocks, c->n_layer * (int64_t)sizeof(block_activations))) {
        activations_destroy(a);
        return 1;
    }
    a->h = (block_activations *)a->blocks.data;
    char *next = a->memory.data;
#define PLACE(field, floats) \
    a->field = (float *)next; \
    next += ((floats) * (int64_t)sizeof(float) + 63) & ~(int64_t)63;
#define PLACE_IN_BLOCK(field, floats) PLACE(h[layer].field, floats)
    for (int64_t layer = 0; layer < c->n_layer; layer++) {
        if (layer < sets) {
            ACTIVATIONS_OF_BLOCK(PLACE_IN_BLOCK)
        } else a->h[layer] = a->h[0];
        if (inputs && layer > 0) {
            PLACE(h[layer].x, M * C)
        }
    }
    ACTIVATIONS_SHARED(PLACE)
    return 0;
}

void activations_destroy(activations *a) {
    memory_free(&a->memory);
    memory_free(&a->blocks);
    *a = (activations){0};
}
