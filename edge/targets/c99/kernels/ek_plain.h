/* Parts of the kernels in plain C. */
#ifndef EK_PLAIN_H
#define EK_PLAIN_H

#include <stddef.h>
#if defined(__STDC_HOSTED__) && __STDC_HOSTED__ == 0
extern
#ifdef __cplusplus
    "C"
#endif
    void *memcpy(void *to, const void *from, size_t count);
extern
#ifdef __cplusplus
    "C"
#endif
    void *memset(void *to, int value, size_t count);
#ifdef __GNUC__ /* a few bytes become loads and stores there too */
#define memcpy(to, from, count) __builtin_memcpy(to, from, count)
#define memset(to, value, count) __builtin_memset(to, value, count)
#endif
#else
#include <string.h>
#endif

#include "ek.h"

#ifdef __GNUC__ /* passing eight registers of sums costs as much as a tap */
#define EK_INLINE static inline __attribute__((always_inline))
#else
#define EK_INLINE static inline
#endif

#define EK_CHUNK 64 /* sums that plain kernels hold at once */

/* C99 leaves it open what >> does to a sign; here it must stay. */
typedef char ek_shifts_keep_signs[-1 >> 1 == -1 ? 1 : -1];

static inline uint8_t ek_clamp(int64_t x, uint8_t low, uint8_t high) {
    return (uint8_t)(x < low ? low : x > high ? high : x);
}

/* Requantisation of one channel, by value: writing bytes may change anything that has an address. */
typedef struct {
    int32_t multiplier, shift;
    uint8_t zero, low, high;
} ek_scaler;

static inline ek_scaler ek_scaler_of(const ek_requant *q, int32_t channel) {
    const ek_scaler s = {q->multiplier[channel], q->shift[channel], q->zero, q->low, q->high};
    return s;
}

static inline uint8_t ek_scaled(ek_scaler s, int32_t sum) {
    const int64_t half = (int64_t)1 << (s.shift - 1);
    const int64_t rounded = ((int64_t)sum * s.multiplier + half) >> s.shift;
    return ek_clamp(rounded + s.zero, s.low, s.high);
}

static inline uint8_t ek_summed(ek_sum s, uint8_t a, uint8_t b) {
    const int32_t total = a * s.scale_a + b * s.scale_b + s.offset;
    return ek_clamp((total >> s.shift) + s.zero, s.low, s.high);
}

/* (2 sum + count) / (2 count) of 16 bits is (2 sum + count) * multiplier >> 16 >> shift: for at most
 * 64 bytes the multiplier, 2^(16 + shift) / (2 count) rounded up, exceeds by less than matters. */
typedef struct {
    uint16_t count, multiplier;
    int32_t shift;
} ek_divisor;

static inline ek_divisor ek_divisor_of(int32_t count) {
    ek_divisor by = {(uint16_t)count, 0, 0};
    while (1 << by.shift < count) by.shift++;
    by.multiplier = (uint16_t)(((1 << (15 + by.shift)) + count - 1) / count);
    return by;
}

/* memset and memcpy of a few bytes, without a call. */
static inline void ek_fill(uint8_t *p, uint8_t value, int32_t count) {
    const uint64_t eight = value * UINT64_C(0x0101010101010101);
    if (count > 64) {
        memset(p, value, (size_t)count);
    } else if (count >= 8) {
        for (int32_t x = 0; x < count - 8; x += 8) memcpy(p + x, &eight, 8);
        memcpy(p + count - 8, &eight, 8);
    } else if (count >= 2) {
        for (int32_t x = 0; x < count - 2; x += 2) memcpy(p + x, &eight, 2);
        memcpy(p + count - 2, &eight, 2);
    } else if (count == 1) {
        *p = value;
    }
}
static inline void ek_copy(uint8_t *to, const uint8_t *from, int32_t count) {
    if (count >= 16) {
        for (int32_t x = 0; x < count - 16; x += 16) memcpy(to + x, from + x, 16);
        memcpy(to + count - 16, from + count - 16, 16);
    } else if (count >= 8) {
        memcpy(to, from, 8);
        memcpy(to + count - 8, from + count - 8, 8);
    } else if (count >= 4) {
        memcpy(to, from, 4);
        memcpy(to + count - 4, from + count - 4, 4);
    } else {
        for (int32_t x = 0; x < count; x++) to[x] = from[x];
    }
}

