/* Values that the backward pass reads again, in few bits meanwhile.
 *
 * The values of a channel of a tile fall into parts: those at which a read's activation passes a
 * gradient, those below, and those above. A part ends at an edge, and each edge has two codes, one on
 * either side; so a value never changes its part, and what passes a gradient still does, to the bit.
 * Between its ends a part is divided into equal steps, as long in both of two parts. Within its part a
 * value is rounded at random to one of its two neighbours, and right on average. */
#ifndef FEDKIT_STORED_H
#define FEDKIT_STORED_H

#include <float.h>

#include "random.h"
#include "tensor.h"

/* Lanes that draws are counted for: a trainer with fewer draws as the kernels in plain C do. */
#if defined(FEDKIT_LANES)
#define DRAWN_LANES 8
#else
#define DRAWN_LANES LANES
#endif

/* -- parts ------------------------------------------------------------------------------------ */

/* Parts that an activation makes of all values. */
INLINE int stored_parts_of(const struct tensor *t) {
    return t->activation == ACT_NONE ? 1 : t->activation == ACT_RELU ? 2 : STORED_PARTS;
}

/* The parts of a channel's values, from low to high: part p + 1 lies behind edge[p]. */
struct parts {
    int count;
    float edge[STORED_PARTS - 1];
};

/* Finite numbers and infinities, counted from 0 up and down. */
INLINE int64_t number_of_float(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits < 0 ? -(int64_t)(bits & INT32_MAX) : bits;
}

