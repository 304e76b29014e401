/* llmc.c: see llmc.h. */

#include "platform/file.h"
#include "llmc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "platform/bfloat16.h"
#include "platform/memory.h"
#include "text.h"

enum { HEADER = 256, HEADER_BYTES = 4 * HEADER };
enum { MODEL = 20240326, STATE = 20240327, TOKENIZER = 20240328, TOKENS = 20240520 };
enum { FLOAT32_VERSION = 3, BFLOAT16_VERSION = 5, STATE_VERSION = 2, TOKENS_VERSION = 1 };
static int32_t complain(FILE *stream, const char *path, const char *what, failure *failure) {
    if (stream) fclose(stream);
    failure_say(failure, "%s: %s", path, what);
    return 1;
}

/* Opens a file of this kind; fills in its header and the number of bytes after it. Returns NULL with a failure. */
static FILE *open_kind(const char *path, int32_t magic, const char *kind, int32_t header[HEADER], int64_t *bytes,
                       failure *failure) {
    FILE *stream = fopen(path, "rb");
    if (!stream || fread(header, 4, HEADER, stream) != HEADER || header[0] != magic) {
        if (stream) failure_say(failure, "%s: not %s of llm.c", path, kind);
        else failure_say(failure, "%s: %s", path, strerror(errno));
        if (stream) fclose(stream);
        return NULL;
    }
    *bytes = file_seek(stream, 0, SEEK_END) ? -1 : (int64_t)file_tell(stream) - HEADER_BYTES;
    return stream;
}

int32_t llmc_recognizes(const char *path) {
    int32_t magic = 0;
    FILE *stream = fopen(path, "rb");
    if (!stream) return 0;
    int32_t found = fread(&magic, 4, 1, stream) == 1 && magic == MODEL;
    fclose(stream);
    return found;
}

/* ---- tensors: llm.c has each kind for all blocks before the next kind ---- */

static const struct {
    const char *name;
    int64_t squares, rows;
} OF_A_BLOCK[] = {/* squares * C * C + rows * C floats */
                  {"ln_1.weight", 0, 1},      {"ln_1.bias", 0, 1},          {"attn.c_attn.weight", 3, 0},
                  {"attn.c_attn.bias", 0, 3}, {"attn.c_proj.weight", 1, 0}, {"attn.c_proj.bias", 0, 1},
                  {"ln_2.weight", 0, 1},      {"ln_2.bias", 0, 1},          {"mlp.c_fc.weight", 4, 0},
                  {"mlp.c_fc.bias", 0, 4},    {"mlp.c_proj.weight", 4, 0},  {"mlp.c_proj.bias", 0, 1}};

/* Where a parameter begins, in elements behind the first; where it ends is the next one's, or the name NULL's: all of
 * them. */
static int64_t find_offset(const sampan_config *c, int64_t padded, const char *name) {
    int64_t C = c->n_embd, offset = (padded + c->block_size) * C, layer = 0;
    int n = 0;
    if (name && !strcmp(name, "wte.weight")) return 0;
    if (name && !strcmp(name, "wpe.weight")) return padded * C;
    if (name) sscanf(name, "h.%" SCNd64 ".%n", &layer, &n);
    for (size_t i = 0; i < sizeof OF_A_BLOCK / sizeof *OF_A_BLOCK; i++) {
        int64_t size = (OF_A_BLOCK[i].squares * C + OF_A_BLOCK[i].rows) * C;
        if (n && !strcmp(name + n, OF_A_BLOCK[i].name)) return offset + layer * size;
        offset += c->n_layer * size;
    }
    return offset + (!name ? 2 * C : strcmp(name, "ln_f.weight") ? C : 0);
}

/* All elements, without wrapping around; -1: no file has so many. */
static int64_t count_elements(const sampan_config *c, int64_t padded) {
    int64_t C = c->n_embd, blocks, tables;
    if (!size_multiply(&blocks, C, 12 * C + 13) || !size_multiply(&blocks, blocks, c->n_layer)
        || !size_multiply(&tables, C, padded + c->block_size + 2))
        return -1;
    return blocks / 2 + tables / 2 < (int64_t)1 << 60 ? blocks + tables : -1;
}

