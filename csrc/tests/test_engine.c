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

/* The two older families with AdamW, qwen3 with Muon. */
static sampan_config config_of(int32_t family, int32_t dtype, int32_t threads) {
    return (sampan_config){.struct_size = sizeof(sampan_config),
                           .family = family,
                           .n_layer = 2,
                           .n_head = 4,
                           .n_kv_head = family == SAMPAN_GPT2 ? 4 : 2,
                           .n_embd = 24,
                           .n_inner = 40,
                           .head_dim = 6,
                           .block_size = TOKENS,
                           .vocab_size = VOCAB,
                           .bias = 1,
                           .tie_word_embeddings = family != SAMPAN_LLAMA,
                           .training = 1,
                           .dtype = dtype,
                           .threads = threads,
                           .dropout = 0.1f,
                           .norm_eps = 1e-5f,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .weight_decay = 0.1,
                           .grad_clip = 1.0,
                           .optimizer = family == SAMPAN_QWEN3 ? SAMPAN_MUON : SAMPAN_ADAMW,
                           .momentum = 0.95,
                           .adamw_lr_ratio = 0.3,
                           .gradient_checkpointing = family == SAMPAN_LLAMA,
                           .seed = 5,
                           .rotary_frequencies = family == SAMPAN_GPT2 ? NULL : FREQUENCIES};
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
            values[j] = p.columns                ? ((float)(state >> 8) / 16777216.0f - 0.5f) * 0.3f
                        : strstr(p.name, "bias") ? 0.0f
                                                 : 1.0f;
        }
        check(!sampan_write(e, SAMPAN_WEIGHT, i, values), "writing a weight");
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
static void run(int32_t family, int32_t dtype, int32_t threads, double result[3]) {
    sampan_config c = config_of(family, dtype, threads);
    sampan_engine *e = open_engine(&c);
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    double first = 0.0;
    fill(x, y);
    for (int32_t step = 0; step < 5; step++) {
        check(!sampan_accumulate(e, x, y, BATCH, TOKENS) && !sampan_accumulate(e, x, y, 1, 9), sampan_error(e));
        check(!sampan_update(e, 1e-2, &result[0], &result[1]), sampan_error(e));
        if (step == 0) first = result[0];
    }
    check(result[0] < first && isfinite(result[0]), "the loss falls");
    result[2] = 0.0;
    for (int64_t i = 0; i < sampan_count_parameters(e); i++) {
        sampan_parameter p;
        sampan_get_parameter(e, i, &p);
        int64_t size = p.rows * (p.columns ? p.columns : 1);
        float *values = malloc((size_t)size * sizeof(float));
        sampan_read(e, SAMPAN_WEIGHT, i, values);
        for (int64_t j = 0; j < size; j++) result[2] = result[2] * 0.999 + (double)values[j];
        free(values);
    }
    sampan_destroy(e);
}

static void decode(int32_t family, int32_t dtype) {
    sampan_config c = config_of(family, dtype, 2);
    c.training = 0;
    sampan_engine *e = open_engine(&c);
    sampan_session *whole, *pieces;
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS], one[BATCH];
    float a[BATCH * VOCAB], b[BATCH * VOCAB];
    double difference = 0.0, size = 0.0;
    fill(x, y);
    check(!sampan_session_create(&whole, e, BATCH) && !sampan_session_create(&pieces, e, BATCH), sampan_error(e));
    check(!sampan_session_feed(whole, x, TOKENS, a), sampan_error(e));
    for (int32_t t = 0; t < TOKENS; t++) {
        for (int32_t i = 0; i < BATCH; i++) one[i] = x[i * TOKENS + t];
        check(!sampan_session_feed(pieces, one, 1, b), sampan_error(e));
    }
    for (int32_t i = 0; i < BATCH * VOCAB; i++) {
        difference += pow((double)a[i] - (double)b[i], 2);
        size += pow((double)a[i], 2);
    }
    check(size > 1e-3 && sqrt(difference / size) < (dtype == SAMPAN_BFLOAT16 ? 2e-2 : 1e-5),
          "token by token gives what the whole gives");
    check(sampan_session_feed(pieces, one, 1, b) == SAMPAN_BAD_ARGUMENT && strstr(sampan_error(e), "room for 0"),
          "a full cache");
    check(sampan_session_position(pieces) == TOKENS, "position");
    check(sampan_accumulate(e, x, y, 1, 1) == SAMPAN_BAD_ARGUMENT, "training without training");
    double loss;
    check(!sampan_loss(e, x, y, BATCH, TOKENS, &loss) && isfinite(loss), "loss without training");
    sampan_session_destroy(whole);
    sampan_session_destroy(pieces);
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

