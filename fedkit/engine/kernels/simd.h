/* One vector type, `vec`: LANES examples of one pixel of one channel.
 *
 * Everything above this file is written once, in terms of `vec`. A source that includes it
 * defines one of ISA_PLAIN, ISA_AVX2, ISA_AVX512, ISA_NEON first.
 *
 * LANES  examples in a vec
 * SLOTS  pixels a sparse kernel holds in registers at once: enough to hide the latency of an FMA
 * PX, ROWS  the register block of a dense kernel: PX * ROWS sums, PX loads and one broadcast
 */
#ifndef FEDKIT_SIMD_H
#define FEDKIT_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if defined(ISA_AVX512)

#include <immintrin.h>
#define NAME(function) function##_avx512
#define LANES 16
#define SLOTS 8
#define PX 6
#define ROWS 4
typedef __m512 vec;
INLINE vec vec_set1(float x) { return _mm512_set1_ps(x); }
INLINE vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vec_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
/* Return a where x > low and x < high, else 0. */
INLINE vec vec_where_between(vec x, vec low, vec high, vec a) {
    __mmask16 inside = _mm512_cmp_ps_mask(x, low, _CMP_GT_OQ) &
                       _mm512_cmp_ps_mask(x, high, _CMP_LT_OQ);
    return _mm512_maskz_mov_ps(inside, a);
}
/* Return yes where x < limit, else no; no where x is NaN. */
INLINE vec vec_below(vec x, vec limit, vec yes, vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), no, yes);
}
/* Return yes where x equals y, else no; no where one is NaN. */
INLINE vec vec_equal(vec x, vec y, vec yes, vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ), no, yes);
}
/* Return 2^n, given n + ROUNDER with a whole n of -126 to 127. */
INLINE vec vec_power_of_two(vec rounded) {
    const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
#define VEC_WHOLE
typedef __m512i whole;
INLINE whole whole_set1(uint32_t x) { return _mm512_set1_epi32((int)x); }
INLINE whole whole_count(void) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE whole whole_add(whole a, whole b) { return _mm512_add_epi32(a, b); }
INLINE whole whole_mul(whole a, whole b) { return _mm512_mullo_epi32(a, b); }
INLINE whole whole_and(whole a, whole b) { return _mm512_and_si512(a, b); }
INLINE whole whole_or(whole a, whole b) { return _mm512_or_si512(a, b); }
INLINE whole whole_xor(whole a, whole b) { return _mm512_xor_si512(a, b); }
INLINE whole whole_left(whole a, int by) { return _mm512_slli_epi32(a, by); }
INLINE whole whole_right(whole a, int by) { return _mm512_srli_epi32(a, by); }
INLINE whole whole_of(vec a) { return _mm512_cvttps_epi32(a); }
INLINE vec vec_of_whole(whole a) { return _mm512_cvtepi32_ps(a); }
INLINE whole whole_of_bytes(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
INLINE void whole_to_bytes(uint8_t *p, whole a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}
INLINE whole whole_of_words(const uint16_t *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}
INLINE void whole_to_words(uint16_t *p, whole a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(a));
}

#elif defined(ISA_AVX2)

#include <immintrin.h>
#define NAME(function) function##_avx2
#define LANES 8
#define SLOTS 8
#define PX 3
#define ROWS 4
typedef __m256 vec;
INLINE vec vec_set1(float x) { return _mm256_set1_ps(x); }
INLINE vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vec_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec vec_where_between(vec x, vec low, vec high, vec a) {
    vec inside = _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_GT_OQ),
                               _mm256_cmp_ps(x, high, _CMP_LT_OQ));
    return _mm256_and_ps(inside, a);
}
INLINE vec vec_below(vec x, vec limit, vec yes, vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
INLINE vec vec_equal(vec x, vec y, vec yes, vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, y, _CMP_EQ_OQ));
}
INLINE vec vec_power_of_two(vec rounded) {
    const __m256i biased = _mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

#elif defined(ISA_NEON)

#include <arm_neon.h>
#define NAME(function) function##_neon
#define LANES 8
#define SLOTS 8
#define PX 3
#define ROWS 4
typedef struct { float32x4_t lo, hi; } vec;
INLINE vec vec_pair(float32x4_t lo, float32x4_t hi) { vec v = {lo, hi}; return v; }
INLINE vec vec_set1(float x) { return vec_pair(vdupq_n_f32(x), vdupq_n_f32(x)); }
INLINE vec vec_load(const float *p) { return vec_pair(vld1q_f32(p), vld1q_f32(p + 4)); }
INLINE void vec_store(float *p, vec a) { vst1q_f32(p, a.lo); vst1q_f32(p + 4, a.hi); }
INLINE vec vec_add(vec a, vec b) { return vec_pair(vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)); }
INLINE vec vec_sub(vec a, vec b) { return vec_pair(vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)); }
INLINE vec vec_mul(vec a, vec b) { return vec_pair(vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)); }
INLINE vec vec_div(vec a, vec b) { return vec_pair(vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)); }
INLINE vec vec_fma(vec a, vec b, vec c) {
    return vec_pair(vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi));
}
INLINE vec vec_max(vec a, vec b) { return vec_pair(vmaxq_f32(a.lo, b.lo), vmaxq_f32(a.hi, b.hi)); }
INLINE vec vec_min(vec a, vec b) { return vec_pair(vminq_f32(a.lo, b.lo), vminq_f32(a.hi, b.hi)); }
INLINE float32x4_t half_where_between(float32x4_t x, float32x4_t low, float32x4_t high,
                                      float32x4_t a) {
    uint32x4_t inside = vandq_u32(vcgtq_f32(x, low), vcltq_f32(x, high));
    return vreinterpretq_f32_u32(vandq_u32(inside, vreinterpretq_u32_f32(a)));
}
INLINE vec vec_where_between(vec x, vec low, vec high, vec a) {
    return vec_pair(half_where_between(x.lo, low.lo, high.lo, a.lo),
                    half_where_between(x.hi, low.hi, high.hi, a.hi));
}
INLINE vec vec_below(vec x, vec limit, vec yes, vec no) {
    return vec_pair(vbslq_f32(vcltq_f32(x.lo, limit.lo), yes.lo, no.lo),
                    vbslq_f32(vcltq_f32(x.hi, limit.hi), yes.hi, no.hi));
}
INLINE vec vec_equal(vec x, vec y, vec yes, vec no) {
    return vec_pair(vbslq_f32(vceqq_f32(x.lo, y.lo), yes.lo, no.lo),
                    vbslq_f32(vceqq_f32(x.hi, y.hi), yes.hi, no.hi));
}
INLINE float32x4_t half_power_of_two(float32x4_t rounded) {
    const uint32x4_t biased = vaddq_u32(vreinterpretq_u32_f32(rounded), vdupq_n_u32(127));
    return vreinterpretq_f32_u32(vshlq_n_u32(biased, 23));
}
INLINE vec vec_power_of_two(vec rounded) {
    return vec_pair(half_power_of_two(rounded.lo), half_power_of_two(rounded.hi));
}

