/* Passing gradients back through a norm or an activation, and rounding them. */
#ifndef FEDKIT_INT_PASS_H
#define FEDKIT_INT_PASS_H

#include "int_lanes.h"
#include "int_tensor.h"

/* fedkit.core.numerics.random_bits of a vector of counters. */
INLINE isum random_lanes(uint32_t low, uint32_t high, isum x) {
    x = isum_xor(x, isum_set1((int32_t)low));
    x = isum_xor(x, isum_right(x, 16));
    x = isum_mul(x, isum_set1(0x7feb352d));
    x = isum_xor(x, isum_right(x, 15));
    x = isum_add(x, isum_set1((int32_t)high));
    x = isum_mul(x, isum_set1((int32_t)0x846ca68bu));
    return isum_xor(x, isum_right(x, 16));
}

/* The product of what is carried and b needs more than 16 bits of b: the upper ones are multiplied
 * by what is carried times 2^UPPER, which fits int16. */
#define UPPER_OF(carrier) ((carrier) == 2 ? 14 : 7)

INLINE int fits_int16(int32_t x) { return x >= -32768 && x <= 32767; }

INLINE int passes_in_int16(const struct int_passing *how, int carrier) {
    return fits_int16(how->a) && (!carrier || fits_int16(how->b >> UPPER_OF(carrier)));
}

/* Pass `count` pixels from `first` on, of any `carrier` and rounding: constants where inlined. */
INLINE void pass_pixels(const struct int_passing *how, int carrier, int random,
                        const struct int_run *run, int first, int count, int16_t *to) {
    const int upper = UPPER_OF(carrier);
    const int16_t near[2] = {(int16_t)how->a, (int16_t)(how->b & ((1 << upper) - 1))};
    const int16_t far[2] = {(int16_t)(how->b >> upper), 0};
    const int16_t limit = (int16_t)clamp(how->limit, 0, 32767);
    const ivec valid = lanes_below(run->valid), factor = ivec_set1((int16_t)how->factor);
    const int16_t *g = run->g + (ptrdiff_t)first * ILANES;
    const int8_t *x = run->x + (ptrdiff_t)first * ILANES;
    const isum mask = isum_set1((int32_t)how->mask);
    isum counter = isum_mul(lane_numbers(), isum_set1((int32_t)run->step));
    counter = isum_add(counter, isum_set1((int32_t)(run->counter + (uint32_t)first)));
    for (int pixel = 0; pixel < count; pixel++, g += ILANES, x += ILANES, to += ILANES) {
        ivec given = ivec_load(g), carried = ivec_set1(0);
        isum v = isum_set1(how->c);
        if (carrier) {
            carried = ivec_load_codes(x);
            given = ivec_where_within(carried, ivec_set1(1 - CODE_MOST), ivec_set1(CODE_MOST - 1),
                                      given);
            if (carrier == 2) carried = ivec_sign(carried);
            const ivec scaled = ivec_mul(carried, ivec_set1((int16_t)(1 << upper)));
            isum_dot(&v, ivec_pair(scaled, scaled), far);
        }
        isum_dot(&v, ivec_pair(given, carried), near);
        ivec passed;
        if (random) {
            const isum bits = random_lanes(how->key_low, how->key_high, counter);
            passed = isum_narrow_floor(isum_add(v, isum_and(bits, mask)), how->shift);
            counter = isum_add(counter, isum_set1(1));
        } else {
            passed = isum_narrow_even(v, how->shift);
        }
        passed = ivec_max(ivec_min(passed, ivec_set1(limit)), ivec_set1((int16_t)-limit));
        ivec_store(to, ivec_and(ivec_mul(passed, factor), valid));
    }
}

/* As pass_pixels, of constants that do not fit int16. */
static void pass_pixels_wide(const struct int_passing *how, int carrier, int random,
                             const struct int_run *run, int first, int count, int16_t *to) {
    for (int pixel = first; pixel < first + count; pixel++, to += ILANES) {
        const int16_t *g = run->g + (ptrdiff_t)pixel * ILANES;
        const int8_t *x = run->x + (ptrdiff_t)pixel * ILANES;
        const uint32_t counter = run->counter + (uint32_t)pixel;
        for (int i = 0; i < ILANES; i++) {
            const int32_t carried = !carrier ? 0 : carrier == 2 ? sign_of(x[i]) : x[i];
            const int32_t given = carrier ? uncut_gradient(g[i], x[i]) : g[i];
            int32_t v = how->a * given + how->c + how->b * carried;
            if (random) {
                const uint32_t bits = random_bits(how->key_low, how->key_high,
                                                  counter + (uint32_t)i * run->step);
                v = (v + (int32_t)(bits & how->mask)) >> how->shift;
            } else {
                v = shift_half_even(v, how->shift);
            }
            to[i] = (int16_t)(clamp(v, -how->limit, how->limit) * how->factor);
        }
        for (int i = run->valid; i < ILANES; i++) to[i] = 0;
    }
}

static void pass_line(const struct int_chain *chain, const struct int_passing *how,
                      const struct int_run *run, int first, int count, int16_t *to) {
    if (!passes_in_int16(how, chain->carrier)) {
        pass_pixels_wide(how, chain->carrier, chain->random, run, first, count, to);
        return;
    }
    switch (2 * chain->carrier + chain->random) {
    case 0: pass_pixels(how, 0, 0, run, first, count, to); break;
    case 1: pass_pixels(how, 0, 1, run, first, count, to); break;
    case 2: pass_pixels(how, 1, 0, run, first, count, to); break;
    case 3: pass_pixels(how, 1, 1, run, first, count, to); break;
    case 4: pass_pixels(how, 2, 0, run, first, count, to); break;
    default: pass_pixels(how, 2, 1, run, first, count, to); break;
    }
}

#endif
