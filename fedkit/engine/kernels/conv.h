/* Convolutions of any kernel, stride, dilation and grouping, over kept weights only.
 *
 *   pack_*     copy one part of the batch into padded planes, as it is read, so that no kernel
 *              below ever tests a border
 *   gather_*   outputs from padded planes: forward, and the gradient of the input
 *   weights_*  gradients of the weights: sums over pixels and examples
 */
#ifndef FEDKIT_CONV_H
#define FEDKIT_CONV_H

#include <string.h>

#include "stored.h"

#if ROWS != 4
#error "weights_block sums four rows at once"
#endif

/* -- packing ---------------------------------------------------------------------------------- */

INLINE ptrdiff_t padded_plane(const struct padding *p) {
    return (ptrdiff_t)p->height * p->width * LANES;
}

INLINE void fill_zero(float *to, ptrdiff_t pixels) {
    memset(to, 0, (size_t)(pixels * LANES) * sizeof(float));
}

/* Rows row .. row + rows - 1 of a plane in a frame of zeros, of which it has `height`. */
struct frame {
    int row, rows, height;
};

/* Where the pixels of row y of a window go; its frame is cleared. NULL: they are all frame. */
INLINE float *window_row(float *plane, const struct padding *p, const struct frame *w, int y,
                         int width) {
    float *row = plane + (ptrdiff_t)y * p->width * LANES;
    const int from = w->row + y - p->top;
    if (from < 0 || from >= w->height) {
        fill_zero(row, p->width);
        return NULL;
    }
    fill_zero(row, p->left);
    fill_zero(row + (ptrdiff_t)(p->left + width) * LANES, p->width - p->left - width);
    return row + (ptrdiff_t)p->left * LANES;
}

/* `values` are those of a tile. */
static void pack_values(const struct conv *conv, const float *values, const struct frame *w,
                        float *to) {
    const struct tensor *t = conv->source;
    const int width = conv->in_width;
    for (int c = 0; c < t->channels; c++, to += padded_plane(&conv->in)) {
        if (!conv->used_in[c]) continue;
        const struct reading how = reading_of(t, c);
        const float *plane = values + plane_offset(t, 0, c);
        for (int y = 0; y < w->rows; y++) {
            float *row = window_row(to, &conv->in, w, y, width);
            if (row == NULL) continue;
            const float *x = plane + (ptrdiff_t)(w->row + y - conv->in.top) * width * LANES;
            for (int i = 0; i < width * LANES; i += LANES)
                vec_store(row + i, read_value(&how, vec_load(x + i)));
        }
    }
}

/* `room` is one for a plane. */
static void pack_gradients(const struct conv *conv, int tile, const struct frame *w, float *room,
                           float *to) {
    const struct tensor *t = conv->target;
    const vec valid = vec_lanes(valid_lanes(t, tile));
    const int width = conv->out_width, above = w->row - conv->out.top, below = above + w->rows;
    const int begin = (above < 0 ? 0 : above) * width;
    const int end = (below < w->height ? below : w->height) * width;
    for (int c = 0; c < t->channels; c++, to += padded_plane(&conv->out)) {
        if (!conv->used_out[c]) continue;
        const struct chain how = chain_of(t, c, valid);
        const float *gradients = t->gradient + plane_offset(t, tile, c);
        const float *values = how.norm ? plane_pixels(t, tile, c, begin, end, room) : gradients;
        for (int y = 0; y < w->rows; y++) {
            float *row = window_row(to, &conv->out, w, y, width);
            if (row == NULL) continue;
            const ptrdiff_t from = (ptrdiff_t)(w->row + y - conv->out.top) * width * LANES;
            const float *x = values + from, *g = gradients + from;
            for (int i = 0; i < width * LANES; i += LANES)
                vec_store(row + i, raw_gradient(&how, vec_load(g + i), vec_load(x + i)));
        }
    }
}

/* -- gathering -------------------------------------------------------------------------------- */

