/* Batch normalisation and its L1 form, from sums that other kernels left in tensor->sums.
 *
 * The normalised tensor is never stored: `scale` and `shift` tell how to read x, and `a`, `b`, `c`
 * how to turn a finished gradient into that of x.
 */
#ifndef FEDKIT_NORM_H
#define FEDKIT_NORM_H

#include "stored.h"

#define L1_FACTOR 1.2533141373155002512 /* sqrt(pi / 2): mean |d| of a normal d to its deviation */

INLINE double norm_deviation(const struct norm *n, int channel, double count) {
    double mean = n->spread[channel] / count;
    return n->l1 ? L1_FACTOR * mean + n->eps : sqrt(mean + n->eps);
}

INLINE double norm_count(const struct norm *n) {
    return (double)n->tensor->examples * n->tensor->plane;
}

/* Merge the moments of all parts (Chan, Golub and LeVeque, 1983), in the order of the parts. */
INLINE void merge_moments(const struct norm *n, int channel, int tiles_per_part) {
    const struct tensor *t = n->tensor;
    double count = 0.0, mean = 0.0, squares = 0.0;
    int tiles = count_tiles(t), part = 0;
    for (int tile = 0; tile < tiles; tile += tiles_per_part, part++) {
        const double *from = t->sums + 2 * ((ptrdiff_t)part * t->channels + channel);
        double more = (double)count_examples(t, tile, tiles_per_part) * t->plane;
        double delta = from[0] - mean, all = count + more;
        mean += delta * (more / all);
        squares += from[1] + delta * delta * (count * more / all);
        count = all;
    }
    n->center[channel] = mean;
    n->spread[channel] = squares;
}

/* L1: replace the sum of squares by that of magnitudes; takes a second look at the values. */
INLINE void sum_magnitudes(const struct norm *n, int channel) {
    const struct tensor *t = n->tensor;
    const vec mean = vec_set1((float)n->center[channel]), zero = vec_zero();
    double magnitudes = 0.0, signs = 0.0;
    for (int tile = 0; tile < count_tiles(t); tile++) {
        const vec valid = vec_lanes(valid_lanes(t, tile));
        const float *x = t->x + plane_offset(t, tile, channel);
        vec sum = vec_zero(), sign = vec_zero();
        for (int i = 0; i < t->plane; i++) {
            vec d = vec_mul(vec_sub(vec_load(x + i * LANES), mean), valid);
            sum = vec_add(sum, vec_max(d, vec_sub(zero, d)));
            sign = vec_add(sign, vec_sign(d));
        }
        magnitudes += vec_sum_double(sum);
        signs += vec_sum_double(sign);
    }
    n->spread[channel] = magnitudes;
    n->signs[channel] = signs / norm_count(n);
}

/* By what a channel is multiplied. One that is the same everywhere, as that of an empty filter,
 * becomes its bias: that is exact, where a rounded mean times 1 / eps would not be near it. */
INLINE double norm_scale(const struct norm *n, int channel) {
    if (n->spread[channel] == 0.0) return 0.0;
    const double weight = n->weight ? n->weight[channel] : 1.0;
    return weight / norm_deviation(n, channel, norm_count(n));
}

/* Set how the channels first .. last - 1 are read, from the statistics of their own batch. */
void NAME(norm_forward)(const struct norm *n, int tiles_per_part, int first, int last) {
    for (int c = first; c < last; c++) {
        merge_moments(n, c, tiles_per_part);
        if (n->l1) sum_magnitudes(n, c);
        const double scale = norm_scale(n, c);
        n->mean[c] = (float)n->center[c];
        n->scale[c] = (float)scale;
        n->shift[c] = (float)((n->bias ? n->bias[c] : 0.0) - scale * n->center[c]);
    }
}

/* Set how gradients pass these channels, from their sums per part; add the gradients of weight and
 * bias. */
void NAME(norm_backward)(const struct norm *n, int tiles_per_part, int first, int last) {
    const struct tensor *t = n->tensor;
    const double count = norm_count(n);
    const int parts = (count_tiles(t) + tiles_per_part - 1) / tiles_per_part;
    for (int c = first; c < last; c++) {
        double total = 0.0, along = 0.0, deviation = norm_deviation(n, c, count);
        for (int part = 0; part < parts; part++) {
            const double *from = t->sums + 2 * ((ptrdiff_t)part * t->channels + c);
            total += from[0];
            along += from[1];
        }
        if (n->bias_gradient) n->bias_gradient[c] += (float)total;
        if (n->weight_gradient) n->weight_gradient[c] += (float)(along / deviation);
        double a = (n->weight ? n->weight[c] : 1.0) / deviation;
        double b = -a * along / (count * deviation);
        b *= n->l1 ? L1_FACTOR : 1.0 / deviation;
        double carried = n->l1 ? n->signs[c] : n->center[c];
        n->a[c] = (float)a;
        n->b[c] = (float)b;
        n->c[c] = (float)(-a * total / count - b * carried);
    }
}

/* Sum a tensor for its norm, where the op that wrote it did not: one part per tile. */
void NAME(tensor_moments)(const struct tensor *t, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(t, tile));
        const double count = (double)valid_lanes(t, tile) * t->plane;
        for (int c = 0; c < t->channels; c++) {
            const float *x = t->x + plane_offset(t, tile, c);
            vec start[SLOTS] = {vec_load(x)};
            const int few = t->plane < SLOTS ? t->plane : SLOTS;
            for (int i = 1; i < few; i++) start[i] = vec_load(x + i * LANES);
            struct sums s = {vec_zero(), vec_zero(), pivot_of(start, few)};
            for (int i = 0; i < t->plane; i++) {
                vec d = vec_mul(vec_sub(vec_load(x + i * LANES), s.pivot), valid);
                s.first = vec_add(s.first, d);
                s.second = vec_fma(d, d, s.second);
            }
            store_moments(t->sums + 2 * ((ptrdiff_t)tile * t->channels + c), &s, count);
        }
    }
}

INLINE void finish_plane(int bits, int parts, const struct tensor *t, int channel,
                         const struct pixels *pixels, float *g, struct sums *sums) {
    const struct reading how = reading_of(t, channel);
    const vec mean = vec_set1(t->mean ? t->mean[channel] : 0.0f);
    const struct stored_vecs grid = pixels_grid(bits, parts, pixels);
    vec first = vec_zero(), second = vec_zero();
    for (int i = 0; i < t->plane; i++, g += LANES) {
        const vec value = pixel_value(bits, parts, pixels, &grid, i);
        const vec passed = through_activation(&how, value, vec_load(g));
        if (how.activated) vec_store(g, passed);
        first = vec_add(first, passed);
        second = vec_fma(passed, vec_sub(value, mean), second);
    }
    sums->first = first, sums->second = second;
}

/* Pass a gradient through the activation and sum it for the norm: one part per tile. */
void NAME(finish_gradient)(const struct tensor *t, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < t->channels; c++) {
            const struct pixels pixels = pixels_of(t, tile, c);
            struct sums s;
            WITH_PIXELS(&pixels, finish_plane, t, c, &pixels, t->gradient + plane_offset(t, tile, c), &s);
            if (t->mean) store_sums(t->sums + 2 * ((ptrdiff_t)tile * t->channels + c), &s);
        }
    }
}

#endif
