/* The kernels for aarch64. */
#if defined(__aarch64__)
#define ISA_NEON
#include "all.h"

/* What the architecture always has; see plain.c for the other sets. */
int kernels_lanes_neon(void) { return LANES; }
#else
typedef int nothing_to_compile;
#endif
