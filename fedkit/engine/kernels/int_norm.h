/* Passes of a norm over the elements of a tensor: statistics, int8 values, sums of gradients. */
#ifndef FEDKIT_INT_NORM_H
#define FEDKIT_INT_NORM_H

#include "int_lanes.h"
#include "int_tensor.h"

/* -- statistics of raw ------------------------------------------------------------------------ */

#define RAW_PIXELS 0x3fff /* so many pairs of int16 fit an itotal */

/* Per channel, over the tiles first .. last - 1: the sum and the largest magnitude of raw. */
void NAME(int_raw_sums)(const struct int_tensor *t, int first, int last, int64_t *sum,
                        int32_t *peak) {
    const ivec one = ivec_set1(1);
    for (int tile = first; tile < last; tile++) {
        const ivec valid = lanes_below(int_valid(t, tile));
        for (int c = 0; c < t->channels; c++) {
            const int16_t *x = t->raw + int_plane(t, tile, c);
            ivec most = ivec_set1(0), least = ivec_set1(0);
            for (int left = t->plane; left > 0; left -= RAW_PIXELS) {
                itotal total = itotal_zero();
                for (int n = left < RAW_PIXELS ? left : RAW_PIXELS; n > 0; n--, x += ILANES) {
                    const ivec value = ivec_and(ivec_load(x), valid);
                    itotal_dot(&total, value, one);
                    most = ivec_max(most, value);
                    least = ivec_min(least, value);
                }
                sum[c] += itotal_sum(total);
            }
            /* 1 more than the largest of the complements is the magnitude of the least. */
            const int32_t up = ivec_most(most);
            const int32_t down = 1 + ivec_most(ivec_subs(ivec_set1(-1), least));
            const int32_t found = up > down ? up : down;
            peak[c] = found > peak[c] ? found : peak[c];
        }
    }
}

/* Per channel, over the tiles first .. last - 1: the sum of raw, and of its square. */
void NAME(int_raw_squares)(const struct int_tensor *t, int first, int last, int64_t *sum,
                           int64_t *square) {
    const ivec one = ivec_set1(1);
    for (int tile = first; tile < last; tile++) {
        const ivec valid = lanes_below(int_valid(t, tile));
        for (int c = 0; c < t->channels; c++) {
            const int16_t *x = t->raw + int_plane(t, tile, c);
            iwide squares = iwide_zero();
            for (int left = t->plane; left > 0; left -= RAW_PIXELS) {
                itotal total = itotal_zero();
                for (int n = left < RAW_PIXELS ? left : RAW_PIXELS; n > 0; n--, x += ILANES) {
                    const ivec value = ivec_and(ivec_load(x), valid);
                    itotal both = itotal_zero();
                    itotal_dot(&total, value, one);
                    itotal_dot(&both, value, value);
                    iwide_add(&squares, both);
                }
                sum[c] += itotal_sum(total);
            }
            square[c] += iwide_sum(squares);
        }
    }
}

/* What is subtracted from int16 to centre it: two steps, as one saturates where the centre of a
 * running mean lies far beyond int16. */
struct centring {
    ivec near, far;
};

INLINE struct centring centring_of(int32_t centre) {
    const int32_t most = clamp(centre, -65535, 65534), near = clamp(most, -32767, 32767);
    const struct centring how = {ivec_set1((int16_t)near), ivec_set1((int16_t)(most - near))};
    return how;
}

/* x - centre within +-32767. */
INLINE ivec int_centred(ivec x, const struct centring *how) {
    return ivec_max(ivec_subs(ivec_subs(x, how->near), how->far), ivec_set1(-32767));
}

/* Add per channel sums of |raw - centre|. */
void NAME(int_raw_spread)(const struct int_tensor *t, const int32_t *centre, int first, int last,
                          int64_t *spread) {
    const ivec one = ivec_set1(1);
    for (int tile = first; tile < last; tile++) {
        const ivec valid = lanes_below(int_valid(t, tile));
        for (int c = 0; c < t->channels; c++) {
            const int16_t *x = t->raw + int_plane(t, tile, c);
            const struct centring how = centring_of(centre[c]);
            for (int left = t->plane; left > 0; left -= RAW_PIXELS) {
                itotal total = itotal_zero();
                for (int n = left < RAW_PIXELS ? left : RAW_PIXELS; n > 0; n--, x += ILANES) {
                    const ivec d = int_centred(ivec_load(x), &how);
                    itotal_dot(&total, ivec_and(ivec_size(d), valid), one);
                }
                spread[c] += itotal_sum(total);
            }
        }
    }
}

