/* DSP instructions of Cortex-M spelled out in C, so that the kernels for them run anywhere. */
#ifndef EK_TEST_ARM_ACLE_H
#define EK_TEST_ARM_ACLE_H

#include <stdint.h>

static inline int32_t in_c_bottom(int32_t x) { return (int16_t)(x & 0xFFFF); }
static inline int32_t in_c_top(int32_t x) { return x >> 16; }

/* Sums wrap. */
static inline int32_t in_c_sum(int32_t a, int32_t b) {
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

static inline uint32_t __ror(uint32_t x, uint32_t by) { return x >> by | x << (32 - by); }
static inline uint32_t __uxtb16(int32_t x) { return (uint32_t)x & 0x00FF00FF; }
static inline int32_t __sxtb16(int32_t x) {
    const int32_t low = (int8_t)(x & 0xFF), high = (int8_t)(x >> 16 & 0xFF);
    return (int32_t)(((uint32_t)high << 16) | ((uint32_t)low & 0xFFFF));
}
static inline int32_t __smlabb(int32_t a, int32_t b, int32_t sum) {
    return in_c_sum(sum, in_c_bottom(a) * in_c_bottom(b));
}
static inline int32_t __smlatb(int32_t a, int32_t b, int32_t sum) {
    return in_c_sum(sum, in_c_top(a) * in_c_bottom(b));
}
static inline int32_t __smlad(int32_t a, int32_t b, int32_t sum) {
    return in_c_sum(in_c_sum(sum, in_c_bottom(a) * in_c_bottom(b)), in_c_top(a) * in_c_top(b));
}
static inline uint32_t __usat(int32_t x, int bits) {
    const int32_t most = (1 << bits) - 1;
    return (uint32_t)(x < 0 ? 0 : x > most ? most : x);
}

#endif
