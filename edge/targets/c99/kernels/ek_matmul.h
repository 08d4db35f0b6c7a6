/* Products of matrices. */
#ifndef EK_MATMUL_H
#define EK_MATMUL_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A sum of products becomes clamp(zero + (sum * multiplier + half >> shift)), shift 1 .. 62. */
typedef struct {
    int32_t multiplier;
    uint8_t shift, zero;
} ek_product_scale;

/* out[row][i][channel] = sum over c of a[row][i][c] * b[row][c][channel]: the channels of `a` are
 * the columns of `b`, of which the bytes have the zero point 128. At most 2^16 are summed. */
void ek_matmul(const ek_product_scale *scale, const ek_planes *a, const ek_planes *b,
               const ek_planes *out, const uint8_t *x, const uint8_t *y, uint8_t *z);

#ifdef __cplusplus
}
#endif
#endif
