/* Integer ops without weights: moving data, sums, pooling, statistics, and the optimiser. */
#ifndef FEDKIT_INT_ELEMENTWISE_H
#define FEDKIT_INT_ELEMENTWISE_H

#include "elementwise.h"
#include "int_norm.h"
#include "int_pass.h"
#include "int_read.h"
#include "int_tensor.h"

int NAME(int_lanes)(void) { return ILANES; }
int NAME(int_rows)(void) { return IROWS; }

/* -- data ------------------------------------------------------------------------------------- */

/* Copy examples inputs [..][elements], picked by order [count], into x as tiles. Lanes beyond them
 * repeat a tile's first example; nobody reads those. */
void NAME(int_load_examples)(const int8_t *inputs, const int64_t *order, int64_t count,
                             int64_t elements, int8_t *x) {
    for (int64_t begin = 0; begin < count; begin += ILANES) {
        const int8_t *from[ILANES];
        int lanes = count - begin < ILANES ? (int)(count - begin) : ILANES;
        for (int i = 0; i < ILANES; i++)
            from[i] = inputs + order[begin + (i < lanes ? i : 0)] * elements;
        for (int64_t e = 0; e < elements; e++, x += ILANES)
            for (int i = 0; i < ILANES; i++) x[i] = from[i][e];
    }
}

/* Copy int16 tiles to or from rows [examples][channels * plane]; lanes beyond them become 0. */
void NAME(int_copy_rows)(const struct int_tensor *t, int16_t *tiles, int16_t *rows, int to_rows) {
    const ptrdiff_t elements = (ptrdiff_t)t->channels * t->plane;
    for (int tile = 0; tile < int_tiles(t); tile++, rows += ILANES * elements) {
        for (ptrdiff_t e = 0; e < elements; e++, tiles += ILANES) {
            for (int i = 0; i < ILANES; i++) {
                if (i >= int_valid(t, tile))
                    tiles[i] = to_rows ? tiles[i] : 0;
                else if (to_rows)
                    rows[i * elements + e] = tiles[i];
                else
                    tiles[i] = rows[i * elements + e];
            }
        }
    }
}

/* Copy int8 tiles to rows. */
void NAME(int_read_codes)(const struct int_tensor *t, int8_t *rows) {
    const ptrdiff_t elements = (ptrdiff_t)t->channels * t->plane;
    const int8_t *x = t->x;
    for (int tile = 0; tile < int_tiles(t); tile++, rows += ILANES * elements)
        for (ptrdiff_t e = 0; e < elements; e++, x += ILANES)
            for (int i = 0; i < int_valid(t, tile); i++) rows[i * elements + e] = x[i];
}

/* -- forward ---------------------------------------------------------------------------------- */

/* target->raw = left + right, as read. */
void NAME(int_add_forward)(const struct int_tensor *left, const struct int_read *read_left,
                           const struct int_tensor *right, const struct int_read *read_right,
                           const struct int_tensor *target, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < target->channels; c++) {
            const struct int_reader one = int_reader_of(read_left, c);
            const struct int_reader two = int_reader_of(read_right, c);
            const ptrdiff_t at = int_plane(target, tile, c);
            const int8_t *x = left->x + at, *y = right->x + at;
            int16_t *to = target->raw + at, *end = to + (ptrdiff_t)target->plane * ILANES;
            for (; to < end; to += ILANES, x += ILANES, y += ILANES)
                ivec_store(to, ivec_add(int_read_pixel(&one, x), int_read_pixel(&two, y)));
        }
    }
}

/* Copy what is read of source into target->raw from `channel` on; elements keep their order. */
void NAME(int_copy_forward)(const struct int_tensor *source, const struct int_read *read,
                            const struct int_tensor *target, int channel, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        int16_t *to = target->raw + int_plane(target, tile, channel);
        for (int c = 0; c < source->channels; c++) {
            const struct int_reader how = int_reader_of(read, c);
            const int8_t *x = source->x + int_plane(source, tile, c);
            for (int i = 0; i < source->plane; i++, x += ILANES, to += ILANES)
                ivec_store(to, int_read_pixel(&how, x));
        }
    }
}

