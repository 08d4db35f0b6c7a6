/* Sparse convolutions for AVX-512 with VNNI: 64 pixels at once, the last of a run through a mask.
 * All else is in ek_avx2.h. */
#ifndef EK_AVX512_H
#define EK_AVX512_H

#include "ek_avx2.h"

#if defined(EK_VNNI) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define EK_AVX512 1

static inline __m512i ek_load64(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }

/* The first `count` bytes, at most 64. */
static inline void ek_store_first(uint8_t *p, __m512i x, int32_t count) {
    const __mmask64 all = ~(__mmask64)0;
    _mm512_mask_storeu_epi8((void *)p, count < 64 ? all >> (64 - count) : all, x);
}

/* Sums of 64 pixels, in the order that interleaving bytes gives: of each 16 pixels a has the first
 * four, and so on. */
typedef struct {
    __m512i a, b, c, d;
} ek_block64;

static inline __m512i ek_twice(__m256i x) {
    return _mm512_broadcast_i64x4(x);
}

static inline void ek_quad_block64(ek_block64 *sums, const uint8_t *p, const ek_quad *quad) {
    const __m512i w = _mm512_set1_epi32(ek_word(quad->weight));
    const __m512i a = ek_load64(p + quad->at[0]), b = ek_load64(p + quad->at[1]);
    const __m512i c = ek_load64(p + quad->at[2]), d = ek_load64(p + quad->at[3]);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
    const __m512i AB = _mm512_unpackhi_epi8(a, b), CD = _mm512_unpackhi_epi8(c, d);
    sums->a = _mm512_dpbusd_epi32(sums->a, _mm512_unpacklo_epi16(ab, cd), w);
    sums->b = _mm512_dpbusd_epi32(sums->b, _mm512_unpackhi_epi16(ab, cd), w);
    sums->c = _mm512_dpbusd_epi32(sums->c, _mm512_unpacklo_epi16(AB, CD), w);
    sums->d = _mm512_dpbusd_epi32(sums->d, _mm512_unpackhi_epi16(AB, CD), w);
}

static inline void ek_pair_block64(ek_block64 *sums, const uint8_t *p, const ek_pair *pair) {
    const __m512i none = _mm512_setzero_si512(), w = _mm512_set1_epi32(ek_word(pair->weight));
    const __m512i a = ek_load64(p + pair->at[0]), b = ek_load64(p + pair->at[1]);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    sums->a = _mm512_dpwssd_epi32(sums->a, _mm512_unpacklo_epi8(ab, none), w);
    sums->b = _mm512_dpwssd_epi32(sums->b, _mm512_unpackhi_epi8(ab, none), w);
    sums->c = _mm512_dpwssd_epi32(sums->c, _mm512_unpacklo_epi8(AB, none), w);
    sums->d = _mm512_dpwssd_epi32(sums->d, _mm512_unpackhi_epi8(AB, none), w);
}

/* An ek_scale for twice as many numbers. */
typedef struct {
    ek_scale_kind kind;
    __m512i multiplier, round, offset, zero, low, high;
    __m128i shift;
} ek_scale64;

static inline ek_scale64 ek_scale64_of(const ek_scale *half) {
    ek_scale64 s;
    s.kind = half->kind;
    s.multiplier = ek_twice(half->multiplier);
    s.round = ek_twice(half->round);
    s.offset = ek_twice(half->offset);
    s.zero = ek_twice(half->zero);
    s.low = ek_twice(half->low);
    s.high = ek_twice(half->high);
    s.shift = half->shift;
    return s;
}

static inline __m512i ek_odd(__m512i x) { return _mm512_srli_epi64(x, 32); }

