/* What the kernels are told. Python fills these structs; native.py mirrors them field by field.
 *
 * Every stored tensor is float [tiles][channels][height][width][LANES]. A tile is LANES examples.
 * In the last one, lanes beyond `examples` hold values nobody reads: every sum over examples
 * leaves them out, and every gradient is 0 there.
 *
 * The batch is worked off in parts of a few tiles. Sums over a batch are made per part and merged
 * in the order of the parts, so that no result depends on who computed which part.
 *
 * Offsets are in floats. Pointers need no more alignment than a float.
 */
#ifndef FEDKIT_KERNELS_H
#define FEDKIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Offsets and indices in tables; a trainer for a microcontroller has 16 bits where they fit. */
#if defined(FEDKIT_SHORT_TABLES)
typedef int16_t place_t;
#else
typedef int32_t place_t;
#endif

enum activation { ACT_NONE, ACT_RELU, ACT_RELU6 };

struct stored;

/* The least and the most value of a plane. */
struct range {
    float least, most;
};

/* A stored tensor and how it is read: activation(scale * x + shift), per channel. `gradient` is
 * that of the value read. Once finished (activation passed), the gradient of x itself is
 * a * gradient + b * x + c; for an L1 norm, b * sign(x - mean) instead of b * x. */

struct tensor {
    float *x;
    float *gradient;     /* NULL where none is needed */
    const float *scale;  /* [channels]; NULL: 1, and shift is 0 */
    const float *shift;
    const float *a;      /* [channels]; NULL: 1, and b and c are 0 */
    const float *b;
    const float *c;
    const float *mean;   /* [channels] if the tensor has a norm */
    double *sums;        /* [parts][channels][2] of the op that ran last */
    struct range *ranges; /* [tiles][channels], if what writes x tells; or NULL */
    const struct stored *stored; /* where its values are, in few bits; NULL: at x */
    int64_t examples;
    int32_t channels;
    int32_t plane;       /* height * width */
    int32_t activation;
    int32_t l1;
};

/* One kept weight as seen from a row: where its input lies from a pixel's origin, and which of
 * the layer's values it is. */
struct tap {
    place_t offset;
    place_t index;
};

/* A linear map from padded planes to planes, the same for every pixel: one row of taps per output
 * channel. The slots are the pixels of a part; two tables give their origins in the input and
 * their places in the output.
 * Sparse: row r has the taps first[r] .. first[r + 1]. Dense (first is NULL): every row has all
 * `taps`, with shared offsets, and `matrix` [rows][taps] holds the weights. */
struct map {
    const place_t *first;
    const struct tap *tap;
    const place_t *offset;    /* dense: [taps] */
    const place_t *from;      /* dense backward: [taps], where row 0's weights come from */
    const float *matrix;
    const place_t *slot_in;
    const place_t *slot_out;
    int32_t rows;
    int32_t taps;
    int32_t from_step;        /* dense backward: from one row's weights to the next row's */
    int32_t slots;            /* pixels of one tile */
};

/* Planes with a frame of zeros: [height][width][LANES], the pixels starting at (top, left). */
struct padding {
    int32_t top, left, height, width;
};

struct conv {
    const struct tensor *source, *target;
    const float *values;        /* the layer's weights, kept ones only unless it runs dense */
    const float *bias;          /* [target channels] or NULL */
    const uint8_t *used_in;     /* [source channels]: some kept weight reads it */
    const uint8_t *used_out;    /* [target channels]: it has a kept weight, or a bias */
    const place_t *full_offset; /* [full_taps]: a row's taps if none were pruned */
    const place_t *line_in;     /* [lines of a part]: origin of an output line in padded inputs */
    const place_t *line_out;    /* the same run in padded gradients of the output */
    struct map forward;         /* from padded inputs */
    const struct map *backward; /* from padded gradients of the output; one per phase of stride */
    struct padding in, out;
    int32_t in_height, in_width, out_height, out_width;
    int32_t lines, line_length; /* lines of one tile, and pixels of a line */
    int32_t phases;
    int32_t tiles, tiles_per_part;
    int32_t groups;
    int32_t full_taps;          /* source channels / groups * kernel height * kernel width */
    int32_t stride;             /* floats between the inputs of neighbouring outputs */
    int32_t direct;             /* inputs need no packing: no padding, read as they are */
    int32_t statistics;         /* the target has a norm: sum what is written */
    int32_t accumulate;         /* the source's gradient holds something already */
    int32_t finish;             /* this is the last contribution to the source's gradient */
};

