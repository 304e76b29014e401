/* text.h: text to tokens and back by a tokenizer.json, with the same ids as the package.

       vocabulary v;
       if (vocabulary_read(&v, "out/shakespeare/tokenizer.json", &failure)) ...
       if (vocabulary_encode(&v, "ROMEO:", &ids, &count, &failure)) ...
       fwrite(v.token[id].bytes, 1, (size_t)v.token[id].length, stdout);
       vocabulary_free(&v);

   It reads characters with or without bytes, and BPE: byte-level, cut into words as GPT-2, Llama 3 or Qwen cut them, or
   SentencePiece's. Ids of other byte-level tokenizers can be written, but prompts cannot be encoded.

   What it does not do: WordPiece, Unigram, Unicode normalization (a prompt is taken to be in form C). */

#ifndef SAMPAN_TEXT_H
#define SAMPAN_TEXT_H

#include <stdint.h>
#include "platform/file.h"
#include "json.h"

/* How a text is cut into words, which no token reaches across; and whether it first gets a space in front. */
enum { CUT_UNKNOWN, CUT_NOWHERE, CUT_CHARACTERS, CUT_SPACES, CUT_GPT2, CUT_LLAMA3 };
enum { PREFIX_NEVER, PREFIX_ALWAYS, PREFIX_IF_NONE, PREFIX_FIRST };

typedef struct vocabulary_pair { /* a merge of two neighbors; rank -1: a free slot */
    int32_t left, right, rank, merged;
} vocabulary_pair;

typedef struct vocabulary {
    json doc;
    int64_t count; /* the highest id plus one */
    struct token {
        const char *name, *bytes; /* in the file, and what the token writes; NULL for an id that nothing has */
        int64_t name_length, length;
    } *token;                                 /* (count) */
    int32_t begin[4], begins;                 /* what its template puts before a text, such as BOS */
    int32_t end_of_text;                      /* follows each document; -1: none */
    int32_t byte_token[256];                  /* <0x00> and on; -1: none */
    int32_t is_byte_level, takes_whole_words; /* a word that is a token is not split */
    int32_t cut, most_digits, prefix;
    const char *space;     /* what spaces are in names, such as U+2581; NULL: spaces */
    int64_t added;         /* of the document: the tokens that are found in a text before it is cut; 0: none */
    char *room;            /* of `bytes` */
    int32_t *slot;         /* (slots) ids by name; -1: free */
    vocabulary_pair *pair; /* (pairs) */
    int64_t slots, pairs;  /* powers of two */
} vocabulary;

int32_t vocabulary_read(vocabulary *v, const char *path, failure *failure);
void vocabulary_free(vocabulary *v);
int32_t vocabulary_encode(const vocabulary *v, const char *text, int32_t **ids, int64_t *count, failure *failure);

/* ---- UTF-8 ---- */

/* What a text may end with and still become UTF-8: whole characters, or the first bytes of one. */
enum { UTF8_WHOLE, UTF8_BROKEN = 8, UTF8_STATES = 8 };
int32_t utf8_next(int32_t state, uint8_t byte);

/* 1: the n bytes are one character. */
int32_t utf8_is_character(const char *s, int64_t n);

/* The character with which GPT-2 writes a byte: itself where it is visible, else the next of U+0100, U+0101, ... */
uint32_t byte_to_character(int32_t byte);

/* after (UTF8_STATES, count): the state after each token, UTF8_BROKEN where it must not follow: it breaks a character,
   begins one that no token can finish, or nothing has its id. 1: no token can begin a text. */
int32_t vocabulary_follow(const vocabulary *v, int64_t count, uint8_t *after);

#endif
