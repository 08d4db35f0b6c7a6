/* Attention by heads in integers, a head of a tile at a time: attention_integer.py defines it.
 *
 * The weights of all places with all are held for that head alone, and computed anew backward.
 */
#ifndef FEDKIT_INT_ATTENTION_H
#define FEDKIT_INT_ATTENTION_H

#include "int_matrices.h"
#include "int_softmax.h"

/* A head of a tile, as int16 lanes: what is read [size][places], weights and slopes
 * [queries][keys], and room for what a source gets. */
struct int_head {
    const struct int_attention *how;
    int16_t *query, *key, *value, *g, *weights, *slopes, *given;
    int tile, number, size, value_size, queries, keys;
};

static struct int_head int_head_of(const struct int_attention *a, int tile, int number,
                                   int16_t *room) {
    struct int_head h = {a, room, NULL, NULL, NULL, NULL, NULL, NULL, tile, number,
                         a->query.tensor->channels / a->heads, a->value.tensor->channels / a->heads,
                         a->query.tensor->plane, a->key.tensor->plane};
    h.key = h.query + (ptrdiff_t)h.size * h.queries * ILANES;
    h.value = h.key + (ptrdiff_t)h.size * h.keys * ILANES;
    h.g = h.value + (ptrdiff_t)h.value_size * h.keys * ILANES;
    h.weights = h.g + (ptrdiff_t)h.value_size * h.queries * ILANES;
    h.slopes = h.weights + (ptrdiff_t)h.queries * h.keys * ILANES;
    h.given = h.slopes + (ptrdiff_t)h.queries * h.keys * ILANES;
    side_values(&a->query, tile, number * h.size, h.size, h.query);
    side_values(&a->key, tile, number * h.size, h.size, h.key);
    side_values(&a->value, tile, number * h.value_size, h.value_size, h.value);
    return h;
}

/* Keys that a query sees: they come first. */
INLINE int keys_seen(const struct int_head *h, int query) {
    return h->how->causal && query + 1 < h->keys ? query + 1 : h->keys;
}

/* Give queries the sign of the scale, or take it off again. */
INLINE void sign_queries(const struct int_head *h) {
    const ptrdiff_t count = (ptrdiff_t)h->size * h->queries * ILANES;
    if (h->how->sign > 0) return;
    for (ptrdiff_t i = 0; i < count; i++) h->query[i] = (int16_t)-h->query[i];
}

static void int_head_weights(const struct int_head *h) {
    const struct int_attention *a = h->how;
    const ptrdiff_t line = (ptrdiff_t)h->keys * ILANES, line_q = (ptrdiff_t)h->queries * ILANES;
    sign_queries(h);
    const struct int_matrices scores = {{h->query, ILANES, line_q}, {h->key, ILANES, line},
                                        h->weights, line, ILANES,
                                        h->queries, h->keys, h->size, a->score_shift, 0};
    int_multiply(&scores);
    sign_queries(h);
    for (int q = 0; q < h->queries; q++)
        share_row(&a->shares, h->weights + q * line, ILANES, keys_seen(h, q), h->keys);
}

void NAME(int_attention_forward)(const struct int_attention *a, int first, int last,
                                 int16_t *room) {
    for (int tile = first; tile < last; tile++) {
        for (int number = 0; number < a->heads; number++) {
            const struct int_head h = int_head_of(a, tile, number, room);
            const ptrdiff_t line = (ptrdiff_t)h.keys * ILANES, line_q = (ptrdiff_t)h.queries * ILANES;
            int_head_weights(&h);
            const struct int_matrices mixed = {
                {h.value, line, ILANES}, {h.weights, line, ILANES},
                a->target->raw + int_plane(a->target, tile, number * h.value_size), line_q, ILANES,
                h.value_size, h.queries, h.keys, a->out_shift, 0};
            int_multiply(&mixed);
        }
    }
}

/* Weights, and the slopes of weights: gradients of the target times values. */
static void int_head_slopes(const struct int_head *h) {
    const struct int_attention *a = h->how;
    const ptrdiff_t line = (ptrdiff_t)h->keys * ILANES, line_q = (ptrdiff_t)h->queries * ILANES;
    int_head_weights(h);
    chain_values(a->target, &a->chain, h->tile, h->number * h->value_size, h->value_size, h->g);
    const struct int_matrices slopes = {{h->g, ILANES, line_q}, {h->value, ILANES, line},
                                        h->slopes, line, ILANES,
                                        h->queries, h->keys, h->value_size, a->slope_shift, 1};
    int_multiply(&slopes);
}

/* Raise `rows` [heads][queries] to the largest magnitudes of the slopes of scores, and `columns`
 * [heads] to the largest sum of what a key gets of all queries. */
