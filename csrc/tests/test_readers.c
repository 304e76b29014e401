/* test_readers.c: JSON, safetensors, model folders, token files and vocabularies: what they read, and that damaged ones
   are refused and never crash. Every prefix and every one-byte change of small good files is read; meant for the
   sanitizers:  make test SANITIZE=1 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform/file.h"
#include "program/folder.h"
#include "program/json.h"
#include "program/safetensors.h"
#include "program/text.h"
#include "program/tokens.h"
#include "check.h"

static failure wrong;

static void json_checks(void) {
    json doc;
    const char
        *good = " {\"a\": [1, -2.5e3, true, null], \"b\\u00e9\\n\": \"\\ud83d\\ude00x\", \"o\": {\"k\": false}} ";
    check(!json_parse(&doc, good, (int64_t)strlen(good)), doc.message);
    int64_t a = json_find(&doc, 0, "a"), second = doc.values[doc.values[a].first].next;
    check(doc.values[a].count == 4 && doc.values[second].number == -2500.0, "numbers");
    check(!strcmp(json_string(&doc, 0, "b\xc3\xa9\n", ""), "\xf0\x9f\x98\x80x"), "escapes");
    check(json_flag(&doc, json_find(&doc, 0, "o"), "k", 1) == 0 && json_flag(&doc, 0, "none", 1) == 1, "flags");
    check(json_number(&doc, a, "k", 7.0) == 7.0 && !json_find(&doc, 0, "z"), "what is not there");
    json_free(&doc);

    const char *bad[] = {"",    "{",  "[1,]",      "{\"a\" 1}",   "{\"a\":1,}", "{1:2}", "nul",
                         "tru", "\"", "\"\\u12\"", "\"\\ud800\"", "\"\\x\"",    "1 2",   "-",
                         "01x", "+1", "nan",       "[1 2]",       "\"a\nb\"",   "1e",    "inf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check(json_parse(&doc, bad[i], (int64_t)strlen(bad[i])) && doc.message[0], bad[i]);
        json_free(&doc);
    }
    char deep[5000];
    memset(deep, '[', sizeof deep);
    check(json_parse(&doc, deep, sizeof deep) && strstr(doc.message, "levels"), "5000 levels");
    json_free(&doc);
    int64_t many = (int64_t)JSON_VALUES_MOST * 2 + 1;
    char *dense = malloc((size_t)many); /* [0,0,0,...]: a value more than is read */
    for (int64_t i = 0; i < many; i++) dense[i] = i == 0 ? '[' : i == many - 1 ? ']' : i % 2 ? '0' : ',';
    check(json_parse(&doc, dense, many) && strstr(doc.message, "more values"), "too many values");
    dense[many - 3] = ']';
    check(!json_parse(&doc, dense, many - 2) && doc.values[0].count == JSON_VALUES_MOST - 1,
          "as many values as are read");
    json_free(&doc);
    free(dense);
    for (size_t n = 0; n < strlen(good); n++)
        for (int32_t byte = -1; byte < 256; byte++) {
            char *copy = malloc(strlen(good) + 1); /* exactly as long as it is, for the sanitizer */
            memcpy(copy, good, strlen(good) + 1);
            if (byte >= 0) copy[n] = (char)byte;
            json_parse(&doc, copy, byte >= 0 ? (int64_t)strlen(good) : (int64_t)n);
            json_free(&doc);
            free(copy);
        }
    checks++;
}

