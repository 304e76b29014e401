/* folder.c: see folder.h. */

#include "platform/file.h"
#include "folder.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "matmul/activations.h"
#include "safetensors.h"

enum { PATH_SIZE = 4096, PIECES = 3 };

/* ---- families ---- */

/* A key of config.json and the setting that it holds; `alias` is a value of theirs and what we call it. */
typedef struct family_key {
    const char *theirs, *ours;
    int32_t required, read, has_default;
    double number;                 /* the default: a number or a flag, */
    const char *string, *alias[2]; /* or a text */
} family_key;

/* A key that must have one value (-1: null), and its value if config.json lacks it. */
typedef struct family_fixed {
    const char *theirs;
    int32_t value, otherwise;
} family_fixed;

/* A module of ours, and Hugging Face's modules whose rows are stacked in it; {} is the block's number. */
typedef struct family_module {
    const char *ours, *theirs[PIECES];
} family_module;

struct family {
    const char *model_type, *architecture, *norm, *positions, *activation;
    int32_t gated, qk_norm, qkv_bias, attn_proj_bias, mlp_bias, norm_bias; /* the biases that the key `bias` means */
    int32_t bias;                                                          /* its default */
    int32_t transposed;          /* the blocks' matrices are stored as (in, out) */
    int32_t zero_biases;         /* biases that a model lacks are stored as zeros */
    const char *optional_prefix; /* what the names in older folders lack */
    const family_key *keys;
    const family_fixed *fixed;
    const family_module *modules;
};

#include "families.inc"

enum { FAMILY_COUNT = sizeof FAMILIES / sizeof *FAMILIES };

const family *folder_find_family(const char *model_type) {
    for (size_t i = 0; i < FAMILY_COUNT; i++)
        if (!strcmp(FAMILIES[i].model_type, model_type)) return &FAMILIES[i];
    return NULL;
}

void folder_set_parts(sampan_config *c, const family *f, int32_t bias) {
    c->norm = f->norm;
    c->positions = f->positions;
    c->activation = f->activation;
    c->gated = f->gated;
    c->qk_norm = f->qk_norm;
    c->qkv_bias = bias && f->qkv_bias;
    c->attn_proj_bias = bias && f->attn_proj_bias;
    c->mlp_bias = bias && f->mlp_bias;
    c->norm_bias = bias && f->norm_bias;
}

static int32_t is_rotary(const sampan_config *c) { return !strcmp(c->positions, "rotary"); }

/* ---- config.json ---- */

#define SIZE(field) {#field, offsetof(sampan_config, field)}
static const struct {
    const char *name;
    size_t offset;
} SIZES[] = {SIZE(n_layer), SIZE(n_head),   SIZE(n_kv_head),  SIZE(n_embd),
             SIZE(n_inner), SIZE(head_dim), SIZE(block_size), SIZE(vocab_size)};

/* The size of that name in a config; NULL: it is no size. */
static int32_t *find_size(const sampan_config *c, const char *name) {
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++)
        if (!strcmp(SIZES[i].name, name)) return (int32_t *)((char *)c + SIZES[i].offset);
    return NULL;
}

/* The engine's own copy of an activation's name; NULL: it has no such. */
static const char *find_activation(const char *name) {
#define ACTIVATION_NAME(name, value, slope) #name,
    static const char *const names[] = {ACTIVATIONS(ACTIVATION_NAME)};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i], name)) return names[i];
    return NULL;
}

/* How rotary positions are stretched; a factor of 0: they are not. Linear, where `high` is 0; else as Llama 3. */
typedef struct scaling {
    double factor, low, high, original;
} scaling;

typedef struct reading {
    sampan_config *config;
    int32_t bias, has_bias;
    double theta;
    scaling scaling;
} reading;

