/* Layer normalisation in integers: each example, a lane, over all its elements, over each group of
 * its channels, or over the channels of each place. What is normalised together is a block.
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

/* The blocks of one number of the examples of a tile: channels and pixels from one to before another,
 * and where it is kept how they are normalised. */
struct layer_block {
    int tile, number, channel, channels_end, pixel, pixels_end;
    ptrdiff_t at;
};

INLINE struct layer_block layer_block_of(const struct int_layer *l, int tile, int number) {
    const struct int_tensor *s = l->source;
    const int span = s->channels / l->blocks;
    struct layer_block b = {tile, number, 0, s->channels, 0, s->plane,
                            ((ptrdiff_t)number * int_tiles(s) + tile) * ILANES};
    if (l->places) {
        b.pixel = number;
        b.pixels_end = number + 1;
    } else {
        b.channel = number * span;
        b.channels_end = b.channel + span;
    }
    return b;
}

/* Where the codes of a block's first pixel are. */
INLINE ptrdiff_t layer_pixels(const struct int_layer *l, const struct layer_block *b, int channel) {
    return int_plane(l->source, b->tile, channel) + (ptrdiff_t)b->pixel * ILANES;
}

/* Where the parameters of a block's first pixel are, and how far those of the next are. */
INLINE ptrdiff_t int_layer_first(const struct int_layer *l, const struct layer_block *b,
                                 int channel) {
    return l->per_channel ? channel : (ptrdiff_t)channel * l->source->plane + b->pixel;
}

INLINE int int_layer_step(const struct int_layer *l) { return !l->per_channel; }

/* How the blocks at a place are normalised; `b` holds the half that rounds. */
struct layer_lanes {
    int32_t centre[ILANES], a[ILANES], b[ILANES], shift[ILANES];
};

