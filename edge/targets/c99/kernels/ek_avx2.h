/* Parts of the kernels for AVX2, and with it VNNI, of AVX-512 or without; ek_simd.h lists them. */
#ifndef EK_AVX2_H
#define EK_AVX2_H

#include "ek_plain.h"

#ifdef EK_AVX2
#include <immintrin.h>

/* Products of four bytes, unsigned times signed, or of two int16, added to an int32. */
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define EK_VNNI 1
#define ek_dot_bytes _mm256_dpbusd_epi32
#define ek_dot_words _mm256_dpwssd_epi32
#elif defined(__AVXVNNI__)
#define EK_VNNI 1
#define ek_dot_bytes _mm256_dpbusd_avx_epi32
#define ek_dot_words _mm256_dpwssd_avx_epi32
#endif

#ifdef __FMA__
#define EK_FMA 1 /* multiplies and adds with one rounding */
#else
#define EK_FMA 0
#endif

/* Of a sum: it stays in its register. GCC 12 else copies it before and after each product. */
#if defined(__GNUC__) && defined(__AVX512F__)
#define EK_STAY(x) __asm__("" : "+v"(x))
#else
#define EK_STAY(x) (void)0
#endif

/* What vectors take from a byte before they multiply it. */
#define EK_LESS 0

typedef __m256i ek_bytes32;
typedef __m128i ek_bytes16;

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

/* Two rows of 8 bytes, four of 4. */
static inline __m128i ek_load_eights(const uint8_t *p, int32_t row) {
    return _mm_unpacklo_epi64(ek_load8(p), ek_load8(p + row));
}
static inline int32_t ek_word(const void *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}
static inline __m128i ek_load_fours(const uint8_t *p, int32_t row) {
    return _mm_set_epi32(ek_word(p + 3 * row), ek_word(p + 2 * row), ek_word(p + row), ek_word(p));
}

/* 16 numbers of 16 bits: bytes from p on, `step` apart, 1 or 2. */
typedef __m256i ek_lanes;

static inline ek_lanes ek_lanes_of(const uint8_t *p, int32_t step) {
    if (step == 1) return _mm256_cvtepu8_epi16(ek_load16(p));
    return _mm256_and_si256(ek_load32(p), _mm256_set1_epi16(255));
}
static inline ek_lanes ek_lanes_most(ek_lanes x, ek_lanes y) { return _mm256_max_epu16(x, y); }
static inline ek_lanes ek_lanes_sum(ek_lanes x, ek_lanes y) { return _mm256_add_epi16(x, y); }
static inline ek_lanes ek_lanes_mean(ek_lanes x, const ek_divisor *by) {
    const __m256i twice = _mm256_add_epi16(x, x);
    const __m256i sum = _mm256_add_epi16(twice, _mm256_set1_epi16((int16_t)by->count));
    const __m256i high = _mm256_mulhi_epu16(sum, _mm256_set1_epi16((int16_t)by->multiplier));
    return _mm256_srl_epi16(high, _mm_cvtsi32_si128(by->shift));
}
static inline ek_bytes16 ek_lanes_bytes(ek_lanes x) {
    return _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

static inline ek_bytes32 ek_most(ek_bytes32 x, ek_bytes32 y) { return _mm256_max_epu8(x, y); }

/* Of each two bytes, first of x and then of y, the larger. */
static inline ek_bytes32 ek_most_of_two(ek_bytes32 x, ek_bytes32 y) {
    const __m256i lower = _mm256_set1_epi16(255);
    const __m256i first = _mm256_and_si256(_mm256_max_epu8(x, _mm256_srli_epi16(x, 8)), lower);
    const __m256i last = _mm256_and_si256(_mm256_max_epu8(y, _mm256_srli_epi16(y, 8)), lower);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(first, last), 0xD8);
}

/* Byte k of the result is x[index[k]]; indices are below 16. */
static inline ek_bytes16 ek_shuffled(ek_bytes16 x, ek_bytes16 index) {
    return _mm_shuffle_epi8(x, index);
}

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

