/* memory.h: large blocks, and sizes that are added up and multiplied without wrapping around.

       int64_t bytes;
       if (!size_add(&bytes, rows * columns, sizeof(float)) || memory_allocate(&block, bytes)) ...refused...

   A block is zero, aligned to 64 bytes, on large pages where the system has them. */

#ifndef SAMPAN_MEMORY_H
#define SAMPAN_MEMORY_H

#include <stdint.h>

typedef struct memory_block {
    char *data;                       /* NULL: nothing allocated */
    int64_t bytes;
    void *raw;                        /* what is to be freed */
} memory_block;

/* 0, or 1 when the system refuses. The block is empty then. */
int32_t memory_allocate(memory_block *block, int64_t bytes);
void memory_free(memory_block *block);        /* an empty block is allowed */

/* *total += count * width bytes, rounded up to 64. 0 if a factor is negative or the sum passes 2^62. */
int32_t size_add(int64_t *total, int64_t count, int64_t width);

/* *product = a * b, or 0 as above. */
int32_t size_multiply(int64_t *product, int64_t a, int64_t b);

#endif
