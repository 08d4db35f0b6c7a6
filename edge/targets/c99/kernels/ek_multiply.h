/* Products of matrices of activations, one of which is packed as weights. */
#ifndef EK_MULTIPLY_H
#define EK_MULTIPLY_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of packed weights. */
#define EK_PAIRS_OF(count) (((count) + 1) / 2)
#define EK_PACKED(rows, terms) (((rows) + 3) / 4 * (16 * EK_PAIRS_OF(terms) + 16))

/* As ek_matmul, of `a` and `b`; the requantisation is of one channel and has no bias. */
typedef struct {
    ek_planes a, b, out;
    ek_requant scale;
    uint8_t near; /* as of ek_filter */
} ek_multiplication;

/* Bytes of scratch, for so many channels of the result and of `a`. */
#define EK_MULTIPLY_SCRATCH(channels, terms) (EK_PACKED(channels, terms) + 72 * EK_PAIRS_OF(terms))

void ek_multiply(const ek_multiplication *m, const uint8_t *x, const uint8_t *y, uint8_t *z,
                 void *scratch);

#ifdef __cplusplus
}
#endif
#endif
