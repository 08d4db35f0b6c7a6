/* Weights in fixed point: the codes that layers multiply by, and what a step of SGD moves them by. The
 * counterparts of integer/integer_network.py and integer/optimiser.py. */
#ifndef FEDKIT_INT_CODES_H
#define FEDKIT_INT_CODES_H

#include "int_elementwise.h"
#include "int_real.h"

INLINE int size_of(int16_t code) { return code < 0 ? -code : code; }

/* A weight as a real number; without a parameter, `none`. */
INLINE double real_weight(const struct int_parameter *p, int i, double none) {
    return p->weight ? p->weight[i] * power_of_two(-*p->point) : none;
}

/* The largest magnitude of a row, and the root of the mean square of what is not 0. */
static double row_size(const int32_t *weight, ptrdiff_t count, double *spread) {
    double largest = 0.0, nonzero = 0.0;
    for (ptrdiff_t i = 0; i < count; i++) {
        largest = larger(largest, fabs((double)weight[i]));
        nonzero += weight[i] != 0;
    }
    /* As numpy.add.reduceat: the first, then all others. */
    const double squares = count ? SQUARED(weight[0]) + pairwise_squares(weight + 1, count - 1) : 0.0;
    *spread = sqrt(squares / larger(nonzero, 1.0));
    return largest;
}

/* Choose each row's step, float64 [rows] into `scale`: no less than `least` in real units. */
static void choose_steps(const struct int_codes *codes, const struct int_parameter *p,
                         const double *least) {
    double *clip = codes->scale, smallest = 0.0;
    for (int row = 0, begin = 0; row < codes->rows; begin = codes->ends[row++]) {
        double spread;
        const double largest = row_size(p->weight + begin, codes->ends[row] - begin, &spread);
        const double wide = codes->clip * spread;
        clip[row] = wide < largest ? wide : largest;
        if (clip[row] > 0 && (smallest == 0.0 || clip[row] < smallest)) smallest = clip[row];
    }
    /* A channel of zeros has codes 0 at any scale; a small one keeps it out of the way. */
    if (smallest == 0.0) smallest = 1.0;
    const double point = power_of_two(*p->point);
    for (int row = 0; row < codes->rows; row++) {
        const double step = clip[row] > 0 ? clip[row] : smallest;
        clip[row] = larger(step, least[row] * codes->most * point);
    }
}

/* Quantise a layer's weights: codes, and what the code 1 of each row is worth. */
static void quantise_weights(const struct int_codes *codes, const struct int_parameter *p,
                             const double *least) {
    choose_steps(codes, p, least);
    const double most = codes->most, back = power_of_two(-*p->point);
    for (int row = 0, i = 0; row < codes->rows; row++) {
        const double step = codes->scale[row] / most;
        for (const int end = codes->ends[row]; i < end; i++)
            codes->code[i] = (int16_t)between(floor(p->weight[i] / step + 0.5), -most, most);
        codes->scale[row] = step * back;
    }
}

/* Lay codes into the orders in which maps read them; an index below 0 is a code of 0. */
static void order_codes(const struct int_codes *codes, int first, int last) {
    for (int n = first; n < last; n++) {
        const struct int_order *order = &codes->orders[n];
        for (int64_t i = 0; i < order->count; i++)
            order->weight[i] = order->index[i] < 0 ? 0 : codes->code[order->index[i]];
    }
}

/* Per input channel the sum of the magnitudes of its codes, each times its row's factor. */
static void column_sums(const struct int_codes *codes, const double *factor, double *sums) {
    const int16_t *code = codes->code;
    memset(sums, 0, (size_t)codes->columns * sizeof *sums);
    for (int row = 0, i = 0; row < codes->rows; row++) {
        if (codes->area == 0) {
            for (const int end = codes->ends[row]; i < end; i++)
                sums[codes->column[i]] += factor[row] * size_of(code[i]);
            continue;
        }
        for (int column = 0; column < codes->columns; column++) {
            int32_t sum = 0;
            for (int k = 0; k < codes->area; k++) sum += size_of(*code++);
            sums[column] += factor[row] * sum;
        }
    }
}

