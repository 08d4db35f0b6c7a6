/* e^x and log(x) in double, as a loss needs them: the same bits by every compiler and library, since
 * they are sums, products and quotients, each rounded once. */
#ifndef FEDKIT_EXPONENT_H
#define FEDKIT_EXPONENT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* ln 2 in two parts; of the first so few bits that its product with an exponent is exact. */
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33

static inline double power_of_two(int n) { /* of -1022 to 1023 */
    const uint64_t bits = (uint64_t)(1023 + n) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* e^x of x <= 0 within 1 unit in the last place; 0 below -708, and NaN of NaN. */
static inline double exponential(double x) {
    /* 1 / i!; with |r| <= ln 2 / 2, the next term is below 2^-57. */
    static const double c[] = {1.0,         1.0,          1.0 / 2,       1.0 / 6,        1.0 / 24,
                               1.0 / 120,   1.0 / 720,    1.0 / 5040,    1.0 / 40320,    1.0 / 362880,
                               1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    const double whole = 6755399441055744.0; /* 1.5 * 2^52: a double near it has no fraction */
    if (!(x >= -708.0)) return x < 0.0 ? 0.0 : x;
    const double n = (x * 1.4426950408889634 + whole) - whole;
    const double r = (x - n * LN2_HIGH) - n * LN2_LOW;
    double sum = c[13];
    for (int i = 12; i >= 0; i--) sum = sum * r + c[i];
    return sum * power_of_two((int)n);
}

/* log(x) of x >= 1 within 2 units in the last place; infinity and NaN stay. */
static inline double logarithm(double x) {
    uint64_t bits;
    if (!(x < INFINITY)) return x;
    memcpy(&bits, &x, sizeof bits);
    int n = (int)(bits >> 52) - 1023;
    bits = (bits & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1023) << 52;
    memcpy(&x, &bits, sizeof x);
    if (x > 1.4142135623730951) x *= 0.5, n++;
    /* Twice the area tangent of s, of which |s| < 0.172. */
    const double s = (x - 1.0) / (x + 1.0), square = s * s;
    double sum = 1.0 / 23;
    for (int i = 21; i >= 1; i -= 2) sum = sum * square + 1.0 / i;
    return n * LN2_HIGH + (2.0 * s * sum + n * LN2_LOW);
}

#endif
