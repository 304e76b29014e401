/* text.c: see text.h. */

#include "text.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include "unicode.inc"

enum { GAPS_MOST = 1 << 20 }; /* ids that no token has: the table is by id, and a few bytes can name any */

/* ---- characters ---- */

int32_t utf8_next(int32_t state, uint8_t byte) {
    enum { WHOLE, ONE, TWO, THREE, AFTER_E0, AFTER_ED, AFTER_F0, AFTER_F4 }; /* ONE: one more byte, and so on */
    static const struct {
        uint8_t state, first, last, next;
    } rows[] = {/* table 3-7 of the Unicode Standard */
                {WHOLE, 0x00, 0x7f, WHOLE},    {WHOLE, 0xc2, 0xdf, ONE},      {WHOLE, 0xe0, 0xe0, AFTER_E0},
                {WHOLE, 0xe1, 0xec, TWO},      {WHOLE, 0xed, 0xed, AFTER_ED}, {WHOLE, 0xee, 0xef, TWO},
                {WHOLE, 0xf0, 0xf0, AFTER_F0}, {WHOLE, 0xf1, 0xf3, THREE},    {WHOLE, 0xf4, 0xf4, AFTER_F4},
                {ONE, 0x80, 0xbf, WHOLE},      {TWO, 0x80, 0xbf, ONE},        {THREE, 0x80, 0xbf, TWO},
                {AFTER_E0, 0xa0, 0xbf, ONE},   {AFTER_ED, 0x80, 0x9f, ONE},   {AFTER_F0, 0x90, 0xbf, TWO},
                {AFTER_F4, 0x80, 0x8f, TWO}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].state == state && byte >= rows[i].first && byte <= rows[i].last) return rows[i].next;
    return UTF8_BROKEN;
}

/* Bytes of the character at s, which is whole. */
static int64_t character_length(const char *s) {
    unsigned char c = (unsigned char)*s;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

static uint32_t character_code(const char *s) {
    int64_t n = character_length(s);
    uint32_t code = (unsigned char)*s & (n == 1 ? 0x7fu : 0x3fu >> (n - 1));
    for (int64_t i = 1; i < n; i++) code = code << 6 | ((unsigned char)s[i] & 63u);
    return code;
}

/* The byte at which `text` stops being UTF-8; its length where it does not. */
static int64_t count_valid(const char *text, int64_t n) {
    int32_t state = UTF8_WHOLE;
    int64_t whole = 0;
    for (int64_t i = 0; i < n && state != UTF8_BROKEN; i++)
        if ((state = utf8_next(state, (uint8_t)text[i])) == UTF8_WHOLE) whole = i + 1;
    return whole;
}

int32_t utf8_is_character(const char *s, int64_t n) { return n && count_valid(s, n) == n && character_length(s) == n; }

enum { LETTER, NUMBER, SPACE, OTHER };

static int32_t is_within(uint32_t code, const uint32_t (*ranges)[2], int64_t count) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (code > ranges[middle][1]) low = middle + 1;
        else high = middle;
    }
    return low < count && code >= ranges[low][0];
}

static int32_t class_of(const char *s) {
    uint32_t code = character_code(s);
#define WITHIN(ranges) is_within(code, ranges, sizeof ranges / sizeof *ranges)
    return WITHIN(LETTERS) ? LETTER : WITHIN(NUMBERS) ? NUMBER : WITHIN(SPACES) ? SPACE : OTHER;
}

static int32_t byte_is_visible(int32_t byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}
uint32_t byte_to_character(int32_t byte) {
    uint32_t hidden = 0;
    if (byte_is_visible(byte)) return (uint32_t)byte;
    for (int32_t b = 0; b < byte; b++) hidden += !byte_is_visible(b);
    return 256 + hidden;
}

/* ---- names of tokens ---- */

static uint64_t hash_bytes(const char *s, int64_t n) { /* FNV-1a */
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)s[i]) * 1099511628211u;
    return hash ^ hash >> 32;
}

/* The place of the name, or the free one where it belongs. */
static int32_t *find_slot(const vocabulary *v, const char *name, int64_t n) {
    for (uint64_t i = hash_bytes(name, n);; i++) {
        int32_t *slot = &v->slot[i & (uint64_t)(v->slots - 1)];
        if (*slot < 0) return slot;
        const struct token *t = &v->token[*slot];
        if (t->name_length == n && !memcmp(t->name, name, (size_t)n)) return slot;
    }
}
static int32_t find_name(const vocabulary *v, const char *name, int64_t n) { return *find_slot(v, name, n); }

