/* Attention by heads in integers. No weights of all queries with all keys are ever held: those of 16
 * queries of a head, or, in plain C, of one. */
#include "ek_attention.h"
#include "ek_packed.h"
#include "ek_paired.h"
#include "ek_shares.h"

#define EK_NO_ZERO 128 /* the byte of 0 in keys and values */

/* What is added to the score of a key and of a query, and how far it is to that of the next key. */
typedef struct {
    const uint8_t *at;
    int32_t step;
} ek_added_scores;

static inline ek_added_scores ek_mask_of(const ek_attention *a, int32_t head, int32_t query) {
    ek_added_scores added = {0, 0};
    if (a->mask) {
        const ek_steps *steps = &a->mask->b;
        added.at = a->mask->constant + head * steps->row + query * steps->pixel;
        added.step = steps->plane;
    }
    return added;
}

/* Plain C: a query at a time. */

/* Sums over the channels of a head of a query times some keys. */
static void ek_score_sums(const ek_attention *a, int32_t size, const uint8_t *query,
                          const uint8_t *key, int32_t *sums, int32_t count) {
    memset(sums, 0, (size_t)count * sizeof *sums);
    for (int32_t c = 0; c < size; c++, query += a->query.plane, key += a->key.plane) {
        const int32_t factor = *query - a->query.zero;
        for (int32_t j = 0; j < count; j++) sums[j] += (key[j] - EK_NO_ZERO) * factor;
    }
}

static void ek_weights_of_query(const ek_attention *a, int32_t size, const uint8_t *query,
                                const uint8_t *key, ek_added_scores added, uint8_t *weights) {
    const ek_scaler scaler = ek_scaler_of(&a->score, 0);
    const int32_t keys = a->key.width;
    uint8_t most = 0;
    uint32_t total = 0;
    for (int32_t j = 0; j < keys; j += EK_CHUNK) {
        int32_t sums[EK_CHUNK], count = keys - j < EK_CHUNK ? keys - j : EK_CHUNK;
        ek_score_sums(a, size, query, key + j, sums, count);
        for (int32_t i = 0; i < count; i++) {
            weights[j + i] = ek_scaled(scaler, sums[i]);
            if (a->mask)
                weights[j + i] = ek_sum_of_two(a->mask, weights[j + i], added.at[(j + i) * added.step]);
            most = weights[j + i] > most ? weights[j + i] : most;
        }
    }
    for (int32_t j = 0; j < keys; j++) total += a->powers.entries[most - weights[j]];
    for (int32_t j = 0; j < keys; j++) {
        const uint32_t power = a->powers.entries[most - weights[j]];
        const uint32_t share = (256 * power + (total >> 1)) / total;
        weights[j] = (uint8_t)(share < 255 ? share : 255);
    }
}

void ek_attend_small(const ek_attention *a, const uint8_t *query, const uint8_t *key,
                     const uint8_t *value, uint8_t *out, void *scratch) {
    const int32_t size = a->query.channels / a->heads, value_size = a->value.channels / a->heads;
    const ek_scaler scaler = ek_scaler_of(&a->mix, 0);
    uint8_t *weights = (uint8_t *)scratch;
    ek_halo_before(&a->out, out);
    for (int32_t head = 0; head < a->heads; head++) {
        const uint8_t *q = query + head * size * a->query.plane;
        const uint8_t *k = key + head * size * a->key.plane;
        const uint8_t *v = value + head * value_size * a->value.plane;
        uint8_t *to = out + head * value_size * a->out.plane;
        for (int32_t i = 0; i < a->query.width; i++) {
            ek_weights_of_query(a, size, q + i, k, ek_mask_of(a, head, i), weights);
            for (int32_t c = 0; c < value_size; c++) {
                const uint8_t *of = v + c * a->value.plane;
                int32_t sum = 0;
                for (int32_t j = 0; j < a->key.width; j++) sum += weights[j] * (of[j] - EK_NO_ZERO);
                to[c * a->out.plane + i] = ek_scaled(scaler, sum);
            }
        }
    }
    ek_halos(&a->out, out);
}

#ifdef EK_SIMD

/* 4 bytes as every other of 8. */
static inline uint64_t ek_spread_four(uint32_t x) {
    uint64_t y = x;
    y = (y | y << 16) & UINT64_C(0x0000FFFF0000FFFF);
    return (y | y << 8) & UINT64_C(0x00FF00FF00FF00FF);
}

/* Rows are pixels of planes, terms are channels: of keys. Pixels past the last are 0. */
static void ek_pack_keys(const ek_packed *p, const ek_planes *planes, const uint8_t *x, int32_t zero,
                         int8_t *pairs) {
    for (int32_t j = 0; j < planes->width; j += 4) {
        const int32_t rest = planes->width - j;
        const uint32_t mask = rest < 4 ? ((uint32_t)1 << 8 * rest) - 1 : 0xFFFFFFFF;
        int32_t sums[4] = {0};
        for (int32_t c = 0; c < p->terms; c += 2) {
            const uint8_t *from = x + c * planes->plane + j;
            uint32_t two[2] = {0};
            for (int32_t i = 0; i < 2 && c + i < p->terms; i++, from += planes->plane) {
                memcpy(&two[i], from, 4);
                two[i] = (two[i] ^ 0x80808080) & mask;
            }
            const uint64_t both = ek_spread_four(two[0]) | ek_spread_four(two[1]) << 8;
            memcpy(pairs + 4 * c, &both, 8);
            for (int32_t i = 0; i < 4; i++) sums[i] += pairs[4 * c + 2 * i] + pairs[4 * c + 2 * i + 1];
        }
        ek_pack_rows(p, j, pairs, sums, zero);
    }
}