/* Sums of 16 pixels, 0-7 and 8-15, and of 8. */
typedef struct {
    __m256i a, b;
} ek_sixteen;
typedef __m256i ek_eight;

static inline ek_block ek_block_of(int32_t sum) {
    const __m256i all = _mm256_set1_epi32(sum);
    const ek_block block = {all, all, all, all};
    return block;
}
static inline ek_eight ek_eight_of(int32_t sum) { return _mm256_set1_epi32(sum); }

/* [a b c d] times [weights], added; a pair's products sum up within int16. */
static inline void ek_add_bytes(__m256i *sum, __m256i bytes, __m256i weights) {
#ifdef EK_VNNI
    *sum = ek_dot_bytes(*sum, bytes, weights);
    EK_STAY(*sum);
#else
    const __m256i pairs = _mm256_maddubs_epi16(bytes, weights);
    ek_add_to(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

/* [a b] of int16 times [weights], added. */
static inline void ek_add_words(__m256i *sum, __m256i words, __m256i weights) {
#ifdef EK_VNNI
    *sum = ek_dot_words(*sum, words, weights);
    EK_STAY(*sum);
#else
    ek_add_to(sum, _mm256_madd_epi16(words, weights));
#endif
}

typedef enum { EK_NEAR, EK_POWER, EK_HIGH, EK_WIDE } ek_scale_kind;

/* Requantisation; all up to `shift` is of one channel. */
typedef struct {
    ek_scale_kind kind;
    int limited; /* 0: `low` and `high` are 0 and 255 */
    __m256i multiplier, round, offset, shift;
    __m256i zero, low, high;
    __m256 factor, magic;
} ek_scale;

#define EK_MAGIC 12582912 /* 1.5 * 2^23 */

static inline float ek_near_factor(const ek_requant *q, int32_t channel, int32_t near) {
    float factor = (float)q->multiplier[channel];
    int32_t bits;
    memcpy(&bits, &factor, sizeof bits);
    bits += near - EK_NEAREST - q->shift[channel] * (1 << 23);
    memcpy(&factor, &bits, sizeof bits);
    return factor;
}

/* EK_NEAR: by a float, as ek_filter allows. Added to a number so large that floats there are
 *   integers, so that the lower half of the sum's bits is the result.
 * EK_POWER: multiplier 2^30, so (sum + 2^(s - 1)) >> s with s = shift - 30, and, as nothing may
 *   overflow, ((sum >> (s - 1)) + 1) >> 1.
 * EK_HIGH: 2^(shift - 1) is a multiple of 2^32, so the low half of a product never matters.
 * EK_WIDE: the rest, made positive by 2^62 as there is no arithmetic shift of 64 bits. */
static inline void ek_scale_channel(ek_scale *scale, const ek_requant *q, int32_t channel,
                                    int32_t near) {
    const int32_t shift = q->shift[channel], multiplier = q->multiplier[channel];
    if (near && EK_FMA) {
        scale->kind = EK_NEAR;
        scale->factor = _mm256_set1_ps(ek_near_factor(q, channel, near));
        return;
    }
    scale->multiplier = _mm256_set1_epi32(multiplier);
    if (shift < 33) {
        scale->kind = EK_WIDE;
        scale->shift = _mm256_set1_epi64x(shift);
        scale->round = _mm256_set1_epi64x(((int64_t)1 << 62) + ((int64_t)1 << (shift - 1)));
        scale->offset = _mm256_set1_epi32((int32_t)((int64_t)1 << (62 - shift)));
    } else if (multiplier == 1 << 30) {
        scale->kind = EK_POWER;
        scale->shift = _mm256_set1_epi32(shift - 31);
        scale->round = _mm256_set1_epi32(1);
    } else {
        scale->kind = EK_HIGH;
        scale->shift = _mm256_set1_epi32(shift - 32);
        scale->round = _mm256_set1_epi32(1 << (shift - 33));
    }
}

/* What all channels share. */
static inline ek_scale ek_scale_of(const ek_requant *q) {
    ek_scale scale;
    scale.kind = EK_HIGH;
    scale.multiplier = scale.round = scale.offset = scale.shift = _mm256_setzero_si256();
    scale.limited = q->low > 0 || q->high < 255;
    scale.zero = _mm256_set1_epi16(q->zero);
    scale.low = _mm256_set1_epi8((char)q->low);
    scale.high = _mm256_set1_epi8((char)q->high);
    scale.factor = _mm256_setzero_ps();
    scale.magic = _mm256_set1_ps((float)(EK_MAGIC + q->zero));
    return scale;
}

static inline __m256i ek_near(const ek_scale *s, __m256i x) {
    const __m256 sums = _mm256_cvtepi32_ps(x);
#if EK_FMA
    return _mm256_castps_si256(_mm256_fmadd_ps(sums, s->factor, s->magic));
#else
    return _mm256_castps_si256(_mm256_mul_ps(sums, s->factor)); /* never asked for */
#endif
}
static inline __m256i ek_power(const ek_scale *s, __m256i x) {
    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_srav_epi32(x, s->shift), s->round), 1);
}
static inline __m256i ek_high(const ek_scale *s, __m256i x) {
    const __m256i even = _mm256_mul_epi32(x, s->multiplier);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(x, 32), s->multiplier);
    const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    return _mm256_srav_epi32(_mm256_add_epi32(high, s->round), s->shift);
}
static inline __m256i ek_wide_half(const ek_scale *s, __m256i x) {
    const __m256i product = _mm256_mul_epi32(x, s->multiplier);
    return _mm256_srlv_epi64(_mm256_add_epi64(product, s->round), s->shift);
}
static inline __m256i ek_wide(const ek_scale *s, __m256i x) {
    const __m256i even = ek_wide_half(s, x), odd = ek_wide_half(s, _mm256_srli_epi64(x, 32));
    const __m256i both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    return _mm256_sub_epi32(both, s->offset);
}

