/* Values that the backward pass reads again, in few bits meanwhile.
 *
 * The values of a channel of a tile fall into parts: those at which a read's activation passes a
 * gradient, those below, and those above. Each part has a grid of its own, from its least value to its
 * largest, so a value never changes its part, and what passes a gradient still does, to the bit. Within
 * its part it is rounded at random to one of the two neighbours on the grid, and right on average. */
#ifndef FEDKIT_STORED_H
#define FEDKIT_STORED_H

#include "random.h"
#include "tensor.h"

/* Lanes that draws are counted for: a trainer with fewer draws as the kernels in plain C do. */
#if defined(FEDKIT_LANES)
#define DRAWN_LANES 8
#else
#define DRAWN_LANES LANES
#endif

/* Parts that an activation makes of all values. */
INLINE int stored_parts_of(const struct tensor *t) {
    return t->activation == ACT_NONE ? 1 : t->activation == ACT_RELU ? 2 : STORED_PARTS;
}

/* yes where `through_activation` passes a gradient, else as the value is below or above.
 * Without a norm, scale is 1 and shift 0. */
INLINE vec stored_chosen(const struct reading *how, int parts, vec x, vec below, vec yes, vec above) {
    if (parts == 1) return below;
    const vec y = vec_fma(how->scale, x, how->shift);
    const vec high = parts == 2 ? yes : vec_below(y, how->high, yes, above);
    return vec_below(how->low, y, high, below);
}

INLINE void stored_range(const struct reading *how, int parts, const float *x, int plane,
                         struct grid *grid) {
    const vec all = vec_set1(INFINITY), none = vec_set1(-INFINITY);
    vec least[STORED_PARTS] = {all, all, all}, most[STORED_PARTS] = {none, none, none};
    for (int k = 0; k < plane; k++, x += LANES) {
        const vec v = vec_load(x);
        for (int p = 0; p < parts; p++) {
            const vec low = vec_min(least[p], v), high = vec_max(most[p], v);
            /* Only of the value's own part; a processor with masks does so in one go. */
            least[p] = stored_chosen(how, parts, v, p == 0 ? low : least[p], p == 1 ? low : least[p],
                                     p == 2 ? low : least[p]);
            most[p] = stored_chosen(how, parts, v, p == 0 ? high : most[p], p == 1 ? high : most[p],
                                    p == 2 ? high : most[p]);
        }
    }
    for (int p = 0; p < STORED_PARTS; p++) {
        float low[LANES], high[LANES];
        vec_store(low, least[p]);
        vec_store(high, most[p]);
        for (int i = 1; i < LANES; i++) {
            low[0] = low[i] < low[0] ? low[i] : low[0];
            high[0] = high[i] > high[0] ? high[i] : high[0];
        }
        grid->least[p] = low[0], grid->most[p] = high[0];
    }
}

/* The only part there is if all values are the same, as those of an empty filter; else -1. */
INLINE int stored_only_part(const struct grid *grid) {
    int only = -1;
    for (int p = 0; p < STORED_PARTS; p++) {
        if (grid->least[p] > grid->most[p]) continue;
        if (only >= 0 || !(grid->least[p] == grid->most[p])) return -1;
        only = p;
    }
    return only;
}

/* Deal out the codes: one to a part of one value, two to any other, and the rest by length. */
INLINE void stored_grid(struct grid *grid, int32_t bits) {
    double length[STORED_PARTS], total = 0.0;
    int32_t left = 1 << bits, codes[STORED_PARTS];
    for (int p = 0; p < STORED_PARTS; p++) {
        length[p] = (double)grid->most[p] - grid->least[p];
        if (!(length[p] >= 0.0)) length[p] = 0.0, grid->least[p] = grid->most[p] = 0.0f; /* empty */
        codes[p] = length[p] > 0.0 ? 2 : 1;
        total += length[p];
        left -= codes[p];
    }
    grid->first[0] = 0;
    for (int p = 0; p < STORED_PARTS; p++) {
        if (length[p] > 0.0) codes[p] += (int32_t)(left * (length[p] / total));
        grid->step[p] = (float)(length[p] / (codes[p] > 1 ? codes[p] - 1 : 1));
        grid->first[p + 1] = grid->first[p] + codes[p];
    }
}

/* Bytes of the codes of a plane. Of 4 bits, two neighbouring pixels share LANES bytes. */
INLINE ptrdiff_t stored_bytes(int plane, int bits) {
    return bits == 4 ? (ptrdiff_t)(plane + 1) / 2 * LANES : (ptrdiff_t)plane * LANES * bits / 8;
}

/* Where the draws of a plane begin: two pixels share one of 32 bits. */
INLINE uint32_t stored_counter(ptrdiff_t number, int plane) {
    return (uint32_t)(number * ((plane + 1) / 2) * DRAWN_LANES);
}

