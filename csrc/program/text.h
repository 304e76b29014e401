/* text.h: tokens to text by a tokenizer.json whose vocabulary is characters (WordLevel) or byte-level (GPT-2's BPE,
   decoded only).

       vocabulary v;
       if (vocabulary_read(&v, "out/shakespeare/tokenizer.json", &failure)) ...
       n = vocabulary_encode(&v, "ROMEO:", ids, room);           // character by character; -1: one is unknown
       vocabulary_print(&v, id, stdout);

   What it does not do: merges (a byte-level prompt is fed byte by byte, which is valid but not how the model was
   trained). */

#ifndef SAMPAN_TEXT_H
#define SAMPAN_TEXT_H

#include <stdint.h>
#include "platform/file.h"
#include <stdio.h>
#include "json.h"

typedef struct vocabulary {
    json doc;
    const char **token; /* (count) UTF-8, NULL for an id that nothing has */
    int64_t *length;
    int64_t count;
    int32_t byte_level;
} vocabulary;

int32_t vocabulary_read(vocabulary *v, const char *path, failure *failure);
void vocabulary_free(vocabulary *v);
int64_t vocabulary_encode(const vocabulary *v, const char *text, int32_t *ids, int64_t room);
void vocabulary_print(const vocabulary *v, int32_t id, FILE *stream);

#endif
