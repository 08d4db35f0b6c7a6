/* Products, sums, differences and quotients of two tensors. */
#include "ek_pair.h"
#include "ek_paired.h"
#include "ek_simd.h"

#if defined(__GNUC__) || defined(__clang__)
#define EK_RESTRICT __restrict
#else
#define EK_RESTRICT
#endif

/* One run of pixels; steps are 0 or 1, and known where this is inlined. */
EK_INLINE void ek_mul_run(const ek_pair_op *whole, const uint8_t *a, int32_t step_a,
                          const uint8_t *b, int32_t step_b, uint8_t *EK_RESTRICT out,
                          int32_t count) {
    const ek_pair_op op = *whole;
    for (int32_t i = 0; i < count; i++) {
        const int32_t product = (a[i * step_a] - op.zero_a) * (b[i * step_b] - op.zero_b);
        out[i] = ek_paired(&op, product * op.factor_a);
    }
}

EK_INLINE void ek_sum_run(const ek_pair_op *whole, const uint8_t *a, int32_t step_a,
                          const uint8_t *b, int32_t step_b, uint8_t *EK_RESTRICT out,
                          int32_t count) {
    const ek_pair_op op = *whole;
    for (int32_t i = 0; i < count; i++) out[i] = ek_sum_of_two(&op, a[i * step_a], b[i * step_b]);
}

static inline int32_t ek_divided_by(const ek_pair_op *op, uint8_t b) {
    const int32_t right = b - op->zero_b;
    return (right < op->factor_b ? op->factor_b : right) << op->shift;
}

#ifdef EK_SIMD

/* floor((sum + 1/2) / divisor) is floor(sum / divisor), and at least 2^-32 away from an integer: a
 * double is a thousand times as fine. */
EK_INLINE void ek_div_run(const ek_pair_op *whole, const uint8_t *a, int32_t step_a,
                          const uint8_t *b, int32_t step_b, uint8_t *EK_RESTRICT out,
                          int32_t count) {
    const ek_pair_op op = *whole;
    const double only = 1.0 / ek_divided_by(&op, *b);
    for (int32_t i = 0; i < count; i++) {
        const int32_t divisor = ek_divided_by(&op, b[i * step_b]);
        const int32_t sum = (a[i * step_a] - op.zero_a) * op.factor_a + (divisor >> 1);
        const double exact = step_b ? (sum + 0.5) / divisor : (sum + 0.5) * only;
        const int32_t quotient = (int32_t)exact, below = quotient > exact;
        out[i] = ek_within(&op, quotient - below + op.zero);
    }
}

#else

EK_INLINE void ek_div_run(const ek_pair_op *whole, const uint8_t *a, int32_t step_a,
                          const uint8_t *b, int32_t step_b, uint8_t *EK_RESTRICT out,
                          int32_t count) {
    const ek_pair_op op = *whole;
    for (int32_t i = 0; i < count; i++) {
        const int32_t divisor = ek_divided_by(&op, b[i * step_b]);
        const int32_t sum = (a[i * step_a] - op.zero_a) * op.factor_a + (divisor >> 1);
        const int32_t quotient = sum / divisor;
        const int32_t below = quotient * divisor > sum; /* C cuts off towards zero */
        out[i] = ek_within(&op, quotient - below + op.zero);
    }
}

#endif

typedef void (*ek_pair_run)(const ek_pair_op *op, const uint8_t *a, int32_t step_a, const uint8_t *b,
                       int32_t step_b, uint8_t *out, int32_t count);

/* A run whose steps are known where they are inlined, as far as vectors need it. */
#define EK_OVER(name, run) \
    static void name(const ek_pair_op *op, const uint8_t *a, int32_t step_a, const uint8_t *b, \
                     int32_t step_b, uint8_t *out, int32_t count) { \
        if (step_a && step_b) \
            run(op, a, 1, b, 1, out, count); \
        else if (step_a) \
            run(op, a, 1, b, 0, out, count); \
        else \
            run(op, a, 0, b, step_b, out, count); \
    }
EK_OVER(ek_mul_over, ek_mul_run)
EK_OVER(ek_sum_over, ek_sum_run)
EK_OVER(ek_div_over, ek_div_run)

/* Whether the pixel below a row's last is its next, or the same, as in the output. */
static int ek_pair_goes_on(const ek_steps *steps, int32_t row) {
    return steps->pixel ? steps->row == row : steps->row == 0;
}

/* Whether a plane's last pixel and the next one's first are as far apart as in the output. */
static int ek_pair_is_whole(const ek_steps *steps, const ek_planes *out) {
    return steps->pixel && steps->row == out->row && steps->plane == out->plane;
}

/* How many pixels of a run to compute: whole vectors, while what is beyond is yet to be written. */
static int32_t ek_pair_length(const ek_planes *rows, int32_t planes_left) {
#ifdef EK_SIMD
    const int32_t up = (rows->width + 31) / 32 * 32;
    if (rows->height == 1 && planes_left * rows->plane >= 32) return up;
#else
    (void)planes_left;
#endif
    return rows->width;
}

static void ek_pairs(ek_pair_run run, const ek_pair_op *op, const uint8_t *a, const uint8_t *b,
                     uint8_t *out) {
    const ek_planes *planes = &op->out;
    ek_planes rows = *planes;
    if (!a) a = op->constant;
    if (!b) b = op->constant;
    if (planes->plane == 1 && planes->lead == 0) { /* a vector is one run */
        run(op, a, op->a.plane, b, op->b.plane, out, planes->channels);
        return;
    }
    if (ek_pair_goes_on(&op->a, planes->row) && ek_pair_goes_on(&op->b, planes->row)) {
        rows.width = (planes->height - 1) * planes->row + planes->width;
        rows.height = 1;
    }
    ek_halo_before(planes, out);
    if (ek_pair_is_whole(&op->a, planes) && ek_pair_is_whole(&op->b, planes)) {
        run(op, a, 1, b, 1, out, (planes->channels - 1) * planes->plane + rows.width);
        rows.height = 0;
    }
    for (int32_t c = 0; c < planes->channels; c++, out += planes->plane) {
        const uint8_t *left = a + c * op->a.plane, *right = b + c * op->b.plane;
        const int32_t length = ek_pair_length(&rows, planes->channels - 1 - c);
        for (int32_t y = 0; y < rows.height; y++)
            run(op, left + y * op->a.row, op->a.pixel, right + y * op->b.row, op->b.pixel,
                out + y * planes->row, length);
        ek_halo_of(planes, out);
    }
}

void ek_mul(const ek_pair_op *op, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    ek_pairs(ek_mul_over, op, a, b, out);
}

void ek_div(const ek_pair_op *op, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    ek_pairs(ek_div_over, op, a, b, out);
}

void ek_sum_of(const ek_pair_op *op, const uint8_t *a, const uint8_t *b, uint8_t *out) {
    ek_pairs(ek_sum_over, op, a, b, out);
}
