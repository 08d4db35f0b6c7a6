/* AVX-512 spelled out in C, lane by lane, for processors without it: put before the system's
 * header of the same name, it lets avx512.c's code run anywhere on x86-64.
 * Only what simd.h, int_simd.h and int_lanes.h use; an intrinsic that is missing here fails to compile. */
#ifndef FEDKIT_TEST_IMMINTRIN_H
#define FEDKIT_TEST_IMMINTRIN_H

#include <string.h>

#include_next <immintrin.h> /* types, and the narrower instruction sets */

/* Vectors in C may lie in no register. */
#define IN_PLACE(sum)

#define LANES_OF(type, count, expression) \
    type r; \
    for (int i = 0; i < (count); i++) r[i] = (expression); \
    return r
#define LANE_BY_LANE(type, expression) LANES_OF(type, 16, expression)

static inline __m512 in_c_set1_ps(float x) { LANE_BY_LANE(__m512, x); }
static inline __m512 in_c_loadu_ps(const float *p) { LANE_BY_LANE(__m512, p[i]); }
static inline void in_c_storeu_ps(float *p, __m512 a) {
    for (int i = 0; i < 16; i++) p[i] = a[i];
}
static inline __m512 in_c_add_ps(__m512 a, __m512 b) { LANE_BY_LANE(__m512, a[i] + b[i]); }
static inline __m512 in_c_sub_ps(__m512 a, __m512 b) { LANE_BY_LANE(__m512, a[i] - b[i]); }
static inline __m512 in_c_mul_ps(__m512 a, __m512 b) { LANE_BY_LANE(__m512, a[i] * b[i]); }
static inline __m512 in_c_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    LANE_BY_LANE(__m512, a[i] * b[i] + c[i]);
}
/* The second operand where one is NaN. */
static inline __m512 in_c_max_ps(__m512 a, __m512 b) {
    LANE_BY_LANE(__m512, a[i] > b[i] ? a[i] : b[i]);
}
static inline __m512 in_c_min_ps(__m512 a, __m512 b) {
    LANE_BY_LANE(__m512, a[i] < b[i] ? a[i] : b[i]);
}
static inline __m512 in_c_div_ps(__m512 a, __m512 b) { LANE_BY_LANE(__m512, a[i] / b[i]); }
static inline __mmask16 in_c_cmp_ps_mask(__m512 a, __m512 b, int how) {
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) {
        if (how == _CMP_GT_OQ) mask |= (unsigned)(a[i] > b[i]) << i;
        else if (how == _CMP_LT_OQ) mask |= (unsigned)(a[i] < b[i]) << i;
        else if (how == _CMP_EQ_OQ) mask |= (unsigned)(a[i] == b[i]) << i;
        else __builtin_trap();
    }
    return (__mmask16)mask;
}
static inline __m512 in_c_maskz_mov_ps(__mmask16 mask, __m512 a) {
    LANE_BY_LANE(__m512, mask >> i & 1 ? a[i] : 0.0f);
}
static inline __m512 in_c_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b) {
    LANE_BY_LANE(__m512, mask >> i & 1 ? b[i] : a[i]);
}

/* Integers. In each 128 bits, j of 8 shorts: unpacking takes the halves of two operands in turn,
 * packing puts one operand behind the other. */
