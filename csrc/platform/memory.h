/* memory.h: large blocks of memory, cut into arrays by a function that can also only count.

       static void place(memory_plan *plan, void *arg) {
           example *e = arg;
           e->x = memory_place(plan, e->rows * e->columns, sizeof *e->x);
           e->y = memory_place(plan, e->rows, sizeof *e->y);
       }
       int64_t bytes = memory_count(place, &e);                         // how much it would be
       if (memory_arrange(&block, place, &e, &bytes)) ...refused...     // allocated, and the pointers set

   A block is zero, aligned to 64 bytes, on large pages where the system has them. Sizes never wrap around. */

#ifndef SAMPAN_MEMORY_H
#define SAMPAN_MEMORY_H

#include <stdint.h>

typedef struct memory_block {
    char *data; /* NULL: nothing allocated */
    int64_t bytes;
    void *raw; /* what is to be freed */
} memory_block;

/* 0, or 1 when the system refuses (or `bytes` is negative). The block is empty then. */
int32_t memory_allocate(memory_block *block, int64_t bytes);
void memory_free(memory_block *block); /* an empty block is allowed */

typedef struct memory_plan {
    char *base;    /* NULL: only count */
    int64_t bytes; /* so far; -1: more than 2^62 */
} memory_plan;
typedef void memory_placer(memory_plan *plan, void *arg);

/* `count` elements of `width` bytes at the next multiple of 64 bytes; NULL while only counting, and for none. */
void *memory_place(memory_plan *plan, int64_t count, int64_t width);

/* Bytes that `place` would take; -1: more than can be counted. */
int64_t memory_count(memory_placer *place, void *arg);

/* Counts, allocates, and places. 0; or 1 when *bytes were refused. */
int32_t memory_arrange(memory_block *block, memory_placer *place, void *arg, int64_t *bytes);

/* *product = a * b; or 0 if a factor is negative or the product passes 2^62. */
int32_t size_multiply(int64_t *product, int64_t a, int64_t b);

#endif
