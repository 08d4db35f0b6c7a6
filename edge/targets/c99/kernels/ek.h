/* Int8 inference: what a generated model calls.
 *
 * Activations are bytes u = q + 128 (q the int8 of the graph), so that one after a ReLU has zero
 * point 0. A tensor is a row of planes, one per channel, in one arena:
 *
 *     halo_y rows | plane 0 | halo_y rows | plane 1 | ... | halo_y rows
 *
 * A row holds `width` pixels, then `row - width` bytes of halo, which are also the left halo of
 * the row below. All of the halo holds the zero point, so that a window needs no bounds: each of
 * its taps is one fixed distance from a pixel. Every function that writes a tensor writes its halo.
 *
 * A pointer to a tensor points to the first pixel of plane 0; `lead` bytes of halo lie before it.
 * Functions may read, but never write, up to EK_SLACK bytes past a tensor: leave that at the end
 * of the arena. Inputs must not overlap outputs, except where a function says so.
 *
 * Convolutions have stride 1. For others `ek_split` first takes a tensor apart into stride_y *
 * stride_x phases. `edge/targets/c99/pack.py` makes all constants.
 */
#ifndef EK_H
#define EK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EK_SLACK 64

/* Where a tensor's bytes are. */
typedef struct {
    int32_t channels, height, width;
    int32_t row;   /* bytes from a pixel to the one below: width + halo */
    int32_t plane; /* bytes from a pixel to the same of the next channel */
    int32_t lead;  /* bytes of halo before the first pixel */
    uint8_t zero;  /* zero point + 128: what the halo holds */
} ek_planes;

/* From sums to bytes: clamp(zero + (sum * multiplier + 2^(shift - 1) >> shift), low, high).
 * 2^30 <= multiplier < 2^31, 31 <= shift <= 62; `zero`, `low`, `high` are bytes. Zero points of
 * inputs are in the biases already. */
typedef struct {
    const int32_t *bias, *multiplier; /* [out channels] */
    const uint8_t *shift;
    uint8_t zero, low, high;
} ek_requant;

/* clamp(zero + (a * scale_a + b * scale_b + offset >> shift), low, high), where `offset` is
 * 2^(shift - 1) less what the zero points of a and b contribute. Scales are 0 .. 2^20 - 1, and
 * faster below 2^15; 1 <= shift <= 30. */
typedef struct {
    int32_t scale_a, scale_b, offset;
    uint8_t shift, zero, low, high;
} ek_sum;

/* Four weights at their distances from a pixel. Neither of the first two's nor of the last two's
 * products sum up beyond int16, whatever the bytes are. */
typedef struct {
    int32_t at[4];
    int8_t weight[4];
} ek_quad;

typedef struct {
    int32_t at[2];
    int16_t weight[2];
} ek_pair;

/* How many quads and pairs an output channel has. With `run` > 1 the sums of so many quads in a
 * row fit int16 too. With `near` > 0 the float multiplier * 2^-shift, and `near` - EK_NEAREST floats
 * further, gives the same bytes (where a processor rounds to the nearest, as they all do at first).
 * Filters may stand in any order, their quads and pairs in the same: sorted by their numbers, loops
 * end where the processor expects it. */
typedef struct {
    uint16_t channel, quads, pairs;
    uint8_t run, near;
} ek_filter;

#define EK_NEAREST 3

/* A convolution (grouped or depthwise too) by its non-zero weights. */
typedef struct {
    ek_planes out;
    ek_requant requant;
    int32_t in_row; /* `row` of the input */
    const ek_filter *filters;
    const ek_quad *quads;
    const ek_pair *pairs;
    const ek_sum *sum; /* a: the convolution, b: another tensor; or 0 */
} ek_sparse_conv;

/* A convolution by a stream of bytes, for small memories. Per output channel:
 *   the number of weights, two bytes, low first, then per weight the distance to the index of the
 *   one before (from -1), 1 .. 255, with 0 meaning 255 and no weight yet; then their values,
 *   `bits` 8: one byte each, 4: two to a byte, low half first.
 * Index = (channel within the group * taps + tap). */
typedef struct {
    ek_planes out;
    ek_requant requant;
    int32_t in_row, in_plane;
    int32_t taps;      /* per channel */
    const int32_t *at; /* [taps] distances */
    int32_t group_in, group_out; /* channels of a group */
    int32_t bits;
    const uint8_t *stream;
    const ek_sum *sum;
} ek_stream_conv;

/* A convolution by all its weights: [out / 4][taps / 2][4][2], both rounded up, filled with 0. */
typedef struct {
    ek_planes out;
    ek_requant requant;
    int32_t in_row;
    int32_t taps;      /* of one output channel, all input channels */
    const int32_t *at; /* [taps, rounded up to even] distances */
    const int8_t *weights;
    const ek_sum *sum;
} ek_dense_conv;

/* The same for small memories: [out][taps rounded up to 4], filled with 0; of every four weights the
 * second and third have changed places. */
