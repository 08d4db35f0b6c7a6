/* Softmax of 16 pixels at once, for compilers that make vectors of loops over them. */
#ifndef EK_SHARES_H
#define EK_SHARES_H

#include "ek_simd.h"
#include "ek_softmax.h"

#ifdef EK_SIMD

#define EK_TOGETHER 16 /* pixels; more may be read */

/* Of each pixel the largest of its channels, and the sum of the powers of what is below it. */
typedef struct {
    uint8_t most[EK_TOGETHER];
    uint32_t sum[EK_TOGETHER];
} ek_sums_of_powers;

/* Channels are `step` bytes apart. Powers are kept, [channels][EK_TOGETHER], where there is room. */
EK_INLINE ek_sums_of_powers ek_sum_powers(const ek_powers *powers, const uint8_t *x, int32_t step,
                                          int32_t channels, uint32_t *kept) {
    ek_sums_of_powers s = {{0}, {0}};
    const uint32_t *entries = powers->entries;
    const uint8_t *p = x;
    for (int32_t c = 0; c < channels; c++, p += step)
        for (int32_t k = 0; k < EK_TOGETHER; k++) s.most[k] = p[k] > s.most[k] ? p[k] : s.most[k];
    for (int32_t c = 0; c < channels; c++, x += step)
        for (int32_t k = 0; k < EK_TOGETHER; k++) {
            const uint32_t power = entries[(uint8_t)(s.most[k] - x[k])];
            s.sum[k] += power;
            if (kept) kept[c * EK_TOGETHER + k] = power;
        }
    return s;
}

/* floor((256 * power + sum / 2) / sum) by a reciprocal: with another half in the dividend a quotient
 * is at least 2^-33 of itself away from an integer, and what is rounded is below 2^-50. */
typedef struct {
    double half[EK_TOGETHER], reciprocal[EK_TOGETHER];
} ek_share;

static inline ek_share ek_share_of(const ek_sums_of_powers *s) {
    ek_share share;
    for (int32_t k = 0; k < EK_TOGETHER; k++) {
        share.half[k] = (s->sum[k] >> 1) + 0.5;
        share.reciprocal[k] = 1.0 / s->sum[k];
    }
    return share;
}

EK_INLINE void ek_put_shares(const ek_share *s, const uint32_t *power, uint8_t *bytes) {
    for (int32_t k = 0; k < EK_TOGETHER; k++) {
        const double quotient = (256.0 * (int32_t)power[k] + s->half[k]) * s->reciprocal[k];
        const int32_t share = (int32_t)quotient;
        bytes[k] = (uint8_t)(share < 255 ? share : 255);
    }
}

#ifdef EK_VBMI /* three bytes of a power are looked up for 64 numbers at once, where a gather takes 16 */

/* The bytes of the powers: those of 64 entries each. */
typedef struct {
    __m512i part[3][4];
} ek_power_bytes;

static inline ek_power_bytes ek_power_bytes_of(const ek_powers *powers) {
    ek_power_bytes bytes;
    for (int32_t i = 0; i < 12; i++) {
        uint8_t part[64];
        for (int32_t k = 0; k < 64; k++)
            part[k] = (uint8_t)(powers->entries[64 * (i % 4) + k] >> 8 * (i / 4));
        bytes.part[i / 4][i % 4] = ek_load64(part);
    }
    return bytes;
}

/* 64 numbers of 32 bits, in the order that interleaving bytes gives. */
EK_INLINE ek_block64 ek_powers_of(const ek_power_bytes *bytes, __m512i below, __mmask64 valid) {
    const __mmask64 upper = _mm512_movepi8_mask(below);
    const __m512i none = _mm512_setzero_si512();
    __m512i found[3];
    for (int32_t i = 0; i < 3; i++) {
        const __m512i *part = bytes->part[i];
        const __m512i low = _mm512_maskz_permutex2var_epi8(valid, part[0], below, part[1]);
        const __m512i high = _mm512_maskz_permutex2var_epi8(valid, part[2], below, part[3]);
        found[i] = _mm512_mask_blend_epi8(upper, low, high);
    }
    const __m512i ab = _mm512_unpacklo_epi8(found[0], found[1]), c = _mm512_unpacklo_epi8(found[2], none);
    const __m512i AB = _mm512_unpackhi_epi8(found[0], found[1]), C = _mm512_unpackhi_epi8(found[2], none);
    const ek_block64 powers = {_mm512_unpacklo_epi16(ab, c), _mm512_unpackhi_epi16(ab, c),
                               _mm512_unpacklo_epi16(AB, C), _mm512_unpackhi_epi16(AB, C)};
    return powers;
}

