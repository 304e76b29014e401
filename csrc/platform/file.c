/* file.c: see file.h. */

#include "file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <direct.h>
#include <io.h>
#include <windows.h>
#define file_sync(stream) _commit(_fileno(stream))
#define file_replace(from, to) (!MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
#define make_folder(path) _mkdir(path)
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#define file_sync(stream) fsync(fileno(stream))
#define file_replace(from, to) rename(from, to)
#define make_folder(path) mkdir(path, 0777)
#endif

static const int64_t FILE_MOST = 1 << 28;

int32_t failure_say(failure *failure, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(failure->text, sizeof failure->text, format, values);
    va_end(values);
    return 1;
}

int64_t file_size(FILE *stream) {
    if (file_seek(stream, 0, SEEK_END)) return -1;
    int64_t size = (int64_t)file_tell(stream);
    return file_seek(stream, 0, SEEK_SET) ? -1 : size;
}

int32_t file_exists(const char *path) {
#ifdef _WIN32
    return GetFileAttributesA(path) != INVALID_FILE_ATTRIBUTES;
#else
    struct stat about;
    return !lstat(path, &about);
#endif
}

int64_t file_count_bytes(const char *path) {
    FILE *stream = fopen(path, "rb");
    int64_t size = stream ? file_size(stream) : -1;
    if (stream) fclose(stream);
    return size;
}

char *file_read(const char *path, int64_t *size, failure *failure) {
    FILE *stream = fopen(path, "rb");
    if (!stream) {
        failure_say(failure, "%s: %s", path, strerror(errno));
        return NULL;
    }
    *size = file_size(stream);
    char *text = *size >= 0 && *size <= FILE_MOST ? malloc((size_t)*size + 1) : NULL;
    if (!text || fread(text, 1, (size_t)*size, stream) != (size_t)*size) {
        failure_say(failure, "%s: cannot read", path);
        free(text);
        text = NULL;
    } else {
        text[*size] = 0;
    }
    fclose(stream);
    return text;
}

/* A new name lasts only when its folder is synced, too; Windows has no such call. */
static int32_t folder_sync(const char *path) {
#ifdef _WIN32
    (void)path;
    return 0;
#else
    char folder[4096];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    int descriptor = open(slash == path ? "/" : folder, O_RDONLY);
    if (descriptor < 0) return 1;
    int failed = fsync(descriptor) && errno != EINVAL; /* some network file systems cannot */
    close(descriptor);
    return failed;
#endif
}

int32_t file_commit(FILE *stream, const char *from, const char *to) {
    int32_t failed = fflush(stream) || file_sync(stream);
    failed = fclose(stream) || failed;
    return failed || file_replace(from, to) || folder_sync(to);
}

void file_make_folder(const char *path) { make_folder(path); }