/* Where a row's results go, and what is done to them on the way. */
struct sink {
    const struct tensor *tensor;
    float *out;              /* the part's first tile, from the strip's first row */
    const float *x;          /* backward: the source's values there */
    struct sums *sums;       /* [rows], or NULL */
    vec valid;               /* lanes of the last tile that hold examples */
    int first_partial;       /* the first slot of a tile that is not full */
    int begins;              /* forward: whether slot 0 is the first of the part */
    int forward, accumulate, finish;
};

INLINE void store_row(const struct sink *s, int row, const int32_t *place, const vec *acc,
                      int pixels) {
    float *out = s->out + (ptrdiff_t)row * s->tensor->plane * LANES;
    for (int j = 0; j < pixels; j++) vec_store(out + place[j], acc[j]);
}

INLINE void sink_forward(const struct sink *s, int row, const int32_t *place, const vec *acc,
                         int pixels, int slot) {
    store_row(s, row, place, acc, pixels);
    if (s->sums == NULL) return;
    struct sums *sums = &s->sums[row];
    if (s->begins && slot == 0) sums->pivot = pivot_of(acc, pixels);
    vec first = sums->first, second = sums->second;
    for (int j = 0; j < pixels; j++) {
        vec d = vec_sub(acc[j], sums->pivot);
        if (slot + j >= s->first_partial) d = vec_mul(d, s->valid);
        first = vec_add(first, d);
        second = vec_fma(d, d, second);
    }
    sums->first = first;
    sums->second = second;
}

INLINE void sink_backward(const struct sink *s, int row, const int32_t *place, const vec *acc,
                          int pixels) {
    const struct tensor *t = s->tensor;
    ptrdiff_t plane = (ptrdiff_t)row * t->plane * LANES;
    float *out = s->out + plane;
    if (!s->finish) {
        store_row(s, row, place, acc, pixels);
        return;
    }
    const struct reading how = reading_of(t, row);
    const vec mean = vec_set1(s->sums ? t->mean[row] : 0.0f);
    vec first = vec_zero(), second = vec_zero();
    for (int j = 0; j < pixels; j++) {
        vec x = vec_load(s->x + plane + place[j]);
        vec g = through_activation(&how, x, acc[j]);
        vec_store(out + place[j], g);
        first = vec_add(first, g);
        second = vec_fma(g, vec_sub(x, mean), second);
    }
    if (s->sums == NULL) return;
    s->sums[row].first = vec_add(s->sums[row].first, first);
    s->sums[row].second = vec_add(s->sums[row].second, second);
}

INLINE void sink_row(const struct sink *s, int row, const int32_t *place, const vec *acc,
                     int pixels, int slot) {
    if (s->forward)
        sink_forward(s, row, place, acc, pixels, slot);
    else
        sink_backward(s, row, place, acc, pixels);
}

/* What a row's sums start from: what is there already, or the bias. */
INLINE void start_row(const struct sink *s, int row, const int32_t *place, const float *bias,
                      vec *acc, int pixels) {
    const vec start = bias ? vec_set1(bias[row]) : vec_zero();
    const float *out = s->out + (ptrdiff_t)row * s->tensor->plane * LANES;
    for (int j = 0; j < pixels; j++) acc[j] = s->accumulate ? vec_load(out + place[j]) : start;
}

/* All rows at `pixels` slots. `pixels` and `near` (the origins are neighbours) are constants
 * where this is inlined, so that sums and origins live in registers. */
INLINE void gather_slots(const struct map *map, const float *values, const float *bias,
                         const float *in, int slot, const struct sink *sink, int pixels,
                         int near) {
    const float *origin[SLOTS];
    const int32_t *place = map->slot_out + slot;
    for (int j = 0; j < pixels; j++) origin[j] = in + map->slot_in[slot + j];
    for (int row = 0; row < map->rows; row++) {
        vec acc[SLOTS];
        start_row(sink, row, place, bias, acc, pixels);
        const struct tap *tap = map->tap + map->first[row], *end = map->tap + map->first[row + 1];
        for (; tap < end; tap++) {
            const vec w = vec_set1(values[tap->index]);
            for (int j = 0; j < pixels; j++) {
                const float *from = near ? origin[0] + j * LANES : origin[j];
                acc[j] = vec_fma(w, vec_load(from + tap->offset), acc[j]);
            }
        }
        sink_row(sink, row, place, acc, pixels, slot);
    }
}

