/* safetensors.h: read and write model.safetensors files: 8 bytes of header size, a JSON header, the tensors' bytes.

       safetensors file;
       failure failure;
       if (safetensors_open(&file, path, &failure)) ...
       const safetensor *t = safetensors_find(&file, "transformer.wte.weight");
       if (safetensors_read(&file, t, values)) ...short file...
       safetensors_close(&file);

   Before anything is read, every tensor is checked to lie within the file and to share no bytes with another. float32,
   float16 and bfloat16 are read, as float32; float32 is written. What it does not do: sharded models, other types,
   metadata. */

#ifndef SAMPAN_SAFETENSORS_H
#define SAMPAN_SAFETENSORS_H

#include <stdint.h>
#include "platform/file.h"
#include <stdio.h>
#include "json.h"

typedef struct safetensor {
    const char *name, *type;                         /* "F32", "F16", "BF16", ... */
    int64_t rank, shape[4], elements, offset, bytes; /* offset: in the file */
} safetensor;

typedef struct safetensors {
    FILE *stream;
    json header;
    safetensor *tensors; /* by name */
    int64_t count;
} safetensors;

/* 0; or 1 with a failure, nothing left open. */
int32_t safetensors_open(safetensors *file, const char *path, failure *failure);
void safetensors_close(safetensors *file);

const safetensor *safetensors_find(const safetensors *file, const char *name); /* NULL: none of that name */

/* All elements as float32; 0, or 1 where the type is unknown or the file ends early. */
int32_t safetensors_read(safetensors *file, const safetensor *tensor, float *values);

/* Writes PATH.partial: header first, then each tensor's floats by safetensors_append in the same order; then
   safetensors_commit syncs it and renames it to PATH. 0 or 1. After a failure the writer is closed and PATH is as it
   was. */
typedef struct safetensors_writer {
    FILE *stream;
    char path[4096], partial[4112];
} safetensors_writer;
int32_t safetensors_begin(safetensors_writer *w, const char *path, const safetensor *tensors, int64_t count);
int32_t safetensors_append(safetensors_writer *w, const float *values, int64_t count);
int32_t safetensors_commit(safetensors_writer *w);

#endif
