/* Parts of the kernels for AVX2. */
#ifndef EK_AVX2_H
#define EK_AVX2_H

#include "ek_plain.h"

#if defined(__AVX2__) && !defined(EK_PLAIN)
#define EK_AVX2 1
#include <immintrin.h>

static inline __m256i ek_load32(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
static inline void ek_store32(uint8_t *p, __m256i x) {
    _mm256_storeu_si256((__m256i *)(void *)p, x);
}
static inline __m128i ek_load16(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
static inline void ek_store16(uint8_t *p, __m128i x) { _mm_storeu_si128((__m128i *)(void *)p, x); }
static inline __m128i ek_load8(const uint8_t *p) {
    return _mm_loadl_epi64((const __m128i *)(const void *)p);
}
static inline void ek_store8(uint8_t *p, __m128i x) { _mm_storel_epi64((__m128i *)(void *)p, x); }

/* In its register: GCC 12 else adds into another and copies back. */
static inline void ek_add_to(__m256i *sum, __m256i x) {
#if defined(__GNUC__)
    __asm__("vpaddd {%1, %0, %0|%0, %0, %1}" : "+x"(*sum) : "x"(x));
#else
    *sum = _mm256_add_epi32(*sum, x);
#endif
}

/* Sums or numbers of 32 pixels, in the order that interleaving bytes gives: a has pixels 0-3 and
 * 16-19, b 4-7 and 20-23, c 8-11 and 24-27, d 12-15 and 28-31. */
typedef struct {
    __m256i a, b, c, d;
} ek_block;

typedef enum { EK_POWER, EK_HIGH, EK_WIDE } ek_scale_kind;

/* Requantisation; all up to `shift` is of one channel. */
typedef struct {
    ek_scale_kind kind;
    __m256i multiplier, round, offset;
    __m128i shift;
    __m256i zero, low, high;
} ek_scale;

/* EK_POWER: multiplier 2^30, so (sum + 2^(s - 1)) >> s with s = shift - 30, and, as nothing may
 *   overflow, ((sum >> (s - 1)) + 1) >> 1.
 * EK_HIGH: 2^(shift - 1) is a multiple of 2^32, so the low half of a product never matters.
 * EK_WIDE: the rest, made positive by 2^62 as there is no arithmetic shift of 64 bits. */
static inline void ek_scale_channel(ek_scale *scale, const ek_requant *q, int32_t channel) {
    const int32_t shift = q->shift[channel], multiplier = q->multiplier[channel];
    scale->multiplier = _mm256_set1_epi32(multiplier);
    if (shift < 33) {
        scale->kind = EK_WIDE;
        scale->shift = _mm_cvtsi32_si128(shift);
        scale->round = _mm256_set1_epi64x(((int64_t)1 << 62) + ((int64_t)1 << (shift - 1)));
        scale->offset = _mm256_set1_epi32((int32_t)((int64_t)1 << (62 - shift)));
    } else if (multiplier == 1 << 30) {
        scale->kind = EK_POWER;
        scale->shift = _mm_cvtsi32_si128(shift - 31);
        scale->round = _mm256_set1_epi32(1);
    } else {
        scale->kind = EK_HIGH;
        scale->shift = _mm_cvtsi32_si128(shift - 32);
        scale->round = _mm256_set1_epi32(1 << (shift - 33));
    }
}

/* What all channels share. */
static inline ek_scale ek_scale_of(const ek_requant *q) {
    ek_scale scale;
    scale.kind = EK_HIGH;
    scale.multiplier = scale.round = scale.offset = _mm256_setzero_si256();
    scale.shift = _mm_setzero_si128();
    scale.zero = _mm256_set1_epi16(q->zero);
    scale.low = _mm256_set1_epi8((char)q->low);
    scale.high = _mm256_set1_epi8((char)q->high);
    return scale;
}

static inline __m256i ek_power(const ek_scale *s, __m256i x) {
    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_sra_epi32(x, s->shift), s->round), 1);
}
static inline __m256i ek_high(const ek_scale *s, __m256i x) {
    const __m256i even = _mm256_mul_epi32(x, s->multiplier);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(x, 32), s->multiplier);
    const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    return _mm256_sra_epi32(_mm256_add_epi32(high, s->round), s->shift);
}
static inline __m256i ek_wide_half(const ek_scale *s, __m256i x) {
    const __m256i product = _mm256_mul_epi32(x, s->multiplier);
    return _mm256_srl_epi64(_mm256_add_epi64(product, s->round), s->shift);
}
static inline __m256i ek_wide(const ek_scale *s, __m256i x) {
    const __m256i even = ek_wide_half(s, x), odd = ek_wide_half(s, _mm256_srli_epi64(x, 32));
    const __m256i both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    return _mm256_sub_epi32(both, s->offset);
}

static inline __m256i ek_rescaled(const ek_scale *s, __m256i sums) {
    if (s->kind == EK_HIGH) return ek_high(s, sums);
    return s->kind == EK_POWER ? ek_power(s, sums) : ek_wide(s, sums);
}

/* To bytes, in the order of the pixels. */
static inline __m256i ek_narrow(ek_block x, __m256i zero, __m256i low, __m256i high) {
    const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(x.a, x.b), zero);
    const __m256i last = _mm256_adds_epi16(_mm256_packs_epi32(x.c, x.d), zero);
    return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(first, last), low), high);
}

static inline __m256i ek_scaled_block(const ek_scale *s, ek_block x) {
    if (s->kind == EK_HIGH) {
        x.a = ek_high(s, x.a), x.b = ek_high(s, x.b);
        x.c = ek_high(s, x.c), x.d = ek_high(s, x.d);
    } else if (s->kind == EK_POWER) {
        x.a = ek_power(s, x.a), x.b = ek_power(s, x.b);
        x.c = ek_power(s, x.c), x.d = ek_power(s, x.d);
    } else {
        x.a = ek_wide(s, x.a), x.b = ek_wide(s, x.b);
        x.c = ek_wide(s, x.c), x.d = ek_wide(s, x.d);
    }
    return ek_narrow(x, s->zero, s->low, s->high);
}

/* 16 pixels: 0-7 and 8-15. */
static inline __m128i ek_scaled_half(const ek_scale *s, __m256i x, __m256i y) {
    x = ek_rescaled(s, x);
    y = ek_rescaled(s, y);
    const ek_block quarters = {x, _mm256_castsi128_si256(_mm256_extracti128_si256(x, 1)),
                               y, _mm256_castsi128_si256(_mm256_extracti128_si256(y, 1))};
    return _mm256_castsi256_si128(ek_narrow(quarters, s->zero, s->low, s->high));
}

/* What ek_sum says. A scale is high * 2^10 + low. */
typedef struct {
    int narrow;
    __m256i scale, scale_high, offset, zero, low, high;
    __m128i shift;
} ek_adder;

static inline ek_adder ek_adder_of(const ek_sum *sum) {
    ek_adder a;
    a.narrow = sum->scale_a < 1 << 15 && sum->scale_b < 1 << 15;
    if (a.narrow) {
        a.scale = _mm256_set1_epi32(sum->scale_b << 16 | sum->scale_a);
    } else {
        a.scale = _mm256_set1_epi32((sum->scale_b & 1023) << 16 | (sum->scale_a & 1023));
    }
    a.scale_high = _mm256_set1_epi32((sum->scale_b >> 10) << 16 | sum->scale_a >> 10);
    a.offset = _mm256_set1_epi32(sum->offset);
    a.shift = _mm_cvtsi32_si128(sum->shift);
    a.zero = _mm256_set1_epi16(sum->zero);
    a.low = _mm256_set1_epi8((char)sum->low);
    a.high = _mm256_set1_epi8((char)sum->high);
    return a;
}

static inline __m256i ek_weighed(const ek_adder *a, __m256i pairs) {
    __m256i total = _mm256_add_epi32(_mm256_madd_epi16(pairs, a->scale), a->offset);
    if (!a->narrow) {
        const __m256i high = _mm256_madd_epi16(pairs, a->scale_high);
        total = _mm256_add_epi32(total, _mm256_slli_epi32(high, 10));
    }
    return _mm256_sra_epi32(total, a->shift);
}

static inline __m256i ek_added(const ek_adder *adder, __m256i x, __m256i y) {
    const __m256i none = _mm256_setzero_si256();
    const __m256i first = _mm256_unpacklo_epi8(x, y), last = _mm256_unpackhi_epi8(x, y);
    const ek_block sums = {ek_weighed(adder, _mm256_unpacklo_epi8(first, none)),
                           ek_weighed(adder, _mm256_unpackhi_epi8(first, none)),
                           ek_weighed(adder, _mm256_unpacklo_epi8(last, none)),
                           ek_weighed(adder, _mm256_unpackhi_epi8(last, none))};
    return ek_narrow(sums, adder->zero, adder->low, adder->high);
}

static inline __m128i ek_added_half(const ek_adder *adder, __m128i x, __m128i y) {
    return _mm256_castsi256_si128(
        ek_added(adder, _mm256_castsi128_si256(x), _mm256_castsi128_si256(y)));
}

#endif
#endif