INLINE void int_pool_window(const struct int_pool *p, const struct int_reading *how,
                            const int8_t *x, struct window w, int32_t *result) {
    for (int i = 0; i < ILANES; i++) result[i] = p->maximum ? INT32_MIN : 0;
    for (int y = w.top; y < w.bottom; y++) {
        for (int column = w.left; column < w.right; column++) {
            const int8_t *from = x + (y * p->windows.in_width + column) * ILANES;
            for (int i = 0; i < ILANES; i++) {
                const int32_t value = int_value(how, from[i]);
                if (p->maximum)
                    result[i] = value > result[i] ? value : result[i];
                else
                    result[i] += value;
            }
        }
    }
}

/* target->raw = the largest of each window, or its sum, shifted. */
void NAME(int_pool_forward)(const struct int_pool *p, int first, int last) {
    const int32_t half = half_of(p->shift_out);
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < p->source->channels; c++) {
            const struct int_reading how = int_reading_of(&p->read, c);
            const int8_t *x = p->source->x + int_plane(p->source, tile, c);
            int16_t *to = p->target->raw + int_plane(p->target, tile, c);
            for (int oy = 0; oy < p->windows.out_height; oy++) {
                for (int ox = 0; ox < p->windows.out_width; ox++, to += ILANES) {
                    int32_t result[ILANES];
                    int_pool_window(p, &how, x, window_of(&p->windows, oy, ox), result);
                    for (int i = 0; i < ILANES; i++)
                        to[i] = (int16_t)((result[i] + half) >> p->shift_out);
                }
            }
        }
    }
}

/* Add per channel the sum of squares of what is read. */
void NAME(int_read_squares)(const struct int_tensor *t, const struct int_read *read, int first,
                            int last, int64_t *squares) {
    for (int tile = first; tile < last; tile++) {
        const int valid = int_valid(t, tile);
        for (int c = 0; c < t->channels; c++) {
            const struct int_reading how = int_reading_of(read, c);
            const int8_t *x = t->x + int_plane(t, tile, c);
            for (int pixel = 0; pixel < t->plane; pixel++, x += ILANES) {
                int32_t sum = 0;
                for (int i = 0; i < valid; i++) {
                    const int32_t value = int_value(&how, x[i]);
                    sum += value * value;
                }
                squares[c] += sum;
            }
        }
    }
}

/* -- backward --------------------------------------------------------------------------------- */

#define RUN_PIXELS 32 /* pixels that are passed at once */

/* Find per channel the largest magnitude of a passed gradient. */
void NAME(int_passed_peak)(const struct int_tensor *t, const struct int_chain *chain, int first,
                           int last, int32_t *peak) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const struct int_passing how = int_passing_of(chain, c);
            const struct int_run run = int_run_of(t, tile, c);
            int16_t value[RUN_PIXELS * ILANES], most = 0;
            for (int pixel = 0; pixel < t->plane; pixel += RUN_PIXELS) {
                const int left = t->plane - pixel, count = left < RUN_PIXELS ? left : RUN_PIXELS;
                pass_line(chain, &how, &run, pixel, count, value);
                for (int i = 0; i < count * ILANES; i++) {
                    const int16_t size = (int16_t)(value[i] < 0 ? -value[i] : value[i]);
                    most = size > most ? size : most;
                }
            }
            peak[c] = most > peak[c] ? most : peak[c];
        }
    }
}

/* Write or add the passed gradient of target's channels from `channel` on to source's gradient. */
void NAME(int_copy_backward)(const struct int_tensor *source, const struct int_tensor *target,
                             const struct int_chain *chain, const struct int_mix *mix, int channel,
                             int accumulate, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        int16_t *to = source->gradient + int_plane(source, tile, 0);
        const int elements = source->channels * source->plane;
        int element = 0;
        for (int c = channel; element < elements; c++) {
            const struct int_passing how = int_passing_of(chain, c);
            const struct int_run run = int_run_of(target, tile, c);
            if (!accumulate) {
                pass_line(chain, &how, &run, 0, target->plane, to);
                element += target->plane;
                to += target->plane * ILANES;
                continue;
            }
            for (int pixel = 0; pixel < target->plane; pixel += RUN_PIXELS) {
                const int left = target->plane - pixel;
                const int count = left < RUN_PIXELS ? left : RUN_PIXELS;
                int16_t value[RUN_PIXELS * ILANES];
                pass_line(chain, &how, &run, pixel, count, value);
                for (int i = 0; i < count; i++, element++, to += ILANES) {
                    const struct int_mixing put = int_mixing_of(mix, element / source->plane);
                    put_pixel(&put, 1, value + i * ILANES, to);
                }
            }
        }
    }
}