static const char *read_scaling(reading *r, const json *doc, int64_t at) {
    const char *type = json_string(doc, at, "rope_type", json_string(doc, at, "type", "default"));
    const int32_t is_llama3 = !strcmp(type, "llama3");
    if (!at || !strcmp(type, "default")) return NULL;
    if (!is_llama3 && strcmp(type, "linear")) return "has a type that this program does not support";
    r->scaling.factor = json_number(doc, at, "factor", 0);
    r->scaling.low = is_llama3 ? json_number(doc, at, "low_freq_factor", 0) : 0;
    r->scaling.high = is_llama3 ? json_number(doc, at, "high_freq_factor", 0) : 0;
    r->scaling.original = is_llama3 ? json_number(doc, at, "original_max_position_embeddings", 0) : 0;
    const double most = 1e30, *s[] = {&r->scaling.factor, &r->scaling.low, &r->scaling.high, &r->scaling.original};
    for (int32_t i = 0; i < (is_llama3 ? 4 : 1); i++)
        if (!(*s[i] > 0 && *s[i] < most)) return "lacks a positive number";
    return is_llama3 && r->scaling.low >= r->scaling.high ? "has low_freq_factor above high_freq_factor" : NULL;
}

/* The angle per position of the i-th pair of channels, as the package's rotary_frequencies. */
static double rotary_frequency(const reading *r, int32_t i) {
    const scaling *s = &r->scaling;
    const double frequency = pow(r->theta, -(2.0 * i / r->config->head_dim)), pi = 3.14159265358979323846;
    if (s->factor == 0) return frequency;
    if (s->high == 0) return frequency / s->factor;
    const double turns = s->original * frequency / (2 * pi), share = (turns - s->low) / (s->high - s->low);
    const double kept = fmin(fmax(share, 0.0),
                             1.0); /* slow waves are stretched, fast ones kept, those between blended */
    return kept * frequency + (1 - kept) * frequency / s->factor;
}

/* Takes one key's value. NULL, or what is wrong with it. */
static const char *read_key(reading *r, const json *doc, const family_key *key) {
    int64_t rope = json_find(doc, 0, "rope_parameters"), at = json_find(doc, 0, key->theirs);
    if (!strcmp(key->ours, "rope_theta") && rope) at = json_find(doc, rope, key->theirs);
    int32_t type = at ? doc->values[at].type : JSON_NULL, *size = find_size(r->config, key->ours);
    double number = key->has_default ? key->number : 0.0;
    if (type == JSON_NUMBER) number = doc->values[at].number;
    if (type == JSON_TRUE || type == JSON_FALSE) number = type == JSON_TRUE;
    if (size) {
        if (type == JSON_NULL && !key->required && !key->has_default) return NULL;
        if (!(number >= 1 && number <= 1 << 28 && number == floor(number)))
            return "is missing, or no size from 1 to 2^28";
        *size = (int32_t)number;
    } else if (!strcmp(key->ours, "tie_word_embeddings")) {
        r->config->tie_word_embeddings = number != 0;
    } else if (!strcmp(key->ours, "bias")) {
        if (r->has_bias && r->bias != (number != 0)) return "differs from another key of biases";
        r->bias = number != 0;
        r->has_bias = 1;
    } else if (!strcmp(key->ours, "norm_eps")) {
        r->config->norm_eps = (float)number;
    } else if (!strcmp(key->ours, "rope_theta")) {
        r->theta = number;
    } else if (!strcmp(key->ours, "rope_scaling")) {
        return read_scaling(r, doc, type == JSON_OBJECT ? at : rope);
    } else if (!strcmp(key->ours, "activation")) {
        const char *name = type == JSON_STRING ? doc->values[at].string : key->string;
        if (key->alias[0] && !strcmp(name, key->alias[0])) name = key->alias[1];
        r->config->activation = find_activation(name);
        if (!r->config->activation) return "is not supported by this program";
    }
    return NULL;
}

/* Derives the sizes that config.json may lack, as the package's `resolve`. */
static void resolve_sizes(sampan_config *c) {
    if (!c->n_kv_head) c->n_kv_head = c->n_head;
    if (!c->head_dim) c->head_dim = c->n_embd / c->n_head;
    if (!c->n_inner) c->n_inner = c->gated ? (8 * c->n_embd + 95) / 96 * 32 : 4 * c->n_embd;
}

