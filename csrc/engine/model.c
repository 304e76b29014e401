/* model.c: the GPT. The forward pass is that of the package's PyTorch model, call by call; the backward pass is the
   same calls in reverse.

   Models differ in their parts: the norm (LayerNorm, RMSNorm), positions (learned, rotary), the MLP (plain or gated,
   with any activation) and whether queries and keys are normed. What each op computes is in ops.h; parameters and
   buffers, with their sizes, are the tables of parameters.h.

   It holds no optimizer, API or error messages: those are api.c's. */

#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The letters of ops.h, from a config `c`. */
#define MODEL_SIZES \
    const int64_t C = c->n_embd, H = c->n_head, KV = c->n_kv_head, D = c->head_dim, F = c->n_inner, V = c->vocab_size; \
    const int64_t FC = c->gated ? 2 * F : F; \
    (void)(C + H + KV + D + F + V + FC)

static int32_t model_is_centered(const model *m) { return m->parts.norm == NORM_LAYERNORM; }
static int32_t model_turns(const model *m) { return m->parts.positions == POSITIONS_ROTARY; }

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
    block_buffers *a = &p->a->h[layer];
    int64_t width = (H + 2 * KV) * D;
    return (attention){.B = p->B,
                       .T = p->T,
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
                       .first = p->first,
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
    const cache *kept = p->cache;
    int64_t S = c->block_size, element = kept->type == MATMUL_BFLOAT16 ? 2 : 4;
    char *k = kept->memory.data + layer * 2 * kept->B * KV * S * D * element, *v = k + kept->B * KV * S * D * element;
    p->m->op->cache_append(t, k, v, kept->type, p->a->h[layer].qkv, p->B, p->T, H, KV, D, S, p->at);
    attention a = attention_of_batch(p, layer);
    a.at = p->at;
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
    const block_buffers *a = &p->a->h[layer];
    const ops *op = p->m->op;
    MODEL_SIZES;
    const int32_t centered = model_is_centered(p->m), activation = p->m->parts.activation;
    const int64_t B = p->B, T = p->T, M = B * T;

    op->norm_forward(t, a->ln_1, a->ln_1_stats, a->x, w->ln_1_weight, w->ln_1_bias, M, C, centered, c->norm_eps);
    op->linear_forward(t, a->qkv, a->ln_1, w->c_attn_weight, w->c_attn_bias, NULL, M);
    if (w->q_norm_weight)
        op->head_norm_forward(t, a->qkv, a->qk_raw, a->qk_stats, w->q_norm_weight, w->k_norm_weight, M, H, KV, D,
                              c->norm_eps);
    if (model_turns(p->m)) op->rotary_forward(t, a->qkv, p->m->cosine, p->m->sine, B, T, H, KV, D, p->at);
    attention attend = p->cache ? attention_of_cache(t, p, layer) : attention_of_batch(p, layer);
    op->attention_forward(t, &attend);
    project(t, p, a->x_mid, a->y, w->attn_proj_weight, w->attn_proj_bias, a->x, layer, DROP_ATTENTION_PROJECTION);

    op->norm_forward(t, a->ln_2, a->ln_2_stats, a->x_mid, w->ln_2_weight, w->ln_2_bias, M, C, centered, c->norm_eps);
    if (c->gated) {
        op->linear_forward(t, a->fc, a->ln_2, w->c_fc_weight, w->c_fc_bias, NULL, M);
        op->gated_forward(t, activation, a->act, a->fc, M, F);
    } else {
        op->linear_activation_forward(t, activation, a->act, a->fc, a->ln_2, w->c_fc_weight, w->c_fc_bias, M);
    }
    project(t, p, out, a->act, w->mlp_proj_weight, w->mlp_proj_bias, a->x_mid, layer, DROP_MLP_PROJECTION);
}

void model_forward(const team *t, const pass *p) {
    const model *m = p->m;
    const sampan_config *c = &m->config;
    buffers *a = p->a;
    const ops *op = m->op;
    MODEL_SIZES;
    const int32_t centered = model_is_centered(m);
    const int64_t B = p->B, T = p->T;
    int64_t M = B * T;

    float *x = a->h[0].x;
    op->embedding_forward(t, x, p->ids, m->wte, m->wpe, B, T, C, p->at);
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
        op->norm_forward(t, a->ln_f, a->ln_f_stats, x, m->ln_f_weight, m->ln_f_bias, M, C, centered, c->norm_eps);
    if (p->logits) op->linear_forward(t, p->logits, a->ln_f, m->head, NULL, NULL, M);
    if (p->targets)
        op->loss_forward_backward(t, a->losses, p->backward ? a->dln : NULL, a->logits, a->chunk, a->ln_f, p->targets,
                                  m->head, M);
}

