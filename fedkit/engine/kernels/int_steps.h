/* Steps of a program: what the integers of each kernel are worth, then the kernel. Counterparts of what
 * integer/program.py and the `IntegerOp` of each family do around the kernels. */
#ifndef FEDKIT_INT_STEPS_H
#define FEDKIT_INT_STEPS_H

#include "int_codes.h"
#include "int_conv.h"
#include "int_units.h"

INLINE void worth_all(struct int_worth *w, double factor) {
    for (int c = 0; c < w->tensor->channels; c++) {
        w->factor[c] = factor;
        w->offset[c] = 0.0;
    }
}

INLINE void raw_all(struct int_worth *w, int first, int last, double unit) {
    for (int c = first; c < last; c++) w->raw_unit[c] = unit;
}

/* What is read beyond 6 counts as 6. */
INLINE double bounded(const struct int_worth *w, double bound) {
    return w->activation == RELU6 && 6.0 < bound ? 6.0 : bound;
}

/* -- requantisation --------------------------------------------------------------------------- */

static void requantise_by(const struct int_worth *w) {
    const struct int_chain *how = &w->units->chain;
    NAME(int_requantise)(w->tensor, how->factor, how->a, how->b, how->shift, 0, w->units->tiles);
}

static void requantise_plain(struct int_worth *w) {
    const struct int_units *units = w->units;
    const struct int_chain *how = &units->chain;
    const int channels = w->tensor->channels;
    int32_t *peak = how->c;
    memset(units->sums, 0, (size_t)channels * sizeof *units->sums);
    memset(peak, 0, (size_t)channels * sizeof *peak);
    NAME(int_raw_sums)(w->tensor, 0, units->tiles, units->sums, peak);
    double largest = peak[0] * w->raw_unit[0];
    for (int c = 1; c < channels; c++) largest = larger(largest, peak[c] * w->raw_unit[c]);
    /* The code 127 lies beyond 6, so that 6 is told from what is larger. */
    const double beyond = 6.0 * CODE_MOST / (CODE_MOST - 1);
    if (w->activation == RELU6 && beyond < largest) largest = beyond;
    double scale = largest / CODE_MOST;
    if (scale == 0.0) scale = 1.0;
    for (int c = 0; c < channels; c++) {
        how->a[c] = multiplier_of(w->raw_unit[c] / scale, 20, WIDE, &how->shift[c]);
        how->b[c] = how->factor[c] = 0;
    }
    requantise_by(w);
    worth_all(w, scale);
    w->bound = bounded(w, CODE_MOST * scale);
}

static void requantise_finer(struct int_worth *w) {
    const struct int_chain *how = &w->units->chain;
    double most = 0.0;
    for (int c = 0; c < w->tensor->channels; c++) {
        w->factor[c] = w->raw_unit[c] * power_of_two(w->finer);
        w->offset[c] = 0.0;
        most = c ? larger(most, w->factor[c]) : w->factor[c];
        how->a[c] = 1;
        how->b[c] = how->factor[c] = 0;
        how->shift[c] = w->finer;
    }
    requantise_by(w);
    w->bound = bounded(w, CODE_MOST * most);
}

INLINE double centre_of(double mean) { return between(rint(mean), -WIDE, WIDE); }

/* Take mean, deviation and variance of raw, in its steps. */
static void take_moments(const struct int_worth *w, double *mean, double *deviation, double *variance) {
    const struct int_units *units = w->units;
    const struct int_norm *norm = w->norm;
    const int channels = w->tensor->channels;
    const double count = (double)values_of(w->tensor);
    int64_t *sums = units->sums, *other = sums + channels;
    int32_t *peak = units->chain.c, *centre = units->chain.a;
    memset(sums, 0, 2 * (size_t)channels * sizeof *sums);
    if (!norm->l1) {
        NAME(int_raw_squares)(w->tensor, 0, units->tiles, sums, other);
        for (int c = 0; c < channels; c++) {
            /* Sums of integers are exact, so that nothing cancels but the last rounding of each. */
            const double unit = w->raw_unit[c];
            mean[c] = (double)sums[c] / count;
            variance[c] = larger((double)other[c] / count - mean[c] * mean[c], 0.0);
            deviation[c] = sqrt(variance[c] + norm->eps / (unit * unit));
        }
        return;
    }
    memset(peak, 0, (size_t)channels * sizeof *peak);
    NAME(int_raw_sums)(w->tensor, 0, units->tiles, sums, peak);
    for (int c = 0; c < channels; c++) {
        mean[c] = (double)sums[c] / count;
        const double around = units->running ? norm->running_mean[c] / w->raw_unit[c] : mean[c];
        centre[c] = to_int32(centre_of(around));
    }
    NAME(int_raw_spread)(w->tensor, centre, 0, units->tiles, other);
    for (int c = 0; c < channels; c++) {
        const double spread = norm->k * (double)other[c] / count;
        variance[c] = spread * spread;
        deviation[c] = spread + norm->eps / w->raw_unit[c];
    }
}