/* NULL, or why the config is refused. A few bytes of config.json can name any size, so they are compared with the size
   of model.safetensors (at two bytes a weight) before memory is asked for. */
static const char *check_sizes(const sampan_config *c, const char *folder) {
    enum { ROTARY_MOST = 1 << 25 };
    if (!c->head_dim) return "n_head is larger than n_embd";
    const double C = c->n_embd, heads = (double)c->n_head * c->head_dim;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    const double layer = 2 * heads * C + (c->gated ? 3 : 2) * C * c->n_inner;
    const double embeddings = C * c->vocab_size + (is_rotary(c) ? 0 : C * c->block_size);
    int64_t size = file_count_bytes(path);
    if (size >= 0 && 2 * (c->n_layer * layer + embeddings) > (double)size)
        return "it describes a larger model than model.safetensors holds";
    if (is_rotary(c) && (double)c->block_size * c->head_dim > ROTARY_MOST)
        return "max_position_embeddings x head_dim is beyond 2^25; lower the first";
    return NULL;
}

/* A number, 0 or 1 for a flag, -1 for null, and a number that no key must have for anything else. */
static double read_fixed(const json_value *v) {
    if (v->type == JSON_NUMBER) return v->number;
    return v->type == JSON_TRUE ? 1 : v->type == JSON_FALSE ? 0 : v->type == JSON_NULL ? -1 : -2;
}

/* Fills in the config. Returns NULL, or what is wrong, with *key if one key is the cause. */
static const char *read_family(reading *r, const family *f, const json *doc, const char **key) {
    sampan_config *c = r->config;
    r->bias = f->bias;
    folder_set_parts(c, f, 0);
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) *find_size(c, SIZES[i].name) = 0;
    for (const family_fixed *fixed = f->fixed; fixed->theirs; fixed++) {
        *key = fixed->theirs;
        int64_t at = json_find(doc, 0, *key);
        double value = at ? read_fixed(&doc->values[at]) : fixed->otherwise;
        if (value != fixed->value) return "is not supported by this program";
    }
    for (const family_key *k = f->keys; k->theirs; k++) {
        *key = k->theirs;
        const char *wrong = k->read ? read_key(r, doc, k) : NULL;
        if (wrong) return wrong;
    }
    const char *activation = c->activation;
    *key = NULL;
    folder_set_parts(c, f, r->bias);
    c->activation = activation;
    resolve_sizes(c);
    return NULL;
}

int32_t folder_read_config(sampan_config *c, const family **family, double **frequencies, const char *folder,
                           failure *failure) {
    char path[PATH_SIZE];
    json doc;
    reading r = {.config = c};
    *frequencies = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    if (json_read_file(&doc, path, failure)) return 1;
    const char *wrong = NULL, *key = "model_type";
    *family = folder_find_family(json_string(&doc, 0, "model_type", ""));
    if (!*family) wrong = "is not supported by this program";
    if (!wrong) wrong = read_family(&r, *family, &doc, &key);
    if (!wrong) wrong = check_sizes(c, folder);
    if (!wrong && is_rotary(c)) {
        *frequencies = malloc((size_t)(c->head_dim / 2 + 1) * sizeof(double));
        if (!*frequencies) wrong = "no memory";
        for (int32_t i = 0; i < c->head_dim / 2 && *frequencies; i++) (*frequencies)[i] = rotary_frequency(&r, i);
        c->rotary_frequencies = *frequencies;
    }
    json_free(&doc);
    if (wrong) failure_say(failure, "%s: %s%s%s", path, key ? key : "", key ? " " : "", wrong);
    return wrong != NULL;
}

