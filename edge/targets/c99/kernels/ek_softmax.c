/* Softmax over channels, in integers. */
#include "ek_softmax.h"
#include "ek_plain.h"

/* The largest of the channels of a pixel, and the sum of the powers of what is below it. */
static uint8_t ek_most(const ek_planes *in, const uint8_t *x) {
    uint8_t most = 0;
    for (int32_t c = 0; c < in->channels; c++)
        if (x[c * in->plane] > most) most = x[c * in->plane];
    return most;
}

static uint32_t ek_power_sum(const ek_powers *powers, const ek_planes *in, const uint8_t *x,
                             uint8_t most) {
    uint32_t sum = 0;
    for (int32_t c = 0; c < in->channels; c++) sum += powers->entries[most - x[c * in->plane]];
    return sum;
}

static void ek_softmax_pixel(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                             const uint8_t *x, uint8_t *y) {
    const uint8_t most = ek_most(in, x);
    const uint32_t sum = ek_power_sum(powers, in, x, most);
    for (int32_t c = 0; c < in->channels; c++) {
        const uint32_t power = powers->entries[most - x[c * in->plane]];
        const uint32_t share = (256 * power + (sum >> 1)) / sum;
        y[c * out->plane] = (uint8_t)(share < 255 ? share : 255);
    }
}

/* 16 * ln(x) in 2^-24, a little below: bits of log2 by squaring. */
static int64_t ek_log(uint32_t x) {
    int64_t found = 31;
    uint64_t mantissa = x;
    for (; !(mantissa >> 31); found--) mantissa <<= 1;
    for (int32_t bit = 0; bit < 24; bit++) {
        mantissa = (mantissa * mantissa) >> 31;
        const uint64_t carry = mantissa >> 32;
        mantissa >>= carry;
        found = 2 * found + (int64_t)carry;
    }
    return (found * INT64_C(744261118)) >> 26;
}

static void ek_log_softmax_pixel(const ek_powers *powers, const ek_planes *in,
                                 const ek_planes *out, const uint8_t *x, uint8_t *y) {
    const uint8_t most = ek_most(in, x);
    const int64_t log = ek_log(ek_power_sum(powers, in, x, most)) - powers->log_one;
    for (int32_t c = 0; c < in->channels; c++) {
        const int64_t below = powers->step * (x[c * in->plane] - most) - log;
        y[c * out->plane] = ek_clamp(((below + (1 << 23)) >> 24) + out->zero, 0, 255);
    }
}

typedef void (*ek_of_pixel)(const ek_powers *, const ek_planes *, const ek_planes *,
                            const uint8_t *, uint8_t *);

static void ek_each_pixel(ek_of_pixel make, const ek_powers *powers, const ek_planes *in,
                          const ek_planes *out, const uint8_t *x, uint8_t *y) {
    ek_halo_before(out, y);
    for (int32_t i = 0; i < out->height; i++)
        for (int32_t j = 0; j < out->width; j++)
            make(powers, in, out, x + i * in->row + j, y + i * out->row + j);
    for (int32_t c = 0; c < out->channels; c++) ek_halo_of(out, y + c * out->plane);
}

void ek_softmax(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                const uint8_t *x, uint8_t *y) {
    ek_each_pixel(ek_softmax_pixel, powers, in, out, x, y);
}

void ek_log_softmax(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                    const uint8_t *x, uint8_t *y) {
    ek_each_pixel(ek_log_softmax_pixel, powers, in, out, x, y);
}