/* Rows of the token embedding, which llm.c pads. */
static int64_t padded_vocabulary(const sampan_config *c) { return ((int64_t)c->vocab_size + 127) / 128 * 128; }

/* `count` elements of `width` bytes, 4 or 2 (bfloat16), from the byte `offset` on. */
static int32_t read_values(FILE *stream, int64_t offset, int64_t width, int64_t count, float *values) {
    if (file_seek(stream, offset, SEEK_SET)) return 1;
    if (width == 4) return fread(values, 4, (size_t)count, stream) != (size_t)count;
    uint16_t piece[4096];
    for (int64_t i = 0; i < count; i += 4096) {
        int64_t n = count - i < 4096 ? count - i : 4096;
        if (fread(piece, 2, (size_t)n, stream) != (size_t)n) return 1;
        for (int64_t j = 0; j < n; j++) values[i + j] = bfloat16_to_float(piece[j]);
    }
    return 0;
}

/* ---- weights ---- */

typedef struct weights {
    FILE *stream;
    int64_t padded, width;
} weights;

/* Opens the file and fills in the config's sizes. */
static int32_t weights_open(weights *w, sampan_config *c, const family **family, const char *path, failure *failure) {
    int32_t h[HEADER];
    int64_t bytes;
    if (!(w->stream = open_kind(path, MODEL, "weights", h, &bytes, failure))) return 1;
    if (h[1] != FLOAT32_VERSION && h[1] != BFLOAT16_VERSION)
        return complain(w->stream, path, "its version is neither 3 (float32) nor 5 (bfloat16)", failure);
    for (int32_t i = 2; i < 8; i++)
        if (h[i] < 1 || h[i] > 1 << 28)
            return complain(w->stream, path, "its header has a size that no model has", failure);
    if (h[7] < h[3] || h[6] % h[5])
        return complain(w->stream, path, "its header has sizes that do not fit together", failure);
    *family = folder_find_family("gpt2");
    folder_set_parts(c, *family, 1);
    c->block_size = h[2];
    c->vocab_size = h[3];
    c->n_layer = h[4];
    c->n_head = c->n_kv_head = h[5];
    c->n_embd = h[6];
    w->padded = h[7];
    w->width = h[1] == FLOAT32_VERSION ? 4 : 2;
    int64_t elements = count_elements(c, w->padded);
    if (elements < 0 || bytes % w->width || bytes / w->width != elements)
        return complain(w->stream, path, "its length is not what its header says; it is not whole", failure);
    c->n_inner = 4 * c->n_embd;
    c->head_dim = c->n_embd / c->n_head;
    c->tie_word_embeddings = 1;
    c->norm_eps = 1e-5f;
    return 0;
}

int32_t llmc_read_config(sampan_config *config, const family **family, const char *path, failure *failure) {
    weights w;
    if (weights_open(&w, config, family, path, failure)) return 1;
    fclose(w.stream);
    return 0;
}

/* 1: the rows of the token embedding beyond the vocabulary are all zero. */
static int32_t padding_is_zero(const weights *w, const sampan_config *c) {
    float piece[1024];
    int64_t end = w->padded * c->n_embd;
    for (int64_t i = (int64_t)c->vocab_size * c->n_embd; i < end; i += 1024) {
        int64_t n = end - i < 1024 ? end - i : 1024;
        if (read_values(w->stream, HEADER_BYTES + i * w->width, w->width, n, piece)) return 0;
        for (int64_t j = 0; j < n; j++)
            if (piece[j] != 0.0f) return 0;
    }
    return 1;
}

