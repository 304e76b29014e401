/* fuzz_tokens.c: any bytes as meta.json and train.bin; batches hold only ids of the vocabulary. */

#include "program/tokens.h"
#include "fuzz.h"

enum { BLOCK = 5, COUNT = 3, VOCABULARY = 100 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, data + size};
    uint64_t seed = take(&in);
    int64_t first = (int64_t)((uint64_t)take(&in) << (take(&in) % 56));
    input meta = take_first(&in);
    failure failure = {0};
    tokens t;
    windows w;
    int32_t x[BLOCK * COUNT], y[BLOCK * COUNT];
    fuzz_write("meta.json", meta);
    fuzz_write("train.bin", in);
    if (tokens_open(&t, fuzz_folder, "train", VOCABULARY, &failure)) {
        if (!failure.text[0] || t.stream) abort();
        return 0;
    }
    if (!windows_create(&w, &t, BLOCK, seed, &failure) && !windows_read(&w, first, COUNT, x, y, &failure))
        for (int32_t i = 0; i < BLOCK * COUNT; i++)
            if (x[i] < 0 || x[i] >= VOCABULARY || y[i] < 0 || y[i] >= VOCABULARY) abort();
    tokens_read_window(&t, first - 1, BLOCK, x, y, &failure);
    tokens_close(&t);
    return 0;
}
