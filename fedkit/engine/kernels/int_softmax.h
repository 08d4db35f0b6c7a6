/* Softmax in integers: shares of scores, and what a score gets. integer/softmax_shares.py defines them. */
#ifndef FEDKIT_INT_SOFTMAX_H
#define FEDKIT_INT_SOFTMAX_H

#include "int_pass.h"

#define OCTAVE_BITS 10 /* behind the point */
#define POWER_BITS 15

/* 2^-(f / 2^OCTAVE_BITS) for f below 2^OCTAVE_BITS, POWER_BITS behind the point. */
INLINE int32_t power_of(int32_t f) {
    const int32_t half = 1 << (OCTAVE_BITS - 1);
    int32_t p = (f * 1286 + half) >> OCTAVE_BITS;
    p = (f * (7561 - p) + half) >> OCTAVE_BITS;
    p = (f * (22659 - p) + half) >> OCTAVE_BITS;
    return (1 << POWER_BITS) - p;
}

INLINE int16_t share_code(const struct int_shares *how, int32_t below) {
    const int32_t near = (below < how->cut ? below : how->cut) << how->left;
    const int32_t octaves = (near * how->a + (1 << (POWER_BITS - 1))) >> POWER_BITS;
    const int32_t whole = octaves >> OCTAVE_BITS;
    const int32_t power = power_of(octaves & ((1 << OCTAVE_BITS) - 1));
    const int32_t code = (power * how->top + (1 << (POWER_BITS - 1 + whole))) >> (POWER_BITS + whole);
    return (int16_t)(code & -(below <= how->cut));
}

INLINE int32_t bit_length(int32_t x) {
    int32_t length = 0;
    for (int step = 16; step; step >>= 1) {
        const int32_t by = (x >> step) ? step : 0;
        length += by;
        x >>= by;
    }
    return length + (x != 0);
}

/* Turn `count` scores, a `step` apart, into shares; the others up to `all` into 0. */
static void share_row(const struct int_shares *how, int16_t *row, ptrdiff_t step, int count,
                      int all) {
    int16_t most[ILANES];
    int32_t total[ILANES] = {0}, factor[ILANES], shift[ILANES], half[ILANES];
    memcpy(most, row, sizeof most);
    for (int j = 1; j < count; j++)
        for (int i = 0; i < ILANES; i++)
            most[i] = row[j * step + i] > most[i] ? row[j * step + i] : most[i];
    for (int j = 0; j < count; j++) {
        int16_t *at = row + j * step;
        for (int i = 0; i < ILANES; i++) {
            at[i] = share_code(how, most[i] - at[i]);
            total[i] += at[i];
        }
    }
    for (int i = 0; i < ILANES; i++) {
        const int32_t length = bit_length(total[i]);
        factor[i] = (int32_t)((((int64_t)1 << (length + POWER_BITS - 1)) - 1) / total[i]);
        shift[i] = length + POWER_BITS - 1 - how->bits;
        half[i] = half_of(shift[i]);
    }
    for (int j = 0; j < count; j++) {
        int16_t *at = row + j * step;
        for (int i = 0; i < ILANES; i++)
            at[i] = (int16_t)((at[i] * factor[i] + half[i]) >> shift[i]);
    }
    for (int j = count; j < all; j++) memset(row + j * step, 0, ILANES * sizeof *row);
}

/* The mean of gradients `g` by shares, of `count` that are a step apart. */
INLINE void share_mean(const struct int_shares *how, const int16_t *share, ptrdiff_t share_step,
                       const int16_t *g, ptrdiff_t g_step, int count, int32_t *mean) {
    for (int i = 0; i < ILANES; i++) mean[i] = 0;
    for (int j = 0; j < count; j++)
        for (int i = 0; i < ILANES; i++) mean[i] += share[j * share_step + i] * g[j * g_step + i];
    for (int i = 0; i < ILANES; i++) mean[i] = shift_half_even(mean[i], how->bits);
}

