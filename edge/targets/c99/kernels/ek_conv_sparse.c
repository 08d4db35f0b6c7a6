/* Convolution by the non-zero weights: pixels are the vector dimension. */
#include "ek_simd.h"

typedef struct {
    const ek_filter *filter;
    const ek_quad *quads;
    const ek_pair *pairs;
    int32_t bias;
} ek_row;

static inline void ek_next_filter(ek_row *row) {
    row->quads += row->filter->quads;
    row->pairs += row->filter->pairs;
    row->filter++;
}

#if defined(EK_AVX512)

#include "ek_planes512.h"

#elif defined(EK_SIMD)

typedef struct {
    ek_scale scale;
    ek_adder adder;
    int adds;
} ek_tail;

#ifdef EK_NEON

EK_INLINE void ek_finish_block(const ek_tail *tail, ek_block sums, const uint8_t *other,
                               uint8_t *out) {
    ek_bytes32 bytes = ek_scaled_block(&tail->scale, sums);
    if (tail->adds) bytes = ek_added(&tail->adder, bytes, ek_load32(other));
    ek_store32(out, bytes);
}

/* What a filter has: no quads, quads, or some whose sums fit int16. */
typedef enum { EK_PAIRS, EK_QUADS, EK_RUNS } ek_filter_kind;

EK_INLINE void ek_blocks_of(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                            const uint8_t *other, uint8_t *out, int blocks, ek_filter_kind kind) {
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    ek_block x = ek_block_of(row->bias), y = x;
    while (kind == EK_RUNS) {
        const ptrdiff_t rest = last_quad - quad, run = row->filter->run;
        const ek_quad *end = quad + (rest < run ? rest : run);
        ek_quad_run(&x, p, quad, end);
        if (blocks == 2) ek_quad_run(&y, p + 32, quad, end);
        if ((quad = end) == last_quad) break;
    }
    while (kind == EK_QUADS) {
        ek_quad_block(&x, p, quad);
        if (blocks == 2) ek_quad_block(&y, p + 32, quad);
        if (++quad == last_quad) break;
    }
    for (; pair != last_pair; pair++) {
        ek_pair_block(&x, p, pair);
        if (blocks == 2) ek_pair_block(&y, p + 32, pair);
    }
    ek_finish_block(tail, x, other, out);
    if (blocks == 2) ek_finish_block(tail, y, other + 32, out + 32);
}

/* `blocks` times 32 pixels, 1 or 2. A loop that runs at least once needs its sums set up once. */
EK_INLINE void ek_blocks(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                         const uint8_t *other, uint8_t *out, int blocks) {
    if (row->filter->quads == 0) {
        ek_blocks_of(row, tail, p, other, out, blocks, EK_PAIRS);
    } else if (row->filter->run > 1) {
        ek_blocks_of(row, tail, p, other, out, blocks, EK_RUNS);
    } else {
        ek_blocks_of(row, tail, p, other, out, blocks, EK_QUADS);
    }
}

#else

static inline void ek_finish_block(const ek_tail *tail, ek_block sums, const uint8_t *other,
                                   uint8_t *out) {
    ek_bytes32 bytes = ek_scaled_block(&tail->scale, sums);
    if (tail->adds) bytes = ek_added(&tail->adder, bytes, ek_load32(other));
    ek_store32(out, bytes);
}

/* `blocks` times 32 pixels, 1 or 2. */
static inline void ek_blocks(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                             const uint8_t *other, uint8_t *out, int blocks) {
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    ek_block x = ek_block_of(row->bias), y = x;
    for (; row->filter->run > 1 && quad != last_quad;) {
        const ptrdiff_t rest = last_quad - quad, run = row->filter->run;
        const ek_quad *end = quad + (rest < run ? rest : run);
        ek_quad_run(&x, p, quad, end);
        if (blocks == 2) ek_quad_run(&y, p + 32, quad, end);
        quad = end;
    }
    for (; quad != last_quad; quad++) {
        ek_quad_block(&x, p, quad);
        if (blocks == 2) ek_quad_block(&y, p + 32, quad);
    }
    for (; pair != last_pair; pair++) {
        ek_pair_block(&x, p, pair);
        if (blocks == 2) ek_pair_block(&y, p + 32, pair);
    }
    ek_finish_block(tail, x, other, out);
    if (blocks == 2) ek_finish_block(tail, y, other + 32, out + 32);
}

#endif

/* 8 pixels. */
static inline ek_bytes16 ek_eight_pixels(const ek_row *row, const ek_tail *tail, const uint8_t *p) {
    const ek_quad *quad = row->quads, *last_quad = quad + row->filter->quads;
    const ek_pair *pair = row->pairs, *last_pair = pair + row->filter->pairs;
    ek_eight sums = ek_eight_of(row->bias);
    for (; quad != last_quad; quad++) ek_quad_eight(&sums, p, quad);
    for (; pair != last_pair; pair++) ek_pair_eight(&sums, p, pair);
    return ek_scaled_eight(&tail->scale, sums);
}

