/* check.h: what a C test counts and reports with, and files for it to read in `directory`. */

#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int32_t checks, failures;
static inline void check(int32_t good, const char *what) {
    checks++;
    if (!good) {
        failures++;
        printf("FAILED %s\n", what);
    }
}

static char directory[1024], path[1200];   /* of the file that was written last */
static inline void write_file(const char *name, const void *data, size_t size) {
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size) exit(3);
    fclose(f);
}

#endif