/* -- steps of SGD ----------------------------------------------------------------------------- */

#define MOMENTUM_BITS 30
#define FARTHEST 62

/* The least n with magnitude < 2^n; of 0 one that asks for nothing. */
INLINE int octave_of(double magnitude) { return magnitude == 0.0 ? -1100 : exponent_of(magnitude); }

static double largest_of(const int32_t *values, int64_t count, int point) {
    int32_t low = values[0], high = values[0];
    for (int64_t i = 1; i < count; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    return (double)(high > -(int64_t)low ? high : -(int64_t)low) * power_of_two(-point);
}

static void shift_all_half_even(int32_t *values, int64_t count, int shift) {
    const int64_t below = ((int64_t)1 << (shift - 1)) - 1;
    for (int64_t i = 0; i < count; i++)
        values[i] = (int32_t)((values[i] + below + (values[i] >> (shift < 31 ? shift : 31) & 1)) >> shift);
}

/* Move a parameter's point to where what is about to be computed fits; return whether it can. */
static int make_room(const struct int_sgd *sgd, const struct int_update *u) {
    double pushed = 0.0;
    int none = 1;
    for (int row = 0, i = 0; row < u->rows; row++) {
        int64_t most = 0;
        for (const int end = u->ends[row]; i < end; i++) {
            const int64_t size = u->gradient[i] < 0 ? -u->gradient[i] : u->gradient[i];
            most = size > most ? size : most;
        }
        const double push = (double)most * (u->unit[row] * sgd->rate);
        if (none || push > pushed || push != push) pushed = push;
        none = 0;
    }
    const int point = *u->point;
    const double weight = largest_of(u->weight, u->count, point);
    const double velocity = largest_of(u->velocity, u->count, point + sgd->extra);
    double moved = pushed + weight * sgd->decay * sgd->rate + velocity * sgd->momentum;
    moved *= 1.0009765625; /* more than what 15 bits of a multiplier can add */
    sgd->failed[0] = moved;
    sgd->failed[1] = weight;
    if (!(weight + moved < 0x1p127)) return 0;
    const int most = 31 - octave_of(weight + moved), quick = 31 - sgd->extra - octave_of(moved);
    const int fits = most < quick ? most : quick;
    if (point > fits) {
        const int shift = point - fits < FARTHEST ? point - fits : FARTHEST;
        *u->point = fits;
        shift_all_half_even(u->weight, u->count, shift);
        shift_all_half_even(u->velocity, u->count, shift);
    }
    return 1;
}

/* Move the parameters first .. last - 1; return the first that float32 could not hold, or `last`. */
int NAME(int_sgd_steps)(const struct int_sgd *sgd, const struct int_update *updates, int first,
                        int last) {
    int32_t decay_shift;
    const int32_t decay = multiplier_of(sgd->decay * sgd->rate * power_of_two(sgd->extra), 40, INT32_MAX,
                                        &decay_shift);
    for (int n = first; n < last; n++) {
        const struct int_update *u = &updates[n];
        if (u->count > 0 && !make_room(sgd, u)) return n;
        const double point = power_of_two(*u->point + sgd->extra);
        for (int row = 0; row < u->rows; row++)
            sgd->multiplier[row] = multiplier_of(u->unit[row] * sgd->rate * point, 40, INT32_MAX,
                                                 &sgd->shift[row]);
        uint64_t key = key_with(key_with(0, sgd->seed), sgd->step);
        key = key_with(key_with(key, (uint64_t)u->number), 1);
        NAME(int_sgd)(u->weight, u->velocity, u->gradient, u->ends, u->rows, sgd->multiplier,
                      sgd->shift, decay, decay_shift, sgd->momentum_bits, sgd->extra,
                      (uint32_t)key, (uint32_t)(key >> 32));
    }
    return last;
}

#endif
