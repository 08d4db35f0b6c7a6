/* Reading integer tensors, and passing gradients back through how they are read. */
#ifndef FEDKIT_INT_TENSOR_H
#define FEDKIT_INT_TENSOR_H

#include "int_kernels.h"
#include "int_simd.h"
#include "random.h"

INLINE ptrdiff_t int_plane(const struct int_tensor *t, int tile, int channel) {
    return ((ptrdiff_t)tile * t->channels + channel) * t->plane * ILANES;
}

INLINE int int_tiles(const struct int_tensor *t) {
    return (int)((t->examples + ILANES - 1) / ILANES);
}

/* Lanes of a tile that hold examples. */
INLINE int int_valid(const struct int_tensor *t, int tile) {
    int64_t left = t->examples - (int64_t)tile * ILANES;
    return left < ILANES ? (int)left : ILANES;
}

INLINE int32_t half_of(int32_t shift) { return shift ? 1 << (shift - 1) : 0; }

/* Gradients are summed again, over all pixels, and must not lean to one side. */
INLINE int32_t shift_half_even(int32_t x, int32_t shift) {
    const int32_t below = shift ? (1 << (shift - 1)) - 1 : 0;
    return (x + below + ((x >> shift) & (shift != 0))) >> shift;
}

INLINE int32_t clamp(int32_t x, int32_t low, int32_t high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* How one channel is read. */
struct int_reading {
    int32_t a, b, shift, low, high;
};

INLINE struct int_reading int_reading_of(const struct int_read *r, int channel) {
    struct int_reading how = {r->a[channel], r->b[channel] + half_of(r->shift[channel]),
                              r->shift[channel], r->low, r->high};
    return how;
}

INLINE int32_t int_value(const struct int_reading *how, int32_t x) {
    return clamp((how->a * x + how->b) >> how->shift, how->low, how->high);
}

/* How one channel's gradient becomes that of raw. */
struct int_passing {
    int32_t a, b, c, shift, limit, factor;
    uint32_t mask, key_low, key_high;
};

INLINE struct int_passing int_passing_of(const struct int_chain *chain, int channel) {
    struct int_passing how = {chain->a[channel], chain->b[channel], chain->c[channel],
                              chain->shift[channel], chain->limit, 1, 0, 0, 0};
    if (chain->factor) how.factor = chain->factor[channel];
    if (chain->random) {
        how.mask = (1u << how.shift) - 1;
        how.key_low = chain->key_low;
        how.key_high = chain->key_high;
    }
    return how;
}

#define CODE_MOST 127

/* A norm that cut a value off passes no gradient along it. */
INLINE int16_t uncut_gradient(int16_t g, int16_t x) {
    return (int16_t)(g & -((x > -CODE_MOST) & (x < CODE_MOST)));
}

/* Of a code: by shifts, for which GCC 12 keeps to 16 bits, as it does not for comparisons. */
INLINE int16_t sign_of(int16_t x) { return (int16_t)((x >> 15) + ((uint16_t)-x >> 15)); }

/* A run of pixels of one channel: where its gradients and values are, the position of the first
 * pixel of the first example among all elements of the tensor, and from there to the next
 * example. Lanes from `valid` on become 0. */
struct int_run {
    const int16_t *g;
    const int8_t *x;
    uint32_t counter, step;
    int valid;
};

INLINE struct int_run int_run_of(const struct int_tensor *t, int tile, int channel) {
    const ptrdiff_t at = int_plane(t, tile, channel);
    struct int_run run = {t->gradient + at, t->x + at, 0, (uint32_t)(t->channels * t->plane),
                          int_valid(t, tile)};
    run.counter = (uint32_t)tile * ILANES * run.step + (uint32_t)(channel * t->plane);
    return run;
}

/* How something is added to one channel's gradient. */
struct int_mixing {
    int32_t a, b, shift;
};

INLINE struct int_mixing int_mixing_of(const struct int_mix *mix, int channel) {
    struct int_mixing how = {mix->a[channel], mix->b[channel], mix->shift[channel]};
    return how;
}

/* Write ILANES gradients, or add them to what is there. */
INLINE void put_pixel(const struct int_mixing *how, int accumulate, const int16_t *new,
                      int16_t *to) {
    if (!accumulate) {
        memcpy(to, new, ILANES * sizeof *to);
        return;
    }
    for (int i = 0; i < ILANES; i++) {
        const int32_t sum = how->a * to[i] + how->b * new[i];
        to[i] = (int16_t)clamp(shift_half_even(sum, how->shift), -32767, 32767);
    }
}

#endif