static inline __m256i ek_rescaled(const ek_scale *s, __m256i sums) {
    if (s->kind == EK_NEAR) return ek_near(s, sums);
    if (s->kind == EK_HIGH) return ek_high(s, sums);
    return s->kind == EK_POWER ? ek_power(s, sums) : ek_wide(s, sums);
}

/* To bytes, in the order of the pixels. */
EK_INLINE __m256i ek_narrow(ek_block x, __m256i zero) {
    const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(x.a, x.b), zero);
    const __m256i last = _mm256_adds_epi16(_mm256_packs_epi32(x.c, x.d), zero);
    return _mm256_packus_epi16(first, last);
}

/* The same of EK_NEAR: lower halves to bytes, beside upper ones, which are left out. */
EK_INLINE __m256i ek_near_narrow(ek_block x) {
    const __m256i lower = _mm256_set1_epi16(255);
    const __m256i first = _mm256_and_si256(_mm256_packus_epi16(x.a, x.b), lower);
    const __m256i last = _mm256_and_si256(_mm256_packus_epi16(x.c, x.d), lower);
    return _mm256_packus_epi16(first, last);
}

EK_INLINE __m256i ek_limited(__m256i bytes, __m256i low, __m256i high) {
    return _mm256_min_epu8(_mm256_max_epu8(bytes, low), high);
}

EK_INLINE __m256i ek_narrowed(const ek_scale *s, ek_block x) {
    const __m256i bytes = s->kind == EK_NEAR ? ek_near_narrow(x) : ek_narrow(x, s->zero);
    return s->limited ? ek_limited(bytes, s->low, s->high) : bytes;
}

/* One branch for a block: by ek_rescaled, one for each of the four, gcc 12 takes twice as long. */
EK_INLINE __m256i ek_scaled_block(const ek_scale *s, ek_block x) {
    if (s->kind == EK_NEAR) {
        x.a = ek_near(s, x.a), x.b = ek_near(s, x.b);
        x.c = ek_near(s, x.c), x.d = ek_near(s, x.d);
    } else if (s->kind == EK_HIGH) {
        x.a = ek_high(s, x.a), x.b = ek_high(s, x.b);
        x.c = ek_high(s, x.c), x.d = ek_high(s, x.d);
    } else if (s->kind == EK_POWER) {
        x.a = ek_power(s, x.a), x.b = ek_power(s, x.b);
        x.c = ek_power(s, x.c), x.d = ek_power(s, x.d);
    } else {
        x.a = ek_wide(s, x.a), x.b = ek_wide(s, x.b);
        x.c = ek_wide(s, x.c), x.d = ek_wide(s, x.d);
    }
    return ek_narrowed(s, x);
}

EK_INLINE __m128i ek_scaled_sixteen(const ek_scale *s, ek_sixteen sums) {
    const __m256i x = ek_rescaled(s, sums.a), y = ek_rescaled(s, sums.b);
    const ek_block quarters = {x, _mm256_castsi128_si256(_mm256_extracti128_si256(x, 1)),
                               y, _mm256_castsi128_si256(_mm256_extracti128_si256(y, 1))};
    return _mm256_castsi256_si128(ek_narrowed(s, quarters));
}

EK_INLINE __m128i ek_scaled_eight(const ek_scale *s, ek_eight sums) {
    const ek_sixteen twice = {sums, sums};
    return ek_scaled_sixteen(s, twice);
}

/* What ek_sum says. A scale is high * 2^10 + low. */
typedef struct {
    int narrow, limited;
    __m256i scale, scale_high, offset, shift, zero, low, high;
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
    a.shift = _mm256_set1_epi32(sum->shift);
    a.limited = sum->low > 0 || sum->high < 255;
    a.zero = _mm256_set1_epi16(sum->zero);
    a.low = _mm256_set1_epi8((char)sum->low);
    a.high = _mm256_set1_epi8((char)sum->high);
    return a;
}

static inline __m256i ek_weighed(const ek_adder *a, __m256i pairs) {
    __m256i total = a->offset;
    ek_add_words(&total, pairs, a->scale);
    if (!a->narrow) {
        const __m256i high = _mm256_madd_epi16(pairs, a->scale_high);
        total = _mm256_add_epi32(total, _mm256_slli_epi32(high, 10));
    }
    return _mm256_srav_epi32(total, a->shift);
}

EK_INLINE __m256i ek_added(const ek_adder *adder, __m256i x, __m256i y) {
    const __m256i none = _mm256_setzero_si256();
    const __m256i first = _mm256_unpacklo_epi8(x, y), last = _mm256_unpackhi_epi8(x, y);
    const ek_block sums = {ek_weighed(adder, _mm256_unpacklo_epi8(first, none)),
                           ek_weighed(adder, _mm256_unpackhi_epi8(first, none)),
                           ek_weighed(adder, _mm256_unpacklo_epi8(last, none)),
                           ek_weighed(adder, _mm256_unpackhi_epi8(last, none))};
    const __m256i bytes = ek_narrow(sums, adder->zero);
    return adder->limited ? ek_limited(bytes, adder->low, adder->high) : bytes;
}

static inline __m128i ek_added_half(const ek_adder *adder, __m128i x, __m128i y) {
    return _mm256_castsi256_si128(
        ek_added(adder, _mm256_castsi128_si256(x), _mm256_castsi128_si256(y)));
}

/* Sparse convolutions */

/* The bytes of four taps interleave to [a b c d] per pixel; that stays within halves of 128 bits,
 * and the packing at the end undoes it. */
EK_INLINE void ek_quad_block(ek_block *sums, const uint8_t *p, const ek_quad *quad) {
    const __m256i w = _mm256_set1_epi32(ek_word(quad->weight));
    const __m256i a = ek_load32(p + quad->at[0]), b = ek_load32(p + quad->at[1]);
    const __m256i c = ek_load32(p + quad->at[2]), d = ek_load32(p + quad->at[3]);
    const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
    const __m256i AB = _mm256_unpackhi_epi8(a, b), CD = _mm256_unpackhi_epi8(c, d);
    ek_add_bytes(&sums->a, _mm256_unpacklo_epi16(ab, cd), w);
    ek_add_bytes(&sums->b, _mm256_unpackhi_epi16(ab, cd), w);
    ek_add_bytes(&sums->c, _mm256_unpacklo_epi16(AB, CD), w);
    ek_add_bytes(&sums->d, _mm256_unpackhi_epi16(AB, CD), w);
}

EK_INLINE void ek_pair_block(ek_block *sums, const uint8_t *p, const ek_pair *pair) {
    const __m256i none = _mm256_setzero_si256(), w = _mm256_set1_epi32(ek_word(pair->weight));
    const __m256i a = ek_load32(p + pair->at[0]), b = ek_load32(p + pair->at[1]);
    const __m256i ab = _mm256_unpacklo_epi8(a, b), AB = _mm256_unpackhi_epi8(a, b);
    ek_add_words(&sums->a, _mm256_unpacklo_epi8(ab, none), w);
    ek_add_words(&sums->b, _mm256_unpackhi_epi8(ab, none), w);
    ek_add_words(&sums->c, _mm256_unpacklo_epi8(AB, none), w);
    ek_add_words(&sums->d, _mm256_unpackhi_epi8(AB, none), w);
}

static inline void ek_quad_eight(ek_eight *sums, const uint8_t *p, const ek_quad *quad) {
    const __m128i ab = _mm_unpacklo_epi8(ek_load8(p + quad->at[0]), ek_load8(p + quad->at[1]));
    const __m128i cd = _mm_unpacklo_epi8(ek_load8(p + quad->at[2]), ek_load8(p + quad->at[3]));
    const __m256i abcd = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
    ek_add_bytes(sums, abcd, _mm256_set1_epi32(ek_word(quad->weight)));
}

static inline void ek_pair_eight(ek_eight *sums, const uint8_t *p, const ek_pair *pair) {
    const __m128i ab = _mm_unpacklo_epi8(ek_load8(p + pair->at[0]), ek_load8(p + pair->at[1]));
    ek_add_words(sums, _mm256_cvtepu8_epi16(ab), _mm256_set1_epi32(ek_word(pair->weight)));
}

#ifdef EK_VNNI
static inline void ek_quad_run(ek_block *sums, const uint8_t *p, const ek_quad *quad,
                               const ek_quad *end) {
    for (; quad != end; quad++) ek_quad_block(sums, p, quad);
}
#else
/* Small weights: quads from `quad` to `end` are summed in int16 before they are widened. */
static inline void ek_quad_run(ek_block *sums, const uint8_t *p, const ek_quad *quad,
                               const ek_quad *end) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i ab = _mm256_setzero_si256(), cd = ab, AB = ab, CD = ab;
    for (; quad != end; quad++) {
        const __m256i a = ek_load32(p + quad->at[0]), b = ek_load32(p + quad->at[1]);
        const __m256i c = ek_load32(p + quad->at[2]), d = ek_load32(p + quad->at[3]);
        const int32_t four = ek_word(quad->weight);
        const __m256i w = _mm256_set1_epi16((int16_t)four);
        const __m256i W = _mm256_set1_epi16((int16_t)(four >> 16));
        ab = _mm256_add_epi16(ab, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), w));
        AB = _mm256_add_epi16(AB, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), w));
        cd = _mm256_add_epi16(cd, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(c, d), W));
        CD = _mm256_add_epi16(CD, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(c, d), W));
    }
    ek_add_to(&sums->a, _mm256_madd_epi16(_mm256_unpacklo_epi16(ab, cd), ones));
    ek_add_to(&sums->b, _mm256_madd_epi16(_mm256_unpackhi_epi16(ab, cd), ones));
    ek_add_to(&sums->c, _mm256_madd_epi16(_mm256_unpacklo_epi16(AB, CD), ones));
    ek_add_to(&sums->d, _mm256_madd_epi16(_mm256_unpackhi_epi16(AB, CD), ones));
}
#endif

/* Dense convolutions */

#ifdef EK_VNNI

#define EK_DEEP 4 /* taps of a patch */
#define ek_add_patch ek_add_bytes

