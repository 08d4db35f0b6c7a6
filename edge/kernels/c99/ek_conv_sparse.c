/* Convolution by the non-zero weights: pixels are the vector dimension. */
#include "ek_avx2.h"

typedef struct {
    const ek_filter *filter;
    const ek_quad *quads;
    const ek_pair *pairs;
    int32_t bias;
} ek_row;

#ifdef EK_AVX2

typedef struct {
    ek_scale scale;
    ek_adder adder;
    int adds;
} ek_tail;

static inline int32_t ek_four(const int8_t *weights) {
    int32_t four;
    memcpy(&four, weights, sizeof four);
    return four;
}
static inline int32_t ek_two(const int16_t *weights) {
    int32_t two;
    memcpy(&two, weights, sizeof two);
    return two;
}

/* `blocks` times 32 pixels, 1 or 2. The bytes of four taps interleave to [a b c d] per pixel; the
 * interleaving stays within halves of 128 bits, and the packing at the end undoes it. */
static inline void ek_quads(const ek_row *row, const uint8_t *p, __m256i (*sums)[4], int blocks) {
    const __m256i ones = _mm256_set1_epi16(1);
    const ek_quad *quad = row->quads, *end = quad + row->filter->quads;
    for (; quad != end; quad++) {
        const uint8_t *a = p + quad->at[0], *b = p + quad->at[1];
        const uint8_t *c = p + quad->at[2], *d = p + quad->at[3];
        const __m256i w = _mm256_set1_epi32(ek_four(quad->weight));
        for (int i = 0; i < blocks; i++) {
            const __m256i va = ek_load32(a + 32 * i), vb = ek_load32(b + 32 * i);
            const __m256i vc = ek_load32(c + 32 * i), vd = ek_load32(d + 32 * i);
            const __m256i ab = _mm256_unpacklo_epi8(va, vb), cd = _mm256_unpacklo_epi8(vc, vd);
            const __m256i AB = _mm256_unpackhi_epi8(va, vb), CD = _mm256_unpackhi_epi8(vc, vd);
            const __m256i q0 = _mm256_maddubs_epi16(_mm256_unpacklo_epi16(ab, cd), w);
            const __m256i q1 = _mm256_maddubs_epi16(_mm256_unpackhi_epi16(ab, cd), w);
            const __m256i q2 = _mm256_maddubs_epi16(_mm256_unpacklo_epi16(AB, CD), w);
            const __m256i q3 = _mm256_maddubs_epi16(_mm256_unpackhi_epi16(AB, CD), w);
            ek_add_to(&sums[i][0], _mm256_madd_epi16(q0, ones));
            ek_add_to(&sums[i][1], _mm256_madd_epi16(q1, ones));
            ek_add_to(&sums[i][2], _mm256_madd_epi16(q2, ones));
            ek_add_to(&sums[i][3], _mm256_madd_epi16(q3, ones));
        }
    }
}

/* Small weights: `run` quads are summed in int16 before they are widened. */
static inline void ek_quad_runs(const ek_row *row, const uint8_t *p, __m256i *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    const ek_quad *quad = row->quads, *end = quad + row->filter->quads;
    while (quad != end) {
        const ek_quad *stop = end - quad > row->filter->run ? quad + row->filter->run : end;
        __m256i ab = _mm256_setzero_si256(), cd = ab, AB = ab, CD = ab;
        for (; quad != stop; quad++) {
            const __m256i va = ek_load32(p + quad->at[0]), vb = ek_load32(p + quad->at[1]);
            const __m256i vc = ek_load32(p + quad->at[2]), vd = ek_load32(p + quad->at[3]);
            const int32_t four = ek_four(quad->weight);
            const __m256i first = _mm256_set1_epi16((int16_t)four);
            const __m256i last = _mm256_set1_epi16((int16_t)(four >> 16));
            ab = _mm256_add_epi16(ab, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(va, vb), first));
            AB = _mm256_add_epi16(AB, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(va, vb), first));
            cd = _mm256_add_epi16(cd, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(vc, vd), last));
            CD = _mm256_add_epi16(CD, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(vc, vd), last));
        }
        ek_add_to(&sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(ab, cd), ones));
        ek_add_to(&sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(ab, cd), ones));
        ek_add_to(&sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi16(AB, CD), ones));
        ek_add_to(&sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi16(AB, CD), ones));
    }
}

