/* Integer vectors: `ivec` holds int16, `isum` int32, of ILANES examples each.
 *
 * A product takes two inputs and two weights at once, as processors multiply int16 in pairs: what
 * `ipair` holds of two ivecs is the instruction set's own matter.
 *
 * IROWS  rows of the register block of a dense kernel: IROWS sums of two registers, one ipair
 * ISLOTS pixels a sparse kernel holds at once
 * IN_PLACE  keeps a sum in its register: GCC 12 else adds into another and copies back, half again
 *        as many instructions in the loops that matter
 * IN_REGISTER  likewise of what was loaded, which GCC 12 else stores and loads again
 */
#ifndef FEDKIT_INT_SIMD_H
#define FEDKIT_INT_SIMD_H

#include <string.h>

#include "simd.h"

#define IROWS 6
#if defined(ISA_AVX512)
#define ISLOTS 8
#else
#define ISLOTS 4
#endif

#if !defined(IN_PLACE) && defined(__GNUC__) && defined(ISA_AVX512)
/* Any of 32 registers, where "x" is the first 16. */
#define IN_PLACE(sum) __asm__("" : "+v"(sum))
#define IN_REGISTER(vector) IN_PLACE(vector)
#elif !defined(IN_PLACE) && defined(__GNUC__)
#define IN_PLACE(sum) __asm__("" : "+x"(sum))
#elif !defined(IN_PLACE)
#define IN_PLACE(sum)
#endif
#ifndef IN_REGISTER
#define IN_REGISTER(vector)
#endif

#if defined(ISA_AVX512)

#define ILANES 32
typedef __m512i ivec;
typedef struct { __m512i lo, hi; } ipair, isum;
INLINE ivec ivec_load(const int16_t *p) { return _mm512_loadu_si512(p); }
INLINE void ivec_store(int16_t *p, ivec a) { _mm512_storeu_si512(p, a); }
INLINE ipair ivec_pair(ivec a, ivec b) {
    ipair p = {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)};
    return p;
}
INLINE isum isum_set1(int32_t x) {
    isum s = {_mm512_set1_epi32(x), _mm512_set1_epi32(x)};
    return s;
}
/* [ILANES][2]: a pair for each lane, in their order. */
INLINE ipair ipair_load(const int16_t *p) {
    ipair x = {_mm512_loadu_si512(p), _mm512_loadu_si512(p + ILANES)};
    return x;
}
INLINE void isum_store(int32_t *p, const isum *s) {
    _mm512_storeu_si512(p, s->lo);
    _mm512_storeu_si512(p + ILANES / 2, s->hi);
}
INLINE void isum_dot(isum *s, ipair x, const int16_t *w) {
    int32_t both;
    memcpy(&both, w, sizeof both);
    const __m512i two = _mm512_set1_epi32(both);
    s->lo = _mm512_dpwssd_epi32(s->lo, x.lo, two);
    IN_PLACE(s->lo);
    s->hi = _mm512_dpwssd_epi32(s->hi, x.hi, two);
    IN_PLACE(s->hi);
}
/* Of pairs on both sides. */
INLINE void isum_dot_pairs(isum *s, ipair x, ipair y) {
    s->lo = _mm512_dpwssd_epi32(s->lo, x.lo, y.lo);
    IN_PLACE(s->lo);
    s->hi = _mm512_dpwssd_epi32(s->hi, x.hi, y.hi);
    IN_PLACE(s->hi);
}
/* Shifts are by a vector of counts: those in a register of their own take two instructions. */
INLINE ivec isum_narrow(isum s, int shift) {
    const __m512i half = _mm512_set1_epi32(shift ? 1 << (shift - 1) : 0);
    const __m512i by = _mm512_set1_epi32(shift);
    return _mm512_packs_epi32(_mm512_srav_epi32(_mm512_add_epi32(s.lo, half), by),
                              _mm512_srav_epi32(_mm512_add_epi32(s.hi, half), by));
}
/* Halves to the even neighbour: what is summed again must not lean to one side. */
INLINE ivec isum_narrow_even(isum s, int shift) {
    const __m512i below = _mm512_set1_epi32(shift ? (1 << (shift - 1)) - 1 : 0);
    const __m512i last = _mm512_set1_epi32(shift != 0), by = _mm512_set1_epi32(shift);
    const __m512i lo = _mm512_and_si512(_mm512_srav_epi32(s.lo, by), last);
    const __m512i hi = _mm512_and_si512(_mm512_srav_epi32(s.hi, by), last);
    s.lo = _mm512_add_epi32(s.lo, _mm512_add_epi32(lo, below));
    s.hi = _mm512_add_epi32(s.hi, _mm512_add_epi32(hi, below));
    return _mm512_packs_epi32(_mm512_srav_epi32(s.lo, by), _mm512_srav_epi32(s.hi, by));
}
typedef __m512i itotal; /* sums over pairs of examples */
INLINE itotal itotal_zero(void) { return _mm512_setzero_si512(); }
INLINE void itotal_dot(itotal *t, ivec a, ivec b) {
    *t = _mm512_dpwssd_epi32(*t, a, b);
    IN_PLACE(*t);
}
INLINE int64_t itotal_sum(itotal t) {
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(t));
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(t, 1));
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