/* A patch, EK_DEEP taps of 16 pixels: [16 pixels][4] bytes. */
static inline void ek_store_patch(uint8_t *to, const ek_bytes16 *taps) {
    const __m128i ab = _mm_unpacklo_epi8(taps[0], taps[1]), cd = _mm_unpacklo_epi8(taps[2], taps[3]);
    const __m128i AB = _mm_unpackhi_epi8(taps[0], taps[1]), CD = _mm_unpackhi_epi8(taps[2], taps[3]);
    ek_store16(to, _mm_unpacklo_epi16(ab, cd));
    ek_store16(to + 16, _mm_unpackhi_epi16(ab, cd));
    ek_store16(to + 32, _mm_unpacklo_epi16(AB, CD));
    ek_store16(to + 48, _mm_unpackhi_epi16(AB, CD));
}

/* Weights of 4 output channels to [patches][4][EK_DEEP]. */
static inline void ek_unpack(const int8_t *weights, int32_t pairs, uint8_t *to, int32_t *bias) {
    const uint8_t *p = (const uint8_t *)weights;
    (void)bias;
    for (int32_t k = 0; k < pairs; k += 2, p += 16, to += 16) {
        const __m128i next = k + 1 < pairs ? ek_load8(p + 8) : _mm_setzero_si128();
        ek_store16(to, _mm_unpacklo_epi16(ek_load8(p), next));
    }
}

#else

#define EK_DEEP 2
#define ek_add_patch ek_add_words

/* [16 pixels][2] int16. */
static inline void ek_store_patch(uint8_t *to, const ek_bytes16 *taps) {
    ek_store32(to, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(taps[0], taps[1])));
    ek_store32(to + 32, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(taps[0], taps[1])));
}

static inline void ek_unpack(const int8_t *weights, int32_t pairs, uint8_t *to, int32_t *bias) {
    (void)bias;
    for (int32_t k = 0; k < pairs; k++, weights += 8, to += 16)
        ek_store16(to, _mm_cvtepi8_epi16(ek_load8((const uint8_t *)weights)));
}

#endif

/* 4 output channels of 16 pixels. */
static inline void ek_tile(const uint8_t *weights, const uint8_t *patches, int32_t count,
                           const int32_t *bias, ek_sixteen *out) {
    __m256i s00 = _mm256_set1_epi32(bias[0]), s01 = s00, s10 = _mm256_set1_epi32(bias[1]);
    __m256i s11 = s10, s20 = _mm256_set1_epi32(bias[2]), s21 = s20;
    __m256i s30 = _mm256_set1_epi32(bias[3]), s31 = s30;
    for (int32_t k = 0; k < count; k++, weights += 16, patches += 64) {
        const __m256i x = ek_load32(patches), y = ek_load32(patches + 32);
        const __m256i w0 = _mm256_set1_epi32(ek_word(weights));
        const __m256i w1 = _mm256_set1_epi32(ek_word(weights + 4));
        const __m256i w2 = _mm256_set1_epi32(ek_word(weights + 8));
        const __m256i w3 = _mm256_set1_epi32(ek_word(weights + 12));
        ek_add_patch(&s00, x, w0);
        ek_add_patch(&s01, y, w0);
        ek_add_patch(&s10, x, w1);
        ek_add_patch(&s11, y, w1);
        ek_add_patch(&s20, x, w2);
        ek_add_patch(&s21, y, w2);
        ek_add_patch(&s30, x, w3);
        ek_add_patch(&s31, y, w3);
    }
    out[0].a = s00, out[0].b = s01, out[1].a = s10, out[1].b = s11;
    out[2].a = s20, out[2].b = s21, out[3].a = s30, out[3].b = s31;
}

/* Other kernels */

/* Sum of weights[i] * in[i]. */
static inline int32_t ek_dot(const int8_t *weights, const uint8_t *in, int32_t count) {
    __m256i sum = _mm256_setzero_si256();
    int32_t i = 0;
    for (; count - i >= 16; i += 16) {
        const __m256i w = _mm256_cvtepi8_epi16(ek_load16((const uint8_t *)weights + i));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, _mm256_cvtepu8_epi16(ek_load16(in + i))));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
    return _mm_cvtsi128_si32(four) + ek_dot_rest(weights + i, in + i, count - i);
}

