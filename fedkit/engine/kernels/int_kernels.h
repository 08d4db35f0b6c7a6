/* What the integer kernels are told; integer/native.py mirrors the structs field by field.
 *
 * A stored tensor is int8 [tiles][channels][height][width][ILANES]. An op does not write it: it
 * writes int16 of the same layout, `raw`, and `requantise` makes the int8 of that once the statistics
 * of the whole batch are known. Gradients are int16.
 *
 * Every number a kernel needs comes as integers per channel. A real factor r is a multiplier m and
 * a shift s, r = m * 2^-s; (m * x + 2^(s - 1)) >> s rounds half up. Arrays
 * are [channels] of the tensor they belong to.
 *
 * All sums are exact, so that no result depends on lanes, parts or threads.
 */
#ifndef FEDKIT_INT_KERNELS_H
#define FEDKIT_INT_KERNELS_H

#include "kernels.h"

struct int_tensor {
    int8_t *x;
    int16_t *raw;
    int16_t *gradient;
    int64_t examples;
    int32_t channels;
    int32_t plane;
};

/* Reading: clamp((a * x + b + half) >> shift, low, high). */
struct int_read {
    int32_t *a, *b, *shift;
    int32_t low, high;
};

/* What a gradient of the value read becomes as one of `raw`: (a * g + b * k + c + r) >> shift,
 * where k is 0, x or the sign of x, and r rounds: half to even, or at random. */
struct int_chain {
    int32_t *a, *b, *c, *shift;
    int32_t *factor;    /* what the result is multiplied by at last; NULL: 1 */
    int32_t carrier;    /* 0, 1: x, 2: sign of x */
    int32_t limit;      /* results lie within +-limit */
    int32_t random;     /* round at random, by bits of (key, position of the element) */
    uint32_t key_low, key_high;
};

/* (old * a + new * b) >> shift, rounded half to even, for what is added to a gradient that holds
 * something. */
struct int_mix {
    int32_t *a, *b, *shift;
};

/* As `struct map`, with taps in pairs: row r has the pairs first[r] .. first[r + 1], or, dense, all
 * `pairs` with shared offsets, and the weights of a block of rows lie [pairs][rows of it][2]: blocks
 * are of int_rows() rows, what is left of 2, and of 1. */
struct int_map {
    const int32_t *first;
    const int32_t *offset;   /* [pairs][2] */
    const int16_t *weight;   /* [pairs][2] */
    const int32_t *slot_in;
    const int32_t *slot_out;
    int32_t rows;
    int32_t pairs;
    int32_t slots;
};

struct int_conv {
    struct int_tensor *source, *target;
    struct int_read read;       /* of the source */
    struct int_chain chain;     /* of the target's gradient */
    struct int_mix mix;         /* of the source's gradient */
    struct int_map forward;
    const struct int_map *backward;
    int32_t *bias;              /* [target channels], in units of the sums */
    int32_t *shift_out;         /* [target channels]: from a sum to raw */
    int32_t *shift_in;          /* [source channels]: from a sum to a gradient */
    const int32_t *first;       /* sparse: taps of each row, [rows + 1]; dense: NULL */
    const struct tap *tap;      /* sparse */
    const int32_t *full_offset; /* dense: [full_taps] */
    const uint8_t *used_in, *used_out;
    const int32_t *first_unclipped, *last_unclipped; /* [source channels]: codes whose value the
                                                        read did not clip; NULL: all */
    const int32_t *line_in, *line_out;
    struct padding in, out;
    int32_t in_height, in_width, out_height, out_width;
    int32_t lines, line_length;
    int32_t phases;
    int32_t tiles, tiles_per_part;
    int32_t full_taps;
    int32_t stride;
    int32_t most_slots;         /* pixels whose products fit a sum of int32 */
    int32_t accumulate;
};

