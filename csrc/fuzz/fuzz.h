/* fuzz.h: what the fuzzers share: input bytes taken one by one, and files to put them in.

       make fuzz                                       each for FUZZ_SECONDS, under the sanitizers (clang, libFuzzer)
       build-fuzz/fuzz_json build-fuzz/corpus/json     one, until it is interrupted
       build-fuzz/fuzz_json crash-...                  one input again

   Seeds are written by seeds.c. A finding becomes a test in tests/. */

#ifndef SAMPAN_FUZZ_H
#define SAMPAN_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct input {
    const uint8_t *at, *end;
} input;

static inline uint8_t take(input *in) { return in->at < in->end ? *in->at++ : 0; }

/* Up to `most` bytes. */
static inline input take_piece(input *in, int64_t most) {
    int64_t n = in->end - in->at < most ? in->end - in->at : most;
    input piece = {in->at, in->at + n};
    in->at += n;
    return piece;
}

/* A first part as long as two bytes say, for inputs that are two files. */
static inline input take_first(input *in) {
    int64_t n = take(in);
    return take_piece(in, n | take(in) << 8);
}

/* A folder of this process, in memory where there is /dev/shm; removed at exit. */
static char fuzz_folder[64];
static inline void fuzz_remove_folder(void) {
    const char *names[] = {"config.json", "model.safetensors", "meta.json", "train.bin", "tokenizer.json"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", fuzz_folder, names[i]);
        remove(path);
    }
    rmdir(fuzz_folder);
}

static inline const char *fuzz_write(const char *name, input data) {
    static char path[128];
    if (!fuzz_folder[0]) {
        snprintf(fuzz_folder, sizeof fuzz_folder, "%s/sampan-fuzz-%d", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm",
                 (int)getpid());
        char command[96];
        snprintf(command, sizeof command, "mkdir -p %s", fuzz_folder);
        if (system(command)) abort();
        atexit(fuzz_remove_folder);
    }
    snprintf(path, sizeof path, "%s/%s", fuzz_folder, name);
    FILE *file = fopen(path, "wb");
    size_t size = (size_t)(data.end - data.at);
    if (!file || fwrite(data.at, 1, size, file) != size || fclose(file)) abort();
    return path;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
