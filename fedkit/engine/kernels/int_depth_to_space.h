/* Integers of channels as places. */
#ifndef FEDKIT_INT_DEPTH_TO_SPACE_H
#define FEDKIT_INT_DEPTH_TO_SPACE_H

#include "depth_to_space.h"
#include "int_pass.h"

#define WIDE_MOST 32767

/* target->raw = what is read of the source, plus the bias */
void NAME(int_depth_to_space_forward)(const struct int_blocks *b, int first, int last) {
    const struct int_tensor *s = b->source, *t = b->target;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < s->channels; c++) {
            const struct int_reading how = int_reading_of(&b->read, c);
            const struct block_plane plane = block_plane_of(&b->where, c);
            const int32_t bias = b->bias ? b->bias[plane.channel] : 0;
            const int8_t *from = s->x + int_plane(s, tile, c);
            int16_t *to = t->raw + int_plane(t, tile, plane.channel);
            for (int y = plane.rows.first; y < plane.rows.last; y++) {
                for (int x = plane.columns.first; x < plane.columns.last; x++) {
                    const int8_t *at = from + (ptrdiff_t)(y * b->where.in_width + x) * ILANES;
                    int16_t *value = to + (ptrdiff_t)block_pixel(&b->where, &plane, y, x) * ILANES;
                    for (int i = 0; i < ILANES; i++)
                        value[i] = (int16_t)clamp(int_value(&how, at[i]) + bias, -WIDE_MOST, WIDE_MOST);
                }
            }
        }
    }
}

/* Whether a pixel of the source is one of the target. */
INLINE int block_has(const struct block_plane *plane, int y, int x) {
    const struct block_line *rows = &plane->rows, *columns = &plane->columns;
    return y >= rows->first && y < rows->last && x >= columns->first && x < columns->last;
}

/* Write or add the passed gradient to the source's; what is cut off passes 0. */
void NAME(int_depth_to_space_backward)(const struct int_blocks *b, int first, int last) {
    const struct int_tensor *s = b->source;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < s->channels; c++) {
            const struct block_plane plane = block_plane_of(&b->where, c);
            const struct int_passing how = int_passing_of(&b->chain, plane.channel);
            const struct int_run run = int_run_of(b->target, tile, plane.channel);
            const struct int_mixing put = int_mixing_of(&b->mix, c);
            int16_t *to = s->gradient + int_plane(s, tile, c), value[ILANES];
            for (int y = 0; y < b->where.in_height; y++) {
                for (int x = 0; x < b->where.in_width; x++, to += ILANES) {
                    memset(value, 0, sizeof value);
                    if (block_has(&plane, y, x))
                        pass_line(&b->chain, &how, &run, block_pixel(&b->where, &plane, y, x), 1,
                                  value);
                    put_pixel(&put, b->accumulate, value, to);
                }
            }
        }
    }
}

/* sums[c] = the sum of the passed gradients of a channel of the target */
void NAME(int_depth_to_space_gradients)(const struct int_blocks *b, int64_t *sums) {
    const struct int_tensor *t = b->target;
    int16_t value[ILANES];
    for (int c = 0; c < t->channels; c++) {
        const struct int_passing how = int_passing_of(&b->chain, c);
        sums[c] = 0;
        for (int tile = 0; tile < int_tiles(t); tile++) {
            const struct int_run run = int_run_of(t, tile, c);
            for (int pixel = 0; pixel < t->plane; pixel++) {
                pass_line(&b->chain, &how, &run, pixel, 1, value);
                for (int i = 0; i < ILANES; i++) sums[c] += value[i];
            }
        }
    }
}

#endif
