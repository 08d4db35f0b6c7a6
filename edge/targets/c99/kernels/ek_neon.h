/* Parts of the kernels for NEON of aarch64, with dot products or without; ek_simd.h lists them. */
#ifndef EK_NEON_H
#define EK_NEON_H

#include "ek_plain.h"

#ifdef EK_NEON
#include <arm_neon.h>

#ifdef __ARM_FEATURE_DOTPROD
#define EK_DOT 1
#endif

/* Bytes less 128 are signed, as products of bytes want both or neither to be. */
#define EK_LESS 128

typedef uint8x16x2_t ek_bytes32;
typedef uint8x16_t ek_bytes16;

static inline ek_bytes32 ek_load32(const uint8_t *p) {
    const ek_bytes32 both = {{vld1q_u8(p), vld1q_u8(p + 16)}};
    return both;
}
static inline void ek_store32(uint8_t *p, ek_bytes32 x) {
    vst1q_u8(p, x.val[0]);
    vst1q_u8(p + 16, x.val[1]);
}
static inline uint8x16_t ek_load16(const uint8_t *p) { return vld1q_u8(p); }
static inline void ek_store16(uint8_t *p, uint8x16_t x) { vst1q_u8(p, x); }
static inline uint8x16_t ek_load8(const uint8_t *p) {
    return vcombine_u8(vld1_u8(p), vdup_n_u8(0));
}
static inline void ek_store8(uint8_t *p, uint8x16_t x) { vst1_u8(p, vget_low_u8(x)); }

/* 16 numbers of 16 bits: bytes from p on, `step` apart, 1 or 2. */
typedef uint16x8x2_t ek_lanes;

static inline ek_lanes ek_lanes_pair(uint16x8_t low, uint16x8_t high) {
    const ek_lanes both = {{low, high}};
    return both;
}
static inline ek_lanes ek_lanes_of(const uint8_t *p, int32_t step) {
    const uint8x16_t low = vld1q_u8(p);
    if (step == 1) return ek_lanes_pair(vmovl_u8(vget_low_u8(low)), vmovl_high_u8(low));
    const uint8x16x2_t halves = vuzpq_u8(low, vld1q_u8(p + 16));
    return ek_lanes_pair(vmovl_u8(vget_low_u8(halves.val[0])), vmovl_high_u8(halves.val[0]));
}
static inline ek_lanes ek_lanes_most(ek_lanes x, ek_lanes y) {
    return ek_lanes_pair(vmaxq_u16(x.val[0], y.val[0]), vmaxq_u16(x.val[1], y.val[1]));
}
static inline ek_lanes ek_lanes_sum(ek_lanes x, ek_lanes y) {
    return ek_lanes_pair(vaddq_u16(x.val[0], y.val[0]), vaddq_u16(x.val[1], y.val[1]));
}
static inline uint16x8_t ek_eight_mean(uint16x8_t x, const ek_divisor *by) {
    const uint16x8_t sum = vaddq_u16(vaddq_u16(x, x), vdupq_n_u16(by->count));
    const uint32x4_t low = vmull_n_u16(vget_low_u16(sum), by->multiplier);
    const uint32x4_t high = vmull_n_u16(vget_high_u16(sum), by->multiplier);
    const uint16x8_t upper = vcombine_u16(vshrn_n_u32(low, 16), vshrn_n_u32(high, 16));
    return vshlq_u16(upper, vdupq_n_s16((int16_t)-by->shift));
}
static inline ek_lanes ek_lanes_mean(ek_lanes x, const ek_divisor *by) {
    return ek_lanes_pair(ek_eight_mean(x.val[0], by), ek_eight_mean(x.val[1], by));
}
static inline ek_bytes16 ek_lanes_bytes(ek_lanes x) {
    return vcombine_u8(vmovn_u16(x.val[0]), vmovn_u16(x.val[1]));
}

static inline ek_bytes32 ek_most(ek_bytes32 x, ek_bytes32 y) {
    const ek_bytes32 both = {{vmaxq_u8(x.val[0], y.val[0]), vmaxq_u8(x.val[1], y.val[1])}};
    return both;
}