INLINE float float_of_number(int64_t number) {
    const uint32_t bits = number < 0 ? (uint32_t)-number | 0x80000000u : (uint32_t)number;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Whether what is read of a value lies above where the activation begins (end 0) or not below where it
 * ends (end 1); where `falls`, whether it does not. */
INLINE int stored_is_over(const struct reading *how, int end, int falls, int64_t number) {
    const vec y = before_activation(how, vec_set1(float_of_number(number)));
    const vec no = vec_zero(), yes = vec_set1(1.0f);
    const vec over = end ? vec_below(y, how->high, no, yes) : vec_below(how->low, y, yes, no);
    return (vec_first(over) > 0.0f) != falls;
}

/* The last value that is not over an end of the activation, to the bit: near where it is by the rules
 * for real numbers, and found by halves wherever it lies. */
static inline float stored_edge(const struct reading *how, int end) {
    const float scale = vec_first(how->scale), shift = vec_first(how->shift);
    const float near = (vec_first(end ? how->high : how->low) - shift) / scale;
    const int64_t lowest = number_of_float(-INFINITY), highest = number_of_float(INFINITY);
    const int falls = scale < 0.0f;
    if (scale == 0.0f || near != near) return INFINITY;
    int64_t below = number_of_float(near), above = below + 1;
    for (int64_t step = 1; below > lowest && stored_is_over(how, end, falls, below); step *= 2) {
        above = below;
        below = below - step > lowest ? below - step : lowest;
    }
    for (int64_t step = 1; above < highest && !stored_is_over(how, end, falls, above); step *= 2) {
        below = above;
        above = above + step < highest ? above + step : highest;
    }
    while (above - below > 1) {
        const int64_t middle = below + (above - below) / 2;
        if (stored_is_over(how, end, falls, middle))
            above = middle;
        else
            below = middle;
    }
    return float_of_number(below);
}

/* `how` is that of a channel. Where its scale is negative, values lie the other way round. */
INLINE struct parts stored_parts(const struct reading *how, int count) {
    const int falls = vec_first(how->scale) < 0.0f;
    struct parts parts = {count, {INFINITY, INFINITY}};
    if (count == 2) parts.edge[0] = stored_edge(how, 0);
    for (int e = 0; count == 3 && e < 2; e++) parts.edge[e] = stored_edge(how, falls ? 1 - e : e);
    return parts;
}

/* -- grids ------------------------------------------------------------------------------------ */

INLINE struct range stored_range(const float *x, int plane) {
    struct range_vecs range = no_range();
    int i = 0;
    for (; i + 4 <= plane; i += 4, x += 4 * LANES) {
        const vec values[4] = {vec_load(x), vec_load(x + LANES), vec_load(x + 2 * LANES),
                               vec_load(x + 3 * LANES)};
        add_to_range(&range, values, 4);
    }
    for (; i < plane; i++, x += LANES) {
        const vec value = vec_load(x);
        add_to_range(&range, &value, 1);
    }
    return range_of(&range);
}

/* Whether values differ, and by how much can be said. */
INLINE int stored_varies(struct range range) {
    const float length = range.most - range.least;
    return length > 0.0f && length <= FLT_MAX;
}

/* Bits behind the point of a code before it is cut off. */
INLINE int stored_fraction(int bits) { return bits == 16 ? 15 : 16; }

/* How values become codes: (x - from) * per is what to add to `code`, times 2^fraction. Two parts have
 * the same `from` and `per`. */
struct narrowing {
    float from[STORED_PARTS], per[STORED_PARTS];
    int code[STORED_PARTS];
};

/* The most by which a length may be multiplied and stay within `most`, in float32. */
INLINE float stored_per(double length, double most) {
    const double exact = most / length;
    if (exact >= FLT_MAX) return FLT_MAX;
    const float per = (float)exact;
    return per * length > most ? float_of_number(number_of_float(per) - 1) : per;
}

INLINE float stored_sum(float base, float step, int code) {
    const float above = step * (float)code;
    return base + above;
}

/* What code 0 of a part stands for, if `code` stands for `at` and must not leave the part. */
INLINE float stored_base(const struct parts *parts, int p, float step, int code, float at) {
    const float above = step * (float)code;
    float base = at - above, nudge = ((at < 0.0f ? -at : at) + above) * 0x1p-24f + 0x1p-149f;
    if (p == 0) {
        for (; stored_sum(base, step, code) > parts->edge[0]; nudge *= 2) base -= nudge;
    } else {
        for (; !(stored_sum(base, step, code) > parts->edge[p - 1]); nudge *= 2) base += nudge;
    }
    return base;
}

/* The parts that a range lies in, and how far. */
struct extent {
    float low[STORED_PARTS], high[STORED_PARTS];
    int there[STORED_PARTS];
};

INLINE struct extent stored_extent(const struct parts *parts, struct range range) {
    struct extent extent;
    memset(&extent, 0, sizeof extent);
    for (int p = 0; p < parts->count; p++) {
        const float begin = p == 0 ? -INFINITY : parts->edge[p - 1];
        const float end = p == parts->count - 1 ? INFINITY : parts->edge[p];
        extent.there[p] = (p == 0 || range.most > begin) && range.least <= end;
        extent.low[p] = range.least > begin ? range.least : begin;
        extent.high[p] = range.most <= end ? range.most : end;
    }
    return extent;
}

/* Deal out the codes: one to a part of one value, two to any other, and the rest by length. */
INLINE void stored_deal(const struct extent *extent, int bits, struct grid *grid,
                        struct narrowing *how) {
    const double unit = 1 << stored_fraction(bits);
    double length[STORED_PARTS] = {0}, total = 0.0, passed = 0.0;
    int first = 0, dealt = 0, rest = 1 << bits;
    for (int p = 0; p < STORED_PARTS; p++) {
        if (!extent->there[p]) continue;
        const float long_as = extent->high[p] - extent->low[p];
        length[p] = long_as;
        total += length[p];
        rest -= length[p] > 0.0 ? 2 : 1;
    }
    for (int p = 0; p < STORED_PARTS; p++) {
        if (p > 0) grid->first[p - 1] = first;
        if (!extent->there[p]) continue;
        passed += length[p];
        const int until = (int)(rest * (passed / total) + 0.5);
        const int steps = length[p] > 0.0 ? 1 + until - dealt : 0;
        how->code[p] = p == 0 ? steps : first;
        if (steps) how->per[p] = stored_per(length[p], unit * steps);
        dealt = until;
        first += steps + 1;
    }
}

/* Choose the grid of a plane. Where all values are the same, or one is not a number, code 0 is all there is. */
static inline void stored_grid(const struct parts *parts, struct range range, int bits,
                               struct grid *grid, struct narrowing *how) {
    memset(grid, 0, sizeof *grid);
    memset(how, 0, sizeof *how);
    grid->limit = parts->edge[1];
    if (!stored_varies(range)) {
        const float only = range.most == range.least ? range.least : float_of_number(0x7fc00000);
        for (int p = 0; p < STORED_PARTS; p++) grid->base[p] = only;
        for (int e = 0; e < STORED_PARTS - 1; e++) grid->first[e] = !(only > parts->edge[e]);
        return;
    }
    const struct extent extent = stored_extent(parts, range);
    stored_deal(&extent, bits, grid, how);
    if (parts->count == 2) {
        const float one = how->per[0], two = how->per[1];
        how->per[0] = how->per[1] = one > 0.0f && (two == 0.0f || one < two) ? one : two;
    }
    for (int p = 0; p < STORED_PARTS; p++) {
        if (!extent.there[p]) continue;
        if (how->per[p] > 0.0f) grid->step[p] = (float)(1 << stored_fraction(bits)) / how->per[p];
        how->from[p] = p == 0 ? extent.high[p] : extent.low[p];
        grid->base[p] = stored_base(parts, p, grid->step[p], how->code[p], how->from[p]);
    }
    if (parts->count == 2 && !extent.there[0]) grid->step[0] = grid->step[1], how->from[0] = how->from[1];
}

/* -- codes ------------------------------------------------------------------------------------ */

/* Bytes of the codes of a plane. Of 4 bits, two neighbouring pixels share LANES bytes. */
INLINE ptrdiff_t stored_bytes(int plane, int bits) {
    return bits == 4 ? (ptrdiff_t)(plane + 1) / 2 * LANES : (ptrdiff_t)plane * LANES * bits / 8;
}

/* Pixels that share draws of 32 bits. */
#define DRAWING 4

/* Where the draws of a plane begin. */
INLINE uint32_t stored_counter(ptrdiff_t number, int plane) {
    return (uint32_t)(number * ((plane + DRAWING - 1) / DRAWING) * DRAWN_LANES);
}

/* 16 bits for pixel j of DRAWING: the upper 8 are its own, the lower 8 those of another one. */
INLINE whole stored_draw(whole drawn, int j) {
    whole bits = j == 0 ? drawn : whole_right(drawn, 8 * j);
    if (j == 3) bits = whole_or(bits, whole_left(drawn, 8));
    return j == 2 ? bits : whole_and(bits, whole_set1(0xffff));
}

/* How the values of one plane become codes, as vectors per part. */
struct narrowing_vecs {
    vec from[STORED_PARTS], per[STORED_PARTS], start[STORED_PARTS], edge[STORED_PARTS - 1];
};

INLINE struct narrowing_vecs narrowing_vecs_of(const struct parts *parts, const struct narrowing *how,
                                               int bits) {
    struct narrowing_vecs v;
    for (int p = 0; p < STORED_PARTS; p++) {
        v.from[p] = vec_set1(how->from[p]);
        v.per[p] = vec_set1(how->per[p]);
        v.start[p] = vec_set1((float)how->code[p] * (float)(1 << stored_fraction(bits)));
    }
    for (int e = 0; e < STORED_PARTS - 1; e++) v.edge[e] = vec_set1(parts->edge[e]);
    return v;
}

INLINE vec stored_by_value(int parts, const vec *edge, vec x, const vec *choice) {
    vec found = choice[0];
    if (parts > 1) found = vec_below(edge[0], x, choice[1], found);
    if (parts > 2) found = vec_below(edge[1], x, choice[2], found);
    return found;
}

/* A code and its fraction. */
INLINE whole stored_exactly(int parts, const struct narrowing_vecs *how, vec x) {
    const vec from = parts == 3 ? stored_by_value(parts, how->edge, x, how->from) : how->from[0];
    const vec per = parts == 3 ? stored_by_value(parts, how->edge, x, how->per) : how->per[0];
    const vec start = stored_by_value(parts, how->edge, x, how->start);
    return whole_of(vec_fma(vec_sub(x, from), per, start));
}

/* Write the codes of two neighbours, of which the first has an even number, or of the last pixel of an
 * odd number alone. */
INLINE void stored_put(uint8_t *codes, int bits, int pixel, const whole *code, int count) {
    const ptrdiff_t at = (ptrdiff_t)pixel * LANES;
    if (bits == 4) {
        whole_to_bytes(codes + at / 2, count == 1 ? code[0] : whole_or(code[0], whole_left(code[1], 4)));
        return;
    }
    for (int j = 0; j < count; j++) {
        if (bits == 8)
            whole_to_bytes(codes + at + j * LANES, code[j]);
        else
            whole_to_words((uint16_t *)codes + at + j * LANES, code[j]);
    }
}

/* Write the codes of `count` pixels that share a draw. */
INLINE void stored_narrow_some(int parts, const struct narrowing_vecs *how, int bits, whole drawn,
                               const float *x, int pixel, int count, uint8_t *codes) {
    const int fraction = stored_fraction(bits);
    whole code[DRAWING];
    for (int j = 0; j < count; j++) {
        const whole exact = stored_exactly(parts, how, vec_load(x + (ptrdiff_t)(pixel + j) * LANES));
        whole more = stored_draw(drawn, j);
        if (fraction < 16) more = whole_right(more, 16 - fraction);
        code[j] = whole_right(whole_add(exact, more), fraction);
    }
    for (int j = 0; j < count; j += 2)
        stored_put(codes, bits, pixel + j, code + j, count - j < 2 ? count - j : 2);
}

/* Write the codes of a plane. `parts` and `bits` are constants where this is inlined. */
INLINE void stored_narrow_plane(const struct parts *all, int parts, const struct narrowing *how, int bits,
                                uint64_t key, uint32_t counter, int plane, const float *x,
                                uint8_t *codes) {
    const struct narrowing_vecs vecs = narrowing_vecs_of(all, how, bits);
    const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    int i = 0;
    for (; i + DRAWING <= plane; i += DRAWING, counter += DRAWN_LANES)
        stored_narrow_some(parts, &vecs, bits, random_vec(low, high, counter), x, i, DRAWING, codes);
    if (i < plane)
        stored_narrow_some(parts, &vecs, bits, random_vec(low, high, counter), x, i, plane - i, codes);
}

/* Choose the grid of a plane, and write its codes. `all` are the parts of its channel. */
INLINE void stored_make_plane(const struct parts *all, int parts, struct range range, struct grid *grid,
                              int bits, uint64_t key, uint32_t counter, int plane, const float *x,
                              uint8_t *codes) {
    struct narrowing how;
    stored_grid(all, range, bits, grid, &how);
    if (stored_varies(range))
        stored_narrow_plane(all, parts, &how, bits, key, counter, plane, x, codes);
    else
        memset(codes, 0, (size_t)stored_bytes(plane, bits));
}

/* -- values ----------------------------------------------------------------------------------- */

/* What the grid of one plane tells, as vectors. */
struct stored_vecs {
    vec base[STORED_PARTS], step[STORED_PARTS], first[STORED_PARTS - 1], limit;
};

INLINE struct stored_vecs stored_vecs_of(int parts, const struct grid *grid) {
    struct stored_vecs v;
    for (int p = 0; p < parts; p++) {
        v.base[p] = vec_set1(grid->base[p]);
        v.step[p] = vec_set1(grid->step[p]);
    }
    for (int e = 0; e < parts - 1; e++) v.first[e] = vec_set1((float)grid->first[e]);
    v.limit = vec_set1(grid->limit);
    return v;
}

/* The code of any pixel of a plane. */
INLINE vec stored_code(const uint8_t *codes, int bits, int pixel) {
    const ptrdiff_t at = (ptrdiff_t)pixel * LANES;
    if (bits == 16) return vec_of_whole(whole_of_words((const uint16_t *)codes + at));
    if (bits == 8) return vec_of_whole(whole_of_bytes(codes + at));
    const whole both = whole_of_bytes(codes + (ptrdiff_t)(pixel / 2) * LANES);
    return vec_of_whole(pixel % 2 ? whole_right(both, 4) : whole_and(both, whole_set1(15)));
}

INLINE vec stored_by_code(int parts, const vec *first, vec code, const vec *choice) {
    vec found = choice[0];
    if (parts > 1) found = vec_below(code, first[0], found, choice[1]);
    if (parts > 2) found = vec_below(code, first[1], found, choice[2]);
    return found;
}

/* What a code stands for. Rounded twice, whether or not a processor could do so once. */
INLINE vec stored_value(int parts, const struct stored_vecs *grid, vec code) {
    const vec base = stored_by_code(parts, grid->first, code, grid->base);
    const vec step = parts == 3 ? stored_by_code(parts, grid->first, code, grid->step) : grid->step[0];
    const vec x = vec_add(base, vec_mul(code, step));
    return parts == 3 ? vec_below(code, grid->first[1], vec_min(x, grid->limit), x) : x;
}

/* Write what the codes of a plane stand for. */
INLINE void stored_widen_plane(int parts, const struct grid *grid, int bits, int plane,
                               const uint8_t *codes, float *x) {
    const struct stored_vecs vecs = stored_vecs_of(parts, grid);
    int i = 0;
    for (; i + 2 <= plane; i += 2, x += 2 * LANES) {
        vec_store(x, stored_value(parts, &vecs, stored_code(codes, bits, i)));
        vec_store(x + LANES, stored_value(parts, &vecs, stored_code(codes, bits, i + 1)));
    }
    if (i < plane) vec_store(x, stored_value(parts, &vecs, stored_code(codes, bits, i)));
}

/* -- tensors ---------------------------------------------------------------------------------- */

/* Call a function with what is constant in it, bits and parts, first. */
#define WITH_PARTS(bits, parts, function, ...) \
    do { \
        if ((parts) == 1) \
            function(bits, 1, __VA_ARGS__); \
        else if ((parts) == 2) \
            function(bits, 2, __VA_ARGS__); \
        else \
            function(bits, 3, __VA_ARGS__); \
    } while (0)
#define WITH_CODES(bits, parts, function, ...) \
    do { \
        if ((bits) == 8) \
            WITH_PARTS(8, parts, function, __VA_ARGS__); \
        else if ((bits) == 4) \
            WITH_PARTS(4, parts, function, __VA_ARGS__); \
        else \
            WITH_PARTS(16, parts, function, __VA_ARGS__); \
    } while (0)

/* A channel of a tile, by its number among all of them. */
INLINE uint8_t *stored_codes(const struct stored *s, ptrdiff_t number, int bits) {
    return (uint8_t *)s->codes + number * stored_bytes(s->tensor->plane, bits);
}

INLINE void stored_narrow_tiles(int bits, int parts, const struct stored *s, int first, int last) {
    const struct tensor *t = s->tensor;
    const uint64_t key = (uint64_t)s->key_high << 32 | s->key_low;
    for (int c = 0; c < t->channels; c++) {
        const struct reading how = reading_of(t, c);
        const struct parts all = stored_parts(&how, parts);
        for (int tile = first; tile < last; tile++) {
            const ptrdiff_t number = (ptrdiff_t)tile * t->channels + c;
            const float *x = t->x + plane_offset(t, tile, c);
            stored_make_plane(&all, parts, t->ranges ? t->ranges[number] : stored_range(x, t->plane),
                              &s->grids[number], bits, key, stored_counter(number, t->plane), t->plane,
                              x, stored_codes(s, number, bits));
        }
    }
}

INLINE void stored_widen_channel(int bits, int parts, const struct stored *s, int tile, int channel,
                                 float *x) {
    const ptrdiff_t number = (ptrdiff_t)tile * s->tensor->channels + channel;
    stored_widen_plane(parts, &s->grids[number], bits, s->tensor->plane, stored_codes(s, number, bits), x);
}

/* Write what the codes of a plane stand for into x [plane][LANES]. */
static void stored_plane(const struct stored *s, int tile, int channel, float *x) {
    WITH_CODES(s->bits, stored_parts_of(s->tensor), stored_widen_channel, s, tile, channel, x);
}

/* Write the codes of a tensor. */
void NAME(narrow)(const struct stored *s, int first, int last) {
    WITH_CODES(s->bits, stored_parts_of(s->tensor), stored_narrow_tiles, s, first, last);
}

/* Write the values that the codes stand for into the tensor. */
void NAME(widen)(const struct stored *s, int first, int last) {
    const struct tensor *t = s->tensor;
    for (int tile = first; tile < last; tile++)
        for (int c = 0; c < t->channels; c++)
            stored_plane(s, tile, c, t->x + plane_offset(t, tile, c));
}

/* A plane of a tensor: made in `room` [plane][LANES] if it is stored in few bits. */
INLINE const float *plane_pixels(const struct tensor *t, int tile, int channel, float *room) {
    if (t->stored == NULL) return t->x + plane_offset(t, tile, channel);
    stored_plane(t->stored, tile, channel, room);
    return room;
}

/* -- pixels ----------------------------------------------------------------------------------- */

/* The kernels of a trainer find values wide again, and need no code to read others. */
#if defined(FEDKIT_LANES)
#define READS_CODES 0
#else
#define READS_CODES 1
#endif

/* A plane, however it is stored. */
struct pixels {
    int bits, parts;                      /* 32: floats */
    const float *x;
    const uint8_t *codes;
    const struct grid *grid;
};

INLINE struct pixels pixels_of_floats(const float *x) {
    const struct pixels p = {32, 1, x, NULL, NULL};
    return p;
}

INLINE struct pixels pixels_of(const struct tensor *t, int tile, int channel) {
    const struct stored *s = t->stored;
    const ptrdiff_t number = (ptrdiff_t)tile * t->channels + channel;
    if (!READS_CODES || s == NULL) return pixels_of_floats(t->x + plane_offset(t, tile, channel));
    const struct pixels p = {s->bits, stored_parts_of(t), NULL, stored_codes(s, number, s->bits),
                             &s->grids[number]};
    return p;
}

/* What the grid of a plane tells, if it has one. */
INLINE struct stored_vecs pixels_grid(int bits, int parts, const struct pixels *p) {
    static const struct grid none;
    return stored_vecs_of(parts, bits == 32 ? &none : p->grid);
}

/* One pixel. `bits` and `parts` are constants where this is inlined. */
INLINE vec pixel_value(int bits, int parts, const struct pixels *p, const struct stored_vecs *grid,
                       int pixel) {
    if (bits == 32) return vec_load(p->x + (ptrdiff_t)pixel * LANES);
    return stored_value(parts, grid, stored_code(p->codes, bits, pixel));
}

/* Call a function with bits and parts of pixels first, as constants. */
#define WITH_PIXELS(pixels, function, ...) \
    do { \
        if (!READS_CODES || (pixels)->bits == 32) \
            function(32, 1, __VA_ARGS__); \
        else \
            WITH_CODES((pixels)->bits, (pixels)->parts, function, __VA_ARGS__); \
    } while (0)

#endif
