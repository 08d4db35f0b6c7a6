/* What passes over elements need of integer vectors, beside the products of int_simd.h.
 *
 * An isum of an ipair has its lanes in an order of the instruction set's own; narrowing brings
 * them back. So what meets such an isum must come from a pair too, see `lane_numbers`.
 */
#ifndef FEDKIT_INT_LANES_H
#define FEDKIT_INT_LANES_H

#include "int_simd.h"

#if defined(ISA_AVX512)

INLINE ivec ivec_set1(int16_t x) { return _mm512_set1_epi16(x); }
INLINE ivec ivec_load_codes(const int8_t *p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
/* Saturates. */
INLINE void ivec_store_codes(int8_t *p, ivec a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi16_epi8(a));
}
INLINE ivec ivec_subs(ivec a, ivec b) { return _mm512_subs_epi16(a, b); } /* saturates */
INLINE ivec ivec_add(ivec a, ivec b) { return _mm512_add_epi16(a, b); }
INLINE ivec ivec_mul(ivec a, ivec b) { return _mm512_mullo_epi16(a, b); } /* the low half */
INLINE ivec ivec_min(ivec a, ivec b) { return _mm512_min_epi16(a, b); }
INLINE ivec ivec_max(ivec a, ivec b) { return _mm512_max_epi16(a, b); }
INLINE ivec ivec_and(ivec a, ivec b) { return _mm512_and_si512(a, b); }
/* Return a where low <= x <= high, else 0. */
INLINE ivec ivec_where_within(ivec x, ivec low, ivec high, ivec a) {
    const __mmask32 inside = _mm512_cmple_epi16_mask(low, x) & _mm512_cmple_epi16_mask(x, high);
    return _mm512_maskz_mov_epi16(inside, a);
}

#define ISUM_OF(name, operation) \
    INLINE isum name(isum a, isum b) { \
        isum s = {operation(a.lo, b.lo), operation(a.hi, b.hi)}; \
        return s; \
    }
ISUM_OF(isum_add, _mm512_add_epi32)
ISUM_OF(isum_mul, _mm512_mullo_epi32)
ISUM_OF(isum_and, _mm512_and_si512)
ISUM_OF(isum_xor, _mm512_xor_si512)
/* By a vector of counts: those in a register of their own take two instructions. */
ISUM_OF(isum_right_by, _mm512_srlv_epi32)
ISUM_OF(isum_floor_by, _mm512_srav_epi32)
INLINE isum isum_right(isum a, int by) { return isum_right_by(a, isum_set1(by)); } /* unsigned */
INLINE ivec isum_narrow_floor(isum a, int shift) {
    a = isum_floor_by(a, isum_set1(shift));
    return _mm512_packs_epi32(a.lo, a.hi);
}

typedef __m512i iwide; /* sums of itotals that have no sign */
INLINE iwide iwide_zero(void) { return _mm512_setzero_si512(); }
INLINE void iwide_add(iwide *w, itotal t) {
    const __m512i low = _mm512_and_si512(t, _mm512_set1_epi64(0xffffffff));
    const __m512i high = _mm512_srlv_epi64(t, _mm512_set1_epi64(32));
    *w = _mm512_add_epi64(*w, _mm512_add_epi64(low, high));
}
INLINE int64_t iwide_sum(iwide w) { return _mm512_reduce_add_epi64(w); }

#elif defined(ISA_AVX2)

INLINE ivec ivec_set1(int16_t x) { return _mm256_set1_epi16(x); }
INLINE ivec ivec_load_codes(const int8_t *p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
/* Saturates. */
INLINE void ivec_store_codes(int8_t *p, ivec a) {
    const __m128i low = _mm256_castsi256_si128(a), high = _mm256_extracti128_si256(a, 1);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(low, high));
}
INLINE ivec ivec_subs(ivec a, ivec b) { return _mm256_subs_epi16(a, b); } /* saturates */
INLINE ivec ivec_add(ivec a, ivec b) { return _mm256_add_epi16(a, b); }
INLINE ivec ivec_mul(ivec a, ivec b) { return _mm256_mullo_epi16(a, b); } /* the low half */
INLINE ivec ivec_min(ivec a, ivec b) { return _mm256_min_epi16(a, b); }
INLINE ivec ivec_max(ivec a, ivec b) { return _mm256_max_epi16(a, b); }
INLINE ivec ivec_and(ivec a, ivec b) { return _mm256_and_si256(a, b); }
/* Return a where low <= x <= high, else 0. */
INLINE ivec ivec_where_within(ivec x, ivec low, ivec high, ivec a) {
    const __m256i below = _mm256_cmpgt_epi16(low, x), above = _mm256_cmpgt_epi16(x, high);
    return _mm256_andnot_si256(_mm256_or_si256(below, above), a);
}

