/* Integer convolutions of any kernel, stride, dilation and grouping; the integer counterpart of conv.h.
 *
 * Planes are packed as int16, whatever the bits: products are made of pairs of int16, exactly.
 */
#ifndef FEDKIT_INT_CONV_H
#define FEDKIT_INT_CONV_H

#include "int_pass.h"
#include "int_read.h"
#include "int_tensor.h"

#if IROWS != 6
#error "the blocks name six rows"
#endif

/* -- packing ---------------------------------------------------------------------------------- */

INLINE ptrdiff_t int_padded(const struct padding *p) {
    return (ptrdiff_t)p->height * p->width * ILANES;
}

INLINE void int_zero(int16_t *to, ptrdiff_t pixels) {
    memset(to, 0, (size_t)(pixels * ILANES) * sizeof *to);
}

INLINE void int_frame(int16_t *plane, const struct padding *p, int height, int width) {
    ptrdiff_t bottom = p->top + height, right = p->left + width;
    int_zero(plane, (ptrdiff_t)p->top * p->width);
    for (ptrdiff_t y = p->top; y < bottom; y++) {
        int_zero(plane + y * p->width * ILANES, p->left);
        int_zero(plane + (y * p->width + right) * ILANES, p->width - right);
    }
    int_zero(plane + bottom * p->width * ILANES, (p->height - bottom) * p->width);
}

INLINE int16_t *int_row(int16_t *plane, const struct padding *p, int y) {
    return plane + ((ptrdiff_t)(p->top + y) * p->width + p->left) * ILANES;
}

static void int_pack_values(const struct int_conv *conv, int tile, int16_t *to) {
    const struct int_tensor *t = conv->source;
    for (int c = 0; c < t->channels; c++, to += int_padded(&conv->in)) {
        if (!conv->used_in[c]) continue;
        const struct int_reader how = int_reader_of(&conv->read, c);
        const int8_t *x = t->x + int_plane(t, tile, c);
        int_frame(to, &conv->in, conv->in_height, conv->in_width);
        for (int y = 0; y < conv->in_height; y++) {
            int16_t *row = int_row(to, &conv->in, y);
            for (int i = 0; i < conv->in_width; i++, x += ILANES, row += ILANES)
                ivec_store(row, int_read_pixel(&how, x));
        }
    }
}

static void int_pack_gradients(const struct int_conv *conv, int tile, int16_t *to) {
    const struct int_tensor *t = conv->target;
    for (int c = 0; c < t->channels; c++, to += int_padded(&conv->out)) {
        if (!conv->used_out[c]) continue;
        const struct int_passing how = int_passing_of(&conv->chain, c);
        const struct int_run run = int_run_of(t, tile, c);
        int_frame(to, &conv->out, conv->out_height, conv->out_width);
        for (int y = 0; y < conv->out_height; y++)
            pass_line(&conv->chain, &how, &run, y * conv->out_width, conv->out_width,
                      int_row(to, &conv->out, y));
    }
}

/* -- gathering -------------------------------------------------------------------------------- */

/* Where sums go, and what is done to them on the way. */
struct int_sink {
    int16_t *out;              /* the part's first tile */
    ptrdiff_t plane;           /* from one channel to the next */
    const int32_t *bias;       /* [rows] or NULL */
    const int32_t *shift;      /* [rows] */
    int gradient;              /* whether gradients are written, by the fields below */
    const struct int_mix *mix;
    int accumulate;
    const int8_t *x;           /* values at the place of `out`, where some were clipped; or NULL */
    const int32_t *first_unclipped, *last_unclipped; /* [rows] */
};

/* The same of one row. */
struct int_row_sink {
    int16_t *out;
    const int8_t *x;
    isum start;
    struct int_mixing how;
    int16_t first, last;
    int shift, accumulate;
};

