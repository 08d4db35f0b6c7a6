/* Attention by heads, from queries, keys and values to what they mix. */
#ifndef EK_ATTENTION_H
#define EK_ATTENTION_H

#include "ek_multiply.h"
#include "ek_pair.h"
#include "ek_softmax.h"

#ifdef __cplusplus
extern "C" {
#endif

/* With q, k and v bytes less their zero points, of which those of k and v are 128, for each head
 *
 *   score[key] = requantised sum of q * k over the head's channels, and a constant beside it added
 *                as of ek_sum_of where there is a `mask`: its rows are heads, its planes are keys
 *   weight = softmax of scores, see ek_softmax, with the zero point 0
 *   out[channel] = requantised sum of weight * v over the keys
 *
 * for each query. Pixels of the planes are queries and keys, in one row. Both ek_requant are of one
 * channel and have no bias. */
typedef struct {
    ek_planes query, key, value, out;
    ek_requant score, mix;
    ek_powers powers;
    const ek_pair_op *mask;
    int32_t heads;
    uint8_t near_score, near_mix; /* as of ek_filter */
} ek_attention;

/* Bytes of scratch, for heads of so many channels of queries and of values. */
#define EK_ATTENTION_SCRATCH(size, value_size, keys) \
    (EK_PACKED(keys, size) + EK_PACKED(value_size, keys) + \
     72 * (EK_PAIRS_OF(size) + EK_PAIRS_OF(keys)) + 80 * ((keys) + 3) + 64)

void ek_attend(const ek_attention *attention, const uint8_t *query, const uint8_t *key,
               const uint8_t *value, uint8_t *out, void *scratch);

/* The same for microcontrollers; scratch has a byte for each key. */
void ek_attend_small(const ek_attention *attention, const uint8_t *query, const uint8_t *key,
                     const uint8_t *value, uint8_t *out, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