#define ISUM_OF(name, operation) \
    INLINE isum name(isum a, isum b) { \
        isum s = {operation(a.lo, b.lo), operation(a.hi, b.hi)}; \
        return s; \
    }
ISUM_OF(isum_add, _mm256_add_epi32)
ISUM_OF(isum_mul, _mm256_mullo_epi32)
ISUM_OF(isum_and, _mm256_and_si256)
ISUM_OF(isum_xor, _mm256_xor_si256)
INLINE isum isum_right(isum a, int by) { /* unsigned */
    isum s = {_mm256_srli_epi32(a.lo, by), _mm256_srli_epi32(a.hi, by)};
    return s;
}
INLINE ivec isum_narrow_floor(isum a, int shift) {
    const __m128i by = _mm_cvtsi32_si128(shift);
    return _mm256_packs_epi32(_mm256_sra_epi32(a.lo, by), _mm256_sra_epi32(a.hi, by));
}

typedef __m256i iwide; /* sums of itotals that have no sign */
INLINE iwide iwide_zero(void) { return _mm256_setzero_si256(); }
INLINE void iwide_add(iwide *w, itotal t) {
    const __m256i low = _mm256_and_si256(t, _mm256_set1_epi64x(0xffffffff));
    *w = _mm256_add_epi64(*w, _mm256_add_epi64(low, _mm256_srli_epi64(t, 32)));
}
INLINE int64_t iwide_sum(iwide w) {
    int64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, w);
    return lane[0] + lane[1] + lane[2] + lane[3];
}

#elif defined(ISA_NEON)

INLINE ivec ivec_set1(int16_t x) { return vdupq_n_s16(x); }
INLINE ivec ivec_load_codes(const int8_t *p) { return vmovl_s8(vld1_s8(p)); }
INLINE void ivec_store_codes(int8_t *p, ivec a) { vst1_s8(p, vqmovn_s16(a)); } /* saturates */
INLINE ivec ivec_subs(ivec a, ivec b) { return vqsubq_s16(a, b); } /* saturates */
INLINE ivec ivec_add(ivec a, ivec b) { return vaddq_s16(a, b); }
INLINE ivec ivec_mul(ivec a, ivec b) { return vmulq_s16(a, b); } /* the low half */
INLINE ivec ivec_min(ivec a, ivec b) { return vminq_s16(a, b); }
INLINE ivec ivec_max(ivec a, ivec b) { return vmaxq_s16(a, b); }
INLINE ivec ivec_and(ivec a, ivec b) { return vandq_s16(a, b); }
/* Return a where low <= x <= high, else 0. */
INLINE ivec ivec_where_within(ivec x, ivec low, ivec high, ivec a) {
    const uint16x8_t inside = vandq_u16(vcleq_s16(low, x), vcleq_s16(x, high));
    return vandq_s16(vreinterpretq_s16_u16(inside), a);
}

#define ISUM_OF(name, operation) \
    INLINE isum name(isum a, isum b) { \
        isum s = {operation(a.lo, b.lo), operation(a.hi, b.hi)}; \
        return s; \
    }
ISUM_OF(isum_add, vaddq_s32)
ISUM_OF(isum_mul, vmulq_s32)
ISUM_OF(isum_and, vandq_s32)
ISUM_OF(isum_xor, veorq_s32)
INLINE int32x4_t half_right(int32x4_t a, int by) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-by)));
}
INLINE isum isum_right(isum a, int by) { /* unsigned */
    isum s = {half_right(a.lo, by), half_right(a.hi, by)};
    return s;
}
INLINE ivec isum_narrow_floor(isum a, int shift) {
    const int32x4_t by = vdupq_n_s32(-shift);
    return vcombine_s16(vqmovn_s32(vshlq_s32(a.lo, by)), vqmovn_s32(vshlq_s32(a.hi, by)));
}

typedef uint64x2_t iwide; /* sums of itotals that have no sign */
INLINE iwide iwide_zero(void) { return vdupq_n_u64(0); }
INLINE void iwide_add(iwide *w, itotal t) { *w = vpadalq_u32(*w, vreinterpretq_u32_s32(t)); }
INLINE int64_t iwide_sum(iwide w) {
    return (int64_t)(vgetq_lane_u64(w, 0) + vgetq_lane_u64(w, 1));
}

