/* seeds.c: writes what the fuzzers begin with, good inputs of each kind:  build-fuzz/seeds build-fuzz/corpus */

#include <math.h>
#include <sys/stat.h>
#include "platform/file.h"
#include "program/folder.h"
#include "fuzz.h"
#include "tests/check.h"

static const char *corpus;

static void write_seed(const char *kind, const char *name, const void *first, int64_t first_size, const void *second,
                       int64_t second_size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", corpus, kind);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s", corpus, kind, name);
    FILE *file = fopen(path, "wb");
    if (!file) exit(1);
    fwrite(first, 1, (size_t)first_size, file);
    fwrite(second, 1, (size_t)second_size, file);
    fclose(file);
}

static void write_text(const char *kind, const char *name, const char *prefix, int64_t prefix_size, const char *text) {
    write_seed(kind, name, prefix, prefix_size, text, (int64_t)strlen(text));
}

/* Two length bytes, then config.json, then the weights. */
static void write_model(const char *name, const char *text) {
    static const double frequencies[2] = {1.0, 0.1};
    const family *family = folder_find_family(name);
    const int32_t is_llama = strcmp(name, "gpt2") != 0;
    sampan_config c = is_llama ? example_config(1, 2, 1, 4, 6, 4, 5) : example_config(1, 2, 2, 2, 6, 4, 5);
    c.n_embd = 4;
    c.tie_word_embeddings = strcmp(name, "llama") != 0;
    c.rotary_frequencies = frequencies;
    folder_set_parts(&c, family, !is_llama);
    sampan_engine *engine;
    char path[4096], first[4096];
    failure failure;
    if (sampan_create(&engine, &c, failure.text, sizeof failure.text)
        || folder_save_weights(engine, family, &c, corpus, &failure)) {
        puts(failure.text);
        exit(1);
    }
    sampan_destroy(engine);
    int64_t size, length = (int64_t)strlen(text);
    snprintf(path, sizeof path, "%s/model.safetensors", corpus);
    char *weights = file_read(path, &size, &failure);
    first[0] = (char)(length & 255);
    first[1] = (char)(length >> 8);
    memcpy(first + 2, text, (size_t)length);
    write_seed("folder", name, first, length + 2, weights, size);
    write_seed("safetensors", name, weights, size, "", 0);
    write_text("json", name, "", 0, text);
    remove(path);
    free(weights);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    corpus = argv[1];
    mkdir(corpus, 0777);
    write_model("gpt2", "{\"model_type\": \"gpt2\", \"n_layer\": 1, \"n_head\": 2, \"n_embd\": 4, \"n_inner\": 6, "
                        "\"n_positions\": 4, \"vocab_size\": 5, \"bias\": true}");
    write_model("llama", "{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"num_attention_heads\": 2, "
                         "\"num_key_value_heads\": 1, \"hidden_size\": 4, \"intermediate_size\": 6, \"head_dim\": 4, "
                         "\"max_position_embeddings\": 4, \"vocab_size\": 5}");
    write_model(
        "qwen3",
        "{\"model_type\": \"qwen3\", \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, "
        "\"hidden_size\": 4, \"intermediate_size\": 6, \"head_dim\": 4, \"max_position_embeddings\": 4, "
        "\"vocab_size\": 5, \"tie_word_embeddings\": true, \"rope_parameters\": {\"rope_theta\": 1e6}}");
    write_text("json", "escapes", "", 0,
               " [\"\\u00e9\\n\\ud83d\\ude00\", -2.5e-3, true, false, null, {\"a\": {}, \"b\": []}] ");
    const char *meta = "{\"vocab_size\": 100, \"dtype\": \"uint16\"}";
    char prefix[64] = {1, 2, 3, (char)strlen(meta), 0};
    memcpy(prefix + 5, meta, strlen(meta));
    write_seed("tokens", "uint16", prefix, 5 + (int64_t)strlen(meta),
               "\1\0\2\0\3\0\4\0\5\0\6\0\7\0\10\0\11\0\12\0\13\0\14\0\15\0\16\0\17\0\20\0", 32);
    write_text("text", "characters", "\4aba\n", 5,
               "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[\\\\s\\\\S]\"}}, \"decoder\": "
               "{\"type\": "
               "\"Fuse\"}, \"model\": {\"type\": \"WordLevel\", \"vocab\": {\"a\": 0, \"\\n\": 1, \"b\": 2}}, "
               "\"added_tokens\": "
               "[{\"id\": 3, \"content\": \"<|endoftext|>\"}]}");
    write_text(
        "text", "bytes", "\2h\n", 3,
        "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": "
        "\"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"vocab\": {\"th\": 0, \"\\u010a\": 1, \"h\": 2, \"t\": 3}, "
        "\"merges\": [\"t h\"]}}");
    write_text(
        "text", "spaces", "\2 h\n", 4,
        "{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\"}, \"decoder\": {\"type\": "
        "\"Sequence\", "
        "\"decoders\": [{\"type\": \"ByteFallback\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \"\\u2581\"}, "
        "\"content\": \" \"}]}, \"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"\\u2581\": 0, "
        "\"h\": 1, "
        "\"\\u2581h\": 2, \"<0x0A>\": 3}, \"merges\": [[\"\\u2581\", \"h\"]]}}");
    char calls[256];
    for (int32_t family = 0; family < 3; family++) {
        for (int32_t i = 0; i < 256; i++) calls[i] = (char)(i * 37 % 191 + family);
        write_seed("api", (const char *[]){"gpt2", "llama", "qwen3"}[family], calls, 256, "", 0);
    }
    return 0;
}