int32_t folder_save_config(const sampan_config *c, const family *f, int32_t end_of_text, const char *folder,
                           failure *failure) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *stream = fopen(path, "wb");
    if (stream) {
        fprintf(stream, "{\n  \"model_type\": \"%s\",\n", f->model_type);
        for (const family_key *k = f->keys; k->theirs; k++) {
            const int32_t *size = find_size(c, k->ours);
            if (size) fprintf(stream, "  \"%s\": %d,\n", k->theirs, (int)*size);
            else if (!strcmp(k->ours, "activation")) fprintf(stream, "  \"%s\": \"%s\",\n", k->theirs, c->activation);
            else if (!strcmp(k->ours, "norm_eps")) fprintf(stream, "  \"%s\": %.7g,\n", k->theirs, (double)c->norm_eps);
            else if (!strcmp(k->ours, "bias"))
                fprintf(stream, "  \"%s\": %s,\n", k->theirs, c->qkv_bias ? "true" : "false");
        }
        fprintf(stream, "  \"tie_word_embeddings\": %s,\n", c->tie_word_embeddings ? "true" : "false");
        if (end_of_text >= 0)
            fprintf(stream, "  \"bos_token_id\": %d,\n  \"eos_token_id\": %d,\n", (int)end_of_text, (int)end_of_text);
        fprintf(stream, "  \"architectures\": [\"%s\"]\n}\n", f->architecture);
    }
    int32_t failed = !stream || ferror(stream);
    if (stream) failed = fclose(stream) || failed;
    return failed ? failure_say(failure, "%s: cannot write", path) : 0;
}

/* ---- weights ---- */

typedef struct stored { /* a parameter in Hugging Face's tensors: by rows, in order */
    struct {
        char name[96];
        int64_t rows;
    } piece[PIECES];
    int32_t pieces, transposed;
} stored;

/* `pattern` with the block's number in the place of {}, and `kind` behind it */
static void fill_name(char *name, size_t size, const char *pattern, int64_t block, const char *kind) {
    const char *place = strstr(pattern, "{}");
    if (place) snprintf(name, size, "%.*s%lld%s%s", (int)(place - pattern), pattern, (long long)block, place + 2, kind);
    else snprintf(name, size, "%s%s", pattern, kind);
}