#else /* plain C99 */

#define LANES_OF(type, expression) \
    type r; \
    for (int i = 0; i < ILANES; i++) r.v[i] = (expression); \
    return r
INLINE int16_t saturate(int32_t x) {
    return (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
}
INLINE ivec ivec_set1(int16_t x) { LANES_OF(ivec, x); }
INLINE ivec ivec_load_codes(const int8_t *p) { LANES_OF(ivec, p[i]); }
/* Saturates. */
INLINE void ivec_store_codes(int8_t *p, ivec a) {
    for (int i = 0; i < ILANES; i++)
        p[i] = (int8_t)(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}
INLINE ivec ivec_subs(ivec a, ivec b) { LANES_OF(ivec, saturate(a.v[i] - b.v[i])); }
INLINE ivec ivec_add(ivec a, ivec b) { LANES_OF(ivec, (int16_t)(a.v[i] + b.v[i])); }
INLINE ivec ivec_mul(ivec a, ivec b) { LANES_OF(ivec, (int16_t)(a.v[i] * b.v[i])); }
INLINE ivec ivec_min(ivec a, ivec b) { LANES_OF(ivec, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE ivec ivec_max(ivec a, ivec b) { LANES_OF(ivec, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE ivec ivec_and(ivec a, ivec b) { LANES_OF(ivec, a.v[i] & b.v[i]); }
/* Return a where low <= x <= high, else 0. */
INLINE ivec ivec_where_within(ivec x, ivec low, ivec high, ivec a) {
    LANES_OF(ivec, (int16_t)(a.v[i] & -((low.v[i] <= x.v[i]) & (x.v[i] <= high.v[i]))));
}

INLINE isum isum_add(isum a, isum b) {
    LANES_OF(isum, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]));
}
INLINE isum isum_mul(isum a, isum b) {
    LANES_OF(isum, (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i]));
}
INLINE isum isum_and(isum a, isum b) { LANES_OF(isum, a.v[i] & b.v[i]); }
INLINE isum isum_xor(isum a, isum b) { LANES_OF(isum, a.v[i] ^ b.v[i]); }
INLINE isum isum_right(isum a, int by) { /* unsigned */
    LANES_OF(isum, (int32_t)((uint32_t)a.v[i] >> by));
}
INLINE ivec isum_narrow_floor(isum a, int shift) { LANES_OF(ivec, saturate(a.v[i] >> shift)); }

typedef struct { uint64_t v[ILANES]; } iwide; /* sums of squares */
INLINE iwide iwide_zero(void) { LANES_OF(iwide, 0); }
INLINE void iwide_add(iwide *w, itotal t) {
    for (int i = 0; i < ILANES; i++) w->v[i] += (uint32_t)t.v[i];
}
INLINE int64_t iwide_sum(iwide w) {
    uint64_t sum = 0;
    for (int i = 0; i < ILANES; i++) sum += w.v[i];
    return (int64_t)sum;
}
#undef LANES_OF

#endif

/* All bits of the first `valid` lanes. */
INLINE ivec lanes_below(int valid) {
    int16_t lane[ILANES];
    for (int i = 0; i < ILANES; i++) lane[i] = (int16_t)-(i < valid);
    return ivec_load(lane);
}

/* 0, 1, 2, ... in the order of what ipairs sum to. */
INLINE isum lane_numbers(void) {
    const int16_t first[2] = {1, 0};
    int16_t lane[ILANES];
    for (int i = 0; i < ILANES; i++) lane[i] = (int16_t)i;
    const ivec number = ivec_load(lane);
    isum s = isum_set1(0);
    isum_dot(&s, ivec_pair(number, number), first);
    return s;
}

INLINE ivec ivec_sign(ivec x) { return ivec_max(ivec_min(x, ivec_set1(1)), ivec_set1(-1)); }

/* The magnitude, of at most 32767. */
INLINE ivec ivec_size(ivec x) { return ivec_max(x, ivec_subs(ivec_set1(0), x)); }

/* The largest lane. */
INLINE int16_t ivec_most(ivec x) {
    int16_t lane[ILANES], most = INT16_MIN;
    ivec_store(lane, x);
    for (int i = 0; i < ILANES; i++) most = lane[i] > most ? lane[i] : most;
    return most;
}

#endif
