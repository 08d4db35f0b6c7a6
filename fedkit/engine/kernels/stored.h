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

/* Values at a time, so that compilers make vectors of loops over them. */
#define STORED_RUN (16 * LANES)

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
            const vec low = stored_chosen(how, parts, v, p == 0 ? v : all, p == 1 ? v : all,
                                          p == 2 ? v : all);
            const vec high = stored_chosen(how, parts, v, p == 0 ? v : none, p == 1 ? v : none,
                                           p == 2 ? v : none);
            least[p] = vec_min(least[p], low);
            most[p] = vec_max(most[p], high);
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

#if LANES % 2
/* The halves of a run share draws and bytes, so a single lane can be stored by no kernel: a trainer
 * in C that has it stores values in a way of its own. */
INLINE void stored_plane(const struct stored *s, int tile, int channel, float *x) {
    (void)s, (void)tile, (void)channel, (void)x;
}
#else

/* Draw uniform numbers between 0 and 1, right on average: two of 16 bits from one of 32. */
INLINE void stored_draw(const struct stored *s, uint32_t counter, float *drawn, int count) {
    const uint32_t key_low = s->key_low, key_high = s->key_high;
    const int half = count / 2;
    for (int i = 0; i < half; i++) {
        const uint32_t bits = random_bits(key_low, key_high, counter + (uint32_t)i);
        drawn[i] = ((float)(int32_t)(bits & 0xffff) + 0.5f) * 0x1p-16f;
        drawn[half + i] = ((float)(int32_t)(bits >> 16) + 0.5f) * 0x1p-16f;
    }
}

INLINE void stored_put(void *codes, int bits, ptrdiff_t at, const float *whole, const float *first,
                       int count) {
    int32_t code[STORED_RUN];
    for (int i = 0; i < count; i++) code[i] = (int32_t)whole[i] + (int32_t)first[i];
    if (bits == 16) {
        uint16_t *to = (uint16_t *)codes + at;
        for (int i = 0; i < count; i++) to[i] = (uint16_t)code[i];
    } else if (bits == 8) {
        uint8_t *to = (uint8_t *)codes + at;
        for (int i = 0; i < count; i++) to[i] = (uint8_t)code[i];
    } else {
        /* Halves of a run share bytes, so that neither side has to deal values out. */
        uint8_t *to = (uint8_t *)codes + at / 2;
        const int half = count / 2;
        for (int i = 0; i < half; i++) to[i] = (uint8_t)(code[i] | code[half + i] << 4);
    }
}

INLINE void stored_take(const void *codes, int bits, ptrdiff_t at, float *code, int count) {
    if (bits == 16) {
        const uint16_t *from = (const uint16_t *)codes + at;
        for (int i = 0; i < count; i++) code[i] = (float)from[i];
    } else if (bits == 8) {
        const uint8_t *from = (const uint8_t *)codes + at;
        for (int i = 0; i < count; i++) code[i] = (float)from[i];
    } else {
        const uint8_t *from = (const uint8_t *)codes + at / 2;
        const int half = count / 2;
        for (int i = 0; i < half; i++) {
            code[i] = (float)(from[i] & 15);
            code[half + i] = (float)(from[i] >> 4);
        }
    }
}

/* What the grids of one plane tell, as vectors per part. */
struct stored_vecs {
    vec least[STORED_PARTS], most[STORED_PARTS], step[STORED_PARTS], by[STORED_PARTS];
    vec first[STORED_PARTS], behind[STORED_PARTS]; /* the part's first code, and those behind it */
};

INLINE struct stored_vecs stored_vecs_of(const struct grid *grid) {
    struct stored_vecs v;
    for (int p = 0; p < STORED_PARTS; p++) {
        v.least[p] = vec_set1(grid->least[p]);
        v.most[p] = vec_set1(grid->most[p]);
        v.step[p] = vec_set1(grid->step[p]);
        v.by[p] = vec_set1(grid->step[p] > 0.0f ? 1.0f / grid->step[p] : 0.0f);
        v.first[p] = vec_set1((float)grid->first[p]);
        v.behind[p] = vec_set1((float)(grid->first[p + 1] - 1 - grid->first[p]));
    }
    return v;
}