int32_t llmc_load_weights(sampan_engine *engine, const sampan_config *config, const char *path, failure *failure) {
    weights w;
    sampan_config c = *config;
    const family *family;
    if (weights_open(&w, &c, &family, path, failure)) return 1;
    if (!padding_is_zero(&w, &c))
        return complain(w.stream, path, "the rows beyond its vocabulary are not zero", failure);
    const char *complaint = NULL;
    for (int64_t i = 0; i < sampan_count_parameters(engine) && !complaint; i++) {
        sampan_parameter p;
        sampan_get_parameter(engine, i, &p);
        int64_t count = p.rows * (p.columns ? p.columns : 1);
        float *values = malloc((size_t)count * sizeof(float));
        if (!values) complaint = "no memory to read it";
        else if (read_values(w.stream, HEADER_BYTES + find_offset(&c, w.padded, p.name) * w.width, w.width, count,
                             values))
            complaint = "cannot be read";
        else if (sampan_write(engine, "weight", i, values)) complaint = sampan_error(engine);
        free(values);
    }
    if (complaint) return complain(w.stream, path, complaint, failure);
    fclose(w.stream);
    return 0;
}

/* ---- tokens ---- */

int32_t llmc_open_tokens(tokens *t, const char *path, int32_t vocab_size, failure *failure) {
    int32_t h[HEADER];
    int64_t bytes;
    *t = (tokens){.width = 2, .begin = HEADER_BYTES, .vocab_size = vocab_size};
    snprintf(t->path, sizeof t->path, "%s", path);
    if (!(t->stream = open_kind(path, TOKENS, "a token file", h, &bytes, failure))) return 1;
    const char *wrong = h[1] != TOKENS_VERSION ? "its version is not 1"
                        : h[2] < 1 || bytes != (int64_t)h[2] * t->width
                            ? "its length is not what its header says; it is not whole"
                            : NULL;
    t->count = h[2];
    if (!wrong) return 0;
    complain(t->stream, path, wrong, failure);
    t->stream = NULL;
    return 1;
}

/* ---- its tokenizer ---- */

/* Tokens by their bytes: each is a length in one byte, and as many bytes. */
typedef struct token_file {
    const uint8_t **token; /* (count) */
    int64_t count, end_of_text, slots;
    int32_t *slot; /* (slots, a power of two) ranks by bytes; -1: free */
} token_file;

static int32_t *find_rank(const token_file *f, const uint8_t *bytes, int64_t n) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (int64_t i = 0; i < n; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    for (hash ^= hash >> 32;; hash++) {
        int32_t *slot = &f->slot[hash & (uint64_t)(f->slots - 1)];
        if (*slot < 0 || (f->token[*slot][0] == n && !memcmp(f->token[*slot] + 1, bytes, (size_t)n))) return slot;
    }
}

static const char *token_file_open(token_file *f, const char *raw, int64_t size) {
    const int32_t *header = (const int32_t *)(const void *)raw;
    const uint8_t *at = (const uint8_t *)raw + HEADER_BYTES, *end = (const uint8_t *)raw + size;
    *f = (token_file){0};
    if (size < HEADER_BYTES || header[0] != TOKENIZER || (header[1] != 1 && header[1] != 2))
        return "not a tokenizer file of llm.c";
    f->count = header[2];
    f->end_of_text = header[1] == 1 ? 50256 : header[3];
    if (f->count < 1 || f->count > size / 2 || f->end_of_text < 0 || f->end_of_text >= f->count)
        return "its header does not fit it";
    for (f->slots = 8; f->slots <= 2 * f->count;) f->slots *= 2;
    f->token = calloc((size_t)f->count, sizeof *f->token);
    f->slot = malloc((size_t)f->slots * sizeof *f->slot);
    if (!f->token || !f->slot) return "no memory to read it";
    for (int64_t i = 0; i < f->slots; i++) f->slot[i] = -1;
    for (int64_t i = 0; i < f->count; i++) {
        if (at >= end || !*at || *at >= end - at) return "it is not whole";
        f->token[i] = at;
        int32_t *rank = find_rank(f, at + 1, *at);
        if (*rank >= 0) return "two of its tokens are the same";
        *rank = (int32_t)i;
        at += 1 + *at;
    }
    return at == end ? NULL : "something follows its tokens";
}

