/* Products of matrices of activations: of a row, the second packed as weights of a dense convolution,
 * and the first as its patches, 16 pixels at a time. */
#include "ek_multiply.h"
#include "ek_packed.h"
#include "ek_plain.h"

#ifdef EK_SIMD

static void ek_multiply_row(const ek_multiplication *m, const ek_scale *scale, const ek_packed *b,
                            const uint8_t *x, uint8_t *z, uint8_t *patches) {
    for (int32_t j = 0; j < m->out.width; j += 16) {
        const int32_t count = m->out.width - j < 16 ? m->out.width - j : 16;
        ek_patches_of(x + j, m->a.plane, b->terms, patches);
        for (int32_t c = 0; c < m->out.channels; c += 4) {
            ek_sixteen sums[4];
            ek_four_rows(b, c, patches, sums);
            for (int32_t i = 0; i < 4 && c + i < m->out.channels; i++) {
                uint8_t bytes[16];
                ek_store16(bytes, ek_scaled_sixteen(scale, sums[i]));
                ek_copy(z + (c + i) * m->out.plane + j, bytes, count);
            }
        }
    }
}

void ek_multiply(const ek_multiplication *m, const uint8_t *x, const uint8_t *y, uint8_t *z,
                 void *scratch) {
    const int32_t terms = m->a.channels;
    uint8_t *at = (uint8_t *)scratch;
    const ek_packed b = {at, terms, (terms + EK_DEEP - 1) / EK_DEEP};
    uint8_t *patches = at + EK_PACKED(m->out.channels, terms);
    int8_t *pairs = (int8_t *)(patches + 64 * EK_PAIRS_OF(terms));
    ek_scale scale = ek_scale_of(&m->scale);
    ek_scale_channel(&scale, &m->scale, 0, m->near);
    ek_halo_before(&m->out, z);
    for (int32_t i = 0; i < m->out.height; i++) {
        ek_pack_channels(&b, y + i * m->b.row, m->b.plane, m->out.channels, m->a.zero, pairs);
        ek_multiply_row(m, &scale, &b, x + i * m->a.row, z + i * m->out.row, patches);
    }
    ek_halos(&m->out, z);
}

#else

void ek_multiply(const ek_multiplication *m, const uint8_t *x, const uint8_t *y, uint8_t *z,
                 void *scratch) {
    const ek_scaler scaler = ek_scaler_of(&m->scale, 0);
    (void)scratch;
    ek_halo_before(&m->out, z);
    for (int32_t n = 0; n < m->out.channels; n++)
        for (int32_t i = 0; i < m->out.height; i++)
            for (int32_t j = 0; j < m->out.width; j++) {
                const uint8_t *from = x + i * m->a.row + j, *by = y + n * m->b.plane + i * m->b.row;
                int32_t sum = 0;
                for (int32_t c = 0; c < m->a.channels; c++, from += m->a.plane)
                    sum += (*from - m->a.zero) * (by[c] - 128);
                z[n * m->out.plane + i * m->out.row + j] = ek_scaled(scaler, sum);
            }
    ek_halos(&m->out, z);
}

#endif