/* Of each two bytes, first of x and then of y, the larger. */
static inline ek_bytes32 ek_most_of_two(ek_bytes32 x, ek_bytes32 y) {
    const ek_bytes32 both = {{vpmaxq_u8(x.val[0], x.val[1]), vpmaxq_u8(y.val[0], y.val[1])}};
    return both;
}

/* Byte k of the result is x[index[k]]; indices are below 16. */
static inline ek_bytes16 ek_shuffled(ek_bytes16 x, ek_bytes16 index) {
    return vqtbl1q_u8(x, index);
}

/* Two rows of 8 bytes, four of 4. */
static inline uint8x16_t ek_load_eights(const uint8_t *p, int32_t row) {
    return vcombine_u8(vld1_u8(p), vld1_u8(p + row));
}
static inline uint32_t ek_word(const void *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}
static inline uint8x16_t ek_load_fours(const uint8_t *p, int32_t row) {
    uint32x4_t words = vdupq_n_u32(ek_word(p));
    words = vsetq_lane_u32(ek_word(p + row), words, 1);
    words = vsetq_lane_u32(ek_word(p + 2 * row), words, 2);
    words = vsetq_lane_u32(ek_word(p + 3 * row), words, 3);
    return vreinterpretq_u8_u32(words);
}

static inline int8x16_t ek_less(uint8x16_t x) {
    return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(EK_LESS)));
}

/* Sums of 16 pixels in their order, of 32, and of 8. */
typedef struct {
    int32x4_t a, b, c, d;
} ek_sixteen;
typedef struct {
    ek_sixteen first, last;
} ek_block;
typedef struct {
    int32x4_t a, b;
} ek_eight;

static inline ek_sixteen ek_sixteen_of(int32_t sum) {
    const int32x4_t all = vdupq_n_s32(sum);
    const ek_sixteen sums = {all, all, all, all};
    return sums;
}
static inline ek_block ek_block_of(int32_t sum) {
    const ek_block sums = {ek_sixteen_of(sum), ek_sixteen_of(sum)};
    return sums;
}
static inline ek_eight ek_eight_of(int32_t sum) {
    const ek_eight sums = {vdupq_n_s32(sum), vdupq_n_s32(sum)};
    return sums;
}

/* Requantisation; the first three are of one channel. */
typedef struct {
    int rounds;
    int32x4_t multiplier, shift;
    int16x8_t zero;
    uint8x16_t low, high;
} ek_scale;

/* A product's high half, doubled, is sum * multiplier >> 31. A further shift rounds it; without one
 * the product itself must be rounded. */
static inline void ek_scale_channel(ek_scale *scale, const ek_requant *q, int32_t channel,
                                    int32_t near) {
    (void)near;
    const int32_t shift = q->shift[channel];
    scale->rounds = shift == 31;
    scale->multiplier = vdupq_n_s32(q->multiplier[channel]);
    scale->shift = vdupq_n_s32(31 - shift);
}

/* What all channels share. */
static inline ek_scale ek_scale_of(const ek_requant *q) {
    ek_scale scale;
    scale.rounds = 0;
    scale.multiplier = scale.shift = vdupq_n_s32(0);
    scale.zero = vdupq_n_s16(q->zero);
    scale.low = vdupq_n_u8(q->low);
    scale.high = vdupq_n_u8(q->high);
    return scale;
}

static inline int32x4_t ek_rescaled(const ek_scale *s, int32x4_t x) {
    return vrshlq_s32(vqdmulhq_s32(x, s->multiplier), s->shift);
}

static inline ek_sixteen ek_rescaled_sixteen(const ek_scale *s, ek_sixteen x) {
    if (s->rounds) {
        const ek_sixteen rounded = {
            vqrdmulhq_s32(x.a, s->multiplier), vqrdmulhq_s32(x.b, s->multiplier),
            vqrdmulhq_s32(x.c, s->multiplier), vqrdmulhq_s32(x.d, s->multiplier)};
        return rounded;
    }
    const ek_sixteen scaled = {ek_rescaled(s, x.a), ek_rescaled(s, x.b), ek_rescaled(s, x.c),
                               ek_rescaled(s, x.d)};
    return scaled;
}

