/* Convolutions of any kernel, stride, dilation and grouping, over kept weights only.
 *
 *   pack_*     copy one part of the batch into padded planes, as it is read, so that no kernel
 *              below ever tests a border
 *   gather_*   outputs from padded planes: forward, and the gradient of the input of a dense layer
 *   return_*   backward over kept weights: gradients of the input and of the weights at once
 *   weights_*  gradients of all weights: sums over pixels and examples
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

/* Compilers make a call of memset of such a loop, which is slow for few pixels. */
#if defined(__GNUC__)
#define NO_CALL __asm__ volatile("" : : : "memory")
#else
#define NO_CALL
#endif

INLINE void fill_zero(float *to, ptrdiff_t pixels) {
    for (float *end = to + pixels * LANES; to < end; to += LANES) {
        vec_store(to, vec_zero());
        NO_CALL;
    }
}

INLINE void pack_frame(float *plane, const struct padding *p, int height, int width) {
    const ptrdiff_t bottom = p->top + height, right = p->left + width;
    fill_zero(plane, (ptrdiff_t)p->top * p->width);
    for (ptrdiff_t y = p->top; y < bottom; y++) {
        fill_zero(plane + y * p->width * LANES, p->left);
        fill_zero(plane + (y * p->width + right) * LANES, p->width - right);
    }
    fill_zero(plane + bottom * p->width * LANES, (p->height - bottom) * p->width);
}

INLINE float *padded_row(float *plane, const struct padding *p, int y) {
    return plane + ((ptrdiff_t)(p->top + y) * p->width + p->left) * LANES;
}

/* One part of the batch. */
struct part {
    int tile, tiles, lines;
    int64_t examples;
    float *in, *out;           /* padded planes in scratch; of the inputs a few in the backward pass */
    struct sums *sums;
    struct range_vecs *ranges; /* of the target */
    const float *x;            /* the source's values */
    float *values;             /* room for these where they are stored in few bits, or NULL */
    float *plane;              /* room for a plane of the source */
};

/* Whether inputs are packed for the gradients of all weights: some lie as these read them. */
INLINE int packs_inputs(const struct conv *conv, const struct part *p) {
    return !conv->direct || (conv->source->stored && !p->values);
}

/* One channel of the source's values in a tile of the part. */
INLINE const float *source_plane(const struct conv *conv, const struct part *p, int tile, int c) {
    const struct tensor *t = conv->source;
    if (t->stored && !p->values) return plane_pixels(t, p->tile + tile, c, p->plane);
    return p->x + plane_offset(t, tile, c);
}

static void pack_values(const struct conv *conv, const struct part *p, int tile, int c, float *to) {
    const struct reading how = reading_of(conv->source, c);
    const float *x = source_plane(conv, p, tile, c);
    pack_frame(to, &conv->in, conv->in_height, conv->in_width);
    for (int y = 0; y < conv->in_height; y++) {
        float *row = padded_row(to, &conv->in, y);
        for (int i = 0; i < conv->in_width; i++, x += LANES)
            vec_store(row + i * LANES, read_value(&how, vec_load(x)));
    }
}

/* The channels first .. last - 1. */
static void pack_inputs(const struct conv *conv, const struct part *p, int first, int last) {
    float *to = p->in;
    for (int tile = 0; tile < p->tiles; tile++)
        for (int c = first; c < last; c++, to += padded_plane(&conv->in))
            if (conv->used_in[c]) pack_values(conv, p, tile, c, to);
}

INLINE void pack_raw(int bits, int parts, const struct conv *conv, const struct pixels *pixels,
                     const struct chain *how, const float *g, float *to) {
    const struct stored_vecs grid = pixels_grid(bits, parts, pixels);
    for (int y = 0, i = 0; y < conv->out_height; y++) {
        float *row = padded_row(to, &conv->out, y);
        for (int end = i + conv->out_width; i < end; i++, g += LANES, row += LANES)
            vec_store(row, raw_gradient(how, vec_load(g), pixel_value(bits, parts, pixels, &grid, i)));
    }
}

