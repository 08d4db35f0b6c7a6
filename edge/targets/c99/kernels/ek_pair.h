/* Products, sums, differences and quotients of two tensors that need not have one shape. */
#ifndef EK_PAIR_H
#define EK_PAIR_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes from a plane, a row and a pixel of an operand to the next; 0 where it is repeated. */
typedef struct {
    int32_t plane, row, pixel;
} ek_steps;

/* With a' = a - zero_a and b' = b - zero_b:
 * ek_mul     clamp(zero + (a' * b' * factor_a + 2^(shift - 1) >> shift), low, high)
 * ek_sum_of  clamp(zero + (a' * factor_a + b' * factor_b + 2^(shift - 1) >> shift), low, high)
 * ek_div     clamp(zero + floor(a' * factor_a / (max(b', factor_b) << shift) + 1/2), low, high)
 * Of a product 0 <= factor_a <= 2^14; of a sum each is below 2^15, either sign; 1 <= shift <= 30.
 * Of a quotient 0 <= factor_a <= 2^17, 1 <= factor_b <= 255, and 1 <= shift <= 22. */
typedef struct {
    ek_planes out;
    ek_steps a, b;
    uint8_t zero_a, zero_b;
    int32_t factor_a, factor_b;
    uint8_t shift, zero, low, high;
    const uint8_t *constant; /* the operand whose pointer is 0 */
} ek_pair_op;

/* `out` must not be an operand. */
void ek_mul(const ek_pair_op *op, const uint8_t *a, const uint8_t *b, uint8_t *out);
void ek_div(const ek_pair_op *op, const uint8_t *a, const uint8_t *b, uint8_t *out);
void ek_sum_of(const ek_pair_op *op, const uint8_t *a, const uint8_t *b, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif
