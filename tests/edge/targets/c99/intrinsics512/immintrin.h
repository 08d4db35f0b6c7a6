/* What ek_avx512.h uses of AVX-512, spelled out for processors with AVX2: put before the header that
 * does so for VNNI. Most of it works on halves, as 512 bits are but twice 256 there. */
#ifndef EK_TEST_IMMINTRIN512_H
#define EK_TEST_IMMINTRIN512_H

#include <string.h>

#include_next <immintrin.h>

#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define __AVX512VBMI__ 1
#define _mm256_dpbusd_epi32 _mm256_dpbusd_avx_epi32
#define _mm256_dpwssd_epi32 _mm256_dpwssd_avx_epi32

static inline __m256i in_c_half(__m512i x, int half) {
    __m256i r;
    memcpy(&r, (const char *)&x + half * (int)sizeof r, sizeof r);
    return r;
}
static inline __m512i in_c_whole(__m256i low, __m256i high) {
    __m512i r;
    memcpy(&r, &low, sizeof low);
    memcpy((char *)&r + sizeof low, &high, sizeof high);
    return r;
}
static inline __m512i in_c_load(const void *p) {
    __m512i r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void in_c_store(void *p, __m512i x) { memcpy(p, &x, sizeof x); }
static inline void in_c_store_bytes(void *p, unsigned long long mask, const void *x, int size) {
    for (int i = 0; i < size; i++)
        if (mask >> i & 1) ((char *)p)[i] = ((const char *)x)[i];
}
static inline void in_c_store_64(void *p, unsigned long long mask, __m512i x) {
    in_c_store_bytes(p, mask, &x, 64);
}
static inline void in_c_store_32(void *p, unsigned mask, __m256i x) {
    in_c_store_bytes(p, mask, &x, 32);
}
static inline void in_c_store_16(void *p, unsigned mask, __m128i x) {
    in_c_store_bytes(p, mask, &x, 16);
}
static inline __m128i in_c_quarter(__m512i x, int quarter) {
    __m128i r;
    memcpy(&r, (const char *)&x + quarter * (int)sizeof r, sizeof r);
    return r;
}
static inline __m512i in_c_permuted(__m512i index, __m512i x) {
    unsigned char at[64], from[64], to[64];
    memcpy(at, &index, sizeof at), memcpy(from, &x, sizeof from);
    for (int i = 0; i < 64; i++) to[i] = from[at[i] & 63];
    return in_c_load(to);
}
/* Of 128 bytes, the second 64 for an index from 64 on. */
static inline __m512i in_c_permuted_two(__m512i x, __m512i index, __m512i y) {
    unsigned char at[64], from[128], to[64];
    memcpy(at, &index, sizeof at), memcpy(from, &x, 64), memcpy(from + 64, &y, 64);
    for (int i = 0; i < 64; i++) to[i] = from[at[i] & 127];
    return in_c_load(to);
}
static inline unsigned long long in_c_signs(__m512i x) {
    unsigned long long mask = 0;
    for (int i = 0; i < 64; i++) mask |= (unsigned long long)(((unsigned char *)&x)[i] >> 7) << i;
    return mask;
}
static inline __m512i in_c_blend_bytes(unsigned long long mask, __m512i x, __m512i y) {
    in_c_store_64(&x, mask, y);
    return x;
}
static inline __m512 in_c_floats(__m512i x) {
    __m512 r;
    memcpy(&r, &x, sizeof r);
    return r;
}
static inline __m512i in_c_bits(__m512 x) {
    __m512i r;
    memcpy(&r, &x, sizeof r);
    return r;
}
static inline __m256 in_c_half_floats(__m512 x, int half) {
    return _mm256_castsi256_ps(in_c_half(in_c_bits(x), half));
}
static inline __m512 in_c_whole_floats(__m256 low, __m256 high) {
    return in_c_floats(in_c_whole(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
static inline __m512 in_c_fmadd(__m512 a, __m512 b, __m512 c) {
    __m256 r[2];
    for (int i = 0; i < 2; i++)
        r[i] = _mm256_fmadd_ps(in_c_half_floats(a, i), in_c_half_floats(b, i), in_c_half_floats(c, i));
    return in_c_whole_floats(r[0], r[1]);
}
static inline __m512 in_c_to_floats(__m512i x) {
    return in_c_whole_floats(_mm256_cvtepi32_ps(in_c_half(x, 0)), _mm256_cvtepi32_ps(in_c_half(x, 1)));
}
static inline __m512i in_c_load_first(unsigned long long mask, const void *p) {
    unsigned char r[64] = {0};
    in_c_store_bytes(r, mask, p, 64);
    return in_c_load(r);
}
static inline __m512i in_c_permuted_valid(unsigned long long mask, __m512i x, __m512i index, __m512i y) {
    const __m512i found = in_c_permuted_two(x, index, y);
    return in_c_load_first(mask, &found);
}
static inline __m512i in_c_quarters(__m512i x, __m512i y, int how) {
    char from[2][64], to[64];
    memcpy(from[0], &x, 64), memcpy(from[1], &y, 64);
    for (int i = 0; i < 4; i++) memcpy(to + 16 * i, from[i / 2] + 16 * (how >> 2 * i & 3), 16);
    return in_c_load(to);
}
static inline __m512i in_c_with_half(__m512i x, __m256i y, int half) {
    memcpy((char *)&x + half * (int)sizeof y, &y, sizeof y);
    return x;
}

typedef union {
    __m512d whole;
    __m256d half[2];
    double each[8];
} in_c_doubles;
static inline __m512d in_c_same_doubles(double x) {
    const in_c_doubles r = {.half = {_mm256_set1_pd(x), _mm256_set1_pd(x)}};
    return r.whole;
}
static inline __m512d in_c_of_unsigned(__m256i x) {
    unsigned from[8];
    in_c_doubles r;
    memcpy(from, &x, sizeof from);
    for (int i = 0; i < 8; i++) r.each[i] = from[i];
    return r.whole;
}
static inline __m512d in_c_of_signed(__m256i x) {
    const in_c_doubles r = {.half = {_mm256_cvtepi32_pd(_mm256_castsi256_si128(x)),
                                     _mm256_cvtepi32_pd(_mm256_extracti128_si256(x, 1))}};
    return r.whole;
}
static inline __m256i in_c_cut(__m512d x) {
    const in_c_doubles from = {x};
    return _mm256_set_m128i(_mm256_cvttpd_epi32(from.half[1]), _mm256_cvttpd_epi32(from.half[0]));
}
static inline __m512d in_c_fmadd_doubles(__m512d x, __m512d y, __m512d z) {
    const in_c_doubles a = {x}, b = {y}, c = {z};
    const in_c_doubles r = {.half = {_mm256_fmadd_pd(a.half[0], b.half[0], c.half[0]),
                                     _mm256_fmadd_pd(a.half[1], b.half[1], c.half[1])}};
    return r.whole;
}
#define IN_DOUBLES(name) \
    static inline __m512d in_c_##name(__m512d x, __m512d y) { \
        const in_c_doubles a = {x}, b = {y}; \
        const in_c_doubles r = {.half = {_mm256_##name(a.half[0], b.half[0]), \
                                         _mm256_##name(a.half[1], b.half[1])}}; \
        return r.whole; \
    }
IN_DOUBLES(add_pd)
IN_DOUBLES(mul_pd)
IN_DOUBLES(div_pd)

/* Of bits where the mask has ones those of x, else those of y. */
static inline __m256i in_c_chosen(__m256i mask, __m256i x, __m256i y, int how) {
    if (how != 0xCA) __builtin_trap();
    return _mm256_or_si256(_mm256_and_si256(mask, x), _mm256_andnot_si256(mask, y));
}
static inline __m512i in_c_chosen_both(__m512i mask, __m512i x, __m512i y, int how) {
    return in_c_whole(in_c_chosen(in_c_half(mask, 0), in_c_half(x, 0), in_c_half(y, 0), how),
                      in_c_chosen(in_c_half(mask, 1), in_c_half(x, 1), in_c_half(y, 1), how));
}

#define IN_HALVES(name) \
    static inline __m512i in_c_##name(__m512i a, __m512i b) { \
        return in_c_whole(_mm256_##name(in_c_half(a, 0), in_c_half(b, 0)), \
                          _mm256_##name(in_c_half(a, 1), in_c_half(b, 1))); \
    }
#define SHIFTED_IN_HALVES(name, type) \
    static inline __m512i in_c_##name(__m512i a, type by) { \
        return in_c_whole(_mm256_##name(in_c_half(a, 0), by), _mm256_##name(in_c_half(a, 1), by)); \
    }
IN_HALVES(unpacklo_epi8)
IN_HALVES(unpackhi_epi8)
IN_HALVES(unpacklo_epi16)
IN_HALVES(unpackhi_epi16)
IN_HALVES(packs_epi32)
IN_HALVES(packus_epi16)
IN_HALVES(packus_epi32)
IN_HALVES(sub_epi8)
IN_HALVES(adds_epi16)
IN_HALVES(min_epu8)
IN_HALVES(max_epu8)
IN_HALVES(add_epi32)
IN_HALVES(sub_epi32)
IN_HALVES(add_epi64)
IN_HALVES(mul_epi32)
IN_HALVES(madd_epi16)
IN_HALVES(srav_epi32)
IN_HALVES(srlv_epi64)
IN_HALVES(and_si256)
SHIFTED_IN_HALVES(srai_epi32, int)
SHIFTED_IN_HALVES(srli_epi64, int)
SHIFTED_IN_HALVES(slli_epi32, int)
SHIFTED_IN_HALVES(slli_epi64, int)

static inline __m512i in_c_dpbusd(__m512i sum, __m512i a, __m512i b) {
    return in_c_whole(_mm256_dpbusd_avx_epi32(in_c_half(sum, 0), in_c_half(a, 0), in_c_half(b, 0)),
                      _mm256_dpbusd_avx_epi32(in_c_half(sum, 1), in_c_half(a, 1), in_c_half(b, 1)));
}
static inline __m512i in_c_dpwssd(__m512i sum, __m512i a, __m512i b) {
    return in_c_whole(_mm256_dpwssd_avx_epi32(in_c_half(sum, 0), in_c_half(a, 0), in_c_half(b, 0)),
                      _mm256_dpwssd_avx_epi32(in_c_half(sum, 1), in_c_half(a, 1), in_c_half(b, 1)));
}
/* Of the odd numbers the second operand's. */
static inline __m512i in_c_blend_odd(unsigned mask, __m512i a, __m512i b) {
    if (mask != 0xAAAA) __builtin_trap();
    return in_c_whole(_mm256_blend_epi32(in_c_half(a, 0), in_c_half(b, 0), 0xAA),
                      _mm256_blend_epi32(in_c_half(a, 1), in_c_half(b, 1), 0xAA));
}

#define _mm512_permutex2var_epi8 in_c_permuted_two
#define _mm512_maskz_permutex2var_epi8 in_c_permuted_valid
#define _mm512_maskz_loadu_epi8 in_c_load_first
#define _mm512_shuffle_i32x4 in_c_quarters
#define _mm512_inserti64x4 in_c_with_half
#define _mm512_castsi256_si512(x) in_c_whole(x, x)
#define _mm512_set1_pd in_c_same_doubles
#define _mm512_cvtepu32_pd in_c_of_unsigned
#define _mm512_cvtepi32_pd in_c_of_signed
#define _mm512_cvttpd_epi32 in_c_cut
#define _mm512_fmadd_pd in_c_fmadd_doubles
#define _mm512_add_pd in_c_add_pd
#define _mm512_mul_pd in_c_mul_pd
#define _mm512_div_pd in_c_div_pd
#define _mm512_movepi8_mask in_c_signs
#define _mm512_mask_blend_epi8 in_c_blend_bytes
#define _mm512_loadu_si512 in_c_load
#define _mm512_storeu_si512 in_c_store
#define _mm512_mask_storeu_epi8 in_c_store_64
#define _mm256_mask_storeu_epi8 in_c_store_32
#define _mm_mask_storeu_epi8 in_c_store_16
#define _mm512_castsi512_si128(x) in_c_quarter(x, 0)
#define _mm512_castsi512_si256(x) in_c_half(x, 0)
#define _mm512_castsi512_ps in_c_floats
#define _mm512_castps_si512 in_c_bits
#define _mm512_castps512_ps256(x) in_c_half_floats(x, 0)
#define _mm512_extracti32x4_epi32 in_c_quarter
#define _mm512_extracti64x4_epi64 in_c_half
#define _mm512_permutexvar_epi8 in_c_permuted
#define _mm512_cvtepi32_ps in_c_to_floats
#define _mm512_fmadd_ps in_c_fmadd
#define _mm512_set1_ps(x) in_c_whole_floats(_mm256_set1_ps(x), _mm256_set1_ps(x))
#define _mm256_ternarylogic_epi32 in_c_chosen
#define _mm512_ternarylogic_epi32 in_c_chosen_both
#define _mm512_broadcast_i64x4(x) in_c_whole(x, x)
#define _mm512_set1_epi8(x) in_c_whole(_mm256_set1_epi8(x), _mm256_set1_epi8(x))
#define _mm512_set1_epi16(x) in_c_whole(_mm256_set1_epi16(x), _mm256_set1_epi16(x))
#define _mm512_set1_epi32(x) in_c_whole(_mm256_set1_epi32(x), _mm256_set1_epi32(x))
#define _mm512_setzero_si512() in_c_whole(_mm256_setzero_si256(), _mm256_setzero_si256())
#define _mm512_dpbusd_epi32 in_c_dpbusd
#define _mm512_dpwssd_epi32 in_c_dpwssd
#define _mm512_mask_blend_epi32 in_c_blend_odd
#define _mm512_unpacklo_epi8 in_c_unpacklo_epi8
#define _mm512_unpackhi_epi8 in_c_unpackhi_epi8
#define _mm512_unpacklo_epi16 in_c_unpacklo_epi16
#define _mm512_unpackhi_epi16 in_c_unpackhi_epi16
#define _mm512_packs_epi32 in_c_packs_epi32
#define _mm512_packus_epi16 in_c_packus_epi16
#define _mm512_packus_epi32 in_c_packus_epi32
#define _mm512_sub_epi8 in_c_sub_epi8
#define _mm512_adds_epi16 in_c_adds_epi16
#define _mm512_min_epu8 in_c_min_epu8
#define _mm512_max_epu8 in_c_max_epu8
#define _mm512_add_epi32 in_c_add_epi32
#define _mm512_sub_epi32 in_c_sub_epi32
#define _mm512_add_epi64 in_c_add_epi64
#define _mm512_mul_epi32 in_c_mul_epi32
#define _mm512_madd_epi16 in_c_madd_epi16
#define _mm512_srav_epi32 in_c_srav_epi32
#define _mm512_srlv_epi64 in_c_srlv_epi64
#define _mm512_and_si512 in_c_and_si256
#define _mm512_srai_epi32 in_c_srai_epi32
#define _mm512_srli_epi64 in_c_srli_epi64
#define _mm512_slli_epi32 in_c_slli_epi32
#define _mm512_slli_epi64 in_c_slli_epi64

#endif