static void gather_sparse(const struct map *map, const float *values, const float *bias,
                          const float *in, int slots, const struct sink *sink) {
    int slot = 0;
    for (; slot + SLOTS <= slots; slot += SLOTS) {
        const int32_t *origin = map->slot_in + slot;
        if (origin[SLOTS - 1] - origin[0] == (SLOTS - 1) * LANES)
            gather_slots(map, values, bias, in, slot, sink, SLOTS, 1);
        else
            gather_slots(map, values, bias, in, slot, sink, SLOTS, 0);
    }
    for (; slot < slots; slot++) gather_slots(map, values, bias, in, slot, sink, 1, 1);
}

/* `rows` rows (a constant where inlined) at `pixels` slots, with all weights. */
INLINE void gather_block(const struct map *map, const float *bias, const float *in, int slot,
                         int row, const struct sink *sink, int rows, int pixels) {
    const float *origin[PX];
    const float *weights = map->matrix + (ptrdiff_t)row * map->taps;
    vec acc[ROWS][PX];
    for (int j = 0; j < pixels; j++) origin[j] = in + map->slot_in[slot + j];
    for (int r = 0; r < rows; r++)
        start_row(sink, row + r, map->slot_out + slot, bias, acc[r], pixels);
    for (int tap = 0; tap < map->taps; tap++) {
        vec x[PX];
        for (int j = 0; j < pixels; j++) x[j] = vec_load(origin[j] + map->offset[tap]);
        for (int r = 0; r < rows; r++) {
            const vec w = vec_set1(weights[(ptrdiff_t)r * map->taps + tap]);
            for (int j = 0; j < pixels; j++) acc[r][j] = vec_fma(w, x[j], acc[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        sink_row(sink, row + r, map->slot_out + slot, acc[r], pixels, slot);
}

static void gather_dense(const struct map *map, const float *bias, const float *in, int slots,
                         const struct sink *sink) {
    int slot = 0, row;
    for (; slot + PX <= slots; slot += PX) {
        for (row = 0; row + ROWS <= map->rows; row += ROWS)
            gather_block(map, bias, in, slot, row, sink, ROWS, PX);
        for (; row < map->rows; row++) gather_block(map, bias, in, slot, row, sink, 1, PX);
    }
    for (; slot < slots; slot++) {
        for (row = 0; row + ROWS <= map->rows; row += ROWS)
            gather_block(map, bias, in, slot, row, sink, ROWS, 1);
        for (; row < map->rows; row++) gather_block(map, bias, in, slot, row, sink, 1, 1);
    }
}

/* Split in two so that each direction's sink is compiled into its own loops. */
static void gather_forward(const struct conv *conv, const float *in, int slots,
                           const struct sink *sink) {
    if (conv->forward.first)
        gather_sparse(&conv->forward, conv->values, conv->bias, in, slots, sink);
    else
        gather_dense(&conv->forward, conv->bias, in, slots, sink);
}

/* Rows of a strip of `rows` rows of the input that a phase has. */
INLINE int phase_rows(const struct conv *conv, const struct map *map, int rows) {
    return rows <= map->row ? 0 : (rows - map->row + conv->stride_y - 1) / conv->stride_y;
}

static void gather_backward(const struct conv *conv, const float *in, int rows, int tiles,
                            const struct sink *sink) {
    for (int phase = 0; phase < conv->phases; phase++) {
        const struct map *map = &conv->backward[phase];
        const int slots = tiles * phase_rows(conv, map, rows) * map->columns;
        if (map->first)
            gather_sparse(map, conv->values, NULL, in, slots, sink);
        else
            gather_dense(map, NULL, in, slots, sink);
    }
}

/* -- weights ---------------------------------------------------------------------------------- */

/* Rows of the output that lie alike in padded inputs and gradients. */
struct lines {
    int count, length;
};

/* Add to `count` gradients of one output channel: sums over lines of the output's gradient times
 * the input at each tap. Two sums per tap hide the latency of an FMA. */
INLINE void weights_taps(const struct conv *conv, const float *in, const float *out,
                         struct lines lines, const struct tap *tap, float *gradient, int count) {
    vec even[4], odd[4];
    for (int k = 0; k < count; k++) even[k] = odd[k] = vec_zero();
    for (int line = 0; line < lines.count; line++) {
        const float *x = in + conv->line_in[line], *d = out + conv->line_out[line];
        int i = 0;
        for (; i + 2 <= lines.length; i += 2, d += 2 * LANES, x += 2 * conv->stride) {
            const vec d0 = vec_load(d), d1 = vec_load(d + LANES);
            for (int k = 0; k < count; k++) {
                even[k] = vec_fma(d0, vec_load(x + tap[k].offset), even[k]);
                odd[k] = vec_fma(d1, vec_load(x + tap[k].offset + conv->stride), odd[k]);
            }
        }
        if (i == lines.length) continue;
        const vec d0 = vec_load(d);
        for (int k = 0; k < count; k++)
            even[k] = vec_fma(d0, vec_load(x + tap[k].offset), even[k]);
    }
    float sum[4];
    for (int k = 0; k < count; k++) even[k] = vec_add(even[k], odd[k]);
    for (int k = count; k < 4; k++) even[k] = even[0];
    vec_sum4(even[0], even[1], even[2], even[3], sum);
    for (int k = 0; k < count; k++) gradient[tap[k].index] += sum[k];
}

static void weights_sparse(const struct conv *conv, const float *in, const float *out, struct lines lines,
                           float *gradient) {
    const struct map *map = &conv->forward;
    for (int row = 0; row < map->rows; row++, out += padded_plane(&conv->out)) {
        const struct tap *tap = map->tap + map->first[row], *end = map->tap + map->first[row + 1];
        for (; end - tap >= 4; tap += 4) weights_taps(conv, in, out, lines, tap, gradient, 4);
        for (; end - tap >= 2; tap += 2) weights_taps(conv, in, out, lines, tap, gradient, 2);
        for (; end - tap >= 1; tap += 1) weights_taps(conv, in, out, lines, tap, gradient, 1);
    }
}

/* Add to a block of `rows` x `taps` gradients. One sum each: that is enough sums, and makes every
 * gradient the same number whatever block it falls into. */
INLINE void weights_block(const struct conv *conv, const float *in, const float *out, struct lines lines,
                          const int32_t *offset, float *gradient, int rows, int taps) {
    const ptrdiff_t plane = padded_plane(&conv->out);
    vec acc[ROWS][PX];
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < taps; k++) acc[r][k] = vec_zero();
    for (int line = 0; line < lines.count; line++) {
        const float *x = in + conv->line_in[line], *d = out + conv->line_out[line];
        for (int i = 0; i < lines.length; i++, d += LANES, x += conv->stride) {
            vec value[PX];
            for (int k = 0; k < taps; k++) value[k] = vec_load(x + offset[k]);
            for (int r = 0; r < rows; r++) {
                const vec g = vec_load(d + r * plane);
                for (int k = 0; k < taps; k++) acc[r][k] = vec_fma(g, value[k], acc[r][k]);
            }
        }
    }
    for (int k = 0; k < taps; k++) {
        float sum[ROWS];
        for (int r = rows; r < ROWS; r++) acc[r][k] = acc[0][k];
        vec_sum4(acc[0][k], acc[1][k], acc[2][k], acc[3][k], sum);
        for (int r = 0; r < rows; r++) gradient[(ptrdiff_t)r * conv->full_taps + k] += sum[r];
    }
}

INLINE void weights_rows(const struct conv *conv, const float *in, const float *out, struct lines lines,
                         float *gradient, int rows) {
    int k = 0;
    for (; k + PX <= conv->full_taps; k += PX)
        weights_block(conv, in, out, lines, conv->full_offset + k, gradient + k, rows, PX);
    for (; k < conv->full_taps; k++)
        weights_block(conv, in, out, lines, conv->full_offset + k, gradient + k, rows, 1);
}

/* Add to all gradients of the rows first .. last - 1, into [last - first][full_taps]. */
static void weights_dense(const struct conv *conv, const float *in, const float *out, struct lines lines,
                          int first, int last, float *gradient) {
    const ptrdiff_t plane = padded_plane(&conv->out);
    const int outputs = conv->target->channels / conv->groups;
    const int inputs = conv->source->channels / conv->groups;
    for (int row = first; row < last;) {
        int group = row / outputs, left = (group + 1) * outputs - row;
        const float *x = in + group * inputs * padded_plane(&conv->in);
        float *to = gradient + (ptrdiff_t)(row - first) * conv->full_taps;
        if (left > last - row) left = last - row;
        int rows = left >= ROWS ? ROWS : 1;
        if (rows == ROWS)
            weights_rows(conv, x, out + row * plane, lines, to, ROWS);
        else
            weights_rows(conv, x, out + row * plane, lines, to, 1);
        row += rows;
    }
}

static void bias_gradients(const struct conv *conv, const float *out, struct lines lines,
                           float *gradient) {
    for (int row = 0; row < conv->target->channels; row++, out += padded_plane(&conv->out)) {
        vec sum = vec_zero();
        for (int line = 0; line < lines.count; line++) {
            const float *d = out + conv->line_out[line];
            for (int i = 0; i < lines.length; i++) sum = vec_add(sum, vec_load(d + i * LANES));
        }
        gradient[row] += vec_sum(sum);
    }
}

/* -- one part of the batch -------------------------------------------------------------------- */

struct part {
    int tile, tiles;
    int64_t examples;
    float *in, *out;      /* padded planes in scratch */
    struct sums *sums;
    const float *x;       /* the source's values */
    float *weights, *bias, *values, *plane; /* room in scratch, see part_of */
};

INLINE struct part part_of(const struct conv *conv, int number, float *scratch) {
    struct part p;
    p.tile = number * conv->tiles_per_part;
    p.tiles = conv->tiles - p.tile;
    if (p.tiles > conv->tiles_per_part) p.tiles = conv->tiles_per_part;
    p.examples = count_examples(conv->source, p.tile, p.tiles);
    p.sums = (struct sums *)scratch;
    int most = conv->source->channels > conv->target->channels ? conv->source->channels
                                                               : conv->target->channels;
    p.x = conv->source->x + plane_offset(conv->source, p.tile, 0);
    p.in = (float *)(p.sums + most);
    p.out = p.in;
    if (conv->direct)
        p.in = (float *)p.x;
    else
        p.out += conv->tiles_per_part * conv->source->channels * padded_plane(&conv->in);
    /* Backward: gradients of one part, the source's values, a plane of the target's. */
    p.weights = p.out + conv->tiles_per_part * conv->target->channels * padded_plane(&conv->out);
    p.bias = p.weights + conv->part_weights;
    p.values = p.bias + conv->target->channels;
    p.plane = p.values;
    if (conv->source->stored) p.plane += conv->tiles_per_part * plane_offset(conv->source, 1, 0);
    return p;
}

/* Make the source's values where they are stored in few bits. */
static void widen_part(const struct conv *conv, struct part *p) {
    const struct tensor *t = conv->source;
    if (t->stored == NULL) return;
    for (int tile = 0; tile < p->tiles; tile++)
        for (int c = 0; c < t->channels; c++)
            stored_pixels(t->stored, p->tile + tile, c, p->values + plane_offset(t, tile, c), 0,
                          t->plane);
    p->x = p->values;
    if (conv->direct) p->in = p->values;
}

/* Rows of the output, and the rows of the input whose gradients they give. */
struct rows {
    int row, rows, in_row, in_rows;
};

INLINE int rows_left(int height, int row, int most) {
    const int left = height - row;
    return left < 0 ? 0 : left < most ? left : most;
}

/* Strip `number` of those of `rows` rows; without any row behind the last. */
INLINE struct rows strip_of(const struct conv *conv, int number, int rows) {
    struct rows s;
    /* The last rows of an input may reach no output: a single strip has them too. */
    const int in_rows = rows == conv->out_height ? conv->in_height : rows * conv->stride_y;
    s.row = number * rows;
    s.in_row = number * in_rows;
    s.rows = rows_left(conv->out_height, s.row, rows);
    s.in_rows = rows_left(conv->in_height, s.in_row, in_rows);
    return s;
}

INLINE int more_rows(const struct rows *s) { return s->rows > 0 || s->in_rows > 0; }

INLINE struct lines lines_of(const struct conv *conv, const struct part *p, int rows) {
    struct lines lines = {p->tiles * rows, conv->out_width};
    if (conv->lines_join) lines.count = p->tiles, lines.length = rows * conv->out_width;
    return lines;
}

static void pack_inputs(const struct conv *conv, const struct part *p, const struct rows *s) {
    if (conv->direct || s->rows == 0) return;
    const struct frame w = {s->in_row, conv->in.height - (conv->strip - s->rows) * conv->stride_y,
                             conv->in_height};
    for (int t = 0; t < p->tiles; t++)
        pack_values(conv, p->x + plane_offset(conv->source, t, 0), &w,
                    p->in + t * conv->source->channels * padded_plane(&conv->in));
}

/* The gradients of a strip of at most `rows` rows, and those around it. */
static void pack_outputs(const struct conv *conv, const struct part *p, const struct rows *s,
                         int rows) {
    const struct frame w = {s->row, conv->out.height - (conv->strip - rows), conv->out_height};
    for (int t = 0; t < p->tiles; t++)
        pack_gradients(conv, p->tile + t, &w, p->plane,
                       p->out + t * conv->target->channels * padded_plane(&conv->out));
}

static struct sink sink_of(const struct tensor *t, const struct part *p, float *base, int wanted,
                           int slots) {
    struct sink s;
    memset(&s, 0, sizeof s);
    s.tensor = t;
    s.out = base + plane_offset(t, p->tile, 0);
    s.x = p->x;
    s.sums = wanted ? p->sums : NULL;
    int lanes = valid_lanes(t, p->tile + p->tiles - 1);
    s.valid = vec_lanes(lanes);
    s.first_partial = lanes == LANES ? INT32_MAX : (p->tiles - 1) * slots;
    if (wanted) memset(p->sums, 0, (size_t)t->channels * sizeof(struct sums));
    return s;
}

/* The sink from a row on. */
INLINE struct sink sink_at(const struct sink *all, int row, int width) {
    struct sink s = *all;
    s.out += (ptrdiff_t)row * width * LANES;
    s.x += (ptrdiff_t)row * width * LANES;
    s.begins = row == 0;
    return s;
}

/* Run the parts first .. last - 1 forward.
 * Writes target->x, and moments per part into target->sums where `statistics` says so. */
void NAME(conv_forward)(const struct conv *conv, int first, int last, float *scratch) {
    for (int number = first; number < last; number++) {
        const struct part p = part_of(conv, number, scratch);
        const struct tensor *t = conv->target;
        struct sink all = sink_of(t, &p, t->x, conv->statistics, t->plane);
        all.forward = 1;
        for (int k = 0; k * conv->strip < conv->out_height; k++) {
            const struct rows strip = strip_of(conv, k, conv->strip);
            const struct sink sink = sink_at(&all, strip.row, conv->out_width);
            pack_inputs(conv, &p, &strip);
            gather_forward(conv, p.in, p.tiles * strip.rows * conv->out_width, &sink);
        }
        if (!conv->statistics) continue;
        for (int c = 0; c < t->channels; c++) {
            store_moments(t->sums + 2 * ((ptrdiff_t)number * t->channels + c), &p.sums[c],
                          (double)p.examples * t->plane);
        }
    }
}

/* Gradients of one part, which several strips add to: what is added to those of the batch is the
 * same for any number of threads. */
struct parameters {
    float *weights, *bias; /* NULL where not wanted */
};

INLINE struct parameters part_parameters(const struct conv *conv, const struct part *p,
                                         struct parameters all) {
    if (conv->part_weights == 0) return all; /* there is one strip */
    if (all.weights) all.weights = memset(p->weights, 0, (size_t)conv->part_weights * sizeof(float));
    const size_t channels = (size_t)conv->target->channels;
    if (all.bias) all.bias = memset(p->bias, 0, channels * sizeof(float));
    return all;
}

INLINE void add_part(float *to, const float *from, int count) {
    for (int i = 0; to != from && i < count; i++) to[i] += from[i];
}

static void backward_strip(const struct conv *conv, const struct part *p, const struct rows *strip,
                           const struct parameters *to, const struct sink *all) {
    const struct lines lines = lines_of(conv, p, strip->rows);
    pack_outputs(conv, p, strip, conv->strip_backward);
    if (to->weights) pack_inputs(conv, p, strip);
    if (to->weights && conv->forward.first)
        weights_sparse(conv, p->in, p->out, lines, to->weights);
    else if (to->weights)
        weights_dense(conv, p->in, p->out, lines, 0, conv->target->channels, to->weights);
    if (to->bias) bias_gradients(conv, p->out, lines, to->bias);
    if (all == NULL) return;
    const struct sink sink = sink_at(all, strip->in_row, conv->in_width);
    gather_backward(conv, p->out, strip->in_rows, p->tiles, &sink);
}

/* Run the parts first .. last - 1 backward; the target's gradient is finished.
 * Adds to `gradient` (as conv->values, or NULL) and `bias_gradient` (or NULL), writes or adds to the
 * source's gradient if it has one, and its sums if this finishes it. */
void NAME(conv_backward)(const struct conv *conv, int first, int last, float *scratch,
                         float *gradient, float *bias_gradient) {
    struct tensor *s = conv->source;
    const struct parameters all = {gradient, bias_gradient};
    for (int number = first; number < last; number++) {
        struct part p = part_of(conv, number, scratch);
        const struct parameters own = part_parameters(conv, &p, all);
        if (gradient || conv->finish) widen_part(conv, &p);
        const int wanted = s->gradient && conv->finish && s->mean != NULL;
        struct sink sink = sink_of(s, &p, s->gradient ? s->gradient : s->x, wanted, 0);
        sink.accumulate = conv->accumulate;
        sink.finish = conv->finish;
        struct rows strip = strip_of(conv, 0, conv->strip_backward);
        for (int k = 1; more_rows(&strip); strip = strip_of(conv, k++, conv->strip_backward))
            backward_strip(conv, &p, &strip, &own, s->gradient ? &sink : NULL);
        if (own.weights) add_part(gradient, own.weights, conv->part_weights);
        if (own.bias) add_part(bias_gradient, own.bias, conv->target->channels);
        for (int c = 0; wanted && c < s->channels; c++)
            store_sums(s->sums + 2 * ((ptrdiff_t)number * s->channels + c), &p.sums[c]);
    }
}

/* Write the gradients of ALL weights of the rows first .. last - 1, kept or not, into
 * gradient [last - first][full_taps]. The target's gradient is finished. */
void NAME(conv_full_gradient)(const struct conv *conv, int first, int last, float *scratch,
                              float *gradient) {
    const int rows = conv->strip_backward;
    memset(gradient, 0, (size_t)(last - first) * (size_t)conv->full_taps * sizeof(float));
    for (int number = 0; number * conv->tiles_per_part < conv->tiles; number++) {
        struct part p = part_of(conv, number, scratch);
        widen_part(conv, &p);
        for (int k = 0; k * rows < conv->out_height; k++) {
            const struct rows strip = strip_of(conv, k, rows);
            pack_inputs(conv, &p, &strip);
            pack_outputs(conv, &p, &strip, rows);
            weights_dense(conv, p.in, p.out, lines_of(conv, &p, strip.rows), first, last, gradient);
        }
    }
}

/* Copy a dense layer's weights into the row order of its backward maps. */
void NAME(conv_transpose)(const struct conv *conv) {
    for (int phase = 0; phase < conv->phases; phase++) {
        const struct map *map = &conv->backward[phase];
        float *to = (float *)map->matrix;
        for (int row = 0; row < map->rows; row++)
            for (int tap = 0; tap < map->taps; tap++)
                *to++ = conv->values[map->from[tap] + row * map->from_step];
    }
}

#endif
