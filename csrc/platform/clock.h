/* clock.h: time since some moment, for measuring. A step of the wall clock does not show. */

#ifndef SAMPAN_CLOCK_H
#define SAMPAN_CLOCK_H

#include <stdint.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
static inline int64_t clock_nanoseconds(void) {
    LARGE_INTEGER count, rate;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    return (int64_t)((double)count.QuadPart * 1e9 / (double)rate.QuadPart);
}
#else
#include <time.h>
static inline int64_t clock_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
#endif

static inline double clock_seconds(void) { return 1e-9 * (double)clock_nanoseconds(); }

#endif
