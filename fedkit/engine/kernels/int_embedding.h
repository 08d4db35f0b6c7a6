/* Rows of a table that tokens choose, in integers: codes of the source, shifted, are tokens. */
#ifndef FEDKIT_INT_EMBEDDING_H
#define FEDKIT_INT_EMBEDDING_H

#include "int_pass.h"

/* target->raw[c][t] = table[token t][c] */
void NAME(int_embedding_forward)(const struct int_tensor *source, const struct int_tensor *target,
                                 const int16_t *table, int shift, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < target->channels; c++) {
            const int8_t *x = source->x + int_plane(source, tile, 0);
            int16_t *to = target->raw + int_plane(target, tile, c);
            for (int i = 0; i < target->plane * ILANES; i++)
                to[i] = table[(ptrdiff_t)(x[i] >> shift) * target->channels + c];
        }
    }
}

/* Add to sums [rows][channels] what passes, but to the row `padding`. */
void NAME(int_embedding_sums)(const struct int_tensor *source, const struct int_tensor *target,
                              const struct int_chain *chain, int shift, int padding, int first,
                              int last, int64_t *sums) {
    for (int tile = first; tile < last; tile++) {
        const int8_t *x = source->x + int_plane(source, tile, 0);
        for (int c = 0; c < target->channels; c++) {
            const struct int_passing how = int_passing_of(chain, c);
            const struct int_run run = int_run_of(target, tile, c);
            for (int place = 0; place < target->plane; place++) {
                int16_t passed[ILANES];
                pass_line(chain, &how, &run, place, 1, passed);
                for (int i = 0; i < ILANES; i++) {
                    const int token = x[place * ILANES + i] >> shift;
                    if (token != padding)
                        sums[(ptrdiff_t)token * target->channels + c] += passed[i];
                }
            }
        }
    }
}

#endif