/* Draw uniform numbers between 0 and 1, right on average, for two pixels: 16 bits each. */
INLINE void stored_draw(uint32_t key_low, uint32_t key_high, uint32_t counter, vec *even, vec *odd) {
    const vec unit = vec_set1(0x1p-16f), half = vec_set1(0x1p-17f);
    vec_random(key_low, key_high, counter, even, odd);
    *even = vec_add(vec_mul(*even, unit), half);
    *odd = vec_add(vec_mul(*odd, unit), half);
}

/* What the grids of one plane tell, as vectors per part. */
struct stored_vecs {
    vec least[STORED_PARTS], most[STORED_PARTS], step[STORED_PARTS], by[STORED_PARTS];
    vec first[STORED_PARTS], last[STORED_PARTS]; /* the part's codes */
};

INLINE struct stored_vecs stored_vecs_of(const struct grid *grid) {
    struct stored_vecs v;
    for (int p = 0; p < STORED_PARTS; p++) {
        v.least[p] = vec_set1(grid->least[p]);
        v.most[p] = vec_set1(grid->most[p]);
        v.step[p] = vec_set1(grid->step[p]);
        v.by[p] = vec_set1(grid->step[p] > 0.0f ? 1.0f / grid->step[p] : 0.0f);
        v.first[p] = vec_set1((float)grid->first[p]);
        v.last[p] = vec_set1((float)(grid->first[p + 1] - 1));
    }
    return v;
}

/* The code of a value, once it is cut off; `drawn` lies between 0 and 1. */
INLINE vec stored_code(const struct reading *how, int parts, const struct stored_vecs *grid, vec x,
                       vec drawn) {
    const vec *at = grid->least, *by = grid->by, *begin = grid->first, *end = grid->last;
    const vec least = stored_chosen(how, parts, x, at[0], at[1], at[2]);
    const vec first = stored_chosen(how, parts, x, begin[0], begin[1], begin[2]);
    const vec last = stored_chosen(how, parts, x, end[0], end[1], end[2]);
    const vec per = stored_chosen(how, parts, x, by[0], by[1], by[2]);
    return vec_min(vec_fma(vec_sub(x, least), per, vec_add(first, drawn)), last);
}

INLINE vec stored_of_part(int parts, vec code, const vec *first, const vec *choice) {
    vec found = choice[0];
    if (parts > 1) found = vec_below(code, first[1], found, choice[1]);
    if (parts > 2) found = vec_below(code, first[2], found, choice[2]);
    return found;
}

/* What a code stands for. Rounded twice, whether or not a processor could do so once. */
INLINE vec stored_value(int parts, const struct stored_vecs *grid, vec code) {
    const vec least = stored_of_part(parts, code, grid->first, grid->least);
    const vec most = stored_of_part(parts, code, grid->first, grid->most);
    const vec step = stored_of_part(parts, code, grid->first, grid->step);
    const vec first = stored_of_part(parts, code, grid->first, grid->first);
    return vec_min(vec_add(least, vec_mul(vec_sub(code, first), step)), most);
}

/* A pixel of a plane whose codes begin at `codes`; of 4 bits, the last one of an odd number. */
INLINE void stored_put_one(uint8_t *codes, int bits, int pixel, vec code) {
    const ptrdiff_t at = (ptrdiff_t)pixel * LANES;
    if (bits == 16)
        vec_to_words((uint16_t *)codes + at, code);
    else if (bits == 8)
        vec_to_bytes(codes + at, code);
    else
        vec_to_nibbles(codes + at / 2, code, vec_zero());
}

INLINE vec stored_take_one(const uint8_t *codes, int bits, int pixel) {
    const ptrdiff_t at = (ptrdiff_t)pixel * LANES;
    vec code, none;
    if (bits == 16) return vec_of_words((const uint16_t *)codes + at);
    if (bits == 8) return vec_of_bytes(codes + at);
    vec_of_nibbles(codes + at / 2, &code, &none);
    return code;
}

/* Two neighbours, of which the first has an even number. */
INLINE void stored_put(uint8_t *codes, int bits, int pixel, vec even, vec odd) {
    if (bits == 4) {
        vec_to_nibbles(codes + (ptrdiff_t)pixel * LANES / 2, even, odd);
        return;
    }
    stored_put_one(codes, bits, pixel, even);
    stored_put_one(codes, bits, pixel + 1, odd);
}

INLINE void stored_take(const uint8_t *codes, int bits, int pixel, vec *even, vec *odd) {
    if (bits == 4) {
        vec_of_nibbles(codes + (ptrdiff_t)pixel * LANES / 2, even, odd);
        return;
    }
    *even = stored_take_one(codes, bits, pixel);
    *odd = stored_take_one(codes, bits, pixel + 1);
}

/* Write the same code for a whole plane. */
INLINE void stored_fill_plane(int bits, int plane, float code, uint8_t *codes) {
    const vec all = vec_set1(code);
    int i = 0;
    for (; i + 2 <= plane; i += 2) stored_put(codes, bits, i, all, all);
    if (i < plane) stored_put_one(codes, bits, i, all);
}

