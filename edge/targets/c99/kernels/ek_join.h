/* Maps in a larger one. */
#ifndef EK_JOIN_H
#define EK_JOIN_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Write all rows of `in` at (top, left) of `out`, which is as large as all that is put there. */
void ek_join(const ek_planes *in, const ek_planes *out, int32_t top, int32_t left, const uint8_t *x,
             uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