/* ---- backward ---- */

/* out = residual + dropout(x w^T + bias):  the gradient of the product is dout with the same elements dropped; the
   residual's is dout. dx, and through an activation: see linear_backward in ops.h. */
static void project_backward(const team *t, const pass *p, float *dx, const float *dout, const float *x,
                             int32_t activation, const float *pre, parameter *weight, parameter *bias, int64_t layer,
                             int32_t place) {
    const ops *op = p->m->op;
    int64_t M = p->B * p->T;
    if (p->dropout > 0.0f) {
        op->dropout_forward(t, p->a->projected, dout, NULL, M, weight->rows, pass_dropout(p, layer, place));
        dout = p->a->projected;
    }
    op->linear_backward(t, dx, dout, x, activation, pre, weight, bias, M);
}

/* g->dx holds the gradient of the residual stream after the block, and then that of the stream before it. */
static void block_backward(const team *t, const pass *p, int64_t layer) {
    const sampan_config *c = &p->m->config;
    const block_parameters *w = &p->m->h[layer];
    const block_buffers *a = &p->a->h[layer];
    const buffers *g = p->a;
    const ops *op = p->m->op;
    MODEL_SIZES;
    const int32_t centered = model_is_centered(p->m), activation = p->m->parts.activation;
    const int64_t B = p->B, T = p->T, M = B * T;

    if (c->gated) {
        project_backward(t, p, g->dact, g->dx, a->act, ACTIVATION_NONE, NULL, w->mlp_proj_weight, w->mlp_proj_bias,
                         layer, DROP_MLP_PROJECTION);
        op->gated_backward(t, activation, g->dfc, g->dact, a->fc, M, F);
    } else {
        project_backward(t, p, g->dfc, g->dx, a->act, activation, a->fc, w->mlp_proj_weight, w->mlp_proj_bias, layer,
                         DROP_MLP_PROJECTION);
    }
    op->linear_backward(t, g->dln, g->dfc, a->ln_2, ACTIVATION_NONE, NULL, w->c_fc_weight, w->c_fc_bias, M);
    op->norm_backward(t, g->dx, g->dln, a->x_mid, a->ln_2_stats, w->ln_2_weight, w->ln_2_bias, M, C, centered);

    project_backward(t, p, g->dy, g->dx, a->y, ACTIVATION_NONE, NULL, w->attn_proj_weight, w->attn_proj_bias, layer,
                     DROP_ATTENTION_PROJECTION);
    attention attend = attention_of_batch(p, layer);
    op->attention_backward(t, &attend);
    if (model_turns(p->m)) op->rotary_backward(t, g->dqkv, p->m->cosine, p->m->sine, B, T, H, KV, D);
    if (w->q_norm_weight)
        op->head_norm_backward(t, g->dqkv, a->qk_raw, a->qk_stats, w->q_norm_weight, w->k_norm_weight, M, H, KV, D);
    op->linear_backward(t, g->dln, g->dqkv, a->ln_1, ACTIVATION_NONE, NULL, w->c_attn_weight, w->c_attn_bias, M);
    op->norm_backward(t, g->dx, g->dln, a->x, a->ln_1_stats, w->ln_1_weight, w->ln_1_bias, M, C, centered);
}

/* After model_forward with `backward`, which has left the gradient of ln_f in a->dln. */
void model_backward(const team *t, const pass *p) {
    const model *m = p->m;
    const sampan_config *c = &m->config;
    buffers *a = p->a;
    const ops *op = m->op;
    MODEL_SIZES;
    const int32_t centered = model_is_centered(m);
    const int64_t B = p->B, T = p->T, M = B * T;

    op->zero(t, a->dx, M * C);
    op->norm_backward(t, a->dx, a->dln, a->x_out, a->ln_f_stats, m->ln_f_weight, m->ln_f_bias, M, C, centered);
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
    of->optimizer = m->parts.optimizer;
    m->matrices[m->n_matrices++] = (hidden_matrix){of, first_row, rows};
}