static void pack_gradients(const struct conv *conv, int tile, float *to) {
    const struct tensor *t = conv->target;
    const vec valid = vec_lanes(valid_lanes(t, tile));
    for (int c = 0; c < t->channels; c++, to += padded_plane(&conv->out)) {
        if (!conv->used_out[c]) continue;
        const struct chain how = chain_of(t, c, valid);
        const float *g = t->gradient + plane_offset(t, tile, c);
        const struct pixels pixels = how.norm ? pixels_of(t, tile, c) : pixels_of_floats(g);
        pack_frame(to, &conv->out, conv->out_height, conv->out_width);
        WITH_PIXELS(&pixels, pack_raw, conv, &pixels, &how, g, to);
    }
}

static void pack_outputs(const struct conv *conv, const struct part *p) {
    for (int t = 0; t < p->tiles; t++)
        pack_gradients(conv, p->tile + t,
                       p->out + t * conv->target->channels * padded_plane(&conv->out));
}

/* -- gathering -------------------------------------------------------------------------------- */

/* How SLOTS slots lie in the planes they read and in those they write. Constants where they are used, so
 * that addresses are too. */
enum lie {
    SPREAD,  /* anyhow */
    APART,   /* neighbours where they read, anyhow where they write: the phases of a stride */
    HALVES,  /* in two halves where they read, neighbours where they write: rows of four pixels */
    NEAR     /* neighbours in both */
};

INLINE int neighbours(const place_t *place, int count) {
    return place[count - 1] - place[0] == (count - 1) * LANES;
}

INLINE enum lie lie_of(const struct map *map, int slot) {
    const place_t *in = map->slot_in + slot, *out = map->slot_out + slot;
    const int half = SLOTS / 2;
    if (neighbours(in, SLOTS)) return neighbours(out, SLOTS) ? NEAR : APART;
    if (!neighbours(in, half) || !neighbours(in + half, half)) return SPREAD;
    return neighbours(out, SLOTS) ? HALVES : SPREAD;
}

/* Where slots are written: where the first one is, and the others if that does not tell. Read once, as
 * what is written between may be a table for all that compilers know. */
struct places {
    ptrdiff_t first;
    const place_t *place;
};

INLINE struct places places_of(const place_t *place) {
    const struct places p = {place[0], place};
    return p;
}

INLINE ptrdiff_t place_of(struct places p, int j, enum lie lie) {
    return lie == NEAR || lie == HALVES ? p.first + j * LANES : p.place[j];
}

INLINE const float *origin_of(const float *const *origin, int j, enum lie lie) {
    if (lie == NEAR || lie == APART) return origin[0] + j * LANES;
    if (lie == SPREAD) return origin[j];
    const int half = j < SLOTS / 2 ? 0 : SLOTS / 2;
    return origin[half] + (j - half) * LANES;
}

/* Where a row's results go, and what is done to them on the way. */
struct sink {
    const struct tensor *tensor;
    float *out;              /* the part's first tile */
    const float *x;          /* backward: the source's values there */
    struct sums *sums;       /* [rows], or NULL */
    struct range_vecs *ranges; /* forward: [rows], or NULL */
    vec valid;               /* lanes of the last tile that hold examples */
    int first_partial;       /* the first slot of a tile that is not full */
    int forward, accumulate, finish;
};

INLINE void store_row(const struct sink *s, int row, struct places place, const vec *acc,
                      int pixels, enum lie lie) {
    float *out = s->out + (ptrdiff_t)row * s->tensor->plane * LANES;
    for (int j = 0; j < pixels; j++) vec_store(out + place_of(place, j, lie), acc[j]);
}

/* Add moments of `pixels` slots; `partial`: of those from first_partial on only some lanes. */
INLINE void add_moments(const struct sink *s, struct sums *sums, const vec *acc, int pixels, int slot,
                        int partial) {
    vec first = sums->first, second = sums->second;
    for (int j = 0; j < pixels; j++) {
        vec d = vec_sub(acc[j], sums->pivot);
        if (partial && slot + j >= s->first_partial) d = vec_mul(d, s->valid);
        first = vec_add(first, d);
        second = vec_fma(d, d, second);
    }
    sums->first = first;
    sums->second = second;
}