static vocabulary_pair *find_pair(const vocabulary *v, int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    for (uint64_t i = hash ^ hash >> 32;; i++) {
        vocabulary_pair *p = &v->pair[i & (uint64_t)(v->pairs - 1)];
        if (p->rank < 0 || (p->left == left && p->right == right)) return p;
    }
}

static int64_t power_above(int64_t n) {
    int64_t power = 8;
    while (power <= 2 * n) power *= 2;
    return power;
}

/* ---- reading ---- */

static void take_token(vocabulary *v, double id, const char *name, int64_t length) {
    if (!(id >= 0 && id < (double)v->count) || !name) return;
    v->token[(int64_t)id] = (struct token){.name = name, .name_length = length};
}

/* Two names: ["a", "b"] or "a b". */
static void take_merge(vocabulary *v, const json_value *merge, int32_t rank) {
    const json_value *values = v->doc.values;
    const char *left = NULL, *right = NULL;
    int64_t left_length = 0, right_length = 0;
    if (merge->type == JSON_ARRAY && merge->count == 2) {
        const json_value *a = &values[merge->first], *b = &values[a->next];
        if (a->type != JSON_STRING || b->type != JSON_STRING) return;
        left = a->string, left_length = a->length, right = b->string, right_length = b->length;
    } else if (merge->type == JSON_STRING && (right = strchr(merge->string, ' '))) {
        left = merge->string, left_length = right - left;
        right++, right_length = merge->length - left_length - 1;
    }
    if (!left) return;
    char *both = malloc((size_t)(left_length + right_length) + 1);
    if (!both) return;
    memcpy(both, left, (size_t)left_length);
    memcpy(both + left_length, right, (size_t)right_length);
    int32_t a = find_name(v, left, left_length), b = find_name(v, right, right_length),
            merged = find_name(v, both, left_length + right_length);
    free(both);
    if (a < 0 || b < 0 || merged < 0) return;
    vocabulary_pair *pair = find_pair(v, a, b);
    if (pair->rank < 0) *pair = (vocabulary_pair){a, b, rank, merged};
}

/* 1 without memory. */
static int32_t take_merges(vocabulary *v, int64_t merges) {
    const json_value *values = v->doc.values;
    int32_t rank = 0;
    v->pairs = power_above(merges ? values[merges].count : 0);
    v->pair = malloc((size_t)v->pairs * sizeof *v->pair);
    if (!v->pair) return 1;
    for (int64_t i = 0; i < v->pairs; i++) v->pair[i].rank = -1;
    if (merges && values[merges].type == JSON_ARRAY)
        for (int64_t i = values[merges].first; i; i = values[i].next) take_merge(v, &values[i], rank++);
    return 0;
}

/* What decides how names become bytes, and spaces names. */
typedef struct decoder {
    int32_t steps, is_odd, is_byte_level; /* is_odd: what it does is not known here */
    uint32_t from[8];                     /* characters that are replaced */
    const char *to[8];
    int64_t count;
} decoder;

static void read_decoder(decoder *d, const json *doc, int64_t step) {
    const char *type = json_string(doc, step, "type", "");
    int64_t steps = json_find(doc, step, "decoders"), pattern = json_find(doc, step, "pattern");
    if (!strcmp(type, "Sequence") && steps && doc->values[steps].type == JSON_ARRAY) {
        for (int64_t i = doc->values[steps].first; i; i = doc->values[i].next) read_decoder(d, doc, i);
        return;
    }
    d->steps++;
    if (!strcmp(type, "ByteLevel")) d->is_byte_level = 1;
    else if (!strcmp(type, "Metaspace") || !strcmp(type, "Replace")) {
        const char *from = pattern ? json_string(doc, pattern, "String", "")
                                   : json_string(doc, step, "replacement", ""),
                   *to = pattern ? json_string(doc, step, "content", "") : " ";
        int64_t n = (int64_t)strlen(from);
        if (d->count == 8 || !utf8_is_character(from, n)
            || (int64_t)strlen(to) > n) /* as few bytes as the name has are kept for what it writes */
            d->is_odd = 1;
        else d->from[d->count] = character_code(from), d->to[d->count++] = to;
    } else if (strcmp(type, "Fuse") && strcmp(type, "ByteFallback") && strcmp(type, "Strip")) {
        d->is_odd = 1;
    }
}

