/* Products of two activations as a dense convolution has them: one packed as weights, the other as
 * patches of 16 pixels. */
#ifndef EK_PACKED_H
#define EK_PACKED_H

#include "ek_multiply.h"
#include "ek_simd.h"

#ifdef EK_SIMD

/* Weights of a matrix product in the order of ek_tile, 4 rows after 4, each with its biases. */
typedef struct {
    uint8_t *at;
    int32_t terms, patches;
} ek_packed;

/* Where 4 rows begin, of which the first is a multiple of 4. */
static inline uint8_t *ek_packed_rows(const ek_packed *p, int32_t row) {
    return p->at + EK_PACKED(row, p->terms);
}

/* The 4 biases of some rows lie behind their weights. */
static inline void ek_pack_rows(const ek_packed *p, int32_t row, const int8_t *pairs,
                                const int32_t *sums, int32_t zero) {
    uint8_t *to = ek_packed_rows(p, row);
    int32_t bias[4];
    for (int32_t i = 0; i < 4; i++) bias[i] = -zero * sums[i];
    ek_unpack(pairs, EK_PAIRS_OF(p->terms), to, bias);
    memcpy(to + 16 * EK_PAIRS_OF(p->terms), bias, sizeof bias);
}

/* Rows are channels, `step` bytes apart, terms are pixels. */
static inline void ek_pack_channels(const ek_packed *p, const uint8_t *x, int32_t step,
                                    int32_t channels, int32_t zero, int8_t *pairs) {
    for (int32_t c = 0; c < channels; c += 4) {
        int32_t sums[4] = {0};
        for (int32_t j = 0; j < p->terms; j += 2) {
            const uint16_t mask = j + 1 < p->terms ? 0xFFFF : 0xFF;
            for (int32_t i = 0; i < 4; i++) {
                int8_t *to = pairs + 4 * j + 2 * i;
                uint16_t two = 0x8080;
                if (c + i < channels) memcpy(&two, x + (c + i) * step + j, 2);
                two = (uint16_t)((two ^ 0x8080) & mask);
                memcpy(to, &two, 2);
                sums[i] += to[0] + to[1];
            }
        }
        ek_pack_rows(p, c, pairs, sums, zero);
    }
}

/* Patches of 16 pixels: channels are `step` bytes apart. */
static inline void ek_patches_of(const uint8_t *x, int32_t step, int32_t terms, uint8_t *to) {
    for (int32_t c = 0; c < terms; c += EK_DEEP, to += 64) {
        ek_bytes16 taps[EK_DEEP];
        for (int32_t i = 0; i < EK_DEEP; i++)
            taps[i] = ek_load16(x + (c + i < terms ? c + i : c) * step);
        ek_store_patch(to, taps);
    }
}

/* 4 rows of a product with 16 pixels. */
EK_INLINE void ek_four_rows(const ek_packed *p, int32_t row, const uint8_t *patches,
                            ek_sixteen *sums) {
    const uint8_t *weights = ek_packed_rows(p, row);
    int32_t bias[4];
    memcpy(bias, weights + 16 * EK_PAIRS_OF(p->terms), sizeof bias);
    ek_tile(weights, patches, p->patches, bias, sums);
}

#endif
#endif
