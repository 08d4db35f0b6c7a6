/* Part of ek_conv_sparse.c: its planes for AVX-512, 64 pixels at once, then 32 or 8, the halo with
 * them. */
#ifndef EK_PLANES512_H
#define EK_PLANES512_H

#define EK_MASKED 4096 /* bytes of a plane whose halo is chosen by masks */

typedef struct {
    ek_scale scale;
    ek_scale64 scale64;
    ek_adder64 adder64;
    int adds;
    int usual; /* a single run, all bytes allowed, and a narrow sum */
    ek_runs runs;
    int32_t masked;               /* bytes of the plane, or 0 */
    uint8_t halo[EK_MASKED + 64]; /* 255 there, else 0 */
} ek_tail;

static void ek_tail_of(ek_tail *tail, const ek_sparse_conv *conv) {
    const ek_planes *planes = &conv->out;
    tail->scale = ek_scale_of(&conv->requant);
    tail->scale64 = ek_scale64_of(&tail->scale);
    tail->adds = conv->sum != 0;
    const ek_adder adder = ek_adder_of(conv->sum ? conv->sum : &ek_no_sum);
    tail->adder64 = ek_adder64_of(&adder);
    tail->runs = ek_runs_of(planes, conv->in_row);
    tail->masked = tail->runs.count == 1 && planes->plane <= EK_MASKED ? planes->plane : 0;
    tail->usual = tail->masked && !tail->scale.limited &&
                  (!tail->adds || (adder.narrow && !adder.limited));
    if (!tail->masked) return;
    memset(tail->halo, 255, (size_t)planes->plane + 64);
    for (int32_t y = 0; y < planes->height; y++)
        ek_fill(tail->halo + y * planes->row, 0, planes->width);
}

/* All that lasts for a plane, by value: writing bytes may change anything that has an address. */
typedef struct {
    ek_scale64 scale64;
    ek_scale scale;
    ek_adder64 adder64;
    ek_adder adder;
    int adds;
    uint8_t zero;
    const uint8_t *halo; /* of the run, or 0 */
} ek_end;

EK_INLINE ek_end ek_end_of(const ek_sparse_conv *conv, const ek_tail *tail, ek_scale_kind kind,
                           int adds) {
    ek_end end;
    end.scale64 = ek_scale64_copy(&tail->scale64, kind);
    end.scale = ek_scale_half(&end.scale64);
    end.adder64 = ek_adder64_copy(&tail->adder64);
    end.adder = ek_adder_half(&end.adder64);
    end.adds = adds;
    end.zero = conv->out.zero;
    end.halo = tail->masked ? tail->halo : 0;
    return end;
}

EK_INLINE __m512i ek_bytes64(const ek_row *row, const ek_end *end, const uint8_t *p,
                             const uint8_t *other) {
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    const __m512i bias = _mm512_set1_epi32(row->bias);
    ek_block64 sums = {bias, bias, bias, bias};
    for (; quad != last_quad; quad++) ek_quad_block64(&sums, p, quad);
    for (; pair != last_pair; pair++) ek_pair_block64(&sums, p, pair);
    const __m512i bytes = ek_scaled_block64(&end->scale64, sums);
    return end->adds ? ek_added64(&end->adder64, bytes, ek_load64(other)) : bytes;
}

EK_INLINE __m256i ek_bytes32_of(const ek_row *row, const ek_end *end, const uint8_t *p,
                                const uint8_t *other) {
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    ek_block sums = ek_block_of(row->bias);
    for (; quad != last_quad; quad++) ek_quad_block(&sums, p, quad);
    for (; pair != last_pair; pair++) ek_pair_block(&sums, p, pair);
    const __m256i bytes = ek_scaled_block(&end->scale, sums);
    return end->adds ? ek_added(&end->adder, bytes, ek_load32(other)) : bytes;
}

EK_INLINE __m256i ek_bytes8_of(const ek_row *row, const ek_end *end, const uint8_t *p,
                               const uint8_t *other) {
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    ek_eight sums = ek_eight_of(row->bias);
    for (; quad != last_quad; quad++) ek_quad_eight(&sums, p, quad);
    for (; pair != last_pair; pair++) ek_pair_eight(&sums, p, pair);
    __m128i bytes = ek_scaled_eight(&end->scale, sums);
    if (end->adds) bytes = ek_added_half(&end->adder, bytes, ek_load8(other));
    return _mm256_castsi128_si256(bytes);
}

