/* Functions of one value, and their slopes; exp and its like for a vec.
 *
 * All is sums, products, quotients and choices, each rounded once and none fused, so that every
 * instruction set gives the same bits. NaN stays NaN.
 */
#ifndef FEDKIT_FUNCTIONS_H
#define FEDKIT_FUNCTIONS_H

#include "tensor.h"

/* In the order of `FunctionOp.kind` in plan/function.py. */
enum function_kind {
    FN_SIGMOID, FN_TANH, FN_SILU, FN_GELU, FN_GELU_TANH, FN_HARD_SIGMOID, FN_HARD_SWISH, FN_ELU,
    FN_LEAKY_RELU, FN_SOFTPLUS, FN_EXP, FN_LOG_SIGMOID, FN_MISH, FN_ERF, FN_ABS, FN_CLIP
};

/* What is large and called from many places: inlined, it doubles the time that plain C compiles. */
#if defined(ISA_PLAIN)
#define LARGE static
#else
#define LARGE INLINE
#endif

/* -- parts ------------------------------------------------------------------------------------ */

INLINE vec vec_negative(vec x) { return vec_sub(vec_zero(), x); }
INLINE vec vec_size(vec x) { return vec_max(x, vec_negative(x)); }

/* sum of c[i] * x^i */
INLINE vec vec_polynomial(vec x, const float *c, int count) {
    vec sum = vec_set1(c[count - 1]);
    for (int i = count - 2; i >= 0; i--) sum = vec_add(vec_mul(sum, x), vec_set1(c[i]));
    return sum;
}

/* e^x within 2 units in the last place. With x = n ln 2 + r, it is 2^n e^r; |r| <= ln 2 / 2. */
LARGE vec vec_exp(vec x) {
    /* 1 / i!; the next term is below 2^-27. */
    static const float c[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720,
                              1.0f / 5040};
    const vec rounder = vec_set1(ROUNDER);
    /* Beyond these ends results are 0 and infinity. */
    x = vec_min(vec_set1(89.0f), vec_max(vec_set1(-106.0f), x));
    const vec n = vec_sub(vec_add(vec_mul(x, vec_set1(1.44269504f)), rounder), rounder);
    /* ln 2 in two parts; of the first so few bits that its product with n is exact. */
    vec r = vec_sub(x, vec_mul(n, vec_set1(0.693359375f)));
    r = vec_add(r, vec_mul(n, vec_set1(2.12194440e-4f)));
    /* 2^n in two factors, which are normal numbers where it is none. */
    const vec half = vec_add(vec_mul(n, vec_set1(0.5f)), rounder);
    const vec rest = vec_add(vec_sub(n, vec_sub(half, rounder)), rounder);
    const vec scaled = vec_mul(vec_polynomial(r, c, 8), vec_power_of_two(half));
    return vec_mul(scaled, vec_power_of_two(rest));
}

/* e^x - 1, near 0 without the digits that the difference would lose. */
LARGE vec vec_expm1(vec x) {
    static const float c[] = {1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720,
                              1.0f / 5040, 1.0f / 40320};
    const vec near = vec_mul(x, vec_polynomial(x, c, 8));
    return vec_below(vec_size(x), vec_set1(0.5f), near, vec_sub(vec_exp(x), vec_set1(1.0f)));
}

/* log(1 + e) for e of 0 to 1: twice the area tangent of e / (2 + e), which is at most 1/3. */
INLINE vec vec_log1p(vec e) {
    static const float c[] = {2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9, 2.0f / 11, 2.0f / 13,
                              2.0f / 15};
    const vec s = vec_div(e, vec_add(e, vec_set1(2.0f)));
    return vec_mul(s, vec_polynomial(vec_mul(s, s), c, 8));
}

LARGE vec vec_sigmoid(vec x) {
    const vec one = vec_set1(1.0f);
    return vec_div(one, vec_add(one, vec_exp(vec_negative(x))));
}

LARGE vec vec_tanh(vec x) {
    /* Its series, where exponentials would cancel. */
    static const float c[] = {1.0f, -1.0f / 3, 2.0f / 15, -17.0f / 315, 62.0f / 2835,
                              -1382.0f / 155925, 21844.0f / 6081075, -1.4558343871e-3f};
    const vec one = vec_set1(1.0f), size = vec_size(x);
    const vec near = vec_mul(x, vec_polynomial(vec_mul(x, x), c, 8));
    const vec e = vec_exp(vec_mul(size, vec_set1(-2.0f)));
    const vec far = vec_div(vec_sub(one, e), vec_add(one, e));
    return vec_below(size, vec_set1(0.5f), near,
                     vec_below(x, vec_zero(), vec_negative(far), far));
}

