/* Ops without weights: copies, sums, pooling, the loss, and moving data in and out. */
#ifndef FEDKIT_ELEMENTWISE_H
#define FEDKIT_ELEMENTWISE_H

#include <string.h>

#include "exponent.h"
#include "tensor.h"

/* Copy examples inputs [..][elements], picked by order [count], into x as tiles. Lanes beyond them
 * repeat a tile's examples in turn: whatever the statistics of a batch, norms scale these no further
 * than the others, so that no infinity arises that times a gradient of 0 would be NaN. */
void NAME(load_examples)(const float *inputs, const int64_t *order, int64_t count,
                         int64_t elements, float *x) {
    for (int64_t begin = 0; begin < count; begin += LANES) {
        const float *from[LANES];
        int lanes = count - begin < LANES ? (int)(count - begin) : LANES;
        for (int i = 0; i < LANES; i++)
            from[i] = inputs + order[begin + i % lanes] * elements;
        for (int64_t e = 0; e < elements; e++, x += LANES)
            for (int i = 0; i < LANES; i++) x[i] = from[i][e];
    }
}

/* Copy what is read of a tensor into rows [examples][channels * plane]. */
void NAME(read_examples)(const struct tensor *t, float *rows) {
    const ptrdiff_t elements = (ptrdiff_t)t->channels * t->plane;
    for (int tile = 0; tile < count_tiles(t); tile++, rows += LANES * elements) {
        for (int c = 0; c < t->channels; c++) {
            const struct reading how = reading_of(t, c);
            const float *x = t->x + plane_offset(t, tile, c);
            for (int i = 0; i < t->plane; i++) {
                float lane[LANES];
                vec_store(lane, read_value(&how, vec_load(x + i * LANES)));
                for (int l = 0; l < valid_lanes(t, tile); l++)
                    rows[l * elements + (ptrdiff_t)c * t->plane + i] = lane[l];
            }
        }
    }
}

/* target = left + right, as read. */
void NAME(add_forward)(const struct tensor *left, const struct tensor *right,
                       const struct tensor *target, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < target->channels; c++) {
            const struct reading one = reading_of(left, c), two = reading_of(right, c);
            const ptrdiff_t at = plane_offset(target, tile, c);
            const float *x = left->x + at, *y = right->x + at;
            float *to = target->x + at;
            struct range_vecs range = no_range();
            for (int i = 0; i < target->plane * LANES; i += LANES) {
                const vec sum = vec_add(read_value(&one, vec_load(x + i)),
                                        read_value(&two, vec_load(y + i)));
                vec_store(to + i, sum);
                add_to_range(&range, &sum, 1);
            }
            if (target->ranges)
                target->ranges[(ptrdiff_t)tile * target->channels + c] = range_of(&range);
        }
    }
}

/* Copy what is read of source into target's channels from `channel` on. The planes may differ, as
 * in a flattened tensor: elements keep their order. */
void NAME(copy_forward)(const struct tensor *source, const struct tensor *target, int channel,
                        int first, int last) {
    for (int tile = first; tile < last; tile++) {
        float *to = target->x + plane_offset(target, tile, channel);
        for (int c = 0; c < source->channels; c++) {
            const struct reading how = reading_of(source, c);
            const float *x = source->x + plane_offset(source, tile, c);
            for (int i = 0; i < source->plane; i++, to += LANES, x += LANES)
                vec_store(to, read_value(&how, vec_load(x)));
        }
    }
}

/* Write or add the raw gradient of target's channels from `channel` on to source's gradient; the
 * backward pass of a copy and of each side of a sum. */
