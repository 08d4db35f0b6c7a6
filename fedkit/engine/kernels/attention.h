/* Attention by heads: target = value softmax(scale * key^T query), places in columns.
 *
 * Channels belong to heads in order. Weights are computed for a few queries at a time, and again in
 * the backward pass: of all places with all others they would be the largest tensor of a model.
 */
#ifndef FEDKIT_ATTENTION_H
#define FEDKIT_ATTENTION_H

#include <string.h>

#include "functions.h"
#include "matrices.h"

#define ATTENTION_ROWS 16 /* queries at a time: a whole number of blocks of a product */

/* A head of a tile, and some of its queries. */
struct head {
    const struct attention *how;
    const float *query, *key, *value, *g;  /* at its first channel; g: the target's gradient */
    float *to_query, *to_key, *to_value;   /* NULL where no gradient is wanted */
    float *weights, *slopes;               /* [rows][places] */
    int queries, places, size, value_size;
    int first, rows, reach;                /* reach: of places that some of the rows see */
};

/* Turn scores into weights, places that a query does not see into 0. */
INLINE void attention_softmax(const struct head *h) {
    const vec scale = vec_set1(h->how->scale);
    for (int row = 0; row < h->rows; row++) {
        float *w = h->weights + (ptrdiff_t)row * h->places * LANES;
        const int sees = h->how->causal && h->first + row + 1 < h->reach ? h->first + row + 1
                                                                        : h->reach;
        vec most = vec_mul(scale, vec_load(w)), sum = vec_zero();
        for (int s = 1; s < sees; s++) most = vec_max(most, vec_mul(scale, vec_load(w + s * LANES)));
        for (int s = 0; s < sees; s++) {
            const vec e = vec_exp(vec_sub(vec_mul(scale, vec_load(w + s * LANES)), most));
            vec_store(w + s * LANES, e);
            sum = vec_add(sum, e);
        }
        const vec share = vec_div(vec_set1(1.0f), sum);
        for (int s = 0; s < sees; s++)
            vec_store(w + s * LANES, vec_mul(vec_load(w + s * LANES), share));
        for (int s = sees; s < h->reach; s++) vec_store(w + s * LANES, vec_zero());
    }
}

/* to[row][place] = sum of left[j][row] * right[j][place] over channels j of the head */
INLINE void attention_scores(const struct head *h, const float *left, const float *right, int size,
                             float *to) {
    const struct matrices m = {left + (ptrdiff_t)h->first * LANES, right, to,
                               (ptrdiff_t)h->queries * LANES, LANES, (ptrdiff_t)h->places * LANES,
                               LANES, (ptrdiff_t)h->places * LANES, LANES, h->rows, h->reach, size,
                               0};
    multiply_matrices(&m);
}

INLINE void attention_weights(const struct head *h) {
    attention_scores(h, h->query, h->key, h->size, h->weights);
    attention_softmax(h);
}

/* to[j][row] (+)= sum of values[j][place] * by[row][place] over places */
INLINE void attention_of_places(const struct head *h, const float *values, const float *by, int size,
                                float *to, int accumulate) {
    const struct matrices m = {values, by, to + (ptrdiff_t)h->first * LANES, LANES,
                               (ptrdiff_t)h->places * LANES, LANES, (ptrdiff_t)h->places * LANES,
                               (ptrdiff_t)h->queries * LANES, LANES, size, h->rows, h->reach,
                               accumulate};
    multiply_matrices(&m);
}

/* to[j][place] += sum of values[j][row] * by[row][place] over rows */
INLINE void attention_of_queries(const struct head *h, const float *values, const float *by, int size,
                                 float *to) {
    const struct matrices m = {values + (ptrdiff_t)h->first * LANES, by, to, LANES,
                               (ptrdiff_t)h->queries * LANES, (ptrdiff_t)h->places * LANES, LANES,
                               (ptrdiff_t)h->places * LANES, LANES, size, h->reach, h->rows, 1};
    multiply_matrices(&m);
}

