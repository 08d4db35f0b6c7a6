/* Integers put elsewhere, each of them once. */
#ifndef FEDKIT_INT_PUT_H
#define FEDKIT_INT_PUT_H

#include "int_pass.h"
#include "put.h"

/* target->raw[place of (c, i)] = what is read of source[c][i] */
void NAME(int_put_forward)(const struct int_tensor *source, const struct int_read *read,
                           const struct int_tensor *target, const struct put *p, int first,
                           int last) {
    for (int tile = first; tile < last; tile++) {
        int16_t *raw = target->raw + int_plane(target, tile, 0);
        for (int c = 0; c < source->channels; c++) {
            const struct int_reading how = int_reading_of(read, c);
            const int8_t *x = source->x + int_plane(source, tile, c);
            for (int pixel = 0; pixel < source->plane; pixel++, x += ILANES) {
                int16_t *to = raw + put_place(p, c, pixel) * ILANES;
                for (int i = 0; i < ILANES; i++) to[i] = (int16_t)int_value(&how, x[i]);
            }
        }
    }
}

/* Write or add to source's gradient the passed gradient of the target where each element lies. */
void NAME(int_put_backward)(const struct int_tensor *source, const struct int_tensor *target,
                            const struct int_chain *chain, const struct int_mix *mix,
                            const struct put *p, int accumulate, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        int16_t *to = source->gradient + int_plane(source, tile, 0);
        struct int_passing how = int_passing_of(chain, 0);
        struct int_run run = int_run_of(target, tile, 0);
        int channel = 0;
        for (int c = 0; c < source->channels; c++) {
            const struct int_mixing put = int_mixing_of(mix, c);
            for (int pixel = 0; pixel < source->plane; pixel++, to += ILANES) {
                const ptrdiff_t place = put_place(p, c, pixel);
                int16_t value[ILANES];
                if (place / target->plane != channel) {
                    channel = (int)(place / target->plane);
                    how = int_passing_of(chain, channel);
                    run = int_run_of(target, tile, channel);
                }
                pass_line(chain, &how, &run, (int)(place % target->plane), 1, value);
                put_pixel(&put, accumulate, value, to);
            }
        }
    }
}

#endif
