/* Layer normalisation and its L1 form: each example, a lane, over all its elements, or over each
 * group of its channels. What is normalised together is a block.
 *
 * What backward needs of the normalised values is computed anew from the source, by `mean` and
 * `inverse`: one more pass over a tensor instead of one more tensor.
 */
#ifndef FEDKIT_LAYER_H
#define FEDKIT_LAYER_H

#include "norm.h"

/* Channels of a block. */
INLINE int layer_span(const struct layer *l) { return l->source->channels / l->groups; }

INLINE double layer_count(const struct layer *l) {
    return (double)layer_span(l) * l->source->plane;
}

/* Where the mean and the inverse deviation of a block are. */
INLINE ptrdiff_t layer_block(const struct layer *l, int tile, int group) {
    return ((ptrdiff_t)tile * l->groups + group) * LANES;
}

/* A parameter, or what stands for one that there is not. */
INLINE vec layer_value(const struct layer *l, const float *values, int channel, int pixel,
                       float instead) {
    if (!values) return vec_set1(instead);
    return vec_set1(values[l->per_channel ? channel : channel * l->source->plane + pixel]);
}

INLINE void add_lanes(double *sums, vec part) {
    float lane[LANES];
    vec_store(lane, part);
    for (int i = 0; i < LANES; i++) sums[i] += lane[i];
}

INLINE vec lanes_of(const double *values, double factor) {
    float lane[LANES];
    for (int i = 0; i < LANES; i++) lane[i] = (float)(values[i] * factor);
    return vec_load(lane);
}

/* The mean of each lane, summed from its first value, so that equal values have no deviation. */
INLINE vec layer_mean(const struct layer *l, int tile, int begin, int end) {
    const struct tensor *s = l->source;
    const struct reading start = reading_of(s, begin);
    const vec pivot = read_value(&start, vec_load(s->x + plane_offset(s, tile, begin)));
    double sums[LANES] = {0};
    for (int c = begin; c < end; c++) {
        const struct reading how = reading_of(s, c);
        const float *x = s->x + plane_offset(s, tile, c);
        vec part = vec_zero();
        for (int i = 0; i < s->plane; i++)
            part = vec_add(part, vec_sub(read_value(&how, vec_load(x + i * LANES)), pivot));
        add_lanes(sums, part);
    }
    return vec_add(pivot, lanes_of(sums, 1.0 / layer_count(l)));
}

/* One divided by the deviation of each lane. */
INLINE vec layer_inverse(const struct layer *l, int tile, int begin, int end, vec mean) {
    const struct tensor *s = l->source;
    double sums[LANES] = {0};
    for (int c = begin; c < end; c++) {
        const struct reading how = reading_of(s, c);
        const float *x = s->x + plane_offset(s, tile, c);
        vec part = vec_zero();
        for (int i = 0; i < s->plane; i++) {
            const vec d = vec_sub(read_value(&how, vec_load(x + i * LANES)), mean);
            const vec size = vec_max(d, vec_sub(vec_zero(), d));
            part = l->l1 ? vec_add(part, size) : vec_fma(d, d, part);
        }
        add_lanes(sums, part);
    }
    for (int i = 0; i < LANES; i++) {
        const double spread = sums[i] / layer_count(l);
        sums[i] = 1.0 / (l->l1 ? L1_FACTOR * spread + l->eps : sqrt(spread + l->eps));
    }
    return lanes_of(sums, 1.0);
}

INLINE void layer_forward_block(const struct layer *l, int tile, int group) {
    const struct tensor *s = l->source;
    const int begin = group * layer_span(l), end = begin + layer_span(l);
    const vec mean = layer_mean(l, tile, begin, end);
    const vec inverse = layer_inverse(l, tile, begin, end, mean);
    vec_store(l->mean + layer_block(l, tile, group), mean);
    vec_store(l->inverse + layer_block(l, tile, group), inverse);
    for (int c = begin; c < end; c++) {
        const struct reading how = reading_of(s, c);
        const ptrdiff_t at = plane_offset(s, tile, c);
        for (int i = 0; i < s->plane; i++) {
            const vec x = read_value(&how, vec_load(s->x + at + i * LANES));
            const vec hat = vec_mul(vec_sub(x, mean), inverse);
            vec_store(l->target->x + at + i * LANES,
                      vec_fma(hat, layer_value(l, l->weight, c, i, 1.0f),
                              layer_value(l, l->bias, c, i, 0.0f)));
        }
    }
}

void NAME(layer_forward)(const struct layer *l, int first, int last) {
    for (int tile = first; tile < last; tile++)
        for (int group = 0; group < l->groups; group++) layer_forward_block(l, tile, group);
}

/* One channel of one tile: how to get its gradients and normalised values. */
struct layer_run {
    struct reading how;
    struct chain chain;
    vec mean, inverse;
    const float *x, *y, *g;
};

