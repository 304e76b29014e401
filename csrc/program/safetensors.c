/* safetensors.c: see safetensors.h. Little-endian machines only, like the format. */

#include "platform/file.h"
#include "safetensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "platform/bfloat16.h"

static const int64_t HEADER_MOST = 100 << 20;

static int32_t complain(safetensors *file, const char *path, const char *what, failure *failure) {
    failure_say(failure, "%s: %s", path, what);
    safetensors_close(file);
    return 1;
}

static int64_t type_width(const char *type) {
    const struct {
        const char *name;
        int64_t bytes;
    } types[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"I64", 8},
                 {"I32", 4}, {"I16", 2}, {"I8", 1},   {"U8", 1},  {"BOOL", 1}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, type)) return types[i].bytes;
    return 0;
}

/* A whole number from 0 to 2^53, or -1. */
static int64_t whole(const json_value *v) {
    return v->type == JSON_NUMBER && v->number >= 0 && v->number <= 9007199254740992.0
                   && v->number == (double)(int64_t)v->number
               ? (int64_t)v->number
               : -1;
}

/* One entry of the header; `data` and `size`: where the tensors' bytes begin, and how many there are. NULL or a
 * complaint. */
static const char *read_entry(safetensor *t, const json *doc, int64_t entry, int64_t data, int64_t size) {
    int64_t shape = json_find(doc, entry, "shape"), offsets = json_find(doc, entry, "data_offsets");
    t->name = doc->values[entry].key;
    t->type = json_string(doc, entry, "dtype", "");
    if (!shape || doc->values[shape].type != JSON_ARRAY || !offsets || doc->values[offsets].type != JSON_ARRAY
        || doc->values[offsets].count != 2)
        return "its header has an entry without shape or data_offsets";
    t->elements = 1;
    t->rank = doc->values[shape].count;
    if (t->rank > 4) return "a tensor has more than four dimensions";
    int64_t i = doc->values[shape].first;
    for (int64_t k = 0; k < t->rank; k++, i = doc->values[i].next) {
        t->shape[k] = whole(&doc->values[i]);
        if (t->shape[k] < 0 || __builtin_mul_overflow(t->elements, t->shape[k], &t->elements))
            return "a tensor's shape is not one";
    }
    int64_t first = doc->values[offsets].first, begin = whole(&doc->values[first]),
            end = whole(&doc->values[doc->values[first].next]), bytes;
    if (begin < 0 || end < begin || end > size) return "a tensor lies outside of the file; it is not whole";
    if (__builtin_mul_overflow(t->elements, type_width(t->type), &bytes)
        || (bytes != end - begin && type_width(t->type)))
        return "a tensor's shape and its bytes disagree";
    t->offset = data + begin;
    t->bytes = end - begin;
    return NULL;
}

static int by_place(const void *a, const void *b) {
    int64_t x = ((const safetensor *)a)->offset, y = ((const safetensor *)b)->offset;
    return (x > y) - (x < y);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const safetensor *)a)->name, ((const safetensor *)b)->name);
}

/* Leaves the tensors in the order of their names, for safetensors_find. Tensors that share bytes would let a small file
   describe a large model. */
static const char *sort_tensors(safetensors *file) {
    size_t count = (size_t)file->count, width = sizeof *file->tensors;
    qsort(file->tensors, count, width, by_place);
    int64_t end = 0;
    for (int64_t i = 0; i < file->count; i++) {
        if (!file->tensors[i].bytes) continue;
        if (file->tensors[i].offset < end) return "two of its tensors share bytes";
        end = file->tensors[i].offset + file->tensors[i].bytes;
    }
    qsort(file->tensors, count, width, by_name);
    for (int64_t i = 1; i < file->count; i++)
        if (!by_name(&file->tensors[i - 1], &file->tensors[i])) return "two of its tensors have the same name";
    return NULL;
}