/* A norm and its tensor. Arrays are [channels]. */
struct norm {
    const struct tensor *tensor;
    const float *weight, *bias;            /* NULL: 1, 0 */
    float *weight_gradient, *bias_gradient;
    float *scale, *shift, *mean, *a, *b, *c;
    double *center;                        /* mean of x */
    double *spread;                        /* sum of (x - mean)^2; L1: of |x - mean| */
    double *signs;                         /* L1: mean of sign(x - mean) */
    double eps;
    int32_t l1;
};

/* A layer norm. Parameters and their gradients are [elements of an example]. */
struct layer {
    const struct tensor *source, *target;
    const float *weight, *bias;            /* NULL: 1, 0 */
    float *weight_gradient, *bias_gradient;
    float *mean, *inverse;                 /* [tiles][groups][LANES]: 1 / deviation */
    double eps;
    int32_t groups;                        /* of channels, each normalised by itself */
    int32_t per_channel;                   /* whether parameters are, else per element */
    int32_t l1;
    int32_t accumulate;
};

/* The windows that a pooling op slides over a plane. */
struct windows {
    int32_t in_height, in_width, out_height, out_width;
    int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x;
};

struct pool {
    const struct tensor *source, *target;
    uint8_t *argmax;                       /* [tiles][target channels][plane][LANES]; NULL: none */
    struct windows windows;
    float share;                           /* by which a sum over the whole kernel is multiplied */
    int32_t maximum;                       /* else that */
    int32_t accumulate;
};

/* A function of one value; a, b and c are its settings, in the order of the plan. */
struct function {
    struct tensor *source, *target;
    float a, b, c;
    int32_t kind;                          /* enum function_kind */
    int32_t accumulate;
};

/* A product, difference or sum of two tensors, of which one may have a single pixel per channel. */
struct pair {
    struct tensor *left, *right, *target;
    int32_t kind;                          /* enum pair_kind */
    int32_t side;                          /* whose gradient it is; 0: left's */
    int32_t accumulate;
};

/* Which channel of the source each of the target's is, and which pixel each pixel. */
struct take {
    struct tensor *source, *target;
    const int32_t *channels;               /* [target channels] */
    const int32_t *pixels;                 /* [target plane]; -1: a zero */
    const int32_t *order;                  /* target channels, sorted by the source's */
    const int32_t *first;                  /* [source channels + 1]: where each of those begins */
    int32_t accumulate;
};

/* Channels as places: pixel (y, x) of channel c * step_y * step_x + i * step_x + j is pixel
 * (y * step_y + i - top, x * step_x + j - left) of channel c, if there is one. */
struct blocks {
    struct tensor *source, *target;
    const float *bias;                     /* [target channels]; NULL: 0 */
    float *bias_gradient;
    int32_t in_height, in_width, out_height, out_width;
    int32_t step_y, step_x, top, left;
    int32_t accumulate;
};

/* Where element (c, y, x) of a source lies in a target, whose elements count through its channels and
 * pixels: start + c * channel + y * row + x * column. */
struct put {
    int32_t start, channel, row, column;
    int32_t width;                         /* of the source's rows */
};

/* A product of matrices, of which each row of maps holds one: its channels and columns. */
struct product {
    struct tensor *left, *right, *target;
    int32_t rows;                          /* of the maps */
    int32_t gives_left, gives_right;       /* enum gives */
};

/* Attention by heads. */
struct attention {
    struct tensor *query, *key, *value, *target;
    float scale;                           /* of scores */
    int32_t heads;
    int32_t causal;                        /* whether a place sees none behind it */
    int32_t gives_query, gives_key, gives_value;
};

/* A norm over the channels of each place. Parameters and their gradients are [channels]. */
struct channel_norm {
    struct tensor *source, *target;
    const float *weight, *bias;            /* NULL: 1, 0 */
    float *weight_gradient, *bias_gradient;
    float *mean, *inverse;                 /* [tiles][plane][LANES]: 1 / deviation */
    double eps;
    int32_t centred;                       /* whether the mean is taken off */
    int32_t accumulate;
};

#define STORED_PARTS 3

/* A code of part p of the values of a channel stands for base[p] + step[p] * code. Codes of part 1
 * begin at first[0], those of part 2 at first[1]; of three parts, those before it stand for no more than
 * limit. */
struct grid {
    float base[3], step[3], limit;
    int32_t first[2];
};

/* A tensor's values in few bits. */
struct stored {
    const struct tensor *tensor;
    void *codes;                           /* `bits` each, as the values lie */
    struct grid *grids;                    /* [tiles][channels] */
    int32_t bits;                          /* 16, 8 or 4 */
    uint32_t key_low, key_high;
};

#endif