static inline void ek_pairs(const ek_row *row, const uint8_t *p, __m256i (*sums)[4], int blocks) {
    const __m256i none = _mm256_setzero_si256();
    const ek_pair *pair = row->pairs, *end = pair + row->filter->pairs;
    for (; pair != end; pair++) {
        const uint8_t *a = p + pair->at[0], *b = p + pair->at[1];
        const __m256i w = _mm256_set1_epi32(ek_two(pair->weight));
        for (int i = 0; i < blocks; i++) {
            const __m256i va = ek_load32(a + 32 * i), vb = ek_load32(b + 32 * i);
            const __m256i ab = _mm256_unpacklo_epi8(va, vb), AB = _mm256_unpackhi_epi8(va, vb);
            ek_add_to(&sums[i][0], _mm256_madd_epi16(_mm256_unpacklo_epi8(ab, none), w));
            ek_add_to(&sums[i][1], _mm256_madd_epi16(_mm256_unpackhi_epi8(ab, none), w));
            ek_add_to(&sums[i][2], _mm256_madd_epi16(_mm256_unpacklo_epi8(AB, none), w));
            ek_add_to(&sums[i][3], _mm256_madd_epi16(_mm256_unpackhi_epi8(AB, none), w));
        }
    }
}

static inline void ek_blocks(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                             const uint8_t *other, uint8_t *out, int blocks) {
    __m256i sums[2][4];
    for (int i = 0; i < blocks; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = _mm256_set1_epi32(row->bias);
    if (row->filter->run > 1) {
        for (int i = 0; i < blocks; i++) ek_quad_runs(row, p + 32 * i, sums[i]);
    } else {
        ek_quads(row, p, sums, blocks);
    }
    ek_pairs(row, p, sums, blocks);
    for (int i = 0; i < blocks; i++) {
        const ek_scale *scale = &tail->scale;
        ek_rescale(scale, sums[i], 4);
        __m256i bytes = ek_narrow(sums[i], scale->zero, scale->low, scale->high);
        if (tail->adds) bytes = ek_added(&tail->adder, bytes, ek_load32(other + 32 * i));
        ek_store32(out + 32 * i, bytes);
    }
}

/* 8 pixels. */
static inline __m128i ek_eight(const ek_row *row, const ek_tail *tail, const uint8_t *p) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m128i none = _mm_setzero_si128();
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    __m256i sum = _mm256_set1_epi32(row->bias);
    for (; quad != last_quad; quad++) {
        const __m128i ab = _mm_unpacklo_epi8(ek_load8(p + quad->at[0]), ek_load8(p + quad->at[1]));
        const __m128i cd = _mm_unpacklo_epi8(ek_load8(p + quad->at[2]), ek_load8(p + quad->at[3]));
        const __m256i abcd =
            _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
        const __m256i w = _mm256_set1_epi32(ek_four(quad->weight));
        ek_add_to(&sum, _mm256_madd_epi16(_mm256_maddubs_epi16(abcd, w), ones));
    }
    for (; pair != last_pair; pair++) {
        const __m128i ab = _mm_unpacklo_epi8(ek_load8(p + pair->at[0]), ek_load8(p + pair->at[1]));
        const __m256i wide =
            _mm256_set_m128i(_mm_unpackhi_epi8(ab, none), _mm_unpacklo_epi8(ab, none));
        ek_add_to(&sum, _mm256_madd_epi16(wide, _mm256_set1_epi32(ek_two(pair->weight))));
    }
    const ek_scale *scale = &tail->scale;
    ek_rescale(scale, &sum, 1);
    const __m256i sums[4] = {_mm256_castsi128_si256(_mm256_castsi256_si128(sum)),
                             _mm256_castsi128_si256(_mm256_extracti128_si256(sum, 1)),
                             _mm256_setzero_si256(), _mm256_setzero_si256()};
    return _mm256_castsi256_si128(ek_narrow(sums, scale->zero, scale->low, scale->high));
}

