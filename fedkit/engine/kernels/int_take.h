/* Integers from other places along single axes. */
#ifndef FEDKIT_INT_TAKE_H
#define FEDKIT_INT_TAKE_H

#include <string.h>

#include "int_pass.h"

/* target->raw[c][i] = what is read of source[channels[c]][pixels[i]] */
void NAME(int_take_forward)(const struct int_take *t, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        int16_t *to = t->target->raw + int_plane(t->target, tile, 0);
        for (int c = 0; c < t->target->channels; c++) {
            const struct int_reading how = int_reading_of(&t->read, t->channels[c]);
            const int8_t *x = t->source->x + int_plane(t->source, tile, t->channels[c]);
            for (int pixel = 0; pixel < t->target->plane; pixel++, to += ILANES) {
                const int at = t->pixels[pixel];
                for (int i = 0; i < ILANES; i++)
                    to[i] = at < 0 ? 0 : (int16_t)int_value(&how, x[(ptrdiff_t)at * ILANES + i]);
            }
        }
    }
}

/* Add the passed gradient of one channel of the target to a plane of sums. */
INLINE void int_take_back(const struct int_take *t, int tile, int channel, int32_t *sums) {
    const struct int_passing how = int_passing_of(&t->chain, channel);
    const struct int_run run = int_run_of(t->target, tile, channel);
    int16_t value[ILANES];
    for (int pixel = 0; pixel < t->target->plane; pixel++) {
        if (t->pixels[pixel] < 0) continue;
        int32_t *sum = sums + (ptrdiff_t)t->pixels[pixel] * ILANES;
        pass_line(&t->chain, &how, &run, pixel, 1, value);
        for (int i = 0; i < ILANES; i++) sum[i] += value[i];
    }
}

/* Write or add to the source's gradient what all places that one is taken to pass back; `room` holds
 * one plane of sums. */
void NAME(int_take_backward)(const struct int_take *t, int first, int last, int32_t *room) {
    const struct int_tensor *s = t->source;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < s->channels; c++) {
            const struct int_mixing put = int_mixing_of(&t->mix, c);
            int16_t *to = s->gradient + int_plane(s, tile, c), value[ILANES];
            memset(room, 0, (size_t)s->plane * ILANES * sizeof *room);
            for (int i = t->first[c]; i < t->first[c + 1]; i++)
                int_take_back(t, tile, t->order[i], room);
            for (int pixel = 0; pixel < s->plane; pixel++, to += ILANES) {
                for (int i = 0; i < ILANES; i++)
                    value[i] = (int16_t)shift_half_even(room[pixel * ILANES + i], t->shift_in);
                put_pixel(&put, t->accumulate, value, to);
            }
        }
    }
}

#endif