/* The byte of a name like <0x0A>; -1: it is another name. */
static int32_t byte_of_name(const struct token *t) {
    char *end;
    if (t->name_length != 6 || memcmp(t->name, "<0x", 3) || t->name[5] != '>') return -1;
    if (!isxdigit((unsigned char)t->name[3]) || !isxdigit((unsigned char)t->name[4])) return -1;
    return (int32_t)strtol(t->name + 3, &end, 16);
}

static int64_t write_bytes(const decoder *d, const struct token *t, char *out) {
    int64_t n = t->name_length, length = 0;
    int32_t byte = byte_of_name(t);
    if (!d->is_byte_level && byte >= 0) {
        *out = (char)byte;
        return 1;
    }
    if (count_valid(t->name, n) != n) n = 0;
    for (int64_t i = 0; i < n; i += character_length(t->name + i)) {
        uint32_t code = character_code(t->name + i);
        const char *to = NULL;
        int64_t k = 0;
        for (; d->is_byte_level && k < 256 && byte_to_character((int32_t)k) != code; k++) {
        }
        if (k == 256) { /* an added token, which is written as it is */
            memcpy(out, t->name, (size_t)n);
            return n;
        }
        for (int64_t j = 0; !d->is_byte_level && j < d->count && !to; j++) to = d->from[j] == code ? d->to[j] : NULL;
        if (d->is_byte_level) out[length++] = (char)k;
        else if (to) memcpy(out + length, to, strlen(to)), length += (int64_t)strlen(to);
        else
            memcpy(out + length, t->name + i, (size_t)character_length(t->name + i)),
                length += character_length(t->name + i);
    }
    return length;
}

/* Two rules one after the other are none that is known. */
static void set_cut(vocabulary *v, int32_t rule) { v->cut = v->cut == CUT_NOWHERE ? rule : CUT_UNKNOWN; }

