/* Values from other places along single axes. A place may be taken several times, or never; pixel -1
 * is a zero. */
#ifndef FEDKIT_TAKE_H
#define FEDKIT_TAKE_H

#include <string.h>

#include "tensor.h"

/* target[c][i] = what is read of source[channels[c]][pixels[i]] */
void NAME(take_forward)(const struct take *t, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        float *to = t->target->x + plane_offset(t->target, tile, 0);
        for (int c = 0; c < t->target->channels; c++) {
            const struct reading how = reading_of(t->source, t->channels[c]);
            const float *x = t->source->x + plane_offset(t->source, tile, t->channels[c]);
            for (int i = 0; i < t->target->plane; i++, to += LANES) {
                const ptrdiff_t from = (ptrdiff_t)t->pixels[i] * LANES;
                vec_store(to, from < 0 ? vec_zero() : read_value(&how, vec_load(x + from)));
            }
        }
    }
}

/* Add the raw gradient of one channel of the target to a plane of the source's gradient. */
INLINE void take_back(const struct take *t, int tile, int channel, float *to) {
    const vec valid = vec_lanes(valid_lanes(t->target, tile));
    const struct chain how = chain_of(t->target, channel, valid);
    const ptrdiff_t at = plane_offset(t->target, tile, channel);
    const float *g = t->target->gradient + at, *x = t->target->x + at;
    for (int i = 0; i < t->target->plane; i++, g += LANES, x += LANES) {
        if (t->pixels[i] < 0) continue;
        float *sum = to + (ptrdiff_t)t->pixels[i] * LANES;
        vec_store(sum, vec_add(vec_load(sum), raw_gradient(&how, vec_load(g), vec_load(x))));
    }
}

/* Write or add to the source's gradient what all places that one is taken to pass back. */
void NAME(take_backward)(const struct take *t, int first, int last) {
    const size_t bytes = (size_t)t->source->plane * LANES * sizeof(float);
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->source->channels; c++) {
            float *to = t->source->gradient + plane_offset(t->source, tile, c);
            if (!t->accumulate) memset(to, 0, bytes);
            for (int i = t->first[c]; i < t->first[c + 1]; i++) take_back(t, tile, t->order[i], to);
        }
    }
}

#endif
