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
    const int32_t *a, *b, *shift;
    int32_t low, high;
};

/* What a gradient of the value read becomes as one of `raw`: (a * g + b * k + c + r) >> shift,
 * where k is 0, x or the sign of x, and r rounds: half to even, or at random. */
struct int_chain {
    const int32_t *a, *b, *c, *shift;
    const int32_t *factor;  /* what the result is multiplied by at last; NULL: 1 */
    int32_t carrier;    /* 0, 1: x, 2: sign of x */
    int32_t limit;      /* results lie within +-limit */
    int32_t random;     /* round at random, by bits of (key, position of the element) */
    uint32_t key_low, key_high;
};

/* (old * a + new * b) >> shift, rounded half to even, for what is added to a gradient that holds
 * something. */
struct int_mix {
    const int32_t *a, *b, *shift;
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
    const int32_t *bias;        /* [target channels], in units of the sums */
    const int32_t *shift_out;   /* [target channels]: from a sum to raw */
    const int32_t *shift_in;    /* [source channels]: from a sum to a gradient */
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

#endif