#elif defined(ISA_AVX2)

#define ILANES 16
typedef __m256i ivec;
typedef struct { __m256i lo, hi; } ipair, isum;
INLINE ivec ivec_load(const int16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void ivec_store(int16_t *p, ivec a) { _mm256_storeu_si256((__m256i *)p, a); }
INLINE ipair ivec_pair(ivec a, ivec b) {
    ipair p = {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)};
    return p;
}
INLINE isum isum_set1(int32_t x) {
    isum s = {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
    return s;
}
/* [ILANES][2]: a pair for each lane, in their order. */
INLINE ipair ipair_load(const int16_t *p) {
    ipair x = {ivec_load(p), ivec_load(p + ILANES)};
    return x;
}
INLINE void isum_store(int32_t *p, const isum *s) {
    _mm256_storeu_si256((__m256i *)p, s->lo);
    _mm256_storeu_si256((__m256i *)(p + ILANES / 2), s->hi);
}
INLINE void isum_dot(isum *s, ipair x, const int16_t *w) {
    int32_t both;
    memcpy(&both, w, sizeof both);
    const __m256i two = _mm256_set1_epi32(both);
    s->lo = _mm256_add_epi32(s->lo, _mm256_madd_epi16(x.lo, two));
    IN_PLACE(s->lo);
    s->hi = _mm256_add_epi32(s->hi, _mm256_madd_epi16(x.hi, two));
    IN_PLACE(s->hi);
}
/* Of pairs on both sides. */
INLINE void isum_dot_pairs(isum *s, ipair x, ipair y) {
    s->lo = _mm256_add_epi32(s->lo, _mm256_madd_epi16(x.lo, y.lo));
    IN_PLACE(s->lo);
    s->hi = _mm256_add_epi32(s->hi, _mm256_madd_epi16(x.hi, y.hi));
    IN_PLACE(s->hi);
}
/* Unpacking and packing permute lanes alike, so that examples come out in their order. */
INLINE ivec isum_narrow(isum s, int shift) {
    const __m256i half = _mm256_set1_epi32(shift ? 1 << (shift - 1) : 0);
    const __m128i by = _mm_cvtsi32_si128(shift);
    return _mm256_packs_epi32(_mm256_sra_epi32(_mm256_add_epi32(s.lo, half), by),
                              _mm256_sra_epi32(_mm256_add_epi32(s.hi, half), by));
}
INLINE ivec isum_narrow_even(isum s, int shift) {
    const __m256i below = _mm256_set1_epi32(shift ? (1 << (shift - 1)) - 1 : 0);
    const __m256i last = _mm256_set1_epi32(shift != 0);
    const __m128i by = _mm_cvtsi32_si128(shift);
    const __m256i lo = _mm256_and_si256(_mm256_sra_epi32(s.lo, by), last);
    const __m256i hi = _mm256_and_si256(_mm256_sra_epi32(s.hi, by), last);
    s.lo = _mm256_add_epi32(s.lo, _mm256_add_epi32(lo, below));
    s.hi = _mm256_add_epi32(s.hi, _mm256_add_epi32(hi, below));
    return _mm256_packs_epi32(_mm256_sra_epi32(s.lo, by), _mm256_sra_epi32(s.hi, by));
}
typedef __m256i itotal; /* sums over pairs of examples */
INLINE itotal itotal_zero(void) { return _mm256_setzero_si256(); }
INLINE void itotal_dot(itotal *t, ivec a, ivec b) {
    *t = _mm256_add_epi32(*t, _mm256_madd_epi16(a, b));
    IN_PLACE(*t);
}
INLINE int64_t itotal_sum(itotal t) {
    int32_t lane[8];
    int64_t sum = 0;
    _mm256_storeu_si256((__m256i *)lane, t);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

#elif defined(ISA_NEON)

#define ILANES 8
typedef int16x8_t ivec;
typedef struct { int16x8_t a, b; } ipair;
typedef struct { int32x4_t lo, hi; } isum;
INLINE ivec ivec_load(const int16_t *p) { return vld1q_s16(p); }
INLINE void ivec_store(int16_t *p, ivec a) { vst1q_s16(p, a); }
INLINE ipair ivec_pair(ivec a, ivec b) {
    ipair p = {a, b};
    return p;
}
INLINE isum isum_set1(int32_t x) {
    isum s = {vdupq_n_s32(x), vdupq_n_s32(x)};
    return s;
}
/* [ILANES][2]: a pair for each lane, in their order. */
INLINE ipair ipair_load(const int16_t *p) {
    const int16x8x2_t both = vld2q_s16(p);
    ipair x = {both.val[0], both.val[1]};
    return x;
}
INLINE void isum_store(int32_t *p, const isum *s) {
    vst1q_s32(p, s->lo);
    vst1q_s32(p + ILANES / 2, s->hi);
}
INLINE void isum_dot(isum *s, ipair x, const int16_t *w) {
    s->lo = vmlal_n_s16(s->lo, vget_low_s16(x.a), w[0]);
    s->hi = vmlal_n_s16(s->hi, vget_high_s16(x.a), w[0]);
    s->lo = vmlal_n_s16(s->lo, vget_low_s16(x.b), w[1]);
    s->hi = vmlal_n_s16(s->hi, vget_high_s16(x.b), w[1]);
}
/* Of pairs on both sides. */
INLINE void isum_dot_pairs(isum *s, ipair x, ipair y) {
    s->lo = vmlal_s16(s->lo, vget_low_s16(x.a), vget_low_s16(y.a));
    s->hi = vmlal_s16(s->hi, vget_high_s16(x.a), vget_high_s16(y.a));
    s->lo = vmlal_s16(s->lo, vget_low_s16(x.b), vget_low_s16(y.b));
    s->hi = vmlal_s16(s->hi, vget_high_s16(x.b), vget_high_s16(y.b));
}
INLINE ivec isum_narrow(isum s, int shift) {
    const int32x4_t half = vdupq_n_s32(shift ? 1 << (shift - 1) : 0), by = vdupq_n_s32(-shift);
    return vcombine_s16(vqmovn_s32(vshlq_s32(vaddq_s32(s.lo, half), by)),
                        vqmovn_s32(vshlq_s32(vaddq_s32(s.hi, half), by)));
}
INLINE ivec isum_narrow_even(isum s, int shift) {
    const int32x4_t below = vdupq_n_s32(shift ? (1 << (shift - 1)) - 1 : 0);
    const int32x4_t last = vdupq_n_s32(shift != 0), by = vdupq_n_s32(-shift);
    s.lo = vaddq_s32(s.lo, vaddq_s32(vandq_s32(vshlq_s32(s.lo, by), last), below));
    s.hi = vaddq_s32(s.hi, vaddq_s32(vandq_s32(vshlq_s32(s.hi, by), last), below));
    return vcombine_s16(vqmovn_s32(vshlq_s32(s.lo, by)), vqmovn_s32(vshlq_s32(s.hi, by)));
}
typedef int32x4_t itotal;
INLINE itotal itotal_zero(void) { return vdupq_n_s32(0); }
INLINE void itotal_dot(itotal *t, ivec a, ivec b) {
    *t = vmlal_s16(*t, vget_low_s16(a), vget_low_s16(b));
    *t = vmlal_s16(*t, vget_high_s16(a), vget_high_s16(b));
}
INLINE int64_t itotal_sum(itotal t) {
    int32_t lane[4];
    vst1q_s32(lane, t);
    return (int64_t)lane[0] + lane[1] + lane[2] + lane[3];
}

#else /* plain C99 */

#define ILANES 16
typedef struct { int16_t v[ILANES]; } ivec;
typedef struct { ivec a, b; } ipair;
typedef struct { int32_t v[ILANES]; } isum;
INLINE ivec ivec_load(const int16_t *p) {
    ivec r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void ivec_store(int16_t *p, ivec a) { memcpy(p, &a, sizeof a); }
INLINE ipair ivec_pair(ivec a, ivec b) {
    ipair p = {a, b};
    return p;
}
INLINE isum isum_set1(int32_t x) {
    isum s;
    for (int i = 0; i < ILANES; i++) s.v[i] = x;
    return s;
}
/* [ILANES][2]: a pair for each lane, in their order. */
INLINE ipair ipair_load(const int16_t *p) {
    ipair x;
    for (int i = 0; i < ILANES; i++) {
        x.a.v[i] = p[2 * i];
        x.b.v[i] = p[2 * i + 1];
    }
    return x;
}
INLINE void isum_store(int32_t *p, const isum *s) { memcpy(p, s->v, sizeof s->v); }
INLINE void isum_dot(isum *s, ipair x, const int16_t *w) {
    for (int i = 0; i < ILANES; i++) s->v[i] += x.a.v[i] * w[0] + x.b.v[i] * w[1];
}
/* Of pairs on both sides. */
INLINE void isum_dot_pairs(isum *s, ipair x, ipair y) {
    for (int i = 0; i < ILANES; i++)
        s->v[i] += x.a.v[i] * y.a.v[i] + x.b.v[i] * y.b.v[i];
}
INLINE ivec isum_narrow(isum s, int shift) {
    const int32_t half = shift ? 1 << (shift - 1) : 0;
    ivec r;
    for (int i = 0; i < ILANES; i++) {
        int32_t x = (s.v[i] + half) >> shift;
        r.v[i] = (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
    }
    return r;
}
INLINE ivec isum_narrow_even(isum s, int shift) {
    const int32_t below = shift ? (1 << (shift - 1)) - 1 : 0;
    ivec r;
    for (int i = 0; i < ILANES; i++) {
        int32_t x = (s.v[i] + below + ((s.v[i] >> shift) & (shift != 0))) >> shift;
        r.v[i] = (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
    }
    return r;
}
typedef struct { int32_t v[ILANES]; } itotal;
INLINE itotal itotal_zero(void) {
    itotal t;
    memset(&t, 0, sizeof t);
    return t;
}
INLINE void itotal_dot(itotal *t, ivec a, ivec b) {
    for (int i = 0; i < ILANES; i++) t->v[i] += a.v[i] * b.v[i];
}
INLINE int64_t itotal_sum(itotal t) {
    int64_t sum = 0;
    for (int i = 0; i < ILANES; i++) sum += t.v[i];
    return sum;
}

#endif

#endif