/* Arrays are [elements of an example], or [tiles][ILANES] for examples. */
struct int_layer {
    struct int_tensor *source, *target;
    struct int_read read;          /* of the source */
    struct int_chain chain;        /* of the target's gradient */
    struct int_chain out;          /* of what the normalised values get; arrays are [blocks] */
    struct int_mix mix;            /* of the source's gradient */
    const int32_t *scale, *offset; /* elements: from normalised values to raw */
    const int32_t *factor;         /* elements: from gradients to those of normalised values */
    int32_t *multiplier, *inverse_shift; /* [blocks][lanes of all tiles]: 1 / deviation */
    int32_t *centre, *a, *b, *shift;     /* likewise: (a * (v - centre) + b + half) >> shift */
    int64_t eps;
    int32_t numerator, exponent;
    int32_t blocks;      /* of an example, each normalised by itself: groups of channels, */
    int32_t places;      /* or all channels of each place */
    int32_t per_channel; /* whether `scale`, `offset` and `factor` are, not per element */
    int32_t centred;     /* whether the mean is taken off */
    int32_t l1;
    int32_t accumulate;
};

struct int_pool {
    struct int_tensor *source, *target;
    struct int_read read;
    struct int_chain chain;
    struct int_mix mix;
    struct windows windows;
    int32_t maximum;
    int32_t shift_out, shift_in;
    int32_t accumulate;
};

/* A function of one value as a table of what is read, from -128 on: of its values or its slopes. */
struct int_function {
    struct int_tensor *source, *target;
    struct int_read read;
    struct int_chain chain;
    struct int_mix mix;
    const int16_t *table;          /* [256] */
    int32_t accumulate;
};

/* As `struct pair`. */
struct int_pair {
    struct int_tensor *left, *right, *target;
    struct int_read read_left, read_right;
    struct int_chain chain;
    struct int_mix mix;
    int32_t kind;
    int32_t side;
    int32_t accumulate;
};

/* Softmax of scores, see integer/softmax_shares.py: codes of what is up to `cut` below the largest, and shares
 * of `bits` bits. */
struct int_shares {
    int32_t cut, left, a, top, bits;
};

/* A source of an op that multiplies two activations. */
struct int_side {
    struct int_tensor *tensor;
    struct int_read read;
    struct int_mix mix;         /* of its gradient */
    const int32_t *shift;       /* [channels]: from a sum to a gradient */
    const int32_t *first_unclipped, *last_unclipped; /* as of `struct int_conv` */
    int32_t gives;              /* whether it gets a gradient */
    int32_t accumulate;
};

struct int_softmax {
    struct int_tensor *source, *target;
    struct int_read read;
    struct int_chain chain;
    struct int_mix mix;
    struct int_shares shares;
    const int32_t *shift_in;    /* [channels] */
    int32_t accumulate;
};

/* target[n, row, m] = sum over k of left[k, row, m] * right[n, row, k] */
struct int_product {
    struct int_side left, right;
    struct int_tensor *target;
    struct int_chain chain;
    int32_t rows;               /* of a map: each has matrices of its own */
    int32_t shift_out;
};

/* As `struct attention`. */
struct int_attention {
    struct int_side query, key, value;
    struct int_tensor *target;
    struct int_chain chain;
    struct int_shares shares;
    struct int_chain rows;      /* of slopes of scores; arrays are [heads * queries] */
    const int32_t *row_shift;   /* likewise: narrows slopes before */
    int32_t heads;
    int32_t causal;
    int32_t sign;               /* of scores */
    int32_t score_shift, out_shift, slope_shift;
};

/* As `struct take`. */
struct int_take {
    struct int_tensor *source, *target;
    struct int_read read;
    struct int_chain chain;
    struct int_mix mix;
    const int32_t *channels, *pixels, *order, *first;
    int32_t shift_in;
    int32_t accumulate;
};

/* As `struct blocks`, of whose fields `where` has the sizes alone. */
struct int_blocks {
    struct int_tensor *source, *target;
    struct int_read read;
    struct int_chain chain;
    struct int_mix mix;
    struct blocks where;
    const int32_t *bias;           /* [target channels]; NULL: 0 */
    int32_t accumulate;
};

/* -- what integers are worth ------------------------------------------------------------------- */

/* A parameter in fixed point; without one, `weight` is NULL. */
struct int_parameter {
    int32_t *weight;
    const int32_t *point;   /* bits behind the point of all its weights */
    int64_t *gradient;      /* NULL: not wanted */
    double *unit;           /* [rows]: what 1 of the gradient is worth */
};

