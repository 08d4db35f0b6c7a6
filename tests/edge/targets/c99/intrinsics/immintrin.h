/* AVX-VNNI spelled out in C, for processors without it: put before the system's header of the same
 * name, it lets the kernels for it run wherever AVX2 does. */
#ifndef EK_TEST_IMMINTRIN_H
#define EK_TEST_IMMINTRIN_H

#include_next <immintrin.h>

#define __AVXVNNI__ 1

/* Sums wrap; products of bytes, unsigned times signed, are added all at once without saturation. */
static inline __m256i in_c_dot_bytes(__v8si sum, __v32qu a, __v32qi b) {
    for (int i = 0; i < 32; i++) sum[i / 4] = (int)((unsigned)sum[i / 4] + (unsigned)(a[i] * b[i]));
    return (__m256i)sum;
}
static inline __m256i in_c_dot_words(__v8si sum, __v16hi a, __v16hi b) {
    for (int i = 0; i < 16; i++)
        sum[i / 2] = (int)((unsigned)sum[i / 2] + (unsigned)(a[i] * b[i]));
    return (__m256i)sum;
}

#define _mm256_dpbusd_avx_epi32(sum, a, b) in_c_dot_bytes((__v8si)(sum), (__v32qu)(a), (__v32qi)(b))
#define _mm256_dpwssd_avx_epi32(sum, a, b) in_c_dot_words((__v8si)(sum), (__v16hi)(a), (__v16hi)(b))

#endif
