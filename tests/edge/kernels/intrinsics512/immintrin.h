/* What ek_avx512.h uses of AVX-512, spelled out for processors with AVX2: put before the header that
 * does so for VNNI. Most of it works on halves, as 512 bits are but twice 256 there. */
#ifndef EK_TEST_IMMINTRIN512_H
#define EK_TEST_IMMINTRIN512_H

#include <string.h>

#include_next <immintrin.h>

#define __AVX512BW__ 1
#define __AVX512VNNI__ 1

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
static inline void in_c_store_bytes(void *p, unsigned long long mask, __m512i x) {
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) ((char *)p)[i] = ((const char *)&x)[i];
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
IN_HALVES(adds_epi16)
IN_HALVES(min_epu8)
IN_HALVES(max_epu8)
IN_HALVES(add_epi32)
IN_HALVES(sub_epi32)
IN_HALVES(add_epi64)
IN_HALVES(mul_epi32)
IN_HALVES(madd_epi16)
SHIFTED_IN_HALVES(sra_epi32, __m128i)
SHIFTED_IN_HALVES(srl_epi64, __m128i)
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

#define _mm512_loadu_si512 in_c_load
#define _mm512_mask_storeu_epi8 in_c_store_bytes
#define _mm512_broadcast_i64x4(x) in_c_whole(x, x)
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
#define _mm512_adds_epi16 in_c_adds_epi16
#define _mm512_min_epu8 in_c_min_epu8
#define _mm512_max_epu8 in_c_max_epu8
#define _mm512_add_epi32 in_c_add_epi32
#define _mm512_sub_epi32 in_c_sub_epi32
#define _mm512_add_epi64 in_c_add_epi64
#define _mm512_mul_epi32 in_c_mul_epi32
#define _mm512_madd_epi16 in_c_madd_epi16
#define _mm512_sra_epi32 in_c_sra_epi32
#define _mm512_srl_epi64 in_c_srl_epi64
#define _mm512_srai_epi32 in_c_srai_epi32
#define _mm512_srli_epi64 in_c_srli_epi64
#define _mm512_slli_epi32 in_c_slli_epi32
#define _mm512_slli_epi64 in_c_slli_epi64

#endif