/* Write the codes of a plane. `parts` and `bits` are constants where this is inlined. */
INLINE void stored_narrow_plane(const struct reading *how, int parts, const struct grid *grid, int bits,
                                uint64_t key, uint32_t counter, int plane, const float *x,
                                uint8_t *codes) {
    const struct stored_vecs vecs = stored_vecs_of(grid);
    const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    vec even, odd;
    int i = 0;
    for (; i + 2 <= plane; i += 2, counter += DRAWN_LANES) {
        const float *at = x + (ptrdiff_t)i * LANES;
        stored_draw(low, high, counter, &even, &odd);
        even = stored_code(how, parts, &vecs, vec_load(at), even);
        odd = stored_code(how, parts, &vecs, vec_load(at + LANES), odd);
        stored_put(codes, bits, i, even, odd);
    }
    if (i == plane) return;
    stored_draw(low, high, counter, &even, &odd);
    even = stored_code(how, parts, &vecs, vec_load(x + (ptrdiff_t)i * LANES), even);
    stored_put_one(codes, bits, i, even);
}

/* Choose the grid of a plane, and write its codes. */
INLINE void stored_make_plane(const struct reading *how, int parts, struct grid *grid, int bits,
                              uint64_t key, uint32_t counter, int plane, const float *x,
                              uint8_t *codes) {
    stored_range(how, parts, x, plane, grid);
    const int only = stored_only_part(grid);
    stored_grid(grid, bits);
    if (only >= 0)
        stored_fill_plane(bits, plane, (float)grid->first[only], codes);
    else
        stored_narrow_plane(how, parts, grid, bits, key, counter, plane, x, codes);
}

/* Write what the codes of a plane stand for. */
INLINE void stored_widen_plane(int parts, const struct grid *grid, int bits, int plane,
                               const uint8_t *codes, float *x) {
    const struct stored_vecs vecs = stored_vecs_of(grid);
    vec even, odd;
    int i = 0;
    for (; i + 2 <= plane; i += 2) {
        stored_take(codes, bits, i, &even, &odd);
        vec_store(x + (ptrdiff_t)i * LANES, stored_value(parts, &vecs, even));
        vec_store(x + (ptrdiff_t)(i + 1) * LANES, stored_value(parts, &vecs, odd));
    }
    if (i == plane) return;
    even = stored_take_one(codes, bits, i);
    vec_store(x + (ptrdiff_t)i * LANES, stored_value(parts, &vecs, even));
}

/* A channel of a tile, by its number among all of them. */
INLINE uint8_t *stored_codes(const struct stored *s, ptrdiff_t number, int bits) {
    return (uint8_t *)s->codes + number * stored_bytes(s->tensor->plane, bits);
}

INLINE void stored_narrow_of(const struct stored *s, int parts, int bits, int first, int last) {
    const struct tensor *t = s->tensor;
    const uint64_t key = (uint64_t)s->key_high << 32 | s->key_low;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const ptrdiff_t number = (ptrdiff_t)tile * t->channels + c;
            const struct reading how = reading_of(t, c);
            stored_make_plane(&how, parts, &s->grids[number], bits, key,
                              stored_counter(number, t->plane), t->plane,
                              t->x + plane_offset(t, tile, c), stored_codes(s, number, bits));
        }
    }
}

INLINE void stored_widen_bits(const struct stored *s, int bits, int tile, int channel, float *x) {
    const struct tensor *t = s->tensor;
    const ptrdiff_t number = (ptrdiff_t)tile * t->channels + channel;
    const struct grid *grid = &s->grids[number];
    const uint8_t *codes = stored_codes(s, number, bits);
    const int parts = stored_parts_of(t);
    if (parts == 1)
        stored_widen_plane(1, grid, bits, t->plane, codes, x);
    else if (parts == 2)
        stored_widen_plane(2, grid, bits, t->plane, codes, x);
    else
        stored_widen_plane(3, grid, bits, t->plane, codes, x);
}

/* Write what the codes of a plane stand for into x [plane][LANES]. */
static void stored_plane(const struct stored *s, int tile, int channel, float *x) {
    if (s->bits == 16)
        stored_widen_bits(s, 16, tile, channel, x);
    else if (s->bits == 8)
        stored_widen_bits(s, 8, tile, channel, x);
    else
        stored_widen_bits(s, 4, tile, channel, x);
}

INLINE void stored_narrow_bits(const struct stored *s, int bits, int first, int last) {
    const int parts = stored_parts_of(s->tensor);
    if (parts == 1)
        stored_narrow_of(s, 1, bits, first, last);
    else if (parts == 2)
        stored_narrow_of(s, 2, bits, first, last);
    else
        stored_narrow_of(s, 3, bits, first, last);
}

/* Write the codes of a tensor. */
void NAME(narrow)(const struct stored *s, int first, int last) {
    if (s->bits == 16)
        stored_narrow_bits(s, 16, first, last);
    else if (s->bits == 8)
        stored_narrow_bits(s, 8, first, last);
    else
        stored_narrow_bits(s, 4, first, last);
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

#endif