static inline __m512i ek_power64(const ek_scale64 *s, __m512i x) {
    return _mm512_srai_epi32(_mm512_add_epi32(_mm512_sra_epi32(x, s->shift), s->round), 1);
}
static inline __m512i ek_high64(const ek_scale64 *s, __m512i x) {
    const __m512i even = _mm512_mul_epi32(x, s->multiplier);
    const __m512i odd = _mm512_mul_epi32(ek_odd(x), s->multiplier);
    const __m512i high = _mm512_mask_blend_epi32(0xAAAA, ek_odd(even), odd);
    return _mm512_sra_epi32(_mm512_add_epi32(high, s->round), s->shift);
}
static inline __m512i ek_wide64_half(const ek_scale64 *s, __m512i x) {
    const __m512i product = _mm512_mul_epi32(x, s->multiplier);
    return _mm512_srl_epi64(_mm512_add_epi64(product, s->round), s->shift);
}
static inline __m512i ek_wide64(const ek_scale64 *s, __m512i x) {
    const __m512i even = ek_wide64_half(s, x), odd = ek_wide64_half(s, ek_odd(x));
    const __m512i both = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    return _mm512_sub_epi32(both, s->offset);
}

/* To bytes, in the order of the pixels. */
static inline __m512i ek_narrow64(ek_block64 x, __m512i zero, __m512i low, __m512i high) {
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(x.a, x.b), zero);
    const __m512i last = _mm512_adds_epi16(_mm512_packs_epi32(x.c, x.d), zero);
    return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(first, last), low), high);
}

static inline __m512i ek_scaled_block64(const ek_scale64 *s, ek_block64 x) {
    if (s->kind == EK_HIGH) {
        x.a = ek_high64(s, x.a), x.b = ek_high64(s, x.b);
        x.c = ek_high64(s, x.c), x.d = ek_high64(s, x.d);
    } else if (s->kind == EK_POWER) {
        x.a = ek_power64(s, x.a), x.b = ek_power64(s, x.b);
        x.c = ek_power64(s, x.c), x.d = ek_power64(s, x.d);
    } else {
        x.a = ek_wide64(s, x.a), x.b = ek_wide64(s, x.b);
        x.c = ek_wide64(s, x.c), x.d = ek_wide64(s, x.d);
    }
    return ek_narrow64(x, s->zero, s->low, s->high);
}

/* An ek_adder for twice as many numbers. */
typedef struct {
    int narrow;
    __m512i scale, scale_high, offset, zero, low, high;
    __m128i shift;
} ek_adder64;

static inline ek_adder64 ek_adder64_of(const ek_adder *half) {
    ek_adder64 a;
    a.narrow = half->narrow;
    a.scale = ek_twice(half->scale);
    a.scale_high = ek_twice(half->scale_high);
    a.offset = ek_twice(half->offset);
    a.zero = ek_twice(half->zero);
    a.low = ek_twice(half->low);
    a.high = ek_twice(half->high);
    a.shift = half->shift;
    return a;
}

static inline __m512i ek_weighed64(const ek_adder64 *a, __m512i pairs) {
    __m512i total = _mm512_dpwssd_epi32(a->offset, pairs, a->scale);
    if (!a->narrow) {
        const __m512i high = _mm512_madd_epi16(pairs, a->scale_high);
        total = _mm512_add_epi32(total, _mm512_slli_epi32(high, 10));
    }
    return _mm512_sra_epi32(total, a->shift);
}

static inline __m512i ek_added64(const ek_adder64 *adder, __m512i x, __m512i y) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i first = _mm512_unpacklo_epi8(x, y), last = _mm512_unpackhi_epi8(x, y);
    const ek_block64 sums = {ek_weighed64(adder, _mm512_unpacklo_epi8(first, none)),
                             ek_weighed64(adder, _mm512_unpackhi_epi8(first, none)),
                             ek_weighed64(adder, _mm512_unpacklo_epi8(last, none)),
                             ek_weighed64(adder, _mm512_unpackhi_epi8(last, none))};
    return ek_narrow64(sums, adder->zero, adder->low, adder->high);
}

#endif
#endif
