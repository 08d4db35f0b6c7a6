/* What the kernels need of <string.h> where there is no C library; the compiler brings both. */
#ifndef BARE_STRING_H
#define BARE_STRING_H
#include <stddef.h>
void *memcpy(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
#endif