static inline uint8x8_t ek_narrow_eight(int32x4_t a, int32x4_t b, int16x8_t zero) {
    const int16x8_t words = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
    return vqmovun_s16(vqaddq_s16(words, zero));
}
static inline uint8x16_t ek_narrow(ek_sixteen x, int16x8_t zero, uint8x16_t low, uint8x16_t high) {
    const uint8x16_t bytes =
        vcombine_u8(ek_narrow_eight(x.a, x.b, zero), ek_narrow_eight(x.c, x.d, zero));
    return vminq_u8(vmaxq_u8(bytes, low), high);
}

static inline uint8x16_t ek_scaled_sixteen(const ek_scale *s, ek_sixteen sums) {
    return ek_narrow(ek_rescaled_sixteen(s, sums), s->zero, s->low, s->high);
}
static inline ek_bytes32 ek_scaled_block(const ek_scale *s, ek_block sums) {
    const ek_bytes32 both = {{ek_scaled_sixteen(s, sums.first), ek_scaled_sixteen(s, sums.last)}};
    return both;
}
static inline uint8x16_t ek_scaled_eight(const ek_scale *s, ek_eight sums) {
    const ek_sixteen twice = {sums.a, sums.b, sums.a, sums.b};
    return ek_scaled_sixteen(s, twice);
}

/* What ek_sum says. */
typedef struct {
    int32x4_t scale_a, scale_b, offset, shift;
    int16x8_t zero;
    uint8x16_t low, high;
} ek_adder;

static inline ek_adder ek_adder_of(const ek_sum *sum) {
    ek_adder a;
    a.scale_a = vdupq_n_s32(sum->scale_a);
    a.scale_b = vdupq_n_s32(sum->scale_b);
    a.offset = vdupq_n_s32(sum->offset);
    a.shift = vdupq_n_s32(-sum->shift);
    a.zero = vdupq_n_s16(sum->zero);
    a.low = vdupq_n_u8(sum->low);
    a.high = vdupq_n_u8(sum->high);
    return a;
}

static inline int32x4_t ek_weighed(const ek_adder *adder, uint16x4_t x, uint16x4_t y) {
    const int32x4_t a = vreinterpretq_s32_u32(vmovl_u16(x));
    const int32x4_t b = vreinterpretq_s32_u32(vmovl_u16(y));
    const int32x4_t total = vmlaq_s32(adder->offset, a, adder->scale_a);
    return vshlq_s32(vmlaq_s32(total, b, adder->scale_b), adder->shift);
}

static inline uint8x16_t ek_added_half(const ek_adder *adder, uint8x16_t x, uint8x16_t y) {
    const uint16x8_t a = vmovl_u8(vget_low_u8(x)), A = vmovl_u8(vget_high_u8(x));
    const uint16x8_t b = vmovl_u8(vget_low_u8(y)), B = vmovl_u8(vget_high_u8(y));
    const ek_sixteen sums = {ek_weighed(adder, vget_low_u16(a), vget_low_u16(b)),
                             ek_weighed(adder, vget_high_u16(a), vget_high_u16(b)),
                             ek_weighed(adder, vget_low_u16(A), vget_low_u16(B)),
                             ek_weighed(adder, vget_high_u16(A), vget_high_u16(B))};
    return ek_narrow(sums, adder->zero, adder->low, adder->high);
}

static inline ek_bytes32 ek_added(const ek_adder *adder, ek_bytes32 x, ek_bytes32 y) {
    const ek_bytes32 both = {
        {ek_added_half(adder, x.val[0], y.val[0]), ek_added_half(adder, x.val[1], y.val[1])}};
    return both;
}

/* Sparse convolutions */

/* 16 pixels of two taps times their weights, in int16: 2 * 128 * 127 fits. */
typedef struct {
    int16x8_t first, last;
} ek_words;