static void safetensors_checks(void) {
    safetensors_writer w;
    safetensors file;
    char target[1200];
    snprintf(target, sizeof target, "%s/model.safetensors", directory);
    const safetensor tensors[] = {{.name = "one", .rank = 1, .shape = {3}, .elements = 3},
                                  {.name = "two", .rank = 2, .shape = {2, 2}, .elements = 4}};
    const float one[] = {1, 2, 3}, two[] = {4, 5, 6, 7};
    check(!safetensors_begin(&w, target, tensors, 2) && !safetensors_append(&w, one, 3)
              && !safetensors_append(&w, two, 4) && !safetensors_commit(&w),
          "writing");
    check(!safetensors_open(&file, target, &wrong), wrong.text);
    const safetensor *t = safetensors_find(&file, "two");
    float values[4] = {0};
    check(t && t->rank == 2 && t->shape[0] == 2 && !safetensors_read(&file, t, values)
              && !memcmp(values, two, sizeof two),
          "reading what was written");
    check(!safetensors_find(&file, "three") && file.count == 2, "names");
    safetensors_close(&file);

    int64_t size;
    char *good = file_read(target, &size, &wrong);
    check(good != NULL, wrong.text);
    for (int64_t n = 0; n < size; n++)
        for (int32_t change = 0; change < 6; change++) { /* cut short; or one byte is another */
            char *copy = malloc((size_t)size);
            memcpy(copy, good, (size_t)size);
            if (change) copy[n] = (char)(uint8_t[]){0, 0, 0xff, '9', '{', (uint8_t)(copy[n] + 1)}[change];
            write_file("damaged.safetensors", copy, change ? (size_t)size : (size_t)n);
            int32_t failed = safetensors_open(&file, path, &wrong);
            check(change || failed, "a file that is cut short");
            for (int64_t i = 0; !failed && i < file.count; i++)
                if (file.tensors[i].elements <= 4) safetensors_read(&file, &file.tensors[i], values);
            if (!failed) safetensors_close(&file);
            free(copy);
        }
    free(good);

    const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x7bff}; /* 1, -2, 2^-24, 65504 */
    char raw[200];
    int n = snprintf(raw + 8, sizeof raw - 8,
                     "{\"h\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"BF16\","
                     "\"shape\":[4],\"data_offsets\":[8,16]}}");
    memset(raw, 0, 8);
    raw[0] = (char)n;
    memcpy(raw + 8 + n, halves, 8);
    memcpy(raw + 16 + n, halves, 8);
    write_file("half.safetensors", raw, (size_t)(24 + n));
    check(!safetensors_open(&file, path, &wrong), wrong.text);
    check(!safetensors_read(&file, safetensors_find(&file, "h"), values) && values[0] == 1.0f && values[1] == -2.0f
              && values[2] == 0x1p-24f && values[3] == 65504.0f,
          "float16");
    check(!safetensors_read(&file, safetensors_find(&file, "b"), values) && values[0] == 0.0078125f
              && values[1] == -2.0f,
          "bfloat16");
    safetensors_close(&file);
    check(safetensors_open(&file, "/no/such/file", &wrong) && strstr(wrong.text, "/no/such/file"),
          "a file that is not there");
}

/* What libFuzzer and the safetensors library have in common: tensors that share bytes or a name are no file of theirs.
 */
static void refuse_header(const char *header, size_t bytes, const char *expected) {
    safetensors file;
    char raw[512] = {(char)strlen(header)};
    memcpy(raw + 8, header, strlen(header));
    write_file("refused.safetensors", raw, 8 + strlen(header) + bytes);
    int32_t failed = safetensors_open(&file, path, &wrong);
    check(failed && strstr(wrong.text, expected), expected);
    if (!failed) safetensors_close(&file);
}

static void header_checks(void) {
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":["
                  "2],\"data_offsets\":[4,12]}}",
                  12, "share bytes");
    refuse_header("{\"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},\"a\":{\"dtype\":\"F16\",\"shape\":["
                  "1],\"data_offsets\":[2,4]}}",
                  4, "same name");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "shape");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4, "outside");
    refuse_header("{\"a\":[1,2]}", 4, "without shape");
}