/* What the codes of a normalised tensor are worth. */
static void worth_of_norm(struct int_worth *w) {
    double most = 0.0;
    for (int c = 0; c < w->tensor->channels; c++) {
        const double scale = real_weight(&w->norm->scale, c, 1.0);
        const double offset = real_weight(&w->norm->offset, c, 0.0);
        const double reach = fabs(scale) * CODE_MOST * ONE + fabs(offset);
        most = c ? larger(most, reach) : reach;
        w->factor[c] = scale * ONE;
        w->offset[c] = offset;
    }
    most = bounded(w, most);
    w->bound = most == 0.0 ? 1.0 : most;
}

static void requantise_norm(struct int_worth *w) {
    const struct int_units *units = w->units;
    const struct int_norm *norm = w->norm;
    const struct int_chain *how = &units->chain;
    const int channels = w->tensor->channels;
    double *mean = units->reals, *deviation = w->deviation, *variance = norm->variance;
    if (units->takes) take_moments(w, mean, deviation, variance);
    for (int c = 0; c < channels; c++) {
        const double unit = w->raw_unit[c];
        if (units->takes) {
            norm->mean[c] = mean[c] * unit;
            norm->spread[c] = deviation[c] * unit;
            variance[c] *= unit * unit;
        }
        if (units->running) {
            mean[c] = norm->running_mean[c] / unit;
            deviation[c] = norm->running_deviation[c] / unit;
        }
        const double centre = centre_of(mean[c]);
        how->factor[c] = to_int32(centre);
        how->a[c] = multiplier_of(1.0 / (ONE * deviation[c]), 29, WIDE, &how->shift[c]);
        how->b[c] = to_int32(between(rint((centre - mean[c]) * how->a[c]), -ROOM, ROOM));
        deviation[c] *= unit;
    }
    requantise_by(w);
    worth_of_norm(w);
}

static void requantise(struct int_worth *w) {
    if (w->norm)
        requantise_norm(w);
    else if (w->finer >= 0)
        requantise_finer(w);
    else
        requantise_plain(w);
}

/* -- finishing gradients ---------------------------------------------------------------------- */

/* The gradient of a norm's parameter: an integer, whose 4 bits of ONE go to its unit. */
INLINE void norm_gradient(const struct int_parameter *p, int c, double gradient, double unit) {
    if (!p->gradient) return;
    p->gradient[c] = to_int64(rint(gradient / ONE));
    p->unit[c] = unit * ONE;
}

static void norm_backward(struct int_worth *w, const int64_t *sums) {
    const struct int_norm *norm = w->norm;
    const double count = (double)values_of(w->tensor);
    for (int c = 0; c < w->tensor->channels; c++, sums += 5) {
        norm_gradient(&norm->offset, c, (double)sums[0], w->unit[c]);
        norm_gradient(&norm->scale, c, (double)sums[1] * ONE, w->unit[c]);
        const double a = real_weight(&norm->scale, c, 1.0) / w->deviation[c];
        const double signs = (double)sums[2], total = (double)sums[3];
        const double along = (double)sums[4] * ONE / count;
        w->a[c] = a;
        if (norm->l1) {
            w->b[c] = -a * norm->k * along;
            w->c[c] = -a * total / count - w->b[c] * signs / count;
        } else {
            w->b[c] = -a * along * ONE;
            w->c[c] = -a * total / count;
        }
    }
    w->carrier = norm->l1 ? 2 : 1;
}

