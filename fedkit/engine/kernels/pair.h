/* Products, differences and sums of two tensors. One may have a single pixel per channel, as the
 * gates of squeeze-and-excitation: it goes with every pixel of the other, and its gradient is the
 * sum over the plane.
 */
#ifndef FEDKIT_PAIR_H
#define FEDKIT_PAIR_H

#include "tensor.h"

/* In the order of `PairOp.kind` in plan/pair.py. */
enum pair_kind { PAIR_MUL, PAIR_SUB, PAIR_ADD };

#define PAIR_RUN 64 /* pixels that are summed before they are added to others */

/* One channel of one tile of a tensor beside another: floats from a pixel to the next. */
struct beside {
    struct reading how;
    const float *x;
    int step;
};

INLINE struct beside beside_of(const struct tensor *t, int plane, int tile, int channel) {
    struct beside b = {reading_of(t, channel), t->x + plane_offset(t, tile, channel),
                       t->plane == plane ? LANES : 0};
    return b;
}

INLINE vec beside_value(const struct beside *b, int pixel) {
    return read_value(&b->how, vec_load(b->x + pixel * b->step));
}

INLINE vec pair_value(int kind, vec x, vec y) {
    if (kind == PAIR_MUL) return vec_mul(x, y);
    return kind == PAIR_SUB ? vec_sub(x, y) : vec_add(x, y);
}

void NAME(pair_forward)(const struct pair *p, int first, int last) {
    const int plane = p->target->plane;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < p->target->channels; c++) {
            const struct beside left = beside_of(p->left, plane, tile, c);
            const struct beside right = beside_of(p->right, plane, tile, c);
            float *to = p->target->x + plane_offset(p->target, tile, c);
            for (int i = 0; i < plane; i++)
                vec_store(to + i * LANES,
                          pair_value(p->kind, beside_value(&left, i), beside_value(&right, i)));
        }
    }
}

/* One channel of one tile in the backward pass. */
struct pair_run {
    struct chain chain;
    struct beside other;
    const float *g, *y;
};

/* What one pixel of the target gives to a side. */
INLINE vec pair_gradient(const struct pair *p, const struct pair_run *run, int i) {
    const vec y = run->chain.norm ? vec_load(run->y + i * LANES) : vec_zero();
    const vec raw = raw_gradient(&run->chain, vec_load(run->g + i * LANES), y);
    if (p->kind == PAIR_MUL) return vec_mul(raw, beside_value(&run->other, i));
    return p->kind == PAIR_SUB && p->side ? vec_sub(vec_zero(), raw) : raw;
}

INLINE vec pair_total(const struct pair *p, const struct pair_run *run) {
    vec total = vec_zero();
    for (int begin = 0; begin < p->target->plane; begin += PAIR_RUN) {
        const int left = p->target->plane - begin, count = left < PAIR_RUN ? left : PAIR_RUN;
        vec sum = vec_zero();
        for (int i = begin; i < begin + count; i++) sum = vec_add(sum, pair_gradient(p, run, i));
        total = vec_add(total, sum);
    }
    return total;
}

INLINE void pair_put(const struct pair *p, float *to, vec given) {
    vec_store(to, p->accumulate ? vec_add(vec_load(to), given) : given);
}

/* Write or add the gradient of what is read of one side. */
void NAME(pair_backward)(const struct pair *p, int first, int last) {
    const struct tensor *own = p->side ? p->right : p->left, *other = p->side ? p->left : p->right;
    const struct tensor *target = p->target;
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(target, tile));
        for (int c = 0; c < target->channels; c++) {
            const ptrdiff_t at = plane_offset(target, tile, c);
            const struct pair_run run = {chain_of(target, c, valid),
                                         beside_of(other, target->plane, tile, c),
                                         target->gradient + at, target->x + at};
            float *to = own->gradient + plane_offset(own, tile, c);
            if (own->plane != target->plane) {
                pair_put(p, to, pair_total(p, &run));
                continue;
            }
            for (int i = 0; i < target->plane; i++)
                pair_put(p, to + i * LANES, pair_gradient(p, &run, i));
        }
    }
}

#endif
