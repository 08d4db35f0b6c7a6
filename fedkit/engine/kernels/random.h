/* Random numbers that depend on a key and a counter alone. */
#ifndef FEDKIT_RANDOM_H
#define FEDKIT_RANDOM_H

#include "simd.h"

/* fedkit.core.numerics.random_bits */
INLINE uint32_t random_bits(uint32_t low, uint32_t high, uint32_t counter) {
    uint32_t x = counter ^ low;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x += high;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

/* Random numbers for `counter` and those behind it, one per lane: both halves of 16 bits, as floats. */
#if defined(ISA_AVX512)
INLINE void vec_random(uint32_t low, uint32_t high, uint32_t counter, vec *lower, vec *upper) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i x = _mm512_add_epi32(_mm512_set1_epi32((int)counter), lanes);
    x = _mm512_xor_si512(x, _mm512_set1_epi32((int)low));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x7feb352d));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    x = _mm512_add_epi32(x, _mm512_set1_epi32((int)high));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x846ca68bu));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    *lower = _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff)));
    *upper = _mm512_cvtepi32_ps(_mm512_srli_epi32(x, 16));
}
#else
INLINE void vec_random(uint32_t low, uint32_t high, uint32_t counter, vec *lower, vec *upper) {
    float first[LANES], second[LANES];
    for (int i = 0; i < LANES; i++) {
        const uint32_t bits = random_bits(low, high, counter + (uint32_t)i);
        first[i] = (float)(int32_t)(bits & 0xffff);
        second[i] = (float)(int32_t)(bits >> 16);
    }
    *lower = vec_load(first), *upper = vec_load(second);
}
#endif

#endif
