/* Layer normalisation in integers: each example, a lane, over all its elements, or over each group
 * of its channels. What is normalised together is a block.
 *
 * integer/layer_norm.py says what the numbers mean. Normalised values are computed anew from the
 * source wherever they are needed, so that none are stored.
 */
#ifndef FEDKIT_INT_LAYER_H
#define FEDKIT_INT_LAYER_H

#include "int_elementwise.h"

#define WIDE_MOST 32767
#define SCALE_SHIFT 15
#define FACTOR_SHIFT 14
#define MOST_SHIFT 29

INLINE int int_layer_span(const struct int_layer *l) { return l->source->channels / l->groups; }

/* Where it is kept how the blocks of a tile are normalised. */
INLINE ptrdiff_t int_layer_block(const struct int_layer *l, int tile, int group) {
    return ((ptrdiff_t)group * int_tiles(l->source) + tile) * ILANES;
}

/* Where the parameters of a channel's first pixel are, and how far those of the next are. */
INLINE ptrdiff_t int_layer_first(const struct int_layer *l, int channel) {
    return l->per_channel ? channel : (ptrdiff_t)channel * l->source->plane;
}

INLINE int int_layer_step(const struct int_layer *l) { return !l->per_channel; }

/* How the blocks of a tile and group are normalised; `b` holds the half that rounds. */
struct layer_lanes {
    int32_t centre[ILANES], a[ILANES], b[ILANES], shift[ILANES];
};

INLINE struct layer_lanes layer_lanes_of(const struct int_layer *l, int tile, int group) {
    const ptrdiff_t at = int_layer_block(l, tile, group);
    struct layer_lanes how;
    for (int i = 0; i < ILANES; i++) {
        how.centre[i] = l->centre[at + i];
        how.a[i] = l->a[at + i];
        how.shift[i] = l->shift[at + i];
        how.b[i] = l->b[at + i] + half_of(how.shift[i]);
    }
    return how;
}

INLINE void hat_pixel(const struct int_reading *read, const struct layer_lanes *how,
                      const int8_t *x, int16_t *hat) {
    for (int i = 0; i < ILANES; i++) {
        const int32_t d = int_value(read, x[i]) - how->centre[i];
        hat[i] = (int16_t)clamp((how->a[i] * d + how->b[i]) >> how->shift[i], -WIDE_MOST,
                                WIDE_MOST);
    }
}

/* floor(sqrt(x)) for x < 2^62. */
INLINE int64_t root_of(int64_t x) {
    int64_t root = 0;
    for (int64_t bit = (int64_t)1 << 30; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= x) root += bit;
    return root;
}

/* layer_norm.reciprocal */
static void layer_reciprocal(const struct int_layer *l, int64_t size, int32_t *multiplier,
                             int32_t *shift) {
    int exponent = 0;
    size += l->eps;
    if (size < 1) size = 1;
    if (l->l1) {
        for (; size >= (int64_t)1 << 31; exponent++) size >>= 1;
        for (; size < (int64_t)1 << 30; exponent--) size *= 2;
    } else {
        for (; size < (int64_t)1 << 60; exponent--) size *= 4;
        size = root_of(size);
    }
    const int bits = l->numerator >= size ? 14 : 15;
    const int found = bits + l->exponent + exponent;
    *multiplier = found < 0 ? WIDE_MOST : (int32_t)(((int64_t)l->numerator << bits) / size);
    *shift = found < 0 ? 0 : found;
}

/* layer_norm.centring_of, for the block at `at`. */
static void layer_centre(const struct int_layer *l, int64_t total, int64_t size, int64_t count,
                         ptrdiff_t at) {
    int64_t centre = total / count, rest = total % count;
    if (rest < 0) {
        centre--;
        rest += count;
    }
    layer_reciprocal(l, size, l->multiplier + at, l->inverse_shift + at);
    const int32_t shift = l->inverse_shift[at];
    const int lost = shift > MOST_SHIFT ? shift - MOST_SHIFT : 0;
    l->a[at] = lost < 31 ? l->multiplier[at] >> lost : 0;
    l->shift[at] = shift - lost;
    l->centre[at] = (int32_t)centre;
    l->b[at] = (int32_t)-((l->a[at] * rest + count / 2) / count);
}