INLINE void sink_forward(const struct sink *s, int row, struct places place, const vec *acc,
                         int pixels, int slot, enum lie lie) {
    store_row(s, row, place, acc, pixels, lie);
    if (s->ranges) add_to_range(&s->ranges[row], acc, pixels);
    if (s->sums == NULL) return;
    struct sums *sums = &s->sums[row];
    if (slot == 0) sums->pivot = pivot_of(acc, pixels);
    if (slot + pixels > s->first_partial)
        add_moments(s, sums, acc, pixels, slot, 1);
    else
        add_moments(s, sums, acc, pixels, slot, 0);
}

/* Pass gradients through the activation of what is read, and sum them for its norm. `x` are values,
 * `read` is what is read of them, and `out` that of the row. */
INLINE void finish_slots(const struct sink *s, const struct reading *how, int row, const vec *x,
                         const vec *read, float *out, struct places place, const vec *acc, int pixels,
                         enum lie lie) {
    const vec mean = vec_set1(s->sums ? s->tensor->mean[row] : 0.0f);
    vec first = vec_zero(), second = vec_zero();
    for (int j = 0; j < pixels; j++) {
        const vec g = how->activated ? vec_where_between(read[j], how->low, how->high, acc[j]) : acc[j];
        vec_store(out + place_of(place, j, lie), g);
        first = vec_add(first, g);
        second = vec_fma(g, vec_sub(x[j], mean), second);
    }
    if (s->sums == NULL) return;
    s->sums[row].first = vec_add(s->sums[row].first, first);
    s->sums[row].second = vec_add(s->sums[row].second, second);
}

INLINE void sink_backward(const struct sink *s, int row, const place_t *place, const vec *acc,
                          int pixels) {
    const ptrdiff_t plane = (ptrdiff_t)row * s->tensor->plane * LANES;
    if (!s->finish) {
        store_row(s, row, places_of(place), acc, pixels, SPREAD);
        return;
    }
    const struct reading how = reading_of(s->tensor, row);
    vec x[SLOTS], read[SLOTS];
    for (int j = 0; j < pixels; j++) {
        x[j] = vec_load(s->x + plane + place[j]);
        read[j] = read_value(&how, x[j]);
    }
    finish_slots(s, &how, row, x, read, s->out + plane, places_of(place), acc, pixels, SPREAD);
}

INLINE void sink_row(const struct sink *s, int row, const place_t *place, const vec *acc,
                     int pixels, int slot) {
    if (s->forward)
        sink_forward(s, row, places_of(place), acc, pixels, slot, SPREAD);
    else
        sink_backward(s, row, place, acc, pixels);
}

/* What a row's sums start from: what is there already, or the bias. */
INLINE void start_row(const struct sink *s, int row, const place_t *place, const float *bias,
                      vec *acc, int pixels) {
    const vec start = bias ? vec_set1(bias[row]) : vec_zero();
    const float *out = s->out + (ptrdiff_t)row * s->tensor->plane * LANES;
    for (int j = 0; j < pixels; j++) acc[j] = s->accumulate ? vec_load(out + place[j]) : start;
}

/* All rows at `pixels` slots, forward. `pixels` and `lie` are constants where this is inlined, so that
 * sums and origins live in registers. */
INLINE void gather_slots(const struct map *map, const float *values, const float *bias,
                         const float *in, int slot, const struct sink *sink, int pixels,
                         enum lie lie) {
    const float *origin[SLOTS];
    const struct places place = places_of(map->slot_out + slot);
    for (int j = 0; j < pixels; j++) origin[j] = in + map->slot_in[slot + j];
    for (int row = 0; row < map->rows; row++) {
        const vec start = bias ? vec_set1(bias[row]) : vec_zero();
        vec acc[SLOTS];
        for (int j = 0; j < pixels; j++) acc[j] = start;
        const struct tap *tap = map->tap + map->first[row], *end = map->tap + map->first[row + 1];
        for (; tap < end; tap++) {
            const vec w = vec_set1(values[tap->index]);
            for (int j = 0; j < pixels; j++)
                acc[j] = vec_fma(w, vec_load(origin_of(origin, j, lie) + tap->offset), acc[j]);
        }
        sink_forward(sink, row, place, acc, pixels, slot, lie);
    }
}

