/* Products, differences and sums of two integer tensors, of which one may have a single pixel. */
#ifndef FEDKIT_INT_PAIR_H
#define FEDKIT_INT_PAIR_H

#include "int_pass.h"
#include "pair.h"

/* One channel of one tile of a tensor beside another: codes from a pixel to the next. */
struct int_beside {
    struct int_reading how;
    const int8_t *x;
    int step;
};

INLINE struct int_beside int_beside_of(const struct int_tensor *t, const struct int_read *read,
                                       int plane, int tile, int channel) {
    struct int_beside b = {int_reading_of(read, channel), t->x + int_plane(t, tile, channel),
                           t->plane == plane ? ILANES : 0};
    return b;
}

INLINE int32_t int_beside_value(const struct int_beside *b, int pixel, int lane) {
    return int_value(&b->how, b->x[pixel * b->step + lane]);
}

/* target->raw = left + right, left - right, or left * right / 2^15, rounded half up */
void NAME(int_pair_forward)(const struct int_pair *p, int first, int last) {
    const int plane = p->target->plane;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < p->target->channels; c++) {
            const struct int_beside left = int_beside_of(p->left, &p->read_left, plane, tile, c);
            const struct int_beside right = int_beside_of(p->right, &p->read_right, plane, tile, c);
            int16_t *to = p->target->raw + int_plane(p->target, tile, c);
            for (int pixel = 0; pixel < plane; pixel++, to += ILANES) {
                for (int i = 0; i < ILANES; i++) {
                    const int32_t x = int_beside_value(&left, pixel, i);
                    const int32_t y = int_beside_value(&right, pixel, i);
                    to[i] = (int16_t)(p->kind == PAIR_MUL   ? (x * y + (1 << 14)) >> 15
                                      : p->kind == PAIR_SUB ? x - y
                                                            : x + y);
                }
            }
        }
    }
}

/* One channel of one tile in the backward pass. */
struct int_pair_run {
    struct int_passing passing;
    struct int_run run;
    struct int_beside other;
};

INLINE struct int_pair_run int_pair_run_of(const struct int_pair *p, int tile, int channel) {
    const struct int_read *read = p->side ? &p->read_left : &p->read_right;
    struct int_pair_run run = {int_passing_of(&p->chain, channel),
                               int_run_of(p->target, tile, channel),
                               {{0, 0, 0, 0, 0}, NULL, 0}};
    if (p->kind == PAIR_MUL)
        run.other = int_beside_of(p->side ? p->left : p->right, read, p->target->plane, tile,
                                  channel);
    return run;
}

/* What one pixel of the target gives to a side: its gradient, times the other side / 2^15. */
INLINE void int_pair_gradient(const struct int_pair *p, const struct int_pair_run *run, int pixel,
                              int16_t *value) {
    pass_line(&p->chain, &run->passing, &run->run, pixel, 1, value);
    for (int i = 0; i < ILANES; i++) {
        if (p->kind == PAIR_MUL)
            value[i] = (int16_t)shift_half_even(
                value[i] * int_beside_value(&run->other, pixel, i), 15);
        else if (p->kind == PAIR_SUB && p->side)
            value[i] = (int16_t)-value[i];
    }
}

/* Write or add the gradient of a side that has all pixels. */
void NAME(int_pair_backward)(const struct int_pair *p, int first, int last) {
    const struct int_tensor *own = p->side ? p->right : p->left;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < own->channels; c++) {
            const struct int_pair_run run = int_pair_run_of(p, tile, c);
            const struct int_mixing put = int_mixing_of(&p->mix, c);
            int16_t *to = own->gradient + int_plane(own, tile, c), value[ILANES];
            for (int pixel = 0; pixel < own->plane; pixel++, to += ILANES) {
                int_pair_gradient(p, &run, pixel, value);
                put_pixel(&put, p->accumulate, value, to);
            }
        }
    }
}

/* Sum over the plane what a side of one pixel gets, [tiles][channels][ILANES], and find per channel
 * the largest magnitude. */
void NAME(int_pair_sum)(const struct int_pair *p, int first, int last, int32_t *sums,
                        int32_t *peak) {
    const int channels = p->target->channels;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < channels; c++) {
            const struct int_pair_run run = int_pair_run_of(p, tile, c);
            int32_t *sum = sums + ((ptrdiff_t)tile * channels + c) * ILANES;
            int16_t value[ILANES];
            for (int i = 0; i < ILANES; i++) sum[i] = 0;
            for (int pixel = 0; pixel < p->target->plane; pixel++) {
                int_pair_gradient(p, &run, pixel, value);
                for (int i = 0; i < ILANES; i++) sum[i] += value[i];
            }
            for (int i = 0; i < ILANES; i++) {
                const int32_t size = sum[i] < 0 ? -sum[i] : sum[i];
                peak[c] = size > peak[c] ? size : peak[c];
            }
        }
    }
}

/* Write or add such sums, shifted by a number of bits per channel. */
void NAME(int_pair_put)(const struct int_pair *p, const int32_t *shift, int first, int last,
                        const int32_t *sums) {
    const struct int_tensor *own = p->side ? p->right : p->left;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < own->channels; c++) {
            const struct int_mixing put = int_mixing_of(&p->mix, c);
            const int32_t *sum = sums + ((ptrdiff_t)tile * own->channels + c) * ILANES;
            int16_t value[ILANES];
            for (int i = 0; i < ILANES; i++) value[i] = (int16_t)shift_half_even(sum[i], shift[c]);
            put_pixel(&put, p->accumulate, value, own->gradient + int_plane(own, tile, c));
        }
    }
}

#endif
