/* Maps in a larger one. */
#include "ek_join.h"
#include "ek_simd.h"

void ek_join(const ek_planes *in, const ek_planes *out, int32_t top, int32_t left, const uint8_t *x,
             uint8_t *y) {
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, x += in->plane, y += out->plane) {
        for (int32_t i = 0; i < in->height; i++)
            memcpy(y + (top + i) * out->row + left, x + i * in->row, (size_t)in->width);
        ek_halo_of(out, y);
    }
}