/* The halo before plane 0. */
static inline void ek_halo_before(const ek_planes *planes, uint8_t *first) {
    ek_fill(first - planes->lead, planes->zero, planes->lead);
}

/* Pixels of a plane, with the halo between its rows. */
static inline int32_t ek_extent(const ek_planes *planes) {
    return (planes->height - 1) * planes->row + planes->width;
}

/* The halo right of and below one plane: right of the last row it goes on below. */
static inline void ek_halo_of(const ek_planes *planes, uint8_t *plane) {
    const int32_t right = planes->row - planes->width, extent = ek_extent(planes);
    uint8_t *edge = plane + planes->width, *last = plane + extent;
    if (right == 1) {
        for (; edge < last; edge += planes->row) *edge = planes->zero;
    } else if (right > 0) {
        for (; edge < last; edge += planes->row) ek_fill(edge, planes->zero, right);
    }
    ek_fill(last, planes->zero, planes->plane - extent);
}

/* The halos of all planes; by value, as each byte that is written could be one of *planes. */
static inline void ek_halos(const ek_planes *planes, uint8_t *first) {
    const ek_planes own = *planes;
    for (int32_t c = 0; c < own.channels; c++, first += own.plane) ek_halo_of(&own, first);
}

/* A plane is worked on in runs of pixels: all at once, over the halo between its rows, if input
 * and output agree in their rows; else row by row. */
typedef struct {
    int32_t count, length;
} ek_runs;

static inline ek_runs ek_runs_of(const ek_planes *out, int32_t in_row) {
    ek_runs runs = {out->height, out->width};
    if (in_row == out->row) {
        runs.length = ek_extent(out);
        runs.count = 1;
    }
    return runs;
}

/* One tap: sums[x] += weight * p[x]. */
static inline void ek_tap(int32_t *sums, const uint8_t *p, int32_t weight, int32_t count) {
    for (int32_t x = 0; x < count; x++) sums[x] += weight * p[x];
}

static inline int32_t ek_dot_rest(const int8_t *weights, const uint8_t *in, int32_t count) {
    int32_t sum = 0;
    for (int32_t i = 0; i < count; i++) sum += weights[i] * in[i];
    return sum;
}

/* Adds all taps of one output channel to the sums of `count` pixels from p. */
typedef void (*ek_taps)(const void *state, const uint8_t *p, int32_t *sums, int32_t count);

/* A convolution's plane of one output channel. */
typedef struct {
    const ek_planes *planes;
    const ek_requant *requant;
    const ek_sum *sum;
    int32_t channel, in_row;
} ek_channel;

static inline void ek_chunk(const ek_channel *c, ek_taps taps, const void *state, const uint8_t *p,
                            const uint8_t *other, uint8_t *out, int32_t count) {
    int32_t sums[EK_CHUNK];
    const int32_t bias = c->requant->bias[c->channel];
    for (int32_t x = 0; x < count; x++) sums[x] = bias;
    taps(state, p, sums, count);
    const ek_scaler scaler = ek_scaler_of(c->requant, c->channel);
    if (c->sum) {
        const ek_sum sum = *c->sum;
        for (int32_t x = 0; x < count; x++)
            out[x] = ek_summed(sum, ek_scaled(scaler, sums[x]), other[x]);
    } else {
        for (int32_t x = 0; x < count; x++) out[x] = ek_scaled(scaler, sums[x]);
    }
}

static inline void ek_plane(const ek_channel *c, ek_taps taps, const void *state, const uint8_t *in,
                            const uint8_t *other, uint8_t *out) {
    const ek_runs runs = ek_runs_of(c->planes, c->in_row);
    for (int32_t y = 0; y < runs.count; y++) {
        const int32_t from = y * c->in_row, to = y * c->planes->row;
        for (int32_t x = 0; x < runs.length; x += EK_CHUNK) {
            const int32_t rest = runs.length - x;
            ek_chunk(c, taps, state, in + from + x, other + to + x, out + to + x,
                     rest < EK_CHUNK ? rest : EK_CHUNK);
        }
    }
    ek_halo_of(c->planes, out);
}

#endif
