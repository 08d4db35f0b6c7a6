/* Channels as places: of each pixel a block of pixels, of which some at the border are cut off. */
#ifndef FEDKIT_DEPTH_TO_SPACE_H
#define FEDKIT_DEPTH_TO_SPACE_H

#include <string.h>

#include "tensor.h"

/* The pixels first .. last - 1 of a line of the source whose place in their blocks lies within the
 * `length` places of the target; place 0 of that is `begin` of the first block. */
struct block_line {
    int first, last, begin;
};

INLINE int blocks_before(int place, int step) { return place <= 0 ? 0 : (place + step - 1) / step; }

INLINE struct block_line block_line_of(int size, int length, int step, int cut, int place) {
    struct block_line line = {blocks_before(cut - place, step), 0, place - cut};
    const int last = blocks_before(cut + length - place, step);
    line.last = last < size ? last : size;
    return line;
}

/* Where the pixels of one channel of the source are in the target. */
struct block_plane {
    struct block_line rows, columns;
    int channel;
};

INLINE struct block_plane block_plane_of(const struct blocks *b, int channel) {
    const int block = b->step_y * b->step_x, place = channel % block;
    struct block_plane plane = {
        block_line_of(b->in_height, b->out_height, b->step_y, b->top, place / b->step_x),
        block_line_of(b->in_width, b->out_width, b->step_x, b->left, place % b->step_x),
        channel / block};
    return plane;
}

/* Pixel (y, x) of the source as a pixel of the target. */
INLINE int block_pixel(const struct blocks *b, const struct block_plane *plane, int y, int x) {
    const int row = y * b->step_y + plane->rows.begin, column = plane->columns.begin;
    return row * b->out_width + x * b->step_x + column;
}

/* target[c][y * step + i][x * step + j] = what is read of source[c * block + place of (i, j)][y][x],
 * plus the bias of c */
void NAME(depth_to_space_forward)(const struct blocks *b, int first, int last) {
    const struct tensor *s = b->source, *t = b->target;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < s->channels; c++) {
            const struct reading how = reading_of(s, c);
            const struct block_plane plane = block_plane_of(b, c);
            const vec bias = vec_set1(b->bias ? b->bias[plane.channel] : 0.0f);
            const float *from = s->x + plane_offset(s, tile, c);
            float *to = t->x + plane_offset(t, tile, plane.channel);
            for (int y = plane.rows.first; y < plane.rows.last; y++) {
                for (int x = plane.columns.first; x < plane.columns.last; x++) {
                    const float *at = from + (ptrdiff_t)(y * b->in_width + x) * LANES;
                    const vec value = vec_add(read_value(&how, vec_load(at)), bias);
                    vec_store(to + (ptrdiff_t)block_pixel(b, &plane, y, x) * LANES, value);
                }
            }
        }
    }
}

/* Write or add the gradient of what is read of the source; of what is cut off that is 0. */
void NAME(depth_to_space_backward)(const struct blocks *b, int first, int last) {
    const struct tensor *s = b->source, *t = b->target;
    const size_t bytes = (size_t)s->plane * LANES * sizeof(float);
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(t, tile));
        for (int c = 0; c < s->channels; c++) {
            const struct block_plane plane = block_plane_of(b, c);
            const struct chain how = chain_of(t, plane.channel, valid);
            const ptrdiff_t at = plane_offset(t, tile, plane.channel);
            float *to = s->gradient + plane_offset(s, tile, c);
            if (!b->accumulate) memset(to, 0, bytes);
            for (int y = plane.rows.first; y < plane.rows.last; y++) {
                for (int x = plane.columns.first; x < plane.columns.last; x++) {
                    const ptrdiff_t from = at + (ptrdiff_t)block_pixel(b, &plane, y, x) * LANES;
                    const vec g = vec_load(t->gradient + from);
                    float *sum = to + (ptrdiff_t)(y * b->in_width + x) * LANES;
                    const vec raw = raw_gradient(&how, g, vec_load(t->x + from));
                    vec_store(sum, vec_add(vec_load(sum), raw));
                }
            }
        }
    }
}

/* Add the gradient of the bias of the channels first .. last - 1. */
void NAME(depth_to_space_gradients)(const struct blocks *b, int first, int last) {
    const struct tensor *t = b->target;
    for (int c = first; c < last; c++) {
        double total = 0;
        for (int tile = 0; tile < count_tiles(t); tile++) {
            const struct chain how = chain_of(t, c, vec_lanes(valid_lanes(t, tile)));
            const float *g = t->gradient + plane_offset(t, tile, c);
            const float *x = t->x + plane_offset(t, tile, c);
            vec sum = vec_zero();
            for (int i = 0; i < t->plane; i++, g += LANES, x += LANES)
                sum = vec_add(sum, raw_gradient(&how, vec_load(g), vec_load(x)));
            total += vec_sum(sum);
        }
        b->bias_gradient[c] += (float)total;
    }
}

#endif