#else /* plain C99 */

#define NAME(function) function##_plain
/* A trainer for a microcontroller (fedkit/trainer) holds 1, 2, 4 or 8 examples at a time. */
#if defined(FEDKIT_LANES)
#define LANES FEDKIT_LANES
#else
#define LANES 8
#endif
#define SLOTS 8
#define PX 3
#define ROWS 4
typedef struct { float v[LANES]; } vec;
#define VEC_OF(expression) \
    vec r; \
    for (int i = 0; i < LANES; i++) r.v[i] = (expression); \
    return r
INLINE vec vec_set1(float x) { VEC_OF(x); }
INLINE vec vec_load(const float *p) { VEC_OF(p[i]); }
INLINE void vec_store(float *p, vec a) { for (int i = 0; i < LANES; i++) p[i] = a.v[i]; }
INLINE vec vec_add(vec a, vec b) { VEC_OF(a.v[i] + b.v[i]); }
INLINE vec vec_sub(vec a, vec b) { VEC_OF(a.v[i] - b.v[i]); }
INLINE vec vec_mul(vec a, vec b) { VEC_OF(a.v[i] * b.v[i]); }
INLINE vec vec_div(vec a, vec b) { VEC_OF(a.v[i] / b.v[i]); }
INLINE vec vec_fma(vec a, vec b, vec c) { VEC_OF(a.v[i] * b.v[i] + c.v[i]); }
INLINE vec vec_max(vec a, vec b) { VEC_OF(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE vec vec_min(vec a, vec b) { VEC_OF(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE vec vec_where_between(vec x, vec low, vec high, vec a) {
    VEC_OF(x.v[i] > low.v[i] && x.v[i] < high.v[i] ? a.v[i] : 0.0f);
}
INLINE vec vec_below(vec x, vec limit, vec yes, vec no) {
    VEC_OF(x.v[i] < limit.v[i] ? yes.v[i] : no.v[i]);
}
INLINE vec vec_equal(vec x, vec y, vec yes, vec no) {
    VEC_OF(x.v[i] == y.v[i] ? yes.v[i] : no.v[i]);
}
INLINE vec vec_power_of_two(vec rounded) {
    uint32_t bits[LANES];
    memcpy(bits, rounded.v, sizeof bits);
    for (int i = 0; i < LANES; i++) bits[i] = (bits[i] + 127) << 23;
    memcpy(rounded.v, bits, sizeof bits);
    return rounded;
}

#endif

/* `whole` holds LANES whole numbers of 32 bits. As float32 they are less than 2^31, and a float32 is cut
 * off; what is not a number becomes any. */
#if !defined(VEC_WHOLE)
typedef struct { uint32_t v[LANES]; } whole;
#define WHOLE_OF(expression) \
    whole r; \
    for (int i = 0; i < LANES; i++) r.v[i] = (expression); \
    return r
INLINE whole whole_set1(uint32_t x) { WHOLE_OF(x); }
INLINE whole whole_count(void) { WHOLE_OF((uint32_t)i); }
INLINE whole whole_add(whole a, whole b) { WHOLE_OF(a.v[i] + b.v[i]); }
INLINE whole whole_mul(whole a, whole b) { WHOLE_OF(a.v[i] * b.v[i]); }
INLINE whole whole_and(whole a, whole b) { WHOLE_OF(a.v[i] & b.v[i]); }
INLINE whole whole_or(whole a, whole b) { WHOLE_OF(a.v[i] | b.v[i]); }
INLINE whole whole_xor(whole a, whole b) { WHOLE_OF(a.v[i] ^ b.v[i]); }
INLINE whole whole_left(whole a, int by) { WHOLE_OF(a.v[i] << by); }
INLINE whole whole_right(whole a, int by) { WHOLE_OF(a.v[i] >> by); }
INLINE whole whole_of(vec a) {
    float lane[LANES];
    vec_store(lane, a);
    WHOLE_OF(lane[i] == lane[i] ? (uint32_t)(int32_t)lane[i] : 0);
}
INLINE vec vec_of_whole(whole a) {
    float lane[LANES];
    for (int i = 0; i < LANES; i++) lane[i] = (float)(int32_t)a.v[i];
    return vec_load(lane);
}
INLINE whole whole_of_bytes(const uint8_t *p) { WHOLE_OF(p[i]); }
INLINE void whole_to_bytes(uint8_t *p, whole a) {
    for (int i = 0; i < LANES; i++) p[i] = (uint8_t)a.v[i];
}
INLINE whole whole_of_words(const uint16_t *p) { WHOLE_OF(p[i]); }
INLINE void whole_to_words(uint16_t *p, whole a) {
    for (int i = 0; i < LANES; i++) p[i] = (uint16_t)a.v[i];
}
#endif

INLINE vec vec_of_bytes(const uint8_t *p) { return vec_of_whole(whole_of_bytes(p)); }
INLINE void vec_to_bytes(uint8_t *p, vec a) { whole_to_bytes(p, whole_of(a)); }

/* 1.5 * 2^23: a float32 near it is whole, so that adding it rounds, halves to even. */
#define ROUNDER 12582912.0f

INLINE vec vec_zero(void) { return vec_set1(0.0f); }

INLINE float vec_first(vec a) {
    float lane[LANES];
    vec_store(lane, a);
    return lane[0];
}

/* Sum of the lanes, always in this order. */
INLINE float vec_sum(vec a) {
    float lane[LANES];
    vec_store(lane, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

/* Sums of the lanes of four vecs. */
#if defined(ISA_AVX2)
INLINE void vec_sum4(vec a, vec b, vec c, vec d, float *sum) {
    vec pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
#elif defined(ISA_AVX512)
/* Halves of two sums side by side, as vec_sum adds them: first those 8 lanes apart, at last neighbours. */
INLINE __m256 vec_half_sum(vec a) {
    const __m256 upper = _mm512_extractf32x8_ps(a, 1);
    return _mm256_add_ps(_mm512_castps512_ps256(a), upper);
}
INLINE __m256 vec_fold(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
INLINE void vec_sum4(vec a, vec b, vec c, vec d, float *sum) {
    const __m256 ab = vec_fold(vec_half_sum(a), vec_half_sum(b)); /* 4 of a, 4 of b */
    const __m256 cd = vec_fold(vec_half_sum(c), vec_half_sum(d));
    const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                     _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
    const __m256 one = _mm256_add_ps(_mm256_shuffle_ps(two, two, _MM_SHUFFLE(2, 0, 2, 0)),
                                     _mm256_shuffle_ps(two, two, _MM_SHUFFLE(3, 1, 3, 1)));
    const __m128 ac = _mm256_castps256_ps128(one), bd = _mm256_extractf128_ps(one, 1);
    _mm_storeu_ps(sum, _mm_unpacklo_ps(ac, bd));
}
#else
INLINE void vec_sum4(vec a, vec b, vec c, vec d, float *sum) {
    sum[0] = vec_sum(a);
    sum[1] = vec_sum(b);
    sum[2] = vec_sum(c);
    sum[3] = vec_sum(d);
}
#endif

/* The least and the most of the lanes. */
#if defined(ISA_AVX512)
INLINE float vec_least(vec a) { return _mm512_reduce_min_ps(a); }
INLINE float vec_most(vec a) { return _mm512_reduce_max_ps(a); }
#else
INLINE float vec_least(vec a) {
    float lane[LANES];
    vec_store(lane, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i + half] < lane[i] ? lane[i + half] : lane[i];
    return lane[0];
}
INLINE float vec_most(vec a) { return -vec_least(vec_sub(vec_zero(), a)); }
#endif

/* As vec_sum, in float64. */
#if defined(ISA_AVX512)
INLINE double vec_sum_double(vec a) {
    const __m256 low = _mm512_castps512_ps256(a), high = _mm512_extractf32x8_ps(a, 1);
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(low), _mm512_cvtps_pd(high)));
}
#else
INLINE double vec_sum_double(vec a) {
    float lane[LANES];
    double sum[LANES];
    vec_store(lane, a);
    for (int i = 0; i < LANES; i++) sum[i] = lane[i];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}
#endif

/* 1 in the first `valid` lanes, 0 in the others. */
INLINE vec vec_lanes(int valid) {
    float lane[LANES];
    for (int i = 0; i < LANES; i++) lane[i] = i < valid ? 1.0f : 0.0f;
    return vec_load(lane);
}

#endif