/* Find how the blocks of a tile and group are normalised. */
static void layer_statistics(const struct int_layer *l, int tile, int group) {
    const struct int_tensor *s = l->source;
    const int begin = group * int_layer_span(l), end = begin + int_layer_span(l);
    const int32_t count = int_layer_span(l) * s->plane;
    int32_t total[ILANES] = {0};
    int64_t size[ILANES] = {0};
    for (int c = begin; c < end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const int8_t *x = s->x + int_plane(s, tile, c);
        for (int pixel = 0; pixel < s->plane; pixel++, x += ILANES)
            for (int i = 0; i < ILANES; i++) total[i] += int_value(&how, x[i]);
    }
    for (int c = begin; c < end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const int8_t *x = s->x + int_plane(s, tile, c);
        for (int pixel = 0; pixel < s->plane; pixel++, x += ILANES) {
            for (int i = 0; i < ILANES; i++) {
                const int32_t v = int_value(&how, x[i]);
                const int32_t d = count * v - total[i];
                size[i] += l->l1 ? (d < 0 ? -d : d) : v * v;
            }
        }
    }
    for (int i = 0; i < ILANES; i++) {
        if (!l->l1) size[i] = count * size[i] - (int64_t)total[i] * total[i];
        layer_centre(l, total[i], size[i], count, int_layer_block(l, tile, group) + i);
    }
}

INLINE void int_layer_forward_block(const struct int_layer *l, int tile, int group) {
    const struct int_tensor *s = l->source;
    const int begin = group * int_layer_span(l), step = int_layer_step(l);
    layer_statistics(l, tile, group);
    const struct layer_lanes lanes = layer_lanes_of(l, tile, group);
    for (int c = begin; c < begin + int_layer_span(l); c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const int8_t *x = s->x + int_plane(s, tile, c);
        int16_t *to = l->target->raw + int_plane(s, tile, c);
        const int32_t *scale = l->scale + int_layer_first(l, c);
        const int32_t *offset = l->offset + int_layer_first(l, c);
        for (int pixel = 0; pixel < s->plane; pixel++, x += ILANES, to += ILANES) {
            const int32_t a = *scale, b = *offset + (1 << (SCALE_SHIFT - 1));
            int16_t hat[ILANES];
            hat_pixel(&how, &lanes, x, hat);
            for (int i = 0; i < ILANES; i++)
                to[i] = (int16_t)clamp((a * hat[i] + b) >> SCALE_SHIFT, -WIDE_MOST, WIDE_MOST);
            scale += step;
            offset += step;
        }
    }
}

/* Write target->raw = (scale * hat + offset + half) >> SCALE_SHIFT. */
void NAME(int_layer_forward)(const struct int_layer *l, int first, int last) {
    for (int tile = first; tile < last; tile++)
        for (int group = 0; group < l->groups; group++) int_layer_forward_block(l, tile, group);
}

/* The gradients of normalised values, of passed ones; 0 where a value was cut off. */
INLINE void factor_pixel(int32_t factor, const int16_t *p, const int16_t *hat, int16_t *t) {
    for (int i = 0; i < ILANES; i++) {
        const int32_t scaled = shift_half_even(factor * p[i], FACTOR_SHIFT);
        const int16_t uncut = (int16_t) - ((hat[i] > -WIDE_MOST) & (hat[i] < WIDE_MOST));
        t[i] = (int16_t)(clamp(scaled, -WIDE_MOST, WIDE_MOST) & uncut);
    }
}

/* Sums of the blocks of one tile and group. */
struct layer_sums {
    int64_t total[ILANES], along[ILANES];
    int32_t signs[ILANES], most[ILANES];
};

/* Add a pixel; return the sums over the examples of p * hat and p. */
INLINE void sum_pixel(struct layer_sums *s, const int16_t *p, const int16_t *t,
                      const int16_t *hat, int64_t *to) {
    int64_t along = 0;
    int32_t total = 0;
    for (int i = 0; i < ILANES; i++) {
        const int32_t size = t[i] < 0 ? -t[i] : t[i];
        s->total[i] += t[i];
        s->along[i] += t[i] * hat[i];
        s->signs[i] += sign_of(hat[i]);
        s->most[i] = size > s->most[i] ? size : s->most[i];
    }
    for (int i = 0; i < ILANES; i++) {
        along += p[i] * hat[i];
        total += p[i];
    }
    to[0] += along;
    to[1] += total;
}

INLINE void int_layer_sums_block(const struct int_layer *l, int tile, int group,
                                 struct layer_sums *sums, int64_t *elements) {
    const struct int_tensor *s = l->source;
    const struct layer_lanes lanes = layer_lanes_of(l, tile, group);
    const int begin = group * int_layer_span(l), step = int_layer_step(l);
    for (int c = begin; c < begin + int_layer_span(l); c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const struct int_passing passing = int_passing_of(&l->chain, c);
        const struct int_run run = int_run_of(l->target, tile, c);
        const int8_t *x = s->x + int_plane(s, tile, c);
        ptrdiff_t e = int_layer_first(l, c);
        for (int pixel = 0; pixel < s->plane; pixel += RUN_PIXELS) {
            const int left = s->plane - pixel, count = left < RUN_PIXELS ? left : RUN_PIXELS;
            int16_t p[RUN_PIXELS * ILANES], t[ILANES], hat[ILANES];
            pass_line(&l->chain, &passing, &run, pixel, count, p);
            for (int k = 0; k < count; k++, e += step, x += ILANES) {
                hat_pixel(&how, &lanes, x, hat);
                factor_pixel(l->factor[e], p + k * ILANES, hat, t);
                sum_pixel(sums, p + k * ILANES, t, hat, elements + 2 * e);
            }
        }
    }
}