INLINE struct int_row_sink int_row_sink_of(const struct int_sink *s, int row) {
    struct int_row_sink r = {s->out + row * s->plane, NULL, isum_set1(s->bias ? s->bias[row] : 0),
                             {0, 0, 0}, 0, 0, s->shift[row], s->accumulate};
    if (s->accumulate) r.how = int_mixing_of(s->mix, row);
    if (s->x) {
        r.x = s->x + row * s->plane;
        r.first = (int16_t)s->first_unclipped[row];
        r.last = (int16_t)s->last_unclipped[row];
    }
    return r;
}

/* Add to a gradient as `how` says. */
INLINE ivec int_mixed(const struct int_mixing *how, ivec old, ivec new) {
    if (fits_int16(how->a) && fits_int16(how->b)) {
        const int16_t factors[2] = {(int16_t)how->a, (int16_t)how->b};
        isum sum = isum_set1(0);
        isum_dot(&sum, ivec_pair(old, new), factors);
        return ivec_max(isum_narrow_even(sum, how->shift), ivec_set1(-32767));
    }
    int16_t there[ILANES], given[ILANES];
    ivec_store(there, old);
    ivec_store(given, new);
    put_pixel(how, 1, given, there);
    return ivec_load(there);
}

/* `gradient` is a constant where inlined. */
INLINE void int_put(const struct int_row_sink *r, int gradient, int32_t place, const isum *acc) {
    int16_t *out = r->out + place;
    if (!gradient) {
        ivec_store(out, isum_narrow(*acc, r->shift));
        return;
    }
    ivec narrow = isum_narrow_even(*acc, r->shift);
    if (r->x) /* A read that clipped a value passes no gradient on to it. */
        narrow = ivec_where_within(ivec_load_codes(r->x + place), ivec_set1(r->first),
                                   ivec_set1(r->last), narrow);
    if (r->accumulate) narrow = int_mixed(&r->how, ivec_load(out), narrow);
    ivec_store(out, narrow);
}

INLINE void int_sink(const struct int_sink *s, int row, int32_t place, const isum *acc) {
    const struct int_row_sink r = int_row_sink_of(s, row);
    if (s->gradient)
        int_put(&r, 1, place, acc);
    else
        int_put(&r, 0, place, acc);
}

/* The inputs of a pair of taps. */
INLINE ipair int_two(const int16_t *origin, const int32_t *offset) {
    return ivec_pair(ivec_load(origin + offset[0]), ivec_load(origin + offset[1]));
}

INLINE isum int_start(const struct int_sink *s, int row) {
    return isum_set1(s->bias ? s->bias[row] : 0);
}

/* In the blocks below, sums have names of their own: what is an array, even of a constant size,
 * GCC keeps in memory. Conditions on `pixels`, `rows` and `taps` are constants where inlined. */

#if ISLOTS == 8
#define FOR_ISLOTS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#else
#define FOR_ISLOTS(DO) DO(0) DO(1) DO(2) DO(3)
#endif

#define SLOT_BEGIN(i) \
    const int16_t *o##i = in + map->slot_in[i < pixels ? slot + i : slot]; \
    isum s##i = sink->start;
#define SLOT_DOT(i) if (i < pixels) isum_dot(&s##i, int_two(o##i, offset), w);
#define SLOT_PUT(i) if (i < pixels) int_put(sink, gradient, map->slot_out[slot + i], &s##i);

/* One row at `pixels` slots, 1 or ISLOTS, kept weights only. */
INLINE void int_gather_slots(const struct int_map *map, const int16_t *in, int slot, int row,
                             const struct int_row_sink *sink, int gradient, int pixels) {
    const int32_t *offset = map->offset + 2 * map->first[row];
    const int32_t *end = map->offset + 2 * map->first[row + 1];
    const int16_t *w = map->weight + 2 * map->first[row];
    FOR_ISLOTS(SLOT_BEGIN)
    for (; offset < end; offset += 2, w += 2) {
        FOR_ISLOTS(SLOT_DOT)
    }
    FOR_ISLOTS(SLOT_PUT)
}

#define STRIP 64 /* slots of which all rows are made while their inputs stay in the cache */

