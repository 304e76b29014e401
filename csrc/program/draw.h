/* draw.h: logits to tokens, as the package draws them (sampling/draw.py, sampling/repetition.py): the same seed and
   settings give the same tokens.

       drawing d = {.temperature = 0.8, .top_k = 200, .top_p = 1.0, .repetition_penalty = 1.0};
       random_numbers r;
       random_seed(&r, seed, 0);                                     // sample 0
       discourage_repetition(&d, logits, vocab_size, ids, count);
       if ((id = draw(&d, logits, vocab_size, random_next(&r), spare)) < 0) ...NaN or infinity... */

#ifndef SAMPAN_DRAW_H
#define SAMPAN_DRAW_H

#include <stdint.h>

/* What numpy's default_rng([seed, number]) draws: PCG64 (O'Neill 2014), seeded by its SeedSequence. */
typedef struct random_numbers {
    unsigned __int128 state, increment;
} random_numbers;

void random_seed(random_numbers *r, uint64_t seed, uint64_t number);
double random_next(random_numbers *r); /* in [0, 1) */

typedef struct drawing {
    double temperature, top_p, min_p, repetition_penalty; /* 0: the likeliest; 1, 0 and 1: off */
    int64_t top_k, no_repeat_ngram_size;                  /* 0: off */
} drawing;

/* Lowers the logits of tokens that are among `ids`. */
void discourage_repetition(const drawing *d, float *logits, int64_t n, const int32_t *ids, int64_t count);

/* Takes away tokens that would write an n-gram of `ids` again, unless none would be left. */
void forbid_repetition(const drawing *d, float *logits, int64_t n, const int32_t *ids, int64_t count);

typedef struct draw_spare {
    double p;
    int32_t id;
    float logit;
} draw_spare;

/* A token of the n, of which -INFINITY takes one away; -1 if a logit is NaN or the largest infinite. `spare` has n. */
int32_t draw(const drawing *d, const float *logits, int64_t n, double uniform, draw_spare *spare);

#endif