/* `count` and `bits` are constants where this is inlined. */
INLINE void stored_narrow_run(const struct stored *s, const struct reading *how, int parts,
                              const struct stored_vecs *grid, const float *x, ptrdiff_t at,
                              int bits, int count) {
    float drawn[STORED_RUN], whole[STORED_RUN], first[STORED_RUN];
    stored_draw(s, (uint32_t)(at / 2), drawn, count);
    for (int i = 0; i < count; i += LANES) {
        const vec v = vec_load(x + i), u = vec_load(drawn + i);
        const vec low = stored_chosen(how, parts, v, grid->least[0], grid->least[1], grid->least[2]);
        const vec by = stored_chosen(how, parts, v, grid->by[0], grid->by[1], grid->by[2]);
        const vec begin = stored_chosen(how, parts, v, grid->first[0], grid->first[1], grid->first[2]);
        const vec behind =
            stored_chosen(how, parts, v, grid->behind[0], grid->behind[1], grid->behind[2]);
        /* What is added last is whole: the sum is cut off where n + u is. */
        const vec n = vec_fma(vec_sub(v, low), by, u);
        vec_store(whole + i, vec_min(behind, n));
        vec_store(first + i, begin);
    }
    stored_put(s->codes, bits, at, whole, first, count);
}

INLINE void stored_narrow_plane(const struct stored *s, const struct reading *how, int parts,
                                const struct grid *grid, const float *x, ptrdiff_t at, int bits) {
    const struct stored_vecs vecs = stored_vecs_of(grid);
    const int values = s->tensor->plane * LANES;
    int k = 0;
    for (; k + STORED_RUN <= values; k += STORED_RUN)
        stored_narrow_run(s, how, parts, &vecs, x + k, at + k, bits, STORED_RUN);
    for (; k < values; k += LANES)
        stored_narrow_run(s, how, parts, &vecs, x + k, at + k, bits, LANES);
}

INLINE vec stored_of_part(int parts, vec code, const vec *first, const vec *choice) {
    vec found = choice[0];
    if (parts > 1) found = vec_below(code, first[1], found, choice[1]);
    if (parts > 2) found = vec_below(code, first[2], found, choice[2]);
    return found;
}

INLINE void stored_widen_run(const struct stored *s, int parts, const struct stored_vecs *grid,
                             float *x, ptrdiff_t at, int bits, int count) {
    float code[STORED_RUN];
    stored_take(s->codes, bits, at, code, count);
    for (int i = 0; i < count; i += LANES) {
        const vec n = vec_load(code + i);
        const vec least = stored_of_part(parts, n, grid->first, grid->least);
        const vec most = stored_of_part(parts, n, grid->first, grid->most);
        const vec step = stored_of_part(parts, n, grid->first, grid->step);
        const vec first = stored_of_part(parts, n, grid->first, grid->first);
        /* Rounded twice, whether or not a processor could do so once. */
        vec_store(x + i, vec_min(vec_add(least, vec_mul(vec_sub(n, first), step)), most));
    }
}

INLINE void stored_widen_plane(const struct stored *s, int parts, const struct grid *grid, float *x,
                               ptrdiff_t at, int bits) {
    const struct stored_vecs vecs = stored_vecs_of(grid);
    const int values = s->tensor->plane * LANES;
    int k = 0;
    for (; k + STORED_RUN <= values; k += STORED_RUN)
        stored_widen_run(s, parts, &vecs, x + k, at + k, bits, STORED_RUN);
    for (; k < values; k += LANES) stored_widen_run(s, parts, &vecs, x + k, at + k, bits, LANES);
}

INLINE void stored_narrow_of(const struct stored *s, int parts, int bits, int first, int last) {
    const struct tensor *t = s->tensor;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const struct reading how = reading_of(t, c);
            const ptrdiff_t at = plane_offset(t, tile, c);
            struct grid *grid = &s->grids[(ptrdiff_t)tile * t->channels + c];
            stored_range(&how, parts, t->x + at, t->plane, grid);
            stored_grid(grid, bits);
            stored_narrow_plane(s, &how, parts, grid, t->x + at, at, bits);
        }
    }
}

INLINE void stored_widen_bits(const struct stored *s, int bits, int tile, int channel, float *x) {
    const struct tensor *t = s->tensor;
    const struct grid *grid = &s->grids[(ptrdiff_t)tile * t->channels + channel];
    const ptrdiff_t at = plane_offset(t, tile, channel);
    const int parts = stored_parts_of(t);
    if (parts == 1)
        stored_widen_plane(s, 1, grid, x, at, bits);
    else if (parts == 2)
        stored_widen_plane(s, 2, grid, x, at, bits);
    else
        stored_widen_plane(s, 3, grid, x, at, bits);
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

#endif

/* A plane of a tensor: made in `room` [plane][LANES] if it is stored in few bits. */
INLINE const float *plane_pixels(const struct tensor *t, int tile, int channel, float *room) {
    if (t->stored == NULL) return t->x + plane_offset(t, tile, channel);
    stored_plane(t->stored, tile, channel, room);
    return room;
}

#endif
