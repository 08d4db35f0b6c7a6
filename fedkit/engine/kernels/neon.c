/* The kernels for aarch64. */
#if defined(__aarch64__)
#define ISA_NEON
#include "all.h"
#else
typedef int nothing_to_compile;
#endif
