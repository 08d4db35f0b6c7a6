/* Values put elsewhere, each of them once: what is joined along rows or columns, and what is put in
 * another order. */
#ifndef FEDKIT_PUT_H
#define FEDKIT_PUT_H

#include "tensor.h"

/* The element of a target where pixel i of a source's channel c lies. */
INLINE ptrdiff_t put_place(const struct put *p, int c, int i) {
    return p->start + (ptrdiff_t)c * p->channel + (ptrdiff_t)(i / p->width) * p->row +
           (ptrdiff_t)(i % p->width) * p->column;
}

/* target[place of (c, i)] = what is read of source[c][i] */
void NAME(put_forward)(const struct tensor *source, const struct tensor *target,
                       const struct put *p, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        float *to = target->x + plane_offset(target, tile, 0);
        for (int c = 0; c < source->channels; c++) {
            const struct reading how = reading_of(source, c);
            const float *x = source->x + plane_offset(source, tile, c);
            for (int i = 0; i < source->plane; i++, x += LANES)
                vec_store(to + put_place(p, c, i) * LANES, read_value(&how, vec_load(x)));
        }
    }
}

/* Write or add to source's gradient the raw gradient of the target where each element lies. */
void NAME(put_backward)(const struct tensor *source, const struct tensor *target,
                        const struct put *p, int accumulate, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(target, tile));
        const ptrdiff_t at = plane_offset(target, tile, 0);
        float *to = source->gradient + plane_offset(source, tile, 0);
        struct chain how = chain_of(target, 0, valid);
        int channel = 0;
        for (int c = 0; c < source->channels; c++) {
            for (int i = 0; i < source->plane; i++, to += LANES) {
                const ptrdiff_t place = put_place(p, c, i), from = at + place * LANES;
                if (place / target->plane != channel) {
                    channel = (int)(place / target->plane);
                    how = chain_of(target, channel, valid);
                }
                const vec raw = raw_gradient(&how, vec_load(target->gradient + from),
                                             vec_load(target->x + from));
                vec_store(to, accumulate ? vec_add(vec_load(to), raw) : raw);
            }
        }
    }
}

#endif