LARGE vec vec_erf(vec x) {
    /* 2 / sqrt(pi) * (-1)^i / (i! (2 i + 1)) */
    static const float c[] = {1.1283791671e+0f, -3.7612638903e-1f, 1.1283791671e-1f,
                              -2.6866170645e-2f, 5.2239776254e-3f, -8.5483270234e-4f,
                              1.2055332982e-4f, -1.4925650358e-5f, 1.6462114366e-6f};
    /* erfc(x) e^(x^2) of 1 / (1 + x / 2), fitted from 0.8 on, where x counts with e^(-x^2). */
    static const float d[] = {-0.00011501492554f, 0.28438761830f, 0.26266676188f, 0.33851373196f,
                              -0.08641410619f, 0.54435247183f, -0.45974758267f, 0.11640322953f};
    const vec one = vec_set1(1.0f), size = vec_size(x), square = vec_mul(x, x);
    const vec near = vec_mul(x, vec_polynomial(square, c, 9));
    const vec t = vec_div(one, vec_add(one, vec_mul(size, vec_set1(0.5f))));
    const vec far = vec_sub(one, vec_mul(vec_polynomial(t, d, 8), vec_exp(vec_negative(square))));
    return vec_below(size, vec_set1(0.875f), near,
                     vec_below(x, vec_zero(), vec_negative(far), far));
}

/* log(1 + e^x) */
LARGE vec vec_softplus(vec x) {
    return vec_add(vec_max(vec_zero(), x), vec_log1p(vec_exp(vec_negative(vec_size(x)))));
}

/* What is behind GELU's tanh: s (x + k x^3). */
#define GELU_SCALE 0.79788456f
#define GELU_CUBE 0.044715f

INLINE vec gelu_tanh_of(vec x) {
    const vec cube = vec_mul(vec_mul(x, x), vec_mul(x, vec_set1(GELU_CUBE)));
    return vec_tanh(vec_mul(vec_set1(GELU_SCALE), vec_add(x, cube)));
}

/* -- values and slopes ------------------------------------------------------------------------ */

LARGE vec function_value(const struct function *f, vec x) {
    const vec zero = vec_zero(), one = vec_set1(1.0f), half = vec_set1(0.5f);
    const vec a = vec_set1(f->a), b = vec_set1(f->b), c = vec_set1(f->c);
    switch (f->kind) {
    case FN_SIGMOID: return vec_sigmoid(x);
    case FN_TANH: return vec_tanh(x);
    case FN_SILU: return vec_mul(x, vec_sigmoid(x));
    case FN_GELU:
        return vec_mul(vec_mul(half, x),
                       vec_add(one, vec_erf(vec_mul(x, vec_set1(0.70710678f)))));
    case FN_GELU_TANH: return vec_mul(vec_mul(half, x), vec_add(one, gelu_tanh_of(x)));
    case FN_HARD_SIGMOID: return vec_min(one, vec_max(zero, vec_add(vec_mul(a, x), b)));
    case FN_HARD_SWISH:
        return vec_mul(x, vec_min(one, vec_max(zero, vec_add(vec_mul(x, vec_set1(1.0f / 6)), half))));
    case FN_ELU:
        return vec_below(zero, x, vec_mul(b, x),
                         vec_mul(vec_mul(a, b), vec_expm1(vec_mul(c, x))));
    case FN_LEAKY_RELU: return vec_below(zero, x, x, vec_mul(a, x));
    case FN_SOFTPLUS: {
        const vec scaled = vec_mul(a, x);
        return vec_below(b, scaled, x, vec_div(vec_softplus(scaled), a));
    }
    case FN_EXP: return vec_exp(x);
    case FN_LOG_SIGMOID: return vec_negative(vec_softplus(vec_negative(x)));
    case FN_MISH: return vec_mul(x, vec_tanh(vec_softplus(x)));
    case FN_ERF: return vec_erf(x);
    case FN_ABS: return vec_size(x);
    default: return vec_min(b, vec_max(a, x)); /* FN_CLIP */
    }
}

