/* text.c: see text.h. */

#include "text.h"

#include <stdlib.h>
#include <string.h>

enum { GAPS_MOST = 1 << 20 }; /* ids that no token has: the table is by id, and a few bytes can name any */

static void take_token(vocabulary *v, double id, const char *token, int64_t length) {
    if (id < 0 || id >= (double)v->count || !token) return;
    v->token[(int64_t)id] = token;
    v->length[(int64_t)id] = length;
}

int32_t vocabulary_read(vocabulary *v, const char *path, failure *failure) {
    *v = (vocabulary){0};
    if (json_read_file(&v->doc, path, failure)) return 1;
    const json_value *values = v->doc.values;
    int64_t model = json_find(&v->doc, 0, "model"), table = json_find(&v->doc, model, "vocab"),
            added = json_find(&v->doc, 0, "added_tokens");
    const char *type = json_string(&v->doc, model, "type", "");
    double largest = -1.0;
    int32_t known = table && values[table].type == JSON_OBJECT && (!strcmp(type, "WordLevel") || !strcmp(type, "BPE"));
    if (known)
        for (int64_t i = values[table].first; i; i = values[i].next)
            if (values[i].type == JSON_NUMBER && values[i].number > largest) largest = values[i].number;
    if (added && values[added].type == JSON_ARRAY)
        for (int64_t i = values[added].first; i; i = values[i].next)
            if (json_number(&v->doc, i, "id", -1) > largest) largest = json_number(&v->doc, i, "id", -1);
    if (known && largest >= 0 && largest < values[table].count + GAPS_MOST) {
        v->count = (int64_t)largest + 1;
        v->token = calloc((size_t)v->count, sizeof *v->token);
        v->length = calloc((size_t)v->count, sizeof *v->length);
    }
    if (!v->token || !v->length) {
        failure_say(failure, "%s: not a tokenizer of characters or of byte-level BPE", path);
        vocabulary_free(v);
        return 1;
    }
    v->byte_level = !strcmp(type, "BPE");
    for (int64_t i = values[table].first; i; i = values[i].next)
        if (values[i].type == JSON_NUMBER) take_token(v, values[i].number, values[i].key, values[i].key_length);
    return 0;
}

void vocabulary_free(vocabulary *v) {
    json_free(&v->doc);
    free(v->token);
    free(v->length);
    *v = (vocabulary){0};
}

/* GPT-2 writes every byte as a visible character: itself where it is one, else the next of U+0100, U+0101, ... */
static int32_t byte_is_visible(int32_t byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}
static int32_t byte_to_character(int32_t byte) {
    int32_t hidden = 0;
    if (byte_is_visible(byte)) return byte;
    for (int32_t b = 0; b < byte; b++) hidden += !byte_is_visible(b);
    return 256 + hidden;
}

/* Bytes of the UTF-8 character at s: 1 to 4, never beyond a terminating zero. */
static int64_t character_length(const char *s) {
    unsigned char c = (unsigned char)*s;
    int64_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    for (int64_t i = 1; i < n; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80) return i;
    return n;
}

static int32_t find_token(const vocabulary *v, const char *s, int64_t n) {
    for (int64_t i = 0; i < v->count; i++)
        if (v->token[i] && v->length[i] == n && !memcmp(v->token[i], s, (size_t)n)) return (int32_t)i;
    return -1;
}

int64_t vocabulary_encode(const vocabulary *v, const char *text, int32_t *ids, int64_t room) {
    int64_t count = 0;
    while (*text && count < room) {
        int64_t n = v->byte_level ? 1 : character_length(text);
        char character[4];
        memcpy(character, text, (size_t)n);
        text += n;
        if (v->byte_level) {
            int32_t code = byte_to_character((unsigned char)character[0]);
            n = code < 0x80 ? 1 : 2;
            if (n == 2) {
                character[0] = (char)(0xc0 | code >> 6);
                character[1] = (char)(0x80 | (code & 63));
            }
        }
        ids[count] = find_token(v, character, n);
        if (ids[count++] < 0) return -1;
    }
    return *text ? -1 : count;
}

void vocabulary_print(const vocabulary *v, int32_t id, FILE *stream) {
    if (id < 0 || id >= v->count || !v->token[id]) return;
    const char *s = v->token[id], *end = s + v->length[id];
    if (!v->byte_level) {
        fwrite(s, 1, (size_t)v->length[id], stream);
        return;
    }
    while (s < end) {
        int32_t code = (unsigned char)*s;
        if (code >= 0xc0 && end - s > 1) code = (code & 31) << 6 | ((unsigned char)s[1] & 63);
        s += code < 0x80 || end - s < 2 ? 1 : 2;
        for (int32_t byte = 0; byte < 256; byte++)
            if (byte_to_character(byte) == code) {
                fputc(byte, stream);
                break;
            }
    }
}
