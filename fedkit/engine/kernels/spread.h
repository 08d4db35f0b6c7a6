/* Values that all examples have: a parameter that is added or joined to them, or numbers. */
#ifndef FEDKIT_SPREAD_H
#define FEDKIT_SPREAD_H

#include "tensor.h"

/* target[e] = values[e], for each of its elements */
void NAME(spread_forward)(const struct tensor *target, const float *values, int first, int last) {
    const ptrdiff_t count = (ptrdiff_t)target->channels * target->plane;
    for (int tile = first; tile < last; tile++) {
        float *to = target->x + plane_offset(target, tile, 0);
        for (ptrdiff_t e = 0; e < count; e++) vec_store(to + e * LANES, vec_set1(values[e]));
    }
}

/* Write the gradient of the values of the channels first .. last - 1. */
void NAME(spread_gradients)(const struct tensor *target, float *gradient, int first, int last) {
    for (int c = first; c < last; c++) {
        for (int i = 0; i < target->plane; i++) {
            double total = 0;
            for (int tile = 0; tile < count_tiles(target); tile++) {
                const ptrdiff_t at = plane_offset(target, tile, c) + (ptrdiff_t)i * LANES;
                const struct chain how = chain_of(target, c, vec_lanes(valid_lanes(target, tile)));
                total += vec_sum(raw_gradient(&how, vec_load(target->gradient + at),
                                              vec_load(target->x + at)));
            }
            gradient[(ptrdiff_t)c * target->plane + i] = (float)total;
        }
    }
}

#endif
