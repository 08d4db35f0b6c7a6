/* Softmax over channels, in integers. */
#include "ek_softmax.h"
#include "ek_shares.h"

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

#ifdef EK_SIMD

static void ek_softmax_pixels(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                              const uint8_t *x, uint8_t *y, int32_t count) {
    const ek_sums_of_powers s = ek_sum_powers(powers, x, in->plane, in->channels, 0);
    const ek_share share = ek_share_of(&s);
    for (int32_t c = in->channels; c > 0; c--, x += in->plane, y += out->plane) {
        uint32_t power[EK_TOGETHER];
        uint8_t bytes[EK_TOGETHER];
        for (int32_t k = 0; k < EK_TOGETHER; k++)
            power[k] = powers->entries[(uint8_t)(s.most[k] - x[k])];
        ek_put_shares(&share, power, bytes);
        ek_copy(y, bytes, count);
    }
}

static void ek_log_softmax_pixels(const ek_powers *powers, const ek_planes *in,
                                  const ek_planes *out, const uint8_t *x, uint8_t *y,
                                  int32_t count) {
    const ek_sums_of_powers s = ek_sum_powers(powers, x, in->plane, in->channels, 0);
    const int64_t step = powers->step;
    const uint8_t zero = out->zero;
    int64_t log[EK_TOGETHER];
    for (int32_t k = 0; k < EK_TOGETHER; k++) log[k] = ek_log(s.sum[k]) - powers->log_one;
    for (int32_t c = in->channels; c > 0; c--, x += in->plane, y += out->plane) {
        uint8_t bytes[EK_TOGETHER];
        for (int32_t k = 0; k < EK_TOGETHER; k++) {
            const int64_t below = step * (x[k] - s.most[k]) - log[k];
            bytes[k] = ek_clamp(((below + (1 << 23)) >> 24) + zero, 0, 255);
        }
        ek_copy(y, bytes, count);
    }
}

typedef void (*ek_of_pixels)(const ek_powers *, const ek_planes *, const ek_planes *,
                             const uint8_t *, uint8_t *, int32_t);

static void ek_each_pixel(ek_of_pixels make, const ek_powers *powers, const ek_planes *in,
                          const ek_planes *out, const uint8_t *x, uint8_t *y) {
    const ek_runs runs = ek_runs_of(out, in->row);
    ek_halo_before(out, y);
    for (int32_t i = 0; i < runs.count; i++)
        for (int32_t j = 0; j < runs.length; j += EK_TOGETHER) {
            const int32_t rest = runs.length - j;
            make(powers, in, out, x + i * in->row + j, y + i * out->row + j,
                 rest < EK_TOGETHER ? rest : EK_TOGETHER);
        }
    ek_halos(out, y);
}

#define ek_softmax_of ek_softmax_pixels
#define ek_log_softmax_of ek_log_softmax_pixels

#else

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
    ek_halos(out, y);
}

#define ek_softmax_of ek_softmax_pixel
#define ek_log_softmax_of ek_log_softmax_pixel

#endif

void ek_softmax(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                const uint8_t *x, uint8_t *y) {
    ek_each_pixel(ek_softmax_of, powers, in, out, x, y);
}

void ek_log_softmax(const ek_powers *powers, const ek_planes *in, const ek_planes *out,
                    const uint8_t *x, uint8_t *y) {
    ek_each_pixel(ek_log_softmax_of, powers, in, out, x, y);
}
