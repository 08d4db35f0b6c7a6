/* Softmax over the channels of each pixel, and its logarithm. */
#ifndef EK_SOFTMAX_H
#define EK_SOFTMAX_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* entries[k] stands for e^(-k steps of the input): a sum over all channels is below 2^32, and so is
 * 256 times one. Of the logarithm: a step of the input, and the logarithm of what stands for 1, in
 * 2^-24 of the output. */
typedef struct {
    const uint32_t *entries; /* [256] */
    int64_t step, log_one;
} ek_powers;

/* Both tensors have the same height and width; the output's zero point is 0 or 255. */
void ek_softmax(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                const uint8_t *x, uint8_t *y);
void ek_log_softmax(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                    const uint8_t *x, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