/* At a kink, the slope that torch takes. */
LARGE vec function_slope(const struct function *f, vec x) {
    const vec zero = vec_zero(), one = vec_set1(1.0f), half = vec_set1(0.5f);
    const vec a = vec_set1(f->a), b = vec_set1(f->b), c = vec_set1(f->c);
    const vec square = vec_mul(x, x);
    switch (f->kind) {
    case FN_SIGMOID: {
        const vec s = vec_sigmoid(x);
        return vec_mul(s, vec_sub(one, s));
    }
    case FN_TANH: {
        const vec t = vec_tanh(x);
        return vec_sub(one, vec_mul(t, t));
    }
    case FN_SILU: {
        const vec s = vec_sigmoid(x);
        return vec_mul(s, vec_add(one, vec_mul(x, vec_sub(one, s))));
    }
    case FN_GELU: {
        const vec part = vec_add(one, vec_erf(vec_mul(x, vec_set1(0.70710678f))));
        const vec density = vec_mul(vec_exp(vec_mul(square, vec_set1(-0.5f))),
                                    vec_set1(0.39894228f));
        return vec_add(vec_mul(half, part), vec_mul(x, density));
    }
    case FN_GELU_TANH: {
        const vec end = vec_set1(32.0f); /* far behind which it is a line: no square overflows */
        const vec z = vec_min(end, vec_max(vec_negative(end), x)), t = gelu_tanh_of(z);
        const vec inner = vec_mul(vec_set1(GELU_SCALE),
                                  vec_add(one, vec_mul(vec_set1(3 * GELU_CUBE), vec_mul(z, z))));
        const vec bend = vec_mul(vec_mul(z, vec_sub(one, vec_mul(t, t))), inner);
        return vec_mul(half, vec_add(vec_add(one, t), bend));
    }
    case FN_HARD_SIGMOID: return vec_where_between(vec_add(vec_mul(a, x), b), zero, one, a);
    case FN_HARD_SWISH: {
        const vec bend = vec_add(vec_mul(x, vec_set1(1.0f / 3)), half);
        return vec_below(x, vec_set1(3.0f), vec_below(vec_set1(-3.0f), x, bend, zero), one);
    }
    case FN_ELU:
        return vec_below(zero, x, b, vec_mul(vec_mul(a, b), vec_mul(c, vec_exp(vec_mul(c, x)))));
    case FN_LEAKY_RELU: return vec_below(zero, x, one, a);
    case FN_SOFTPLUS: {
        const vec scaled = vec_mul(a, x);
        return vec_below(b, scaled, one, vec_sigmoid(scaled));
    }
    case FN_EXP: return vec_exp(x);
    case FN_LOG_SIGMOID: return vec_sigmoid(vec_negative(x));
    case FN_MISH: {
        const vec t = vec_tanh(vec_softplus(x));
        const vec bend = vec_mul(vec_mul(x, vec_sub(one, vec_mul(t, t))), vec_sigmoid(x));
        return vec_add(t, bend);
    }
    case FN_ERF: return vec_mul(vec_set1(1.1283791671f), vec_exp(vec_negative(square)));
    case FN_ABS: return vec_sign(x);
    default: return vec_below(x, a, zero, vec_below(b, x, zero, one)); /* FN_CLIP */
    }
}

/* target = f(what is read of source) */
void NAME(function_forward)(const struct function *f, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < f->target->channels; c++) {
            const struct reading how = reading_of(f->source, c);
            const ptrdiff_t at = plane_offset(f->target, tile, c);
            const float *x = f->source->x + at;
            float *to = f->target->x + at;
            for (int i = 0; i < f->target->plane * LANES; i += LANES)
                vec_store(to + i, function_value(f, read_value(&how, vec_load(x + i))));
        }
    }
}

/* Write or add the gradient of what is read of the source; its slope is computed anew. */
void NAME(function_backward)(const struct function *f, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(f->target, tile));
        for (int c = 0; c < f->target->channels; c++) {
            const struct reading how = reading_of(f->source, c);
            const struct chain chain = chain_of(f->target, c, valid);
            const ptrdiff_t at = plane_offset(f->target, tile, c);
            const float *x = f->source->x + at, *y = f->target->x + at;
            const float *g = f->target->gradient + at;
            float *to = f->source->gradient + at;
            for (int i = 0; i < f->target->plane * LANES; i += LANES) {
                const vec raw = raw_gradient(&chain, vec_load(g + i),
                                             chain.norm ? vec_load(y + i) : vec_zero());
                const vec slope = function_slope(f, read_value(&how, vec_load(x + i)));
                const vec given = vec_mul(raw, slope);
                vec_store(to + i, f->accumulate ? vec_add(vec_load(to + i), given) : given);
            }
        }
    }
}

#endif
