/* Softmax of 16 pixels at once, for compilers that make vectors of loops over them. */
#ifndef EK_SHARES_H
#define EK_SHARES_H

#include "ek_simd.h"
#include "ek_softmax.h"

#ifdef EK_SIMD

#define EK_TOGETHER 16 /* pixels; more may be read */

/* Of each pixel the largest of its channels, and the sum of the powers of what is below it. */
typedef struct {
    uint8_t most[EK_TOGETHER];
    uint32_t sum[EK_TOGETHER];
} ek_sums_of_powers;

/* Channels are `step` bytes apart. Powers are kept, [channels][EK_TOGETHER], where there is room. */
EK_INLINE ek_sums_of_powers ek_sum_powers(const ek_powers *powers, const uint8_t *x, int32_t step,
                                          int32_t channels, uint32_t *kept) {
    ek_sums_of_powers s = {{0}, {0}};
    const uint32_t *entries = powers->entries;
    const uint8_t *p = x;
    for (int32_t c = 0; c < channels; c++, p += step)
        for (int32_t k = 0; k < EK_TOGETHER; k++) s.most[k] = p[k] > s.most[k] ? p[k] : s.most[k];
    for (int32_t c = 0; c < channels; c++, x += step)
        for (int32_t k = 0; k < EK_TOGETHER; k++) {
            const uint32_t power = entries[(uint8_t)(s.most[k] - x[k])];
            s.sum[k] += power;
            if (kept) kept[c * EK_TOGETHER + k] = power;
        }
    return s;
}

/* floor((256 * power + sum / 2) / sum) by a reciprocal: with another half in the dividend a quotient
 * is at least 2^-33 of itself away from an integer, and what is rounded is below 2^-50. */
typedef struct {
    double half[EK_TOGETHER], reciprocal[EK_TOGETHER];
} ek_share;

static inline ek_share ek_share_of(const ek_sums_of_powers *s) {
    ek_share share;
    for (int32_t k = 0; k < EK_TOGETHER; k++) {
        share.half[k] = (s->sum[k] >> 1) + 0.5;
        share.reciprocal[k] = 1.0 / s->sum[k];
    }
    return share;
}

EK_INLINE void ek_put_shares(const ek_share *s, const uint32_t *power, uint8_t *bytes) {
    for (int32_t k = 0; k < EK_TOGETHER; k++) {
        const double quotient = (256.0 * (int32_t)power[k] + s->half[k]) * s->reciprocal[k];
        const int32_t share = (int32_t)quotient;
        bytes[k] = (uint8_t)(share < 255 ? share : 255);
    }
}

#endif
#endif