/* What all steps of a program share. Room is for the tensor of most channels. */
struct int_units {
    uint64_t seed, step;    /* of random rounding */
    struct int_read read, other;
    struct int_chain chain;
    struct int_mix mix;
    int64_t *sums;          /* [channels][5] */
    double *reals;          /* [2][channels] */
    int16_t *scratch;
    double failed;          /* a bound of sums that int32 may not hold */
    int32_t rule;           /* how gradients are scaled */
    int32_t tiles;
    int32_t running;        /* whether norms go by running statistics */
    int32_t takes;          /* whether they take those of the batch */
};

/* A batch norm. Statistics are real numbers per channel, those of the batch seen last. */
struct int_norm {
    struct int_parameter scale, offset;
    double *mean, *spread, *variance;
    const double *running_mean, *running_deviation;
    double eps;
    double k;       /* a normal distribution's deviation by its mean absolute deviation */
    int32_t l1;
};

enum { NO_ACTIVATION, RELU, RELU6 };

/* What the integers of a tensor stand for. Arrays are [channels]. */
struct int_worth {
    struct int_units *units;
    struct int_tensor *tensor;
    const struct int_norm *norm;    /* NULL: none */
    double *factor, *offset;        /* a code x is worth factor * x + offset */
    double *raw_unit;               /* 1 of raw */
    double *unit, *most;            /* 1 of the gradient, and its largest magnitude */
    double *a, *b, *c;              /* as a * g + b * k + c it passes the norm; k by `carrier` */
    double *deviation;              /* what the norm divided by */
    double bound;                   /* largest magnitude of what is read */
    int32_t carrier;                /* as of `struct int_chain`; 0: it passes as it is */
    int32_t finished;               /* whether `most` is known of the whole gradient */
    int32_t activation;
    int32_t finer;                  /* bits of raw behind those of codes; -1: chosen by the largest */
};

/* Where the codes of a layer lie in one of its maps; an index below 0 is a code of 0. */
struct int_order {
    int16_t *weight;
    const int32_t *index;
    int64_t count;
};

/* The codes of a layer's weights. */
struct int_codes {
    int16_t *code;
    double *scale;              /* [rows] */
    const int32_t *ends;        /* [rows]: where they end */
    const int32_t *column;      /* input channel of each code, where `area` is 0 */
    const struct int_order *orders;
    double clip;                /* in deviations of a row's weights */
    int32_t rows, columns;      /* output and input channels */
    int32_t area;               /* of a dense layer: codes of a row for one column */
    int32_t order_count;
    int32_t most;
};

struct int_conv_step {
    struct int_conv *conv;
    struct int_worth *source, *target;
    struct int_parameter weight, bias;
    struct int_codes codes;
    int32_t *first, *last;      /* room for codes that are not clipped */
    double unit;                /* what 1 of what was read is worth */
    double widest;              /* of what is read, in its deviations */
    int32_t high;               /* largest magnitude that is read */
    int32_t most;               /* of a gradient's codes */
    int32_t stored;             /* whether codes are read as they are */
    int32_t clips;
    int32_t number;             /* of the op */
    int32_t trains, gives, accumulate;
};

/* Copies, sums and gradients that are shared. */
struct int_copy_step {
    struct int_worth *source, *other, *target;
    int32_t channel;
    int32_t accumulate;
};

struct int_pool_step {
    struct int_pool *pool;
    struct int_worth *source, *target;
    double divisor;
    int32_t area;       /* values of a window */
    int32_t overlap;    /* windows of a value */
    int32_t accumulate;
};

/* An entry of a program's table: which step, and its struct. */
struct int_step {
    void *what;
    int32_t kind;
};

/* One step of SGD over some parameters. */
struct int_update {
    int32_t *weight, *velocity;
    const int64_t *gradient;
    const double *unit;         /* [rows] */
    const int32_t *ends;        /* [rows] */
    int32_t *point;
    int64_t count;
    int32_t rows;
    int32_t number;             /* of the parameter */
};

struct int_sgd {
    uint64_t seed, step;
    double rate, momentum, decay;
    int32_t *multiplier, *shift; /* room: [rows] */
    double *failed;             /* [2]: how far a weight moves, from how large a one */
    int32_t momentum_bits;      /* momentum with 30 bits behind the point */
    int32_t extra;              /* bits that velocities have behind those of weights */
};

#endif
