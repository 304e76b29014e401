/* main.c: sampan-c, the stand-alone program: it trains and samples without Python.

       make && build/sampan-c train --init_from ../out/shakespeare --out_dir ../out/mine --data_dir ../data/shakespeare
       build/sampan-c sample ../out/mine --start "ROMEO:" --temperature 0.8

   Training starts from the weights of a folder: a run of `sampan train`, or any Hugging Face folder of a known family
   (config.json, model.safetensors). If the folder has a run.json, its settings are the defaults; flags override them.
   The data folder has train.bin and val.bin. Flags are those of config.py, as --key value or --key=value. Loss lines,
   batches, evaluation windows and schedule are the package's, so the numbers are too. The best weights go to out_dir,
   which becomes such a folder; without --init_from it is one already.

   Sampling reads any folder that the package writes, and writes the same text as `sampan sample` for the same seed.

   It also reads llm.c's files. --recipe llmc trains as llm.c's train_gpt2 does and prints the same lines, and `test` does
   the work of its test_gpt2:

       build/sampan-c train --recipe llmc --init_from gpt2_124M.bin --out_dir ../out/gpt2 \
           --input_bin tiny_shakespeare_train.bin --input_val_bin tiny_shakespeare_val.bin
       build/sampan-c test --init_from gpt2_124M.bin --debug_state gpt2_124M_debug_state.bin   (status 1: they differ)

   What it does not do: make a new model (`sampan train --max_iters 0` does), keep the optimizer for a resume, prepare
   text, sample with stop strings. */

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "platform/clock.h"
#include "platform/file.h"
#include "draw.h"
#include "folder.h"
#include "settings.inc"
#include "llmc.h"
#include "text.h"
#include "tokens.h"

/* ---- settings: the package's, and this program's own ---- */

#define OWN_SETTINGS(X) \
    X(TEXT, recipe, "", 0, 0) \
    X(TEXT, order, "windows", 0, 0) \
    X(TEXT, input_bin, "", 0, 0) \
    X(TEXT, input_val_bin, "", 0, 0) \
    X(TEXT, debug_state, "", 0, 0)

enum { TEXT, WHOLE, REAL, FLAG, TEXT_SIZE = 8192, PATH_SIZE = TEXT_SIZE + 64 };
#define FIELD_TEXT(name) char name[TEXT_SIZE];
#define FIELD_WHOLE(name) int64_t name;
#define FIELD_REAL(name) double name;
#define FIELD_FLAG(name) int64_t name;
#define FIELD(kind, name, otherwise, low, high) FIELD_##kind(name)
#define DEFAULT(kind, name, otherwise, low, high) .name = otherwise,
#define ROW(kind, name, otherwise, low, high) {#name, kind, offsetof(settings, name), low, high},

typedef struct settings {
    PACKAGE_SETTINGS(FIELD)
    OWN_SETTINGS(FIELD)
} settings;

static const settings DEFAULTS = {PACKAGE_SETTINGS(DEFAULT) OWN_SETTINGS(DEFAULT)};

typedef struct setting {
    const char *name;
    int32_t kind;
    size_t offset;
    double low, high;
} setting;
static const setting SETTINGS[] = {PACKAGE_SETTINGS(ROW) OWN_SETTINGS(ROW)};

/* ---- errors: the program's only way out before its end ---- */

static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("sampan-c: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(2);
}

static failure wrong; /* of the reader that failed last */

static void require(int32_t failed, const char *message) {
    if (failed) fail("%s", message);
}
static void require_read(int32_t failed) { require(failed, wrong.text); }

static void *allocate(int64_t count, size_t width) {
    void *p = calloc((size_t)count, width);
    if (!p) fail("no memory for %lld values", (long long)count);
    return p;
}

static const setting *find_setting(const char *name, size_t length) {
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++)
        if (strlen(SETTINGS[i].name) == length && !strncmp(SETTINGS[i].name, name, length)) return &SETTINGS[i];
    return NULL;
}

static void set_text(settings *s, const setting *row, const char *text) {
    void *field = (char *)s + row->offset;
    char *end;
    if (row->kind == TEXT) {
        if (strlen(text) >= TEXT_SIZE) fail("%s is too long", row->name);
        memcpy(field, text, strlen(text) + 1);
        return;
    }
    if (!strcmp(text, "auto") || !strcmp(text, "None")) text = "0";
    if (row->kind == FLAG && (!strcmp(text, "True") || !strcmp(text, "true"))) text = "1";
    if (row->kind == FLAG && (!strcmp(text, "False") || !strcmp(text, "false"))) text = "0";
    const double number = strtod(text, &end);
    if (end == text || *end)
        fail("%s=%s: expected %s", row->name, text, row->kind == FLAG ? "True or False" : "a number");
    if (!(number >= row->low && number <= row->high))
        fail("%s=%s: expected a number from %g to %g", row->name, text, row->low, row->high);
    if (row->kind == REAL) {
        *(double *)field = number;
        return;
    }
    if (number != floor(number)) fail("%s=%s: expected a whole number", row->name, text);
    *(int64_t *)field = strtoll(text, &end, 10);                    /* a double holds only whole numbers up to 2^53 */
    if (*end && number < 9e18) *(int64_t *)field = (int64_t)number; /* 1e3 */
}

/* Takes the settings of run.json if there is one. It has more than this program does, and float16, which only a GPU's
   engine has. */
static void read_run(settings *s, const char *folder) {
    char path[PATH_SIZE];
    json doc;
    snprintf(path, sizeof path, "%s/run.json", folder);
    if (file_count_bytes(path) < 0) return;
    require_read(json_read_file(&doc, path, &wrong));
    int64_t object = json_find(&doc, 0, "settings");
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) {
        const setting *row = &SETTINGS[i];
        int64_t at = json_find(&doc, object, row->name);
        if (!at || !strcmp(row->name, "out_dir") || !strcmp(row->name, "init_from")) continue;
        const json_value *v = &doc.values[at];
        if (v->type == JSON_STRING && strcmp(v->string, "float16")) set_text(s, row, v->string);
        else if (v->type == JSON_NUMBER && row->kind != TEXT) set_text(s, row, json_digits(&doc, at));
        else if ((v->type == JSON_TRUE || v->type == JSON_FALSE) && row->kind == FLAG)
            set_text(s, row, v->type == JSON_TRUE ? "1" : "0");
        else if (v->type == JSON_NULL && row->kind == WHOLE && row->low == 0) set_text(s, row, "0");
    }
    const char *data = json_string(&doc, json_find(&doc, 0, "data"), "folder", NULL);
    if (data) set_text(s, find_setting("data_dir", 8), data);
    json_free(&doc);
}

/* What llm.c's train_gpt2 has compiled in. */
static void use_recipe(settings *s) {
    if (!s->recipe[0]) return;
    if (strcmp(s->recipe, "llmc")) fail("recipe=%s: expected llmc", s->recipe);
    s->batch_size = 4;
    s->block_size = 64;
    s->gradient_accumulation_steps = 1;
    s->max_iters = 41;
    s->eval_interval = 10;
    s->eval_iters = 5;
    s->learning_rate = 1e-4;
    s->decay_lr = 0;
    snprintf(s->optimizer, sizeof s->optimizer, "adamw");
    s->beta1 = 0.9;
    s->beta2 = 0.999;
    s->weight_decay = s->grad_clip = s->dropout = 0.0;
    snprintf(s->dtype, sizeof s->dtype, "float32");
    snprintf(s->order, sizeof s->order, "llmc");
}

static int32_t given[sizeof SETTINGS / sizeof *SETTINGS]; /* as a flag */

/* --key value and --key=value. Twice: first for the folders and the recipe, which come between defaults and flags. */
static void read_flags(settings *s, int argc, char **argv, int32_t only_sources) {
    for (int i = 2; i < argc; i++) {
        const char *key = argv[i], *equals = strchr(key, '='), *value;
        if (i == 2 && *key != '-' && !strcmp(argv[1], "sample")) { /* the folder, as in sampan sample FOLDER */
            set_text(s, find_setting("out_dir", 7), key);
            continue;
        }
        if (strncmp(key, "--", 2)) fail("%s: expected --key value or --key=value", key);
        key += 2;
        size_t length = equals ? (size_t)(equals - key) : strlen(key);
        const setting *row = !strncmp(key, "prompt", 6) && length == 6 ? find_setting("start", 5)
                                                                       : find_setting(key, length);
        if (!row) fail("unknown setting %.*s", (int)length, key);
        if (equals) value = equals + 1;
        else if (++i < argc) value = argv[i];
        else fail("%s needs a value", row->name);
        int32_t is_source = !strcmp(row->name, "out_dir") || !strcmp(row->name, "init_from")
                            || !strcmp(row->name, "recipe");
        if (!only_sources || is_source) set_text(s, row, value);
        given[row - SETTINGS] = 1;
    }
}

static int32_t is_given(const char *name) { return given[find_setting(name, strlen(name)) - SETTINGS]; }

/* ---- the model of the folder ---- */

typedef struct program {
    settings s;
    sampan_config config;
    const family *family;
    int32_t is_llmc; /* the weights are a file of llm.c, not a folder */
    sampan_engine *engine;
} program;

static const char *source_folder(const settings *s) { return s->init_from[0] ? s->init_from : s->out_dir; }

/* The bytes of folder/name; NULL where there is no such file, or no folder. */
static char *read_member(const char *folder, const char *name, int64_t *size) {
    char path[PATH_SIZE];
    if (!folder[0]) return NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return file_read(path, size, &wrong);
}

static int32_t has_member(const char *folder, const char *name) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return file_exists(path);
}

static void write_text(const char *path, const char *text, int64_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(text, 1, (size_t)size, file) != (size_t)size || fclose(file)) fail("%s: cannot write", path);
}

/* Makes out_dir the folder of a model from llm.c: its config.json, and the tokenizer of the data folder, or of a
   tokenizer.json or gpt2_tokenizer.bin beside the weights. */
static void describe_llmc(const program *p) {
    const settings *s = &p->s;
    const char *slash = strrchr(s->init_from, '/');
    char beside[PATH_SIZE], from[PATH_SIZE + 32], to[PATH_SIZE];
    int64_t size;
    int32_t end_of_text = -1;
    snprintf(beside, sizeof beside, "%.*s", slash ? (int)(slash - s->init_from) : 1, slash ? s->init_from : ".");
    snprintf(from, sizeof from, "%s/gpt2_tokenizer.bin", beside);
    snprintf(to, sizeof to, "%s/tokenizer.json", s->out_dir);
    char *text = read_member(s->data_dir, "tokenizer.json", &size);
    if (!text) text = read_member(beside, "tokenizer.json", &size);
    if (text) {
        vocabulary v;
        write_text(to, text, size);
        if (!vocabulary_read(&v, to, &wrong)) end_of_text = v.end_of_text, vocabulary_free(&v);
    } else if (file_exists(from)) {
        require_read(llmc_convert_tokenizer(from, to, &end_of_text, &wrong));
    } else {
        fprintf(stderr, "%s gets no tokenizer: there is no tokenizer.json or gpt2_tokenizer.bin in %s\n", s->out_dir,
                beside);
    }
    free(text);
    require_read(folder_save_config(&p->config, p->family, end_of_text, s->out_dir, &wrong));
}

/* Makes out_dir a model's folder like the one that training starts from; refuses to spoil what is there. */
static void prepare_out_dir(const program *p) {
    static const char *const DESCRIPTION[] = {"config.json",
                                              "tokenizer.json",
                                              "tokenizer_config.json",
                                              "generation_config.json",
                                              "special_tokens_map.json",
                                              "chat_template.jinja"};
    static const char *const MODEL[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "ckpt.pt", "last"};
    const settings *s = &p->s;
    int64_t size;
    if (!s->init_from[0]) {
        if (has_member(s->out_dir, "run.json"))
            fail("%s holds a run of sampan train, with its own progress: start from it with --init_from %s, and name "
                 "another --out_dir",
                 s->out_dir, s->out_dir);
        return;
    }
    for (size_t i = 0; i < sizeof MODEL / sizeof *MODEL; i++)
        if (has_member(s->out_dir, MODEL[i])) fail("%s already holds a model; choose another --out_dir", s->out_dir);
    file_make_folder(s->out_dir);
    if (p->is_llmc) {
        describe_llmc(p);
        return;
    }
    for (size_t i = 0; i < sizeof DESCRIPTION / sizeof *DESCRIPTION; i++) {
        char *text = read_member(s->init_from, DESCRIPTION[i], &size), path[PATH_SIZE];
        if (!text) continue;
        snprintf(path, sizeof path, "%s/%s", s->out_dir, DESCRIPTION[i]);
        write_text(path, text, size);
        free(text);
    }
}

/* Refuses a data folder with another tokenizer than the model's: the same ids would mean other tokens. */
static void check_tokenizer(const settings *s) {
    int64_t size, data_size;
    char *ours = read_member(source_folder(s), "tokenizer.json", &size),
         *data = read_member(s->data_dir, "tokenizer.json", &data_size);
    if (ours && data && (size != data_size || memcmp(ours, data, (size_t)size)))
        fail("%s was prepared with another tokenizer than that of %s", s->data_dir, source_folder(s));
    free(ours);
    free(data);
}

static void program_open(program *p, int32_t training) {
    settings *s = &p->s;
    sampan_config *c = &p->config;
    double *frequencies = NULL;
    const char *source = source_folder(s);
    p->is_llmc = llmc_recognizes(source);
    *c = (sampan_config){
        .struct_size = sizeof *c,
        .dtype = s->dtype,
        .threads = (int32_t)s->threads,
        .optimizer = training ? s->optimizer : NULL,
        .beta1 = s->beta1,
        .beta2 = s->beta2,
        .weight_decay = s->weight_decay,
        .grad_clip = s->grad_clip,
        .momentum = s->momentum,
        .adamw_lr_ratio = s->adamw_lr_ratio,
        .gradient_checkpointing = (int32_t)s->gradient_checkpointing,
        .seed = (uint64_t)s->seed,
        .dropout = (float)s->dropout,
    };
    if (p->is_llmc) require_read(llmc_read_config(c, &p->family, source, &wrong));
    else require_read(folder_read_config(c, &p->family, &frequencies, source, &wrong));
    if (s->block_size > c->block_size)
        fail("block_size=%lld: the model has %d", (long long)s->block_size, (int)c->block_size);
    if (!s->block_size) s->block_size = c->block_size;
    require_read(sampan_create(&p->engine, c, wrong.text, sizeof wrong.text));
    free(frequencies);
    c->rotary_frequencies = NULL;
    if (p->is_llmc) require_read(llmc_load_weights(p->engine, c, source, &wrong));
    else require_read(folder_load_weights(p->engine, p->family, c, source, &wrong));
    fprintf(stderr, "%s: %s\n", source, sampan_description(p->engine));
}

/* ---- train: loop.py's loop ---- */

static double learning_rate(const settings *s, int64_t step) {
    int64_t end = s->lr_decay_iters ? s->lr_decay_iters : s->max_iters;
    if (!s->decay_lr) return s->learning_rate;
    if (step < s->warmup_iters) return s->learning_rate * (double)(step + 1) / (double)(s->warmup_iters + 1);
    if (step >= end) return s->min_lr;
    double done = (double)(step - s->warmup_iters) / (double)(end - s->warmup_iters);
    return s->min_lr + 0.5 * (1.0 + cos(3.14159265358979323846 * done)) * (s->learning_rate - s->min_lr);
}

/* Mean loss over data.py's evaluation_batches: fixed windows that cover the split evenly; in another order, llm.c's:
 * the first ones. */
static double evaluate(program *p, tokens *split, int32_t *x, int32_t *y) {
    const settings *s = &p->s;
    int64_t block = s->block_size, available = (split->count - 1) / block;
    if (available < 1)
        fail("%s has %lld tokens, and a block needs %lld", split->path, (long long)split->count,
             (long long)(block + 1));
    int64_t count = available < s->batch_size * s->eval_iters ? available : s->batch_size * s->eval_iters;
    int32_t evenly = !strcmp(s->order, "windows");
    int64_t rest = split->count - 1 - available * block, whole = evenly && count == available && rest > 0,
            total = count + whole;
    double sum = 0.0, targets = 0.0;
    for (int64_t first = 0; first < total; first += s->batch_size) {
        int64_t n = total - first < s->batch_size ? total - first : s->batch_size, ignored = 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t window = first + i, start = window < count ? (evenly ? window * available / count : window) * block
                                                               : split->count - 1 - block;
            require_read(tokens_read_window(split, start, block, x + i * block, y + i * block, &wrong));
            if (window == count) { /* the last window shares targets with the one before */
                ignored = block - rest;
                for (int64_t j = 0; j < ignored; j++) y[i * block + j] = -1;
            }
        }
        double loss;
        require(sampan_loss(p->engine, x, y, n, block, &loss, NULL), sampan_error(p->engine));
        sum += loss * (double)(n * block - ignored);
        targets += (double)(n * block - ignored);
    }
    return sum / targets;
}

/* model.py's flops_per_token */
static double count_flops(const program *p) {
    const sampan_config *c = &p->config;
    double multiplied = 0.0;
    for (int64_t i = 0; i < sampan_count_parameters(p->engine); i++) {
        sampan_parameter row;
        sampan_get_parameter(p->engine, i, &row);
        int32_t looked_up = !strcmp(row.name, "wpe.weight")
                            || (!strcmp(row.name, "wte.weight") && !c->tie_word_embeddings);
        if (!looked_up) multiplied += (double)row.rows * (double)(row.columns ? row.columns : 1);
    }
    return 6.0 * multiplied + 12.0 * c->n_layer * c->n_head * c->head_dim * (double)p->s.block_size;
}

/* Opens a split: the data folder's, or a token file of llm.c. */
static void open_split(const program *p, tokens *t, const char *split, const char *file) {
    if (file[0]) require_read(llmc_open_tokens(t, file, p->config.vocab_size, &wrong));
    else if (!p->s.data_dir[0]) fail("no data: give --data_dir, or --input_bin and --input_val_bin");
    else require_read(tokens_open(t, p->s.data_dir, split, p->config.vocab_size, &wrong));
}

/* Draws 63 tokens after an end of text, as train_gpt2 does every 20 steps, and prints them as it does: without a byte
   that is no character, and as ids if there is no tokenizer. */
static void generate_as_llmc(program *p, uint64_t *random) {
    enum { TOKENS = 64, GPT2_END = 50256 };
    const int64_t V = p->config.vocab_size;
    float *logits = allocate(V, sizeof *logits), *probabilities = allocate(V, sizeof *probabilities);
    vocabulary v;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/tokenizer.json", p->s.out_dir);
    const int32_t has_tokenizer = !vocabulary_read(&v, path, &wrong);
    int32_t id = has_tokenizer && v.end_of_text >= 0 ? v.end_of_text : GPT2_END < V ? GPT2_END : 0;
    sampan_session *session;
    require(sampan_session_create(&session, p->engine, 1), sampan_error(p->engine));
    puts("generating:\n---");
    for (int64_t i = 1; i < TOKENS && i <= p->config.block_size; i++) {
        require(sampan_session_feed(session, NULL, 1, &id, 1, logits), sampan_error(p->engine));
        float largest = -INFINITY, sum = 0.0f, seen = 0.0f, coin = llmc_random(random);
        for (int64_t k = 0; k < V; k++) largest = fmaxf(largest, logits[k]);
        for (int64_t k = 0; k < V; k++) sum += probabilities[k] = expf(logits[k] - largest);
        for (id = 0; id < V - 1 && !(coin < (seen += probabilities[id] / sum)); id++) {
        }
        const struct token *t = has_tokenizer && id < v.count ? &v.token[id] : NULL;
        if (!has_tokenizer) printf("%d ", (int)id);
        else if (t && (t->length != 1 || isprint((unsigned char)*t->bytes) || isspace((unsigned char)*t->bytes)))
            fwrite(t->bytes, 1, (size_t)t->length, stdout);
        fflush(stdout);
    }
    puts("\n---");
    sampan_session_destroy(session);
    if (has_tokenizer) vocabulary_free(&v);
    free(logits);
    free(probabilities);
}

static void train(program *p) {
    settings *s = &p->s;
    program_open(p, 1);
    tokens train_tokens, val_tokens;
    windows order;
    llmc_batches batches = {0};
    int32_t in_windows = !strcmp(s->order, "windows"), shuffled = !strcmp(s->order, "llmc");
    if (!in_windows && !shuffled && strcmp(s->order, "file"))
        fail("order=%s: expected windows (shuffled), file (from its beginning) or llmc (its shuffle)", s->order);
    check_tokenizer(s);
    open_split(p, &train_tokens, "train", s->input_bin);
    open_split(p, &val_tokens, "val", s->input_val_bin);
    if (!s->eval_only) prepare_out_dir(p);
    require_read(windows_create(&order, &train_tokens, s->block_size, (uint64_t)s->seed, &wrong));
    if (!in_windows)
        require_read(llmc_batches_create(&batches, &train_tokens, s->batch_size, s->block_size, shuffled, &wrong));
    int32_t *x = allocate(s->batch_size * s->block_size, sizeof *x),
            *y = allocate(s->batch_size * s->block_size, sizeof *y);
    int64_t per_step = s->batch_size * s->gradient_accumulation_steps;
    double best = INFINITY, peak, flops = count_flops(p) * (double)per_step * (double)s->block_size;
    require(sampan_measure_peak(p->engine, &peak), sampan_error(p->engine));

    const int32_t as_llmc = s->recipe[0] != 0; /* prints what train_gpt2 prints */
    const int64_t tokens_per_batch = s->batch_size * s->block_size;
    uint64_t random = 1337;
    if (as_llmc)
        llmc_print_header(&p->config, (train_tokens.count - 1) / tokens_per_batch,
                          (val_tokens.count - 1) / tokens_per_batch, s->batch_size, s->block_size);
    for (int64_t step = 0;; step++) {
        if (step % s->eval_interval == 0 || step >= s->max_iters) {
            double train_loss = as_llmc ? 0.0 : evaluate(p, &train_tokens, x, y);
            double val_loss = evaluate(p, &val_tokens, x, y);
            if (!as_llmc) printf("step %lld: train loss %.4f, val loss %.4f\n", (long long)step, train_loss, val_loss);
            else if (step < s->max_iters) printf("val loss %f\n", val_loss);
            else fprintf(stderr, "step %lld: val loss %f\n", (long long)step, val_loss);
            fflush(stdout);
            if (val_loss < best) {
                best = val_loss;
                if (!s->eval_only)
                    require_read(folder_save_weights(p->engine, p->family, &p->config, s->out_dir, &wrong));
            }
        }
        if (step >= s->max_iters || s->eval_only) break;
        if (as_llmc && step > 0 && step % 20 == 0) generate_as_llmc(p, &random);

        double start = clock_seconds(), loss, norm;
        for (int64_t first = 0; first < per_step; first += s->batch_size) {
            int64_t window = step * per_step + first;
            int32_t failed = in_windows ? windows_read(&order, window, s->batch_size, x, y, &wrong)
                                        : llmc_batches_read(&batches, window / s->batch_size, x, y, &wrong);
            require_read(failed);
            require(sampan_accumulate(p->engine, x, y, s->batch_size, s->block_size), sampan_error(p->engine));
        }
        const char *refused;
        require(sampan_update(p->engine, learning_rate(s, step), &loss, &norm, &refused), sampan_error(p->engine));
        if (refused) fail("step %lld: %s (loss %f); lower --learning_rate", (long long)step, refused, loss);
        double seconds = clock_seconds() - start;
        if (step % s->log_interval == 0) {
            if (as_llmc) printf("step %lld: train loss %f (took %f ms)\n", (long long)step, loss, 1000.0 * seconds);
            else
                printf("iter %lld: loss %.4f, time %.2fms, mfu %.2f%%\n", (long long)step, loss, 1000.0 * seconds,
                       100.0 * flops / seconds / peak);
            fflush(stdout);
        }
    }
    free(x);
    free(y);
    llmc_batches_free(&batches);
    tokens_close(&train_tokens);
    tokens_close(&val_tokens);
}

/* ---- test: against llm.c's debug state ---- */

static const double TOLERANCE = 1e-3; /* of a value, or of its row's root mean square where that is more */

static double root_mean_square(const float *x, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)n);
}

/* The largest error of found (rows, columns) relative to the larger of the wanted value and its row's root mean square,
   or a thousandth of the whole tensor's: in a row that ought to be zero there is only rounding. Infinite where a value
   is not a number, or a zero is missed. */
static double largest_error(const float *found, const float *wanted, int64_t rows, int64_t columns) {
    double largest = 0.0, least = 1e-3 * root_mean_square(wanted, rows * columns);
    for (int64_t i = 0; i < rows; i++) {
        double row = root_mean_square(wanted + i * columns, columns);
        for (int64_t j = i * columns; j < (i + 1) * columns; j++) {
            double scale = fmax(fmax(fabs((double)wanted[j]), row), least),
                   error = fabs((double)found[j] - (double)wanted[j]);
            if (error == 0.0) continue;
            error = error / scale <= INFINITY ? error / scale : INFINITY;
            largest = fmax(largest, error);
        }
    }
    return largest;
}

/* One line; 1 where the error is too large. */
static int test_report(const char *name, double error) {
    int wrong = !(error <= TOLERANCE);
    printf("%-24s %.1e%s\n", name, error, wrong ? "  WRONG" : "");
    return wrong;
}

static int test_logits(program *p, llmc_state *state) {
    int64_t V = p->config.vocab_size;
    float *logits = allocate(state->B * V, sizeof *logits), *wanted = allocate(V, sizeof *wanted);
    int32_t *ids = allocate(state->B, sizeof *ids);
    double error = 0.0;
    sampan_session *session;
    require(sampan_session_create(&session, p->engine, state->B), sampan_error(p->engine));
    for (int64_t t = 0; t < state->T; t++) {
        for (int64_t b = 0; b < state->B; b++) ids[b] = state->x[b * state->T + t];
        require(sampan_session_feed(session, NULL, state->B, ids, 1, logits), sampan_error(p->engine));
        for (int64_t b = 0; b < state->B; b++) {
            require(llmc_state_read_logits(state, &p->config, b, t, wanted), "the debug state cannot be read");
            error = fmax(error, largest_error(logits + b * V, wanted, 1, V));
        }
    }
    sampan_session_destroy(session);
    free(logits);
    free(wanted);
    free(ids);
    return test_report("logits", error);
}

/* Every value of every gradient. Returns how many lines were wrong. */
static int test(program *p) {
    llmc_state state;
    double loss;
    int mistakes = 0;
    if (!strcmp(p->s.dtype, "auto")) snprintf(p->s.dtype, sizeof p->s.dtype, "float32");
    p->s.dropout = 0.0;
    program_open(p, 1);
    require_read(llmc_state_open(&state, p->s.debug_state, &p->config, &wrong));
    require(sampan_loss(p->engine, state.x, state.y, state.B, state.T, &loss, NULL), sampan_error(p->engine));
    printf("%lld sequences of %lld tokens, loss %f; relative errors:\n", (long long)state.B, (long long)state.T, loss);
    mistakes += test_logits(p, &state);
    mistakes += test_report("loss", fabs(loss - state.loss) / fabs(state.loss));
    require(sampan_accumulate(p->engine, state.x, state.y, state.B, state.T), sampan_error(p->engine));
    for (int64_t i = 0; i < sampan_count_parameters(p->engine); i++) {
        sampan_parameter row;
        sampan_get_parameter(p->engine, i, &row);
        int64_t columns = row.columns ? row.columns : row.rows, rows = row.columns ? row.rows : 1;
        float *found = allocate(rows * columns, sizeof *found), *wanted = allocate(rows * columns, sizeof *wanted);
        require(sampan_read(p->engine, "gradient", i, found), sampan_error(p->engine));
        require(llmc_state_read_gradient(&state, &p->config, &row, wanted), "the debug state cannot be read");
        mistakes += test_report(row.name, largest_error(found, wanted, rows, columns));
        free(found);
        free(wanted);
    }
    llmc_state_close(&state);
    puts(mistakes ? "the debug state is NOT what this model computes" : "everything agrees");
    return mistakes;
}

/* ---- sample ---- */

/* Leaves in out_dir the folder that was asked for, and in init_from that of the weights: a run that has no best ones yet
   has its last. */
static void find_weights(settings *s) {
    const int32_t is_last = !strcmp(s->weights, "last"), is_run = !s->init_from[0] || !strcmp(s->init_from, "resume");
    if (!is_last && strcmp(s->weights, "best")) fail("weights=%s: expected best or last", s->weights);
    if (!is_run) memcpy(s->out_dir, s->init_from, TEXT_SIZE);
    const int32_t takes_last = is_run && has_member(s->out_dir, "run.json")
                               && (is_last || !has_member(s->out_dir, "model.safetensors"));
    snprintf(s->init_from, TEXT_SIZE, "%.*s%s", TEXT_SIZE - 6, s->out_dir, takes_last ? "/last" : "");
}

/* The text of `start`: itself, FILE:PATH, or - for standard input, with line feeds as its line ends. To be freed. */
static char *read_prompt(const char *start) {
    char *text = NULL;
    int64_t size = 0;
    if (!strncmp(start, "FILE:", 5)) {
        require_read(!(text = file_read(start + 5, &size, &wrong)));
    } else if (strcmp(start, "-")) {
        strcpy(text = allocate((int64_t)strlen(start) + 1, 1), start);
    } else {
        do { /* in pieces of 64 KB */
            if (!(text = realloc(text, (size_t)size + 65537))) fail("no memory for the prompt");
            size += (int64_t)fread(text + size, 1, 65536, stdin);
        } while (!feof(stdin) && !ferror(stdin));
        text[size] = 0;
    }
    char *to = text;
    for (char *from = text + (strncmp(text, "\xef\xbb\xbf", 3) ? 0 : 3); *from; from++) { /* a byte-order mark */
        if (*from == '\r' && from[1] == '\n') continue;
        *to++ = *from == '\r' ? '\n' : *from;
    }
    *to = 0;
    return text;
}

/* What ends a text: the ids in generation_config.json and config.json, or the token whose name says so. */
typedef struct ends {
    int32_t id[16], count;
} ends;

static void add_end(ends *e, const vocabulary *v, double id) {
    if (id >= 0 && id < (double)v->count && v->token[(int32_t)id].name && e->count < 16)
        e->id[e->count++] = (int32_t)id;
}

static ends read_ends(const char *folder, const vocabulary *v) {
    static const char *const FILES[] = {"generation_config.json", "config.json"};
    ends e = {0};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char path[PATH_SIZE];
        json doc;
        snprintf(path, sizeof path, "%s/%s", folder, FILES[i]);
        if (!file_exists(path)) continue;
        require_read(json_read_file(&doc, path, &wrong));
        int64_t at = json_find(&doc, 0, "eos_token_id");
        if (at && doc.values[at].type == JSON_NUMBER) add_end(&e, v, doc.values[at].number);
        for (at = at && doc.values[at].type == JSON_ARRAY ? doc.values[at].first : 0; at; at = doc.values[at].next)
            add_end(&e, v, doc.values[at].type == JSON_NUMBER ? doc.values[at].number : -1);
        json_free(&doc);
    }
    if (!e.count) add_end(&e, v, v->end_of_text);
    return e;
}

static int32_t ends_text(const ends *e, int32_t id) {
    for (int32_t i = 0; i < e->count; i++)
        if (e->id[i] == id) return 1;
    return 0;
}

/* Returns the number of documents in a run's training text; INFINITY if it is unknown. */
static double count_documents(const char *folder) {
    char path[PATH_SIZE];
    json doc;
    snprintf(path, sizeof path, "%s/run.json", folder);
    if (!file_exists(path)) return INFINITY;
    require_read(json_read_file(&doc, path, &wrong));
    double documents = json_number(&doc, json_find(&doc, 0, "data"), "documents", INFINITY);
    json_free(&doc);
    return documents;
}

/* The ids that a sample begins with, to be freed, with room for max_new_tokens more; *prompt is what is shown of them.
   Without a prompt a sample begins as a document does, or with a line end in a model of one text. */
static int32_t *encode_prompt(const settings *s, const vocabulary *v, const ends *e, char **prompt, int64_t *count) {
    int32_t *ids, *all;
    int64_t n;
    const int32_t has_documents = (e->count || v->begins) && count_documents(s->out_dir) > 1;
    *prompt = read_prompt(is_given("start") ? s->start : has_documents ? "" : "\n");
    int32_t failed = vocabulary_encode(v, *prompt, &ids, &n, &wrong);
    if (failed && !is_given("start")) { /* a vocabulary without line ends */
        free(*prompt);
        *prompt = allocate(v->token[0].length + 1, 1);
        memcpy(*prompt, v->token[0].bytes, (size_t)v->token[0].length);
        failed = vocabulary_encode(v, *prompt, &ids, &n, &wrong);
    }
    require_read(failed);
    all = allocate(v->begins + n + s->max_new_tokens + 2, sizeof *all);
    memcpy(all, v->begin, (size_t)v->begins * sizeof *all);
    memcpy(all + v->begins, ids, (size_t)n * sizeof *all);
    free(ids);
    *count = v->begins + n;
    if (!*count) all[(*count)++] = e->count ? e->id[0] : 0;
    return all;
}

/* Writes one sample after a prompt of `count` ids, in whole characters. `ids` has room for max_new_tokens more. */
static void write_sample(program *p, const vocabulary *v, const ends *e, const uint8_t *after, int32_t *ids,
                         int64_t count, int64_t number) {
    const settings *s = &p->s;
    const drawing d = {s->temperature, s->top_p, s->min_p, s->repetition_penalty, s->top_k, s->no_repeat_ngram_size};
    const int64_t V = p->config.vocab_size, block = p->config.block_size, end = count + s->max_new_tokens;
    float *logits = allocate(V, sizeof *logits);
    draw_spare *spare = allocate(V, sizeof *spare);
    char held[4]; /* the first bytes of a character; `after` allows no others than UTF-8's */
    int32_t state = UTF8_WHOLE, held_count = 0;
    int64_t fed = count > block ? count - block : 0;
    random_numbers random;
    random_seed(&random, (uint64_t)s->seed, (uint64_t)number);
    sampan_session *session = NULL;
    for (; count < end; count++) {
        if (session && sampan_session_position(session, 0) == block) { /* full: again from the newer half, as draw.py */
            sampan_session_destroy(session);
            session = NULL;
            fed = count - (block / 2 > 0 ? block / 2 : 1);
        }
        if (!session) require(sampan_session_create(&session, p->engine, 1), sampan_error(p->engine));
        require(sampan_session_feed(session, NULL, 1, ids + fed, count - fed, logits), sampan_error(p->engine));
        fed = count;
        discourage_repetition(&d, logits, V, ids, count);
        for (int64_t i = 0; i < V; i++)
            if (after[state * V + i] == UTF8_BROKEN) logits[i] = -INFINITY;
        forbid_repetition(&d, logits, V, ids, count);
        int32_t id = ids[count] = draw(&d, logits, V, random_next(&random), spare);
        if (id < 0) fail("the model's output is NaN or infinite: its weights are damaged, or its training diverged");
        if (ends_text(e, id)) break;
        for (int64_t i = 0; i < v->token[id].length; i++) {
            held[held_count++] = v->token[id].bytes[i];
            state = utf8_next(state, (uint8_t)v->token[id].bytes[i]);
            if (state != UTF8_WHOLE) continue;
            fwrite(held, 1, (size_t)held_count, stdout);
            held_count = 0;
        }
        fflush(stdout);
    }
    sampan_session_destroy(session);
    free(logits);
    free(spare);
}

static void sample(program *p) {
    settings *s = &p->s;
    char path[PATH_SIZE];
    vocabulary v;
    int64_t count, V;
    char *prompt;
    if (!is_given("seed")) {
        s->seed = (time(NULL) * 1000003 ^ clock_nanoseconds()) & 0xffffffff;
        fprintf(stderr, "seed %lld\n", (long long)s->seed);
    }
    find_weights(s);
    program_open(p, 0);
    V = p->config.vocab_size;
    snprintf(path, sizeof path, "%s/tokenizer.json", s->init_from);
    require_read(vocabulary_read(&v, path, &wrong));
    uint8_t *after = allocate(UTF8_STATES * V, 1);
    if (vocabulary_follow(&v, V, after)) fail("%s: no token can begin a text; it is damaged", path);

    const ends e = read_ends(s->init_from, &v);
    int32_t *ids = encode_prompt(s, &v, &e, &prompt, &count);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] >= V) fail("%s has token %d, and the model has %lld", path, (int)ids[i], (long long)V);
    for (int64_t number = 0; number < s->num_samples; number++) {
        printf("%s%s", number ? "\n---------------\n" : "", prompt);
        write_sample(p, &v, &e, after, ids, count, number);
    }
    putchar('\n');
    free(ids);
    free(prompt);
    free(after);
    vocabulary_free(&v);
}

static int print_help(void) {
    puts("sampan-c train  --init_from RUN --out_dir NEW --data_dir DATA [--key value ...]\n"
         "sampan-c sample RUN [--start TEXT] [--key value ...]\n"
         "sampan-c train  --recipe llmc --init_from gpt2_124M.bin --input_bin TRAIN.bin --input_val_bin VAL.bin "
         "--out_dir NEW\n"
         "sampan-c test   --init_from gpt2_124M.bin --debug_state gpt2_124M_debug_state.bin\n\nKeys, with the meanings "
         "of `sampan train --help`:");
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) printf("  --%s\n", SETTINGS[i].name);
    return 0;
}

int main(int argc, char **argv) {
    int32_t trains = argc > 1 && !strcmp(argv[1], "train"), samples = argc > 1 && !strcmp(argv[1], "sample"),
            tests = argc > 1 && !strcmp(argv[1], "test");
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) return print_help();
    if (!trains && !samples && !tests)
        fail("usage: sampan-c train|sample|test --out_dir FOLDER [--key value ...]; sampan-c --help lists the keys");
    static program p; /* large, and zero */
    p.s = DEFAULTS;
    read_flags(&p.s, argc, argv, 1);
    if (!samples) read_run(&p.s, source_folder(&p.s));
    use_recipe(&p.s);
    read_flags(&p.s, argc, argv, 0);
    int status = 0;
    if (trains) train(&p);
    else if (samples) sample(&p);
    else status = test(&p) > 0;
    sampan_destroy(p.engine);
    return status;
}
