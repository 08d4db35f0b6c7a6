/* What ek_planes512.h and ek_layout.c take of AVX-512 with VNNI: 64 pixels at once. All else is in
 * ek_avx2.h. */
#ifndef EK_AVX512_H
#define EK_AVX512_H

#include "ek_avx2.h"

#if defined(EK_VNNI) && EK_FMA && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#define EK_AVX512 1

/* Bytes */

static inline __m512i ek_load64(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }

static inline void ek_store64(uint8_t *p, __m512i x) { _mm512_storeu_si512((void *)p, x); }

/* The first `count` bytes; masks are for less than all, as they cost time. */
static inline void ek_store_first64(uint8_t *p, __m512i x, int32_t count) {
    if (count >= 64) {
        ek_store64(p, x);
    } else {
        _mm512_mask_storeu_epi8((void *)p, ~(__mmask64)0 >> (64 - count), x);
    }
}
static inline void ek_store_first32(uint8_t *p, __m256i x, int32_t count) {
    if (count >= 32) {
        ek_store32(p, x);
    } else {
        _mm256_mask_storeu_epi8((void *)p, ~(__mmask32)0 >> (32 - count), x);
    }
}

/* The bytes of x where `mask` is 255, those of y where it is 0. */
static inline __m512i ek_chosen64(__m512i mask, __m512i x, __m512i y) {
    return _mm512_ternarylogic_epi32(mask, x, y, 0xCA);
}
static inline __m256i ek_chosen32(__m256i mask, __m256i x, __m256i y) {
    return _mm256_ternarylogic_epi32(mask, x, y, 0xCA);
}

#ifdef __AVX512VBMI__
#define EK_VBMI 1

static inline __m512i ek_permuted64(__m512i index, __m512i x) {
    return _mm512_permutexvar_epi8(index, x);
}

/* The first `count` bytes of each 32, or of each 16, to places `step` apart. */
static inline void ek_store_halves(uint8_t *p, int32_t step, int32_t count, __m512i x) {
    ek_store_first32(p, _mm512_castsi512_si256(x), count);
    ek_store_first32(p + step, _mm512_extracti64x4_epi64(x, 1), count);
}
static inline void ek_store_quarters(uint8_t *p, int32_t step, int32_t count, __m512i x) {
    const __m128i a = _mm512_castsi512_si128(x), b = _mm512_extracti32x4_epi32(x, 1);
    const __m128i c = _mm512_extracti32x4_epi32(x, 2), d = _mm512_extracti32x4_epi32(x, 3);
    if (count == 16) {
        ek_store16(p, a), ek_store16(p + step, b);
        ek_store16(p + 2 * step, c), ek_store16(p + 3 * step, d);
    } else {
        const __mmask16 first = (__mmask16)((1 << count) - 1);
        _mm_mask_storeu_epi8((void *)p, first, a);
        _mm_mask_storeu_epi8((void *)(p + step), first, b);
        _mm_mask_storeu_epi8((void *)(p + 2 * step), first, c);
        _mm_mask_storeu_epi8((void *)(p + 3 * step), first, d);
    }
}

#endif

/* Sums of taps */

/* Sums of 64 pixels, in the order that interleaving bytes gives: of each 16 pixels a has the first
 * four, and so on. */
typedef struct {
    __m512i a, b, c, d;
} ek_block64;

EK_INLINE void ek_quad_block64(ek_block64 *sums, const uint8_t *p, const ek_quad *quad) {
    const __m512i w = _mm512_set1_epi32(ek_word(quad->weight));
    const __m512i a = ek_load64(p + quad->at[0]), b = ek_load64(p + quad->at[1]);
    const __m512i c = ek_load64(p + quad->at[2]), d = ek_load64(p + quad->at[3]);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
    const __m512i AB = _mm512_unpackhi_epi8(a, b), CD = _mm512_unpackhi_epi8(c, d);
    sums->a = _mm512_dpbusd_epi32(sums->a, _mm512_unpacklo_epi16(ab, cd), w);
    EK_STAY(sums->a);
    sums->b = _mm512_dpbusd_epi32(sums->b, _mm512_unpackhi_epi16(ab, cd), w);
    EK_STAY(sums->b);
    sums->c = _mm512_dpbusd_epi32(sums->c, _mm512_unpacklo_epi16(AB, CD), w);
    EK_STAY(sums->c);
    sums->d = _mm512_dpbusd_epi32(sums->d, _mm512_unpackhi_epi16(AB, CD), w);
    EK_STAY(sums->d);
}

EK_INLINE void ek_pair_block64(ek_block64 *sums, const uint8_t *p, const ek_pair *pair) {
    const __m512i none = _mm512_setzero_si512(), w = _mm512_set1_epi32(ek_word(pair->weight));
    const __m512i a = ek_load64(p + pair->at[0]), b = ek_load64(p + pair->at[1]);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    sums->a = _mm512_dpwssd_epi32(sums->a, _mm512_unpacklo_epi8(ab, none), w);
    EK_STAY(sums->a);
    sums->b = _mm512_dpwssd_epi32(sums->b, _mm512_unpackhi_epi8(ab, none), w);
    EK_STAY(sums->b);
    sums->c = _mm512_dpwssd_epi32(sums->c, _mm512_unpacklo_epi8(AB, none), w);
    EK_STAY(sums->c);
    sums->d = _mm512_dpwssd_epi32(sums->d, _mm512_unpackhi_epi8(AB, none), w);
    EK_STAY(sums->d);
}

/* As the ek_tile of ek_avx2.h, whose sums wait for one another: here are as many again, of every other
 * patch. */
EK_INLINE void ek_add_patch64(__m512i *sums, const uint8_t *weights, const uint8_t *patch) {
    const __m512i x = ek_load64(patch);
    for (int32_t i = 0; i < 4; i++) {
        sums[i] = _mm512_dpbusd_epi32(sums[i], x, _mm512_set1_epi32(ek_word(weights + 4 * i)));
        EK_STAY(sums[i]);
    }
}
static inline void ek_tile64(const uint8_t *weights, const uint8_t *patches, int32_t count,
                             const int32_t *bias, ek_sixteen *out) {
    __m512i first[4], second[4], third[4], fourth[4];
    int32_t k = 0;
    for (int32_t i = 0; i < 4; i++) {
        first[i] = _mm512_set1_epi32(bias[i]);
        second[i] = third[i] = fourth[i] = _mm512_setzero_si512();
    }
    for (; k + 4 <= count; k += 4, weights += 64, patches += 256) {
        ek_add_patch64(first, weights, patches);
        ek_add_patch64(second, weights + 16, patches + 64);
        ek_add_patch64(third, weights + 32, patches + 128);
        ek_add_patch64(fourth, weights + 48, patches + 192);
    }
    for (; k < count; k++, weights += 16, patches += 64) ek_add_patch64(first, weights, patches);
    for (int32_t i = 0; i < 4; i++) {
        const __m512i even = _mm512_add_epi32(first[i], second[i]);
        const __m512i sum = _mm512_add_epi32(even, _mm512_add_epi32(third[i], fourth[i]));
        out[i].a = _mm512_castsi512_si256(sum);
        out[i].b = _mm512_extracti64x4_epi64(sum, 1);
    }
}
#define ek_tile ek_tile64

/* Requantisation */

/* An ek_scale for twice as many numbers. */
typedef struct {
    ek_scale_kind kind;
    int limited;
    __m512i multiplier, round, offset, shift, zero, low, high;
    __m512 factor, magic;
} ek_scale64;

static inline __m512i ek_twice(__m256i x) { return _mm512_broadcast_i64x4(x); }
static inline __m512 ek_twice_floats(__m256 x) {
    return _mm512_castsi512_ps(ek_twice(_mm256_castps_si256(x)));
}

