/* Convolution by all weights, for small memories: patches of four pixels at a time. */
#include "ek_dsp.h"

#ifdef EK_DSP

#define EK_PATCH 4 /* pixels */

/* Patches: [taps / 4][pixels][2] pairs of taps, as halfwords. */
static void ek_fill_patches(const ek_full_conv *conv, const uint8_t *p, int32_t *to) {
    const int32_t *at = conv->at, *end = at + (conv->taps + 3) / 4 * 4;
    for (; at != end; at += 4, to += 2 * EK_PATCH)
        for (int32_t half = 0; half < 2; half++) {
            const uint32_t a = ek_load_word(p + at[2 * half]), b = ek_load_word(p + at[2 * half + 1]);
            const uint32_t x = (uint32_t)ek_even(a), y = (uint32_t)ek_even(b);
            const uint32_t X = (uint32_t)ek_odd(a), Y = (uint32_t)ek_odd(b);
            to[half] = (int32_t)((x & 0xFFFF) | y << 16);
            to[half + 2] = (int32_t)((X & 0xFFFF) | Y << 16);
            to[half + 4] = (int32_t)(x >> 16 | (y & 0xFFFF0000));
            to[half + 6] = (int32_t)(X >> 16 | (Y & 0xFFFF0000));
        }
}

/* Of four weights, bytes 0 and 2 meet the first pair, 1 and 3 the second. */
static inline ek_four_sums ek_patches_four(const int8_t *weights, const int32_t *patches,
                                           const int32_t *end, int32_t bias) {
    ek_four_sums s = {bias, bias, bias, bias};
    for (; patches != end; patches += 2 * EK_PATCH, weights += 4) {
        uint32_t four;
        memcpy(&four, weights, sizeof four);
        const int32_t first = (int32_t)__sxtb16((int32_t)four);
        const int32_t last = (int32_t)__sxtb16((int32_t)__ror(four, 8));
        s.a = __smlad(first, patches[0], s.a), s.a = __smlad(last, patches[1], s.a);
        s.b = __smlad(first, patches[2], s.b), s.b = __smlad(last, patches[3], s.b);
        s.c = __smlad(first, patches[4], s.c), s.c = __smlad(last, patches[5], s.c);
        s.d = __smlad(first, patches[6], s.d), s.d = __smlad(last, patches[7], s.d);
    }
    return s;
}

static void ek_finish_four(const ek_full_conv *conv, int32_t channel, ek_four_sums s,
                           const uint8_t *other, uint8_t *to) {
    ek_quick quick;
    if (ek_quick_of(&quick, &conv->requant, channel)) {
        to[0] = ek_quickly(quick, s.a), to[1] = ek_quickly(quick, s.b);
        to[2] = ek_quickly(quick, s.c), to[3] = ek_quickly(quick, s.d);
    } else {
        const ek_scaler scaler = ek_scaler_of(&conv->requant, channel);
        to[0] = ek_scaled(scaler, s.a), to[1] = ek_scaled(scaler, s.b);
        to[2] = ek_scaled(scaler, s.c), to[3] = ek_scaled(scaler, s.d);
    }
    if (conv->sum && ek_sum_is_quick(conv->sum)) {
        ek_sum_quickly(conv->sum, to, other, to, EK_PATCH);
    } else if (conv->sum) {
        const ek_sum sum = *conv->sum;
        for (int32_t x = 0; x < EK_PATCH; x++) to[x] = ek_summed(sum, to[x], other[x]);
    }
}

/* All output channels of `count` pixels, at most four. */
static void ek_full_pixels(const ek_full_conv *conv, const uint8_t *other, uint8_t *out,
                           int32_t count, const int32_t *patches) {
    const int32_t fours = (conv->taps + 3) / 4;
    const int8_t *weights = conv->weights;
    for (int32_t c = 0; c < conv->out.channels; c++, weights += 4 * fours) {
        const ek_four_sums sums = ek_patches_four(weights, patches, patches + fours * 2 * EK_PATCH,
                                                  conv->requant.bias[c]);
        uint8_t last[EK_PATCH];
        ek_finish_four(conv, c, sums, other, last);
        if (count == EK_PATCH) {
            memcpy(out, last, EK_PATCH);
        } else {
            ek_copy(out, last, count);
        }
        out += conv->out.plane;
        other += conv->out.plane;
    }
}

static void ek_full_planes(const ek_full_conv *conv, const uint8_t *in, const uint8_t *other,
                           uint8_t *out, int32_t *patches) {
    const ek_runs runs = ek_runs_of(&conv->out, conv->in_row);
    for (int32_t y = 0; y < runs.count; y++) {
        const int32_t from = y * conv->in_row, to = y * conv->out.row;
        for (int32_t x = 0; x < runs.length; x += EK_PATCH) {
            const int32_t rest = runs.length - x;
            ek_fill_patches(conv, in + from + x, patches);
            ek_full_pixels(conv, other + to + x, out + to + x, rest < EK_PATCH ? rest : EK_PATCH,
                           patches);
        }
    }
    ek_halos(&conv->out, out);
}

#else

typedef struct {
    const ek_full_conv *conv;
    const int8_t *weights;
} ek_full_filter;

static void ek_full_taps(const void *state, const uint8_t *p, int32_t *sums, int32_t count) {
    const ek_full_filter *filter = (const ek_full_filter *)state;
    for (int32_t k = 0; k < filter->conv->taps; k++) {
        const int32_t byte = k / 4 * 4 + (k % 4 >> 1) + (k % 2) * 2;
        ek_tap(sums, p + filter->conv->at[k], filter->weights[byte], count);
    }
}

static void ek_full_planes(const ek_full_conv *conv, const uint8_t *in, const uint8_t *other,
                           uint8_t *out, int32_t *patches) {
    ek_channel c = {&conv->out, &conv->requant, conv->sum, 0, conv->in_row};
    ek_full_filter filter = {conv, conv->weights};
    (void)patches;
    for (; c.channel < conv->out.channels; c.channel++) {
        ek_plane(&c, ek_full_taps, &filter, in, other, out);
        filter.weights += (conv->taps + 3) / 4 * 4;
        out += conv->out.plane;
        other += conv->out.plane;
    }
}

#endif

void ek_conv_full(const ek_full_conv *conv, const uint8_t *in, const uint8_t *other, uint8_t *out,
                  void *scratch) {
    if (!conv->sum) other = out;
    ek_halo_before(&conv->out, out);
    ek_full_planes(conv, in, other, out, (int32_t *)scratch);
}
