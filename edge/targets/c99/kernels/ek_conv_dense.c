/* Convolution by all weights: a matrix product of weights and patches. */
#include "ek_simd.h"

#ifdef EK_SIMD

/* `count` (at most 16) pixels of a plane in the order of reading, over the ends of its rows: in one,
 * two or four whole rows, or in other pieces. */
typedef enum { EK_ONE, EK_TWO, EK_FOUR, EK_PIECES } ek_span_kind;

typedef struct {
    ek_span_kind kind;
    int32_t start, column, width, row, count;
} ek_span;

static inline ek_span ek_span_of(int32_t width, int32_t row, int32_t first, int32_t count) {
    const int32_t y = first / width, x = first - y * width;
    ek_span span = {EK_PIECES, y * row + x, x, width, row, count};
    if (x + 16 <= width && count == 16) span.kind = EK_ONE;
    if (x == 0 && width == 8 && count == 16) span.kind = EK_TWO;
    if (x == 0 && width == 4 && count == 16) span.kind = EK_FOUR;
    return span;
}

static inline ek_bytes16 ek_gather(const ek_span *span, const uint8_t *plane) {
    const uint8_t *p = plane + span->start;
    const int32_t row = span->row;
    if (span->kind == EK_ONE) return ek_load16(p);
    if (span->kind == EK_TWO) return ek_load_eights(p, row);
    if (span->kind == EK_FOUR) return ek_load_fours(p, row);
    uint8_t bytes[16] = {0};
    for (int32_t at = 0, left = span->width - span->column; at < span->count; left = span->width) {
        const int32_t size = left < span->count - at ? left : span->count - at;
        ek_copy(bytes + at, p, size);
        p += at == 0 ? row - span->column : row;
        at += size;
    }
    return ek_load16(bytes);
}

static inline void ek_scatter(const ek_span *span, uint8_t *plane, ek_bytes16 bytes) {
    uint8_t all[16], *p = plane + span->start;
    if (span->kind == EK_ONE) {
        ek_store16(p, bytes);
        return;
    }
    ek_store16(all, bytes);
    if (span->kind == EK_TWO || span->kind == EK_FOUR) {
        const int32_t size = span->width, rows = 16 / size;
        for (int32_t y = 0; y < rows; y++, p += span->row) {
            memcpy(p, all + y * size, 4);
            if (size == 8) memcpy(p + 4, all + y * size + 4, 4);
        }
        return;
    }
    for (int32_t at = 0, left = span->width - span->column; at < span->count; left = span->width) {
        const int32_t size = left < span->count - at ? left : span->count - at;
        ek_copy(p, all + at, size);
        p += at == 0 ? span->row - span->column : span->row;
        at += size;
    }
}

/* Whole patches where 16 pixels are so many rows; returns the taps that it did. */
static inline int32_t ek_whole_patches(const ek_dense_conv *conv, const ek_span_kind kind,
                                       const uint8_t *p, uint8_t *to) {
    const int32_t row = conv->in_row, taps = conv->taps;
    const int32_t *at = conv->at;
    int32_t k = 0;
    for (; k + EK_DEEP <= taps; k += EK_DEEP, to += 64) {
        ek_bytes16 each[EK_DEEP];
        for (int32_t i = 0; i < EK_DEEP; i++) {
            const uint8_t *tap = p + at[k + i];
            each[i] = kind == EK_ONE   ? ek_load16(tap)
                      : kind == EK_TWO ? ek_load_eights(tap, row)
                                       : ek_load_fours(tap, row);
        }
        ek_store_patch(to, each);
    }
    return k;
}

/* Patches of 16 pixels, filled up with what meets weights of 0. */
static void ek_patches(const ek_dense_conv *conv, const uint8_t *in, int32_t first, int32_t count,
                       uint8_t *to) {
    const ek_span span = ek_span_of(conv->out.width, conv->in_row, first, count);
    int32_t k = 0;
    if (span.kind == EK_ONE) k = ek_whole_patches(conv, EK_ONE, in + span.start, to);
    if (span.kind == EK_TWO) k = ek_whole_patches(conv, EK_TWO, in + span.start, to);
    if (span.kind == EK_FOUR) k = ek_whole_patches(conv, EK_FOUR, in + span.start, to);
    for (to += k / EK_DEEP * 64; k < conv->taps; k += EK_DEEP, to += 64) {
        ek_bytes16 taps[EK_DEEP];
        for (int32_t i = 0; i < EK_DEEP; i++)
            taps[i] = ek_gather(&span, in + conv->at[k + i < conv->taps ? k + i : k]);
        ek_store_patch(to, taps);
    }
}

typedef struct {
    ek_scale scale[4];
    int32_t bias[4];
    int32_t channels; /* 1 .. 4 */
} ek_four_channels;

/* 16 pixels of a row, which lie side by side. */
static inline void ek_finish_row(const ek_dense_conv *conv, const ek_four_channels *four,
                                 const ek_adder *adder, const ek_sixteen *sums,
                                 const uint8_t *other, uint8_t *out) {
    for (int32_t c = 0; c < four->channels; c++, out += conv->out.plane) {
        const ek_bytes16 bytes = ek_scaled_sixteen(&four->scale[c], sums[c]);
        ek_store16(out, conv->sum ? ek_added_half(adder, bytes, ek_load16(other)) : bytes);
        other += conv->out.plane;
    }
}