/* A config.json of a few bytes that names absurd sizes is refused before memory is asked for. */
static void folder_checks(void) {
    const char *sizes[] = {
        "\"n_layer\": 65536, \"n_head\": 1, \"n_embd\": 1, \"n_inner\": 1, \"vocab_size\": 1, \"n_positions\": 1",
        "\"vocab_size\": 268435456",
        "\"n_embd\": 12000000",
        "\"n_positions\": 16777216",
        "\"n_inner\": 268435456",
        "\"n_embd\": 1e300",
        "\"n_layer\": 1e9",
        "\"n_head\": -1",
        "\"n_head\": 0.5",
        "\"vocab_size\": 1e999",
    };
    sampan_config config = {0};
    double *frequencies;
    const family *family;
    char text[512];
    write_file("model.safetensors", "0123456789", 10);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(text, sizeof text, "{\"model_type\": \"gpt2\", %s}", sizes[i]);
        write_file("config.json", text, strlen(text));
        check(folder_read_config(&config, &family, &frequencies, directory, &wrong) && !frequencies, sizes[i]);
    }
    char weights[2000] = {0};
    write_file("model.safetensors", weights, sizeof weights);
    const char
        *rotary = "{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"hidden_size\": "
                  "8, \"intermediate_size\": 8, \"vocab_size\": 8, \"max_position_embeddings\": 16000000}";
    write_file("config.json", rotary, strlen(rotary));
    check(folder_read_config(&config, &family, &frequencies, directory, &wrong)
              && strstr(wrong.text, "max_position_embeddings"),
          "a table of positions");
    remove(path);
}

static void tokens_checks(void) {
    tokens t;
    windows w;
    uint16_t ids[100];
    for (int32_t i = 0; i < 100; i++) ids[i] = (uint16_t)i;
    write_file("train.bin", ids, sizeof ids);
    const char *meta = "{\"vocab_size\": 100, \"dtype\": \"uint16\"}";
    write_file("meta.json", meta, strlen(meta));
    check(!tokens_open(&t, directory, "train", 100, &wrong) && t.count == 100, wrong.text);
    check(!windows_create(&w, &t, 8, 1337, &wrong), wrong.text);
    int32_t x[13 * 8], y[13 * 8], seen[100] = {0};
    for (int64_t epoch = 0; epoch < 3; epoch++) { /* every window once an epoch */
        memset(seen, 0, sizeof seen);
        check(!windows_read(&w, epoch * w.per_epoch, w.per_epoch, x, y, &wrong), wrong.text);
        for (int64_t i = 0; i < w.per_epoch * 8; i++) {
            check(y[i] == x[i] + 1, "targets are one later");
            seen[x[i]]++;
        }
        for (int32_t i = 0; i < 100; i++) check(seen[i] <= 1, "a token is read once");
    }
    check(tokens_read_window(&t, 95, 8, x, y, &wrong) && tokens_read_window(&t, -1, 8, x, y, &wrong),
          "beyond the file");
    check(windows_create(&w, &t, 100, 1, &wrong) && strstr(wrong.text, "a block needs 101"),
          "a file that is too short");
    tokens_close(&t);
    ids[50] = 60000;
    write_file("train.bin", ids, sizeof ids);
    check(!tokens_open(&t, directory, "train", 100, &wrong), wrong.text);
    check(tokens_read_window(&t, 45, 8, x, y, &wrong) && strstr(wrong.text, "token 60000 at 50"), "an id out of range");
    tokens_close(&t);
    write_file("train.bin", ids, 99);
    check(tokens_open(&t, directory, "train", 100, &wrong), "half a token");
    check(tokens_open(&t, directory, "train", 99, &wrong) && strstr(wrong.text, "vocabulary"), "a smaller model");
    write_file("meta.json", "{\"dtype\": \"float8\"}", 19);
    check(tokens_open(&t, directory, "train", 100, &wrong), "an unknown dtype");
}

static vocabulary v;

/* 1: the text has exactly these ids. */
static int32_t encodes(const char *text, const int32_t *wanted, int64_t n) {
    int32_t *ids;
    int64_t count;
    if (vocabulary_encode(&v, text, &ids, &count, &wrong)) return 0;
    int32_t same = count == n && !memcmp(ids, wanted, (size_t)n * sizeof *ids);
    free(ids);
    return same;
}

static int32_t writes(int32_t id, const char *wanted) {
    return v.token[id].length == (int64_t)strlen(wanted) && !memcmp(v.token[id].bytes, wanted, strlen(wanted));
}

static void read_tokenizer(const char *text) {
    write_file("tokenizer.json", text, strlen(text));
    check(!vocabulary_read(&v, path, &wrong), wrong.text);
}

