/* Norms over the channels of each place, in integers: a root and a division for each. */
#include "ek_channel_norm.h"
#include "ek_plain.h"

#define EK_PLACE_BITS 24

/* Of places in a row: S, sum v^2, and by what n v - S is multiplied and shifted. */
typedef struct {
    int32_t sum[EK_CHUNK], shift[EK_CHUNK];
    int64_t squares[EK_CHUNK], multiplier[EK_CHUNK];
} ek_row_of_places;

/* floor(sqrt(x)) for 2^60 <= x < 2^62. */
static int64_t ek_place_root(int64_t x) {
    int64_t root = 0;
    for (int64_t bit = INT64_C(1) << 30; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= x) root += bit;
    return root;
}

static void ek_place_sums(ek_row_of_places *run, const ek_planes *in, const uint8_t *x, int32_t count) {
    memset(run->sum, 0, sizeof run->sum);
    memset(run->squares, 0, sizeof run->squares);
    for (int32_t c = 0; c < in->channels; c++)
        for (int32_t j = 0; j < count; j++) {
            const int32_t v = x[c * in->plane + j] - in->zero;
            run->sum[j] += v;
            run->squares[j] += v * v;
        }
}

static void ek_place_multipliers(ek_row_of_places *run, const ek_channel_scale *norm, int64_t channels,
                                int32_t count) {
    for (int32_t j = 0; j < count; j++) {
        if (!norm->centred) run->sum[j] = 0;
        int64_t size = channels * run->squares[j] - (int64_t)run->sum[j] * run->sum[j] + norm->eps;
        run->shift[j] = 61 - EK_PLACE_BITS;
        for (; size < INT64_C(1) << 60; run->shift[j]--) size *= 4;
        run->multiplier[j] = (INT64_C(1) << 61) / ek_place_root(size);
    }
}

static void ek_place_norm(const ek_row_of_places *run, const ek_channel_scale *norm, const ek_planes *in,
                         const ek_planes *out, const uint8_t *x, uint8_t *y, int32_t count) {
    for (int32_t c = 0; c < in->channels; c++)
        for (int32_t j = 0; j < count; j++) {
            const int64_t off = (int64_t)in->channels * (x[c * in->plane + j] - in->zero);
            const int64_t half = INT64_C(1) << (run->shift[j] - 1);
            const int64_t hat = ((off - run->sum[j]) * run->multiplier[j] + half) >> run->shift[j];
            const int64_t scaled = (hat * norm->factor[c] + norm->offset[c]) >> norm->shift;
            y[c * out->plane + j] = ek_clamp(scaled + norm->zero, norm->low, norm->high);
        }
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
            ek_place_norm(&run, norm, in, out, from, y + i * out->row + j, count);
        }
    ek_halos(out, y);
}