static inline ek_words ek_two_taps(const uint8_t *p, const int32_t *at, int8x8_t w, int8x8_t W) {
    const int8x16_t a = ek_less(vld1q_u8(p + at[0])), b = ek_less(vld1q_u8(p + at[1]));
    ek_words words = {vmull_s8(vget_low_s8(a), w), vmull_s8(vget_high_s8(a), w)};
    words.first = vmlal_s8(words.first, vget_low_s8(b), W);
    words.last = vmlal_s8(words.last, vget_high_s8(b), W);
    return words;
}

static inline void ek_add_words(ek_sixteen *sums, ek_words x) {
    sums->a = vaddw_s16(sums->a, vget_low_s16(x.first));
    sums->b = vaddw_s16(sums->b, vget_high_s16(x.first));
    sums->c = vaddw_s16(sums->c, vget_low_s16(x.last));
    sums->d = vaddw_s16(sums->d, vget_high_s16(x.last));
}

static inline void ek_pair_block(ek_block *sums, const uint8_t *p, const ek_pair *pair) {
    const int8x8_t w = vdup_n_s8((int8_t)pair->weight[0]), W = vdup_n_s8((int8_t)pair->weight[1]);
    ek_add_words(&sums->first, ek_two_taps(p, pair->at, w, W));
    ek_add_words(&sums->last, ek_two_taps(p + 16, pair->at, w, W));
}

static inline void ek_pair_eight(ek_eight *sums, const uint8_t *p, const ek_pair *pair) {
    const int8x8_t w = vdup_n_s8((int8_t)pair->weight[0]), W = vdup_n_s8((int8_t)pair->weight[1]);
    const int8x16_t a = ek_less(ek_load8(p + pair->at[0])), b = ek_less(ek_load8(p + pair->at[1]));
    const int16x8_t words = vmlal_s8(vmull_s8(vget_low_s8(a), w), vget_low_s8(b), W);
    sums->a = vaddw_s16(sums->a, vget_low_s16(words));
    sums->b = vaddw_s16(sums->b, vget_high_s16(words));
}

#ifdef EK_DOT

/* [a b c d] of 4 pixels in each. */
typedef struct {
    int8x16_t a, b, c, d;
} ek_taps_of_sixteen;

static inline int8x16_t ek_zip_low(int8x16_t x, int8x16_t y) {
    return vreinterpretq_s8_s16(vzip1q_s16(vreinterpretq_s16_s8(x), vreinterpretq_s16_s8(y)));
}
static inline int8x16_t ek_zip_high(int8x16_t x, int8x16_t y) {
    return vreinterpretq_s8_s16(vzip2q_s16(vreinterpretq_s16_s8(x), vreinterpretq_s16_s8(y)));
}

static inline ek_taps_of_sixteen ek_zip(uint8x16_t t0, uint8x16_t t1, uint8x16_t t2,
                                        uint8x16_t t3) {
    const int8x16_t a = ek_less(t0), b = ek_less(t1), c = ek_less(t2), d = ek_less(t3);
    const int8x16_t ab = vzip1q_s8(a, b), AB = vzip2q_s8(a, b);
    const int8x16_t cd = vzip1q_s8(c, d), CD = vzip2q_s8(c, d);
    const ek_taps_of_sixteen taps = {ek_zip_low(ab, cd), ek_zip_high(ab, cd), ek_zip_low(AB, CD),
                                     ek_zip_high(AB, CD)};
    return taps;
}

static inline int8x16_t ek_weights(const int8_t *four) {
    return vreinterpretq_s8_u32(vdupq_n_u32(ek_word(four)));
}

static inline void ek_quad_sixteen(ek_sixteen *sums, const uint8_t *p, const ek_quad *quad) {
    const ek_taps_of_sixteen x = ek_zip(vld1q_u8(p + quad->at[0]), vld1q_u8(p + quad->at[1]),
                                        vld1q_u8(p + quad->at[2]), vld1q_u8(p + quad->at[3]));
    const int8x16_t w = ek_weights(quad->weight);
    sums->a = vdotq_s32(sums->a, x.a, w);
    sums->b = vdotq_s32(sums->b, x.b, w);
    sums->c = vdotq_s32(sums->c, x.c, w);
    sums->d = vdotq_s32(sums->d, x.d, w);
}