typedef struct {
    ek_planes out;
    ek_requant requant;
    int32_t in_row;
    int32_t taps;      /* of one output channel, all input channels */
    const int32_t *at; /* [taps, rounded up to 4] distances */
    const int8_t *weights;
    const ek_sum *sum;
} ek_full_conv;

/* What the compiler may use, unless EK_PLAIN is defined. */
#if !defined(EK_PLAIN) && defined(__AVX2__)
#define EK_AVX2 1
#define EK_SIMD 1
#elif !defined(EK_PLAIN) && defined(__aarch64__) && defined(__ARM_NEON) && !defined(__ARM_BIG_ENDIAN)
#define EK_NEON 1
#define EK_SIMD 1
#elif !defined(EK_PLAIN) && defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_SIMD32) && \
    !defined(__aarch64__) && !defined(__ARM_BIG_ENDIAN)
#define EK_DSP 1
#endif

/* `scratch` of ek_conv_dense, aligned to 4. */
#define EK_TILE 64 /* pixels */
#ifdef EK_SIMD
#define EK_DENSE_SCRATCH(taps) (((taps) + 1) / 2 * (4 * EK_TILE + 16))
#else
#define EK_DENSE_SCRATCH(taps) 4
#endif

/* `scratch` of ek_conv_stream, whose filters have at most so many weights, and of ek_conv_full, both
 * aligned to 4. */
#define EK_STREAM_SCRATCH(weights) (8 * ((weights) + 1))
#define EK_FULL_SCRATCH(taps) (((taps) + 3) / 4 * 32)

/* `other`, of the layout of `out`, is what conv->sum adds; it may be `out` itself. */
void ek_conv_sparse(const ek_sparse_conv *conv, const uint8_t *in, const uint8_t *other,
                    uint8_t *out);
void ek_conv_stream(const ek_stream_conv *conv, const uint8_t *in, const uint8_t *other,
                    uint8_t *out, void *scratch);
void ek_conv_dense(const ek_dense_conv *conv, const uint8_t *in, const uint8_t *other, uint8_t *out,
                   void *scratch);
void ek_conv_full(const ek_full_conv *conv, const uint8_t *in, const uint8_t *other, uint8_t *out,
                  void *scratch);

/* out[o] = sum of weights[o][i] * in[i]; `in` and `out` are vectors: planes of one pixel. */
typedef struct {
    int32_t inputs, outputs;
    ek_requant requant;
    const int8_t *weights; /* [outputs][inputs] */
} ek_linear_layer;

void ek_linear(const ek_linear_layer *layer, const uint8_t *in, uint8_t *out);

/* Both inputs and the output have the layout `planes`; `out` may be one of the inputs. */
void ek_add(const ek_sum *sum, const ek_planes *planes, const uint8_t *a, const uint8_t *b,
            uint8_t *out);

/* Mean of each plane to a vector; the one bias is -count * zero point of the input. */
void ek_mean(const ek_requant *requant, const ek_planes *in, const uint8_t *x, uint8_t *out);

/* Weighted sums of each row, to a pixel; biases hold -weight * width * zero point of the input. */
typedef struct {
    ek_planes in, out;
    ek_requant requant;
    const int8_t *weights; /* [channels] */
} ek_row_sums;

void ek_sum_rows(const ek_row_sums *sums, const uint8_t *x, uint8_t *out);

typedef struct {
    int32_t kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x, top, left;
} ek_window;

/* Padding is not counted, and never the largest. */
void ek_avg_pool(const ek_window *window, const ek_planes *in, const ek_planes *out,
                 const uint8_t *x, uint8_t *y);
void ek_max_pool(const ek_window *window, const ek_planes *in, const ek_planes *out,
                 const uint8_t *x, uint8_t *y);

/* int8 [height, width, channels] to planes. */
void ek_load(const ek_planes *planes, const int8_t *image, uint8_t *out);
/* A vector to int8. */
void ek_store(int32_t count, const uint8_t *x, int8_t *out);
/* Another halo, or a pad: all of `in` put at (top, left) of planes of `out`. */
void ek_pad(const ek_planes *in, const ek_planes *out, int32_t top, int32_t left, const uint8_t *x,
            uint8_t *y);
/* Channels of another tensor of the same height, width, halo and zero point to where they belong
 * in a tensor. */
void ek_concat(const ek_planes *in, const uint8_t *x, uint8_t *out);
/* To a vector, in the order channel, row, column. */
void ek_flatten(const ek_planes *in, const uint8_t *x, uint8_t *out);
/* To a vector, in the order row, column, channel. */
void ek_interleave(const ek_planes *in, const uint8_t *x, uint8_t *out);

/* Phases of a padded tensor: plane (c * stride_y + a) * stride_x + b holds at (y, x) what the input
 * has at (y * stride_y + a - top, x * stride_x + b - left) of channel c, halo included. `out`, with
 * no halo of its own, has the number of planes and their size. */
typedef struct {
    int32_t stride_y, stride_x, top, left;
    ek_planes in, out;
} ek_phases;

void ek_split(const ek_phases *phases, const uint8_t *x, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif
