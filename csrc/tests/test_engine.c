/* test_engine.c: whole engines through sampan.h: what is refused, what repeats bit for bit, a loss that falls, cached
   decoding. Meant to run under the sanitizers too:  make test SANITIZE=1

   Whether the numbers are a GPT's is tested in tests/test_c_engine.py, against PyTorch. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sampan.h"
#include "check.h"

enum { BATCH = 3, TOKENS = 70, VOCAB = 30 };
static const double FREQUENCIES[3] = {1.0, 0.1, 0.01};

/* Models of every part, and of combinations that no family has. */
typedef struct kind {
    const char *norm, *positions, *activation;
    int32_t gated, qk_norm, bias, n_kv_head, tied, recomputes;
    const char *optimizer;
} kind;
// clang-format off
static const kind KINDS[] = {
    {"layernorm", "learned", "gelu_new", 0, 0, 1, 4, 1, 0, "adamw"}, /* gpt2 */
    {"rmsnorm",   "rotary",  "silu",     1, 0, 0, 2, 0, 1, "adamw"}, /* llama */
    {"rmsnorm",   "rotary",  "silu",     1, 1, 0, 2, 1, 0, "muon"},  /* qwen3 */
    {"rmsnorm",   "learned", "relu2",    0, 1, 1, 2, 1, 1, "muon"},
    {"layernorm", "rotary",  "relu2",    1, 0, 0, 1, 0, 0, "adamw"},
    {"rmsnorm",   "rotary",  "gelu_new", 1, 0, 1, 4, 1, 0, "adamw"},
    {"layernorm", "learned", "silu",     0, 0, 0, 2, 0, 0, "muon"},
};
// clang-format on
enum { COUNT = sizeof KINDS / sizeof *KINDS };

static sampan_config config_of(const kind *k, const char *dtype, int32_t threads) {
    sampan_config c = example_config(2, 4, k->n_kv_head, 6, 40, TOKENS, VOCAB);
    c.norm = k->norm;
    c.positions = k->positions;
    c.activation = k->activation;
    c.gated = k->gated;
    c.qk_norm = k->qk_norm;
    c.qkv_bias = c.attn_proj_bias = c.mlp_bias = c.norm_bias = k->bias;
    c.tie_word_embeddings = k->tied;
    c.rotary_frequencies = FREQUENCIES;
    c.dtype = dtype;
    c.threads = threads;
    c.dropout = 0.1f;
    c.optimizer = k->optimizer;
    c.adamw_lr_ratio = 0.3;
    c.gradient_checkpointing = k->recomputes;
    c.document_mask = k->gated; /* on half of them */
    c.end_of_text = 4;
    return c;
}

static sampan_engine *open_engine(const sampan_config *c) {
    char message[256] = "";
    sampan_engine *e;
    if (sampan_create(&e, c, message, sizeof message)) {
        check(0, message);
        exit(1);
    }
    uint32_t state = 1;
    for (int64_t i = 0; i < sampan_count_parameters(e); i++) {
        sampan_parameter p;
        sampan_get_parameter(e, i, &p);
        int64_t size = p.rows * (p.columns ? p.columns : 1);
        float *values = malloc((size_t)size * sizeof(float));
        for (int64_t j = 0; j < size; j++) {
            state = state * 1664525u + 1013904223u;
            values[j] = !p.columns && !strstr(p.name, "bias") ? 1.0f
                                                              : ((float)(state >> 8) / 16777216.0f - 0.5f) * 0.3f;
        }
        check(!sampan_write(e, "weight", i, values), "writing a weight");
        free(values);
    }
    return e;
}

static void fill(int32_t *x, int32_t *y) {
    for (int32_t i = 0; i < BATCH * TOKENS; i++) {
        x[i] = i * i % VOCAB;
        y[i] = i % 7 ? (i + 1) * (i + 1) % VOCAB : -1;
    }
}

/* Five steps; the last loss and norm, and a checksum of all weights. */
static void run(const kind *k, const char *dtype, int32_t threads, double result[3]) {
    sampan_config c = config_of(k, dtype, threads);
    sampan_engine *e = open_engine(&c);
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    double first = 0.0;
    const char *refused;
    fill(x, y);
    for (int32_t step = 0; step < 5; step++) {
        check(!sampan_accumulate(e, x, y, BATCH, TOKENS) && !sampan_accumulate(e, x, y, 1, 9), sampan_error(e));
        check(!sampan_update(e, 1e-2, &result[0], &result[1], &refused) && !refused, sampan_error(e));
        if (step == 0) first = result[0];
    }
    check(result[0] < first && isfinite(result[0]), "the loss falls");
    result[2] = 0.0;
    for (int64_t i = 0; i < sampan_count_parameters(e); i++) {
        sampan_parameter p;
        sampan_get_parameter(e, i, &p);
        int64_t size = p.rows * (p.columns ? p.columns : 1);
        float *values = malloc((size_t)size * sizeof(float));
        sampan_read(e, "weight", i, values);
        for (int64_t j = 0; j < size; j++) result[2] = result[2] * 0.999 + (double)values[j];
        free(values);
    }
    sampan_destroy(e);
}

static void decode(const kind *k, const char *dtype) {
    sampan_config c = config_of(k, dtype, 2);
    c.optimizer = NULL;
    sampan_engine *e = open_engine(&c);
    sampan_session *whole, *pieces;
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS], one[BATCH];
    float a[BATCH * VOCAB], b[BATCH * VOCAB];
    double difference = 0.0, size = 0.0;
    fill(x, y);
    check(!sampan_session_create(&whole, e, BATCH) && !sampan_session_create(&pieces, e, BATCH), sampan_error(e));
    check(!sampan_session_feed(whole, NULL, BATCH, x, TOKENS, a), sampan_error(e));
    for (int32_t t = 0; t < TOKENS; t++) {
        for (int32_t i = 0; i < BATCH; i++) one[i] = x[i * TOKENS + t];
        check(!sampan_session_feed(pieces, NULL, BATCH, one, 1, b), sampan_error(e));
    }
    for (int32_t i = 0; i < BATCH * VOCAB; i++) {
        difference += pow((double)a[i] - (double)b[i], 2);
        size += pow((double)a[i], 2);
    }
    check(size > 1e-3 && sqrt(difference / size) < (!strcmp(dtype, "bfloat16") ? 2e-2 : 1e-5),
          "token by token gives what the whole gives");
    check(sampan_session_feed(pieces, NULL, BATCH, one, 1, b) == SAMPAN_BAD_ARGUMENT
              && strstr(sampan_error(e), "room for 0"),
          "a full cache");
    check(sampan_session_position(pieces, 1) == TOKENS && sampan_session_position(pieces, BATCH) == -1, "position");
    check(sampan_accumulate(e, x, y, 1, 1) == SAMPAN_BAD_ARGUMENT, "training without training");
    double loss;
    check(!sampan_loss(e, x, y, BATCH, TOKENS, &loss, NULL) && isfinite(loss), "loss without training");
    sampan_session_destroy(whole);
    sampan_session_destroy(pieces);
    sampan_destroy(e);
}

/* Sequences that join and leave between tokens: the logits of each have the bits that they have alone. */
static void decode_together(const kind *k, const char *dtype) {
    sampan_config c = config_of(k, dtype, 2);
    c.optimizer = NULL;
    sampan_engine *e = open_engine(&c);
    sampan_session *alone, *together;
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    float a[VOCAB], b[3 * VOCAB];
    fill(x, y);
    check(!sampan_session_create(&alone, e, 1) && !sampan_session_create(&together, e, 3), sampan_error(e));
    /* slot 1 has a prompt of two tokens, slot 2 of one; slot 0 joins one token later, and 2 leaves and comes back */
    check(!sampan_session_feed(together, (int32_t[]){1}, 1, x, 2, b), sampan_error(e));
    check(!sampan_session_feed(together, (int32_t[]){1, 2}, 2, (int32_t[]){x[2], x[10]}, 1, b), sampan_error(e));
    check(!sampan_session_clear(together, 2), sampan_error(e));
    check(!sampan_session_feed(together, (int32_t[]){0, 1, 2}, 3, (int32_t[]){x[11], x[3], x[4]}, 1, b),
          sampan_error(e));
    check(sampan_session_position(together, 0) == 1 && sampan_session_position(together, 1) == 4
              && sampan_session_position(together, 2) == 1,
          "positions");
    check(!sampan_session_feed(alone, NULL, 1, x, 2, a), sampan_error(e));
    for (int32_t t = 2; t < 4; t++) check(!sampan_session_feed(alone, NULL, 1, x + t, 1, a), sampan_error(e));
    check(!memcmp(a, b + VOCAB, sizeof a), "the same bits in company");
    const int32_t firsts[] = {x[11], x[4]};
    for (int32_t i = 0; i < 2; i++) {
        check(!sampan_session_clear(alone, 0) && !sampan_session_feed(alone, NULL, 1, firsts + i, 1, a),
              sampan_error(e));
        check(!memcmp(a, b + 2 * i * VOCAB, sizeof a), "the same bits in a slot that was used before");
    }
    check(sampan_session_feed(together, (int32_t[]){1, 1}, 2, x, 1, b) == SAMPAN_BAD_ARGUMENT, "a slot twice");
    check(sampan_session_feed(together, (int32_t[]){3}, 1, x, 1, b) == SAMPAN_BAD_ARGUMENT, "no such slot");
    check(sampan_session_feed(together, NULL, 4, x, 1, b) == SAMPAN_BAD_ARGUMENT, "more sequences than slots");
    check(sampan_session_clear(together, 3) == SAMPAN_BAD_ARGUMENT, "no such slot to clear");
    sampan_session_destroy(alone);
    sampan_session_destroy(together);
    sampan_destroy(e);
}

static void refuse(sampan_config c, const char *expected) {
    char message[256] = "";
    sampan_engine *e = NULL;
    int32_t code = sampan_create(&e, &c, message, sizeof message);
    if (!code || e || !strstr(message, expected)) printf("code %d, message \"%s\"\n", (int)code, message);
    check(code && !e && strstr(message, expected), expected);
    sampan_destroy(e);
}

#define REFUSE(field, value, expected) \
    do { \
        sampan_config c = good; \
        c.field = value; \
        refuse(c, expected); \
    } while (0)

