/* test_llmc.c: llm.c's files: what is read of them, that damaged ones are refused and never crash, and the order of
   batches. Every prefix and many changes of a small file of each kind are read; meant for the sanitizers:  make test
   SANITIZE=1

   Whether the numbers are llm.c's is tested in tests/test_llmc.py. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program/llmc.h"
#include "check.h"

static failure wrong;
static const family *gpt2;

/* A model of L blocks, C wide, V tokens (VP with padding), and B sequences of T tokens. */
enum {
    L = 2,
    H = 2,
    C = 4,
    P = 6,
    V = 11,
    VP = 128,
    B = 2,
    T = 5,
    FLOATS = (VP + P + 2) * C + L * (12 * C * C + 13 * C)
};
static float weights[FLOATS];

static int32_t header[256];
static char *file_of(const int32_t *first, int32_t count, const void *body, size_t size) {
    char *all = calloc(1, 1024 + size);
    memset(header, 0, sizeof header);
    memcpy(header, first, (size_t)count * 4);
    memcpy(all, header, 1024);
    memcpy(all + 1024, body, size);
    return all;
}

static char *model_file(int32_t version) {
    uint16_t halves[FLOATS];
    for (int32_t i = 0; i < FLOATS; i++) {
        weights[i] = i >= V * C && i < VP * C ? 0.0f : (float)(i % 120 + 1) / 128.0f; /* exact in bfloat16 */
        uint32_t word;
        memcpy(&word, &weights[i], 4);
        halves[i] = (uint16_t)(word >> 16);
    }
    return file_of((int32_t[]){20240326, version, P, V, L, H, C, VP}, 8,
                   version == 3 ? (void *)weights : (void *)halves, FLOATS * (version == 3 ? 4 : 2));
}

static sampan_engine *open_engine(sampan_config *c, const char *from) {
    sampan_engine *e;
    *c = example_config(1, 1, 1, 1, 1, 1, 1);
    if (llmc_read_config(c, &gpt2, from, &wrong) || sampan_create(&e, c, wrong.text, sizeof wrong.text)) {
        check(0, wrong.text);
        exit(1);
    }
    return e;
}

static void weights_checks(void) {
    for (int32_t version = 3; version <= 5; version += 2) {
        sampan_config c;
        float values[FLOATS];
        size_t size = 1024 + FLOATS * (version == 3 ? 4 : 2);
        char *file = model_file(version);
        write_file("model.bin", file, size);
        check(llmc_recognizes(path), "its magic number");
        sampan_engine *e = open_engine(&c, path);
        check(c.n_layer == L && c.n_head == H && c.n_embd == C && c.block_size == P && c.vocab_size == V
                  && c.mlp_bias == 1 && c.n_inner == 4 * C,
              "sizes");
        check(!llmc_load_weights(e, &c, path, &wrong), wrong.text);
        for (int64_t i = 0; i < sampan_count_parameters(e); i++) {
            sampan_parameter p;
            sampan_get_parameter(e, i, &p);
            sampan_read(e, "weight", i, values);
            if (!strcmp(p.name, "wpe.weight")) check(!memcmp(values, weights + VP * C, P * C * 4), "wpe");
            if (!strcmp(p.name, "h.1.ln_1.weight"))
                check(!memcmp(values, weights + (VP + P + 1) * C, C * 4),
                      "the second block's, behind the first's of its kind");
            if (!strcmp(p.name, "ln_f.bias")) check(!memcmp(values, weights + FLOATS - C, C * 4), "the last");
        }
        sampan_destroy(e);

        const char changes[] = {0, 1, 2, 3, 0x7f, (char)0x80, (char)0xff};
        for (size_t n = 0; n < 36; n++) /* each byte of the header */
            for (size_t k = 0; k < sizeof changes; k++) {
                char kept = file[n];
                file[n] = changes[k];
                write_file("damaged.bin", file, size);
                int32_t failed = llmc_read_config(&c, &gpt2, path, &wrong);
                check(failed == 0 || strlen(wrong.text) > strlen(path),
                      "a changed header is read or refused in a sentence");
                check(failed || (c.n_embd > 0 && (int64_t)c.n_embd * c.vocab_size < FLOATS), "a size beyond the file");
                file[n] = kept;
            }
        for (size_t n = 0; n < size; n += n < 1040 || n > size - 4 ? 1 : 97) {
            write_file("damaged.bin", file, n);
            check(llmc_read_config(&c, &gpt2, path, &wrong), "a file that is cut short");
        }
        file[1024 + V * C * (version == 3 ? 4 : 2) + 3] = 1;
        write_file("damaged.bin", file, size);
        e = open_engine(&c, path);
        check(llmc_load_weights(e, &c, path, &wrong) && strstr(wrong.text, "beyond its vocabulary"),
              "a padding that is not zero");
        sampan_destroy(e);
        free(file);
    }
    check(!llmc_recognizes("/no/such/file") && !llmc_recognizes(directory), "what is no file");
}