/* Bytes of the left one of the two tokens that were merged into this one: what all merges of lower rank leave; 0: more. */
static int64_t find_half(const token_file *f, int32_t rank) {
    int64_t n = f->token[rank][0], cut[257], parts = n; /* parts i: cut[i] to cut[i + 1] */
    for (int64_t i = 0; i <= n; i++) cut[i] = i;
    while (parts > 2) {
        int32_t lowest = rank;
        int64_t best = 0;
        for (int64_t i = 0; i + 2 <= parts; i++) {
            int32_t found = *find_rank(f, f->token[rank] + 1 + cut[i], cut[i + 2] - cut[i]);
            if (found >= 0 && found < lowest) lowest = found, best = i;
        }
        if (lowest == rank) return 0;
        memmove(cut + best + 1, cut + best + 2, (size_t)(parts - best - 1) * sizeof *cut);
        parts--;
    }
    return cut[1];
}

/* A token's name in JSON, without its quotes: as it is, or each byte as GPT-2 writes it. */
static void write_name(FILE *out, const uint8_t *bytes, int64_t n, int32_t is_byte_level) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t code = is_byte_level ? byte_to_character(bytes[i]) : bytes[i];
        if (code == '"' || code == '\\') fputc('\\', out);
        if (code < ' ') fprintf(out, "\\u%04x", (unsigned)code);
        else if (is_byte_level && code >= 0x80)
            fprintf(out, "%c%c", (int)(0xc0 | code >> 6), (int)(0x80 | (code & 63)));
        else fputc((int)code, out);
    }
}

/* NULL, or why the tokens are neither a byte-level BPE nor characters. */
static const char *write_tokenizer(FILE *out, const token_file *f, int32_t is_byte_level, int32_t has_end) {
    static const char END[] = "\"added_tokens\": [{\"id\": %d, \"content\": \"<|endoftext|>\", \"single_word\": false, "
                              "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}]";
#define BYTE_LEVEL(prefix) \
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": " prefix ", \"trim_offsets\": true, \"use_regex\": true}"
    static const char BPE[] = "\"decoder\": " BYTE_LEVEL("true") ", \"pre_tokenizer\": " BYTE_LEVEL("false");
    static const char EACH[] =
        "\"decoder\": {\"type\": \"Fuse\"}, \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": "
        "{\"Regex\": \"[\\\\s\\\\S]\"}, \"behavior\": \"Isolated\", \"invert\": false}";
    fputs("{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"normalizer\": null, \"post_processor\": "
          "null,\n",
          out);
    fprintf(out, has_end ? END : "\"added_tokens\": []", (int)f->end_of_text);
    fprintf(out, ",\n%s,\n\"model\": {\"type\": \"%s\", ", is_byte_level ? BPE : EACH,
            is_byte_level ? "BPE" : "WordLevel");
    fputs(is_byte_level ? "" : "\"unk_token\": \"<unk>\", ", out);
    fputs("\"vocab\": {", out);
    for (int64_t i = 0, written = 0; i < f->count; i++) {
        const int32_t is_end = has_end && i == f->end_of_text;
        const uint8_t *token = f->token[i];
        if (!is_byte_level && is_end) continue;
        if (!is_byte_level && !utf8_is_character((const char *)token + 1, token[0]))
            return "its tokens are neither bytes and their merges nor characters";
        fputs(written++ ? ",\n\"" : "\n\"", out);
        write_name(out, token + 1, token[0], is_byte_level && !is_end);
        fprintf(out, "\": %lld", (long long)i);
    }
    fputs("}", out);
    const char *between = ", \"merges\": [\n";
    for (int64_t i = 0; is_byte_level && i < f->count; i++) {
        const uint8_t *token = f->token[i];
        if (token[0] == 1 || (has_end && i == f->end_of_text)) continue;
        int64_t half = find_half(f, (int32_t)i);
        if (!half) return "one of its tokens is not a merge of two earlier ones";
        fprintf(out, "%s[\"", between);
        write_name(out, token + 1, half, 1);
        fputs("\", \"", out);
        write_name(out, token + 1 + half, token[0] - half, 1);
        fputs("\"]", out);
        between = ",\n";
    }
    fputs(!is_byte_level ? "}}\n" : *between == ',' && between[1] == ' ' ? ", \"merges\": []}}\n" : "]}}\n", out);
    return NULL;
}