int32_t safetensors_open(safetensors *file, const char *path, failure *failure) {
    *file = (safetensors){.stream = fopen(path, "rb")};
    if (!file->stream) return complain(file, path, strerror(errno), failure);
    uint8_t raw[8];
    int64_t size = file_size(file->stream), header = 0;
    if (size < 8 || fread(raw, 1, 8, file->stream) != 8) return complain(file, path, "not a safetensors file", failure);
    if (raw[5] || raw[6] || raw[7]) return complain(file, path, "not a safetensors file", failure);
    for (int32_t i = 4; i >= 0; i--) header = header << 8 | raw[i];
    if (header > HEADER_MOST || header > size - 8)
        return complain(file, path, "its header is longer than the file", failure);
    char *text = malloc((size_t)header + 1);
    int32_t failed = !text || fread(text, 1, (size_t)header, file->stream) != (size_t)header
                     || json_parse(&file->header, text, header);
    free(text);
    if (failed) return complain(file, path, "its header is not JSON", failure);
    if (file->header.values[0].type != JSON_OBJECT) return complain(file, path, "its header is not an object", failure);
    file->tensors = calloc((size_t)file->header.values[0].count + 1, sizeof *file->tensors);
    if (!file->tensors) return complain(file, path, "no memory for its header", failure);
    for (int64_t i = file->header.values[0].first; i; i = file->header.values[i].next) {
        if (!strcmp(file->header.values[i].key, "__metadata__")) continue;
        const char *complaint = read_entry(&file->tensors[file->count], &file->header, i, 8 + header,
                                           size - 8 - header);
        if (complaint) return complain(file, path, complaint, failure);
        file->count++;
    }
    const char *complaint = sort_tensors(file);
    return complaint ? complain(file, path, complaint, failure) : 0;
}

void safetensors_close(safetensors *file) {
    if (file->stream) fclose(file->stream);
    json_free(&file->header);
    free(file->tensors);
    *file = (safetensors){0};
}

const safetensor *safetensors_find(const safetensors *file, const char *name) {
    const safetensor wanted = {.name = name};
    return file->count ? bsearch(&wanted, file->tensors, (size_t)file->count, sizeof wanted, by_name) : NULL;
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = half >> 10 & 31, mantissa = half & 1023, word;
    if (exponent == 0) {
        float value = (float)mantissa / 16777216.0f; /* a subnormal: mantissa * 2^-24 */
        return sign ? -value : value;
    }
    word = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | mantissa << 13;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

int32_t safetensors_read(safetensors *file, const safetensor *t, float *values) {
    int32_t is_float = !strcmp(t->type, "F32"), is_half = !strcmp(t->type, "F16");
    if (!is_float && !is_half && strcmp(t->type, "BF16")) return 1;
    if (file_seek(file->stream, t->offset, SEEK_SET)) return 1;
    if (is_float) return fread(values, 4, (size_t)t->elements, file->stream) != (size_t)t->elements;
    uint16_t piece[4096];
    for (int64_t i = 0; i < t->elements; i += 4096) {
        int64_t n = t->elements - i < 4096 ? t->elements - i : 4096;
        if (fread(piece, 2, (size_t)n, file->stream) != (size_t)n) return 1;
        for (int64_t j = 0; j < n; j++) values[i + j] = is_half ? half_to_float(piece[j]) : bfloat16_to_float(piece[j]);
    }
    return 0;
}

/* ---- writing ---- */

static int32_t give_up(safetensors_writer *w) {
    if (w->stream) fclose(w->stream);
    w->stream = NULL;
    remove(w->partial);
    return 1;
}

int32_t safetensors_begin(safetensors_writer *w, const char *path, const safetensor *tensors, int64_t count) {
    *w = (safetensors_writer){0};
    if (strlen(path) >= sizeof w->path) return 1;
    snprintf(w->path, sizeof w->path, "%s", path);
    snprintf(w->partial, sizeof w->partial, "%s.partial", path);
    if (!(w->stream = fopen(w->partial, "wb"))) return 1;
    uint64_t zero = 0;
    int64_t begin = 0;
    fwrite(&zero, 8, 1, w->stream);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", w->stream);
    for (int64_t i = 0; i < count; i++) {
        fprintf(w->stream, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[", tensors[i].name);
        for (int64_t k = 0; k < tensors[i].rank; k++)
            fprintf(w->stream, "%s%lld", k ? "," : "", (long long)tensors[i].shape[k]);
        fprintf(w->stream, "],\"data_offsets\":[%lld,%lld]}", (long long)begin,
                (long long)(begin + 4 * tensors[i].elements));
        begin += 4 * tensors[i].elements;
    }
    fputc('}', w->stream);
    while (file_tell(w->stream) % 8) fputc(' ', w->stream);
    uint64_t header = (uint64_t)file_tell(w->stream) - 8;
    if (file_seek(w->stream, 0, SEEK_SET) || fwrite(&header, 8, 1, w->stream) != 1 || file_seek(w->stream, 0, SEEK_END))
        return give_up(w);
    return ferror(w->stream) ? give_up(w) : 0;
}

int32_t safetensors_append(safetensors_writer *w, const float *values, int64_t count) {
    return fwrite(values, 4, (size_t)count, w->stream) == (size_t)count ? 0 : give_up(w);
}

int32_t safetensors_commit(safetensors_writer *w) {
    int32_t failed = file_commit(w->stream, w->partial, w->path);
    w->stream = NULL;
    return failed ? give_up(w) : 0;
}