static void ek_last_eights(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                           const uint8_t *other, uint8_t *out, int32_t count) {
    for (; count > 0; count -= 8, p += 8, other += 8, out += 8) {
        __m128i bytes = ek_eight(row, tail, p);
        if (tail->adds) {
            const __m256i x = _mm256_castsi128_si256(bytes);
            const __m256i y = _mm256_castsi128_si256(ek_load8(other));
            bytes = _mm256_castsi256_si128(ek_added(&tail->adder, x, y));
        }
        if (count >= 8) {
            ek_store8(out, bytes);
        } else {
            uint8_t last[8];
            ek_store8(last, bytes);
            memcpy(out, last, (size_t)count);
        }
    }
}

static void ek_run(const ek_row *row, const ek_tail *tail, const uint8_t *p, const uint8_t *other,
                   uint8_t *out, int32_t count) {
    int32_t x = 0;
    for (; count - x >= 64; x += 64) ek_blocks(row, tail, p + x, other + x, out + x, 2);
    if (count - x >= 32) {
        ek_blocks(row, tail, p + x, other + x, out + x, 1);
        x += 32;
    }
    if (count - x > 16) {
        uint8_t last[32];
        ek_blocks(row, tail, p + x, other + x, last, 1);
        memcpy(out + x, last, (size_t)(count - x));
    } else {
        ek_last_eights(row, tail, p + x, other + x, out + x, count - x);
    }
}

static ek_tail ek_tail_of(const ek_sparse_conv *conv, int32_t channel) {
    static const ek_sum nothing = {0, 0, 0, 1, 0, 0, 0};
    ek_tail tail;
    tail.scale = ek_scale_of(&conv->requant, channel);
    tail.adds = conv->sum != 0;
    tail.adder = ek_adder_of(conv->sum ? conv->sum : &nothing);
    return tail;
}

static void ek_channel_plane(const ek_sparse_conv *conv, const ek_row *row, int32_t channel,
                             const uint8_t *in, const uint8_t *other, uint8_t *out) {
    const ek_runs runs = ek_runs_of(&conv->out, conv->in_row);
    const ek_tail tail = ek_tail_of(conv, channel);
    for (int32_t y = 0; y < runs.count; y++) {
        const int32_t to = y * conv->out.row;
        ek_run(row, &tail, in + y * conv->in_row, other + to, out + to, runs.length);
    }
    ek_halo_of(&conv->out, out);
}

#else

static void ek_row_taps(const void *state, const uint8_t *p, int32_t *sums, int32_t count) {
    const ek_row *row = (const ek_row *)state;
    for (int32_t q = 0; q < row->filter->quads; q++)
        for (int32_t i = 0; i < 4; i++)
            ek_tap(sums, p + row->quads[q].at[i], row->quads[q].weight[i], count);
    for (int32_t q = 0; q < row->filter->pairs; q++)
        for (int32_t i = 0; i < 2; i++)
            ek_tap(sums, p + row->pairs[q].at[i], row->pairs[q].weight[i], count);
}

static void ek_channel_plane(const ek_sparse_conv *conv, const ek_row *row, int32_t channel,
                             const uint8_t *in, const uint8_t *other, uint8_t *out) {
    const ek_channel c = {&conv->out, &conv->requant, conv->sum, channel, conv->in_row};
    ek_plane(&c, ek_row_taps, row, in, other, out);
}

#endif

void ek_conv_sparse(const ek_sparse_conv *conv, const uint8_t *in, const uint8_t *other,
                    uint8_t *out) {
    const ek_planes *planes = &conv->out;
    ek_row row = {conv->filters, conv->quads, conv->pairs, 0};
    if (!conv->sum) other = out;
    ek_halo_before(planes, out);
    for (int32_t c = 0; c < planes->channels; c++, row.filter++) {
        row.bias = conv->requant.bias[c];
        if (row.filter->quads + row.filter->pairs == 0 && !conv->sum) {
            const uint8_t constant = ek_scaled(&conv->requant, c, row.bias);
            memset(out, constant, (size_t)(planes->height * planes->row));
            ek_halo_of(planes, out);
        } else {
            ek_channel_plane(conv, &row, c, in, other, out);
        }
        row.quads += row.filter->quads;
        row.pairs += row.filter->pairs;
        out += planes->plane;
        other += planes->plane;
    }
}