int32_t llmc_convert_tokenizer(const char *from, const char *to, int32_t *end_of_text, failure *failure) {
    static const char NAME[] = "<|endoftext|>";
    int64_t size;
    char *raw = file_read(from, &size, failure);
    token_file f;
    if (!raw) return 1;
    const char *complaint = token_file_open(&f, raw, size);
    if (!complaint) {
        const uint8_t *end = f.token[f.end_of_text];
        const int32_t has_end = end[0] == sizeof NAME - 1 && !memcmp(end + 1, NAME, end[0]);
        int32_t bytes = 0;
        for (int32_t b = 0; b < 256; b++) bytes += *find_rank(&f, (const uint8_t[]){(uint8_t)b}, 1) >= 0;
        *end_of_text = has_end ? (int32_t)f.end_of_text : -1;
        FILE *out = fopen(to, "wb");
        if (out) complaint = write_tokenizer(out, &f, bytes == 256, has_end);
        int32_t failed = !out || ferror(out);
        if (out && fclose(out)) failed = 1;
        if (failed) complaint = "its tokenizer.json cannot be written";
        if (complaint) remove(to);
    }
    if (complaint) failure_say(failure, "%s: %s", from, complaint);
    free(f.token);
    free(f.slot);
    free(raw);
    return complaint != NULL;
}

/* ---- what train_gpt2 prints ---- */

/* num_activations are those of llm.c, which keeps attention's scores and all logits; this engine needs fewer. */
void llmc_print_header(const sampan_config *c, int64_t train_batches, int64_t val_batches, int64_t batch,
                       int64_t block) {
    const int64_t M = batch * block, C = c->n_embd, V = padded_vocabulary(c),
                  scores = batch * c->n_head * block * block;
    const int64_t activations = c->n_layer * (18 * M * C + 4 * M + 2 * scores) + 2 * M * C + 2 * M + 2 * M * V + M;
    printf("[GPT-2]\nmax_seq_len: %d\nvocab_size: %d\npadded_vocab_size: %lld\nnum_layers: %d\nnum_heads: %d\n",
           (int)c->block_size, (int)c->vocab_size, (long long)V, (int)c->n_layer, (int)c->n_head);
    printf("channels: %d\nnum_parameters: %lld\ntrain dataset num_batches: %lld\nval dataset num_batches: %lld\n",
           (int)C, (long long)count_elements(c, V), (long long)train_batches, (long long)val_batches);
    printf("num_activations: %lld\n", (long long)activations);
}

float llmc_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (float)((uint32_t)((*state * 0x2545f4914f6cdd1du) >> 32) >> 8) / 16777216.0f;
}

/* ---- batches ---- */