/* -- values ----------------------------------------------------------------------------------- */

/* x = (a * (raw - centre) + b + half) >> shift, within +-127. */
void NAME(int_requantise)(const struct int_tensor *t, const int32_t *centre, const int32_t *a,
                      const int32_t *b, const int32_t *shift, int first, int last) {
    const ivec low = ivec_set1(-CODE_MOST), none = ivec_set1(0);
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const ptrdiff_t at = int_plane(t, tile, c);
            const int16_t *raw = t->raw + at;
            const struct centring how = centring_of(centre[c]);
            const int16_t factor[2] = {(int16_t)a[c], 0};
            const isum add = isum_set1(b[c] + half_of(shift[c]));
            const int by = shift[c];
            int8_t *x = t->x + at, *end = x + (ptrdiff_t)t->plane * ILANES;
            for (; x < end; x += ILANES, raw += ILANES) {
                isum v = add;
                isum_dot(&v, ivec_pair(int_centred(ivec_load(raw), &how), none), factor);
                ivec_store_codes(x, ivec_max(isum_narrow_floor(v, by), low));
            }
        }
    }
}

/* -- gradients -------------------------------------------------------------------------------- */

#define FINISH_PIXELS 240 /* so many pairs of products of int16 and int8 fit an itotal */

struct finish_sums {
    itotal total, along, inner, inner_along;
    ivec signs, most;
};

/* Add up `count` pixels, and set gradients to 0 where codes lie outside of low .. high. */
INLINE struct finish_sums finish_pixels(const int8_t *x, int16_t *g, int count, ivec valid,
                                        int some, ivec low, ivec high) {
    const ivec one = ivec_set1(1), zero = ivec_set1(0);
    const ivec begin = ivec_set1(1 - CODE_MOST), end = ivec_set1(CODE_MOST - 1);
    itotal total = itotal_zero(), along = total, inner = total, inner_along = total;
    ivec signs = zero, most = zero;
    for (; count > 0; count--, x += ILANES, g += ILANES) {
        const ivec code = ivec_load_codes(x);
        ivec value = ivec_load(g);
        if (some) {
            value = ivec_where_within(code, low, high, value);
            ivec_store(g, value);
        }
        const ivec uncut = ivec_where_within(code, begin, end, value);
        itotal_dot(&total, value, one);
        itotal_dot(&along, value, code);
        itotal_dot(&inner, uncut, one);
        itotal_dot(&inner_along, uncut, code);
        signs = ivec_add(signs, ivec_and(ivec_sign(code), valid));
        most = ivec_max(most, ivec_size(value));
    }
    const struct finish_sums sums = {total, along, inner, inner_along, signs, most};
    return sums;
}

/* Set gradients to 0 where x lies outside of first .. last, per channel; without them all pass. Add
 * per channel to sums [channels][5]: of g, of g * x, of the sign of x, and of g and g * x where x
 * was not cut off; and find the largest magnitude of g. Lanes beyond the examples have no gradient. */
void NAME(int_finish)(const struct int_tensor *t, const int32_t *first_code,
                      const int32_t *last_code, int first, int last, int64_t *sums,
                      int32_t *peak) {
    const ivec one = ivec_set1(1);
    for (int tile = first; tile < last; tile++) {
        const ivec valid = lanes_below(int_valid(t, tile));
        for (int c = 0; c < t->channels; c++) {
            const ivec low = ivec_set1((int16_t)(first_code ? first_code[c] : 0));
            const ivec high = ivec_set1((int16_t)(last_code ? last_code[c] : 0));
            ptrdiff_t at = int_plane(t, tile, c);
            for (int left = t->plane; left > 0; left -= FINISH_PIXELS) {
                const int count = left < FINISH_PIXELS ? left : FINISH_PIXELS;
                const int8_t *x = t->x + at;
                int16_t *g = t->gradient + at;
                const struct finish_sums found =
                    first_code ? finish_pixels(x, g, count, valid, 1, low, high)
                               : finish_pixels(x, g, count, valid, 0, low, high);
                itotal signs = itotal_zero();
                itotal_dot(&signs, found.signs, one);
                sums[5 * c] += itotal_sum(found.total);
                sums[5 * c + 1] += itotal_sum(found.along);
                sums[5 * c + 2] += itotal_sum(signs);
                sums[5 * c + 3] += itotal_sum(found.inner);
                sums[5 * c + 4] += itotal_sum(found.inner_along);
                const int16_t most = ivec_most(found.most);
                peak[c] = most > peak[c] ? most : peak[c];
                at += (ptrdiff_t)count * ILANES;
            }
        }
    }
}

#endif
