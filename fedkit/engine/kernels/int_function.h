/* Functions of one value in integers, by tables of what is read in 8 bits. */
#ifndef FEDKIT_INT_FUNCTION_H
#define FEDKIT_INT_FUNCTION_H

#include "int_pass.h"

#define TABLE_MIDDLE 128 /* where the table has 0 */

/* target->raw = table of what is read */
void NAME(int_function_forward)(const struct int_function *f, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < f->target->channels; c++) {
            const struct int_reading how = int_reading_of(&f->read, c);
            const ptrdiff_t at = int_plane(f->target, tile, c);
            const int8_t *x = f->source->x + at;
            int16_t *to = f->target->raw + at;
            for (int i = 0; i < f->target->plane * ILANES; i++)
                to[i] = f->table[int_value(&how, x[i]) + TABLE_MIDDLE];
        }
    }
}

/* Write or add the passed gradient of the target times the slope, of 15 bits each. */
void NAME(int_function_backward)(const struct int_function *f, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < f->target->channels; c++) {
            const struct int_reading how = int_reading_of(&f->read, c);
            const struct int_passing passing = int_passing_of(&f->chain, c);
            const struct int_mixing put = int_mixing_of(&f->mix, c);
            const struct int_run run = int_run_of(f->target, tile, c);
            const ptrdiff_t at = int_plane(f->target, tile, c);
            const int8_t *x = f->source->x + at;
            int16_t *to = f->source->gradient + at, value[ILANES];
            for (int pixel = 0; pixel < f->target->plane; pixel++, x += ILANES, to += ILANES) {
                pass_line(&f->chain, &passing, &run, pixel, 1, value);
                for (int i = 0; i < ILANES; i++) {
                    const int32_t slope = f->table[int_value(&how, x[i]) + TABLE_MIDDLE];
                    value[i] = (int16_t)shift_half_even(value[i] * slope, 15);
                }
                put_pixel(&put, f->accumulate, value, to);
            }
        }
    }
}

#endif
