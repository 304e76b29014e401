/* folder.c: see folder.h. The names and layouts are those of `stored` and `transposed` in model.py. */

#include "folder.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "platform/file.h"
#include "safetensors.h"

enum { PATH_SIZE = 4096 };

/* ---- config.json ---- */

static int32_t is_rotary(const sampan_config *c) { return !strcmp(c->positions, "rotary"); }

/* A whole number from 1 to 2^28, or 0. */
static int32_t read_size(const json *doc, const char *key, double otherwise) {
    double n = json_number(doc, 0, key, otherwise);
    return n >= 1 && n <= 1 << 28 && n == floor(n) ? (int32_t)n : 0;
}

static const char *read_gpt2(sampan_config *c, const json *doc) {
    const char *activation = json_string(doc, 0, "activation_function", "gelu_new");
    if (strcmp(activation, "gelu_new") && strcmp(activation, "gelu_pytorch_tanh"))
        return "its activation_function is not gelu_new";
    if (json_flag(doc, 0, "scale_attn_by_inverse_layer_idx", 0) || !json_flag(doc, 0, "scale_attn_weights", 1))
        return "its scale of attention is not supported";
    if (json_flag(doc, 0, "add_cross_attention", 0)) return "its cross-attention is not supported";
    c->norm = "layernorm";
    c->positions = "learned";
    c->activation = "gelu_new";
    c->n_layer = read_size(doc, "n_layer", 12);
    c->n_head = c->n_kv_head = read_size(doc, "n_head", 12);
    c->n_embd = read_size(doc, "n_embd", 768);
    c->n_inner = read_size(doc, "n_inner", 4.0 * c->n_embd);
    c->head_dim = c->n_head ? c->n_embd / c->n_head : 0;
    c->block_size = read_size(doc, "n_positions", 1024);
    c->vocab_size = read_size(doc, "vocab_size", 50257);
    c->norm_bias = c->qkv_bias = c->attn_proj_bias = c->mlp_bias = json_flag(doc, 0, "bias", 1);
    c->tie_word_embeddings = json_flag(doc, 0, "tie_word_embeddings", 1);
    c->norm_eps = (float)json_number(doc, 0, "layer_norm_epsilon", 1e-5);
    return NULL;
}

static const char *read_llama(sampan_config *c, const json *doc, int32_t qwen3) {
    int64_t scaling = json_find(doc, 0, "rope_scaling"), rope = json_find(doc, 0, "rope_parameters");
    if (scaling && doc->values[scaling].type != JSON_NULL) return "its rope_scaling is not supported by this program";
    if (rope && strcmp(json_string(doc, rope, "rope_type", "default"), "default"))
        return "its rope_type is not supported by this program";
    if (strcmp(json_string(doc, 0, "hidden_act", "silu"), "silu")) return "its hidden_act is not silu";
    if (json_flag(doc, 0, "use_sliding_window", 0)) return "its sliding window is not supported";
    if (json_number(doc, 0, "pretraining_tp", 1) != 1) return "its pretraining_tp is not 1";
    c->norm = "rmsnorm";
    c->positions = "rotary";
    c->activation = "silu";
    c->gated = 1;
    c->qk_norm = qwen3;
    c->n_layer = read_size(doc, "num_hidden_layers", 0);
    c->n_head = read_size(doc, "num_attention_heads", 0);
    c->n_kv_head = read_size(doc, "num_key_value_heads", c->n_head);
    c->n_embd = read_size(doc, "hidden_size", 0);
    c->n_inner = read_size(doc, "intermediate_size", 0);
    c->head_dim = read_size(doc, "head_dim", qwen3 ? 128 : c->n_head ? c->n_embd / c->n_head : 0);
    c->block_size = read_size(doc, "max_position_embeddings", 2048);
    c->vocab_size = read_size(doc, "vocab_size", 0);
    c->qkv_bias = c->attn_proj_bias = json_flag(doc, 0, "attention_bias", 0);
    c->mlp_bias = !qwen3 && json_flag(doc, 0, "mlp_bias", 0);
    c->tie_word_embeddings = json_flag(doc, 0, "tie_word_embeddings", 0);
    c->norm_eps = (float)json_number(doc, 0, "rms_norm_eps", 1e-6);
    return NULL;
}

