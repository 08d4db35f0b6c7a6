/* Convolution by a compressed stream of non-zero weights, decoded as it is used. */
#include "ek_plain.h"

typedef struct {
    const ek_stream_conv *conv;
    int32_t count;         /* weights of this output channel */
    const uint8_t *deltas; /* from here on */
    const uint8_t *values;
} ek_filter_stream;

static int32_t ek_value(const uint8_t *values, int32_t number, int32_t bits) {
    if (bits == 8) return (int8_t)values[number];
    const int32_t half = values[number / 2] >> (number % 2 * 4) & 15;
    return (half ^ 8) - 8;
}

static void ek_stream_taps(const void *state, const uint8_t *p, int32_t *sums, int32_t count) {
    const ek_filter_stream *f = (const ek_filter_stream *)state;
    const ek_stream_conv *conv = f->conv;
    const uint8_t *delta = f->deltas;
    int32_t index = -1;
    for (int32_t n = 0; n < f->count; n++) {
        for (; *delta == 0; delta++) index += 255;
        index += *delta++;
        const int32_t channel = index / conv->taps, tap = index - channel * conv->taps;
        const uint8_t *from = p + (channel * conv->in_plane + conv->at[tap]);
        ek_tap(sums, from, ek_value(f->values, n, conv->bits), count);
    }
}

/* Reads where the parts of a filter are; returns its end. */
static const uint8_t *ek_open(ek_filter_stream *filter, const uint8_t *stream) {
    filter->count = stream[0] | stream[1] << 8;
    filter->deltas = filter->values = stream + 2;
    for (int32_t n = 0; n < filter->count; n++)
        while (*filter->values++ == 0) continue;
    return filter->values + (filter->count * filter->conv->bits + 7) / 8;
}

void ek_conv_stream(const ek_stream_conv *conv, const uint8_t *in, const uint8_t *other,
                    uint8_t *out) {
    ek_channel c = {&conv->out, &conv->requant, conv->sum, 0, conv->in_row};
    ek_filter_stream filter = {conv, 0, 0, 0};
    const uint8_t *stream = conv->stream;
    if (!conv->sum) other = out;
    ek_halo_before(&conv->out, out);
    for (; c.channel < conv->out.channels; c.channel++) {
        const int32_t group = c.channel / conv->group_out;
        stream = ek_open(&filter, stream);
        ek_plane(&c, ek_stream_taps, &filter, in + group * conv->group_in * conv->in_plane, other,
                 out);
        out += conv->out.plane;
        other += conv->out.plane;
    }
}
