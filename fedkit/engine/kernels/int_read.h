/* Reading a tensor, one pixel of all lanes at a time. */
#ifndef FEDKIT_INT_READ_H
#define FEDKIT_INT_READ_H

#include "int_lanes.h"
#include "int_tensor.h"

/* How one channel is read, in vectors; a fits int16, as all multipliers of codes do. */
struct int_reader {
    isum add;
    ivec low, high;
    int16_t a[2];
    int shift;
};

INLINE struct int_reader int_reader_of(const struct int_read *r, int channel) {
    const struct int_reading how = int_reading_of(r, channel);
    const struct int_reader reader = {isum_set1(how.b), ivec_set1((int16_t)how.low),
                                      ivec_set1((int16_t)how.high), {(int16_t)how.a, 0}, how.shift};
    return reader;
}

INLINE ivec int_read_pixel(const struct int_reader *how, const int8_t *x) {
    isum v = how->add;
    isum_dot(&v, ivec_pair(ivec_load_codes(x), ivec_set1(0)), how->a);
    return ivec_max(ivec_min(isum_narrow_floor(v, how->shift), how->high), how->low);
}

#endif
