/* Channels as places. */
#include "ek_depth_to_space.h"
#include "ek_simd.h"

void ek_depth_to_space(const ek_pixel_blocks *blocks, const ek_planes *in, const ek_planes *out,
                       const uint8_t *x, uint8_t *y) {
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, y += out->plane) {
        const uint8_t *first = x + c * blocks->step * in->plane;
        for (int32_t i = 0; i < out->height; i++) {
            const uint8_t *from = first + i / blocks->height * in->row;
            const int32_t step = blocks->pixel * in->plane;
            from += i % blocks->height * blocks->width * step;
            for (int32_t b = 0; b < blocks->width; b++) {
                const uint8_t *column = from + b * step;
                uint8_t *to = y + i * out->row + b;
                for (int32_t j = 0; j < in->width; j++, to += blocks->width) *to = column[j];
            }
        }
        ek_halo_of(out, y);
    }
}