/* Sum of bytes. */
static inline int32_t ek_total(const uint8_t *p, int32_t count) {
    const __m128i none = _mm_setzero_si128();
    __m128i sums = none;
    int32_t total = 0, x = 0;
    for (; count - x >= 16; x += 16) sums = _mm_add_epi64(sums, _mm_sad_epu8(ek_load16(p + x), none));
    for (; x < count; x++) total += p[x];
    return total + _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2);
}

/* Eight channels of eight pixels, which are `step` bytes apart, to planes. */
static inline void ek_load_eight(const uint8_t *image, int32_t step, uint8_t *out, int32_t plane) {
    __m128i two[4], four[4];
    for (int32_t i = 0; i < 4; i++, image += 2 * step)
        two[i] = _mm_unpacklo_epi8(ek_load8(image), ek_load8(image + step));
    for (int32_t i = 0; i < 2; i++) {
        four[i] = _mm_unpacklo_epi16(two[2 * i], two[2 * i + 1]);
        four[i + 2] = _mm_unpackhi_epi16(two[2 * i], two[2 * i + 1]);
    }
    for (int32_t i = 0; i < 4; i += 2) {
        const __m128i sign = _mm_set1_epi8(-128);
        const __m128i first = _mm_xor_si128(_mm_unpacklo_epi32(four[i], four[i + 1]), sign);
        const __m128i last = _mm_xor_si128(_mm_unpackhi_epi32(four[i], four[i + 1]), sign);
        uint8_t *to = out + 2 * i * plane;
        ek_store8(to, first), ek_store8(to + plane, _mm_unpackhi_epi64(first, first));
        ek_store8(to + 2 * plane, last);
        ek_store8(to + 3 * plane, _mm_unpackhi_epi64(last, last));
    }
}

/* 16 pixels of 3 channels: byte n of channel c is byte 3 n + c of what is read. */
static inline void ek_load_three(const uint8_t *image, uint8_t *out, int32_t plane) {
    const __m128i flip = _mm_set1_epi8(-128), a = _mm_xor_si128(ek_load16(image), flip);
    const __m128i b = _mm_xor_si128(ek_load16(image + 16), flip);
    const __m128i c = _mm_xor_si128(ek_load16(image + 32), flip);
    for (int channel = 0; channel < 3; channel++) {
        const __m128i third = _mm_setr_epi8(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
        const __m128i at = _mm_add_epi8(third, _mm_set1_epi8((char)channel));
        const __m128i in_b = _mm_sub_epi8(at, _mm_set1_epi8(16));
        const __m128i in_c = _mm_sub_epi8(at, _mm_set1_epi8(32));
        const __m128i past_a = _mm_cmpgt_epi8(at, _mm_set1_epi8(15));
        const __m128i past_b = _mm_cmpgt_epi8(in_b, _mm_set1_epi8(15));
        const __m128i x = _mm_shuffle_epi8(a, _mm_or_si128(at, past_a));
        const __m128i y = _mm_shuffle_epi8(b, _mm_or_si128(in_b, past_b));
        const __m128i z = _mm_shuffle_epi8(c, in_c);
        ek_store16(out + channel * plane, _mm_or_si128(_mm_or_si128(x, y), z));
    }
}

/* 16 pixels each of the even and of the odd columns. */
static inline void ek_halves(const uint8_t *p, uint8_t *even, uint8_t *odd) {
    const __m256i all = ek_load32(p);
    const __m256i first = _mm256_and_si256(all, _mm256_set1_epi16(255));
    const __m256i both = _mm256_packus_epi16(first, _mm256_srli_epi16(all, 8));
    const __m256i sorted = _mm256_permute4x64_epi64(both, 0xD8);
    ek_store16(even, _mm256_castsi256_si128(sorted));
    ek_store16(odd, _mm256_extracti128_si256(sorted, 1));
}

#endif
#endif