static inline void ek_quad_eight(ek_eight *sums, const uint8_t *p, const ek_quad *quad) {
    const ek_taps_of_sixteen x = ek_zip(ek_load8(p + quad->at[0]), ek_load8(p + quad->at[1]),
                                        ek_load8(p + quad->at[2]), ek_load8(p + quad->at[3]));
    const int8x16_t w = ek_weights(quad->weight);
    sums->a = vdotq_s32(sums->a, x.a, w);
    sums->b = vdotq_s32(sums->b, x.b, w);
}

#else

static inline void ek_quad_sixteen(ek_sixteen *sums, const uint8_t *p, const ek_quad *quad) {
    const int8_t *w = quad->weight;
    ek_add_words(sums, ek_two_taps(p, quad->at, vdup_n_s8(w[0]), vdup_n_s8(w[1])));
    ek_add_words(sums, ek_two_taps(p, quad->at + 2, vdup_n_s8(w[2]), vdup_n_s8(w[3])));
}

static inline void ek_quad_eight(ek_eight *sums, const uint8_t *p, const ek_quad *quad) {
    const int8_t *w = quad->weight;
    const ek_pair first = {{quad->at[0], quad->at[1]}, {w[0], w[1]}};
    const ek_pair last = {{quad->at[2], quad->at[3]}, {w[2], w[3]}};
    ek_pair_eight(sums, p, &first);
    ek_pair_eight(sums, p, &last);
}

#endif

static inline void ek_quad_block(ek_block *sums, const uint8_t *p, const ek_quad *quad) {
    ek_quad_sixteen(&sums->first, p, quad);
    ek_quad_sixteen(&sums->last, p + 16, quad);
}

/* Small weights: quads from `quad` to `end` are summed in int16 before they are widened. */
static inline void ek_run_sixteen(ek_sixteen *sums, const uint8_t *p, const ek_quad *quad,
                                  const ek_quad *end) {
    ek_words ab = {vdupq_n_s16(0), vdupq_n_s16(0)}, cd = ab;
    for (; quad != end; quad++) {
        const int8_t *w = quad->weight;
        const ek_words x = ek_two_taps(p, quad->at, vdup_n_s8(w[0]), vdup_n_s8(w[1]));
        const ek_words y = ek_two_taps(p, quad->at + 2, vdup_n_s8(w[2]), vdup_n_s8(w[3]));
        ab.first = vaddq_s16(ab.first, x.first), ab.last = vaddq_s16(ab.last, x.last);
        cd.first = vaddq_s16(cd.first, y.first), cd.last = vaddq_s16(cd.last, y.last);
    }
    ek_add_words(sums, ab);
    ek_add_words(sums, cd);
}
static inline void ek_quad_run(ek_block *sums, const uint8_t *p, const ek_quad *quad,
                               const ek_quad *end) {
    ek_run_sixteen(&sums->first, p, quad, end);
    ek_run_sixteen(&sums->last, p + 16, quad, end);
}

/* Dense convolutions */

#ifdef EK_DOT

#define EK_DEEP 4 /* taps of a patch */

/* A patch, EK_DEEP taps of 16 pixels: [16 pixels][4] bytes less 128. */
static inline void ek_store_patch(uint8_t *to, const ek_bytes16 *taps) {
    const ek_taps_of_sixteen x = ek_zip(taps[0], taps[1], taps[2], taps[3]);
    vst1q_u8(to, vreinterpretq_u8_s8(x.a));
    vst1q_u8(to + 16, vreinterpretq_u8_s8(x.b));
    vst1q_u8(to + 32, vreinterpretq_u8_s8(x.c));
    vst1q_u8(to + 48, vreinterpretq_u8_s8(x.d));
}

/* Weights of 4 output channels to [patches][4][EK_DEEP]. */
static inline void ek_unpack(const int8_t *weights, int32_t pairs, uint8_t *to, int32_t *bias) {
    const int8x16_t less = vdupq_n_s8(EK_LESS / 2);
    int32x4_t halves = vdupq_n_s32(0);
    for (int32_t k = 0; k < pairs; k += 2, weights += 16, to += 16) {
        const int8x8_t first = vld1_s8(weights);
        const int8x8_t last = k + 1 < pairs ? vld1_s8(weights + 8) : vdup_n_s8(0);
        const int8x16_t all =
            ek_zip_low(vcombine_s8(first, first), vcombine_s8(last, last));
        halves = vdotq_s32(halves, all, less);
        vst1q_u8(to, vreinterpretq_u8_s8(all));
    }
    vst1q_s32(bias, vaddq_s32(vld1q_s32(bias), vaddq_s32(halves, halves)));
}

