/* Normalisation over the channels of each place of an example: a layer norm of tokens, an RMS norm.
 *
 * What backward needs of the normalised values is computed anew from the source, by `mean` and
 * `inverse`, which have as many values as the tensor has in one channel.
 */
#ifndef FEDKIT_CHANNEL_NORM_H
#define FEDKIT_CHANNEL_NORM_H

#include "tensor.h"

/* Pixels that lie one behind the other, up to SLOTS of them, of all channels of a tile. */
struct strip {
    int tile, begin, count;
};

INLINE ptrdiff_t strip_at(const struct tensor *t, const struct strip *s, int channel) {
    return plane_offset(t, s->tile, channel) + (ptrdiff_t)s->begin * LANES;
}

INLINE float *strip_statistic(const struct channel_norm *n, float *values, const struct strip *s) {
    return values + ((ptrdiff_t)s->tile * n->source->plane + s->begin) * LANES;
}

INLINE vec channel_value(const float *values, int channel, float instead) {
    return vec_set1(values ? values[channel] : instead);
}

/* The root of a vec, correctly rounded as C's is. */
INLINE vec vec_inverse_root(vec x, double eps) {
    float lane[LANES];
    vec_store(lane, x);
    for (int i = 0; i < LANES; i++) lane[i] = (float)(1.0 / sqrt((double)lane[i] + eps));
    return vec_load(lane);
}

/* Sums start from the first channel, so that equal values have no deviation. */
INLINE void strip_moments(const struct channel_norm *n, const struct strip *p) {
    const struct tensor *s = n->source;
    const vec share = vec_set1(1.0f / (float)s->channels);
    vec pivot[SLOTS], mean[SLOTS], spread[SLOTS];
    const struct reading start = reading_of(s, 0);
    for (int i = 0; i < p->count; i++) {
        pivot[i] = read_value(&start, vec_load(s->x + strip_at(s, p, 0) + i * LANES));
        mean[i] = spread[i] = vec_zero();
    }
    for (int c = 1; n->centred && c < s->channels; c++) {
        const struct reading how = reading_of(s, c);
        const float *x = s->x + strip_at(s, p, c);
        for (int i = 0; i < p->count; i++)
            mean[i] = vec_add(mean[i], vec_sub(read_value(&how, vec_load(x + i * LANES)), pivot[i]));
    }
    for (int i = 0; n->centred && i < p->count; i++) mean[i] = vec_fma(mean[i], share, pivot[i]);
    for (int c = 0; c < s->channels; c++) {
        const struct reading how = reading_of(s, c);
        const float *x = s->x + strip_at(s, p, c);
        for (int i = 0; i < p->count; i++) {
            const vec d = vec_sub(read_value(&how, vec_load(x + i * LANES)), mean[i]);
            spread[i] = vec_fma(d, d, spread[i]);
        }
    }
    for (int i = 0; i < p->count; i++) {
        vec_store(strip_statistic(n, n->mean, p) + i * LANES, mean[i]);
        vec_store(strip_statistic(n, n->inverse, p) + i * LANES,
                  vec_inverse_root(vec_mul(spread[i], share), n->eps));
    }
}

/* One channel of a strip: how to get its gradients and normalised values. */
struct strip_run {
    struct reading how;
    struct chain chain;
    vec weight;
    const float *x, *y, *g, *mean, *inverse;
};

INLINE struct strip_run strip_run_of(const struct channel_norm *n, const struct strip *p, int c) {
    const struct tensor *s = n->source, *t = n->target;
    const ptrdiff_t at = strip_at(s, p, c);
    struct strip_run run = {reading_of(s, c), chain_of(t, c, vec_lanes(valid_lanes(t, p->tile))),
                            channel_value(n->weight, c, 1.0f), s->x + at, t->x + at,
                            t->gradient + at, strip_statistic(n, n->mean, p),
                            strip_statistic(n, n->inverse, p)};
    return run;
}

INLINE vec strip_hat(const struct strip_run *run, int i) {
    const vec x = read_value(&run->how, vec_load(run->x + i * LANES));
    return vec_mul(vec_sub(x, vec_load(run->mean + i * LANES)), vec_load(run->inverse + i * LANES));
}