/* What a score gets: share * (g - mean). */
INLINE int32_t share_slope(int16_t share, int16_t g, int32_t mean) {
    return share * clamp(g - mean, -32767, 32767);
}

/* The shares of a place of a tile, [channels][ILANES]. */
static void softmax_place(const struct int_softmax *s, int tile, int pixel, int16_t *room) {
    const struct int_tensor *t = s->source;
    for (int c = 0; c < t->channels; c++) {
        const struct int_reading how = int_reading_of(&s->read, c);
        const int8_t *x = t->x + int_plane(t, tile, c) + (ptrdiff_t)pixel * ILANES;
        for (int i = 0; i < ILANES; i++) room[c * ILANES + i] = (int16_t)int_value(&how, x[i]);
    }
    share_row(&s->shares, room, ILANES, t->channels, t->channels);
}

/* Likewise with the passed gradients behind them, and their mean. */
static void softmax_slopes(const struct int_softmax *s, int tile, int pixel, int16_t *room,
                           int32_t *mean) {
    const struct int_tensor *t = s->target;
    int16_t *g = room + (ptrdiff_t)t->channels * ILANES;
    softmax_place(s, tile, pixel, room);
    for (int c = 0; c < t->channels; c++) {
        const struct int_passing how = int_passing_of(&s->chain, c);
        const struct int_run run = int_run_of(t, tile, c);
        pass_line(&s->chain, &how, &run, pixel, 1, g + c * ILANES);
    }
    share_mean(&s->shares, room, ILANES, g, ILANES, t->channels, mean);
}

void NAME(int_softmax_forward)(const struct int_softmax *s, int first, int last, int16_t *room) {
    const struct int_tensor *t = s->target;
    for (int tile = first; tile < last; tile++) {
        for (int pixel = 0; pixel < t->plane; pixel++) {
            softmax_place(s, tile, pixel, room);
            for (int c = 0; c < t->channels; c++)
                memcpy(t->raw + int_plane(t, tile, c) + (ptrdiff_t)pixel * ILANES,
                       room + c * ILANES, ILANES * sizeof *room);
        }
    }
}

/* Raise `peak` [channels] to the largest magnitudes of slopes. */
void NAME(int_softmax_peak)(const struct int_softmax *s, int first, int last, int16_t *room,
                            int32_t *peak) {
    const int channels = s->target->channels;
    for (int tile = first; tile < last; tile++) {
        for (int pixel = 0; pixel < s->target->plane; pixel++) {
            int32_t mean[ILANES];
            softmax_slopes(s, tile, pixel, room, mean);
            for (int c = 0; c < channels; c++) {
                const int16_t *share = room + c * ILANES, *g = share + channels * ILANES;
                for (int i = 0; i < int_valid(s->target, tile); i++) {
                    const int32_t slope = share_slope(share[i], g[i], mean[i]);
                    const int32_t size = slope < 0 ? -slope : slope;
                    peak[c] = size > peak[c] ? size : peak[c];
                }
            }
        }
    }
}

/* Write or add slopes >> shift_in. */
void NAME(int_softmax_backward)(const struct int_softmax *s, int first, int last, int16_t *room) {
    const struct int_tensor *t = s->source;
    for (int tile = first; tile < last; tile++) {
        for (int pixel = 0; pixel < t->plane; pixel++) {
            int32_t mean[ILANES];
            softmax_slopes(s, tile, pixel, room, mean);
            for (int c = 0; c < t->channels; c++) {
                const struct int_mixing put = int_mixing_of(&s->mix, c);
                const int16_t *share = room + c * ILANES, *g = share + t->channels * ILANES;
                int16_t value[ILANES];
                for (int i = 0; i < ILANES; i++)
                    value[i] = (int16_t)shift_half_even(share_slope(share[i], g[i], mean[i]),
                                                        s->shift_in[c]);
                put_pixel(&put, s->accumulate, value,
                          t->gradient + int_plane(t, tile, c) + (ptrdiff_t)pixel * ILANES);
            }
        }
    }
}

#endif
