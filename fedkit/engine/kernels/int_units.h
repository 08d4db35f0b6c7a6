/* How kernels are told to read, to pass gradients on and to add them: the counterpart of integer/program.py. */
#ifndef FEDKIT_INT_UNITS_H
#define FEDKIT_INT_UNITS_H

#include "int_elementwise.h"
#include "int_real.h"

/* -- reading ---------------------------------------------------------------------------------- */

/* Read one channel of a tensor in steps of `unit`, up to `high`. */
INLINE int32_t read_channel(const struct int_worth *w, int c, double unit, int32_t *b, int32_t *shift) {
    const double offset = w->offset[c] / unit;
    const int most_shift = clamp(29 - exponent_of(offset), 0, 20);
    const int32_t a = multiplier_of(w->factor[c] / unit, most_shift, WIDE, shift);
    *b = to_int32(between(rint(offset * power_of_two(*shift)), -ROOM, ROOM));
    return a;
}

static void choose_read(const struct int_worth *w, double unit, int32_t high, struct int_read *read) {
    for (int c = 0; c < w->tensor->channels; c++)
        read->a[c] = read_channel(w, c, unit, &read->b[c], &read->shift[c]);
    read->low = w->activation == NO_ACTIVATION ? -high : 0;
    read->high = w->activation == RELU6 ? to_int32(between(rint(6.0 / unit), 0, high)) : high;
}

INLINE int64_t floor_divided(int64_t x, int64_t by) {
    return x / by - (x % by != 0 && (x < 0) != (by < 0));
}

INLINE int32_t code_within(int64_t x, int low, int high) {
    return x < low ? low : x > high ? high : (int32_t)x;
}

/* The first and the last code x with low <= a * x + b <= high. */
INLINE void codes_between(int32_t a, int32_t b, int64_t low, int64_t high, int32_t *first,
                          int32_t *last) {
    if (a == 0) {
        *first = low <= b && b <= high ? -CODE_MOST : CODE_MOST + 1;
        *last = CODE_MOST;
        return;
    }
    /* What a negative `a` leads to comes from the other end. */
    const int64_t least = a < 0 ? high : low, most = a < 0 ? low : high;
    *first = code_within(-floor_divided(b - least, a), -CODE_MOST, CODE_MOST + 1);
    *last = code_within(floor_divided(most - b, a), -CODE_MOST - 1, CODE_MOST);
}

/* The codes whose gradient passes the activation. */
static void active_codes(const struct int_worth *w, int32_t *first, int32_t *last) {
    const double unit = w->bound / WIDE, six = 6.0 / unit;
    for (int c = 0; c < w->tensor->channels; c++) {
        int32_t b, shift;
        const int32_t a = read_channel(w, c, unit, &b, &shift);
        double end = HIGHEST;
        if (w->activation == RELU6) end = between(rint(six * power_of_two(shift)), -HIGHEST, HIGHEST);
        codes_between(a, b, 1, (int64_t)end - 1, &first[c], &last[c]);
    }
}

/* The codes whose value lies within the range that is read. */
static void unclipped_codes(const struct int_read *read, int channels, int32_t *first, int32_t *last) {
    for (int c = 0; c < channels; c++) {
        const int64_t one = (int64_t)1 << read->shift[c], half = one >> 1;
        const int64_t low = read->low < 0 ? (1 - read->high) * one - half : -((int64_t)1 << 40);
        codes_between(read->a[c], read->b[c], low, read->high * one - half - 1, &first[c], &last[c]);
    }
}

INLINE int64_t values_of(const struct int_tensor *t) { return t->examples * t->plane; }

/* The root mean square of what is read of a tensor. */
static double spread_of(const struct int_worth *w) {
    const struct int_units *units = w->units;
    const int channels = w->tensor->channels;
    if (w->norm) {
        double *squares = units->reals;
        for (int c = 0; c < channels; c++) {
            const double scale = w->factor[c] / ONE, shift = w->offset[c];
            squares[c] = w->activation == NO_ACTIVATION ? scale * scale + shift * shift
                                                        : rectified(shift, fabs(scale));
        }
        return sqrt(sum_of(squares, channels) / channels);
    }
    double unit = w->factor[0];
    for (int c = 1; c < channels; c++) unit = larger(unit, w->factor[c]);
    struct int_read read = units->read;
    choose_read(w, unit, CODE_MOST, &read);
    memset(units->sums, 0, (size_t)channels * sizeof *units->sums);
    NAME(int_read_squares)(w->tensor, &read, 0, units->tiles, units->sums);
    int64_t sum = 0;
    for (int c = 0; c < channels; c++) sum += units->sums[c];
    return unit * sqrt((double)sum / (double)values_of(w->tensor) / channels);
}

/* -- passing gradients ------------------------------------------------------------------------ */

/* The largest magnitude of what is carried. */
INLINE double carried_by(const struct int_worth *w) {
    return w->carrier == 0 ? 0.0 : w->carrier == 1 ? CODE_REAL : 1.0;
}