static void state_checks(void) {
    enum { BEFORE = 2 * B * T + B * T * V + 1 };
    static float body[BEFORE + FLOATS];
    sampan_config c;
    llmc_state s;
    float values[FLOATS];
    char *model = model_file(3);
    write_file("model.bin", model, 1024 + FLOATS * 4);
    free(model);
    sampan_engine *e = open_engine(&c, path);
    int32_t ids[2 * B * T];
    for (int32_t i = 0; i < 2 * B * T; i++) ids[i] = i % V;
    memcpy(body, ids, sizeof ids);
    for (int32_t i = 2 * B * T; i < BEFORE + FLOATS; i++) body[i] = (float)i;
    size_t size = sizeof body + 1024;
    char *file = file_of((int32_t[]){20240327, 2, B, T}, 4, body, sizeof body);
    write_file("state.bin", file, size);
    check(!llmc_state_open(&s, path, &c, &wrong), wrong.text);
    check(s.B == B && s.T == T && s.loss == BEFORE - 1 && s.x[3] == 3 && s.y[0] == B * T % V, "what stands first");
    check(!llmc_state_read_logits(&s, &c, 1, 2, values) && values[0] == 2 * B * T + (T + 2) * V, "logits");
    for (int64_t i = 0; i < sampan_count_parameters(e); i++) {
        sampan_parameter p;
        sampan_get_parameter(e, i, &p);
        check(!llmc_state_read_gradient(&s, &c, &p, values), "a gradient");
        if (!strcmp(p.name, "wte.weight")) check(values[0] == BEFORE, "the first");
        if (!strcmp(p.name, "ln_f.bias")) check(values[C - 1] == BEFORE + FLOATS - 1, "the last");
        if (!strcmp(p.name, "h.1.mlp.c_proj.weight"))
            check(values[0] == BEFORE + FLOATS - 2 * C - L * C - 4 * C * C, "one between");
    }
    llmc_state_close(&s);
    const char changes[] = {0, 1, 0x7f, (char)0x80, (char)0xff};
    for (size_t n = 0; n < 20; n++)
        for (size_t k = 0; k < sizeof changes; k++) {
            char kept = file[n];
            file[n] = changes[k];
            write_file("damaged.bin", file, size);
            if (!llmc_state_open(&s, path, &c, &wrong)) llmc_state_close(&s);
            file[n] = kept;
        }
    for (size_t n = 0; n < size; n += n < 1040 || n > size - 4 ? 1 : 97) {
        write_file("damaged.bin", file, n);
        check(llmc_state_open(&s, path, &c, &wrong), "a state that is cut short");
    }
    write_file("state.bin", file, size);
    c.n_inner++;
    check(llmc_state_open(&s, path, &c, &wrong) && strstr(wrong.text, "gpt2"), "of a model that llm.c has not");
    free(file);
    sampan_destroy(e);
}

static void tokens_checks(void) {
    enum { COUNT = 100, BLOCK = 4, BATCH = 3, BATCHES = (COUNT - 1) / (BLOCK * BATCH) };
    tokens t;
    llmc_batches b;
    uint16_t ids[COUNT];
    int32_t x[BATCH * BLOCK], y[BATCH * BLOCK], order[3][BATCHES];
    for (int32_t i = 0; i < COUNT; i++) ids[i] = (uint16_t)i;
    char *file = file_of((int32_t[]){20240520, 1, COUNT}, 3, ids, sizeof ids);
    write_file("tokens.bin", file, 1024 + sizeof ids);
    check(!llmc_open_tokens(&t, path, COUNT, &wrong) && t.count == COUNT, wrong.text);
    check(!llmc_batches_create(&b, &t, BATCH, BLOCK, 0, &wrong) && b.per_epoch == BATCHES, wrong.text);
    for (int64_t i = 0; i < 2 * BATCHES; i++) {
        check(!llmc_batches_read(&b, i, x, y, &wrong), wrong.text);
        for (int32_t j = 0; j < BATCH * BLOCK; j++)
            check(x[j] == i % BATCHES * BATCH * BLOCK + j && y[j] == x[j] + 1, "the file's order");
    }
    llmc_batches_free(&b);
    check(!llmc_batches_create(&b, &t, BATCH, BLOCK, 1, &wrong), wrong.text);
    for (int32_t epoch = 0; epoch < 3; epoch++) {
        int32_t seen[BATCHES] = {0};
        for (int32_t i = 0; i < BATCHES; i++) {
            check(!llmc_batches_read(&b, epoch * BATCHES + i, x, y, &wrong), wrong.text);
            order[epoch][i] = x[0] / (BATCH * BLOCK);
            seen[order[epoch][i]]++;
        }
        for (int32_t i = 0; i < BATCHES; i++) check(seen[i] == 1, "each batch once an epoch");
    }
    check(memcmp(order[0], order[1], sizeof order[0]) && memcmp(order[1], order[2], sizeof order[0]),
          "another order each epoch");
    llmc_batches_free(&b);
    check(llmc_batches_create(&b, &t, 25, 4, 1, &wrong) && strstr(wrong.text, "a batch needs 101"),
          "a file that is too short");
    tokens_close(&t);
    for (size_t n = 0; n < 1024 + sizeof ids; n++) {
        write_file("damaged.bin", file, n);
        check(llmc_open_tokens(&t, path, COUNT, &wrong), "tokens that are cut short");
    }
    for (size_t n = 0; n < 12; n++) {
        file[n] = (char)(file[n] + 1);
        write_file("damaged.bin", file, 1024 + sizeof ids);
        check(llmc_open_tokens(&t, path, COUNT, &wrong) && wrong.text[0], "a changed header");
        file[n] = (char)(file[n] - 1);
    }
    free(file);
}

int main(void) {
    const char *base = getenv("TMPDIR") ? getenv("TMPDIR") : getenv("TEMP") ? getenv("TEMP") : "/tmp";
    snprintf(directory, sizeof directory, "%s", base);
    weights_checks();
    state_checks();
    tokens_checks();
    printf("test_llmc: %d checks, %d failed\n", (int)checks, (int)failures);
    return failures > 0;
}