static inline ek_scale64 ek_scale64_of(const ek_scale *half) {
    const ek_scale64 s = {half->kind, half->limited,
                          ek_twice(half->multiplier), ek_twice(half->round),
                          ek_twice(half->offset), ek_twice(half->shift),
                          ek_twice(half->zero), ek_twice(half->low), ek_twice(half->high),
                          ek_twice_floats(half->factor), ek_twice_floats(half->magic)};
    return s;
}

/* Member by member, which compilers keep in registers. */
EK_INLINE ek_scale64 ek_scale64_copy(const ek_scale64 *s, ek_scale_kind kind) {
    const ek_scale64 copy = {kind, s->limited, s->multiplier, s->round, s->offset, s->shift,
                             s->zero, s->low, s->high, s->factor, s->magic};
    return copy;
}
EK_INLINE ek_scale ek_scale_half(const ek_scale64 *s) {
    const ek_scale half = {s->kind, s->limited,
                           _mm512_castsi512_si256(s->multiplier), _mm512_castsi512_si256(s->round),
                           _mm512_castsi512_si256(s->offset), _mm512_castsi512_si256(s->shift),
                           _mm512_castsi512_si256(s->zero), _mm512_castsi512_si256(s->low),
                           _mm512_castsi512_si256(s->high),
                           _mm512_castps512_ps256(s->factor), _mm512_castps512_ps256(s->magic)};
    return half;
}

static inline __m512i ek_odd(__m512i x) { return _mm512_srli_epi64(x, 32); }

static inline __m512i ek_near64(const ek_scale64 *s, __m512i x) {
    return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_cvtepi32_ps(x), s->factor, s->magic));
}
static inline __m512i ek_power64(const ek_scale64 *s, __m512i x) {
    return _mm512_srai_epi32(_mm512_add_epi32(_mm512_srav_epi32(x, s->shift), s->round), 1);
}
static inline __m512i ek_high64(const ek_scale64 *s, __m512i x) {
    const __m512i even = _mm512_mul_epi32(x, s->multiplier);
    const __m512i odd = _mm512_mul_epi32(ek_odd(x), s->multiplier);
    const __m512i high = _mm512_mask_blend_epi32(0xAAAA, ek_odd(even), odd);
    return _mm512_srav_epi32(_mm512_add_epi32(high, s->round), s->shift);
}
static inline __m512i ek_wide64_half(const ek_scale64 *s, __m512i x) {
    const __m512i product = _mm512_mul_epi32(x, s->multiplier);
    return _mm512_srlv_epi64(_mm512_add_epi64(product, s->round), s->shift);
}
static inline __m512i ek_wide64(const ek_scale64 *s, __m512i x) {
    const __m512i even = ek_wide64_half(s, x), odd = ek_wide64_half(s, ek_odd(x));
    const __m512i both = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    return _mm512_sub_epi32(both, s->offset);
}

/* To bytes, in the order of the pixels. */
EK_INLINE __m512i ek_narrow64(ek_block64 x, __m512i zero) {
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(x.a, x.b), zero);
    const __m512i last = _mm512_adds_epi16(_mm512_packs_epi32(x.c, x.d), zero);
    return _mm512_packus_epi16(first, last);
}

EK_INLINE __m512i ek_limited64(__m512i bytes, __m512i low, __m512i high) {
    return _mm512_min_epu8(_mm512_max_epu8(bytes, low), high);
}

EK_INLINE __m512i ek_near_narrow64(ek_block64 x) {
    const __m512i lower = _mm512_set1_epi16(255);
    const __m512i first = _mm512_and_si512(_mm512_packus_epi16(x.a, x.b), lower);
    const __m512i last = _mm512_and_si512(_mm512_packus_epi16(x.c, x.d), lower);
    return _mm512_packus_epi16(first, last);
}