/* The gradient of a maximum goes to the first of equal values, example by example. */
INLINE void int_spread(const struct int_pool *p, const struct int_reading *how, const int8_t *x,
                       struct window w, const int16_t *g, int32_t *sums) {
    int32_t most[ILANES], left[ILANES];
    for (int i = 0; i < ILANES; i++) left[i] = g[i];
    if (p->maximum) int_pool_window(p, how, x, w, most);
    for (int y = w.top; y < w.bottom; y++) {
        for (int column = w.left; column < w.right; column++) {
            const int at = (y * p->windows.in_width + column) * ILANES;
            for (int i = 0; i < ILANES; i++) {
                if (p->maximum && int_value(how, x[at + i]) != most[i]) continue;
                sums[at + i] += left[i];
                if (p->maximum) left[i] = 0;
            }
        }
    }
}

/* Write or add what each window gives to source's gradient; `room` holds one plane of sums. */
void NAME(int_pool_backward)(const struct int_pool *p, int first, int last, int32_t *room) {
    const struct int_tensor *s = p->source;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < s->channels; c++) {
            const struct int_reading how = int_reading_of(&p->read, c);
            const struct int_passing passing = int_passing_of(&p->chain, c);
            const struct int_run run = int_run_of(p->target, tile, c);
            const struct int_mixing put = int_mixing_of(&p->mix, c);
            const int8_t *x = s->x + int_plane(s, tile, c);
            int16_t *to = s->gradient + int_plane(s, tile, c), value[ILANES];
            memset(room, 0, (size_t)s->plane * ILANES * sizeof *room);
            for (int oy = 0, pixel = 0; oy < p->windows.out_height; oy++) {
                for (int ox = 0; ox < p->windows.out_width; ox++, pixel++) {
                    pass_line(&p->chain, &passing, &run, pixel, 1, value);
                    int_spread(p, &how, x, window_of(&p->windows, oy, ox), value, room);
                }
            }
            for (int pixel = 0; pixel < s->plane; pixel++, to += ILANES) {
                for (int i = 0; i < ILANES; i++)
                    value[i] = (int16_t)shift_half_even(room[pixel * ILANES + i], p->shift_in);
                put_pixel(&put, p->accumulate, value, to);
            }
        }
    }
}

/* -- weights ---------------------------------------------------------------------------------- */

INLINE int64_t clamp_wide(int64_t x, int64_t limit) {
    return x < -limit ? -limit : x > limit ? limit : x;
}

/* One step of SGD with momentum over rows of weights, all in fixed point; row r ends before
 * weight ends[r], and its gradients are worth rate[r] * 2^-rate_shift[r] steps, where a rate of
 * more than 15 bits has no shift:
 *   velocity = velocity * momentum + gradient * rate + weight * decay, each rounded half up
 *   weight -= velocity >> extra, which rounds at random, for its lost bits are most of a step */
void NAME(int_sgd)(int32_t *restrict weight, int32_t *restrict velocity,
                   const int64_t *restrict gradient,
                   const int32_t *ends, int rows, const int32_t *rate, const int32_t *rate_shift,
                   int32_t decay, int32_t decay_shift, int32_t momentum, int32_t extra,
                   uint32_t key_low, uint32_t key_high) {
    const int64_t decay_half = decay_shift ? (int64_t)1 << (decay_shift - 1) : 0;
    const uint32_t mask = (1u << extra) - 1;
    int32_t i = 0;
    for (int row = 0; row < rows; row++) {
        const int64_t factor = rate[row], shift = rate_shift[row];
        const int64_t half = shift ? (int64_t)1 << (shift - 1) : 0;
        const int64_t most = shift ? (int64_t)1 << 47 : INT32_MAX; /* of those times the rate */
        for (const int32_t end = ends[row]; i < end; i++) {
            int64_t step = (clamp_wide(gradient[i], most) * factor + half) >> shift;
            step += ((int64_t)weight[i] * decay + decay_half) >> decay_shift;
            step += ((int64_t)velocity[i] * momentum + (1 << 29)) >> 30;
            velocity[i] = (int32_t)clamp_wide(step, INT32_MAX);
            const int64_t random = random_bits(key_low, key_high, (uint32_t)i) & mask;
            const int64_t moved = weight[i] - ((velocity[i] + random) >> extra);
            weight[i] = (int32_t)clamp_wide(moved, INT32_MAX);
        }
    }
}

#endif