/* Whether model.safetensors has room for the matrices of such a model, in two bytes a weight. Asked before memory is: a
   few bytes of config.json can name any size. */
static const char *check_sizes(const sampan_config *c, const char *folder) {
    enum { ROTARY_MOST = 1 << 25 };
    const double C = c->n_embd, heads = (double)c->n_head * c->head_dim, gpt2 = !is_rotary(c);
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    double layer = 2 * heads * C + (gpt2 ? 2 : 3) * C * c->n_inner,
           embeddings = C * c->vocab_size + (gpt2 ? C * c->block_size : 0);
    int64_t size = file_count_bytes(path);
    if (size >= 0 && 2 * (c->n_layer * layer + embeddings) > (double)size)
        return "it describes a larger model than model.safetensors holds";
    if (!gpt2 && (double)c->block_size * c->head_dim > ROTARY_MOST)
        return "max_position_embeddings x head_dim is beyond 2^25; lower the first";
    return NULL;
}

int32_t folder_read_config(sampan_config *c, double **frequencies, const char *folder, char *message,
                           int64_t message_size) {
    char path[PATH_SIZE];
    int64_t size;
    json doc;
    *frequencies = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    char *text = file_read(path, &size, message, message_size);
    if (!text) return 1;
    int32_t failed = json_parse(&doc, text, size);
    free(text);
    if (failed) {
        snprintf(message, (size_t)message_size, "%s: %s", path, doc.message);
        return 1;
    }
    const char *family = json_string(&doc, 0, "model_type", ""), *complaint;
    if (!strcmp(family, "gpt2")) complaint = read_gpt2(c, &doc);
    else if (!strcmp(family, "llama") || !strcmp(family, "qwen3"))
        complaint = read_llama(c, &doc, !strcmp(family, "qwen3"));
    else complaint = "its model_type is none of gpt2, llama and qwen3";
    if (!complaint
        && !(c->n_layer && c->n_head && c->n_kv_head && c->n_embd && c->n_inner && c->head_dim && c->block_size
             && c->vocab_size))
        complaint = "a size is missing, or not a whole number between 1 and 2^28";
    if (!complaint) complaint = check_sizes(c, folder);
    if (!complaint && is_rotary(c)) {
        double theta = json_number(&doc, json_find(&doc, 0, "rope_parameters"), "rope_theta", 10000.0);
        *frequencies = malloc((size_t)(c->head_dim / 2 + 1) * sizeof(double));
        if (!*frequencies) complaint = "no memory";
        else
            for (int32_t i = 0; i < c->head_dim / 2; i++) (*frequencies)[i] = pow(theta, -(2.0 * i / c->head_dim));
        c->rotary_frequencies = *frequencies;
    }
    json_free(&doc);
    if (complaint) snprintf(message, (size_t)message_size, "%s: %s", path, complaint);
    return complaint != NULL;
}

/* ---- weights ---- */

enum { PIECES = 3 };
typedef struct stored {               /* a parameter in Hugging Face's tensors: by rows, in order */
    struct {
        char name[96];
        int64_t rows;
    } piece[PIECES];
    int32_t pieces, transposed;
} stored;

static void add_piece(stored *s, int64_t rows, const char *prefix, const char *name, const char *kind) {
    snprintf(s->piece[s->pieces].name, sizeof s->piece[0].name, "%s%s%s", prefix, name, kind);
    s->piece[s->pieces++].rows = rows;
}