/* Pass a gradient through its activation, and find how it passes through the norm. */
static void finish(struct int_worth *w) {
    const struct int_units *units = w->units;
    const int channels = w->tensor->channels;
    int32_t *first = NULL, *last = NULL, *peak = units->chain.c;
    if (w->activation != NO_ACTIVATION) {
        first = units->chain.a;
        last = units->chain.b;
        active_codes(w, first, last);
    }
    memset(units->sums, 0, 5 * (size_t)channels * sizeof *units->sums);
    memset(peak, 0, (size_t)channels * sizeof *peak);
    NAME(int_finish)(w->tensor, first, last, 0, units->tiles, units->sums, peak);
    w->finished = 1;
    for (int c = 0; c < channels; c++) w->most[c] = peak[c];
    if (w->norm) norm_backward(w, units->sums);
}

/* -- layers ----------------------------------------------------------------------------------- */

/* Choose how a layer reads its source with its bits, and what the result 1 is worth. */
static void read_of_layer(struct int_conv_step *s) {
    const struct int_worth *w = s->source;
    int32_t high = s->high;
    s->clips = 0;
    if (s->stored) { /* in 8 bits already */
        high = CODE_MOST;
        s->unit = w->factor[0];
    } else {
        const double wide = s->widest * spread_of(w);
        double most = wide < w->bound ? wide : w->bound;
        if (most == 0.0) most = 1.0;
        s->unit = most / high;
        s->clips = wide < w->bound;
    }
    choose_read(w, s->unit, high, &s->conv->read);
}

INLINE int parts_of_conv(const struct int_conv *conv) {
    return (conv->tiles + conv->tiles_per_part - 1) / conv->tiles_per_part;
}

/* Return whether sums that large fit int32. */
INLINE int sums_fit(struct int_units *units, double bound) {
    units->failed = bound;
    return !(bound >= HIGHEST);
}

static int conv_forward(struct int_conv_step *s) {
    struct int_units *units = s->source->units;
    struct int_conv *conv = s->conv;
    const int channels = s->target->tensor->channels;
    double *bias = units->reals, *least = bias + channels, most = 0.0;
    read_of_layer(s);
    for (int c = 0; c < channels; c++) {
        bias[c] = real_weight(&s->bias, c, 0.0);
        least[c] = fabs(bias[c]) / s->unit / 67108864.0;
    }
    quantise_weights(&s->codes, &s->weight, least);
    const int32_t high = conv->read.high, low = -conv->read.low, reach = high > low ? high : low;
    for (int row = 0, i = 0; row < channels; row++) {
        int64_t sum = 0;
        for (const int end = s->codes.ends[row]; i < end; i++) sum += size_of(s->codes.code[i]);
        const double worth = s->unit * s->codes.scale[row], added = rint(bias[row] / worth);
        const double bound = (double)sum * reach + fabs(added);
        most = row ? larger(most, bound) : bound;
        conv->bias[row] = to_int32(added);
        conv->shift_out[row] = shift_to_fit(bound);
        s->target->raw_unit[row] = worth * power_of_two(conv->shift_out[row]);
    }
    if (!sums_fit(units, most)) return 0;
    order_codes(&s->codes, 0, s->codes.order_count);
    conv->tiles = units->tiles;
    NAME(int_conv_forward)(conv, 0, parts_of_conv(conv), units->scratch);
    return 1;
}

/* Choose how the source's gradient is made of sums, and added. */
static int choose_given(struct int_conv_step *s, const double *factor, double unit, int most) {
    struct int_worth *w = s->source;
    struct int_units *units = w->units;
    const int channels = w->tensor->channels;
    double *sums = units->reals + s->target->tensor->channels, largest = 0.0;
    column_sums(&s->codes, factor, sums);
    for (int c = 0; c < channels; c++) {
        const double bound = most * sums[c];
        largest = c ? larger(largest, bound) : bound;
        s->conv->shift_in[c] = shift_to_fit(bound);
        sums[c] = unit * power_of_two(s->conv->shift_in[c]);
    }
    if (!sums_fit(units, largest)) return 0;
    give(w, s->accumulate, sums);
    return 1;
}