/* Every linear layer of every block by itself, as the package's Param.pieces. */
static void model_list_matrices(model *m) {
    const sampan_config *c = &m->config;
    MODEL_SIZES;
    for (int64_t layer = 0; layer < c->n_layer; layer++) {
        const block_parameters *w = &m->h[layer];
        model_add_matrix(m, w->c_attn_weight, 0, H * D);             /* q */
        model_add_matrix(m, w->c_attn_weight, H * D, KV * D);        /* k */
        model_add_matrix(m, w->c_attn_weight, (H + KV) * D, KV * D); /* v */
        model_add_matrix(m, w->attn_proj_weight, 0, C);
        model_add_matrix(m, w->c_fc_weight, 0, F);               /* gate, where there is one */
        if (c->gated) model_add_matrix(m, w->c_fc_weight, F, F); /* up */
        model_add_matrix(m, w->mlp_proj_weight, 0, C);
    }
}

static void place_tables(memory_plan *plan, void *arg) {
    enum { MATRICES_OF_BLOCK = 7 };
    model *m = arg;
    const int64_t layers = m->config.n_layer;
    m->table = memory_place(plan, PARAMETERS_MOST_OF_BLOCK * layers + PARAMETERS_MOST_OTHERS, sizeof *m->table);
    m->h = memory_place(plan, layers, sizeof *m->h);
    m->matrices = memory_place(plan, MATRICES_OF_BLOCK * layers, sizeof *m->matrices);
}

int32_t model_describe(model *m, const sampan_config *config, const parts *parts) {
    *m = (model){.config = *config, .parts = *parts};
    sampan_config *c = &m->config;
    MODEL_SIZES;
    c->norm = c->positions = c->activation = c->dtype = c->optimizer = NULL;
    c->rotary_frequencies = NULL;
    int64_t bytes;
    if (memory_arrange(&m->tables, place_tables, m, &bytes)) return 1;
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
    const int32_t by_matrix = model_trains(m) && OPTIMIZER_KINDS[m->parts.optimizer].updates == UPDATES_MATRICES;
    for (parameter *p = m->table; p < m->table + m->count; p++)
        p->optimizer = by_matrix ? OPTIMIZER_adamw : m->parts.optimizer;
    if (by_matrix) model_list_matrices(m);
    return 0;
}

static int64_t count_scratch(int32_t optimizer, int64_t R, int64_t C) {
    const int64_t S = R < C ? R : C;
#define OPTIMIZER_SCRATCH(name, updates, moments, scratch) scratch,
    const int64_t floats[] = {OPTIMIZERS(OPTIMIZER_SCRATCH)};
    (void)S;
    return (floats[optimizer] + 15) / 16 * 16;
}

int64_t model_scratch_stride(const model *m) {
    int64_t most = 0;
    for (const hidden_matrix *w = m->matrices; w < m->matrices + m->n_matrices; w++) {
        int64_t floats = count_scratch(w->of->optimizer, w->rows, w->of->columns);
        if (floats > most) most = floats;
    }
    return most;
}

int32_t model_precision(const model *m) { return m->parts.dtype == DTYPE_BFLOAT16 ? MATMUL_BFLOAT16 : MATMUL_FLOAT32; }

/* Where nothing is trained, a matrix that is multiplied in bfloat16 is kept only so. */
static void place_weights(memory_plan *plan, void *arg) {
    model *m = arg;
    const sampan_config *c = &m->config;
    const int32_t bfloat16 = model_precision(m) == MATMUL_BFLOAT16;
    const int64_t angles = m->parts.positions == POSITIONS_ROTARY ? (int64_t)c->block_size * (c->head_dim / 2) : 0;
    for (parameter *p = m->table; p < m->table + m->count; p++)
        if (!(bfloat16 && p->columns && !model_trains(m))) p->value = memory_place(plan, p->size, sizeof *p->value);
    for (parameter *p = m->table; p < m->table + m->count && bfloat16; p++)
        if (p->columns) p->bfloat16 = memory_place(plan, p->size, sizeof *p->bfloat16);
    m->cosine = memory_place(plan, angles, sizeof *m->cosine);
    m->sine = memory_place(plan, angles, sizeof *m->sine);
}

static void place_gradients(memory_plan *plan, void *arg) {
    model *m = arg;
    for (parameter *p = m->table; p < m->table + m->count; p++)
        p->gradient = memory_place(plan, p->size, sizeof *p->gradient);
}

static void place_moments(memory_plan *plan, void *arg) {
    model *m = arg;
    for (parameter *p = m->table; p < m->table + m->count; p++) {
        const int32_t moments = OPTIMIZER_KINDS[p->optimizer].moments;
        if (moments > 0) p->exp_avg = memory_place(plan, p->size, sizeof *p->exp_avg);
        if (moments > 1) p->exp_avg_sq = memory_place(plan, p->size, sizeof *p->exp_avg_sq);
    }
}