void NAME(copy_backward)(const struct tensor *source, const struct tensor *target, int channel,
                         int accumulate, int first, int last) {
    const int elements = source->channels * source->plane;
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(target, tile));
        const ptrdiff_t at = plane_offset(target, tile, channel);
        const float *g = target->gradient + at, *x = target->x + at;
        float *to = source->gradient + plane_offset(source, tile, 0);
        struct chain how = chain_of(target, channel, valid);
        for (int e = 0; e < elements; e++, g += LANES, x += LANES, to += LANES) {
            if (e % target->plane == 0) how = chain_of(target, channel + e / target->plane, valid);
            vec raw = raw_gradient(&how, vec_load(g), vec_load(x));
            vec_store(to, accumulate ? vec_add(vec_load(to), raw) : raw);
        }
    }
}

/* The part of a pooling window that lies on the plane. */
struct window {
    int top, bottom, left, right;
};

INLINE struct window window_of(const struct windows *p, int oy, int ox) {
    struct window w;
    w.top = oy * p->stride_y - p->pad_y;
    w.left = ox * p->stride_x - p->pad_x;
    w.bottom = w.top + p->kernel_y < p->in_height ? w.top + p->kernel_y : p->in_height;
    w.right = w.left + p->kernel_x < p->in_width ? w.left + p->kernel_x : p->in_width;
    if (w.top < 0) w.top = 0;
    if (w.left < 0) w.left = 0;
    return w;
}

INLINE vec pool_window(const struct pool *p, const struct reading *how, const float *x,
                       struct window w) {
    vec sum = vec_zero(), most = vec_set1(-INFINITY);
    for (int y = w.top; y < w.bottom; y++) {
        for (int i = w.left; i < w.right; i++) {
            vec value = read_value(how, vec_load(x + (y * p->windows.in_width + i) * LANES));
            sum = vec_add(sum, value);
            most = vec_max(most, value);
        }
    }
    return p->maximum ? most : vec_mul(sum, vec_set1(p->share));
}

/* Which pixel of a window is the first whose value is its maximum, lane by lane: pixels count row by
 * row through what lies on the plane, and their number is that of none, as beside a NaN. */
INLINE vec pool_argmax(const struct pool *p, const struct reading *how, const float *x,
                       struct window w, vec most) {
    int n = (w.bottom - w.top) * (w.right - w.left);
    vec found = vec_set1((float)n);
    for (int y = w.bottom - 1; y >= w.top; y--) {
        for (int i = w.right - 1; i >= w.left; i--) {
            vec value = read_value(how, vec_load(x + (y * p->windows.in_width + i) * LANES));
            found = vec_equal(value, most, vec_set1((float)--n), found);
        }
    }
    return found;
}

void NAME(pool_forward)(const struct pool *p, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        for (int c = 0; c < p->source->channels; c++) {
            const struct reading how = reading_of(p->source, c);
            const float *x = p->source->x + plane_offset(p->source, tile, c);
            ptrdiff_t at = plane_offset(p->target, tile, c);
            for (int oy = 0; oy < p->windows.out_height; oy++) {
                for (int ox = 0; ox < p->windows.out_width; ox++, at += LANES) {
                    const struct window w = window_of(&p->windows, oy, ox);
                    const vec value = pool_window(p, &how, x, w);
                    vec_store(p->target->x + at, value);
                    if (p->argmax)
                        vec_to_bytes(p->argmax + at, pool_argmax(p, &how, x, w, value));
                }
            }
        }
    }
}

/* Add each lane's gradient to its pixel of a window. */
INLINE void spread_maximum(const struct pool *p, struct window w, vec argmax, vec gradient,
                           float *to) {
    int n = 0;
    for (int y = w.top; y < w.bottom; y++) {
        for (int i = w.left; i < w.right; i++) {
            float *here = to + (y * p->windows.in_width + i) * LANES;
            const vec own = vec_equal(argmax, vec_set1((float)n++), gradient, vec_zero());
            vec_store(here, vec_add(vec_load(here), own));
        }
    }
}

INLINE void spread_sum(const struct pool *p, struct window w, vec gradient, float *to) {
    gradient = vec_mul(gradient, vec_set1(p->share));
    for (int y = w.top; y < w.bottom; y++) {
        for (int i = w.left; i < w.right; i++) {
            const int at = (y * p->windows.in_width + i) * LANES;
            vec_store(to + at, vec_add(vec_load(to + at), gradient));
        }
    }
}

