/* Norms over the channels of each place. */
#ifndef EK_CHANNEL_NORM_H
#define EK_CHANNEL_NORM_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* With v the bytes of a place less their zero point, n of them, S = sum v, or 0 where it is not
 * `centred`, and D = n sum v^2 - S^2 + eps, a normalised value is (n v - S) / sqrt(D), and a byte of
 * the result clamp(zero + (normalised * factor + offset >> shift), low, high), where `offset` holds
 * the half that rounds. There are at most 2^21 channels, eps is 1 .. 2^60, shift 1 .. 61. */
typedef struct {
    int32_t centred;
    const int32_t *factor; /* [channels] of 24 bits behind the point of a normalised value */
    const int64_t *offset; /* [channels] */
    int64_t eps;
    uint8_t shift, zero, low, high;
} ek_channel_scale;

/* Both tensors have the same shape. */
void ek_channel_norm(const ek_channel_scale *norm, const ek_planes *in, const ek_planes *out,
                     const uint8_t *x, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
