/* check.h: what a C test counts and reports with, files for it to read, and a configuration to begin with. */

#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "sampan.h"

static int32_t checks, failures;
static inline void check(int32_t good, const char *what) {
    checks++;
    if (!good) {
        failures++;
        printf("FAILED %s\n", what);
    }
}

static char directory[1024], path[1200]; /* of the file that was written last */
static inline void write_file(const char *name, const void *data, size_t size) {
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size) exit(3);
    fclose(f);
}

/* A small GPT-2 that trains with AdamW on one thread, as wide as its heads. */
static inline sampan_config example_config(int32_t n_layer, int32_t n_head, int32_t n_kv_head, int32_t head_dim,
                                           int32_t n_inner, int32_t block_size, int32_t vocab_size) {
    return (sampan_config){
        .struct_size = sizeof(sampan_config),
        .n_layer = n_layer,
        .n_head = n_head,
        .n_kv_head = n_kv_head,
        .n_embd = n_head * head_dim,
        .n_inner = n_inner,
        .head_dim = head_dim,
        .block_size = block_size,
        .vocab_size = vocab_size,
        .norm = "layernorm",
        .positions = "learned",
        .activation = "gelu_new",
        .tie_word_embeddings = 1,
        .norm_eps = 1e-5f,
        .dtype = "float32",
        .threads = 1,
        .optimizer = "adamw",
        .beta1 = 0.9,
        .beta2 = 0.95,
        .weight_decay = 0.1,
        .grad_clip = 1.0,
        .momentum = 0.95,
        .adamw_lr_ratio = 0.2,
        .seed = 5,
    };
}

#endif