/* `count` pixels; of the bytes up to `last` all are written, those of the halo too. */
EK_INLINE void ek_run(const ek_row *row, const ek_end *end, const uint8_t *p, const uint8_t *other,
                      uint8_t *out, int32_t count, int32_t last) {
    int32_t x = 0;
    for (; count - x > 32; x += 64) {
        __m512i bytes = ek_bytes64(row, end, p + x, other + x);
        if (end->halo)
            bytes = ek_chosen64(ek_load64(end->halo + x), _mm512_set1_epi8((char)end->zero), bytes);
        ek_store_first64(out + x, bytes, last - x);
    }
    if (count > x) {
        __m256i bytes = count - x > 8 ? ek_bytes32_of(row, end, p + x, other + x)
                                      : ek_bytes8_of(row, end, p + x, other + x);
        if (end->halo)
            bytes = ek_chosen32(ek_load32(end->halo + x), _mm256_set1_epi8((char)end->zero), bytes);
        ek_store_first32(out + x, bytes, last - x);
        x += 32;
    }
    for (; x < last; x += 64)
        ek_store_first64(out + x, _mm512_set1_epi8((char)end->zero), last - x);
}

/* The same of at most 32 pixels, and at most 64 bytes: as long as there is a vector of 512 bits
 * about, processors shuffle those of 256 on one port instead of two. */
EK_INLINE void ek_short_run(const ek_row *row, const ek_end *end, const uint8_t *p,
                            const uint8_t *other, uint8_t *out, int32_t count, int32_t last) {
    const __m256i zero = _mm256_set1_epi8((char)end->zero), halo = ek_load32(end->halo);
    const __m256i bytes = count > 8 ? ek_bytes32_of(row, end, p, other)
                                    : ek_bytes8_of(row, end, p, other);
    ek_store_first32(out, ek_chosen32(halo, zero, bytes), last);
    if (last > 32) ek_store_first32(out + 32, zero, last - 32);
}

/* Any plane: row by row, unless it is a single run. */
static void ek_rows(const ek_sparse_conv *conv, const ek_tail *tail, const ek_row *row,
                    const uint8_t *in, const uint8_t *other, uint8_t *out) {
    const ek_end end = ek_end_of(conv, tail, tail->scale.kind, tail->adds);
    const int32_t count = tail->runs.length, last = tail->masked ? tail->masked : count;
    for (int32_t y = 0; y < tail->runs.count; y++) {
        const int32_t to = y * conv->out.row;
        ek_run(row, &end, in + y * conv->in_row, other + to, out + to, count, last);
    }
    if (!tail->masked) ek_halo_of(&conv->out, out);
}

/* Filters up to `end` as long as they are of the usual kind, for planes of which each is a single
 * run; with all that they share in registers. Leaves in `row` the first that is not. */
EK_INLINE void ek_usual_of(const ek_sparse_conv *conv, const ek_tail *tail, ek_row *row,
                           const ek_filter *last, const uint8_t *in, const uint8_t *other,
                           uint8_t *out, int adds, int is_short) {
    ek_end end = ek_end_of(conv, tail, EK_NEAR, adds);
    end.scale.limited = end.scale64.limited = end.adder.limited = end.adder64.limited = 0;
    end.adder.narrow = end.adder64.narrow = 1;
    const int32_t count = tail->runs.length, bytes = tail->masked;
    ek_row now = *row;
    for (; now.filter != last; ek_next_filter(&now)) {
        const int32_t channel = now.filter->channel, near = now.filter->near;
        if (!near || (!adds && now.filter->quads + now.filter->pairs == 0)) break;
        const int32_t at = channel * conv->out.plane;
        const float factor = ek_near_factor(&conv->requant, channel, near);
        end.scale.factor = _mm256_set1_ps(factor);
        now.bias = conv->requant.bias[channel];
        if (is_short) {
            ek_short_run(&now, &end, in, other + at, out + at, count, bytes);
        } else {
            end.scale64.factor = _mm512_set1_ps(factor);
            ek_run(&now, &end, in, other + at, out + at, count, bytes);
        }
    }
    *row = now;
}

static void ek_usual_filters(const ek_sparse_conv *conv, const ek_tail *tail, ek_row *row,
                             const ek_filter *last, const uint8_t *in, const uint8_t *other,
                             uint8_t *out) {
    const int is_short = tail->runs.length <= 32 && tail->masked <= 64;
    if (!tail->usual) return;
    if (is_short && tail->adds) {
        ek_usual_of(conv, tail, row, last, in, other, out, 1, 1);
    } else if (is_short) {
        ek_usual_of(conv, tail, row, last, in, other, out, 0, 1);
    } else if (tail->adds) {
        ek_usual_of(conv, tail, row, last, in, other, out, 1, 0);
    } else {
        ek_usual_of(conv, tail, row, last, in, other, out, 0, 0);
    }
}

static void ek_sparse_plane(const ek_sparse_conv *conv, ek_tail *tail, const ek_row *row,
                            const uint8_t *in, const uint8_t *other, uint8_t *out) {
    ek_scale_channel(&tail->scale, &conv->requant, row->filter->channel, row->filter->near);
    tail->scale64 = ek_scale64_of(&tail->scale);
    ek_rows(conv, tail, row, in, other, out);
}

#endif
