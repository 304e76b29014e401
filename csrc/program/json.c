/* json.c: see json.h. A recursive descent, bounded in depth; every read is checked against the end. */

#include "platform/file.h"
#include "json.h"
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 64 };

typedef struct parser {
    json *doc;
    const char *at, *begin, *end;
    char *out; /* where the next decoded string goes; strings only get shorter by decoding */
} parser;

static int32_t fail(parser *p, const char *what) {
    if (!p->doc->message[0]) {
        int64_t line = 1;
        for (const char *c = p->begin; c < p->at; c++) line += *c == '\n';
        snprintf(p->doc->message, sizeof p->doc->message, "line %lld: %s", (long long)line, what);
    }
    return 1;
}

static void skip_space(parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r')) p->at++;
}

/* Returns an upper bound of the document's values: one, and one for each comma and opening bracket outside of strings. */
static int64_t count_values(const char *text, int64_t size) {
    int64_t count = 1;
    int32_t in_string = 0;
    for (int64_t i = 0; i < size; i++) {
        if (text[i] == '"') in_string = !in_string;
        else if (in_string) i += text[i] == '\\';
        else count += text[i] == ',' || text[i] == '[' || text[i] == '{';
    }
    return count;
}

static int32_t add_value(parser *p, int32_t type) {
    p->doc->values[p->doc->count] = (json_value){.type = type};
    return (int32_t)p->doc->count++;
}

static int32_t read_hex(parser *p, uint32_t *code) {
    *code = 0;
    if (p->end - p->at < 4) return fail(p, "a string ends inside of \\u");
    for (int32_t i = 0; i < 4; i++) {
        char c = *p->at++;
        int32_t digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
        if (digit < 0) return fail(p, "expected four hexadecimal digits after \\u");
        *code = *code * 16 + (uint32_t)digit;
    }
    return 0;
}

static void put_utf8(parser *p, uint32_t code) {
    if (code < 0x80) *p->out++ = (char)code;
    else if (code < 0x800) {
        *p->out++ = (char)(0xc0 | code >> 6);
        *p->out++ = (char)(0x80 | (code & 63));
    } else {
        if (code < 0x10000) *p->out++ = (char)(0xe0 | code >> 12);
        else {
            *p->out++ = (char)(0xf0 | code >> 18);
            *p->out++ = (char)(0x80 | (code >> 12 & 63));
        }
        *p->out++ = (char)(0x80 | (code >> 6 & 63));
        *p->out++ = (char)(0x80 | (code & 63));
    }
}

/* After the opening quote. */
static int32_t read_string(parser *p, const char **string, int32_t *length) {
    char *start = p->out;
    while (p->at < p->end && *p->at != '"') {
        char c = *p->at++;
        if ((unsigned char)c < 0x20) return fail(p, "a control character in a string");
        if (c != '\\') {
            *p->out++ = c;
            continue;
        }
        if (p->at == p->end) break;
        c = *p->at++;
        const char *from = "\"\\/bfnrt", *to = "\"\\/\b\f\n\r\t", *found = c ? strchr(from, c) : NULL;
        if (found) {
            *p->out++ = to[found - from];
            continue;
        }
        uint32_t code, low;
        if (c != 'u') return fail(p, "an unknown escape in a string");
        if (read_hex(p, &code)) return 1;
        if (code >= 0xd800 && code < 0xdc00 && p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u') {
            p->at += 2;
            if (read_hex(p, &low)) return 1;
            if (low < 0xdc00 || low > 0xdfff) return fail(p, "half of a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xd800 && code < 0xe000) {
            return fail(p, "half of a surrogate pair");
        }
        put_utf8(p, code);
    }
    if (p->at == p->end) return fail(p, "a string does not end");
    p->at++;
    *string = start;
    *length = (int32_t)(p->out - start);
    *p->out++ = 0; /* in place of the two quotes */
    return 0;
}

/* Its text goes where strings go: what follows a number in the document leaves room for the zero. */
static int32_t read_number(parser *p, json_value *value) {
    char *text = p->out, *last;
    while (p->at < p->end && p->out - text < 63 && *p->at && strchr("+-0123456789.eE", *p->at)) *p->out++ = *p->at++;
    *p->out++ = 0;
    value->text = (int32_t)(text - p->doc->strings);
    value->number = strtod(text, &last);
    int32_t begins = (text[0] >= '0' && text[0] <= '9') || (text[0] == '-' && text[1] >= '0' && text[1] <= '9');
    return begins && *last == 0 ? 0 : fail(p, "expected a value");
}

static int32_t read_word(parser *p, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(p->end - p->at) < n || memcmp(p->at, word, n)) return fail(p, "expected a value");
    p->at += n;
    return 0;
}

static int32_t read_value(parser *p, int32_t depth);

