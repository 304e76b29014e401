/* draw.c: see draw.h. */

#include "draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- random numbers ---- */

typedef struct mixer { /* of SeedSequence: a hash whose constant changes with each use */
    uint32_t constant, factor;
} mixer;

static uint32_t mixer_hash(mixer *m, uint32_t value) {
    value ^= m->constant;
    m->constant *= m->factor;
    value *= m->constant;
    return value ^ value >> 16;
}

static uint64_t random_bits(random_numbers *r) {
    const unsigned __int128 multiplier = (unsigned __int128)0x2360ed051fc65da4u << 64 | 0x4385df649fccf645u;
    r->state = r->state * multiplier + r->increment;
    uint64_t folded = (uint64_t)(r->state >> 64) ^ (uint64_t)r->state;
    uint32_t turn = (uint32_t)(r->state >> 122);
    return folded >> turn | folded << (-turn & 63);
}

void random_seed(random_numbers *r, uint64_t seed, uint64_t number) {
    uint32_t words[4] = {0}, pool[4];
    uint64_t state[4];
    int32_t count = 0;
    for (int32_t i = 0; i < 2; i++) { /* each number in as few words as it needs, at least one */
        uint64_t value = i ? number : seed;
        words[count++] = (uint32_t)value;
        if (value >> 32) words[count++] = (uint32_t)(value >> 32);
    }
    mixer m = {0x43b0d7e5u, 0x931e8875u};
    for (int32_t i = 0; i < 4; i++) pool[i] = mixer_hash(&m, words[i]);
    for (int32_t from = 0; from < 4; from++)
        for (int32_t to = 0; to < 4; to++) {
            if (from == to) continue;
            uint32_t mixed = 0xca01f9ddu * pool[to] - 0x4973f715u * mixer_hash(&m, pool[from]);
            pool[to] = mixed ^ mixed >> 16;
        }
    m = (mixer){0x8b51f9ddu, 0x58f38dedu};
    for (int32_t i = 0; i < 4; i++) {
        uint64_t low = mixer_hash(&m, pool[2 * i % 4]);
        state[i] = low | (uint64_t)mixer_hash(&m, pool[(2 * i + 1) % 4]) << 32;
    }
    r->increment = ((unsigned __int128)state[2] << 64 | state[3]) << 1 | 1;
    r->state = 0;
    random_bits(r);
    r->state += (unsigned __int128)state[0] << 64 | state[1];
    random_bits(r);
}

double random_next(random_numbers *r) { return (double)(random_bits(r) >> 11) / 9007199254740992.0; }

/* ---- repetition ---- */

void discourage_repetition(const drawing *d, float *logits, int64_t n, const int32_t *ids, int64_t count) {
    if (d->repetition_penalty == 1.0) return;
    uint8_t *seen = calloc((size_t)n, 1); /* a token counts once */
    for (int64_t i = 0; i < count && seen; i++) {
        float *logit = &logits[ids[i]], penalty = (float)d->repetition_penalty;
        if (!seen[ids[i]]) *logit = *logit < 0 ? *logit * penalty : *logit / penalty;
        seen[ids[i]] = 1;
    }
    free(seen);
}

void forbid_repetition(const drawing *d, float *logits, int64_t n, const int32_t *ids, int64_t count) {
    const int64_t size = d->no_repeat_ngram_size;
    uint8_t *banned = size > 0 && size <= count ? calloc((size_t)n, 1) : NULL;
    if (!banned) return;
    for (int64_t i = size - 1; i < count; i++)
        if (!memcmp(ids + i - (size - 1), ids + count - (size - 1), (size_t)(size - 1) * sizeof *ids))
            banned[ids[i]] = 1;
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++) left += !banned[i] && logits[i] != -INFINITY;
    for (int64_t i = 0; i < n && left; i++)
        if (banned[i]) logits[i] = -INFINITY;
    free(banned);
}

/* ---- drawing ---- */

/* The k-th largest of n logits (Hoare's selection), 1 <= k <= n; changes their order. */
static float select_largest(draw_spare *x, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        float pivot = x[(low + high) / 2].logit;
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i].logit > pivot) i++;
            while (x[j].logit < pivot) j--;
            if (i > j) break;
            float swap = x[i].logit;
            x[i++].logit = x[j].logit;
            x[j--].logit = swap;
        }
        if (k - 1 <= j) high = j;
        else if (k - 1 >= i) low = i;
        else break;
    }
    return x[k - 1].logit;
}

static int by_probability(const void *a, const void *b) {
    const draw_spare *x = a, *y = b;
    if (x->p != y->p) return (x->p < y->p) - (x->p > y->p);
    return (x->id > y->id) - (x->id < y->id);
}

static int by_id(const void *a, const void *b) {
    return (((const draw_spare *)a)->id > ((const draw_spare *)b)->id)
           - (((const draw_spare *)a)->id < ((const draw_spare *)b)->id);
}

/* Of the smallest set of tokens that has a share of top_p in the total, all probabilities; of others 0. */
static void keep_nucleus(draw_spare *x, int64_t n, double total, double top_p) {
    double before = 0.0;
    qsort(x, (size_t)n, sizeof *x, by_probability);
    for (int64_t i = 0; i < n; i++) {
        double p = x[i].p / total;
        if (i && !(before < top_p)) x[i].p = 0.0;
        before += p;
    }
    qsort(x, (size_t)n, sizeof *x, by_id);
}

int32_t draw(const drawing *d, const float *logits, int64_t n, double uniform, draw_spare *spare) {
    int64_t likeliest = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(logits[i])) return -1;
        if (logits[i] > logits[likeliest]) likeliest = i;
    }
    if (!isfinite(logits[likeliest])) return -1;
    if (d->temperature == 0.0) return (int32_t)likeliest;
    for (int64_t i = 0; i < n; i++) spare[i].logit = logits[i];
    const float least = d->top_k > 0 && d->top_k < n ? select_largest(spare, n, d->top_k) : -INFINITY;
    const double temperature = fmax(d->temperature, 1e-250);
    double total = 0.0, seen = 0.0, largest = 1.0;
    for (int64_t i = 0; i < n; i++) {
        double score = ((double)logits[i] - (double)logits[likeliest]) / temperature;
        spare[i] = (draw_spare){.p = logits[i] < least ? 0.0 : exp(score), .id = (int32_t)i};
        total += spare[i].p;
    }
    if (d->top_p < 1.0) keep_nucleus(spare, n, total, d->top_p);
    total = 0.0;
    for (int64_t i = 0; i < n; i++) {
        if (spare[i].p < d->min_p * largest) spare[i].p = 0.0;
        total += spare[i].p;
    }
    for (int64_t i = 0; i < n; i++)
        if ((seen += spare[i].p) > uniform * total) return (int32_t)i;
    return (int32_t)likeliest;
}
