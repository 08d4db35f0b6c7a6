/* The kernels in plain C99: what every compiler takes and every machine runs. */
#define ISA_PLAIN
#include "all.h"

/* Raised with every change of kernels.h and walk.h, so that no library is driven by another version. */
int kernels_version(void) { return 21; }

/* The lanes of each set of kernels, or 0 where this processor or system does not run it. */
int kernels_lanes_plain(void) { return LANES; }

#if defined(__x86_64__)
#include <cpuid.h>

/* Not __builtin_cpu_supports: its tables are the compiler's own, and missing in some libraries. */
static int supports(unsigned leaf, int use_ecx, unsigned bits, unsigned saved) {
    unsigned eax, ebx, ecx, edx, low, high;
    const unsigned osxsave = 1u << 27;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & saved) != saved || !__get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx)) return 0;
    return ((use_ecx ? ecx : ebx) & bits) == bits;
}

/* Bits 1 and 2 of XCR0: the system saves ymm registers; 5 to 7: and zmm. */
int kernels_lanes_avx2(void) {
    return supports(1, 1, 1u << 12, 0x06) && supports(7, 0, 1u << 5, 0x06) ? 8 : 0;
}
int kernels_lanes_avx512(void) {
    return supports(7, 0, 1u << 16 | 1u << 30, 0xe6) && supports(7, 1, 1u << 11, 0xe6) ? 16 : 0;
}
#endif