void model_count_bytes(model *m, int64_t threads, sampan_memory_sizes *sizes) {
    sizes->weights = memory_count(place_weights, m);
    sizes->gradients = memory_count(place_gradients, m);
    sizes->optimizer = model_trains(m) ? memory_count(place_moments, m) : 0;
    if (sizes->optimizer >= 0) sizes->optimizer += model_scratch_stride(m) * threads * (int64_t)sizeof(float);
    if (!model_trains(m)) sizes->gradients = 0;
}

/* cos and sin of every position's angles, in double, as the package's rotary_tables */
static void model_fill_rotary(model *m, const double *frequencies) {
    int64_t half = m->config.head_dim / 2;
    for (int64_t s = 0; s < m->config.block_size; s++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)s * frequencies[i];
            m->cosine[s * half + i] = (float)cos(angle);
            m->sine[s * half + i] = (float)sin(angle);
        }
}

int32_t model_allocate(model *m, const sampan_config *config, const ops *op, int64_t *bytes) {
    m->op = op;
    if (memory_arrange(&m->weights, place_weights, m, bytes)) return 1;
    if (m->cosine) model_fill_rotary(m, config->rotary_frequencies);
    m->floats = memory_count(place_gradients, m) / (int64_t)sizeof(float);
    if (!model_trains(m)) return 0;
    if (memory_arrange(&m->gradient_memory, place_gradients, m, bytes)) return 1;
    m->gradients = (float *)m->gradient_memory.data;
    return memory_arrange(&m->moments, place_moments, m, bytes);
}

void model_destroy(model *m) {
    memory_free(&m->tables);
    memory_free(&m->weights);
    memory_free(&m->gradient_memory);
    memory_free(&m->moments);
}

/* ---- buffers ---- */

buffers buffers_of_session(const model *m, int64_t B, int64_t T, int64_t threads) {
    return (buffers){.m = m, .B = B, .T = T, .S = m->config.block_size, .threads = threads};
}

/* Logits take LOGIT_BYTES, in chunks of rows of about equal size. */
buffers buffers_of_batch(const model *m, int64_t B, int64_t T, int64_t threads) {
    enum { LOGIT_BYTES = 64 << 20, LEAST_ROWS = 16 };
    int64_t most = LOGIT_BYTES / (int64_t)sizeof(float) / m->config.vocab_size;
    if (most < LEAST_ROWS) most = LEAST_ROWS;
    int64_t chunks = (B * T + most - 1) / most, chunk = (B * T + chunks - 1) / chunks;
    return (buffers){.m = m, .B = B, .T = T, .S = T, .threads = threads, .chunk = chunk, .backward = model_trains(m)};
}

static void place_buffers(memory_plan *plan, void *arg) {
    buffers *a = arg;
    const model *m = a->m;
    const sampan_config *c = &m->config;
    MODEL_SIZES;
    const int64_t B = a->B, M = B * a->T, S = a->S, chunk = a->chunk, threads = a->threads;
    const int32_t backward = a->backward;
    const int64_t sets = backward && !c->gradient_checkpointing ? c->n_layer : 1;
    block_buffers counted = {0};
    a->h = memory_place(plan, c->n_layer, sizeof *a->h);
#define PLACE(field, floats) a->field = memory_place(plan, floats, sizeof(float));
#define PLACE_IN_BLOCK(field, floats) h->field = memory_place(plan, floats, sizeof(float));
    for (int64_t layer = 0; layer < c->n_layer; layer++) {
        block_buffers *h = a->h ? &a->h[layer] : &counted;
        if (layer < sets) {
            BUFFERS_OF_BLOCK(PLACE_IN_BLOCK)
            continue;
        }
        if (a->h) *h = a->h[0];
        if (backward) h->x = memory_place(plan, M * C, sizeof(float));
    }
    BUFFERS_SHARED(PLACE)
}

int64_t buffers_count_bytes(buffers *a) { return memory_count(place_buffers, a); }

int32_t buffers_allocate(buffers *a, int64_t *bytes) { return memory_arrange(&a->memory, place_buffers, a, bytes); }

void buffers_destroy(buffers *a) {
    memory_free(&a->memory);
    *a = (buffers){0};
}

int64_t cache_count_bytes(const model *m, int64_t B) {
    const sampan_config *c = &m->config;
    int64_t bytes, width = (int64_t)c->n_kv_head * c->head_dim, element = model_precision(m) == MATMUL_BFLOAT16 ? 2 : 4;
    if (!size_multiply(&bytes, 2 * (int64_t)c->n_layer * c->block_size, width)) return -1;
    return size_multiply(&bytes, bytes, B * element) ? bytes : -1;
}
