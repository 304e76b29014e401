/* memory.c: see memory.h. */

#define _DEFAULT_SOURCE
#include "memory.h"
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { LARGE_PAGE = 2 << 20 };
static const int64_t LIMIT = (int64_t)1 << 62;

int32_t memory_allocate(memory_block *block, int64_t bytes) {
    *block = (memory_block){0};
    if (bytes < 0 || bytes > LIMIT || (uint64_t)bytes > SIZE_MAX - LARGE_PAGE) return 1;
    int64_t alignment = bytes >= LARGE_PAGE ? LARGE_PAGE : 64;
    void *raw = calloc(1, (size_t)(bytes + alignment)); /* pages come zeroed, and only when touched */
    if (!raw) return 1;
    uintptr_t start = ((uintptr_t)raw + (uintptr_t)alignment - 1) & ~((uintptr_t)alignment - 1);
    *block = (memory_block){(char *)start, bytes, raw};
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= LARGE_PAGE)
        madvise((void *)start, (size_t)bytes, MADV_HUGEPAGE); /* advice: its failure costs only speed */
#endif
    return 0;
}

void memory_free(memory_block *block) {
    free(block->raw);
    *block = (memory_block){0};
}

int32_t size_multiply(int64_t *product, int64_t a, int64_t b) {
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, product) && *product <= LIMIT;
}

void *memory_place(memory_plan *plan, int64_t count, int64_t width) {
    int64_t bytes, at = plan->bytes;
    if (at < 0) return NULL;
    if (!size_multiply(&bytes, count, width) || bytes > LIMIT - at - 63) {
        plan->bytes = -1;
        return NULL;
    }
    plan->bytes = at + ((bytes + 63) & ~(int64_t)63);
    return plan->base && count ? plan->base + at : NULL;
}

int64_t memory_count(memory_placer *place, void *arg) {
    memory_plan plan = {0};
    place(&plan, arg);
    return plan.bytes;
}

int32_t memory_arrange(memory_block *block, memory_placer *place, void *arg, int64_t *bytes) {
    *bytes = memory_count(place, arg);
    if (memory_allocate(block, *bytes)) return 1;
    memory_plan plan = {block->data, 0};
    place(&plan, arg);
    return 0;
}