static inline __m512i in_c_loadu_si512(const void *p) {
    __m512i r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void in_c_storeu_si512(void *p, __m512i a) { memcpy(p, &a, sizeof a); }
static inline __m256i in_c_loadu_si256(const void *p) {
    __m256i r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void in_c_storeu_si256(void *p, __m256i a) { memcpy(p, &a, sizeof a); }
static inline __m512i in_c_setzero_si512(void) {
    __m512i r = {0};
    return r;
}
static inline __v16si in_c_set1(int x) { LANE_BY_LANE(__v16si, x); }
static inline __v16si in_c_add(__v16si a, __v16si b) {
    LANE_BY_LANE(__v16si, (int)((unsigned)a[i] + (unsigned)b[i]));
}
static inline __v16si in_c_sra(__v16si a, unsigned long long by) {
    LANE_BY_LANE(__v16si, a[i] >> (by > 31 ? 31 : by));
}
static inline __v16si in_c_sll(__v16si a, unsigned by) {
    LANE_BY_LANE(__v16si, (int)((unsigned)a[i] << by));
}
static inline __v16si in_c_madd(__v32hi a, __v32hi b) {
    LANE_BY_LANE(__v16si, a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]);
}
static inline __v4di in_c_half(__v8di a, int half) {
    __v4di r;
    memcpy(&r, (const char *)&a + half * (int)sizeof r, sizeof r);
    return r;
}
static inline __v8di in_c_widen(__v8si a) { LANES_OF(__v8di, 8, a[i]); }
static inline long long in_c_total(__v8di a) {
    long long sum = 0;
    for (int i = 0; i < 8; i++) sum += a[i];
    return sum;
}
static inline __v32hi in_c_unpack(__v32hi a, __v32hi b, int half) {
    LANES_OF(__v32hi, 32, (i % 2 ? b : a)[i / 8 * 8 + 4 * half + i % 8 / 2]);
}
static inline short in_c_saturate(int x) {
    return (short)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
}
static inline __v32hi in_c_packs(__v16si a, __v16si b) {
    LANES_OF(__v32hi, 32, in_c_saturate((i % 8 < 4 ? a : b)[i / 8 * 4 + i % 4]));
}

typedef signed char __v32qs __attribute__((vector_size(32)));
static inline __v32hi in_c_set1_short(short x) { LANES_OF(__v32hi, 32, x); }
static inline __v32hi in_c_subs(__v32hi a, __v32hi b) {
    LANES_OF(__v32hi, 32, in_c_saturate(a[i] - b[i]));
}
static inline __v32hi in_c_add_short(__v32hi a, __v32hi b) {
    LANES_OF(__v32hi, 32, (short)(a[i] + b[i]));
}
static inline __v32hi in_c_mul_short(__v32hi a, __v32hi b) {
    LANES_OF(__v32hi, 32, (short)(a[i] * b[i]));
}
static inline __v32hi in_c_min_short(__v32hi a, __v32hi b) {
    LANES_OF(__v32hi, 32, a[i] < b[i] ? a[i] : b[i]);
}
static inline __v32hi in_c_max_short(__v32hi a, __v32hi b) {
    LANES_OF(__v32hi, 32, a[i] > b[i] ? a[i] : b[i]);
}
static inline __mmask32 in_c_most(__v32hi a, __v32hi b) {
    __mmask32 mask = 0;
    for (int i = 0; i < 32; i++) mask |= (__mmask32)(a[i] <= b[i]) << i;
    return mask;
}
static inline __v32hi in_c_where(__mmask32 mask, __v32hi a) {
    LANES_OF(__v32hi, 32, mask >> i & 1 ? a[i] : 0);
}
static inline __v32hi in_c_widen_bytes(__v32qs a) { LANES_OF(__v32hi, 32, a[i]); }
static inline __v32qs in_c_narrow_bytes(__v32hi a) {
    LANES_OF(__v32qs, 32, (signed char)(a[i] > 127 ? 127 : a[i] < -128 ? -128 : a[i]));
}
static inline __v16si in_c_mul_low(__v16si a, __v16si b) {
    LANE_BY_LANE(__v16si, (int)((unsigned)a[i] * (unsigned)b[i]));
}
static inline __v16si in_c_srlv(__v16si a, __v16si by) {
    LANE_BY_LANE(__v16si, (unsigned)by[i] > 31 ? 0 : (int)((unsigned)a[i] >> by[i]));
}
static inline __v16si in_c_srav(__v16si a, __v16si by) {
    LANE_BY_LANE(__v16si, a[i] >> ((unsigned)by[i] > 31 ? 31 : by[i]));
}
static inline __v8di in_c_srlv_long(__v8di a, __v8di by) {
    LANES_OF(__v8di, 8, (long long)((unsigned long long)a[i] >> by[i]));
}
static inline __v8di in_c_set1_long(long long x) { LANES_OF(__v8di, 8, x); }

/* Between numbers of other kinds, and over lanes. */
typedef unsigned char __v16uc __attribute__((vector_size(16)));
typedef unsigned short __v16us __attribute__((vector_size(32)));
static inline __v16si in_c_srl(__v16si a, unsigned by) {
    LANE_BY_LANE(__v16si, (int)((unsigned)a[i] >> by));
}
static inline __m512 in_c_floats(__v16si a) { LANE_BY_LANE(__m512, (float)a[i]); }
static inline __v16si in_c_cut(__m512 a) {
    LANE_BY_LANE(__v16si, a[i] >= -0x1p31f && a[i] < 0x1p31f ? (int)a[i] : -2147483647 - 1);
}
static inline __v16si in_c_of_bytes(__v16uc a) { LANE_BY_LANE(__v16si, a[i]); }
static inline __v16uc in_c_to_bytes(__v16si a) { LANE_BY_LANE(__v16uc, (unsigned char)a[i]); }
static inline __v16si in_c_of_words(__v16us a) { LANE_BY_LANE(__v16si, a[i]); }
static inline __v16us in_c_to_words(__v16si a) { LANE_BY_LANE(__v16us, (unsigned short)a[i]); }
static inline __m256 in_c_half_ps(__m512 a, int half) { LANES_OF(__m256, 8, a[8 * half + i]); }
static inline __m512d in_c_doubles(__m256 a) { LANES_OF(__m512d, 8, a[i]); }
static inline float in_c_reduce(__m512 a, int most) {
    float found = a[0];
    for (int i = 1; i < 16; i++) found = (most ? a[i] > found : a[i] < found) ? a[i] : found;
    return found;
}
static inline double in_c_sum(__m512d a) {
    for (int half = 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}

/* Vectors of 8 floats: halves of either operand, and pairs of lanes within a half. */
static inline float in_c_lane(__m256 a, __m256 b, int half, int lane) {
    return (half & 2 ? b : a)[(half & 1) * 4 + lane];
}
static inline __m256 in_c_permute_halves(__m256 a, __m256 b, int how) {
    LANES_OF(__m256, 8, in_c_lane(a, b, i < 4 ? how & 3 : how >> 4 & 3, i % 4));
}
static inline __m256 in_c_shuffle(__m256 a, __m256 b, int how) {
    LANES_OF(__m256, 8, (i % 4 < 2 ? a : b)[i / 4 * 4 + (how >> 2 * (i % 4) & 3)]);
}
static inline __m128 in_c_quarter(__m256 a, int half) { LANES_OF(__m128, 4, a[4 * half + i]); }

#define SHORTS(function, a, b) ((__m512i)function((__v32hi)(a), (__v32hi)(b)))
#define INTS(function, a, b) ((__m512i)function((__v16si)(a), (__v16si)(b)))
#define _mm512_set1_epi16(x) ((__m512i)in_c_set1_short(x))
#define _mm512_set1_epi64(x) ((__m512i)in_c_set1_long(x))
#define _mm512_subs_epi16(a, b) SHORTS(in_c_subs, a, b)
#define _mm512_add_epi16(a, b) SHORTS(in_c_add_short, a, b)
#define _mm512_mullo_epi16(a, b) SHORTS(in_c_mul_short, a, b)
#define _mm512_min_epi16(a, b) SHORTS(in_c_min_short, a, b)
#define _mm512_max_epi16(a, b) SHORTS(in_c_max_short, a, b)
#define _mm512_cmple_epi16_mask(a, b) in_c_most((__v32hi)(a), (__v32hi)(b))
#define _mm512_maskz_mov_epi16(mask, a) ((__m512i)in_c_where(mask, (__v32hi)(a)))
#define _mm512_cvtepi8_epi16(a) ((__m512i)in_c_widen_bytes((__v32qs)(a)))
#define _mm512_cvtsepi16_epi8(a) ((__m256i)in_c_narrow_bytes((__v32hi)(a)))
#define _mm512_mullo_epi32(a, b) INTS(in_c_mul_low, a, b)
#define _mm512_srlv_epi32(a, by) INTS(in_c_srlv, a, by)
#define _mm512_srav_epi32(a, by) INTS(in_c_srav, a, by)
#define _mm512_srlv_epi64(a, by) ((__m512i)in_c_srlv_long((__v8di)(a), (__v8di)(by)))
#define _mm512_xor_si512(a, b) ((__m512i)((__v16si)(a) ^ (__v16si)(b)))

#define _mm256_add_ps(a, b) ((a) + (b))
#define _mm256_permute2f128_ps in_c_permute_halves
#define _mm256_shuffle_ps in_c_shuffle
#define _mm256_castps256_ps128(a) in_c_quarter(a, 0)
#define _mm256_extractf128_ps in_c_quarter
#define _mm512_or_si512(a, b) ((__m512i)((__v16si)(a) | (__v16si)(b)))
#define _mm512_srli_epi32(a, by) ((__m512i)in_c_srl((__v16si)(a), by))
#define _mm512_setr_epi32(...) ((__m512i)(__v16si){__VA_ARGS__})
#define _mm512_cvtepi32_ps(a) in_c_floats((__v16si)(a))
#define _mm512_cvttps_epi32(a) ((__m512i)in_c_cut(a))
#define _mm512_cvtepu8_epi32(a) ((__m512i)in_c_of_bytes((__v16uc)(a)))
#define _mm512_cvtepi32_epi8(a) ((__m128i)in_c_to_bytes((__v16si)(a)))
#define _mm512_cvtepu16_epi32(a) ((__m512i)in_c_of_words((__v16us)(a)))
#define _mm512_cvtepi32_epi16(a) ((__m256i)in_c_to_words((__v16si)(a)))
#define _mm512_castps512_ps256(a) in_c_half_ps(a, 0)
#define _mm512_extractf32x8_ps in_c_half_ps
#define _mm512_cvtps_pd in_c_doubles
#define _mm512_add_pd(a, b) ((a) + (b))
#define _mm512_reduce_add_pd in_c_sum
#define _mm512_reduce_min_ps(a) in_c_reduce(a, 0)
#define _mm512_reduce_max_ps(a) in_c_reduce(a, 1)

#define _mm512_loadu_si512 in_c_loadu_si512
#define _mm256_loadu_si256 in_c_loadu_si256
#define _mm256_storeu_si256 in_c_storeu_si256
#define _mm512_storeu_si512 in_c_storeu_si512
#define _mm512_setzero_si512 in_c_setzero_si512
#define _mm512_set1_epi32(x) ((__m512i)in_c_set1(x))
#define _mm512_add_epi32(a, b) ((__m512i)in_c_add((__v16si)(a), (__v16si)(b)))
#define _mm512_sra_epi32(a, by) \
    ((__m512i)in_c_sra((__v16si)(a), (unsigned long long)_mm_cvtsi128_si64(by)))
#define _mm512_and_si512(a, b) ((__m512i)((__v16si)(a) & (__v16si)(b)))
#define _mm512_castsi512_si256(a) ((__m256i)in_c_half((__v8di)(a), 0))
#define _mm512_extracti64x4_epi64(a, half) ((__m256i)in_c_half((__v8di)(a), half))
#define _mm512_cvtepi32_epi64(a) ((__m512i)in_c_widen((__v8si)(a)))
#define _mm512_add_epi64(a, b) ((__m512i)((__v8di)(a) + (__v8di)(b)))
#define _mm512_reduce_add_epi64(a) in_c_total((__v8di)(a))
#define _mm512_dpwssd_epi32(s, a, b) \
    ((__m512i)((__v16si)(s) + (__v16si)in_c_madd((__v32hi)(a), (__v32hi)(b))))
#define _mm512_unpacklo_epi16(a, b) ((__m512i)in_c_unpack((__v32hi)(a), (__v32hi)(b), 0))
#define _mm512_unpackhi_epi16(a, b) ((__m512i)in_c_unpack((__v32hi)(a), (__v32hi)(b), 1))
#define _mm512_packs_epi32(a, b) ((__m512i)in_c_packs((__v16si)(a), (__v16si)(b)))

#define _mm512_set1_ps in_c_set1_ps
#define _mm512_loadu_ps in_c_loadu_ps
#define _mm512_storeu_ps in_c_storeu_ps
#define _mm512_add_ps in_c_add_ps
#define _mm512_sub_ps in_c_sub_ps
#define _mm512_mul_ps in_c_mul_ps
#define _mm512_div_ps in_c_div_ps
#define _mm512_fmadd_ps in_c_fmadd_ps
#define _mm512_max_ps in_c_max_ps
#define _mm512_min_ps in_c_min_ps
#define _mm512_cmp_ps_mask in_c_cmp_ps_mask
#define _mm512_maskz_mov_ps in_c_maskz_mov_ps
#define _mm512_mask_blend_ps in_c_mask_blend_ps
#define _mm512_castps_si512(a) ((__m512i)(a))
#define _mm512_castsi512_ps(a) ((__m512)(a))
#define _mm512_slli_epi32(a, by) ((__m512i)in_c_sll((__v16si)(a), by))

#endif
