/* fuzz_text.c: any bytes as a prompt and a tokenizer.json; the prompt is encoded, and every id written. */

#include "program/text.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, data + size}, prompt = take_piece(&in, take(&in) % 32);
    char text[33] = "";
    failure failure = {0};
    int32_t *ids;
    int64_t n;
    vocabulary v;
    if (prompt.at < prompt.end) memcpy(text, prompt.at, (size_t)(prompt.end - prompt.at));
    if (vocabulary_read(&v, fuzz_write("tokenizer.json", in), &failure)) {
        if (!failure.text[0]) abort();
        return 0;
    }
    if (vocabulary_encode(&v, text, &ids, &n, &failure)) {
        if (ids || !failure.text[0]) abort();
    } else {
        for (int64_t i = 0; i < n; i++)
            if (ids[i] < 0 || ids[i] >= v.count || !v.token[ids[i]].name) abort();
        free(ids);
    }
    int64_t count = v.count < 1000 ? v.count : 1000, written = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < v.token[i].length; k++) written += v.token[i].bytes[k];
    uint8_t *after = malloc((size_t)(UTF8_STATES * count));
    if (after && !vocabulary_follow(&v, count, after) && after[0] > UTF8_BROKEN) abort();
    free(after);
    vocabulary_free(&v);
    return written == INT64_MAX; /* never: every byte was read */
}