/* The members of an array or object, after its bracket. */
static int32_t read_members(parser *p, int32_t parent, char close, int32_t depth) {
    int32_t last = 0;
    skip_space(p);
    if (p->at < p->end && *p->at == close) {
        p->at++;
        return 0;
    }
    for (;;) {
        const char *key = NULL;
        int32_t key_length = 0, member = (int32_t)p->doc->count;
        skip_space(p);
        if (close == '}') {
            if (p->at == p->end || *p->at != '"') return fail(p, "expected a key");
            p->at++;
            if (read_string(p, &key, &key_length)) return 1;
            skip_space(p);
            if (p->at == p->end || *p->at != ':') return fail(p, "expected :");
            p->at++;
        }
        if (read_value(p, depth + 1)) return 1;
        json_value *values = p->doc->values;
        values[member].key = key;
        values[member].key_length = key_length;
        if (last) values[last].next = member;
        else values[parent].first = member;
        values[parent].count++;
        last = member;
        skip_space(p);
        if (p->at < p->end && *p->at == ',') {
            p->at++;
            continue;
        }
        if (p->at < p->end && *p->at == close) {
            p->at++;
            return 0;
        }
        return fail(p, close == '}' ? "expected , or }" : "expected , or ]");
    }
}

static int32_t read_value(parser *p, int32_t depth) {
    skip_space(p);
    if (depth > DEPTH) return fail(p, "too many levels");
    if (p->at == p->end) return fail(p, "expected a value");
    char c = *p->at;
    int32_t value = add_value(p, JSON_NULL);
    if (c == '{' || c == '[') {
        p->at++;
        p->doc->values[value].type = c == '{' ? JSON_OBJECT : JSON_ARRAY;
        return read_members(p, value, c == '{' ? '}' : ']', depth);
    }
    if (c == '"') {
        p->at++;
        p->doc->values[value].type = JSON_STRING;
        return read_string(p, &p->doc->values[value].string, &p->doc->values[value].length);
    }
    if (c == 't' || c == 'f') {
        p->doc->values[value].type = c == 't' ? JSON_TRUE : JSON_FALSE;
        return read_word(p, c == 't' ? "true" : "false");
    }
    if (c == 'n') return read_word(p, "null");
    p->doc->values[value].type = JSON_NUMBER;
    return read_number(p, &p->doc->values[value]);
}

int32_t json_parse(json *doc, const char *text, int64_t size) {
    *doc = (json){0};
    parser p = {doc, text, text, text + size, NULL};
    int64_t most = count_values(text, size);
    if (size > JSON_TEXT_MOST || most > JSON_VALUES_MOST) return fail(&p, "a document of more values than any of ours");
    doc->values = malloc((size_t)most * sizeof *doc->values);
    doc->strings = p.out = malloc((size_t)size + 1);
    int32_t failed = !doc->values || !doc->strings ? fail(&p, "no memory for this document") : read_value(&p, 0);
    skip_space(&p);
    if (!failed && p.at != p.end) failed = fail(&p, "something follows the document");
    if (failed) json_free(doc); /* keeps the message */
    return failed;
}

int32_t json_read_file(json *doc, const char *path, failure *failure) {
    int64_t size;
    char *text = file_read(path, &size, failure);
    if (!text) return 1;
    int32_t failed = json_parse(doc, text, size);
    free(text);
    return failed ? failure_say(failure, "%s: %s", path, doc->message) : 0;
}

void json_free(json *doc) {
    free(doc->values);
    free(doc->strings);
    doc->values = NULL;
    doc->strings = NULL;
    doc->count = 0;
}

int64_t json_find(const json *doc, int64_t object, const char *key) {
    if (object < 0 || object >= doc->count || doc->values[object].type != JSON_OBJECT) return 0;
    for (int64_t i = doc->values[object].first; i; i = doc->values[i].next)
        if (strlen(key) == (size_t)doc->values[i].key_length && !memcmp(doc->values[i].key, key, strlen(key))) return i;
    return 0;
}

double json_number(const json *doc, int64_t object, const char *key, double otherwise) {
    int64_t i = json_find(doc, object, key);
    return i && doc->values[i].type == JSON_NUMBER ? doc->values[i].number : otherwise;
}

const char *json_string(const json *doc, int64_t object, const char *key, const char *otherwise) {
    int64_t i = json_find(doc, object, key);
    return i && doc->values[i].type == JSON_STRING ? doc->values[i].string : otherwise;
}

const char *json_digits(const json *doc, int64_t number) { return doc->strings + doc->values[number].text; }

int32_t json_flag(const json *doc, int64_t object, const char *key, int32_t otherwise) {
    int64_t i = json_find(doc, object, key);
    return i && doc->values[i].type == JSON_TRUE ? 1 : i && doc->values[i].type == JSON_FALSE ? 0 : otherwise;
}