static void refusals(void) {
    const sampan_config good = config_of(&KINDS[1], "float32", 1);
    REFUSE(struct_size, 8, "different versions");
    REFUSE(n_layer, 0, "size");
    REFUSE(vocab_size, -5, "size");
    REFUSE(norm, "batchnorm", "norm=batchnorm: expected layernorm or rmsnorm");
    REFUSE(positions, NULL, "positions=(none): expected learned or rotary");
    REFUSE(activation, "tanh", "activation=tanh: expected gelu_new, silu or relu2");
    REFUSE(dtype, "int8", "dtype=int8: expected auto, float32 or bfloat16");
    REFUSE(optimizer, "sgd", "optimizer=sgd: expected adamw or muon");
    REFUSE(n_kv_head, 3, "multiple");
    REFUSE(head_dim, 5, "even");
    REFUSE(rotary_frequencies, NULL, "rotary_frequencies");
    REFUSE(dropout, 1.0f, "dropout");
    REFUSE(dropout, NAN, "dropout");
    REFUSE(beta2, 1.0, "beta");
    REFUSE(grad_clip, NAN, "grad_clip");
    REFUSE(threads, 5000, "threads");
    sampan_config c = good;
    c.optimizer = "muon";
    c.momentum = 1.0;
    refuse(c, "momentum");
    c = good;
    c.n_embd = 1 << 28;
    c.vocab_size = 1 << 26;
    refuse(c, "cannot allocate");
    c.vocab_size = 1 << 28;
    c.n_layer = 1 << 16;
    refuse(c, "bytes");

    sampan_engine *e = open_engine(&good);
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    double loss, gradient;
    float value[4096];
    const char *refused;
    fill(x, y);
    check(sampan_update(e, 1e-3, &loss, &gradient, &refused) == SAMPAN_BAD_ARGUMENT, "an update of nothing");
    check(sampan_accumulate(e, x, y, 1, TOKENS + 1) == SAMPAN_BAD_ARGUMENT, "a long sequence");
    check(sampan_accumulate(e, x, y, 0, 5) == SAMPAN_BAD_ARGUMENT
              && sampan_accumulate(e, x, y, INT64_MAX, 5) == SAMPAN_BAD_ARGUMENT,
          "a batch's size");
    x[3] = VOCAB;
    check(sampan_accumulate(e, x, y, BATCH, TOKENS) == SAMPAN_BAD_ARGUMENT && strstr(sampan_error(e), "token 30"),
          "a token out of range");
    x[3] = 0, y[4] = -2;
    check(sampan_accumulate(e, x, y, BATCH, TOKENS) == SAMPAN_BAD_ARGUMENT && strstr(sampan_error(e), "target -2"),
          "a target out of range");
    check(sampan_read(e, "weight", -1, value) && sampan_read(e, "value", 0, value)
              && sampan_write(e, "gradient", 0, value),
          "tensors that are not there");
    check(sampan_accumulate(e, NULL, y, 1, 1) && sampan_accumulate(e, x, NULL, 1, 1)
              && sampan_loss(e, x, y, 1, 1, NULL, NULL),
          "a missing array");
    check(sampan_read(e, "weight", 0, NULL) && sampan_write(e, "weight", 0, NULL) && strstr(sampan_error(e), "NULL"),
          "a missing tensor");
    check(sampan_set_step(e, -1, 0) == SAMPAN_BAD_ARGUMENT, "a negative step");
    check(sampan_set_step(e, 1, 2) == SAMPAN_BAD_ARGUMENT, "more updates applied than made");
    for (int32_t i = 0; i < BATCH * TOKENS; i++) y[i] = -1;
    check(!sampan_accumulate(e, x, y, BATCH, TOKENS) && !sampan_update(e, 1e-3, &loss, &gradient, &refused)
              && loss == 0.0 && gradient == 0.0,
          "no targets at all");
    sampan_session *session;
    check(sampan_session_create(&session, e, 0) == SAMPAN_BAD_ARGUMENT && !session, "a session of nothing");
    sampan_destroy(e);
    sampan_destroy(NULL);
    sampan_session_destroy(NULL);
}

/* A weight that is not finite: the step counts, and changes nothing. */
static void not_finite(const kind *k, const char *dtype, int32_t threads) {
    sampan_config c = config_of(k, dtype, threads);
    sampan_engine *e = open_engine(&c);
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    double loss, norm;
    const char *refused;
    sampan_parameter p;
    fill(x, y);
    sampan_get_parameter(e, 0, &p);
    size_t bytes = (size_t)(p.rows * p.columns) * sizeof(float);
    float *before = malloc(bytes), *after = malloc(bytes);
    sampan_read(e, "weight", 0, before);
    before[1] = INFINITY;
    sampan_write(e, "weight", 0, before);
    check(!sampan_accumulate(e, x, y, BATCH, TOKENS), sampan_error(e));
    check(!sampan_update(e, 1e-2, &loss, &norm, &refused) && !isfinite(loss) && refused && strstr(refused, p.name),
          "NaN or infinite, and named");
    check(sampan_get_step(e) == 1 && sampan_get_applied(e) == 0, "counted, not applied");
    sampan_read(e, "weight", 0, after);
    check(!memcmp(before, after, bytes), "the weights stay as they are");
    before[1] = 0.0f;
    sampan_write(e, "weight", 0, before);
    check(!sampan_accumulate(e, x, y, BATCH, TOKENS) && !sampan_update(e, 1e-2, &loss, &norm, &refused)
              && isfinite(loss) && isfinite(norm),
          "and it goes on");
    check(sampan_get_step(e) == 2 && sampan_get_applied(e) == 1, "applied");
    free(before);
    free(after);
    sampan_destroy(e);
}