static void ek_last_eights(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                           const uint8_t *other, uint8_t *out, int32_t count) {
    for (; count > 0; count -= 8, p += 8, other += 8, out += 8) {
        ek_bytes16 bytes = ek_eight_pixels(row, tail, p);
        if (tail->adds) bytes = ek_added_half(&tail->adder, bytes, ek_load8(other));
        if (count >= 8) {
            ek_store8(out, bytes);
        } else {
            uint8_t last[8];
            ek_store8(last, bytes);
            ek_copy(out, last, count);
        }
    }
}

static int32_t ek_runs64(const ek_row *row, const ek_tail *tail, const uint8_t *p,
                         const uint8_t *other, uint8_t *out, int32_t count) {
    int32_t x = 0;
    for (; count - x >= 64; x += 64) ek_blocks(row, tail, p + x, other + x, out + x, 2);
    return x;
}

static void ek_run(const ek_row *row, const ek_tail *tail, const uint8_t *p, const uint8_t *other,
                   uint8_t *out, int32_t count) {
    int32_t x = count > 32 ? ek_runs64(row, tail, p, other, out, count) : 0;
    if (count - x >= 32) {
        ek_blocks(row, tail, p + x, other + x, out + x, 1);
        x += 32;
    }
    if (count - x > 16) {
        uint8_t last[32];
        ek_blocks(row, tail, p + x, other + x, last, 1);
        ek_copy(out + x, last, count - x);
    } else {
        ek_last_eights(row, tail, p + x, other + x, out + x, count - x);
    }
}

static void ek_tail_of(ek_tail *tail, const ek_sparse_conv *conv) {
    tail->scale = ek_scale_of(&conv->requant);
    tail->adds = conv->sum != 0;
    tail->adder = ek_adder_of(conv->sum ? conv->sum : &ek_no_sum);
}

/* The filter with its bias for sums of bytes less EK_LESS. */
static ek_row ek_shifted(const ek_row *row) {
    ek_row shifted = *row;
    int32_t total = 0;
    for (int32_t q = 0; q < row->filter->quads; q++)
        for (int32_t i = 0; i < 4; i++) total += row->quads[q].weight[i];
    for (int32_t q = 0; q < row->filter->pairs; q++)
        total += row->pairs[q].weight[0] + row->pairs[q].weight[1];
    shifted.bias += EK_LESS * total;
    return shifted;
}

static void ek_sparse_plane(const ek_sparse_conv *conv, ek_tail *tail, const ek_row *row,
                            const uint8_t *in, const uint8_t *other, uint8_t *out) {
    const ek_runs runs = ek_runs_of(&conv->out, conv->in_row);
    const ek_row shifted = EK_LESS ? ek_shifted(row) : *row;
    ek_scale_channel(&tail->scale, &conv->requant, row->filter->channel, row->filter->near);
    for (int32_t y = 0; y < runs.count; y++) {
        const int32_t to = y * conv->out.row;
        ek_run(&shifted, tail, in + y * conv->in_row, other + to, out + to, runs.length);
    }
    ek_halo_of(&conv->out, out);
}

#else

static void ek_row_taps(const void *state, const uint8_t *p, int32_t *sums, int32_t count) {
    const ek_row *row = (const ek_row *)state;
    for (int32_t q = 0; q < row->filter->quads; q++)
        for (int32_t i = 0; i < 4; i++)
            ek_tap(sums, p + row->quads[q].at[i], row->quads[q].weight[i], count);
    for (int32_t q = 0; q < row->filter->pairs; q++)
        for (int32_t i = 0; i < 2; i++)
            ek_tap(sums, p + row->pairs[q].at[i], row->pairs[q].weight[i], count);
}

typedef ek_channel ek_tail;

static void ek_tail_of(ek_tail *tail, const ek_sparse_conv *conv) {
    const ek_tail all = {&conv->out, &conv->requant, conv->sum, 0, conv->in_row};
    *tail = all;
}

static void ek_sparse_plane(const ek_sparse_conv *conv, ek_tail *tail, const ek_row *row,
                            const uint8_t *in, const uint8_t *other, uint8_t *out) {
    (void)conv;
    tail->channel = row->filter->channel;
    ek_plane(tail, ek_row_taps, row, in, other, out);
}

#endif

void ek_conv_sparse(const ek_sparse_conv *conv, const uint8_t *in, const uint8_t *other,
                    uint8_t *out) {
    const ek_planes *planes = &conv->out;
    ek_row row = {conv->filters, conv->quads, conv->pairs, 0};
    ek_tail tail;
    ek_tail_of(&tail, conv);
    if (!conv->sum) other = out;
    ek_halo_before(planes, out);
    const ek_filter *last = row.filter + planes->channels;
    for (; row.filter != last; ek_next_filter(&row)) {
#ifdef EK_AVX512
        ek_usual_filters(conv, &tail, &row, last, in, other, out);
        if (row.filter == last) break;
#endif
        const int32_t channel = row.filter->channel, at = channel * planes->plane;
        row.bias = conv->requant.bias[channel];
        if (row.filter->quads + row.filter->pairs == 0 && !conv->sum) {
            const uint8_t constant = ek_scaled(ek_scaler_of(&conv->requant, channel), row.bias);
            memset(out + at, constant, (size_t)(planes->height * planes->row));
            ek_halo_of(planes, out + at);
        } else {
            ek_sparse_plane(conv, &tail, &row, in, other + at, out + at);
        }
    }
}
