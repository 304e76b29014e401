/* tokens.h: a data folder's train.bin and val.bin, and the batches that data.py takes from them: the same windows for
   the same seed.

       tokens train;
       if (tokens_open(&train, "data/shakespeare", "train", vocab_size, &failure)) ...
       windows w;
       if (windows_create(&w, &train, block_size, seed, &failure)) ...
       windows_read(&w, first, count, x, y, &failure);

   What it does not do: prepare text. */

#ifndef SAMPAN_TOKENS_H
#define SAMPAN_TOKENS_H

#include <stdint.h>
#include "platform/file.h"
#include <stdio.h>

typedef struct tokens {
    FILE *stream;
    int64_t count, width; /* tokens; bytes of one, 2 or 4 */
    int64_t begin;        /* bytes before the first */
    int32_t vocab_size;   /* ids are checked against it as they are read */
    char path[4096];
} tokens;

/* Each returns 0, or 1 with a failure. */
int32_t tokens_open(tokens *t, const char *folder, const char *split, int32_t vocab_size, failure *failure);
void tokens_close(tokens *t);

/* One window: x (block) from `start`, y (block) one later. */
int32_t tokens_read_window(tokens *t, int64_t start, int64_t block, int32_t *x, int32_t *y, failure *failure);

typedef struct windows {
    tokens *source;
    int64_t block, per_epoch, offsets;
    uint64_t seed;
} windows;

int32_t windows_create(windows *w, tokens *source, int64_t block, uint64_t seed, failure *failure);

/* x, y (count, block): windows first .. first + count - 1 of the endless order */
int32_t windows_read(windows *w, int64_t first, int64_t count, int32_t *x, int32_t *y, failure *failure);

#endif
