/* Norms over the channels of each place, in integers: a root and a division for each. */
#include "ek_channel_norm.h"
#include "ek_plain.h"

#define EK_PLACE_BITS 24

/* Of places in a row: S, sum v^2, and by what n v - S is multiplied, less 2^30, and shifted. */
typedef struct {
    int32_t sum[EK_CHUNK], multiplier[EK_CHUNK];
    int64_t squares[EK_CHUNK], shift[EK_CHUNK], half[EK_CHUNK];
} ek_row_of_places;

/* The loops below write to arrays of their function, which are copied when they are done: whatever else
 * is written could be one of the numbers that they read, and no loop would become vectors. */

/* Of so many channels no sum of squares leaves 32 bits. */
#define EK_PLACE_CHANNELS 65536

static void ek_place_sums(ek_row_of_places *run, const ek_planes *in, const uint8_t *x, int32_t count) {
    const int32_t zero = in->zero, plane = in->plane;
    memset(run->sum, 0, sizeof run->sum);
    memset(run->squares, 0, sizeof run->squares);
    for (int32_t begin = 0; begin < in->channels; begin += EK_PLACE_CHANNELS) {
        const int32_t rest = in->channels - begin;
        int32_t sum[EK_CHUNK] = {0};
        uint32_t squares[EK_CHUNK] = {0};
        for (int32_t c = rest < EK_PLACE_CHANNELS ? rest : EK_PLACE_CHANNELS; c > 0; c--, x += plane)
            for (int32_t j = 0; j < count; j++) {
                const int32_t v = x[j] - zero;
                sum[j] += v;
                squares[j] += (uint32_t)(v * v);
            }
        for (int32_t j = 0; j < count; j++) run->sum[j] += sum[j], run->squares[j] += squares[j];
    }
}

/* floor(sqrt(x)) for 2^60 <= x < 2^62, in place. */
static void ek_place_roots(int64_t *sizes, int32_t count) {
    int64_t size[EK_CHUNK], root[EK_CHUNK] = {0};
    memcpy(size, sizes, (size_t)count * sizeof *sizes);
    for (int64_t bit = INT64_C(1) << 30; bit; bit >>= 1)
        for (int32_t j = 0; j < count; j++) {
            const int64_t next = root[j] + bit;
            root[j] = next * next <= size[j] ? next : root[j];
        }
    memcpy(sizes, root, (size_t)count * sizeof *sizes);
}

static void ek_place_multipliers(ek_row_of_places *run, const ek_channel_scale *norm, int64_t channels,
                                int32_t count) {
    int64_t sizes[EK_CHUNK];
    for (int32_t j = 0; j < count; j++) {
        if (!norm->centred) run->sum[j] = 0;
        sizes[j] = channels * run->squares[j] - (int64_t)run->sum[j] * run->sum[j] + norm->eps;
        run->shift[j] = 61 - EK_PLACE_BITS;
        for (; sizes[j] < INT64_C(1) << 60; run->shift[j]--) sizes[j] *= 4;
    }
    ek_place_roots(sizes, count);
    for (int32_t j = 0; j < count; j++) {
        run->multiplier[j] = (int32_t)((INT64_C(1) << 61) / sizes[j] - (INT64_C(1) << 30));
        run->half[j] = INT64_C(1) << (run->shift[j] - 1);
    }
}

/* Of so many channels a normalised value, which is below the root of their number, has 32 bits with
 * those behind its point. */
#define EK_PLACE_NARROW 8192

/* Some places of a channel. Loops of one size of numbers each, with products of 32 bits, become
 * vectors. */
static void ek_place_norm(const ek_row_of_places *run, const ek_channel_scale *norm,
                          int32_t channels, int32_t channel, int32_t zero, const uint8_t *x,
                          uint8_t *y, int32_t count) {
    const int32_t factor = norm->factor[channel], shift = norm->shift;
    const int64_t offset = norm->offset[channel], low = norm->low, high = norm->high;
    int32_t off[EK_CHUNK], narrow[EK_CHUNK];
    int64_t hat[EK_CHUNK];
    uint8_t bytes[EK_CHUNK];
    for (int32_t j = 0; j < count; j++) off[j] = channels * (x[j] - zero) - run->sum[j];
    for (int32_t j = 0; j < count; j++) {
        const int64_t product = (int64_t)off[j] * run->multiplier[j] + (int64_t)off[j] * (1 << 30);
        hat[j] = (product + run->half[j]) >> run->shift[j];
    }
    if (channels > EK_PLACE_NARROW)
        for (int32_t j = 0; j < count; j++) hat[j] *= factor;
    else {
        for (int32_t j = 0; j < count; j++) narrow[j] = (int32_t)hat[j];
        for (int32_t j = 0; j < count; j++) hat[j] = (int64_t)narrow[j] * factor;
    }
    for (int32_t j = 0; j < count; j++) {
        const int64_t byte = ((hat[j] + offset) >> shift) + norm->zero;
        const int64_t least = byte < low ? low : byte;
        hat[j] = least > high ? high : least;
    }
    for (int32_t j = 0; j < count; j++) bytes[j] = (uint8_t)hat[j];
    ek_copy(y, bytes, count);
}

void ek_channel_norm(const ek_channel_scale *norm, const ek_planes *in, const ek_planes *out,
                     const uint8_t *x, uint8_t *y) {
    ek_row_of_places run;
    ek_halo_before(out, y);
    for (int32_t i = 0; i < in->height; i++)
        for (int32_t j = 0; j < in->width; j += EK_CHUNK) {
            const int32_t count = in->width - j < EK_CHUNK ? in->width - j : EK_CHUNK;
            const uint8_t *from = x + i * in->row + j;
            ek_place_sums(&run, in, from, count);
            ek_place_multipliers(&run, norm, in->channels, count);
            for (int32_t c = 0; c < in->channels; c++)
                ek_place_norm(&run, norm, in->channels, c, in->zero, from + c * in->plane,
                              y + i * out->row + j + c * out->plane, count);
        }
    ek_halos(out, y);
}
