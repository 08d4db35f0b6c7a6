/* Reading tensors and passing gradients back through how they are read. */
#ifndef FEDKIT_TENSOR_H
#define FEDKIT_TENSOR_H

#include "kernels.h"
#include "simd.h"

INLINE ptrdiff_t plane_offset(const struct tensor *t, int tile, int channel) {
    return ((ptrdiff_t)tile * t->channels + channel) * t->plane * LANES;
}

INLINE int count_tiles(const struct tensor *t) { return (int)((t->examples + LANES - 1) / LANES); }

/* Lanes of a tile that hold examples. */
INLINE int valid_lanes(const struct tensor *t, int tile) {
    int64_t left = t->examples - (int64_t)tile * LANES;
    return left < LANES ? (int)left : LANES;
}

/* Examples in a part of `tiles` tiles that starts at `tile`. */
INLINE int64_t count_examples(const struct tensor *t, int tile, int tiles) {
    int64_t left = t->examples - (int64_t)tile * LANES, all = (int64_t)tiles * LANES;
    return left < all ? left : all;
}

/* How one channel is read. */
struct reading {
    vec scale, shift, low, high;
    int scaled, activated;
};

INLINE struct reading reading_of(const struct tensor *t, int channel) {
    struct reading how;
    how.scaled = t->scale != NULL;
    how.scale = vec_set1(how.scaled ? t->scale[channel] : 1.0f);
    how.shift = vec_set1(how.scaled ? t->shift[channel] : 0.0f);
    how.activated = t->activation != ACT_NONE;
    how.low = vec_zero();
    how.high = vec_set1(t->activation == ACT_RELU6 ? 6.0f : INFINITY);
    return how;
}

INLINE vec before_activation(const struct reading *how, vec x) {
    return how->scaled ? vec_fma(how->scale, x, how->shift) : x;
}

/* A NaN passes: max and min return their second operand where one is NaN. */
INLINE vec read_value(const struct reading *how, vec x) {
    vec y = before_activation(how, x);
    return how->activated ? vec_min(how->high, vec_max(how->low, y)) : y;
}

INLINE vec through_activation(const struct reading *how, vec x, vec gradient) {
    if (!how->activated) return gradient;
    return vec_where_between(before_activation(how, x), how->low, how->high, gradient);
}

/* How the finished gradient of one channel becomes that of x. */
struct chain {
    vec a, b, c, mean, valid;
    int norm, l1;
};

INLINE struct chain chain_of(const struct tensor *t, int channel, vec valid) {
    struct chain how;
    how.norm = t->a != NULL;
    how.l1 = t->l1;
    how.valid = valid;
    how.a = vec_set1(how.norm ? t->a[channel] : 1.0f);
    how.b = vec_set1(how.norm ? t->b[channel] : 0.0f);
    how.c = vec_set1(how.norm ? t->c[channel] : 0.0f);
    how.mean = vec_set1(how.norm ? t->mean[channel] : 0.0f);
    return how;
}

INLINE vec vec_sign(vec d) {
    const vec one = vec_set1(1.0f), zero = vec_zero(), all = vec_set1(INFINITY);
    return vec_sub(vec_where_between(d, zero, all, one),
                   vec_where_between(vec_sub(zero, d), zero, all, one));
}

INLINE vec raw_gradient(const struct chain *how, vec gradient, vec x) {
    if (!how->norm) return gradient;
    vec carrier = how->l1 ? vec_sign(vec_sub(x, how->mean)) : x;
    vec raw = vec_fma(how->a, gradient, vec_fma(how->b, carrier, how->c));
    return vec_mul(raw, how->valid);
}

/* Two running sums of a channel. Forward: of x - pivot and its square. Backward: of the gradient,
 * and of the gradient times x - mean. */
struct sums {
    vec first, second, pivot;
};

/* Least and most of values, lane by lane. */
struct range_vecs {
    vec least, most;
};

INLINE void add_to_range(struct range_vecs *range, const vec *values, int count) {
    vec least = values[0], most = values[0];
    for (int i = 1; i < count; i++) {
        least = vec_min(least, values[i]);
        most = vec_max(most, values[i]);
    }
    range->least = vec_min(range->least, least);
    range->most = vec_max(range->most, most);
}

INLINE struct range_vecs no_range(void) {
    const struct range_vecs none = {vec_set1(INFINITY), vec_set1(-INFINITY)};
    return none;
}

INLINE struct range range_of(const struct range_vecs *range) {
    const struct range found = {vec_least(range->least), vec_most(range->most)};
    return found;
}

/* The mean of a channel's first values. Without a pivot, squares of a large mean would cancel; a
 * single value could lie far off, and its own square would drown the others. */
INLINE vec pivot_of(const vec *values, int count) {
    vec sum = values[0];
    for (int i = 1; i < count; i++) sum = vec_add(sum, values[i]);
    return vec_set1(vec_sum(sum) / (float)(count * LANES));
}

/* Turn sums of x - pivot into the mean and the sum of squares around it. If the pivot is the only
 * value far from the mean, the latter cancels down to its rounding, and must not get below 0. */
INLINE void store_moments(double *to, const struct sums *s, double count) {
    double first = vec_sum_double(s->first);
    to[0] = vec_first(s->pivot) + first / count;
    to[1] = vec_sum_double(s->second) - first * first / count;
    if (to[1] < 0.0) to[1] = 0.0;
}

INLINE void store_sums(double *to, const struct sums *s) {
    to[0] = vec_sum_double(s->first);
    to[1] = vec_sum_double(s->second);
}

#endif