void NAME(int_attention_peaks)(const struct int_attention *a, int first, int last, int16_t *room,
                               int32_t *rows, int32_t *columns) {
    for (int tile = first; tile < last; tile++) {
        const int valid = int_valid(a->target, tile);
        for (int number = 0; number < a->heads; number++) {
            const struct int_head h = int_head_of(a, tile, number, room);
            int_head_slopes(&h);
            for (int q = 0; q < h.queries; q++) {
                const int16_t *w = h.weights + (ptrdiff_t)q * h.keys * ILANES;
                const int16_t *g = h.slopes + (ptrdiff_t)q * h.keys * ILANES;
                int32_t mean[ILANES], most[ILANES] = {0}, *peak = rows + number * h.queries + q;
                share_mean(&a->shares, w, ILANES, g, ILANES, h.keys, mean);
                for (int k = 0; k < h.keys; k++) {
                    for (int i = 0; i < ILANES; i++) {
                        const int32_t slope = share_slope(w[k * ILANES + i], g[k * ILANES + i],
                                                          mean[i]);
                        const int32_t size = slope < 0 ? -slope : slope;
                        most[i] = size > most[i] ? size : most[i];
                    }
                }
                for (int i = 0; i < valid; i++) *peak = most[i] > *peak ? most[i] : *peak;
            }
            for (int k = 0; k < h.keys; k++) {
                int32_t sum[ILANES] = {0};
                for (int q = 0; q < h.queries; q++) {
                    const int16_t *w = h.weights + ((ptrdiff_t)q * h.keys + k) * ILANES;
                    for (int i = 0; i < ILANES; i++) sum[i] += w[i];
                }
                for (int i = 0; i < valid; i++)
                    columns[number] = sum[i] > columns[number] ? sum[i] : columns[number];
            }
        }
    }
}

/* Turn the slopes of scores into codes, in place. */
static void int_head_codes(const struct int_head *h) {
    const struct int_attention *a = h->how;
    const uint32_t step = (uint32_t)(a->heads * h->queries * h->keys);
    for (int q = 0; q < h->queries; q++) {
        const int row = h->number * h->queries + q;
        const struct int_passing how = int_passing_of(&a->rows, row);
        const int16_t *w = h->weights + (ptrdiff_t)q * h->keys * ILANES;
        int16_t *g = h->slopes + (ptrdiff_t)q * h->keys * ILANES;
        int32_t mean[ILANES];
        share_mean(&a->shares, w, ILANES, g, ILANES, h->keys, mean);
        uint32_t counter = (uint32_t)h->tile * ILANES * step + (uint32_t)(row * h->keys);
        for (int k = 0; k < h->keys; k++, counter++, w += ILANES, g += ILANES) {
            for (int i = 0; i < ILANES; i++) {
                const uint32_t bits = random_bits(how.key_low, how.key_high,
                                                  counter + (uint32_t)i * step);
                const int32_t slope = a->sign * share_slope(w[i], g[i], mean[i]);
                const int32_t v = how.a * shift_half_even(slope, a->row_shift[row]);
                const int32_t code = (v + (int32_t)(bits & how.mask)) >> how.shift;
                g[i] = (int16_t)(clamp(code, -how.limit, how.limit) * how.factor);
            }
        }
    }
}

/* Give a side, of `size` channels of the head, the product of two matrices. */
INLINE void int_head_give(const struct int_head *h, const struct int_side *side, int size,
                          struct int_matrix left, struct int_matrix right, int terms) {
    const int plane = side->tensor->plane, channel = h->number * size;
    const struct int_matrices m = {left, right, h->given, (ptrdiff_t)plane * ILANES, ILANES,
                                   size, plane, terms, side->shift[channel], 1};
    int_multiply(&m);
    side_put(side, h->tile, channel, size, h->given);
}

void NAME(int_attention_backward)(const struct int_attention *a, int first, int last,
                                  int16_t *room) {
    for (int tile = first; tile < last; tile++) {
        for (int number = 0; number < a->heads; number++) {
            const struct int_head h = int_head_of(a, tile, number, room);
            const ptrdiff_t line = (ptrdiff_t)h.keys * ILANES, line_q = (ptrdiff_t)h.queries * ILANES;
            int_head_slopes(&h);
            int_head_codes(&h);
            const struct int_matrix by_query = {h.slopes, line, ILANES};
            const struct int_matrix by_key = {h.slopes, ILANES, line};
            const struct int_matrix weights = {h.weights, ILANES, line};
            const struct int_matrix keys = {h.key, line, ILANES}, g = {h.g, line_q, ILANES};
            const struct int_matrix queries = {h.query, line_q, ILANES};
            if (a->query.gives) int_head_give(&h, &a->query, h.size, keys, by_query, h.keys);
            if (a->key.gives) int_head_give(&h, &a->key, h.size, queries, by_key, h.queries);
            if (a->value.gives) int_head_give(&h, &a->value, h.value_size, g, weights, h.queries);
        }
    }
}

#endif
