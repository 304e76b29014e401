/* tokens.c: see tokens.h; `mix`, `shuffle` and `starts` are data.py's, in integers. */

#include "platform/file.h"
#include "tokens.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "json.h"

int32_t tokens_open(tokens *t, const char *folder, const char *split, int32_t vocab_size, failure *failure) {
    int64_t size;
    json doc;
    *t = (tokens){.width = 2, .vocab_size = vocab_size};
    snprintf(t->path, sizeof t->path, "%s/meta.json", folder);
    if (json_read_file(&doc, t->path, failure)) return 1;
    const char *type = json_string(&doc, 0, "dtype", "uint16");
    int32_t known = !strcmp(type, "uint16") || !strcmp(type, "uint32");
    t->width = strcmp(type, "uint32") ? 2 : 4;
    double vocabulary = json_number(&doc, 0, "vocab_size", vocab_size);
    int32_t whole = json_flag(&doc, 0, "complete", 1); /* 0: a process died while it replaced the files */
    json_free(&doc);
    if (!whole) {
        failure_say(failure, "%s: preparing this folder did not finish; run sampan prepare again", t->path);
        return 1;
    }
    if (!known || vocabulary > vocab_size)
        return failure_say(failure,
                           known ? "%s: the tokens are of a larger vocabulary than the model's"
                                 : "%s: dtype is neither uint16 nor uint32",
                           t->path);
    snprintf(t->path, sizeof t->path, "%s/%s.bin", folder, split);
    t->stream = fopen(t->path, "rb");
    if (!t->stream) return failure_say(failure, "%s: %s", t->path, strerror(errno));
    size = file_seek(t->stream, 0, SEEK_END) ? -1 : (int64_t)file_tell(t->stream);
    if (size < 0 || size % t->width) {
        failure_say(failure, "%s: not a whole number of %s ids", t->path, t->width == 2 ? "uint16" : "uint32");
        tokens_close(t);
        return 1;
    }
    t->count = size / t->width;
    return 0;
}

void tokens_close(tokens *t) {
    if (t->stream) fclose(t->stream);
    t->stream = NULL;
}

int32_t tokens_read_window(tokens *t, int64_t start, int64_t block, int32_t *x, int32_t *y, failure *failure) {
    int32_t failed = start < 0 || block > t->count - start - 1
                     || file_seek(t->stream, t->begin + start * t->width, SEEK_SET);
    for (int64_t i = 0; i <= block && !failed; i++) {
        uint8_t raw[4] = {0};
        failed = fread(raw, 1, (size_t)t->width, t->stream) != (size_t)t->width;
        int64_t id = (int64_t)raw[0] | (int64_t)raw[1] << 8 | (int64_t)raw[2] << 16 | (int64_t)raw[3] << 24;
        if (!failed && id >= t->vocab_size) {
            failure_say(failure, "%s: token %lld at %lld; the vocabulary has %d", t->path, (long long)id,
                        (long long)(start + i), (int)t->vocab_size);
            return 1;
        }
        if (i < block) x[i] = (int32_t)id;
        if (i > 0) y[i - 1] = (int32_t)id;
    }
    return failed ? failure_say(failure, "%s: cannot be read at token %lld", t->path, (long long)start) : 0;
}

/* ---- windows ---- */

static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* Where the permutation of 0 .. n-1 that `key` names puts `index`: a Feistel network with cycle walking. */
static uint64_t shuffle(uint64_t index, uint64_t n, uint64_t key) {
    uint32_t bits = 0;
    for (uint64_t rest = n > 1 ? n - 1 : 1; rest; rest >>= 1) bits++;
    uint32_t half = (bits + 1) / 2;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = index >> half, right = index & mask;
        for (uint64_t turn = 0; turn < 4; turn++) {
            uint64_t next = left ^ (mix(key + right * 4 + turn) & mask);
            left = right;
            right = next;
        }
        index = left << half | right;
    } while (index >= n);
    return index;
}

int32_t windows_create(windows *w, tokens *source, int64_t block, uint64_t seed, failure *failure) {
    if (source->count < block + 1)
        return failure_say(failure, "%s has %lld tokens, and a block needs %lld", source->path,
                           (long long)source->count, (long long)(block + 1));
    int64_t per_epoch = (source->count - block) / block;
    if (per_epoch < 1) per_epoch = 1;
    *w = (windows){source, block, per_epoch, source->count - per_epoch * block, seed};
    return 0;
}

int32_t windows_read(windows *w, int64_t first, int64_t count, int32_t *x, int32_t *y, failure *failure) {
    for (int64_t i = 0; i < count; i++) {
        uint64_t index = (uint64_t)(first + i), epoch = index / (uint64_t)w->per_epoch,
                 within = index % (uint64_t)w->per_epoch;
        uint64_t key = mix(mix(w->seed) + epoch);
        int64_t start = (int64_t)(key % (uint64_t)w->offsets
                                  + shuffle(within, (uint64_t)w->per_epoch, key) * (uint64_t)w->block);
        if (tokens_read_window(w->source, start, w->block, x + i * w->block, y + i * w->block, failure)) return 1;
    }
    return 0;
}