/* A head: its packed keys and values, and room for what 16 queries need. */
typedef struct {
    ek_packed keys, values;
    uint8_t *of_query, *of_weights, *weights;
    uint32_t *powers;
    int8_t *pairs;
    ek_scale score, mix;
} ek_head;

static ek_head ek_head_of(const ek_attention *a, int32_t size, int32_t value_size, void *scratch) {
    const int32_t keys = a->key.width, most = size > keys ? size : keys;
    ek_head h;
    uint8_t *at = (uint8_t *)scratch;
    h.powers = (uint32_t *)scratch; /* first, as it alone needs its alignment */
    at += (keys + 3) * EK_TOGETHER * 4;
    h.weights = at, at += (keys + 3) * EK_TOGETHER;
    h.keys.at = at, at += EK_PACKED(keys, size);
    h.values.at = at, at += EK_PACKED(value_size, keys);
    h.of_query = at, at += 64 * EK_PAIRS_OF(size);
    h.of_weights = at, at += 64 * EK_PAIRS_OF(keys);
    h.pairs = (int8_t *)at, at += 8 * EK_PAIRS_OF(most);
    h.keys.terms = size, h.keys.patches = (size + EK_DEEP - 1) / EK_DEEP;
    h.values.terms = keys, h.values.patches = (keys + EK_DEEP - 1) / EK_DEEP;
    h.score = ek_scale_of(&a->score);
    ek_scale_channel(&h.score, &a->score, 0, a->near_score);
    h.mix = ek_scale_of(&a->mix);
    ek_scale_channel(&h.mix, &a->mix, 0, a->near_mix);
    return h;
}

/* Add a mask to the scores of 16 queries, [keys][16]. */
static void ek_add_mask(const ek_pair_op *whole, ek_added_scores added, uint8_t *scores, int32_t keys) {
    const ek_pair_op mask = *whole;
    for (int32_t j = 0; j < keys; j++, scores += EK_TOGETHER, added.at += added.step) {
        uint8_t sums[EK_TOGETHER];
        for (int32_t k = 0; k < EK_TOGETHER; k++)
            sums[k] = ek_sum_of_two(&mask, scores[k], added.at[k * mask.b.pixel]);
        memcpy(scores, sums, EK_TOGETHER);
    }
}

/* Weights of 16 queries, whose patches there are, as bytes [keys][16]. */
static void ek_weigh(const ek_attention *a, const ek_head *h, ek_added_scores added) {
    const int32_t keys = a->key.width;
    for (int32_t j = 0; j < keys; j += 4) {
        ek_sixteen sums[4];
        ek_four_rows(&h->keys, j, h->of_query, sums);
        for (int32_t i = 0; i < 4; i++)
            ek_store16(h->weights + (j + i) * EK_TOGETHER, ek_scaled_sixteen(&h->score, sums[i]));
    }
    if (a->mask) ek_add_mask(a->mask, added, h->weights, keys);
    ek_softmax_sixteen(&a->powers, h->weights, keys, h->powers);
}

/* Channels of a head of up to 16 queries, of what their weights mix. */
static void ek_mix(const ek_attention *a, const ek_head *h, int32_t channels, uint8_t *out,
                   int32_t count) {
    for (int32_t c = 0; c < channels; c += 4) {
        ek_sixteen sums[4];
        ek_four_rows(&h->values, c, h->of_weights, sums);
        for (int32_t i = 0; i < 4 && c + i < channels; i++, out += a->out.plane) {
            uint8_t bytes[16];
            ek_store16(bytes, ek_scaled_sixteen(&h->mix, sums[i]));
            ek_copy(out, bytes, count);
        }
    }
}

void ek_attend(const ek_attention *a, const uint8_t *query, const uint8_t *key,
               const uint8_t *value, uint8_t *out, void *scratch) {
    const int32_t size = a->query.channels / a->heads, value_size = a->value.channels / a->heads;
    const ek_head h = ek_head_of(a, size, value_size, scratch);
    ek_halo_before(&a->out, out);
    for (int32_t head = 0; head < a->heads; head++) {
        const uint8_t *q = query + head * size * a->query.plane;
        uint8_t *to = out + head * value_size * a->out.plane;
        ek_pack_keys(&h.keys, &a->key, key + head * size * a->key.plane, a->query.zero, h.pairs);
        ek_pack_channels(&h.values, value + head * value_size * a->value.plane, a->value.plane,
                         value_size, 0, h.pairs);
        for (int32_t i = 0; i < a->query.width; i += EK_TOGETHER) {
            const int32_t rest = a->query.width - i;
            ek_patches_of(q + i, a->query.plane, size, h.of_query);
            ek_weigh(a, &h, ek_mask_of(a, head, i));
            ek_patches_of(h.weights, EK_TOGETHER, a->key.width, h.of_weights);
            ek_mix(a, &h, value_size, to + i, rest < EK_TOGETHER ? rest : EK_TOGETHER);
        }
    }
    ek_halos(&a->out, out);
}

#else

void ek_attend(const ek_attention *a, const uint8_t *query, const uint8_t *key,
               const uint8_t *value, uint8_t *out, void *scratch) {
    ek_attend_small(a, query, key, value, out, scratch);
}

#endif
