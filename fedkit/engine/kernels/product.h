/* Products of matrices that are both activations, for each row of maps. Of a map its channels and
 * columns are a matrix in each row:
 * target[n][row][m] = sum of right[n][row][k] * left[k][row][m] over k
 */
#ifndef FEDKIT_PRODUCT_H
#define FEDKIT_PRODUCT_H

#include "matrices.h"

/* Floats from a channel to the next. */
INLINE ptrdiff_t channel_step(const struct tensor *t) { return (ptrdiff_t)t->plane * LANES; }

void NAME(product_forward)(const struct product *p, int first, int last, float *room) {
    const struct tensor *l = p->left, *r = p->right, *t = p->target;
    const int columns = t->plane / p->rows, terms = l->channels;
    for (int tile = first; tile < last; tile++) {
        float *free = room, *to = t->x + plane_offset(t, tile, 0);
        const float *left = tile_values(l, tile, &free), *right = tile_values(r, tile, &free);
        for (int row = 0; row < p->rows; row++) {
            const struct matrices m = {
                right + (ptrdiff_t)row * terms * LANES, left + (ptrdiff_t)row * columns * LANES,
                to + (ptrdiff_t)row * columns * LANES, LANES, channel_step(r), channel_step(l), LANES,
                channel_step(t), LANES, t->channels, columns, terms, 0};
            multiply_matrices(&m);
        }
    }
}

void NAME(product_backward)(const struct product *p, int first, int last, float *room) {
    const struct tensor *l = p->left, *r = p->right, *t = p->target;
    const int columns = t->plane / p->rows, terms = l->channels;
    for (int tile = first; tile < last; tile++) {
        float *free = room;
        const float *left = tile_values(l, tile, &free), *right = tile_values(r, tile, &free);
        const float *g = tile_gradient(t, tile, &free);
        float *to_left = tile_sums(l, tile, p->gives_left);
        float *to_right = tile_sums(r, tile, p->gives_right);
        for (int row = 0; row < p->rows; row++) {
            const ptrdiff_t at = (ptrdiff_t)row * columns * LANES;
            const ptrdiff_t at_right = (ptrdiff_t)row * terms * LANES;
            if (to_left) {
                const struct matrices m = {
                    right + at_right, g + at, to_left + at, channel_step(r), LANES, channel_step(t),
                    LANES, channel_step(l), LANES, terms, columns, t->channels, 1};
                multiply_matrices(&m);
            }
            if (to_right) {
                const struct matrices m = {
                    g + at, left + at, to_right + at_right, LANES, channel_step(t), LANES,
                    channel_step(l), channel_step(r), LANES, t->channels, terms, columns, 1};
                multiply_matrices(&m);
            }
        }
    }
}

#endif
