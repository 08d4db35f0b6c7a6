/* Values that all examples have, in integers. */
#ifndef FEDKIT_INT_SPREAD_H
#define FEDKIT_INT_SPREAD_H

#include "int_pass.h"

/* target->raw = values [channels * plane], for each lane */
void NAME(int_spread_forward)(const struct int_tensor *t, const int16_t *values, int first,
                              int last) {
    const int count = t->channels * t->plane;
    for (int tile = first; tile < last; tile++) {
        int16_t *to = t->raw + int_plane(t, tile, 0);
        for (int e = 0; e < count; e++, to += ILANES) ivec_store(to, ivec_set1(values[e]));
    }
}

/* Add to sums [channels * plane] what passes of each element. */
void NAME(int_spread_sums)(const struct int_tensor *t, const struct int_chain *chain, int first,
                           int last, int64_t *sums) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const struct int_passing how = int_passing_of(chain, c);
            const struct int_run run = int_run_of(t, tile, c);
            for (int pixel = 0; pixel < t->plane; pixel++) {
                int16_t passed[ILANES];
                int32_t sum = 0;
                pass_line(chain, &how, &run, pixel, 1, passed);
                for (int i = 0; i < ILANES; i++) sum += passed[i];
                sums[(ptrdiff_t)c * t->plane + pixel] += sum;
            }
        }
    }
}

#endif