/* The gradient of a maximum goes to the first of equal values. Where these were is known, or is looked
 * for again. */
void NAME(pool_backward)(const struct pool *p, int first, int last) {
    for (int tile = first; tile < last; tile++) {
        const vec valid = vec_lanes(valid_lanes(p->target, tile));
        for (int c = 0; c < p->source->channels; c++) {
            const struct reading how = reading_of(p->source, c);
            const struct chain chain = chain_of(p->target, c, valid);
            const float *x = p->source->x + plane_offset(p->source, tile, c);
            ptrdiff_t at = plane_offset(p->target, tile, c);
            float *to = p->source->gradient + plane_offset(p->source, tile, c);
            if (!p->accumulate)
                memset(to, 0, (size_t)p->source->plane * LANES * sizeof(float));
            for (int oy = 0; oy < p->windows.out_height; oy++) {
                for (int ox = 0; ox < p->windows.out_width; ox++, at += LANES) {
                    const struct window w = window_of(&p->windows, oy, ox);
                    const vec raw = raw_gradient(&chain, vec_load(p->target->gradient + at),
                                                 vec_load(p->target->x + at));
                    if (!p->maximum)
                        spread_sum(p, w, raw, to);
                    else if (p->argmax)
                        spread_maximum(p, w, vec_of_bytes(p->argmax + at), raw, to);
                    else
                        spread_maximum(p, w, pool_argmax(p, &how, x, w, pool_window(p, &how, x, w)),
                                       raw, to);
                }
            }
        }
    }
}

/* One example's value of a channel, as it is read; planes of one pixel. */
INLINE double logit(const struct tensor *t, int tile, int lane, int channel) {
    const struct reading how = reading_of(t, channel);
    float value[LANES];
    vec_store(value, read_value(&how, vec_load(t->x + plane_offset(t, tile, channel))));
    return value[lane];
}

/* Loss of one example; its logits' gradient times `share` where one is wanted. */
static double example_loss(const struct tensor *t, int tile, int lane, int64_t target,
                           double share) {
    double most = -INFINITY, sum = 0.0;
    for (int c = 0; c < t->channels; c++) {
        double value = logit(t, tile, lane, c);
        if (!(value <= most)) most = value; /* a NaN stays */
    }
    for (int c = 0; c < t->channels; c++) sum += exponential(logit(t, tile, lane, c) - most);
    for (int c = 0; t->gradient && c < t->channels; c++) {
        double p = exponential(logit(t, tile, lane, c) - most) / sum;
        t->gradient[plane_offset(t, tile, c) + lane] = (float)((p - (c == target)) * share);
    }
    return logarithm(sum) + most - logit(t, tile, lane, (int)target);
}

/* Mean softmax cross-entropy of logits [examples][channels]; targets [examples], in range. */
double NAME(cross_entropy)(const struct tensor *t, const int64_t *targets) {
    double total = 0.0;
    for (int tile = 0; tile < count_tiles(t); tile++) {
        for (int lane = 0; lane < valid_lanes(t, tile); lane++) {
            int64_t target = targets[(int64_t)tile * LANES + lane];
            total += example_loss(t, tile, lane, target, 1.0 / (double)t->examples);
        }
        for (int lane = valid_lanes(t, tile); t->gradient && lane < LANES; lane++)
            for (int c = 0; c < t->channels; c++)
                t->gradient[plane_offset(t, tile, c) + lane] = 0.0f;
    }
    return total / (double)t->examples;
}

/* One step of SGD on `count` weights; the penalty is added to the gradient, as in torch. */
void NAME(sgd)(float *weight, float *velocity, const float *gradient, int64_t count, float rate,
               float momentum, float decay) {
    for (int64_t i = 0; i < count; i++) {
        velocity[i] = momentum * velocity[i] + (gradient[i] + decay * weight[i]);
        weight[i] -= rate * velocity[i];
    }
}

#endif