static stored find_stored(const sampan_config *c, const sampan_parameter *p) {
    stored s = {0};
    if (!is_rotary(c)) {
        s.transposed = p->columns && !strncmp(p->name, "h.", 2);
        add_piece(&s, p->rows, strncmp(p->name, "lm_head", 7) ? "transformer." : "", p->name, "");
        return s;
    }
    const char *const plain[][2] = {{"wte", "model.embed_tokens"},
                                    {"ln_f", "model.norm"},
                                    {"lm_head", "lm_head"},
                                    {"ln_1", "input_layernorm"},
                                    {"ln_2", "post_attention_layernorm"},
                                    {"attn.q_norm", "self_attn.q_norm"},
                                    {"attn.k_norm", "self_attn.k_norm"},
                                    {"attn.c_proj", "self_attn.o_proj"},
                                    {"mlp.c_proj", "mlp.down_proj"}};
    int64_t layer = 0, D = c->head_dim;
    int n = 0;
    char prefix[48] = "", module[48];
    const char *kind = strrchr(p->name, '.');                            /* ".weight" | ".bias" */
    if (sscanf(p->name, "h.%" SCNd64 ".%n", &layer, &n) == 1)
        snprintf(prefix, sizeof prefix, "model.layers.%lld.", (long long)layer);
    snprintf(module, sizeof module, "%.*s", (int)(kind - p->name - n), p->name + n);
    if (!strcmp(module, "attn.c_attn")) {
        add_piece(&s, c->n_head * D, prefix, "self_attn.q_proj", kind);
        add_piece(&s, c->n_kv_head * D, prefix, "self_attn.k_proj", kind);
        add_piece(&s, c->n_kv_head * D, prefix, "self_attn.v_proj", kind);
    } else if (!strcmp(module, "mlp.c_fc")) {
        add_piece(&s, c->n_inner, prefix, "mlp.gate_proj", kind);
        add_piece(&s, c->n_inner, prefix, "mlp.up_proj", kind);
    } else {
        for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
            if (!strcmp(module, plain[i][0])) add_piece(&s, p->rows, prefix, plain[i][1], kind);
    }
    return s;
}

static int64_t parameter_columns(const sampan_parameter *p) { return p->columns ? p->columns : 1; }

/* (rows, columns) -> (columns, rows) */
static void transpose(float *to, const float *from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) to[j * rows + i] = from[i * columns + j];
}

static int64_t largest_parameter(sampan_engine *engine) {
    int64_t most = 0;
    sampan_parameter p;
    for (int64_t i = 0; i < sampan_count_parameters(engine); i++) {
        sampan_get_parameter(engine, i, &p);
        if (p.rows * parameter_columns(&p) > most) most = p.rows * parameter_columns(&p);
    }
    return most;
}

/* One piece of a parameter, from the file to `values`; `room` floats at `spare`. */
static int32_t load_piece(safetensors *file, const stored *s, int32_t k, const sampan_parameter *p, float *values,
                          float *spare, int64_t room, char *message, int64_t message_size) {
    const char *name = s->piece[k].name;
    const safetensor *t = safetensors_find(file, name);
    if (!t && !strncmp(name, "transformer.", 12))
        t = safetensors_find(file, name + 12);     /* GPT-2's own folders lack the prefix */
    int64_t rows = s->piece[k].rows, columns = p->columns;
    int64_t shape[2] = {s->transposed ? columns : rows, s->transposed ? rows : columns};
    int32_t fits = t
                   && (columns ? t->rank == 2 && t->shape[0] == shape[0] && t->shape[1] == shape[1]
                               : t->rank == 1 && t->shape[0] == rows);
    if (!fits || t->elements > room) {
        snprintf(message, (size_t)message_size, "tensor %s is %s", name,
                 t ? "of another shape than config.json says" : "missing");
        return 1;
    }
    if (safetensors_read(file, t, s->transposed ? spare : values)) {
        snprintf(message, (size_t)message_size, "tensor %s cannot be read (type %s)", name, t->type);
        return 1;
    }
    if (s->transposed) transpose(values, spare, shape[0], shape[1]);
    return 0;
}

