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

/* yes where `through_activation` passes a gradient, else as the value is below or above. */
INLINE vec stored_chosen(const struct reading *how, int parts, vec x, vec below, vec yes, vec above) {
    if (parts == 1) return below;
    const vec y = before_activation(how, x);
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

INLINE void stored_put(void *codes, int32_t bits, ptrdiff_t at, const int32_t *code, int count) {
    if (bits == 16) {
        uint16_t *to = (uint16_t *)codes + at;
        for (int i = 0; i < count; i++) to[i] = (uint16_t)code[i];
    } else if (bits == 8) {
        uint8_t *to = (uint8_t *)codes + at;
        for (int i = 0; i < count; i++) to[i] = (uint8_t)code[i];
    } else {
        uint8_t *to = (uint8_t *)codes + at / 2;
        for (int i = 0; i < count / 2; i++) to[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
    }
}

INLINE void stored_take(const void *codes, int32_t bits, ptrdiff_t at, int32_t *code, int count) {
    if (bits == 16) {
        const uint16_t *from = (const uint16_t *)codes + at;
        for (int i = 0; i < count; i++) code[i] = from[i];
    } else if (bits == 8) {
        const uint8_t *from = (const uint8_t *)codes + at;
        for (int i = 0; i < count; i++) code[i] = from[i];
    } else {
        const uint8_t *from = (const uint8_t *)codes + at / 2;
        for (int i = 0; i < count / 2; i++) {
            code[2 * i] = from[i] & 15;
            code[2 * i + 1] = from[i] >> 4;
        }
    }
}

INLINE int stored_count(int plane, int k) {
    const int left = plane * LANES - k;
    return left < STORED_RUN ? left : STORED_RUN;
}

INLINE void stored_narrow_plane(const struct stored *s, const struct reading *how, int parts,
                                const struct grid *grid, const float *x, ptrdiff_t at, int bits) {
    const uint32_t key_low = s->key_low, key_high = s->key_high;
    vec least[STORED_PARTS], by[STORED_PARTS], first[STORED_PARTS], last[STORED_PARTS];
    for (int p = 0; p < STORED_PARTS; p++) {
        least[p] = vec_set1(grid->least[p]);
        by[p] = vec_set1(grid->step[p] > 0.0f ? 1.0f / grid->step[p] : 0.0f);
        first[p] = vec_set1((float)grid->first[p]);
        last[p] = vec_set1((float)(grid->first[p + 1] - 1));
    }
    for (int k = 0; k < s->tensor->plane * LANES; k += STORED_RUN) {
        const int count = stored_count(s->tensor->plane, k);
        float random[STORED_RUN], exact[STORED_RUN];
        int32_t code[STORED_RUN];
        const uint32_t counter = (uint32_t)(at + k);
        for (int i = 0; i < count; i++) {
            const uint32_t drawn = random_bits(key_low, key_high, counter + (uint32_t)i) >> 8;
            random[i] = (float)(int32_t)drawn * 0x1p-24f;
        }
        for (int i = 0; i < count; i += LANES) {
            const vec v = vec_load(x + k + i), u = vec_load(random + i);
            const vec low = stored_chosen(how, parts, v, least[0], least[1], least[2]);
            const vec scale = stored_chosen(how, parts, v, by[0], by[1], by[2]);
            const vec begin = stored_chosen(how, parts, v, first[0], first[1], first[2]);
            const vec end = stored_chosen(how, parts, v, last[0], last[1], last[2]);
            /* What is added last is whole: the sum is cut off where n + u is. */
            const vec n = vec_fma(vec_sub(v, low), scale, u);
            vec_store(exact + i, vec_min(vec_sub(end, begin), n));
            vec_store(random + i, begin);
        }
        for (int i = 0; i < count; i++) code[i] = (int32_t)exact[i] + (int32_t)random[i];
        stored_put(s->codes, bits, at + k, code, count);
    }
}

INLINE void stored_widen_plane(const struct stored *s, int parts, const struct grid *grid, float *x,
                               ptrdiff_t at, int bits) {
    const int32_t first1 = grid->first[1], first2 = grid->first[2];
    const float least0 = grid->least[0], least1 = grid->least[1], least2 = grid->least[2];
    const float most0 = grid->most[0], most1 = grid->most[1], most2 = grid->most[2];
    const float step0 = grid->step[0], step1 = grid->step[1], step2 = grid->step[2];
    for (int k = 0; k < s->tensor->plane * LANES; k += STORED_RUN) {
        const int count = stored_count(s->tensor->plane, k);
        int32_t code[STORED_RUN];
        stored_take(s->codes, bits, at + k, code, count);
        for (int i = 0; i < count; i++) {
            const int32_t n = code[i], within = parts > 1 && n >= first1;
            const int32_t above = parts > 2 && n >= first2;
            const float least = above ? least2 : within ? least1 : least0;
            const float most = above ? most2 : within ? most1 : most0;
            const float step = above ? step2 : within ? step1 : step0;
            const int32_t first = above ? first2 : within ? first1 : 0;
            const float value = least + (float)(n - first) * step;
            x[k + i] = value < most ? value : most;
        }
    }
}

INLINE void stored_narrow_of(const struct stored *s, int parts, int bits, int first, int last) {
    const struct tensor *t = s->tensor;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const struct reading how = reading_of(t, c);
            const ptrdiff_t at = plane_offset(t, tile, c);
            struct grid grid;
            stored_range(&how, parts, t->x + at, t->plane, &grid);
            stored_grid(&grid, bits);
            stored_narrow_plane(s, &how, parts, &grid, t->x + at, at, bits);
            s->grids[(ptrdiff_t)tile * t->channels + c] = grid;
        }
    }
}

INLINE void stored_widen_of(const struct stored *s, int parts, int bits, int first, int last) {
    const struct tensor *t = s->tensor;
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const struct grid grid = s->grids[(ptrdiff_t)tile * t->channels + c];
            const ptrdiff_t at = plane_offset(t, tile, c);
            stored_widen_plane(s, parts, &grid, t->x + at, at, bits);
        }
    }
}

/* Write the codes of a tensor. */
void NAME(narrow)(const struct stored *s, int first, int last) {
    const int parts = stored_parts_of(s->tensor);
    if (parts == 1)
        stored_narrow_of(s, 1, s->bits, first, last);
    else if (parts == 2)
        stored_narrow_of(s, 2, s->bits, first, last);
    else
        stored_narrow_of(s, 3, s->bits, first, last);
}

/* Write the values that the codes stand for into the tensor. */
void NAME(widen)(const struct stored *s, int first, int last) {
    const int parts = stored_parts_of(s->tensor);
    if (parts == 1)
        stored_widen_of(s, 1, s->bits, first, last);
    else if (parts == 2)
        stored_widen_of(s, 2, s->bits, first, last);
    else
        stored_widen_of(s, 3, s->bits, first, last);
}

#endif