/* Of the same 4 pixels of each of 4 channels. */
typedef struct {
    __m512d half, reciprocal;
} ek_share64;

static inline ek_share64 ek_share64_of(__m512i sums) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    const __m128i whole = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m512d sum = _mm512_cvtepu32_pd(_mm256_broadcastsi128_si256(whole));
    const __m128i halves = _mm_srli_epi32(whole, 1);
    const __m512d rounds = _mm512_cvtepu32_pd(_mm256_broadcastsi128_si256(halves));
    const ek_share64 share = {_mm512_add_pd(rounds, _mm512_set1_pd(0.5)),
                              _mm512_div_pd(_mm512_set1_pd(1.0), sum)};
    return share;
}

EK_INLINE __m512i ek_shares64(const ek_share64 *share, __m512i powers) {
    const __m512d scale = _mm512_set1_pd(256.0);
    const __m512d a = _mm512_cvtepi32_pd(_mm512_castsi512_si256(powers));
    const __m512d b = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(powers, 1));
    const __m512d first = _mm512_mul_pd(_mm512_fmadd_pd(a, scale, share->half), share->reciprocal);
    const __m512d second = _mm512_mul_pd(_mm512_fmadd_pd(b, scale, share->half), share->reciprocal);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvttpd_epi32(first)),
                              _mm512_cvttpd_epi32(second), 1);
}

/* The first bytes, of which `count` are left. */
static inline __mmask64 ek_valid64(int32_t count) {
    return count >= 64 ? ~(__mmask64)0 : ~(__mmask64)0 >> (64 - count);
}

static inline void ek_softmax_sixteen(const ek_powers *powers, uint8_t *x, int32_t channels,
                                      uint32_t *kept) {
    const ek_power_bytes bytes = ek_power_bytes_of(powers);
    const int32_t count = channels * EK_TOGETHER;
    const __m512i none = _mm512_setzero_si512();
    __m512i most = none;
    ek_block64 sums = {none, none, none, none};
    for (int32_t i = 0; i < count; i += 64)
        most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(ek_valid64(count - i), x + i));
    most = _mm512_max_epu8(most, _mm512_shuffle_i32x4(most, most, 0x4E));
    most = _mm512_max_epu8(most, _mm512_shuffle_i32x4(most, most, 0xB1));
    for (int32_t i = 0; i < count; i += 64) {
        const __mmask64 valid = ek_valid64(count - i);
        const __m512i below = _mm512_sub_epi8(most, _mm512_maskz_loadu_epi8(valid, x + i));
        const ek_block64 power = ek_powers_of(&bytes, below, valid);
        sums.a = _mm512_add_epi32(sums.a, power.a);
        sums.b = _mm512_add_epi32(sums.b, power.b);
        sums.c = _mm512_add_epi32(sums.c, power.c);
        sums.d = _mm512_add_epi32(sums.d, power.d);
        memcpy(kept + i, &power, sizeof power);
    }
    const ek_share64 a = ek_share64_of(sums.a), b = ek_share64_of(sums.b);
    const ek_share64 c = ek_share64_of(sums.c), d = ek_share64_of(sums.d);
    for (int32_t i = 0; i < count; i += 64) {
        ek_block64 power;
        memcpy(&power, kept + i, sizeof power);
        const __m512i ab = _mm512_packus_epi32(ek_shares64(&a, power.a), ek_shares64(&b, power.b));
        const __m512i cd = _mm512_packus_epi32(ek_shares64(&c, power.c), ek_shares64(&d, power.d));
        _mm512_mask_storeu_epi8(x + i, ek_valid64(count - i), _mm512_packus_epi16(ab, cd));
    }
}

#else

static inline void ek_softmax_sixteen(const ek_powers *powers, uint8_t *x, int32_t channels,
                                      uint32_t *kept) {
    const ek_sums_of_powers s = ek_sum_powers(powers, x, EK_TOGETHER, channels, kept);
    const ek_share share = ek_share_of(&s);
    for (int32_t c = 0; c < channels; c++)
        ek_put_shares(&share, kept + c * EK_TOGETHER, x + c * EK_TOGETHER);
}

#endif

#endif
#endif