static stored find_stored(const family *f, const sampan_config *c, const sampan_parameter *p) {
    const int64_t D = c->head_dim, F = c->n_inner;
    const int64_t rows[PIECES][PIECES] = {{p->rows}, {F, F}, {c->n_head * D, c->n_kv_head * D, c->n_kv_head * D}};
    stored s = {0};
    int64_t block = 0;
    int n = 0;
    const char *kind = strrchr(p->name, '.'); /* ".weight" | ".bias" */
    if (sscanf(p->name, "h.%" SCNd64 ".%n", &block, &n) != 1) n = 0;
    s.transposed = f->transposed && p->columns && n;
    for (const family_module *m = f->modules; m->ours; m++) {
        if (strlen(m->ours) != (size_t)(kind - p->name - n) || strncmp(m->ours, p->name + n, strlen(m->ours))) continue;
        while (s.pieces < PIECES && m->theirs[s.pieces]) s.pieces++;
        for (int32_t k = 0; k < s.pieces; k++) {
            fill_name(s.piece[k].name, sizeof s.piece[k].name, m->theirs[k], block, kind);
            s.piece[k].rows = rows[s.pieces - 1][k];
        }
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

/* 1 with a failure if the file has a head of its own in a model whose config.json ties it: transformers takes the head. */
static int32_t has_other_head(safetensors *file, const family *f, float *values, float *spare, int64_t room,
                              failure *failure) {
    const safetensor *head = safetensors_find(file, "lm_head.weight"), *embedding = NULL;
    for (const family_module *m = f->modules; m->ours && head; m++)
        if (!strcmp(m->ours, "wte")) {
            char name[96];
            fill_name(name, sizeof name, m->theirs[0], 0, ".weight");
            embedding = safetensors_find(file, name);
        }
    if (!head || !embedding || head->elements > room || embedding->elements != head->elements) return 0;
    if (safetensors_read(file, head, values) || safetensors_read(file, embedding, spare)
        || !memcmp(values, spare, (size_t)head->elements * sizeof *values))
        return 0;
    return failure_say(failure,
                       "lm_head.weight differs from the embedding: set tie_word_embeddings to false in config.json");
}

/* One piece of a parameter, from the file to `values`; `room` floats at `spare`. */
static int32_t load_piece(safetensors *file, const family *family, const stored *s, int32_t k,
                          const sampan_parameter *p, float *values, float *spare, int64_t room, failure *failure) {
    const char *name = s->piece[k].name;
    const safetensor *t = safetensors_find(file, name);
    size_t prefix = strlen(family->optional_prefix);
    if (!t && prefix && !strncmp(name, family->optional_prefix, prefix)) t = safetensors_find(file, name + prefix);
    int64_t rows = s->piece[k].rows, columns = p->columns;
    int64_t shape[2] = {s->transposed ? columns : rows, s->transposed ? rows : columns};
    int32_t fits = t
                   && (columns ? t->rank == 2 && t->shape[0] == shape[0] && t->shape[1] == shape[1]
                               : t->rank == 1 && t->shape[0] == rows);
    if (!fits || t->elements > room)
        return failure_say(failure, "tensor %s is %s", name, t ? "of another shape than config.json says" : "missing");
    if (safetensors_read(file, t, s->transposed ? spare : values))
        return failure_say(failure, "tensor %s cannot be read (type %s)", name, t->type);
    if (s->transposed) transpose(values, spare, shape[0], shape[1]);
    return 0;
}

int32_t folder_load_weights(sampan_engine *engine, const family *family, const sampan_config *config,
                            const char *folder, failure *failure) {
    char path[PATH_SIZE];
    safetensors file;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (safetensors_open(&file, path, failure)) return 1;
    int64_t room = largest_parameter(engine);
    float *values = malloc((size_t)room * sizeof(float)), *spare = malloc((size_t)room * sizeof(float));
    int32_t failed = !values || !spare;
    if (failed) failure_say(failure, "no memory to read %s", path);
    else if (config->tie_word_embeddings) failed = has_other_head(&file, family, values, spare, room, failure);
    for (int64_t i = 0; i < sampan_count_parameters(engine) && !failed; i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        stored s = find_stored(family, config, &p);
        float *next = values;
        for (int32_t k = 0; k < s.pieces && !failed; k++) {
            failed = load_piece(&file, family, &s, k, &p, next, spare, room, failure);
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
static int64_t list_tensors(sampan_engine *engine, const family *f, const sampan_config *c, safetensor *tensors,
                            char (*names)[96], int32_t *is_zero) {
    int64_t count = 0;
    for (int64_t i = 0; i < sampan_count_parameters(engine); i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        stored s = find_stored(f, c, &p);
        for (int32_t k = 0; k < s.pieces; k++, count++) {
            int64_t rows = s.piece[k].rows, columns = parameter_columns(&p);
            snprintf(names[count], sizeof names[0], "%s", s.piece[k].name);
            tensors[count] = (safetensor){.name = names[count], .rank = p.columns ? 2 : 1, .elements = rows * columns};
            tensors[count].shape[0] = s.transposed ? columns : rows;
            tensors[count].shape[1] = s.transposed ? rows : columns;
            is_zero[count] = 0;
        }
        const char *ending = strstr(p.name, ".weight");
        if (f->zero_biases && !c->norm_bias && ending && (!p.columns || !strncmp(p.name, "h.", 2))) {
            const char *name = s.piece[0].name;
            snprintf(names[count], sizeof names[0], "%.*s.bias", (int)(strlen(name) - strlen(ending)), name);
            tensors[count] = (safetensor){.name = names[count], .rank = 1, .shape = {p.rows}, .elements = p.rows};
            is_zero[count++] = 1;
        }
    }
    return count;
}

int32_t folder_save_weights(sampan_engine *engine, const family *family, const sampan_config *config,
                            const char *folder, failure *failure) {
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
    int64_t count = failed ? 0 : list_tensors(engine, family, config, tensors, names, is_zero);
    failed = failed || safetensors_begin(&writer, path, tensors, count);
    for (int64_t i = 0; i < sampan_count_parameters(engine) && !failed; i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        stored s = find_stored(family, config, &p);
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
    if (failed) failure_say(failure, "%s: cannot write; the file that was there is unchanged", path);
    free(tensors);
    free(names);
    free(is_zero);
    free(values);
    free(spare);
    return failed;
}
