/* Softmax over the channels of each place, and the cross-entropy of places. */
#ifndef FEDKIT_SOFTMAX_H
#define FEDKIT_SOFTMAX_H

#include "functions.h"

/* One pixel of a tile: the largest of its channels, and one divided by the sum of the powers. */
struct softmax {
    vec most, share;
};

INLINE vec softmax_power(const struct tensor *s, int tile, int c, int i, vec most) {
    const struct reading how = reading_of(s, c);
    const float *x = s->x + plane_offset(s, tile, c) + (ptrdiff_t)i * LANES;
    return vec_exp(vec_sub(read_value(&how, vec_load(x)), most));
}

INLINE struct softmax softmax_of(const struct tensor *s, int tile, int i) {
    struct softmax found = {vec_set1(-INFINITY), vec_zero()};
    vec sum = vec_zero();
    for (int c = 0; c < s->channels; c++) {
        const struct reading how = reading_of(s, c);
        const float *x = s->x + plane_offset(s, tile, c) + (ptrdiff_t)i * LANES;
        found.most = vec_max(found.most, read_value(&how, vec_load(x)));
    }
    for (int c = 0; c < s->channels; c++)
        sum = vec_add(sum, softmax_power(s, tile, c, i, found.most));
    found.share = vec_div(vec_set1(1.0f), sum);
    return found;
}

void NAME(softmax_forward)(const struct tensor *source, const struct tensor *target, int first,
                           int last) {
    for (int tile = first; tile < last; tile++) {
        for (int i = 0; i < source->plane; i++) {
            const struct softmax of = softmax_of(source, tile, i);
            for (int c = 0; c < source->channels; c++) {
                const vec power = softmax_power(source, tile, c, i, of.most);
                vec_store(target->x + plane_offset(target, tile, c) + (ptrdiff_t)i * LANES,
                          vec_mul(power, of.share));
            }
        }
    }
}

INLINE vec softmax_gradient(const struct tensor *t, int tile, int c, int i, vec valid) {
    const struct chain how = chain_of(t, c, valid);
    const ptrdiff_t at = plane_offset(t, tile, c) + (ptrdiff_t)i * LANES;
    return raw_gradient(&how, vec_load(t->gradient + at), vec_load(t->x + at));
}

/* Write or add the gradient of what is read: y (g - sum of g y). */
void NAME(softmax_backward)(const struct tensor *source, const struct tensor *target,
                            int accumulate, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(target, tile));
        for (int i = 0; i < source->plane; i++) {
            const struct softmax of = softmax_of(source, tile, i);
            vec mean = vec_zero();
            for (int c = 0; c < source->channels; c++)
                mean = vec_fma(softmax_power(source, tile, c, i, of.most),
                               softmax_gradient(target, tile, c, i, valid), mean);
            mean = vec_mul(mean, of.share);
            for (int c = 0; c < source->channels; c++) {
                float *to = source->gradient + plane_offset(source, tile, c) + (ptrdiff_t)i * LANES;
                const vec y = vec_mul(softmax_power(source, tile, c, i, of.most), of.share);
                const vec g = softmax_gradient(target, tile, c, i, valid);
                const vec dx = vec_mul(y, vec_sub(g, mean));
                vec_store(to, accumulate ? vec_add(vec_load(to), dx) : dx);
            }
        }
    }
}

/* Add the cross-entropies of a pixel of a tile to those of each lane, and write the gradient of their
 * share; targets are [examples][plane], in range. */
INLINE void place_loss(const struct tensor *t, const int64_t *targets, int tile, int i, double share,
                       double *losses) {
    const struct softmax of = softmax_of(t, tile, i);
    const int valid = valid_lanes(t, tile);
    const vec scale = vec_mul(vec_lanes(valid), vec_set1((float)share));
    float most[LANES], part[LANES];
    vec_store(most, of.most);
    vec_store(part, of.share);
    for (int c = 0; t->gradient && c < t->channels; c++) {
        const vec p = vec_mul(softmax_power(t, tile, c, i, of.most), of.share);
        vec_store(t->gradient + plane_offset(t, tile, c) + (ptrdiff_t)i * LANES, vec_mul(p, scale));
    }
    for (int lane = 0; lane < valid; lane++) {
        const int c = (int)targets[((int64_t)tile * LANES + lane) * t->plane + i];
        const ptrdiff_t at = plane_offset(t, tile, c) + (ptrdiff_t)i * LANES;
        const struct reading how = reading_of(t, c);
        float read[LANES];
        vec_store(read, read_value(&how, vec_load(t->x + at)));
        losses[lane] += (double)most[lane] - logarithm((double)part[lane]) - (double)read[lane];
        if (t->gradient) t->gradient[at + lane] -= (float)share;
    }
}

/* Write the sum of the cross-entropies of each tile, and the gradients of their share. */
void NAME(place_losses)(const struct tensor *t, const int64_t *targets, double *sums, double share,
                        int first, int last) {
    for (int tile = first; tile < last; tile++) {
        double losses[LANES] = {0}, sum = 0;
        for (int i = 0; i < t->plane; i++) place_loss(t, targets, tile, i, share, losses);
        for (int lane = 0; lane < LANES; lane++) sum += losses[lane];
        sums[tile] = sum;
    }
}

#endif
