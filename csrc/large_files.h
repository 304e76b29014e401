/* large_files.h: positions in a file beyond 2 GB, whatever the system calls them. Included before all other headers. */

#ifndef LARGE_FILES_H
#define LARGE_FILES_H

#define _FILE_OFFSET_BITS 64
#include <stdio.h>

#ifdef _WIN32
#define file_seek _fseeki64
#define file_tell _ftelli64
#else
#define file_seek fseeko
#define file_tell ftello
#endif

#endif