EK_INLINE __m512i ek_narrowed64(const ek_scale64 *s, ek_block64 x) {
    const __m512i bytes = s->kind == EK_NEAR ? ek_near_narrow64(x) : ek_narrow64(x, s->zero);
    return s->limited ? ek_limited64(bytes, s->low, s->high) : bytes;
}

EK_INLINE __m512i ek_scaled_block64(const ek_scale64 *s, ek_block64 x) {
    if (s->kind == EK_NEAR) {
        x.a = ek_near64(s, x.a), x.b = ek_near64(s, x.b);
        x.c = ek_near64(s, x.c), x.d = ek_near64(s, x.d);
    } else if (s->kind == EK_HIGH) {
        x.a = ek_high64(s, x.a), x.b = ek_high64(s, x.b);
        x.c = ek_high64(s, x.c), x.d = ek_high64(s, x.d);
    } else if (s->kind == EK_POWER) {
        x.a = ek_power64(s, x.a), x.b = ek_power64(s, x.b);
        x.c = ek_power64(s, x.c), x.d = ek_power64(s, x.d);
    } else {
        x.a = ek_wide64(s, x.a), x.b = ek_wide64(s, x.b);
        x.c = ek_wide64(s, x.c), x.d = ek_wide64(s, x.d);
    }
    return ek_narrowed64(s, x);
}

/* Sums of two tensors */

/* An ek_adder for twice as many numbers. */
typedef struct {
    int narrow, limited;
    __m512i scale, scale_high, offset, shift, zero, low, high;
} ek_adder64;

static inline ek_adder64 ek_adder64_of(const ek_adder *half) {
    const ek_adder64 a = {half->narrow, half->limited,
                          ek_twice(half->scale), ek_twice(half->scale_high),
                          ek_twice(half->offset), ek_twice(half->shift),
                          ek_twice(half->zero), ek_twice(half->low), ek_twice(half->high)};
    return a;
}
EK_INLINE ek_adder64 ek_adder64_copy(const ek_adder64 *a) {
    const ek_adder64 copy = {a->narrow, a->limited, a->scale, a->scale_high, a->offset,
                             a->shift, a->zero, a->low, a->high};
    return copy;
}
EK_INLINE ek_adder ek_adder_half(const ek_adder64 *a) {
    const ek_adder half = {a->narrow, a->limited,
                           _mm512_castsi512_si256(a->scale), _mm512_castsi512_si256(a->scale_high),
                           _mm512_castsi512_si256(a->offset), _mm512_castsi512_si256(a->shift),
                           _mm512_castsi512_si256(a->zero), _mm512_castsi512_si256(a->low),
                           _mm512_castsi512_si256(a->high)};
    return half;
}

static inline __m512i ek_weighed64(const ek_adder64 *a, __m512i pairs) {
    __m512i total = _mm512_dpwssd_epi32(a->offset, pairs, a->scale);
    if (!a->narrow) {
        const __m512i high = _mm512_madd_epi16(pairs, a->scale_high);
        total = _mm512_add_epi32(total, _mm512_slli_epi32(high, 10));
    }
    return _mm512_srav_epi32(total, a->shift);
}

EK_INLINE __m512i ek_added64(const ek_adder64 *adder, __m512i x, __m512i y) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i first = _mm512_unpacklo_epi8(x, y), last = _mm512_unpackhi_epi8(x, y);
    const ek_block64 sums = {ek_weighed64(adder, _mm512_unpacklo_epi8(first, none)),
                             ek_weighed64(adder, _mm512_unpackhi_epi8(first, none)),
                             ek_weighed64(adder, _mm512_unpacklo_epi8(last, none)),
                             ek_weighed64(adder, _mm512_unpackhi_epi8(last, none))};
    const __m512i bytes = ek_narrow64(sums, adder->zero);
    return adder->limited ? ek_limited64(bytes, adder->low, adder->high) : bytes;
}

#endif
#endif