static void ek_finish(const ek_dense_conv *conv, const ek_four_channels *four,
                      const ek_adder *adder, const ek_sixteen *sums, const ek_span *span,
                      const uint8_t *other, uint8_t *out) {
    if (span->kind == EK_ONE) {
        ek_finish_row(conv, four, adder, sums, other + span->start, out + span->start);
        return;
    }
    for (int32_t c = 0; c < four->channels; c++, out += conv->out.plane, other += conv->out.plane) {
        ek_bytes16 bytes = ek_scaled_sixteen(&four->scale[c], sums[c]);
        if (conv->sum) {
            const ek_bytes16 added = ek_gather(span, other);
            bytes = ek_added_half(adder, bytes, added);
        }
        ek_scatter(span, out, bytes);
    }
}

static ek_four_channels ek_four_of(const ek_dense_conv *conv, int32_t first) {
    ek_four_channels four;
    const int32_t rest = conv->out.channels - first;
    four.channels = rest < 4 ? rest : 4;
    for (int32_t c = 0; c < 4; c++) {
        const int32_t channel = first + (c < four.channels ? c : 0);
        four.scale[c] = ek_scale_of(&conv->requant);
        ek_scale_channel(&four.scale[c], &conv->requant, channel, 0);
        four.bias[c] = conv->requant.bias[channel];
    }
    return four;
}

/* All output channels of the EK_TILE pixels from `start` on. */
static void ek_pixels(const ek_dense_conv *conv, int32_t start, int32_t end, const uint8_t *in,
                      const uint8_t *other, uint8_t *out, uint8_t *scratch) {
    const int32_t pairs = (conv->taps + 1) / 2;
    const int32_t patches = (conv->taps + EK_DEEP - 1) / EK_DEEP;
    uint8_t *weights = scratch + patches * 4 * EK_TILE;
    const ek_adder adder = ek_adder_of(conv->sum ? conv->sum : &ek_no_sum);
    ek_span spans[EK_TILE / 16];
    const int32_t count = (end - start + 15) / 16;
    for (int32_t i = 0; i < count; i++) {
        const int32_t first = start + 16 * i, pixels = end - first < 16 ? end - first : 16;
        ek_patches(conv, in, first, pixels, scratch + i * patches * 64);
        spans[i] = ek_span_of(conv->out.width, conv->out.row, first, pixels);
    }
    for (int32_t c = 0; c < conv->out.channels; c += 4) {
        ek_four_channels four = ek_four_of(conv, c);
        ek_unpack(conv->weights + c * pairs * 2, pairs, weights, four.bias);
        for (int32_t i = 0; i < count; i++) {
            ek_sixteen sums[4];
            ek_tile(weights, scratch + i * patches * 64, patches, four.bias, sums);
            ek_finish(conv, &four, &adder, sums, &spans[i], other + c * conv->out.plane,
                      out + c * conv->out.plane);
        }
    }
}

void ek_conv_dense(const ek_dense_conv *conv, const uint8_t *in, const uint8_t *other, uint8_t *out,
                   void *scratch) {
    const int32_t pixels = conv->out.height * conv->out.width;
    if (!conv->sum) other = out;
    for (int32_t start = 0; start < pixels; start += EK_TILE) {
        const int32_t end = pixels - start < EK_TILE ? pixels : start + EK_TILE;
        ek_pixels(conv, start, end, in, other, out, (uint8_t *)scratch);
    }
    ek_halo_before(&conv->out, out);
    for (int32_t c = 0; c < conv->out.channels; c++, out += conv->out.plane)
        ek_halo_of(&conv->out, out);
}

#else

typedef struct {
    const ek_dense_conv *conv;
    int32_t channel;
} ek_dense_filter;

static void ek_dense_taps(const void *state, const uint8_t *p, int32_t *sums, int32_t count) {
    const ek_dense_filter *filter = (const ek_dense_filter *)state;
    const ek_dense_conv *conv = filter->conv;
    const int32_t pairs = (conv->taps + 1) / 2, c = filter->channel;
    const int8_t *weights = conv->weights + (c / 4 * pairs * 4 + c % 4) * 2;
    for (int32_t k = 0; k < conv->taps; k++)
        ek_tap(sums, p + conv->at[k], weights[k / 2 * 8 + k % 2], count);
}

void ek_conv_dense(const ek_dense_conv *conv, const uint8_t *in, const uint8_t *other, uint8_t *out,
                   void *scratch) {
    ek_channel c = {&conv->out, &conv->requant, conv->sum, 0, conv->in_row};
    (void)scratch;
    if (!conv->sum) other = out;
    ek_halo_before(&conv->out, out);
    for (; c.channel < conv->out.channels; c.channel++) {
        const ek_dense_filter filter = {conv, c.channel};
        ek_plane(&c, ek_dense_taps, &filter, in, other, out);
        out += conv->out.plane;
        other += conv->out.plane;
    }
}

#endif