/* Add per element, or channel, to elements [..][2] the sums over the examples of p * hat and p;
 * write per block the sums of t, t * hat and the sign of hat, [..][3], and the largest |t|. */
void NAME(int_layer_sums)(const struct int_layer *l, int first, int last, int64_t *elements,
                          int64_t *blocks, int32_t *peak) {
    const struct int_tensor *s = l->source;
    for (int tile = first; tile < last; tile++) {
        for (int group = 0; group < l->groups; group++) {
            const ptrdiff_t at = (ptrdiff_t)group * s->examples + (ptrdiff_t)tile * ILANES;
            struct layer_sums sums;
            memset(&sums, 0, sizeof sums);
            int_layer_sums_block(l, tile, group, &sums, elements);
            for (int i = 0; i < int_valid(s, tile); i++) {
                blocks[3 * (at + i)] = sums.total[i];
                blocks[3 * (at + i) + 1] = sums.along[i];
                blocks[3 * (at + i) + 2] = sums.signs[i];
                peak[at + i] = sums.most[i];
            }
        }
    }
}

/* How the gradients of the blocks of a tile and group pass through the norm. */
struct layer_passing {
    int32_t a[ILANES], b[ILANES], c[ILANES], shift[ILANES];
    uint32_t mask[ILANES];
};

INLINE struct layer_passing layer_passing_of(const struct int_layer *l, int tile, int group) {
    struct layer_passing how;
    memset(&how, 0, sizeof how);
    for (int i = 0; i < int_valid(l->source, tile); i++) {
        const ptrdiff_t at = group * l->source->examples + (ptrdiff_t)tile * ILANES + i;
        how.a[i] = l->out.a[at];
        how.b[i] = l->out.b[at];
        how.c[i] = l->out.c[at];
        how.shift[i] = l->out.shift[at];
        how.mask[i] = (1u << how.shift[i]) - 1;
    }
    return how;
}

/* (a * t + b * k + c + random) >> shift, block by block; k is hat or its sign. */
INLINE void out_pixel(const struct int_layer *l, const struct layer_passing *how,
                      const int16_t *t, const int16_t *hat, uint32_t counter, uint32_t step,
                      int16_t *to) {
    for (int i = 0; i < ILANES; i++) {
        const uint32_t bits = random_bits(l->out.key_low, l->out.key_high,
                                          counter + (uint32_t)i * step);
        const int32_t carried = l->l1 ? sign_of(hat[i]) : hat[i];
        const int32_t v = how->a[i] * t[i] + how->b[i] * carried + how->c[i];
        to[i] = (int16_t)clamp((v + (int32_t)(bits & how->mask[i])) >> how->shift[i],
                               -l->out.limit, l->out.limit);
    }
}

INLINE void int_layer_backward_block(const struct int_layer *l, int tile, int group) {
    const struct int_tensor *s = l->source;
    const struct layer_lanes lanes = layer_lanes_of(l, tile, group);
    const struct layer_passing out = layer_passing_of(l, tile, group);
    const int begin = group * int_layer_span(l), step = int_layer_step(l);
    for (int c = begin; c < begin + int_layer_span(l); c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const struct int_passing passing = int_passing_of(&l->chain, c);
        const struct int_run run = int_run_of(l->target, tile, c);
        const struct int_mixing put = int_mixing_of(&l->mix, c);
        const int8_t *x = s->x + int_plane(s, tile, c);
        int16_t *to = s->gradient + int_plane(s, tile, c);
        ptrdiff_t e = int_layer_first(l, c);
        for (int pixel = 0; pixel < s->plane; pixel += RUN_PIXELS) {
            const int left = s->plane - pixel, count = left < RUN_PIXELS ? left : RUN_PIXELS;
            int16_t p[RUN_PIXELS * ILANES], t[ILANES], hat[ILANES], value[ILANES];
            pass_line(&l->chain, &passing, &run, pixel, count, p);
            for (int k = 0; k < count; k++, e += step, x += ILANES, to += ILANES) {
                hat_pixel(&how, &lanes, x, hat);
                factor_pixel(l->factor[e], p + k * ILANES, hat, t);
                out_pixel(l, &out, t, hat, run.counter + (uint32_t)(pixel + k), run.step, value);
                put_pixel(&put, l->accumulate, value, to);
            }
        }
    }
}

/* Write or add what each block gives to source's gradient. */
void NAME(int_layer_backward)(const struct int_layer *l, int first, int last) {
    for (int tile = first; tile < last; tile++)
        for (int group = 0; group < l->groups; group++) int_layer_backward_block(l, tile, group);
}

#endif