INLINE struct layer_lanes layer_lanes_of(const struct int_layer *l, ptrdiff_t at) {
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

/* Find how the blocks of a tile are normalised. */
static void layer_statistics(const struct int_layer *l, const struct layer_block *b) {
    const int pixels = b->pixels_end - b->pixel;
    const int32_t count = (b->channels_end - b->channel) * pixels;
    int32_t total[ILANES] = {0};
    int64_t size[ILANES] = {0};
    for (int c = b->channel; c < b->channels_end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const int8_t *x = l->source->x + layer_pixels(l, b, c);
        for (int pixel = 0; pixel < pixels; pixel++, x += ILANES)
            for (int i = 0; i < ILANES; i++) total[i] += int_value(&how, x[i]);
    }
    if (!l->centred) memset(total, 0, sizeof total);
    for (int c = b->channel; c < b->channels_end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const int8_t *x = l->source->x + layer_pixels(l, b, c);
        for (int pixel = 0; pixel < pixels; pixel++, x += ILANES) {
            for (int i = 0; i < ILANES; i++) {
                const int32_t v = int_value(&how, x[i]);
                const int32_t d = count * v - total[i];
                size[i] += l->l1 ? (d < 0 ? -d : d) : v * v;
            }
        }
    }
    for (int i = 0; i < ILANES; i++) {
        if (!l->l1) size[i] = count * size[i] - (int64_t)total[i] * total[i];
        layer_centre(l, total[i], size[i], count, b->at + i);
    }
}

INLINE void int_layer_forward_block(const struct int_layer *l, const struct layer_block *block) {
    const int step = int_layer_step(l);
    layer_statistics(l, block);
    const struct layer_lanes lanes = layer_lanes_of(l, block->at);
    for (int c = block->channel; c < block->channels_end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const int8_t *x = l->source->x + layer_pixels(l, block, c);
        int16_t *to = l->target->raw + layer_pixels(l, block, c);
        const int32_t *scale = l->scale + int_layer_first(l, block, c);
        const int32_t *offset = l->offset + int_layer_first(l, block, c);
        for (int pixel = block->pixel; pixel < block->pixels_end;
             pixel++, x += ILANES, to += ILANES) {
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
    for (int tile = first; tile < last; tile++) {
        for (int number = 0; number < l->blocks; number++) {
            const struct layer_block block = layer_block_of(l, tile, number);
            int_layer_forward_block(l, &block);
        }
    }
}

/* The gradients of normalised values, of passed ones; 0 where a value was cut off. */
INLINE void factor_pixel(int32_t factor, const int16_t *p, const int16_t *hat, int16_t *t) {
    for (int i = 0; i < ILANES; i++) {
        const int32_t scaled = shift_half_even(factor * p[i], FACTOR_SHIFT);
        const int16_t uncut = (int16_t) - ((hat[i] > -WIDE_MOST) & (hat[i] < WIDE_MOST));
        t[i] = (int16_t)(clamp(scaled, -WIDE_MOST, WIDE_MOST) & uncut);
    }
}

/* Sums of the blocks of one number of a tile. */
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

INLINE void int_layer_sums_block(const struct int_layer *l, const struct layer_block *block,
                                 struct layer_sums *sums, int64_t *elements) {
    const struct layer_lanes lanes = layer_lanes_of(l, block->at);
    const int step = int_layer_step(l);
    for (int c = block->channel; c < block->channels_end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const struct int_passing passing = int_passing_of(&l->chain, c);
        const struct int_run run = int_run_of(l->target, block->tile, c);
        const int8_t *x = l->source->x + layer_pixels(l, block, c);
        ptrdiff_t e = int_layer_first(l, block, c);
        for (int pixel = block->pixel; pixel < block->pixels_end; pixel += RUN_PIXELS) {
            const int left = block->pixels_end - pixel, count = left < RUN_PIXELS ? left : RUN_PIXELS;
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
        for (int number = 0; number < l->blocks; number++) {
            const struct layer_block block = layer_block_of(l, tile, number);
            const ptrdiff_t at = (ptrdiff_t)number * s->examples + (ptrdiff_t)tile * ILANES;
            struct layer_sums sums;
            memset(&sums, 0, sizeof sums);
            int_layer_sums_block(l, &block, &sums, elements);
            for (int i = 0; i < int_valid(s, tile); i++) {
                blocks[3 * (at + i)] = sums.total[i];
                blocks[3 * (at + i) + 1] = sums.along[i];
                blocks[3 * (at + i) + 2] = sums.signs[i];
                peak[at + i] = sums.most[i];
            }
        }
    }
}

/* How the gradients of the blocks of a tile pass through the norm. */
struct layer_passing {
    int32_t a[ILANES], b[ILANES], c[ILANES], shift[ILANES];
    uint32_t mask[ILANES];
};

INLINE struct layer_passing layer_passing_of(const struct int_layer *l,
                                             const struct layer_block *block) {
    const int64_t first = block->number * l->source->examples + (int64_t)block->tile * ILANES;
    struct layer_passing how;
    memset(&how, 0, sizeof how);
    for (int i = 0; i < int_valid(l->source, block->tile); i++) {
        const ptrdiff_t at = first + i;
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

INLINE void int_layer_backward_block(const struct int_layer *l, const struct layer_block *block) {
    const struct int_tensor *s = l->source;
    const struct layer_lanes lanes = layer_lanes_of(l, block->at);
    const struct layer_passing out = layer_passing_of(l, block);
    const int step = int_layer_step(l);
    for (int c = block->channel; c < block->channels_end; c++) {
        const struct int_reading how = int_reading_of(&l->read, c);
        const struct int_passing passing = int_passing_of(&l->chain, c);
        const struct int_run run = int_run_of(l->target, block->tile, c);
        const struct int_mixing put = int_mixing_of(&l->mix, c);
        const int8_t *x = s->x + layer_pixels(l, block, c);
        int16_t *to = s->gradient + layer_pixels(l, block, c);
        ptrdiff_t e = int_layer_first(l, block, c);
        for (int pixel = block->pixel; pixel < block->pixels_end; pixel += RUN_PIXELS) {
            const int left = block->pixels_end - pixel, count = left < RUN_PIXELS ? left : RUN_PIXELS;
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
    for (int tile = first; tile < last; tile++) {
        for (int number = 0; number < l->blocks; number++) {
            const struct layer_block block = layer_block_of(l, tile, number);
            int_layer_backward_block(l, &block);
        }
    }
}

#endif
