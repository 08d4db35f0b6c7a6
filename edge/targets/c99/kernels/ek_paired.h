/* What a product or sum of two bytes becomes. */
#ifndef EK_PAIRED_H
#define EK_PAIRED_H

#include "ek_pair.h"
#include "ek_plain.h"

static inline uint8_t ek_within(const ek_pair_op *op, int32_t x) {
    x = x < op->low ? op->low : x; /* one after the other, compilers know it as max and min */
    x = x > op->high ? op->high : x;
    return (uint8_t)x;
}

static inline uint8_t ek_paired(const ek_pair_op *op, int32_t sum) {
    return ek_within(op, ((sum + (1 << (op->shift - 1))) >> op->shift) + op->zero);
}

/* The sum of two. */
static inline uint8_t ek_sum_of_two(const ek_pair_op *op, uint8_t a, uint8_t b) {
    const int32_t left = (a - op->zero_a) * op->factor_a;
    return ek_paired(op, left + (b - op->zero_b) * op->factor_b);
}

#endif