/* Turn the gradients of weights into those of scores. */
INLINE void attention_slopes(const struct head *h) {
    const vec scale = vec_set1(h->how->scale);
    for (int row = 0; row < h->rows; row++) {
        const ptrdiff_t at = (ptrdiff_t)row * h->places * LANES;
        vec mean = vec_zero();
        for (int s = 0; s < h->reach; s++)
            mean = vec_fma(vec_load(h->weights + at + s * LANES),
                           vec_load(h->slopes + at + s * LANES), mean);
        for (int s = 0; s < h->reach; s++) {
            float *slope = h->slopes + at + s * LANES;
            const vec weight = vec_mul(scale, vec_load(h->weights + at + s * LANES));
            vec_store(slope, vec_mul(weight, vec_sub(vec_load(slope), mean)));
        }
    }
}

INLINE void attention_head_backward(const struct head *h) {
    attention_weights(h);
    if (h->to_value) attention_of_queries(h, h->g, h->weights, h->value_size, h->to_value);
    if (!h->to_query && !h->to_key) return;
    attention_scores(h, h->g, h->value, h->value_size, h->slopes);
    attention_slopes(h);
    if (h->to_query) attention_of_places(h, h->key, h->slopes, h->size, h->to_query, 1);
    if (h->to_key) attention_of_queries(h, h->query, h->slopes, h->size, h->to_key);
}

/* The next queries of a head; 0: there are none. */
INLINE int attention_next(struct head *h) {
    h->first += h->rows;
    const int left = h->queries - h->first;
    h->rows = left < ATTENTION_ROWS ? left : ATTENTION_ROWS;
    const int seen = h->first + h->rows;
    h->reach = h->how->causal && seen < h->places ? seen : h->places;
    return left > 0;
}

INLINE struct head attention_head(const struct attention *a, float *room) {
    struct head h;
    memset(&h, 0, sizeof h);
    h.how = a;
    h.queries = a->query->plane;
    h.places = a->key->plane;
    h.size = a->query->channels / a->heads;
    h.value_size = a->value->channels / a->heads;
    h.weights = room;
    h.slopes = room + (ptrdiff_t)ATTENTION_ROWS * h.places * LANES;
    return h;
}

INLINE const float *at_head(const float *values, int head, int size, int plane) {
    return values + (ptrdiff_t)head * size * plane * LANES;
}

INLINE float *sums_at_head(float *sums, int head, int size, int plane) {
    return sums ? sums + (ptrdiff_t)head * size * plane * LANES : NULL;
}

void NAME(attention_forward)(const struct attention *a, int first, int last, float *room) {
    struct head h = attention_head(a, room);
    for (int tile = first; tile < last; tile++) {
        float *free = h.slopes, *to = a->target->x + plane_offset(a->target, tile, 0);
        const float *query = tile_values(a->query, tile, &free);
        const float *key = tile_values(a->key, tile, &free);
        const float *value = tile_values(a->value, tile, &free);
        for (int head = 0; head < a->heads; head++) {
            h.query = at_head(query, head, h.size, h.queries);
            h.key = at_head(key, head, h.size, h.places);
            h.value = at_head(value, head, h.value_size, h.places);
            float *out = sums_at_head(to, head, h.value_size, h.queries);
            for (h.first = h.rows = 0; attention_next(&h);) {
                attention_weights(&h);
                attention_of_places(&h, h.value, h.weights, h.value_size, out, 0);
            }
        }
    }
}

void NAME(attention_backward)(const struct attention *a, int first, int last, float *room) {
    struct head h = attention_head(a, room);
    for (int tile = first; tile < last; tile++) {
        float *free = h.slopes + (h.slopes - h.weights);
        const float *query = tile_values(a->query, tile, &free);
        const float *key = tile_values(a->key, tile, &free);
        const float *value = tile_values(a->value, tile, &free);
        const float *g = tile_gradient(a->target, tile, &free);
        float *to_query = tile_sums(a->query, tile, a->gives_query);
        float *to_key = tile_sums(a->key, tile, a->gives_key);
        float *to_value = tile_sums(a->value, tile, a->gives_value);
        for (int head = 0; head < a->heads; head++) {
            h.query = at_head(query, head, h.size, h.queries);
            h.key = at_head(key, head, h.size, h.places);
            h.value = at_head(value, head, h.value_size, h.places);
            h.g = at_head(g, head, h.value_size, h.queries);
            h.to_query = sums_at_head(to_query, head, h.size, h.queries);
            h.to_key = sums_at_head(to_key, head, h.size, h.places);
            h.to_value = sums_at_head(to_value, head, h.value_size, h.places);
            for (h.first = h.rows = 0; attention_next(&h);) attention_head_backward(&h);
        }
    }
}

#endif
