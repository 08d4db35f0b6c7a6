/* Axes in another order, and other axes of the same values. */
#ifndef EK_TRANSPOSE_H
#define EK_TRANSPOSE_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which axis of the input those of the output are: 0 rows, 1 columns, 2 channels. */
typedef struct {
    int32_t rows, columns, channels;
} ek_order;

void ek_transpose(const ek_order *order, const ek_planes *in, const ek_planes *out,
                  const uint8_t *x, uint8_t *y);

/* Both have as many values, which keep their order through rows, columns and then channels. */
void ek_reshape(const ek_planes *in, const ek_planes *out, const uint8_t *x, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
