/* Axes in another order, and other axes of the same values. */
#include "ek_transpose.h"
#include "ek_simd.h"

void ek_transpose(const ek_order *order, const ek_planes *in, const ek_planes *out,
                  const uint8_t *x, uint8_t *y) {
    const int32_t steps[3] = {in->row, 1, in->plane};
    const int32_t row = steps[order->rows], column = steps[order->columns];
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, x += steps[order->channels], y += out->plane) {
        for (int32_t i = 0; i < out->height; i++) {
            const uint8_t *from = x + i * row;
            uint8_t *to = y + i * out->row;
            for (int32_t j = 0; j < out->width; j++) to[j] = from[j * column];
        }
        ek_halo_of(out, y);
    }
}

/* The pixel after one, or of the next channel. */
typedef struct {
    int32_t row, column, channel;
} ek_at;

static ek_at ek_next(const ek_planes *planes, ek_at at) {
    if (++at.channel == planes->channels) {
        at.channel = 0;
        if (++at.column == planes->width) {
            at.column = 0;
            at.row++;
        }
    }
    return at;
}

static int32_t ek_offset(const ek_planes *planes, ek_at at) {
    return at.channel * planes->plane + at.row * planes->row + at.column;
}

void ek_reshape(const ek_planes *in, const ek_planes *out, const uint8_t *x, uint8_t *y) {
    const int32_t count = in->channels * in->height * in->width;
    ek_at from = {0, 0, 0}, to = {0, 0, 0};
    ek_halo_before(out, y);
    for (int32_t i = 0; i < count; i++) {
        y[ek_offset(out, to)] = x[ek_offset(in, from)];
        from = ek_next(in, from);
        to = ek_next(out, to);
    }
    ek_halos(out, y);
}