static int conv_backward(struct int_conv_step *s) {
    struct int_worth *w = s->target;
    struct int_units *units = w->units;
    struct int_conv *conv = s->conv;
    const int channels = w->tensor->channels, most = s->most;
    double *factor = units->reals;
    int32_t largest = 1;
    passed_ranges(w, factor);
    /* The scales of the weights' rows go to the gradient, so that products have one scale. */
    for (int c = 0; c < channels; c++) factor[c] = factor[c] * s->codes.scale[c];
    const double unit = scale_gradient(units->rule, most, factor, channels);
    const uint64_t key = key_with(key_with(key_with(0, units->seed), units->step), (uint64_t)s->number);
    struct int_chain *chain = &conv->chain;
    for (int c = 0; c < channels; c++) {
        pass_channel(w, c, unit * factor[c] / s->codes.scale[c], chain);
        chain->factor[c] = to_int32(factor[c]);
        largest = chain->factor[c] > largest ? chain->factor[c] : largest;
    }
    chain->carrier = w->carrier;
    chain->limit = most;
    chain->random = 1;
    chain->key_low = (uint32_t)key;
    chain->key_high = (uint32_t)(key >> 32);
    if (s->gives && !choose_given(s, factor, unit, most)) return 0;
    conv->accumulate = s->gives && s->accumulate;
    conv->first_unclipped = s->clips ? s->first : NULL;
    conv->last_unclipped = s->clips ? s->last : NULL;
    if (s->clips) unclipped_codes(&conv->read, s->source->tensor->channels, s->first, s->last);
    /* Each register sums pairs of examples. */
    const int64_t reach = conv->read.high > -conv->read.low ? conv->read.high : -conv->read.low;
    const int64_t pair = 2 * (int64_t)most * largest * (reach ? reach : 1);
    conv->most_slots = pair < INT32_MAX ? (int32_t)(INT32_MAX / pair) : 1;
    NAME(int_conv_backward)(conv, 0, parts_of_conv(conv), units->scratch,
                            s->trains ? s->weight.gradient : NULL, s->bias.gradient);
    for (int c = 0; c < channels; c++) {
        if (s->trains) s->weight.unit[c] = unit * s->unit / s->codes.scale[c];
        if (s->bias.gradient) s->bias.unit[c] = unit / s->codes.scale[c];
    }
    return 1;
}

/* -- copies, sums, pools ---------------------------------------------------------------------- */

static void add_forward(const struct int_copy_step *s) {
    const struct int_units *units = s->target->units;
    struct int_read left = units->read, right = units->other;
    const double both = s->source->bound + s->other->bound, unit = both / WIDE;
    const int32_t high = to_int32(s->source->bound / both * WIDE);
    choose_read(s->source, unit, high, &left);
    choose_read(s->other, unit, WIDE - high, &right);
    NAME(int_add_forward)(s->source->tensor, &left, s->other->tensor, &right, s->target->tensor, 0,
                          units->tiles);
    raw_all(s->target, 0, s->target->tensor->channels, unit);
}

INLINE int channels_taken(const struct int_copy_step *s) {
    return s->source->tensor->channels * s->source->tensor->plane / s->target->tensor->plane;
}

static void copy_forward(const struct int_copy_step *s) {
    const struct int_units *units = s->target->units;
    struct int_read read = units->read;
    const double unit = s->source->bound / WIDE;
    choose_read(s->source, unit, WIDE, &read);
    NAME(int_copy_forward)(s->source->tensor, &read, s->target->tensor, s->channel, 0, units->tiles);
    raw_all(s->target, s->channel, s->channel + channels_taken(s), unit);
}

/* Give the gradient of the target's channels from `channel` on to the source: one unit per channel of
 * the source, which a flattened tensor has many channels of. */