int32_t folder_load_weights(sampan_engine *engine, const sampan_config *config, const char *folder, char *message,
                            int64_t message_size) {
    char path[PATH_SIZE];
    safetensors file;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (safetensors_open(&file, path, message, message_size)) return 1;
    int64_t room = largest_parameter(engine);
    float *values = malloc((size_t)room * sizeof(float)), *spare = malloc((size_t)room * sizeof(float));
    int32_t failed = !values || !spare;
    if (failed) snprintf(message, (size_t)message_size, "no memory to read %s", path);
    for (int64_t i = 0; i < sampan_count_parameters(engine) && !failed; i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        stored s = find_stored(config, &p);
        float *next = values;
        for (int32_t k = 0; k < s.pieces && !failed; k++) {
            failed = load_piece(&file, &s, k, &p, next, spare, room, message, message_size);
            next += s.piece[k].rows * parameter_columns(&p);
        }
        if (!failed) failed = sampan_write(engine, "weight", i, values);
    }
    free(values);
    free(spare);
    safetensors_close(&file);
    return failed;
}

/* The tensors of the file to write; names are kept in `names`. Hugging Face's GPT-2 always has biases: zeros are none.
 */
static int64_t list_tensors(sampan_engine *engine, const sampan_config *c, safetensor *tensors, char (*names)[96],
                            int32_t *is_zero) {
    int64_t count = 0;
    for (int64_t i = 0; i < sampan_count_parameters(engine); i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        stored s = find_stored(c, &p);
        for (int32_t k = 0; k < s.pieces; k++, count++) {
            int64_t rows = s.piece[k].rows, columns = parameter_columns(&p);
            snprintf(names[count], sizeof names[0], "%s", s.piece[k].name);
            tensors[count] = (safetensor){.name = names[count], .rank = p.columns ? 2 : 1, .elements = rows * columns};
            tensors[count].shape[0] = s.transposed ? columns : rows;
            tensors[count].shape[1] = s.transposed ? rows : columns;
            is_zero[count] = 0;
        }
        const char *ending = strstr(p.name, ".weight");
        if (!is_rotary(c) && !c->norm_bias && ending && strncmp(p.name, "wte", 3) && strncmp(p.name, "wpe", 3)
            && strncmp(p.name, "lm_head", 7)) {
            snprintf(names[count], sizeof names[0], "transformer.%.*s.bias", (int)(ending - p.name), p.name);
            tensors[count] = (safetensor){.name = names[count], .rank = 1, .shape = {p.rows}, .elements = p.rows};
            is_zero[count++] = 1;
        }
    }
    return count;
}

int32_t folder_save_weights(sampan_engine *engine, const sampan_config *config, const char *folder, char *message,
                            int64_t message_size) {
    char path[PATH_SIZE];
    safetensors_writer writer = {0};
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    size_t most = (size_t)sampan_count_parameters(engine) * PIECES;
    int64_t room = largest_parameter(engine), at = 0;
    safetensor *tensors = calloc(most, sizeof *tensors);
    char (*names)[96] = calloc(most, sizeof *names);
    int32_t *is_zero = calloc(most, sizeof *is_zero);
    float *values = malloc((size_t)room * sizeof(float)), *spare = malloc((size_t)room * sizeof(float));
    int32_t failed = !tensors || !names || !is_zero || !values || !spare;
    int64_t count = failed ? 0 : list_tensors(engine, config, tensors, names, is_zero);
    failed = failed || safetensors_begin(&writer, path, tensors, count);
    for (int64_t i = 0; i < sampan_count_parameters(engine) && !failed; i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        stored s = find_stored(config, &p);
        failed = sampan_read(engine, "weight", i, values);
        const float *next = values;
        for (int32_t k = 0; k < s.pieces && !failed; k++, at++) {
            if (s.transposed) transpose(spare, next, p.rows, p.columns);
            failed = safetensors_append(&writer, s.transposed ? spare : next, tensors[at].elements);
            next += tensors[at].elements;
        }
        if (at < count && is_zero[at] && !failed) {
            memset(spare, 0, (size_t)tensors[at].elements * sizeof(float));
            failed = safetensors_append(&writer, spare, tensors[at].elements);
            at++;
        }
    }
    failed = failed || safetensors_commit(&writer);
    if (failed)
        snprintf(message, (size_t)message_size, "%s: cannot be written; what was there before is unchanged", path);
    free(tensors);
    free(names);
    free(is_zero);
    free(values);
    free(spare);
    return failed;
}
