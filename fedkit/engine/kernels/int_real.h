/* Arithmetic of float64 by which constants are chosen: IEEE additions, products, divisions and roots
 * alone, but for what `first_bits` follows. Counterparts of integer/constants.py, to the last bit. */
#ifndef FEDKIT_INT_REAL_H
#define FEDKIT_INT_REAL_H

#include <math.h>
#include <string.h>

#include "exponent.h"
#include "int_tensor.h"

#define CODE_REAL 127.0
#define WIDE 32767
#define ONE (1.0 / 16)
#define ROOM 536870912.0      /* 2^29 */
#define HIGHEST 1073741824.0  /* 2^30 */
#define LEAST 1e-100
#define MULTIPLIER_BITS 15

/* Return f and n with x = f * 2^n and 1/2 <= |f| < 1; what is 0 or not finite stays, with n = 0. */
INLINE double parts_of(double x, int *n) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int whole = (bits >> 52 & 0x7ff) != 0; /* numbers so small have no leading 1 */
    if (!whole) {
        x *= 0x1p54;
        memcpy(&bits, &x, sizeof bits);
    }
    const int exponent = (int)(bits >> 52 & 0x7ff);
    *n = 0;
    if (exponent == 0x7ff || x == 0.0) return x;
    *n = exponent - (whole ? 1022 : 1022 + 54);
    bits = (bits & ~((uint64_t)0x7ff << 52)) | (uint64_t)1022 << 52;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE int exponent_of(double x) {
    int n;
    parts_of(x, &n);
    return n;
}

INLINE double between(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

INLINE double larger(double x, double y) { return x < y ? y : x; }

/* What is not finite becomes the least, as it does in numpy on x86. */
INLINE int32_t to_int32(double x) {
    return x > -2147483649.0 && x < 2147483648.0 ? (int32_t)x : INT32_MIN;
}

INLINE int64_t to_int64(double x) {
    return x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN;
}

/* m with x ~= m * 2^-shift, |m| <= most and 0 <= shift <= most_shift. */
INLINE int32_t multiplier_of(double x, int most_shift, double most, int32_t *shift) {
    *shift = clamp(MULTIPLIER_BITS - exponent_of(x), 0, most_shift);
    const double limit = *shift > 0 ? WIDE : most;
    return to_int32(between(rint(x * power_of_two(*shift)), -limit, limit));
}

/* The least shift after which a rounded number of this magnitude fits int16. */
INLINE int32_t shift_to_fit(double bound) {
    const int n = exponent_of(bound / WIDE) - 1, shift = n > 0 ? n : 0;
    const double one = power_of_two(shift);
    return floor((bound + one / 2) / one) <= WIDE ? shift : shift + 1;
}

/* 40 significant bits, in which functions that machines round apart agree. */
INLINE double first_bits(double x) {
    int n;
    const double whole = rint(parts_of(x, &n) * 0x1p40);
    n -= 40;
    if (n < -1022) return whole * power_of_two(-1022) * power_of_two(n + 1022);
    return whole * power_of_two(n);
}

/* The mean square of max(0, x) for normal x. */
INLINE double rectified(double mean, double deviation) {
    deviation = larger(deviation, 1e-12);
    const double z = mean / deviation;
    const double below = first_bits(0.5 * erfc(-z / 1.4142135623730951));
    const double density = first_bits(exp(-(z * z) / 2)) / 2.5066282746310002;
    return (mean * mean + deviation * deviation) * below + mean * deviation * density;
}

/* numpy's order of a sum: eight sums side by side, of halves where there are more than 128. */
#define PAIRWISE(name, type, VALUE) \
    static double name(const type *v, ptrdiff_t n) { \
        if (n < 8) { \
            double sum = 0.0; \
            for (ptrdiff_t i = 0; i < n; i++) sum += VALUE(v[i]); \
            return sum; \
        } \
        if (n > 128) { \
            const ptrdiff_t half = n / 2 - n / 2 % 8; \
            return name(v, half) + name(v + half, n - half); \
        } \
        double s[8]; \
        for (int k = 0; k < 8; k++) s[k] = VALUE(v[k]); \
        ptrdiff_t i = 8; \
        for (; i + 8 <= n; i += 8) \
            for (int k = 0; k < 8; k++) s[k] += VALUE(v[i + k]); \
        double sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])); \
        for (; i < n; i++) sum += VALUE(v[i]); \
        return sum; \
    }
#define ITSELF(x) (x)
#define SQUARED(x) ((double)(x) * (double)(x))
PAIRWISE(pairwise, double, ITSELF)
PAIRWISE(pairwise_squares, int32_t, SQUARED)

#define SUMMED_AT_ONCE 8192 /* by numpy, whose buffers hold so many */

/* numpy.sum of a vector. */
static double sum_of(const double *v, ptrdiff_t n) {
    double sum = 0.0;
    for (; n > SUMMED_AT_ONCE; n -= SUMMED_AT_ONCE, v += SUMMED_AT_ONCE)
        sum += pairwise(v, SUMMED_AT_ONCE);
    return sum + pairwise(v, n);
}

/* fedkit.core.numerics.derive_key: each word enters by one step of SplitMix64. */
INLINE uint64_t key_with(uint64_t key, uint64_t word) {
    uint64_t x = key + word + 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

#endif