#define EACH "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[\\\\s\\\\S]\"}}, "
#define GPT2 \
    "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": " \
    "\"ByteLevel\"}, "

static void text_checks(void) {
    uint8_t after[UTF8_STATES * 8];
    read_tokenizer("{" EACH
                   "\"decoder\": {\"type\": \"Fuse\"}, \"added_tokens\": [{\"id\": 3, \"content\": \"</s>\"}], "
                   "\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"a\": 0, \"\\n\": 1, \"\\u4e16\": 2}}}");
    check(encodes("\xe4\xb8\x96\na", (int32_t[]){2, 1, 0}, 3) && v.end_of_text == 3, "characters");
    check(!encodes("b", NULL, 0) && strstr(wrong.text, "U+0062"), "a character that is missing");
    check(!encodes("a\xe4", NULL, 0) && strstr(wrong.text, "byte 2"), "half a character");
    check(!vocabulary_follow(&v, 5, after) && after[0] == UTF8_WHOLE && after[4] == UTF8_BROKEN, "an id of no token");
    vocabulary_free(&v);
    read_tokenizer("{" EACH
                   "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"ByteFallback\"}, {\"type\": "
                   "\"Fuse\"}]}, \"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"merges\": [], \"vocab\": "
                   "{\"<0xC3>\": 0, \"<0xA9>\": 1, \"a\": 2, \"<0xE4>\": 3}}}");
    check(encodes("a\xc3\xa9", (int32_t[]){2, 0, 1}, 3) && writes(0, "\xc3"), "characters and bytes");
    check(!vocabulary_follow(&v, 4, after) && after[0] != UTF8_BROKEN && after[1] == UTF8_BROKEN
              && after[2] == UTF8_WHOLE && after[3] != UTF8_BROKEN && after[after[3] * 4 + 1] != UTF8_BROKEN,
          "what can follow");
    vocabulary_free(&v);
    read_tokenizer("{" GPT2 "\"added_tokens\": [{\"id\": 6, \"content\": \"<|endoftext|>\"}], \"model\": {\"vocab\": "
                   "{\"\\u0120\": 0, \"t\": 1, \"h\": 2, \"th\": 3, \"\\u0120th\": 4, \"\\u010a\": 5}, \"merges\": "
                   "[\"t h\", [\"\\u0120\", \"th\"]]}}");
    check(encodes("th th\n<|endoftext|>h", (int32_t[]){3, 4, 5, 6, 2}, 5), "byte-level BPE");
    check(encodes("t  th", (int32_t[]){1, 0, 4}, 3) && writes(4, " th") && writes(6, "<|endoftext|>"), "two spaces");
    vocabulary_free(&v);
    read_tokenizer(
        "{\"pre_tokenizer\": {\"type\": \"Digits\"}, \"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": "
        "\"BPE\", \"vocab\": {\"a\": 0}}}");
    check(!encodes("a", NULL, 0) && strstr(wrong.text, "sampan sample") && writes(0, "a"), "an unknown way to cut");
    vocabulary_free(&v);
    const char *bad[] = {
        "{" GPT2 "\"model\": {\"type\": \"BPE\", \"vocab\": {\"h\": 16000000}}}",
        "{\"decoder\": {\"type\": \"WordPiece\"}, \"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}}}",
        "{\"model\": {\"type\": \"Unigram\"}}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("tokenizer.json", bad[i], strlen(bad[i]));
        check(vocabulary_read(&v, path, &wrong) && strstr(wrong.text, "use sampan sample"),
              "a tokenizer of another kind");
    }
}

int main(void) {
    const char *base = getenv("TMPDIR") ? getenv("TMPDIR") : getenv("TEMP") ? getenv("TEMP") : "/tmp";
    snprintf(directory, sizeof directory, "%s", base);
    json_checks();
    safetensors_checks();
    header_checks();
    folder_checks();
    tokens_checks();
    text_checks();
    printf("test_readers: %d checks, %d failed\n", (int)checks, (int)failures);
    return failures > 0;
}