/* 4 output channels of 16 pixels. */
static inline void ek_tile(const uint8_t *weights, const uint8_t *patches, int32_t count,
                           const int32_t *bias, ek_sixteen *out) {
    ek_sixteen r = ek_sixteen_of(bias[0]), s = ek_sixteen_of(bias[1]);
    ek_sixteen t = ek_sixteen_of(bias[2]), u = ek_sixteen_of(bias[3]);
    for (int32_t k = 0; k < count; k++, weights += 16, patches += 64) {
        const int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(weights));
        const int8x16x4_t x = vld1q_s8_x4((const int8_t *)patches);
#define EK_OUTPUT(sums, lane) \
    sums.a = vdotq_laneq_s32(sums.a, x.val[0], w, lane), \
    sums.b = vdotq_laneq_s32(sums.b, x.val[1], w, lane), \
    sums.c = vdotq_laneq_s32(sums.c, x.val[2], w, lane), \
    sums.d = vdotq_laneq_s32(sums.d, x.val[3], w, lane)
        EK_OUTPUT(r, 0);
        EK_OUTPUT(s, 1);
        EK_OUTPUT(t, 2);
        EK_OUTPUT(u, 3);
#undef EK_OUTPUT
    }
    out[0] = r, out[1] = s, out[2] = t, out[3] = u;
}

#else

#define EK_DEEP 2

/* [2][16 pixels] int16: with products of int16 nothing is taken from the bytes. */
static inline void ek_store_patch(uint8_t *to, const ek_bytes16 *taps) {
    for (int i = 0; i < EK_DEEP; i++, to += 32) {
        vst1q_u8(to, vreinterpretq_u8_u16(vmovl_u8(vget_low_u8(taps[i]))));
        vst1q_u8(to + 16, vreinterpretq_u8_u16(vmovl_u8(vget_high_u8(taps[i]))));
    }
}

static inline void ek_unpack(const int8_t *weights, int32_t pairs, uint8_t *to, int32_t *bias) {
    (void)bias;
    for (int32_t k = 0; k < pairs; k++, weights += 8, to += 16)
        vst1q_u8(to, vreinterpretq_u8_s16(vmovl_s8(vld1_s8(weights))));
}

static inline void ek_tile(const uint8_t *weights, const uint8_t *patches, int32_t count,
                           const int32_t *bias, ek_sixteen *out) {
    ek_sixteen r = ek_sixteen_of(bias[0]), s = ek_sixteen_of(bias[1]);
    ek_sixteen t = ek_sixteen_of(bias[2]), u = ek_sixteen_of(bias[3]);
    for (int32_t k = 0; k < count; k++, weights += 16, patches += 64) {
        const int16x8_t w = vreinterpretq_s16_u8(vld1q_u8(weights));
        const int16x8_t x = vreinterpretq_s16_u8(vld1q_u8(patches));
        const int16x8_t y = vreinterpretq_s16_u8(vld1q_u8(patches + 16));
        const int16x8_t X = vreinterpretq_s16_u8(vld1q_u8(patches + 32));
        const int16x8_t Y = vreinterpretq_s16_u8(vld1q_u8(patches + 48));
#define EK_TAP(sums, x, y, lane) \
    sums.a = vmlal_laneq_s16(sums.a, vget_low_s16(x), w, lane), \
    sums.b = vmlal_high_laneq_s16(sums.b, x, w, lane), \
    sums.c = vmlal_laneq_s16(sums.c, vget_low_s16(y), w, lane), \
    sums.d = vmlal_high_laneq_s16(sums.d, y, w, lane)
        EK_TAP(r, x, y, 0);
        EK_TAP(r, X, Y, 1);
        EK_TAP(s, x, y, 2);
        EK_TAP(s, X, Y, 3);
        EK_TAP(t, x, y, 4);
        EK_TAP(t, X, Y, 5);
        EK_TAP(u, x, y, 6);
        EK_TAP(u, X, Y, 7);
#undef EK_TAP
    }
    out[0] = r, out[1] = s, out[2] = t, out[3] = u;
}