static void refusals(void) {
    const sampan_config good = config_of(SAMPAN_LLAMA, SAMPAN_FLOAT32, 1);
    sampan_config c;
    c = good, c.struct_size--, refuse(c, "different versions");
    c = good, c.n_layer = 0, refuse(c, "size");
    c = good, c.vocab_size = -5, refuse(c, "size");
    c = good, c.family = 7, refuse(c, "family");
    c = good, c.n_kv_head = 3, refuse(c, "multiple");
    c = good, c.head_dim = 5, refuse(c, "even");
    c = good, c.rotary_frequencies = NULL, refuse(c, "rotary_frequencies");
    c = good, c.family = SAMPAN_GPT2, refuse(c, "gpt2");
    c = good, c.dropout = 1.0f, refuse(c, "dropout");
    c = good, c.optimizer = 2, refuse(c, "neither AdamW nor Muon");
    c = good, c.optimizer = SAMPAN_MUON, c.momentum = 1.0, refuse(c, "momentum");
    c = good, c.dropout = NAN, refuse(c, "dropout");
    c = good, c.beta2 = 1.0, refuse(c, "beta");
    c = good, c.grad_clip = NAN, refuse(c, "grad_clip");
    c = good, c.threads = 5000, refuse(c, "threads");
    c = good, c.dtype = 2, refuse(c, "dtype");
    c = good, c.n_embd = 1 << 28, c.vocab_size = 1 << 28, c.n_layer = 1 << 16, refuse(c, "bytes");
    c = good, c.n_embd = 1 << 28, c.vocab_size = 1 << 26, refuse(c, "which this machine refuses");

    sampan_engine *e = open_engine(&good);
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    double loss, gradient;
    float value[4096];
    fill(x, y);
    check(sampan_update(e, 1e-3, &loss, &gradient) == SAMPAN_BAD_ARGUMENT, "an update of nothing");
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
    check(sampan_read(e, SAMPAN_WEIGHT, -1, value) && sampan_read(e, 9, 0, value)
              && sampan_write(e, SAMPAN_GRADIENT, 0, value),
          "tensors that are not there");
    check(sampan_accumulate(e, NULL, y, 1, 1) && sampan_accumulate(e, x, NULL, 1, 1)
              && sampan_loss(e, x, y, 1, 1, NULL),
          "a missing array");
    check(sampan_read(e, SAMPAN_WEIGHT, 0, NULL) && sampan_write(e, SAMPAN_WEIGHT, 0, NULL)
              && strstr(sampan_error(e), "missing"),
          "a missing tensor");
    check(sampan_set_step(e, -1, 0) == SAMPAN_BAD_ARGUMENT, "a negative step");
    check(sampan_set_step(e, 1, 2) == SAMPAN_BAD_ARGUMENT, "more updates applied than made");
    for (int32_t i = 0; i < BATCH * TOKENS; i++) y[i] = -1;
    check(!sampan_accumulate(e, x, y, BATCH, TOKENS) && !sampan_update(e, 1e-3, &loss, &gradient) && loss == 0.0
              && gradient == 0.0,
          "no targets at all");
    sampan_session *session;
    check(sampan_session_create(&session, e, 0) == SAMPAN_BAD_ARGUMENT && !session, "a session of nothing");
    sampan_destroy(e);
    sampan_destroy(NULL);
    sampan_session_destroy(NULL);
}

/* A weight that is not finite: the step counts, and changes nothing. */
static void not_finite(int32_t family, int32_t dtype, int32_t threads) {
    sampan_config c = config_of(family, dtype, threads);
    sampan_engine *e = open_engine(&c);
    int32_t x[BATCH * TOKENS], y[BATCH * TOKENS];
    double loss, norm;
    sampan_parameter p;
    fill(x, y);
    sampan_get_parameter(e, 0, &p);
    size_t bytes = (size_t)(p.rows * p.columns) * sizeof(float);
    float *before = malloc(bytes), *after = malloc(bytes);
    sampan_read(e, SAMPAN_WEIGHT, 0, before);
    before[1] = INFINITY;
    sampan_write(e, SAMPAN_WEIGHT, 0, before);
    check(!sampan_accumulate(e, x, y, BATCH, TOKENS), sampan_error(e));
    check(sampan_update(e, 1e-2, &loss, &norm) == SAMPAN_NOT_FINITE && !isfinite(loss)
              && strstr(sampan_error(e), p.name),
          "not finite, and named");
    check(sampan_get_step(e) == 1 && sampan_get_applied(e) == 0, "counted, not applied");
    sampan_read(e, SAMPAN_WEIGHT, 0, after);
    check(!memcmp(before, after, bytes), "the weights stay as they are");
    before[1] = 0.0f;
    sampan_write(e, SAMPAN_WEIGHT, 0, before);
    check(!sampan_accumulate(e, x, y, BATCH, TOKENS) && !sampan_update(e, 1e-2, &loss, &norm) && isfinite(loss)
              && isfinite(norm),
          "and it goes on");
    check(sampan_get_step(e) == 2 && sampan_get_applied(e) == 1, "applied");
    free(before);
    free(after);
    sampan_destroy(e);
}

int main(void) {
    for (int32_t family = SAMPAN_GPT2; family <= SAMPAN_QWEN3; family++)
        for (int32_t dtype = SAMPAN_FLOAT32; dtype <= SAMPAN_BFLOAT16; dtype++) {
            double expected[3], found[3];
            run(family, dtype, 1, expected);
            for (int32_t threads = 1; threads <= 4; threads++) {
                run(family, dtype, threads, found);
                check(!memcmp(found, expected, sizeof found), "the number of threads changes no bit");
            }
            decode(family, dtype);
            not_finite(family, dtype, 1 + dtype);
        }
    refusals();
    printf("test_engine: %d checks, %d failed\n", (int)checks, (int)failures);
    return failures > 0;
}
