/* fuzz_text.c: any bytes as a prompt and a tokenizer.json; the prompt is encoded, and every id written. */

#include "program/text.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static FILE *nowhere;
    if (!nowhere) nowhere = fopen("/dev/null", "wb");
    input in = {data, data + size}, prompt = take_piece(&in, take(&in) % 32);
    char text[33] = "";
    failure failure = {0};
    int32_t ids[32];
    vocabulary v;
    if (prompt.at < prompt.end) memcpy(text, prompt.at, (size_t)(prompt.end - prompt.at));
    if (vocabulary_read(&v, fuzz_write("tokenizer.json", in), &failure)) {
        if (!failure.text[0]) abort();
        return 0;
    }
    int64_t room = 1 + size % 32, n = vocabulary_encode(&v, text, ids, room);
    for (int64_t i = 0; i < n; i++)
        if (n > room || ids[i] < 0 || ids[i] >= v.count) abort();
    for (int32_t id = -1; id <= v.count && id < 1000; id++) vocabulary_print(&v, id, nowhere);
    vocabulary_free(&v);
    return 0;
}