INLINE vec strip_gradient(const struct strip_run *run, int i) {
    const vec y = run->chain.norm ? vec_load(run->y + i * LANES) : vec_zero();
    return raw_gradient(&run->chain, vec_load(run->g + i * LANES), y);
}

INLINE void strip_forward(const struct channel_norm *n, const struct strip *p) {
    strip_moments(n, p);
    for (int c = 0; c < n->source->channels; c++) {
        const struct strip_run run = strip_run_of(n, p, c);
        const vec bias = channel_value(n->bias, c, 0.0f);
        float *to = n->target->x + strip_at(n->target, p, c);
        for (int i = 0; i < p->count; i++)
            vec_store(to + i * LANES, vec_fma(strip_hat(&run, i), run.weight, bias));
    }
}

INLINE void strip_backward(const struct channel_norm *n, const struct strip *p) {
    const int channels = n->source->channels;
    const vec share = vec_set1(1.0f / (float)channels);
    vec total[SLOTS], along[SLOTS];
    for (int i = 0; i < p->count; i++) total[i] = along[i] = vec_zero();
    for (int c = 0; c < channels; c++) {
        const struct strip_run run = strip_run_of(n, p, c);
        for (int i = 0; i < p->count; i++) {
            const vec g = vec_mul(strip_gradient(&run, i), run.weight);
            total[i] = vec_add(total[i], g);
            along[i] = vec_fma(g, strip_hat(&run, i), along[i]);
        }
    }
    for (int i = 0; i < p->count; i++) {
        total[i] = n->centred ? vec_mul(total[i], share) : vec_zero();
        along[i] = vec_mul(along[i], share);
    }
    for (int c = 0; c < channels; c++) {
        const struct strip_run run = strip_run_of(n, p, c);
        float *to = n->source->gradient + strip_at(n->source, p, c);
        for (int i = 0; i < p->count; i++) {
            const vec g = vec_sub(vec_mul(strip_gradient(&run, i), run.weight), total[i]);
            const vec off = vec_sub(g, vec_mul(strip_hat(&run, i), along[i]));
            const vec dx = vec_mul(off, vec_load(run.inverse + i * LANES));
            vec_store(to + i * LANES, n->accumulate ? vec_add(vec_load(to + i * LANES), dx) : dx);
        }
    }
}

/* Go through the pixels of some tiles. Whole strips have a constant size, to be in registers. */
#define FOR_STRIPS(norm, first, last, work) \
    for (int tile = (first); tile < (last); tile++) { \
        struct strip p = {tile, 0, SLOTS}; \
        for (; p.begin + SLOTS <= (norm)->source->plane; p.begin += SLOTS) work(norm, &p); \
        p.count = (norm)->source->plane - p.begin; \
        if (p.count) work(norm, &p); \
    }

void NAME(channel_norm_forward)(const struct channel_norm *n, int first, int last) {
    FOR_STRIPS(n, first, last, strip_forward)
}

/* Write or add the gradient of what is read of the source. */
void NAME(channel_norm_backward)(const struct channel_norm *n, int first, int last) {
    FOR_STRIPS(n, first, last, strip_backward)
}

/* Write the gradients of weight and bias of the channels first .. last - 1. */
void NAME(channel_norm_gradients)(const struct channel_norm *n, int first, int last) {
    const struct tensor *s = n->source;
    for (int c = first; c < last; c++) {
        double weight = 0, bias = 0;
        for (int tile = 0; tile < count_tiles(s); tile++) {
            const struct strip whole = {tile, 0, s->plane};
            const struct strip_run run = strip_run_of(n, &whole, c);
            vec of_weight = vec_zero(), of_bias = vec_zero();
            for (int i = 0; i < s->plane; i++) {
                const vec g = strip_gradient(&run, i);
                of_weight = vec_fma(g, strip_hat(&run, i), of_weight);
                of_bias = vec_add(of_bias, g);
            }
            weight += vec_sum(of_weight);
            bias += vec_sum(of_bias);
        }
        if (n->weight_gradient) n->weight_gradient[c] = (float)weight;
        if (n->bias_gradient) n->bias_gradient[c] = (float)bias;
    }
}

#endif
