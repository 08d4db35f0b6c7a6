/* Rows of a table, which whole numbers of the input choose. */
#ifndef FEDKIT_EMBEDDING_H
#define FEDKIT_EMBEDDING_H

#include "tensor.h"

/* target[c][i] = table[source[i]][c]; the numbers are of 0 .. rows - 1, as who calls has seen to. */
void NAME(embedding_forward)(const struct tensor *source, const struct tensor *target,
                             const float *table, int first, int last) {
    const int width = target->channels;
    for (int tile = first; tile < last; tile++) {
        const float *number = source->x + plane_offset(source, tile, 0);
        float *to = target->x + plane_offset(target, tile, 0);
        const int valid = valid_lanes(source, tile);
        for (int i = 0; i < target->plane; i++, number += LANES) {
            const float *row[LANES];
            for (int lane = 0; lane < LANES; lane++)
                row[lane] = table + (lane < valid ? (ptrdiff_t)number[lane] * width : 0);
            for (int c = 0; c < width; c++)
                for (int lane = 0; lane < LANES; lane++)
                    to[((ptrdiff_t)c * target->plane + i) * LANES + lane] = row[lane][c];
        }
    }
}

/* Add the gradient of the columns first .. last - 1 of the table, in the order of the examples; a
 * row that is padding has none. */
void NAME(embedding_gradients)(const struct tensor *source, const struct tensor *target,
                               float *gradient, int padding, int first, int last) {
    const int width = target->channels;
    for (int tile = 0; tile < count_tiles(target); tile++) {
        const float *number = source->x + plane_offset(source, tile, 0);
        const int valid = valid_lanes(source, tile);
        for (int c = first; c < last; c++) {
            const struct chain how = chain_of(target, c, vec_lanes(valid));
            const ptrdiff_t at = plane_offset(target, tile, c);
            for (int i = 0; i < target->plane; i++) {
                float raw[LANES];
                vec_store(raw, raw_gradient(&how, vec_load(target->gradient + at + i * LANES),
                                            vec_load(target->x + at + i * LANES)));
                for (int lane = 0; lane < valid; lane++) {
                    const int row = (int)number[i * LANES + lane];
                    if (row != padding) gradient[(ptrdiff_t)row * width + c] += raw[lane];
                }
            }
        }
    }
}

#endif
