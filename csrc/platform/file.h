/* file.h: files as the program needs them: beyond 2 GB, read whole, replaced at once. Include it before all other
   headers.

       int64_t size;
       char *text = file_read("config.json", &size, message, sizeof message);
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

/* The whole file with a zero behind it, at most 256 MB, to be freed; NULL with a sentence in `message`. */
char *file_read(const char *path, int64_t *size, char *message, int64_t message_size);

/* Bytes of a file; -1 if it cannot be opened. */
int64_t file_count_bytes(const char *path);

/* Bytes of an open file, which is at its beginning afterwards; -1 on failure. */
int64_t file_size(FILE *stream);

/* Syncs and closes `stream`, the file `from`, and renames it to `to`, atomically. 0, or 1 on failure (`from` stays). */
int32_t file_commit(FILE *stream, const char *from, const char *to);

/* Makes the folder unless it exists. */
void file_make_folder(const char *path);

#endif
