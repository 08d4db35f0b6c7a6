/* AVX-512 spelled out in C, lane by lane, for processors without it: put before the system's
 * header of the same name, it lets avx512.c's code run anywhere on x86-64.
 * Only what simd.h uses; an intrinsic that is missing here fails to compile. */
#ifndef FEDKIT_TEST_IMMINTRIN_H
#define FEDKIT_TEST_IMMINTRIN_H

#include_next <immintrin.h> /* types, and the narrower instruction sets */

#define LANE_BY_LANE(type, expression) \
    type r; \
    for (int i = 0; i < 16; i++) r[i] = (expression); \
    return r

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
static inline __mmask16 in_c_cmp_ps_mask(__m512 a, __m512 b, int how) {
    unsigned mask = 0;
    if (how != _CMP_GT_OQ && how != _CMP_LT_OQ) __builtin_trap();
    for (int i = 0; i < 16; i++)
        mask |= (unsigned)(how == _CMP_GT_OQ ? a[i] > b[i] : a[i] < b[i]) << i;
    return (__mmask16)mask;
}
static inline __m512 in_c_maskz_mov_ps(__mmask16 mask, __m512 a) {
    LANE_BY_LANE(__m512, mask >> i & 1 ? a[i] : 0.0f);
}

#define _mm512_set1_ps in_c_set1_ps
#define _mm512_loadu_ps in_c_loadu_ps
#define _mm512_storeu_ps in_c_storeu_ps
#define _mm512_add_ps in_c_add_ps
#define _mm512_sub_ps in_c_sub_ps
#define _mm512_mul_ps in_c_mul_ps
#define _mm512_fmadd_ps in_c_fmadd_ps
#define _mm512_max_ps in_c_max_ps
#define _mm512_min_ps in_c_min_ps
#define _mm512_cmp_ps_mask in_c_cmp_ps_mask
#define _mm512_maskz_mov_ps in_c_maskz_mov_ps

#endif