/* sampan_memory counts what an engine allocates, and is right about what is easily counted by hand. */
static void memory(const kind *k, const char *dtype) {
    sampan_config c = config_of(k, dtype, 2);
    sampan_engine *e = open_engine(&c);
    sampan_memory_sizes sizes, doubled, without;
    char message[256] = "";
    int64_t values = 0, padding = 0, matrices = 0;
    for (int64_t i = 0; i < sampan_count_parameters(e); i++) {
        sampan_parameter p;
        sampan_get_parameter(e, i, &p);
        values += p.rows * (p.columns ? p.columns : 1);
        matrices += p.rows * p.columns;
        padding += 64;
    }
    sampan_destroy(e);
    const int64_t copies = strcmp(dtype, "bfloat16") ? 0 : 2 * matrices;
    const int64_t angles = strcmp(k->positions, "rotary") ? 0 : 4 * TOKENS * 6;
    check(!sampan_memory(&c, BATCH, TOKENS, &sizes, message, sizeof message), message);
    check(sizes.gradients >= 4 * values && sizes.gradients <= 4 * values + padding, "bytes of the gradients");
    check(sizes.weights >= 4 * values + copies + angles && sizes.weights <= 4 * values + copies + angles + 3 * padding,
          "bytes of the weights");
    check(sizes.optimizer > sizes.gradients && sizes.optimizer <= 3 * sizes.gradients, "bytes of the optimizer");
    check(!sampan_memory(&c, 2 * BATCH, TOKENS, &doubled, message, sizeof message), message);
    check(doubled.activations > 3 * sizes.activations / 2 && doubled.activations < 2 * sizes.activations,
          "a larger batch");
    check(doubled.cache > sizes.cache && doubled.cache <= 2 * sizes.cache, "a larger session");
    c.optimizer = NULL;
    check(!sampan_memory(&c, BATCH, TOKENS, &without, message, sizeof message), message);
    check(!without.gradients && !without.optimizer && without.activations < sizes.activations, "without training");
    check(without.weights == sizes.weights || (copies && without.weights < sizes.weights), "weights without training");
    check(sampan_memory(&c, 0, TOKENS, &sizes, message, sizeof message) && strstr(message, "batch"), "an empty batch");
    check(sampan_memory(&c, 1, TOKENS + 1, &sizes, message, sizeof message) && strstr(message, "block_size"),
          "a long one");
    c.n_embd = c.vocab_size = c.n_inner = 1 << 28;
    c.n_layer = 1 << 10;
    check(sampan_memory(&c, 1 << 10, TOKENS, &sizes, message, sizeof message) == SAMPAN_NO_MEMORY, "too much to count");
}

int main(void) {
    const char *const dtypes[] = {"float32", "bfloat16"};
    for (int32_t i = 0; i < COUNT; i++)
        for (int32_t d = 0; d < 2; d++) {
            double expected[3], found[3];
            run(&KINDS[i], dtypes[d], 1, expected);
            for (int32_t threads = 2; threads <= 4; threads++) {
                run(&KINDS[i], dtypes[d], threads, found);
                check(!memcmp(found, expected, sizeof found), "the number of threads changes no bit");
            }
            decode(&KINDS[i], dtypes[d]);
            decode_together(&KINDS[i], dtypes[d]);
            not_finite(&KINDS[i], dtypes[d], 1 + d);
            memory(&KINDS[i], dtypes[d]);
        }
    refusals();
    printf("test_engine: %d checks, %d failed\n", (int)checks, (int)failures);
    return failures > 0;
}
