/* Products of matrices: of a row of pixels, each channel of the first times one number of the second,
 * summed for as many pixels as fit. */
#include "ek_matmul.h"
#include "ek_plain.h"

#define EK_NO_ZERO 128 /* the byte of 0 in the second */

/* The sums of `count` pixels, less what the zero point of the first adds. */
static void ek_products(int32_t *sums, const ek_planes *a, const uint8_t *x, const uint8_t *y,
                        int32_t count) {
    int32_t offset = 0;
    for (int32_t c = 0; c < a->channels; c++) offset -= a->zero * (y[c] - EK_NO_ZERO);
    for (int32_t j = 0; j < count; j++) sums[j] = offset;
    for (int32_t c = 0; c < a->channels; c++) {
        const int32_t factor = y[c] - EK_NO_ZERO;
        const uint8_t *pixels = x + c * a->plane;
        for (int32_t j = 0; j < count; j++) sums[j] += pixels[j] * factor;
    }
}

static void ek_put_products(const ek_product_scale *scale, const int32_t *sums, uint8_t *z,
                            int32_t count) {
    const int64_t half = INT64_C(1) << (scale->shift - 1);
    for (int32_t j = 0; j < count; j++) {
        const int64_t product = (sums[j] * (int64_t)scale->multiplier + half) >> scale->shift;
        z[j] = ek_clamp(product + scale->zero, 0, 255);
    }
}

void ek_matmul(const ek_product_scale *scale, const ek_planes *a, const ek_planes *b,
               const ek_planes *out, const uint8_t *x, const uint8_t *y, uint8_t *z) {
    int32_t sums[EK_CHUNK];
    ek_halo_before(out, z);
    for (int32_t n = 0; n < out->channels; n++) {
        const uint8_t *from = y + n * b->plane;
        uint8_t *to = z + n * out->plane;
        for (int32_t i = 0; i < out->height; i++)
            for (int32_t j = 0; j < out->width; j += EK_CHUNK) {
                const int32_t count = out->width - j < EK_CHUNK ? out->width - j : EK_CHUNK;
                ek_products(sums, a, x + i * a->row + j, from + i * b->row, count);
                ek_put_products(scale, sums, to + i * out->row + j, count);
            }
        ek_halo_of(out, to);
    }
}
