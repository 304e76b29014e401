/* fuzz_safetensors.c: any bytes as a safetensors file; every tensor that is accepted lies inside of it and can be read.
 */

#include "program/safetensors.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    safetensors file;
    failure failure = {0};
    const char *path = fuzz_write("model.safetensors", (input){data, data + size});
    if (safetensors_open(&file, path, &failure)) {
        if (!failure.text[0] || file.stream) abort();
        return 0;
    }
    int64_t total = 0;
    for (int64_t i = 0; i < file.count; i++) {
        const safetensor *t = &file.tensors[i];
        if (safetensors_find(&file, t->name) != t || t->offset + t->bytes > (int64_t)size) abort();
        total += t->bytes;
        if (t->bytes == 0 && t->elements > 0) continue; /* of a type that is not read */
        float *values = malloc((size_t)t->elements * sizeof(float) + 1);
        safetensors_read(&file, t, values);
        free(values);
    }
    if (total > (int64_t)size) abort();
    safetensors_close(&file);
    return 0;
}