INLINE struct layer_run layer_run_of(const struct layer *l, int tile, int channel) {
    const struct tensor *s = l->source, *t = l->target;
    const ptrdiff_t at = plane_offset(s, tile, channel);
    const ptrdiff_t block = layer_block(l, tile, channel / layer_span(l));
    struct layer_run run = {reading_of(s, channel),
                            chain_of(t, channel, vec_lanes(valid_lanes(t, tile))),
                            vec_load(l->mean + block), vec_load(l->inverse + block),
                            s->x + at, t->x + at, t->gradient + at};
    return run;
}

INLINE vec run_hat(const struct layer_run *run, int i) {
    const vec x = read_value(&run->how, vec_load(run->x + i * LANES));
    return vec_mul(vec_sub(x, run->mean), run->inverse);
}

INLINE vec run_gradient(const struct layer_run *run, int i) {
    const vec y = run->chain.norm ? vec_load(run->y + i * LANES) : vec_zero();
    return raw_gradient(&run->chain, vec_load(run->g + i * LANES), y);
}

/* Sums of a channel over its pixels, where they share a parameter. */
struct layer_totals {
    double weight, bias;
};

/* Add the gradients of up to SLOTS pixels of a channel, or their sums to `totals`. */
INLINE void layer_gradients_of(const struct layer *l, int c, int begin, int count,
                               struct layer_totals *totals) {
    const int tiles = count_tiles(l->source);
    vec weight[SLOTS], bias[SLOTS];
    for (int i = 0; i < SLOTS; i++) weight[i] = bias[i] = vec_zero();
    for (int tile = 0; tile < tiles; tile++) {
        const struct layer_run run = layer_run_of(l, tile, c);
        for (int i = 0; i < count; i++) {
            const vec g = run_gradient(&run, begin + i);
            weight[i] = vec_fma(g, run_hat(&run, begin + i), weight[i]);
            bias[i] = vec_add(bias[i], g);
        }
    }
    for (int i = 0, e = c * l->source->plane + begin; i < count; i++, e++) {
        const float of_weight = vec_sum(weight[i]), of_bias = vec_sum(bias[i]);
        totals->weight += of_weight;
        totals->bias += of_bias;
        if (l->per_channel) continue;
        if (l->weight_gradient) l->weight_gradient[e] += of_weight;
        if (l->bias_gradient) l->bias_gradient[e] += of_bias;
    }
}

/* Add the gradients of weight and bias of the channels first .. last - 1. */
void NAME(layer_gradients)(const struct layer *l, int first, int last) {
    const int plane = l->source->plane;
    for (int c = first; c < last; c++) {
        struct layer_totals totals = {0, 0};
        for (int begin = 0; begin < plane; begin += SLOTS)
            layer_gradients_of(l, c, begin, plane - begin < SLOTS ? plane - begin : SLOTS,
                               &totals);
        if (!l->per_channel) continue;
        if (l->weight_gradient) l->weight_gradient[c] += (float)totals.weight;
        if (l->bias_gradient) l->bias_gradient[c] += (float)totals.bias;
    }
}

INLINE void layer_backward_block(const struct layer *l, int tile, int begin, int end) {
    const struct tensor *s = l->source;
    const double share = 1.0 / layer_count(l);
    double total[LANES] = {0}, along[LANES] = {0}, signs[LANES] = {0};
    for (int c = begin; c < end; c++) {
        const struct layer_run run = layer_run_of(l, tile, c);
        vec sum = vec_zero(), product = vec_zero(), sign = vec_zero();
        for (int i = 0; i < s->plane; i++) {
            const vec hat = run_hat(&run, i);
            const vec g = vec_mul(run_gradient(&run, i), layer_value(l, l->weight, c, i, 1.0f));
            sum = vec_add(sum, g);
            product = vec_fma(g, hat, product);
            if (l->l1) sign = vec_add(sign, vec_sign(hat));
        }
        add_lanes(total, sum);
        add_lanes(along, product);
        add_lanes(signs, sign);
    }
    const vec mean_g = lanes_of(total, share), mean_sign = lanes_of(signs, share);
    const vec slope = lanes_of(along, l->l1 ? -L1_FACTOR * share : -share);
    for (int c = begin; c < end; c++) {
        const struct layer_run run = layer_run_of(l, tile, c);
        float *to = s->gradient + plane_offset(s, tile, c);
        for (int i = 0; i < s->plane; i++, to += LANES) {
            const vec hat = run_hat(&run, i);
            const vec way = l->l1 ? vec_sub(vec_sign(hat), mean_sign) : hat;
            const vec g = vec_mul(run_gradient(&run, i), layer_value(l, l->weight, c, i, 1.0f));
            const vec dx = vec_mul(vec_fma(slope, way, vec_sub(g, mean_g)), run.inverse);
            vec_store(to, l->accumulate ? vec_add(vec_load(to), dx) : dx);
        }
    }
}

/* Write or add the gradient of what is read of the source. */
void NAME(layer_backward)(const struct layer *l, int first, int last) {
    const int span = layer_span(l);
    for (int tile = first; tile < last; tile++)
        for (int begin = 0; begin < l->source->channels; begin += span)
            layer_backward_block(l, tile, begin, begin + span);
}

#endif
