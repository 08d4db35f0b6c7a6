/* Channels as places. */
#ifndef EK_DEPTH_TO_SPACE_H
#define EK_DEPTH_TO_SPACE_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A pixel becomes a block of height * width pixels. Pixel (i, j) of channel k of the output is channel
 * k * step + (i * width + j) * pixel of the input. */
typedef struct {
    int32_t height, width, step, pixel;
} ek_pixel_blocks;

void ek_depth_to_space(const ek_pixel_blocks *blocks, const ek_planes *in, const ek_planes *out,
                       const uint8_t *x, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