struct passed {
    double a, b, c;
};

INLINE struct passed passed_of(const struct int_worth *w, int c) {
    struct passed p = {1.0, 0.0, 0.0};
    if (w->carrier) {
        p.a = w->a[c];
        p.b = w->b[c];
        p.c = w->c[c];
    }
    return p;
}

/* A bound of the passed gradient's magnitude, in real units. */
INLINE double passed_bound(const struct int_worth *w, int c) {
    const struct passed p = passed_of(w, c);
    return w->unit[c] * (fabs(p.a) * w->most[c] + fabs(p.b) * carried_by(w) + fabs(p.c));
}

/* Pass one channel's gradient in units of the result. */
INLINE void pass_channel(const struct int_worth *w, int c, double unit, const struct int_chain *how) {
    const struct passed p = passed_of(w, c);
    const double a = p.a * w->unit[c] / unit, b = p.b * w->unit[c] / unit, d = p.c * w->unit[c] / unit;
    const double carried = carried_by(w), most = larger(w->most[c], 1.0);
    const double bound = fabs(a) * most + fabs(b) * carried + fabs(d);
    /* Neither may a leave int16, so that a * g fits int32. */
    const int near = 29 - exponent_of(bound), fits = MULTIPLIER_BITS - exponent_of(a);
    const int shift = clamp(near < fits ? near : fits, 0, 29);
    const double one = power_of_two(shift), room = ROOM / most, side = ROOM / larger(carried, 1.0);
    how->a[c] = to_int32(between(rint(a * one), -room, room));
    how->b[c] = to_int32(between(rint(b * one), -side, side));
    how->c[c] = to_int32(between(rint(d * one), -ROOM, ROOM));
    how->shift[c] = shift;
}

/* What no passed gradient exceeds, in real units: of those behind no activation, the largest. */
static void passed_ranges(const struct int_worth *w, double *ranges) {
    const struct int_units *units = w->units;
    const int channels = w->tensor->channels;
    for (int c = 0; c < channels; c++) ranges[c] = passed_bound(w, c);
    if (w->finished) return;
    struct int_chain chain = units->chain;
    chain.factor = NULL;
    chain.carrier = w->carrier;
    chain.limit = WIDE;
    chain.random = 0;
    int32_t *peak = units->mix.a;
    for (int c = 0; c < channels; c++) {
        ranges[c] = larger(ranges[c], LEAST) / WIDE;
        pass_channel(w, c, ranges[c], &chain);
        peak[c] = 0;
    }
    NAME(int_passed_peak)(w->tensor, &chain, 0, units->tiles, peak);
    for (int c = 0; c < channels; c++) ranges[c] = peak[c] * ranges[c];
}

/* Note what a gradient is worth once integers of 15 bits worth `unit` were given to it, and choose
 * how to add them if it holds something. */
static void give(struct int_worth *w, int accumulate, const double *unit) {
    const struct int_mix *mix = &w->units->mix;
    for (int c = 0; c < w->tensor->channels; c++) {
        double whole = unit[c];
        if (accumulate) {
            whole = larger((w->unit[c] * w->most[c] + unit[c] * WIDE) / WIDE, LEAST);
            const double old = rint(w->unit[c] / whole * 32768.0), new = rint(unit[c] / whole * 32768.0);
            mix->a[c] = to_int32(old < HIGHEST ? old : HIGHEST);
            mix->b[c] = to_int32(new < HIGHEST ? new : HIGHEST);
            mix->shift[c] = MULTIPLIER_BITS;
        }
        w->unit[c] = whole;
        w->most[c] = WIDE;
    }
}

/* -- scales of gradients: the rules of integer/gradients.py ------------------------------------ */

enum { PER_TENSOR, SHIFTQUANT, PER_CHANNEL };

#define FINEST 2047

/* Return the unit of a code times its channel's factor; `ranges` become the factors. */
static double scale_gradient(int rule, int most, double *ranges, int channels) {
    double largest = ranges[0];
    for (int c = 1; c < channels; c++) largest = larger(largest, ranges[c]);
    const int groups = exponent_of(CODE_MOST / most), finest = FINEST / most;
    int power, octave;
    const double fraction = parts_of(largest, &power);
    if (largest == 0.0) largest = 1.0;
    for (int c = 0; c < channels; c++) {
        if (rule == PER_TENSOR) {
            ranges[c] = 1.0;
        } else if (rule == PER_CHANNEL) {
            ranges[c] = larger(ceil(ranges[c] / largest * finest), 1.0);
        } else {
            int group = groups - 1;
            const double own = parts_of(ranges[c], &octave);
            if (ranges[c] > 0 && power - octave - (fraction < own) < group)
                group = power - octave - (fraction < own);
            ranges[c] = power_of_two(groups - 1 - group);
        }
    }
    if (rule == PER_CHANNEL) return largest / most / finest;
    return rule == PER_TENSOR ? largest / most : largest / most * power_of_two(1 - groups);
}

#endif