static void copy_backward(const struct int_copy_step *s) {
    const struct int_units *units = s->target->units;
    struct int_chain chain = units->chain;
    double *unit = units->reals;
    const int channels = s->source->tensor->channels, each = channels_taken(s) / channels;
    for (int c = 0, from = s->channel; c < channels; c++, from += each) {
        double bound = passed_bound(s->target, from);
        for (int i = 1; i < each; i++) bound = larger(bound, passed_bound(s->target, from + i));
        unit[c] = larger(bound, LEAST) / WIDE;
        for (int i = 0; i < each; i++) pass_channel(s->target, from + i, unit[c], &chain);
    }
    chain.factor = NULL;
    chain.carrier = s->target->carrier;
    chain.limit = WIDE;
    chain.random = 0;
    give(s->source, s->accumulate, unit);
    NAME(int_copy_backward)(s->source->tensor, s->target->tensor, &chain, &units->mix, s->channel,
                            s->accumulate, 0, units->tiles);
}

/* Both gradients lie in the same memory. */
static void share_gradient(const struct int_copy_step *s) {
    memcpy(s->source->unit, s->target->unit, (size_t)s->target->tensor->channels * sizeof(double));
    memcpy(s->source->most, s->target->most, (size_t)s->target->tensor->channels * sizeof(double));
}

/* The largest number of 15 bits that fits int32 when so many are added. */
INLINE int32_t most_of(int32_t count) {
    const int32_t most = (1 << 30) / count;
    return most < WIDE ? most : WIDE;
}

static void pool_forward(struct int_pool_step *s) {
    struct int_pool *pool = s->pool;
    const int32_t high = most_of(s->area);
    const double unit = s->source->bound / high;
    choose_read(s->source, unit, high, &pool->read);
    pool->shift_out = shift_to_fit(high * (double)s->area);
    NAME(int_pool_forward)(pool, 0, s->target->units->tiles);
    raw_all(s->target, 0, s->target->tensor->channels,
            unit * power_of_two(pool->shift_out) / s->divisor);
}

static void pool_backward(struct int_pool_step *s) {
    const struct int_units *units = s->target->units;
    struct int_pool *pool = s->pool;
    const int32_t high = most_of(s->overlap);
    double *unit = units->reals;
    pool->chain = units->chain;
    pool->chain.factor = NULL;
    pool->chain.carrier = s->target->carrier;
    pool->chain.limit = high;
    pool->chain.random = 0;
    pool->mix = units->mix;
    pool->shift_in = shift_to_fit(high * (double)s->overlap);
    for (int c = 0; c < s->target->tensor->channels; c++) {
        const double step = larger(passed_bound(s->target, c), LEAST) / high;
        pass_channel(s->target, c, step, &pool->chain);
        unit[c] = step * power_of_two(pool->shift_in) / s->divisor;
    }
    pool->accumulate = s->accumulate;
    give(s->source, s->accumulate, unit);
    NAME(int_pool_backward)(pool, 0, units->tiles, (int32_t *)units->scratch);
}

/* -- the walk --------------------------------------------------------------------------------- */

enum {
    REQUANTISE, FINISH, SHARE, CONV_FORWARD, CONV_BACKWARD, ADD_FORWARD, COPY_FORWARD,
    COPY_BACKWARD, POOL_FORWARD, POOL_BACKWARD
};

/* Return whether its sums fit. */
static int take_step(const struct int_step *step) {
    switch (step->kind) {
    case REQUANTISE: requantise(step->what); break;
    case FINISH: finish(step->what); break;
    case SHARE: share_gradient(step->what); break;
    case CONV_FORWARD: return conv_forward(step->what);
    case CONV_BACKWARD: return conv_backward(step->what);
    case ADD_FORWARD: add_forward(step->what); break;
    case COPY_FORWARD: copy_forward(step->what); break;
    case COPY_BACKWARD: copy_backward(step->what); break;
    case POOL_FORWARD: pool_forward(step->what); break;
    case POOL_BACKWARD: pool_backward(step->what); break;
    default: return 0;
    }
    return 1;
}

/* Take the steps first .. last - 1; return the first whose sums may leave int32, or `last`. */
int NAME(int_walk)(const struct int_step *steps, int first, int last) {
    for (int n = first; n < last; n++)
        if (!take_step(&steps[n])) return n;
    return last;
}

#endif