static void gather_sparse(const struct map *map, const float *values, const float *bias,
                          const float *in, int slots, const struct sink *sink) {
    int slot = 0;
    for (; slot + SLOTS <= slots; slot += SLOTS) {
        const enum lie lie = lie_of(map, slot);
        if (lie == NEAR)
            gather_slots(map, values, bias, in, slot, sink, SLOTS, NEAR);
        else if (lie == HALVES)
            gather_slots(map, values, bias, in, slot, sink, SLOTS, HALVES);
        else
            gather_slots(map, values, bias, in, slot, sink, SLOTS, SPREAD);
    }
    for (; slot < slots; slot++) gather_slots(map, values, bias, in, slot, sink, 1, SPREAD);
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

static void gather_backward(const struct conv *conv, const float *in, int tiles,
                            const struct sink *sink) {
    for (int phase = 0; phase < conv->phases; phase++)
        gather_dense(&conv->backward[phase], NULL, in, tiles * conv->backward[phase].slots, sink);
}

/* -- returning -------------------------------------------------------------------------------- */

/* Taps whose gradients are summed at a time, in memory that stays in a cache. */
#define TAPS 64

/* One channel of the source: what it gave, and the gradient that comes back. */
struct returning {
    const struct map *map;     /* of one phase */
    const float *values;       /* of the layer */
    const float *in;           /* padded gradients of the output */
    const struct sink *sink;
    int row;
    struct pixels pixels;      /* the channel's values of the part */
    struct stored_vecs grid;   /* of these, if they are codes */
    float *out;                /* its gradient; NULL: not wanted */
    struct reading how;
};

INLINE void take_codes(int bits, int parts, const struct returning *r, int pixel, int count, vec *x) {
    const int even = pixel & ~1; /* as it is, which compilers cannot know */
    for (int j = 0; j < count; j++) x[j] = pixel_value(bits, parts, &r->pixels, &r->grid, even + j);
}

/* The values of `pixels` slots: codes only where they lie one behind the other. */
INLINE void take_slots(const struct returning *r, struct places place, int pixels, enum lie lie, vec *x) {
    if (READS_CODES && (lie == NEAR || lie == HALVES) && r->pixels.bits < 32)
        WITH_CODES(r->pixels.bits, r->pixels.parts, take_codes, r, (int)(place.first / LANES), pixels, x);
    else
        for (int j = 0; j < pixels; j++) x[j] = vec_load(r->pixels.x + place_of(place, j, lie));
}

/* `count` taps of a row at `pixels` slots: every gradient of the output that is loaded goes into that
 * of the input, and times the input into that of a weight. Two sums per weight hide the latency of an
 * FMA. What is behind `pixels` is constant where this is inlined. */
INLINE void return_slots(const struct returning *r, const struct tap *tap, int count, vec (*sums)[2],
                         int slot, int more, int finish, int pixels, enum lie lie, int gives,
                         int wants) {
    const float *origin[SLOTS];
    const struct places place = places_of(r->map->slot_out + slot);
    vec acc[SLOTS], x[SLOTS], value[SLOTS];
    if (wants || finish) {
        take_slots(r, place, pixels, lie, x);
        for (int j = 0; j < pixels; j++) value[j] = read_value(&r->how, x[j]);
    } else {
        for (int j = 0; j < pixels; j++) x[j] = value[j] = vec_zero();
    }
    for (int j = 0; j < pixels; j++) {
        origin[j] = r->in + r->map->slot_in[slot + j];
        if (gives) acc[j] = more ? vec_load(r->out + place_of(place, j, lie)) : vec_zero();
    }
    for (int k = 0; k < count; k++) {
        const vec w = vec_set1(r->values[tap[k].index]);
        for (int j = 0; j < pixels; j++) {
            const vec d = vec_load(origin_of(origin, j, lie) + tap[k].offset);
            if (gives) acc[j] = vec_fma(w, d, acc[j]);
            if (wants) sums[k][j % 2] = vec_fma(d, value[j], sums[k][j % 2]);
        }
    }
    if (!gives) return;
    if (finish)
        finish_slots(r->sink, &r->how, r->row, x, value, r->out, place, acc, pixels, lie);
    else
        for (int j = 0; j < pixels; j++)
            vec_store(r->out + place_of(place, j, lie), acc[j]);
}

INLINE void return_taps(const struct returning *r, const struct tap *tap, int count, vec (*sums)[2],
                        int slots, int more, int finish, int gives, int wants) {
    int slot = 0;
    for (; slot + SLOTS <= slots; slot += SLOTS) {
        const enum lie lie = lie_of(r->map, slot);
        if (lie == NEAR)
            return_slots(r, tap, count, sums, slot, more, finish, SLOTS, NEAR, gives, wants);
        else if (lie == HALVES)
            return_slots(r, tap, count, sums, slot, more, finish, SLOTS, HALVES, gives, wants);
        else if (lie == APART)
            return_slots(r, tap, count, sums, slot, more, finish, SLOTS, APART, gives, wants);
        else
            return_slots(r, tap, count, sums, slot, more, finish, SLOTS, SPREAD, gives, wants);
    }
    for (; slot < slots; slot++)
        return_slots(r, tap, count, sums, slot, more, finish, 1, SPREAD, gives, wants);
}

INLINE void add_sums(const struct tap *tap, int count, vec (*sums)[2], float *gradient) {
    for (int k = 0; k < count; k += 4) {
        vec four[4];
        float sum[4];
        const int some = count - k < 4 ? count - k : 4;
        for (int i = 0; i < 4; i++)
            four[i] = i < some ? vec_add(sums[k + i][0], sums[k + i][1]) : vec_zero();
        vec_sum4(four[0], four[1], four[2], four[3], sum);
        for (int i = 0; i < some; i++) gradient[tap[k + i].index] += sum[i];
    }
}

/* One channel's pixels of one phase. */
INLINE void return_row(const struct returning *r, int slots, float *gradient) {
    const struct map *map = r->map;
    const struct tap *tap = map->tap + map->first[r->row];
    int left = map->first[r->row + 1] - map->first[r->row], more = r->sink->accumulate;
    vec sums[TAPS][2];
    if (left == 0 && (r->out == NULL || (more && !r->sink->finish))) return;
    do {
        const int count = left < TAPS ? left : TAPS, finish = r->sink->finish && count == left;
        for (int k = 0; gradient && k < count; k++) sums[k][0] = sums[k][1] = vec_zero();
        if (r->out && gradient)
            return_taps(r, tap, count, sums, slots, more, finish, 1, 1);
        else if (r->out)
            return_taps(r, tap, count, sums, slots, more, finish, 1, 0);
        else
            return_taps(r, tap, count, sums, slots, more, finish, 0, 1);
        if (gradient) add_sums(tap, count, sums, gradient);
        tap += count, left -= count, more = 1;
    } while (left);
}

/* -- weights ---------------------------------------------------------------------------------- */

/* Input channels that are packed at a time. Their taps are a whole number of blocks, and their planes
 * stay in a cache while those of all gradients go by. */
#define FEW 6

#if FEW % PX
#error "a block takes PX taps"
#endif

/* Some input channels of a group, as a convolution reads them. */
struct inputs {
    const float *x;
    ptrdiff_t tile;            /* floats of one */
    int first, count;          /* within the group */
};

/* Add to a block of `rows` x `taps` gradients. One sum each: that is enough sums, and makes every
 * gradient the same number whatever block it falls into. */
INLINE void weights_block(const struct conv *conv, const struct inputs *in, const float *out, int tiles,
                          const place_t *offset, float *gradient, int rows, int taps) {
    const ptrdiff_t plane = padded_plane(&conv->out);
    const place_t *line_out = conv->line_out;
    vec acc[ROWS][PX];
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < taps; k++) acc[r][k] = vec_zero();
    for (int tile = 0; tile < tiles; tile++) {
        for (int line = 0; line < conv->lines; line++) {
            const float *x = in->x + tile * in->tile + conv->line_in[line], *d = out + *line_out++;
            for (int i = 0; i < conv->line_length; i++, d += LANES, x += conv->stride) {
                vec value[PX];
                for (int k = 0; k < taps; k++) value[k] = vec_load(x + offset[k]);
                for (int r = 0; r < rows; r++) {
                    const vec g = vec_load(d + r * plane);
                    for (int k = 0; k < taps; k++) acc[r][k] = vec_fma(g, value[k], acc[r][k]);
                }
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

INLINE void weights_rows(const struct conv *conv, const struct inputs *in, const float *out, int tiles,
                         float *gradient, int rows) {
    const int area = conv->full_taps * conv->groups / conv->source->channels;
    const int taps = in->count * area;
    int k = 0;
    gradient += in->first * area;
    for (; k + PX <= taps; k += PX)
        weights_block(conv, in, out, tiles, conv->full_offset + k, gradient + k, rows, PX);
    for (; k < taps; k++)
        weights_block(conv, in, out, tiles, conv->full_offset + k, gradient + k, rows, 1);
}

/* Add what some inputs give to the gradients of the rows first .. last - 1, [last - first][full_taps]. */
static void weights_of(const struct conv *conv, const struct part *p, const struct inputs *in,
                       int first, int last, float *gradient) {
    const float *out = p->out + first * padded_plane(&conv->out);
    int left = last - first;
    for (; left >= ROWS; left -= ROWS) {
        weights_rows(conv, in, out, p->tiles, gradient, ROWS);
        out += ROWS * padded_plane(&conv->out);
        gradient += (ptrdiff_t)ROWS * conv->full_taps;
    }
    for (; left; left--) {
        weights_rows(conv, in, out, p->tiles, gradient, 1);
        out += padded_plane(&conv->out);
        gradient += conv->full_taps;
    }
}

/* The same for all inputs of a group: where they lie, or packed a few at a time. */
static void weights_group(const struct conv *conv, const struct part *p, int group, int first,
                          int last, float *gradient) {
    const int channels = conv->source->channels / conv->groups, begin = group * channels;
    struct inputs in = {p->x + (ptrdiff_t)begin * conv->source->plane * LANES,
                        plane_offset(conv->source, 1, 0), 0, channels};
    if (!packs_inputs(conv, p)) {
        weights_of(conv, p, &in, first, last, gradient);
        return;
    }
    in.x = p->in;
    for (; in.first < channels; in.first += FEW) {
        in.count = channels - in.first < FEW ? channels - in.first : FEW;
        in.tile = in.count * padded_plane(&conv->in);
        pack_inputs(conv, p, begin + in.first, begin + in.first + in.count);
        weights_of(conv, p, &in, first, last, gradient);
    }
}

/* Add to all gradients of the rows first .. last - 1, into [last - first][full_taps]. */
static void weights_dense(const struct conv *conv, const struct part *p, int first, int last,
                          float *gradient) {
    const int outputs = conv->target->channels / conv->groups;
    for (int row = first; row < last;) {
        const int group = row / outputs, next = (group + 1) * outputs, end = next < last ? next : last;
        weights_group(conv, p, group, row, end, gradient + (ptrdiff_t)(row - first) * conv->full_taps);
        row = end;
    }
}

static void bias_gradients(const struct conv *conv, const float *out, int lines,
                           float *gradient) {
    for (int row = 0; row < conv->target->channels; row++, out += padded_plane(&conv->out)) {
        vec sum = vec_zero();
        for (int line = 0; line < lines; line++) {
            const float *d = out + conv->line_out[line];
            for (int i = 0; i < conv->line_length; i++) sum = vec_add(sum, vec_load(d + i * LANES));
        }
        gradient[row] += vec_sum(sum);
    }
}

/* -- one part of the batch -------------------------------------------------------------------- */

/* Whether a part's values are made at once where they are stored in few bits: a dense layer reads them
 * all at every pixel, and the planes of several tiles are short. Else channel by channel. */
INLINE int widens_parts(const struct conv *conv) {
    return conv->source->stored && (!conv->forward.first || conv->tiles_per_part > 1);
}

/* A part in the forward pass: sums, then the padded inputs, unless they are read where they lie. */
INLINE struct part part_of(const struct conv *conv, int number, float *scratch) {
    struct part p;
    memset(&p, 0, sizeof p);
    p.tile = number * conv->tiles_per_part;
    p.tiles = conv->tiles - p.tile;
    if (p.tiles > conv->tiles_per_part) p.tiles = conv->tiles_per_part;
    p.lines = p.tiles * conv->lines;
    p.examples = count_examples(conv->source, p.tile, p.tiles);
    p.sums = (struct sums *)scratch;
    int most = conv->source->channels > conv->target->channels ? conv->source->channels
                                                               : conv->target->channels;
    p.x = conv->source->x + plane_offset(conv->source, p.tile, 0);
    p.ranges = (struct range_vecs *)(p.sums + most);
    p.in = (float *)(p.ranges + (conv->target->ranges ? conv->target->channels : 0));
    return p;
}

/* A part in the backward pass: sums, the padded gradients of the outputs, room for the values of the
 * source, for a few padded inputs, and for a plane. */
INLINE struct part part_back(const struct conv *conv, int number, float *scratch) {
    struct part p = part_of(conv, number, scratch);
    const int few = conv->source->channels / conv->groups;
    float *free = p.in + conv->tiles_per_part * conv->target->channels * padded_plane(&conv->out);
    p.out = p.in;
    if (widens_parts(conv)) {
        p.values = free;
        free += conv->tiles_per_part * plane_offset(conv->source, 1, 0);
    }
    p.in = free;
    if (packs_inputs(conv, &p))
        free += conv->tiles_per_part * (few < FEW ? few : FEW) * padded_plane(&conv->in);
    p.plane = free;
    return p;
}

/* Make the source's values where they are stored in few bits and needed at once. */
static void widen_part(const struct conv *conv, struct part *p) {
    const struct tensor *t = conv->source;
    if (!p->values) return;
    for (int tile = 0; tile < p->tiles; tile++)
        for (int c = 0; c < t->channels; c++)
            stored_plane(t->stored, p->tile + tile, c, p->values + plane_offset(t, tile, c));
    p->x = p->values;
}

static struct sink sink_of(const struct tensor *t, const struct part *p, float *base, int wanted,
                           int slots) {
    struct sink s;
    memset(&s, 0, sizeof s);
    s.tensor = t;
    s.out = base ? base + plane_offset(t, p->tile, 0) : NULL;
    s.x = p->x;
    s.sums = wanted ? p->sums : NULL;
    int lanes = valid_lanes(t, p->tile + p->tiles - 1);
    s.valid = vec_lanes(lanes);
    s.first_partial = lanes == LANES ? INT32_MAX : (p->tiles - 1) * slots;
    if (wanted) memset(p->sums, 0, (size_t)t->channels * sizeof(struct sums));
    return s;
}

/* Run the parts first .. last - 1 forward.
 * Writes target->x, and moments per part into target->sums where `statistics` says so. */
void NAME(conv_forward)(const struct conv *conv, int first, int last, float *scratch) {
    for (int number = first; number < last; number++) {
        const struct part p = part_of(conv, number, scratch);
        const struct tensor *t = conv->target;
        struct sink sink = sink_of(t, &p, t->x, conv->statistics, conv->forward.slots);
        sink.forward = 1;
        if (t->ranges) sink.ranges = p.ranges;
        for (int c = 0; t->ranges && c < t->channels; c++) p.ranges[c] = no_range();
        if (!conv->direct) pack_inputs(conv, &p, 0, conv->source->channels);
        gather_forward(conv, conv->direct ? p.x : p.in, p.tiles * conv->forward.slots, &sink);
        for (int c = 0; t->ranges && c < t->channels; c++)
            t->ranges[(ptrdiff_t)p.tile * t->channels + c] = range_of(&p.ranges[c]);
        if (!conv->statistics) continue;
        for (int c = 0; c < t->channels; c++) {
            store_moments(t->sums + 2 * ((ptrdiff_t)number * t->channels + c), &p.sums[c],
                          (double)p.examples * t->plane);
        }
    }
}

static struct sink sink_back(const struct conv *conv, const struct part *p) {
    const struct tensor *s = conv->source;
    struct sink sink = sink_of(s, p, s->gradient, conv->finish && s->mean != NULL, 0);
    sink.accumulate = conv->accumulate;
    sink.finish = conv->finish;
    return sink;
}

/* Whether the source's planes are walked in the order of their pixels, so that codes need no room. */
static int walks_pixels(const struct conv *conv) {
    const struct map *map = &conv->backward[0];
    if (conv->phases > 1 || conv->tiles_per_part > 1 || map->slots % SLOTS) return 0;
    for (int slot = 0; slot < map->slots; slot += SLOTS) {
        const enum lie lie = lie_of(map, slot);
        if (lie != NEAR && lie != HALVES) return 0;
    }
    return 1;
}

/* Write or add to the source's gradient, and add to those of the kept weights; either may be unwanted. */
static void return_gradients(const struct conv *conv, const struct part *p, const struct sink *sink,
                             float *gradient) {
    const struct tensor *s = conv->source;
    struct returning r;
    if (!gradient && !s->gradient) return;
    memset(&r, 0, sizeof r);
    r.values = conv->values;
    r.in = p->out;
    r.sink = sink;
    const int codes = s->stored && !p->values && walks_pixels(conv);
    for (r.row = 0; r.row < s->channels; r.row++) {
        if (!conv->used_in[r.row] && !conv->accumulate) {
            for (int t = 0; s->gradient && t < p->tiles; t++)
                fill_zero(sink->out + plane_offset(s, t, r.row), s->plane);
            continue;
        }
        r.how = reading_of(s, r.row);
        if (codes)
            r.pixels = pixels_of(s, p->tile, r.row), r.grid = stored_vecs_of(r.pixels.parts, r.pixels.grid);
        else if (gradient || conv->finish)
            r.pixels = pixels_of_floats(source_plane(conv, p, 0, r.row));
        if (s->gradient) r.out = sink->out + (ptrdiff_t)r.row * s->plane * LANES;
        for (int phase = 0; phase < conv->phases; phase++) {
            r.map = &conv->backward[phase];
            return_row(&r, p->tiles * r.map->slots, gradient);
        }
    }
}

/* Both for a dense layer. */
static void add_dense(const struct conv *conv, const struct part *p, float *gradient) {
    if (gradient) weights_dense(conv, p, 0, conv->target->channels, gradient);
}

static void give_dense(const struct conv *conv, const struct part *p, const struct sink *sink) {
    if (conv->source->gradient) gather_backward(conv, p->out, p->tiles, sink);
}

/* Leave the sums of the source's gradient where this finishes it. */
static void store_part(const struct conv *conv, const struct sink *sink, int number) {
    const struct tensor *s = conv->source;
    for (int c = 0; sink->sums && c < s->channels; c++)
        store_sums(s->sums + 2 * ((ptrdiff_t)number * s->channels + c), &sink->sums[c]);
}

/* Run the parts first .. last - 1 backward; the target's gradient is finished.
 * Adds to `gradient` (as conv->values, or NULL) and `bias_gradient` (or NULL), writes or adds to the
 * source's gradient if it has one, and its sums if this finishes it. */
void NAME(conv_backward)(const struct conv *conv, int first, int last, float *scratch,
                         float *gradient, float *bias_gradient) {
    for (int number = first; number < last; number++) {
        struct part p = part_back(conv, number, scratch);
        if (gradient || conv->finish) widen_part(conv, &p);
        pack_outputs(conv, &p);
        if (bias_gradient) bias_gradients(conv, p.out, p.lines, bias_gradient);
        const struct sink sink = sink_back(conv, &p);
        if (conv->forward.first) {
            return_gradients(conv, &p, &sink, gradient);
        } else {
            add_dense(conv, &p, gradient);
            give_dense(conv, &p, &sink);
        }
        store_part(conv, &sink, number);
    }
}

/* Add what the parts first_part .. last_part - 1 give to the gradients of ALL weights of the rows
 * first .. last - 1, kept or not: to `gradient` [last - first][full_taps]. The target's gradient is
 * finished. */
void NAME(conv_full_gradient)(const struct conv *conv, int first, int last, int first_part,
                              int last_part, float *scratch, float *gradient) {
    for (int number = first_part; number < last_part; number++) {
        struct part p = part_back(conv, number, scratch);
        widen_part(conv, &p);
        pack_outputs(conv, &p);
        weights_dense(conv, &p, first, last, gradient);
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