INLINE void int_gather_strip(const struct int_map *map, const int16_t *in, int first, int last,
                             const struct int_sink *sinks, int gradient) {
    for (int row = 0; row < map->rows; row++) {
        const struct int_row_sink sink = int_row_sink_of(sinks, row);
        int slot = first;
        for (; slot + ISLOTS <= last; slot += ISLOTS)
            int_gather_slots(map, in, slot, row, &sink, gradient, ISLOTS);
        for (; slot < last; slot++) int_gather_slots(map, in, slot, row, &sink, gradient, 1);
    }
}

static void int_gather_kept(const struct int_map *map, const int16_t *in, int slots,
                            const struct int_sink *sink) {
    for (int slot = 0; slot < slots; slot += STRIP) {
        const int last = slot + STRIP < slots ? slot + STRIP : slots;
        if (sink->gradient)
            int_gather_strip(map, in, slot, last, sink, 1);
        else
            int_gather_strip(map, in, slot, last, sink, 0);
    }
}

/* `rows` rows, 1, 2 or IROWS, at one slot, with all weights; those of a block lie interleaved,
 * [pairs][rows][2]. */
INLINE void int_gather_block(const struct int_map *map, const int16_t *in, int slot, int row,
                             const struct int_sink *sink, int rows) {
    const int16_t *origin = in + map->slot_in[slot];
    const int16_t *w = map->weight + (ptrdiff_t)row * 2 * map->pairs;
    const int32_t *offset = map->offset, *end = offset + 2 * map->pairs, at = map->slot_out[slot];
    isum s0 = int_start(sink, row), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0;
    if (rows > 1) s1 = int_start(sink, row + 1);
    if (rows > 2) {
        s2 = int_start(sink, row + 2);
        s3 = int_start(sink, row + 3);
        s4 = int_start(sink, row + 4);
        s5 = int_start(sink, row + 5);
    }
    for (; offset < end; offset += 2, w += 2 * rows) {
        const ipair x = int_two(origin, offset);
        isum_dot(&s0, x, w);
        if (rows > 1) isum_dot(&s1, x, w + 2);
        if (rows > 2) {
            isum_dot(&s2, x, w + 4);
            isum_dot(&s3, x, w + 6);
            isum_dot(&s4, x, w + 8);
            isum_dot(&s5, x, w + 10);
        }
    }
    int_sink(sink, row, at, &s0);
    if (rows > 1) int_sink(sink, row + 1, at, &s1);
    if (rows > 2) {
        int_sink(sink, row + 2, at, &s2);
        int_sink(sink, row + 3, at, &s3);
        int_sink(sink, row + 4, at, &s4);
        int_sink(sink, row + 5, at, &s5);
    }
}

static void int_gather(const struct int_map *map, const int16_t *in, int slots,
                       const struct int_sink *sink) {
    if (map->first) {
        int_gather_kept(map, in, slots, sink);
        return;
    }
    for (int slot = 0; slot < slots; slot++) {
        int row = 0;
        for (; row + IROWS <= map->rows; row += IROWS)
            int_gather_block(map, in, slot, row, sink, IROWS);
        for (; row + 2 <= map->rows; row += 2) int_gather_block(map, in, slot, row, sink, 2);
        for (; row < map->rows; row++) int_gather_block(map, in, slot, row, sink, 1);
    }
}

/* -- weights ---------------------------------------------------------------------------------- */

/* Rows of the register block, by 3 taps; FOR_WROWS does something for each. */
#if defined(ISA_AVX512)
#define WROWS 8
#define FOR_WROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#else
#define WROWS 4
#define FOR_WROWS(DO) DO(0) DO(1) DO(2) DO(3)
#endif

#define WEIGHTS_ZERO(r) itotal t##r##0 = itotal_zero(), t##r##1 = t##r##0, t##r##2 = t##r##0;

