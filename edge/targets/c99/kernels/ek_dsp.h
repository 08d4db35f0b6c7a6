/* Parts of the kernels for small memories: plain C, and with it the DSP instructions of Cortex-M.
 *
 * A word holds four pixels; products are taken of halfwords, two at a time or one by one. */
#ifndef EK_DSP_H
#define EK_DSP_H

#include "ek_plain.h"

/* A weight, and its distance from a pixel. */
typedef struct {
    int32_t at, weight;
} ek_point;

#ifdef EK_DSP
#include <arm_acle.h>

/* Sums of four pixels. */
typedef struct {
    int32_t a, b, c, d;
} ek_four_sums;

static inline uint32_t ek_load_word(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return four;
}

/* Pixels 0 and 2, 1 and 3 of a word, as halfwords. */
static inline int32_t ek_even(uint32_t four) { return (int32_t)__uxtb16((int32_t)four); }
static inline int32_t ek_odd(uint32_t four) {
    return (int32_t)__uxtb16((int32_t)__ror(four, 8));
}

static inline void ek_store_word(uint8_t *p, uint32_t four) { memcpy(p, &four, sizeof four); }

/* Four halfwords below 256 as a word of bytes. */
static inline uint32_t ek_joined(int32_t first, int32_t last) {
    const uint32_t a = (uint32_t)first | (uint32_t)first >> 8;
    const uint32_t b = (uint32_t)last | (uint32_t)last >> 8;
    return (a & 0xFFFF) | b << 16;
}

/* Requantisation where nothing is rare: no shift below 33, no limits but those of a byte. The
 * product's low half never matters then, and the zero point is rounded with the sum. */
typedef struct {
    int32_t multiplier, round, shift;
} ek_quick;

/* Returns whether a channel allows it. The high half of a product is below 2^30. */
static inline int ek_quick_of(ek_quick *quick, const ek_requant *q, int32_t channel) {
    const int32_t shift = q->shift[channel] - 32;
    if (shift < 1 || shift > 21 || q->low != 0 || q->high != 255) return 0;
    quick->multiplier = q->multiplier[channel];
    quick->round = (1 << (shift - 1)) + (q->zero << shift);
    quick->shift = shift;
    return 1;
}

static inline uint8_t ek_quickly(ek_quick q, int32_t sum) {
    const int32_t high = (int32_t)(((int64_t)sum * q.multiplier) >> 32);
    return (uint8_t)__usat((q.round + high) >> q.shift, 8);
}

/* Whether nothing is rare in a sum of tensors either. */
static inline int ek_sum_is_quick(const ek_sum *s) {
    return s->low == 0 && s->high == 255 && s->shift <= 21;
}

/* ek_summed, where it is so; the zero point is shifted with the sum. */
static inline void ek_sum_quickly(const ek_sum *s, const uint8_t *a, const uint8_t *b, uint8_t *out,
                                  int32_t count) {
    const int32_t scale_a = s->scale_a, scale_b = s->scale_b, shift = s->shift;
    const int32_t offset = s->offset + (s->zero << shift);
    for (int32_t x = 0; x < count; x++)
        out[x] = (uint8_t)__usat((a[x] * scale_a + b[x] * scale_b + offset) >> shift, 8);
}

#endif
#endif
