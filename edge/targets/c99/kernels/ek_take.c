/* Values from other places. */
#include "ek_take.h"
#include "ek_simd.h"

void ek_take(const ek_places *places, const ek_planes *in, const ek_planes *out, const uint8_t *x,
             uint8_t *y) {
    const uint16_t *columns = places->columns;
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, y += out->plane) {
        const uint8_t *plane = x + places->channels[c] * in->plane;
        for (int32_t i = 0; i < out->height; i++) {
            const uint8_t *from = plane + places->rows[i] * in->row;
            uint8_t *to = y + i * out->row;
            if (places->is_run) {
                memcpy(to, from + columns[0], (size_t)out->width);
            } else {
                for (int32_t j = 0; j < out->width; j++) to[j] = from[columns[j]];
            }
        }
        ek_halo_of(out, y);
    }
}
