/* llmc.h: reads llm.c's files: weights, tokens, its tokenizer, the debug state of its test. Takes batches in its order,
   and draws text with its random numbers.

       if (llmc_recognizes("gpt2_124M.bin")) ...
       sampan_config config = {0};                       // then: training, dtype, threads, ... as the caller likes
       if (llmc_read_config(&config, &family, "gpt2_124M.bin", &failure)) ...
       ...sampan_create()...
       if (llmc_load_weights(engine, &config, "gpt2_124M.bin", &failure)) ...

   Each begins with 256 int32: a magic number, a version, sizes. A file's length is checked against them before anything
   is allocated. Little-endian machines only, like the files.

   What it does not do: write them (the package's exchange/llmc does), several shards, Llama 3's files, optimizer states. */

#ifndef SAMPAN_LLMC_H
#define SAMPAN_LLMC_H

#include <stdint.h>
#include "platform/file.h"
#include <stdio.h>
#include "folder.h"
#include "sampan.h"
#include "tokens.h"

/* Returns 1 if the file begins as llm.c's weights do. */
int32_t llmc_recognizes(const char *path);

/* Each returns 0, or 1 with a failure. */
int32_t llmc_read_config(sampan_config *config, const family **family, const char *path, failure *failure);
int32_t llmc_load_weights(sampan_engine *engine, const sampan_config *config, const char *path, failure *failure);
int32_t llmc_open_tokens(tokens *t, const char *path, int32_t vocab_size, failure *failure);

/* Writes the tokenizer.json of a gpt2_tokenizer.bin: characters, or a byte-level BPE whose merges are reconstructed, cut
   into words as GPT-2 does. *end_of_text receives its id, or -1. */
int32_t llmc_convert_tokenizer(const char *from, const char *to, int32_t *end_of_text, failure *failure);

/* Prints what train_gpt2 prints of a model and of its data before the first step. */
void llmc_print_header(const sampan_config *config, int64_t train_batches, int64_t val_batches, int64_t batch,
                       int64_t block);

/* A random number in [0, 1) of the generator (xorshift*) with which train_gpt2 draws text, from state 1337 on. */
float llmc_random(uint64_t *state);

/* ---- batches ---- */

/* A batch is `batch` x `block` consecutive tokens; the end of the file that fills no batch is left out. Batches come in
   the order of the file, or shuffled for each epoch by the random numbers of llm.c's train_gpt2. */
typedef struct llmc_batches {
    tokens *source;
    int64_t batch, block, per_epoch, shuffles;
    int32_t *place;        /* (per_epoch) of the epoch that was shuffled last; NULL: the file's order */
    uint32_t twister[624]; /* MT19937 (Matsumoto & Nishimura 1998) */
    int32_t used;          /* numbers of it */
} llmc_batches;

int32_t llmc_batches_create(llmc_batches *b, tokens *source, int64_t batch, int64_t block, int32_t shuffled,
                            failure *failure);
void llmc_batches_free(llmc_batches *b);

/* x, y (batch, block); where they are shuffled, the epochs of `index` ascend from call to call. */
int32_t llmc_batches_read(llmc_batches *b, int64_t index, int32_t *x, int32_t *y, failure *failure);

/* ---- debug states ---- */

/* What a model computes from one batch, kept to test another program: inputs, targets, logits, loss, gradients. */
typedef struct llmc_state {
    FILE *stream;
    int64_t B, T, padded; /* rows of the token embedding's gradient */
    int32_t *x, *y;       /* (B, T) */
    double loss;
} llmc_state;

/* Opens a debug state of the model that `config` describes. Returns 0, or 1 with a failure. */
int32_t llmc_state_open(llmc_state *s, const char *path, const sampan_config *config, failure *failure);
void llmc_state_close(llmc_state *s);

/* Logits (vocab_size) after token t of sequence b; the gradient of the parameter of that name, in its shape. 0, or 1 if
 * it cannot be read. */
int32_t llmc_state_read_logits(llmc_state *s, const sampan_config *config, int64_t b, int64_t t, float *logits);
int32_t llmc_state_read_gradient(llmc_state *s, const sampan_config *config, const sampan_parameter *p,
                                 float *gradient);

#endif