static void twister_seed(llmc_batches *b, uint32_t seed) {
    b->twister[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        b->twister[i] = 1812433253u * (b->twister[i - 1] ^ (b->twister[i - 1] >> 30)) + i;
    b->used = 624;
}

static uint32_t twister_next(llmc_batches *b) {
    uint32_t *s = b->twister;
    if (b->used == 624) {
        for (int32_t i = 0; i < 624; i++) {
            uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
            s[i] = s[(i + 397) % 624] ^ (y >> 1) ^ (y & 1u ? 0x9908b0dfu : 0u);
        }
        b->used = 0;
    }
    uint32_t y = s[b->used++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* Each epoch's order is drawn from where the epoch before stopped (Fisher and Yates, from the end). */
static void shuffle_epoch(llmc_batches *b) {
    for (int64_t i = 0; i < b->per_epoch; i++) b->place[i] = (int32_t)i;
    for (int64_t i = b->per_epoch - 1; i > 0; i--) {
        int64_t j = twister_next(b) % (uint32_t)(i + 1);
        int32_t other = b->place[j];
        b->place[j] = b->place[i];
        b->place[i] = other;
    }
    b->shuffles++;
}

int32_t llmc_batches_create(llmc_batches *b, tokens *source, int64_t batch, int64_t block, int32_t shuffled,
                            failure *failure) {
    *b = (llmc_batches){
        .source = source, .batch = batch, .block = block, .per_epoch = (source->count - 1) / (batch * block)};
    if (b->per_epoch < 1)
        return failure_say(failure, "%s has %lld tokens, and a batch needs %lld", source->path,
                           (long long)source->count, (long long)(batch * block + 1));
    twister_seed(b, 42);
    if (shuffled && (b->per_epoch > INT32_MAX || !(b->place = malloc((size_t)b->per_epoch * sizeof *b->place))))
        return failure_say(failure, "no memory to shuffle %lld batches", (long long)b->per_epoch);
    return 0;
}

void llmc_batches_free(llmc_batches *b) {
    free(b->place);
    *b = (llmc_batches){0};
}

int32_t llmc_batches_read(llmc_batches *b, int64_t index, int32_t *x, int32_t *y, failure *failure) {
    while (b->place && b->shuffles <= index / b->per_epoch) shuffle_epoch(b);
    int64_t within = index % b->per_epoch, first = (b->place ? b->place[within] : within) * b->batch;
    for (int64_t i = 0; i < b->batch; i++)
        if (tokens_read_window(b->source, (first + i) * b->block, b->block, x + i * b->block, y + i * b->block,
                               failure))
            return 1;
    return 0;
}

/* ---- debug states ---- */

int32_t llmc_state_open(llmc_state *s, const char *path, const sampan_config *c, failure *failure) {
    int32_t h[HEADER];
    int64_t bytes, logits;
    *s = (llmc_state){.padded = padded_vocabulary(c)};
    int64_t parameters = count_elements(c, s->padded);
    if (strcmp(c->positions, "learned") || c->gated || !c->qkv_bias || !c->tie_word_embeddings
        || c->n_inner != 4 * c->n_embd)
        return complain(NULL, path,
                        "a debug state is of a gpt2 with a tied head and an MLP of 4 n_embd, and this model is not one",
                        failure);
    FILE *stream = open_kind(path, STATE, "a debug state", h, &bytes, failure);
    if (!stream) return 1;
    if (h[1] != STATE_VERSION) return complain(stream, path, "its version is not 2", failure);
    s->B = h[2];
    s->T = h[3];
    int32_t plausible = s->B > 0 && s->T > 0 && s->T <= c->block_size && parameters > 0
                        && size_multiply(&logits, s->B * s->T, (int64_t)c->vocab_size + 2);
    if (!plausible || bytes % 4 || bytes / 4 - parameters - 1 != logits)
        return complain(stream, path, "its length is not that of a debug state of this model", failure);
    int64_t count = s->B * s->T;
    float loss;
    s->stream = stream;
    s->x = malloc((size_t)count * 4);
    s->y = malloc((size_t)count * 4);
    int32_t failed = !s->x || !s->y || file_seek(stream, HEADER_BYTES, SEEK_SET)
                     || fread(s->x, 4, (size_t)count, stream) != (size_t)count
                     || fread(s->y, 4, (size_t)count, stream) != (size_t)count
                     || read_values(stream, HEADER_BYTES + 4 * logits, 4, 1, &loss);
    if (failed) {
        llmc_state_close(s);
        return complain(NULL, path, "cannot be read", failure);
    }
    s->loss = (double)loss;
    return 0;
}

void llmc_state_close(llmc_state *s) {
    if (s->stream) fclose(s->stream);
    free(s->x);
    free(s->y);
    *s = (llmc_state){0};
}

int32_t llmc_state_read_logits(llmc_state *s, const sampan_config *c, int64_t b, int64_t t, float *logits) {
    int64_t before = 2 * s->B * s->T + (b * s->T + t) * c->vocab_size;
    return read_values(s->stream, HEADER_BYTES + 4 * before, 4, c->vocab_size, logits);
}

int32_t llmc_state_read_gradient(llmc_state *s, const sampan_config *c, const sampan_parameter *p, float *gradient) {
    int64_t before = s->B * s->T * ((int64_t)c->vocab_size + 2) + 1 + find_offset(c, s->padded, p->name);
    return read_values(s->stream, HEADER_BYTES + 4 * before, 4, p->rows * (p->columns ? p->columns : 1), gradient);
}