/* One row of a block: its gradients at a pixel times the inputs at up to three taps. */
#define WEIGHTS_ROW(r) \
    if (r < rows) { \
        ivec g = ivec_load((r < 4 ? d : e) + (r) % 4 * plane); \
        IN_REGISTER(g); \
        itotal_dot(&t##r##0, g, x0); \
        if (taps > 1) itotal_dot(&t##r##1, g, x1); \
        if (taps > 1) itotal_dot(&t##r##2, g, x2); \
    }

#define WEIGHTS_SUM(r) \
    if (r < rows) { \
        sum[r][0] += itotal_sum(t##r##0); \
        if (taps > 1) sum[r][1] += itotal_sum(t##r##1); \
        if (taps > 1) sum[r][2] += itotal_sum(t##r##2); \
    }

/* Add to `rows` x `taps` gradients, 1 or WROWS by 1 or 3, sums over the lines of a part: in runs of
 * so many pixels that their products fit a sum. */
INLINE void int_weights_block(const struct int_conv *conv, const int16_t *in, const int16_t *out,
                              int lines, const int32_t *offset, ptrdiff_t between, int rows,
                              int taps, int64_t (*sum)[3]) {
    const ptrdiff_t plane = int_padded(&conv->out), step = conv->stride;
    const ptrdiff_t a = offset[0], b = taps > 1 ? offset[between] : 0;
    const ptrdiff_t c = taps > 1 ? offset[2 * between] : 0;
    for (int line = 0, pixel = 0; line < lines;) {
        FOR_WROWS(WEIGHTS_ZERO)
        for (int budget = conv->most_slots; line < lines && budget > 0;) {
            const int left = conv->line_length - pixel, count = left < budget ? left : budget;
            const int16_t *x = in + conv->line_in[line] + pixel * step;
            const int16_t *d = out + conv->line_out[line] + (ptrdiff_t)pixel * ILANES;
            const int16_t *e = d + 4 * plane, *y = x + b, *z = x + c;
            x += a;
            for (int i = 0; i < count; i++, d += ILANES, e += ILANES, x += step, y += step, z += step) {
                const ivec x0 = ivec_load(x);
                const ivec x1 = taps > 1 ? ivec_load(y) : x0;
                const ivec x2 = taps > 1 ? ivec_load(z) : x0;
                FOR_WROWS(WEIGHTS_ROW)
            }
            budget -= count;
            pixel += count;
            if (pixel == conv->line_length) {
                pixel = 0;
                line++;
            }
        }
        FOR_WROWS(WEIGHTS_SUM)
    }
}

static void int_weights_sparse(const struct int_conv *conv, const int16_t *in, const int16_t *out,
                               int lines, int64_t *gradient) {
    for (int row = 0; row < conv->target->channels; row++, out += int_padded(&conv->out)) {
        const struct tap *tap = conv->tap + conv->first[row], *end = conv->tap + conv->first[row + 1];
        const ptrdiff_t between = sizeof *tap / sizeof tap->offset;
        for (; end - tap >= 3; tap += 3) {
            int64_t sum[1][3] = {{0, 0, 0}};
            int_weights_block(conv, in, out, lines, &tap->offset, between, 1, 3, sum);
            for (int k = 0; k < 3; k++) gradient[tap[k].index] += sum[0][k];
        }
        for (; tap < end; tap++) {
            int64_t sum[1][3] = {{0, 0, 0}};
            int_weights_block(conv, in, out, lines, &tap->offset, between, 1, 1, sum);
            gradient[tap->index] += sum[0][0];
        }
    }
}

INLINE void int_weights_rows(const struct int_conv *conv, const int16_t *in, const int16_t *out,
                             int lines, int64_t *gradient, int rows) {
    for (int k = 0; k < conv->full_taps;) {
        const int taps = conv->full_taps - k >= 3 ? 3 : 1;
        int64_t sum[WROWS][3];
        memset(sum, 0, sizeof sum);
        if (taps == 3)
            int_weights_block(conv, in, out, lines, conv->full_offset + k, 1, rows, 3, sum);
        else
            int_weights_block(conv, in, out, lines, conv->full_offset + k, 1, rows, 1, sum);
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < taps; i++)
                gradient[(ptrdiff_t)r * conv->full_taps + k + i] += sum[r][i];
        k += taps;
    }
}

/* Layers that run dense have one group. */
static void int_weights_dense(const struct int_conv *conv, const int16_t *in, const int16_t *out,
                              int lines, int64_t *gradient) {
    const ptrdiff_t plane = int_padded(&conv->out);
    const int channels = conv->target->channels;
    int row = 0;
    for (; row + WROWS <= channels; row += WROWS)
        int_weights_rows(conv, in, out + row * plane, lines,
                         gradient + (ptrdiff_t)row * conv->full_taps, WROWS);
    for (; row < channels; row++)
        int_weights_rows(conv, in, out + row * plane, lines,
                         gradient + (ptrdiff_t)row * conv->full_taps, 1);
}

static void int_bias_gradients(const struct int_conv *conv, const int16_t *out, int lines,
                               int64_t *gradient) {
    for (int row = 0; row < conv->target->channels; row++, out += int_padded(&conv->out))
        for (int line = 0; line < lines; line++) {
            const int16_t *d = out + conv->line_out[line];
            for (int i = 0; i < conv->line_length * ILANES; i++) gradient[row] += d[i];
        }
}

/* -- one part of the batch -------------------------------------------------------------------- */

struct int_part {
    int tile, tiles;
    int16_t *in, *out;
};

INLINE struct int_part int_part_of(const struct int_conv *conv, int number, int16_t *scratch) {
    struct int_part p;
    p.tile = number * conv->tiles_per_part;
    p.tiles = conv->tiles - p.tile;
    if (p.tiles > conv->tiles_per_part) p.tiles = conv->tiles_per_part;
    p.in = scratch;
    p.out = scratch + conv->tiles_per_part * conv->source->channels * int_padded(&conv->in);
    for (int t = 0; t < p.tiles; t++)
        int_pack_values(conv, p.tile + t,
                        p.in + t * conv->source->channels * int_padded(&conv->in));
    return p;
}

/* Run the parts first .. last - 1 forward: write target->raw. */
void NAME(int_conv_forward)(const struct int_conv *conv, int first, int last, int16_t *scratch) {
    const struct int_tensor *t = conv->target;
    for (int number = first; number < last; number++) {
        const struct int_part p = int_part_of(conv, number, scratch);
        const struct int_sink sink = {t->raw + int_plane(t, p.tile, 0), (ptrdiff_t)t->plane * ILANES,
                                      conv->bias, conv->shift_out, 0, NULL, 0, NULL, NULL, NULL};
        int_gather(&conv->forward, p.in, p.tiles * conv->forward.slots, &sink);
    }
}

/* Run the parts first .. last - 1 backward: add to `gradient` and `bias_gradient` (each or NULL), write
 * or add to the source's gradient if it has one. */
void NAME(int_conv_backward)(const struct int_conv *conv, int first, int last, int16_t *scratch,
                             int64_t *gradient, int64_t *bias_gradient) {
    const struct int_tensor *s = conv->source;
    for (int number = first; number < last; number++) {
        const struct int_part p = int_part_of(conv, number, scratch);
        const int lines = p.tiles * conv->lines;
        for (int t = 0; t < p.tiles; t++)
            int_pack_gradients(conv, p.tile + t,
                               p.out + t * conv->target->channels * int_padded(&conv->out));
        if (gradient && conv->first)
            int_weights_sparse(conv, p.in, p.out, lines, gradient);
        else if (gradient)
            int_weights_dense(conv, p.in, p.out, lines, gradient);
        if (bias_gradient) int_bias_gradients(conv, p.out, lines, bias_gradient);
        if (s->gradient == NULL) continue;
        const ptrdiff_t at = int_plane(s, p.tile, 0);
        const struct int_sink sink = {s->gradient + at, (ptrdiff_t)s->plane * ILANES, NULL,
                                      conv->shift_in, 1, &conv->mix, conv->accumulate,
                                      conv->first_unclipped ? s->x + at : NULL,
                                      conv->first_unclipped, conv->last_unclipped};
        for (int phase = 0; phase < conv->phases; phase++)
            int_gather(&conv->backward[phase], p.out, p.tiles * conv->backward[phase].slots, &sink);
    }
}

#endif
