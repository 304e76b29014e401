/* json.h: reads JSON documents (RFC 8259), also from untrusted files.

       json doc;
       if (json_parse(&doc, text, size)) ...doc.message says what is wrong...
       int64_t layers = json_find(&doc, 0, "n_layer");          // value 0 is the document's
       if (layers && doc.values[layers].type == JSON_NUMBER) ... doc.values[layers].number
       json_free(&doc);

   Values are numbered in the order of the document. 0 also means "none", since no member is value 0. A value takes 32
   bytes, and values are counted before memory is allocated, so a document costs a known multiple of its size. What it
   does not do: write, numbers beyond double, more than 64 levels, more than JSON_VALUES_MOST values.
 */

#ifndef SAMPAN_JSON_H
#define SAMPAN_JSON_H

#include <stdint.h>
#include "platform/file.h"

enum {
    JSON_VALUES_MOST = 1 << 22,
    JSON_TEXT_MOST = 1 << 30
}; /* a tokenizer of 256,000 tokens and their merges has half as many */
enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

typedef struct json_value {
    int32_t type, next; /* next: the following member of the same array or object */
    int32_t key_length;
    union {
        int32_t length, count, text;
    }; /* bytes of a string; members of an array or object; where a number's text is in `strings` */
    const char *key; /* of a member of an object, zero-terminated; else NULL */
    union {
        double number;
        const char *string; /* UTF-8, zero-terminated; a string that contains a zero has it inside of `length` */
        int64_t first;      /* of an array or object: its first member */
    };
} json_value;

typedef struct json {
    json_value *values;
    int64_t count;
    char *strings;    /* decoded, one after the other, and the text of numbers */
    char message[96]; /* "line 3: expected a value" */
} json;

/* 0, or 1 with a message. `text` is not needed afterwards. */
int32_t json_parse(json *doc, const char *text, int64_t size);
void json_free(json *doc);

/* The same of a file. 0; or 1 with a failure and nothing to free. */
int32_t json_read_file(json *doc, const char *path, failure *failure);

/* Returns the member of that name in an object; 0 if there is none, or `object` is no object. */
int64_t json_find(const json *doc, int64_t object, const char *key);

/* Return the number or string of a member; `otherwise` if it is missing, null or of another type. */
double json_number(const json *doc, int64_t object, const char *key, double otherwise);
const char *json_string(const json *doc, int64_t object, const char *key, const char *otherwise);

/* The text of a number, as it is in the document: a double holds only whole numbers up to 2^53. */
const char *json_digits(const json *doc, int64_t number);

/* Returns 1 for true and 0 for false; `otherwise` if the member is missing, null or of another type. */
int32_t json_flag(const json *doc, int64_t object, const char *key, int32_t otherwise);

#endif
