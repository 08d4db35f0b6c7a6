/* Products of matrices that are both activations, in integers: each row of a map holds one. */
#ifndef FEDKIT_INT_PRODUCT_H
#define FEDKIT_INT_PRODUCT_H

#include "int_matrices.h"

/* Both sides of a tile as read, the gradient, and what a side gets: [channels][plane]. */
struct product_tile {
    int16_t *left, *right, *g, *given;
};

static struct product_tile product_tile_of(const struct int_product *p, int tile, int16_t *room) {
    const struct int_tensor *l = p->left.tensor, *r = p->right.tensor, *t = p->target;
    struct product_tile of = {room, NULL, NULL, NULL};
    of.right = of.left + (ptrdiff_t)l->channels * l->plane * ILANES;
    of.g = of.right + (ptrdiff_t)r->channels * r->plane * ILANES;
    of.given = of.g + (ptrdiff_t)t->channels * t->plane * ILANES;
    side_values(&p->left, tile, 0, l->channels, of.left);
    side_values(&p->right, tile, 0, r->channels, of.right);
    return of;
}

/* target->raw = (sum of left * right + half) >> shift_out */
void NAME(int_product_forward)(const struct int_product *p, int first, int last, int16_t *room) {
    const struct int_tensor *l = p->left.tensor, *r = p->right.tensor, *t = p->target;
    const ptrdiff_t line_l = (ptrdiff_t)l->plane * ILANES, line_r = (ptrdiff_t)r->plane * ILANES;
    const int columns = t->plane / p->rows, terms = l->channels;
    for (int tile = first; tile < last; tile++) {
        const struct product_tile of = product_tile_of(p, tile, room);
        for (int row = 0; row < p->rows; row++) {
            const ptrdiff_t at = (ptrdiff_t)row * columns * ILANES;
            const struct int_matrices m = {
                {of.right + (ptrdiff_t)row * terms * ILANES, line_r, ILANES},
                {of.left + at, ILANES, line_l},
                t->raw + int_plane(t, tile, 0) + at, (ptrdiff_t)t->plane * ILANES, ILANES,
                t->channels, columns, terms, p->shift_out, 0};
            int_multiply(&m);
        }
    }
}

/* Shifts are the same for all channels of a side. */
INLINE void product_give(const struct int_product *p, int tile, const struct product_tile *of,
                         int right) {
    const struct int_side *side = right ? &p->right : &p->left;
    const struct int_tensor *l = p->left.tensor, *r = p->right.tensor, *t = p->target;
    const ptrdiff_t line_l = (ptrdiff_t)l->plane * ILANES, line_r = (ptrdiff_t)r->plane * ILANES;
    const ptrdiff_t line = (ptrdiff_t)t->plane * ILANES;
    const int columns = t->plane / p->rows, terms = l->channels;
    for (int row = 0; row < p->rows; row++) {
        const ptrdiff_t at = (ptrdiff_t)row * columns * ILANES;
        const ptrdiff_t at_right = (ptrdiff_t)row * terms * ILANES;
        struct int_matrices m = {{of->right + at_right, ILANES, line_r}, {of->g + at, ILANES, line},
                                 of->given + at, line_l, ILANES,
                                 terms, columns, t->channels, side->shift[0], 1};
        if (right) {
            const struct int_matrices other = {
                {of->g + at, line, ILANES}, {of->left + at, line_l, ILANES},
                of->given + at_right, line_r, ILANES,
                t->channels, terms, columns, side->shift[0], 1};
            m = other;
        }
        int_multiply(&m);
    }
    side_put(side, tile, 0, side->tensor->channels, of->given);
}

void NAME(int_product_backward)(const struct int_product *p, int first, int last, int16_t *room) {
    for (int tile = first; tile < last; tile++) {
        const struct product_tile of = product_tile_of(p, tile, room);
        chain_values(p->target, &p->chain, tile, 0, p->target->channels, of.g);
        if (p->left.gives) product_give(p, tile, &of, 0);
        if (p->right.gives) product_give(p, tile, &of, 1);
    }
}

#endif
