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

/* Those for `counter` and those behind it, one per lane. */
INLINE whole random_vec(uint32_t low, uint32_t high, uint32_t counter) {
    whole x = whole_add(whole_set1(counter), whole_count());
    x = whole_xor(x, whole_set1(low));
    x = whole_xor(x, whole_right(x, 16));
    x = whole_mul(x, whole_set1(0x7feb352du));
    x = whole_xor(x, whole_right(x, 15));
    x = whole_add(x, whole_set1(high));
    x = whole_mul(x, whole_set1(0x846ca68bu));
    return whole_xor(x, whole_right(x, 16));
}

#endif
