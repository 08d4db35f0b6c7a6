/* Convolution by a compressed stream of non-zero weights; a filter at a time is decoded. */
#include "ek_dsp.h"

/* A filter. */
typedef struct {
    const ek_point *first, *end;
} ek_points;

static int32_t ek_value(const uint8_t *values, int32_t number, int32_t bits) {
    if (bits == 8) return (int8_t)values[number];
    const int32_t half = values[number / 2] >> (number % 2 * 4) & 15;
    return (half ^ 8) - 8;
}

/* Decodes a filter, with a weight of 0 behind it if there is an odd number; returns the end of its
 * stream. */
static const uint8_t *ek_decode(const ek_stream_conv *conv, const uint8_t *stream, ek_point *points,
                                int32_t *count) {
    const int32_t size = stream[0] | stream[1] << 8;
    int32_t channel = 0, tap = -1;
    stream += 2;
    for (int32_t n = 0; n < size; n++) {
        for (; *stream == 0; stream++) tap += 255;
        for (tap += *stream++; tap >= conv->taps; tap -= conv->taps) channel += conv->in_plane;
        points[n].at = channel + conv->at[tap];
    }
    for (int32_t n = 0; n < size; n++) points[n].weight = ek_value(stream, n, conv->bits);
    points[size].at = points[size].weight = 0;
    *count = (size + 1) / 2 * 2;
    return stream + (size * conv->bits + 7) / 8;
}

static void ek_point_taps(const void *state, const uint8_t *p, int32_t *sums, int32_t count) {
    const ek_points *points = (const ek_points *)state;
    for (const ek_point *point = points->first; point != points->end; point++)
        ek_tap(sums, p + point->at, point->weight, count);
}

#ifdef EK_DSP

static inline void ek_point_four(ek_four_sums *s, const ek_point *point, const uint8_t *p) {
    const int32_t w = point->weight;
    const uint32_t four = ek_load_word(p + point->at);
    const int32_t even = ek_even(four), odd = ek_odd(four);
    s->a = __smlabb(even, w, s->a), s->b = __smlabb(odd, w, s->b);
    s->c = __smlatb(even, w, s->c), s->d = __smlatb(odd, w, s->d);
}

/* Points come in pairs. */
static inline ek_four_sums ek_points_four(const ek_points *points, const uint8_t *p, int32_t bias) {
    ek_four_sums s = {bias, bias, bias, bias};
    const ek_point *point = points->first, *end = points->end;
    for (; point != end; point += 2) {
        ek_point_four(&s, point, p);
        ek_point_four(&s, point + 1, p);
    }
    return s;
}

/* `out` must have room for whole words. */
static void ek_fours(const ek_points *points, ek_quick quick, const uint8_t *p, int32_t bias,
                     uint8_t *out, int32_t count) {
    for (const uint8_t *end = p + count; p < end; p += 4, out += 4) {
        const ek_four_sums s = ek_points_four(points, p, bias);
        out[0] = ek_quickly(quick, s.a), out[1] = ek_quickly(quick, s.b);
        out[2] = ek_quickly(quick, s.c), out[3] = ek_quickly(quick, s.d);
    }
}

static void ek_points_run(const ek_channel *c, ek_quick quick, const ek_points *points,
                          const uint8_t *p, const uint8_t *other, uint8_t *out, int32_t count) {
    const int32_t bias = c->requant->bias[c->channel], whole = c->sum ? 0 : count & ~3;
    ek_fours(points, quick, p, bias, out, whole);
    for (int32_t x = whole; x < count; x += EK_CHUNK) {
        uint8_t bytes[EK_CHUNK];
        const int32_t size = count - x < EK_CHUNK ? count - x : EK_CHUNK;
        ek_fours(points, quick, p + x, bias, bytes, size);
        if (c->sum) ek_sum_quickly(c->sum, bytes, other + x, out + x, size);
        else ek_copy(out + x, bytes, size);
    }
}

static void ek_points_plane(const ek_channel *c, const ek_points *points, const uint8_t *in,
                            const uint8_t *other, uint8_t *out) {
    const ek_runs runs = ek_runs_of(c->planes, c->in_row);
    ek_quick quick;
    if (!ek_quick_of(&quick, c->requant, c->channel) || (c->sum && !ek_sum_is_quick(c->sum))) {
        ek_plane(c, ek_point_taps, points, in, other, out);
        return;
    }
    for (int32_t y = 0; y < runs.count; y++, in += c->in_row) {
        const int32_t to = y * c->planes->row;
        ek_points_run(c, quick, points, in, other + to, out + to, runs.length);
    }
    ek_halo_of(c->planes, out);
}

#else

static void ek_points_plane(const ek_channel *c, const ek_points *points, const uint8_t *in,
                            const uint8_t *other, uint8_t *out) {
    ek_plane(c, ek_point_taps, points, in, other, out);
}

#endif

void ek_conv_stream(const ek_stream_conv *conv, const uint8_t *in, const uint8_t *other,
                    uint8_t *out, void *scratch) {
    ek_channel c = {&conv->out, &conv->requant, conv->sum, 0, conv->in_row};
    ek_point *points = (ek_point *)scratch;
    const uint8_t *stream = conv->stream;
    int32_t count;
    if (!conv->sum) other = out;
    ek_halo_before(&conv->out, out);
    for (; c.channel < conv->out.channels; c.channel++) {
        const int32_t group = c.channel / conv->group_out;
        stream = ek_decode(conv, stream, points, &count);
        const ek_points filter = {points, points + count};
        if (count == 0 && !conv->sum) {
            const int32_t bias = conv->requant.bias[c.channel];
            const uint8_t constant = ek_scaled(ek_scaler_of(&conv->requant, c.channel), bias);
            memset(out, constant, (size_t)(conv->out.height * conv->out.row));
            ek_halo_of(&conv->out, out);
        } else {
            ek_points_plane(&c, &filter, in + group * conv->group_in * conv->in_plane, other, out);
        }
        out += conv->out.plane;
        other += conv->out.plane;
    }
}