#endif

/* Other kernels */

/* Sum of weights[i] * in[i]. */
static inline int32_t ek_dot(const int8_t *weights, const uint8_t *in, int32_t count) {
    int32x4_t sum = vdupq_n_s32(0);
    int32_t i = 0;
    for (; count - i >= 16; i += 16) {
        const int8x16_t w = vld1q_s8(weights + i);
        const uint8x16_t x = vld1q_u8(in + i);
        const int16x8_t y = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x)));
        const int16x8_t z = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(x)));
        const int16x8_t v = vmovl_s8(vget_low_s8(w)), u = vmovl_s8(vget_high_s8(w));
        sum = vmlal_s16(sum, vget_low_s16(v), vget_low_s16(y));
        sum = vmlal_high_s16(sum, v, y);
        sum = vmlal_s16(sum, vget_low_s16(u), vget_low_s16(z));
        sum = vmlal_high_s16(sum, u, z);
    }
    return vaddvq_s32(sum) + ek_dot_rest(weights + i, in + i, count - i);
}

/* Sum of bytes. */
static inline int32_t ek_total(const uint8_t *p, int32_t count) {
    int32_t total = 0, x = 0;
    for (; count - x >= 16; x += 16) total += vaddlvq_u8(vld1q_u8(p + x));
    for (; x < count; x++) total += p[x];
    return total;
}

/* Eight channels of eight pixels, which are `step` bytes apart, to planes. */
static inline void ek_load_eight(const uint8_t *image, int32_t step, uint8_t *out, int32_t plane) {
    uint16x8_t two[4];
    uint32x4_t four[4];
    for (int32_t i = 0; i < 4; i++, image += 2 * step)
        two[i] = vreinterpretq_u16_u8(vzip1q_u8(ek_load8(image), ek_load8(image + step)));
    for (int32_t i = 0; i < 2; i++) {
        four[i] = vreinterpretq_u32_u16(vzip1q_u16(two[2 * i], two[2 * i + 1]));
        four[i + 2] = vreinterpretq_u32_u16(vzip2q_u16(two[2 * i], two[2 * i + 1]));
    }
    for (int32_t i = 0; i < 4; i += 2) {
        const uint8x16_t sign = vdupq_n_u8(128);
        const uint32x4_t low = vzip1q_u32(four[i], four[i + 1]);
        const uint32x4_t high = vzip2q_u32(four[i], four[i + 1]);
        const uint8x16_t first = veorq_u8(vreinterpretq_u8_u32(low), sign);
        const uint8x16_t last = veorq_u8(vreinterpretq_u8_u32(high), sign);
        uint8_t *to = out + 2 * i * plane;
        vst1_u8(to, vget_low_u8(first)), vst1_u8(to + plane, vget_high_u8(first));
        vst1_u8(to + 2 * plane, vget_low_u8(last));
        vst1_u8(to + 3 * plane, vget_high_u8(last));
    }
}

/* 16 pixels of 3 channels. */
static inline void ek_load_three(const uint8_t *image, uint8_t *out, int32_t plane) {
    const uint8x16x3_t pixels = vld3q_u8(image);
    const uint8x16_t flip = vdupq_n_u8(128);
    vst1q_u8(out, veorq_u8(pixels.val[0], flip));
    vst1q_u8(out + plane, veorq_u8(pixels.val[1], flip));
    vst1q_u8(out + 2 * plane, veorq_u8(pixels.val[2], flip));
}

/* 16 pixels each of the even and of the odd columns. */
static inline void ek_halves(const uint8_t *p, uint8_t *even, uint8_t *odd) {
    const uint8x16x2_t both = vld2q_u8(p);
    vst1q_u8(even, both.val[0]);
    vst1q_u8(odd, both.val[1]);
}

#endif
#endif