/* The rule of a pre-tokenizer, by the regular expressions of the known families. */
static void read_cut(vocabulary *v, int64_t step) {
    static const char WORDS[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| "
                                "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    const json *doc = &v->doc;
    const char *type = json_string(doc, step, "type", "");
    int64_t steps = json_find(doc, step, "pretokenizers");
    const int32_t use_regex = json_flag(doc, step, "use_regex", 1),
                  prefix = json_flag(doc, step, "add_prefix_space", 1);
    if (!step || doc->values[step].type == JSON_NULL) return;
    if (!strcmp(type, "Split")) {
        char one[256], three[256];
        snprintf(one, sizeof one, WORDS, "");
        snprintf(three, sizeof three, WORDS, "{1,3}");
        const char *regex = json_string(doc, json_find(doc, step, "pattern"), "Regex", "");
        v->most_digits = strcmp(regex, one) ? 3 : 1;
        const int32_t is_known = !strcmp(regex, one) || !strcmp(regex, three);
        set_cut(v, !strcmp(regex, "[\\s\\S]") ? CUT_CHARACTERS : is_known ? CUT_LLAMA3 : CUT_UNKNOWN);
    } else if (!strcmp(type, "ByteLevel")) {
        v->is_byte_level = 1;
        if (use_regex || prefix) set_cut(v, prefix ? CUT_UNKNOWN : CUT_GPT2);
    } else if (!strcmp(type, "Metaspace")) {
        const char *scheme = json_string(doc, step, "prepend_scheme", "always");
        v->space = json_string(doc, step, "replacement", NULL);
        v->prefix = !strcmp(scheme, "always") ? PREFIX_IF_NONE : !strcmp(scheme, "first") ? PREFIX_FIRST : PREFIX_NEVER;
        if (json_flag(doc, step, "split", 1)) set_cut(v, CUT_SPACES);
    } else if (!strcmp(type, "Sequence") && steps && doc->values[steps].type == JSON_ARRAY) {
        for (int64_t i = doc->values[steps].first; i; i = doc->values[i].next) read_cut(v, i);
    } else {
        set_cut(v, CUT_UNKNOWN);
    }
}

/* SentencePiece's spaces; form C is taken as given; a prompt is not encoded after anything else. */
static void read_normalizer(vocabulary *v, int64_t step) {
    const json *doc = &v->doc;
    const char *type = json_string(doc, step, "type", "");
    int64_t steps = json_find(doc, step, "normalizers");
    if (!step || doc->values[step].type == JSON_NULL || !strcmp(type, "NFC")) return;
    if (!strcmp(type, "Sequence") && steps && doc->values[steps].type == JSON_ARRAY) {
        for (int64_t i = doc->values[steps].first; i; i = doc->values[i].next) read_normalizer(v, i);
    } else if (!strcmp(type, "Prepend")) {
        v->prefix = PREFIX_ALWAYS;
    } else if (!strcmp(type, "Replace")
               && !strcmp(json_string(doc, json_find(doc, step, "pattern"), "String", ""), " ")) {
        v->space = json_string(doc, step, "content", NULL);
    } else {
        set_cut(v, CUT_UNKNOWN);
    }
}

/* The tokens that a template puts before a text. */
static void read_template(vocabulary *v, int64_t step) {
    const json *doc = &v->doc;
    int64_t steps = json_find(doc, step, "processors"), pieces = json_find(doc, step, "single"),
            special = json_find(doc, step, "special_tokens");
    for (int64_t i = steps && doc->values[steps].type == JSON_ARRAY ? doc->values[steps].first : 0; i;
         i = doc->values[i].next)
        read_template(v, i);
    for (int64_t i = pieces && doc->values[pieces].type == JSON_ARRAY ? doc->values[pieces].first : 0; i;
         i = doc->values[i].next) {
        const char *name = json_string(doc, json_find(doc, i, "SpecialToken"), "id", NULL);
        int64_t ids = name ? json_find(doc, json_find(doc, special, name), "ids") : 0;
        if (!name || !ids || doc->values[ids].type != JSON_ARRAY) return; /* the text itself */
        for (ids = doc->values[ids].first; ids; ids = doc->values[ids].next) {
            const double id = doc->values[ids].type == JSON_NUMBER ? doc->values[ids].number : -1;
            if (id >= 0 && id < (double)v->count && v->begins < 4) v->begin[v->begins++] = (int32_t)id;
        }
    }
}

/* Names and ids; 1 where the table cannot be made. */
static int32_t read_tokens(vocabulary *v, int64_t table) {
    const json *doc = &v->doc;
    const json_value *values = doc->values;
    double largest = -1.0;
    int64_t room = 0;
    for (int64_t i = values[table].first; i; i = values[i].next)
        if (values[i].type == JSON_NUMBER && values[i].number > largest) largest = values[i].number;
    for (int64_t i = v->added ? values[v->added].first : 0; i; i = values[i].next)
        if (json_number(doc, i, "id", -1) > largest) largest = json_number(doc, i, "id", -1);
    if (!(largest >= 0 && largest < values[table].count + GAPS_MOST)) return 1;
    v->count = (int64_t)largest + 1;
    v->slots = power_above(v->count);
    v->token = calloc((size_t)v->count, sizeof *v->token);
    v->slot = malloc((size_t)v->slots * sizeof *v->slot);
    if (!v->token || !v->slot) return 1;
    for (int64_t i = 0; i < v->slots; i++) v->slot[i] = -1;
    for (int64_t i = values[table].first; i; i = values[i].next)
        if (values[i].type == JSON_NUMBER) take_token(v, values[i].number, values[i].key, values[i].key_length);
    for (int64_t i = v->added ? values[v->added].first : 0; i; i = values[i].next) {
        const char *content = json_string(doc, i, "content", NULL);
        take_token(v, json_number(doc, i, "id", -1), content, content ? (int64_t)strlen(content) : 0);
    }
    for (int64_t i = 0; i < v->count; i++) {
        const struct token *t = &v->token[i];
        room += t->name_length;
        if (t->name) *find_slot(v, t->name, t->name_length) = (int32_t)i;
    }
    v->room = malloc((size_t)room + 1);
    return !v->room;
}

int32_t vocabulary_read(vocabulary *v, const char *path, failure *failure) {
    static const char *const ENDS[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>"};
    *v = (vocabulary){.end_of_text = -1};
    if (json_read_file(&v->doc, path, failure)) return 1;
    const json *doc = &v->doc;
    int64_t model = json_find(doc, 0, "model"), table = json_find(doc, model, "vocab"), used = 0;
    const char *type = json_string(doc, model, "type", "BPE");
    decoder d = {0};
    v->added = json_find(doc, 0, "added_tokens");
    if (v->added && doc->values[v->added].type != JSON_ARRAY) v->added = 0;
    read_decoder(&d, doc, json_find(doc, 0, "decoder"));
    int32_t known = table && doc->values[table].type == JSON_OBJECT
                    && (!strcmp(type, "WordLevel") || !strcmp(type, "BPE"));
    if (!known || !d.steps || d.is_odd || read_tokens(v, table) || take_merges(v, json_find(doc, model, "merges"))) {
        failure_say(failure, "%s: a tokenizer that this program cannot read; use sampan sample", path);
        vocabulary_free(v);
        return 1;
    }
    for (int32_t i = 0; i < 256; i++) v->byte_token[i] = -1;
    for (int64_t i = 0; i < v->count; i++) {
        struct token *t = &v->token[i];
        if (!t->name) continue;
        if (byte_of_name(t) >= 0 && json_flag(doc, model, "byte_fallback", 0))
            v->byte_token[byte_of_name(t)] = (int32_t)i;
        t->bytes = v->room + used;
        t->length = write_bytes(&d, t, v->room + used);
        used += t->length;
    }
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS && v->end_of_text < 0; i++)
        v->end_of_text = find_name(v, ENDS[i], (int64_t)strlen(ENDS[i]));
    v->cut = CUT_NOWHERE;
    read_normalizer(v, json_find(doc, 0, "normalizer"));
    read_cut(v, json_find(doc, 0, "pre_tokenizer"));
    int64_t space = v->space ? (int64_t)strlen(v->space) : 0;
    if ((v->cut == CUT_SPACES && !space) || (v->space && count_valid(v->space, space) != space)) v->cut = CUT_UNKNOWN;
    read_template(v, json_find(doc, 0, "post_processor"));
    v->takes_whole_words = json_flag(doc, model, "ignore_merges", 0);
    if (!strcmp(type, "WordLevel") && v->cut != CUT_CHARACTERS) v->cut = CUT_UNKNOWN;
    return 0;
}

void vocabulary_free(vocabulary *v) {
    json_free(&v->doc);
    free(v->token);
    free(v->room);
    free(v->slot);
    free(v->pair);
    *v = (vocabulary){0};
}

int32_t vocabulary_follow(const vocabulary *v, int64_t count, uint8_t *after) {
    for (int32_t state = 0; state < UTF8_STATES; state++)
        for (int64_t i = 0; i < count; i++) {
            const struct token *t = i < v->count && v->token[i].name ? &v->token[i] : NULL;
            int32_t next = t && (t->length || state == UTF8_WHOLE) ? state : UTF8_BROKEN;
            for (int64_t k = 0; t && k < t->length && next != UTF8_BROKEN; k++)
                next = utf8_next(next, (uint8_t)t->bytes[k]);
            after[state * count + i] = (uint8_t)next;
        }
    for (int32_t changed = 1; changed;) { /* where no token goes on, none may lead */
        changed = 0;
        for (int32_t state = 0; state < UTF8_STATES; state++) {
            int64_t i = 0;
            while (i < count && after[state * count + i] == UTF8_BROKEN) i++;
            if (i < count) continue;
            if (state == UTF8_WHOLE) return 1;
            for (i = 0; i < UTF8_STATES * count; i++)
                if (after[i] == state) after[i] = UTF8_BROKEN, changed = 1;
        }
    }
    return 0;
}

/* ---- cutting a text into words: each returns the end of the one that begins at s < end ---- */

static const char *run_end(const char *s, const char *end, int32_t class) {
    while (s < end && class_of(s) == class) s += character_length(s);
    return s;
}

/* Of several spaces the last belongs to the next word. */
static const char *spaces_end(const char *s, const char *end) {
    const char *last = s, *at = s;
    for (; at < end && class_of(at) == SPACE; at += character_length(at)) last = at;
    return at == end || last == s ? at : last;
}

/* 's, 't, 're, 've, 'm, 'll, 'd; NULL: it is none of them. */
static const char *contraction_end(const char *s, const char *end, int32_t any_case) {
    static const char *const ENDINGS[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    for (size_t i = 0; *s == '\'' && i < sizeof ENDINGS / sizeof *ENDINGS; i++) {
        const char *at = s + 1, *wanted = ENDINGS[i];
        while (at < end && *wanted && (any_case ? tolower((unsigned char)*at) : *at) == *wanted) at++, wanted++;
        if (!*wanted) return at;
    }
    return NULL;
}

static const char *gpt2_end(const char *s, const char *end) {
    const char *contraction = contraction_end(s, end, 0), *first = s + (*s == ' ');
    if (contraction) return contraction;
    if (first == end || class_of(first) == SPACE) return spaces_end(s, end);
    return run_end(first, end, class_of(first));
}

static const char *llama3_end(const char *s, const char *end, int32_t most_digits) {
    const char *contraction = contraction_end(s, end, 1), *next = s + character_length(s), *first = s + (*s == ' ');
    const int32_t class = class_of(s), is_line_end = *s == '\n' || *s == '\r';
    if (contraction) return contraction;
    if (class == LETTER) return run_end(s, end, LETTER);
    if (class != NUMBER && !is_line_end && next < end && class_of(next) == LETTER) return run_end(next, end, LETTER);
    if (class == NUMBER) {
        for (int32_t i = 0; i < most_digits && s < end && class_of(s) == NUMBER; i++) s += character_length(s);
        return s;
    }
    if (first < end && class_of(first) == OTHER) {
        s = run_end(first, end, OTHER);
        while (s < end && (*s == '\n' || *s == '\r')) s++;
        return s;
    }
    const char *after_line = NULL;
    for (const char *at = s; at < end && class_of(at) == SPACE; at += character_length(at))
        if (*at == '\n' || *at == '\r') after_line = at + 1;
    return after_line ? after_line : spaces_end(s, end);
}

static const char *word_end(const vocabulary *v, const char *s, const char *end) {
    switch (v->cut) {
    case CUT_CHARACTERS: return s + character_length(s);
    case CUT_GPT2: return gpt2_end(s, end);
    case CUT_LLAMA3: return llama3_end(s, end, v->most_digits);
    case CUT_SPACES: {
        const char *next = strstr(s + 1, v->space);
        return next ? next : end;
    }
    default: return end;
    }
}

/* ---- encoding ---- */

typedef struct encoding {
    const vocabulary *v;
    int32_t *ids;
    int64_t count;
    int32_t *rank; /* of each id with the next one, while a word is merged */
    failure *failure;
} encoding;

static int32_t pair_rank(const encoding *e, int64_t i) {
    int32_t rank = find_pair(e->v, e->ids[i], e->ids[i + 1])->rank;
    return rank < 0 ? INT32_MAX : rank;
}

/* Joins the ids from `first` on, always the pair of the lowest rank. */
static void merge_word(encoding *e, int64_t first) {
    for (int64_t i = first; i + 1 < e->count; i++) e->rank[i] = pair_rank(e, i);
    for (;;) {
        int64_t best = first;
        for (int64_t i = first; i + 1 < e->count; i++)
            if (e->rank[i] < e->rank[best]) best = i;
        if (best + 1 >= e->count || e->rank[best] == INT32_MAX) return;
        e->ids[best] = find_pair(e->v, e->ids[best], e->ids[best + 1])->merged;
        size_t moved = (size_t)(--e->count - best - 1) * sizeof(int32_t);
        memmove(e->ids + best + 1, e->ids + best + 2, moved);
        memmove(e->rank + best, e->rank + best + 1, moved);
        if (best + 1 < e->count) e->rank[best] = pair_rank(e, best);
        if (best > first) e->rank[best - 1] = pair_rank(e, best - 1);
    }
}

static int32_t encode_word(encoding *e, const char *s, const char *end) {
    const vocabulary *v = e->v;
    int64_t first = e->count;
    int32_t whole = v->takes_whole_words ? find_name(v, s, end - s) : -1;
    if (whole >= 0) {
        e->ids[e->count++] = whole;
        return 0;
    }
    for (int64_t n; s < end; s += n) {
        n = character_length(s);
        int32_t id = find_name(v, s, n), in_bytes = id < 0;
        for (int64_t i = 0; i < n && in_bytes; i++) in_bytes = v->byte_token[(unsigned char)s[i]] >= 0;
        if (id < 0 && !in_bytes)
            return failure_say(e->failure, "the prompt has %.*s (U+%04X), which the vocabulary lacks",
                               (unsigned char)*s < ' ' ? 0 : (int)n, s, (unsigned)character_code(s));
        if (id >= 0) e->ids[e->count++] = id;
        for (int64_t i = 0; i < n && in_bytes; i++) e->ids[e->count++] = v->byte_token[(unsigned char)s[i]];
    }
    merge_word(e, first);
    return 0;
}

/* `room` has as many bytes as the text can have when every byte is spelt. */
static int32_t encode_part(encoding *e, const char *s, const char *end, int32_t is_first, char *room) {
    const vocabulary *v = e->v;
    const char *space = v->space ? v->space : " ";
    const int32_t starts_so = *s == ' ' || !strncmp(s, space, strlen(space));
    char *out = room;
    if (s < end
        && (v->prefix == PREFIX_ALWAYS || (v->prefix == PREFIX_IF_NONE && !starts_so)
            || (v->prefix == PREFIX_FIRST && is_first && !starts_so)))
        out += sprintf(out, "%s", space);
    for (; s < end; s++)
        if (*s == ' ') out += sprintf(out, "%s", space);
        else *out++ = *s;
    *out = 0;
    char *spelt = out + 1;
    for (const char *word = room, *next; word < out; word = next) {
        next = word_end(v, word, out);
        if (!v->is_byte_level) {
            if (encode_word(e, word, next)) return 1;
            continue;
        }
        char *at = spelt;
        for (const char *byte = word; byte < next; byte++) {
            uint32_t code = byte_to_character((unsigned char)*byte);
            if (code >= 0x80) *at++ = (char)(0xc0 | code >> 6), code = 0x80 | (code & 63);
            *at++ = (char)code;
        }
        if (encode_word(e, spelt, at)) return 1;
    }
    return 0;
}

/* The added token at s, the longest of several; -1: none. */
static int32_t find_added(const vocabulary *v, const char *s, int64_t *length) {
    int32_t found = -1;
    *length = 0;
    for (int64_t i = v->added ? v->doc.values[v->added].first : 0; i; i = v->doc.values[i].next) {
        const char *content = json_string(&v->doc, i, "content", "");
        int64_t n = (int64_t)strlen(content);
        if (n <= *length || strncmp(s, content, (size_t)n)) continue;
        *length = n;
        found = find_name(v, content, n);
    }
    return found;
}

int32_t vocabulary_encode(const vocabulary *v, const char *text, int32_t **ids, int64_t *count, failure *failure) {
    int64_t n = (int64_t)strlen(text), valid = count_valid(text, n), space = v->space ? (int64_t)strlen(v->space) : 1;
    *ids = NULL;
    *count = 0;
    if (valid < n) return failure_say(failure, "byte %lld of the prompt is not UTF-8", (long long)valid + 1);
    if (v->cut == CUT_UNKNOWN && n)
        return failure_say(failure, "this program cannot encode a prompt as this tokenizer does; use sampan sample");
    int64_t most = (n + 1) * (space > 1 ? space : 1);
    encoding e = {.v = v, .failure = failure};
    e.ids = malloc((size_t)(2 * most) * sizeof *e.ids);
    e.rank = malloc((size_t)(2 * most) * sizeof *e.rank);
    char *room = malloc((size_t)(3 * most + 2));
    int32_t failed = !e.ids || !e.rank || !room ? failure_say(failure, "no memory for the prompt") : 0;
    const char *part = text, *end = text + n;
    for (const char *s = text; s < end && !failed;) {
        int64_t length;
        int32_t added = v->cut == CUT_CHARACTERS ? -1 : find_added(v, s, &length);
        if (added >= 0) {
            failed = encode_part(&e, part, s, part == text, room);
            e.ids[e.count++] = added;
            part = s += length;
        } else {
            s += character_length(s);
        }
    }
    failed = failed || encode_part(&e, part, end, part == text, room);
    free(e.rank);
    free(room);
    if (failed) {
        free(e.ids);
        return 1;
    }
    *ids = e.ids;
    *count = e.count;
    return 0;
}
