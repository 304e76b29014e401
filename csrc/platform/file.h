/* file.h: files as the program needs them: beyond 2 GB, read whole, replaced at once. Include it before all other
   headers.

       int64_t size;
       char *text = file_read("config.json", &size, &failure);
       ...write path.partial...
       if (file_commit(stream, "path.partial", "path")) ...path is as it was... */

#ifndef SAMPAN_FILE_H
#define SAMPAN_FILE_H

#define _FILE_OFFSET_BITS 64
#include <stdint.h>
#include <stdio.h>

#ifdef _WIN32
#define file_seek _fseeki64
#define file_tell _ftelli64
#else
#define file_seek fseeko
#define file_tell ftello
#endif

/* What went wrong, in a sentence. A function that can fail returns 0, or 1 and fills in one of these. */
typedef struct failure {
    char text[4608];
} failure;

/* Formats the sentence; always returns 1, so that a function can end with it. */
int32_t failure_say(failure *failure, const char *format, ...);

/* The whole file with a zero behind it, at most 256 MB, to be freed; NULL with a failure. */
char *file_read(const char *path, int64_t *size, failure *failure);

/* 1: there is a file or folder of that name, whether or not it can be read. */
int32_t file_exists(const char *path);

/* Bytes of a file; -1 if it cannot be opened. */
int64_t file_count_bytes(const char *path);

/* Bytes of an open file, which is at its beginning afterwards; -1 on failure. */
int64_t file_size(FILE *stream);

/* Syncs and closes `stream`, the file `from`, and renames it to `to`, atomically. 0, or 1 on failure (`from` stays). */
int32_t file_commit(FILE *stream, const char *from, const char *to);

/* Makes the folder unless it exists. */
void file_make_folder(const char *path);

#endif
