/* Norms over groups of the channels of an example, in integers: a root and a division for each. */
#include "ek_norm.h"
#include "ek_plain.h"

#define EK_HAT_BITS 24

/* Of a group: n, S, and by what n v - S is multiplied and shifted. */
typedef struct {
    int64_t count, sum, multiplier;
    int32_t shift;
} ek_group;

/* floor(sqrt(x)) for x < 2^62. */
static int64_t ek_root(int64_t x) {
    int64_t root = 0;
    for (int64_t bit = INT64_C(1) << 30; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= x) root += bit;
    return root;
}

static ek_group ek_group_of(const ek_norm *norm, const ek_planes *in, const uint8_t *x) {
    const int32_t channels = in->channels / norm->groups;
    ek_group group = {(int64_t)channels * in->height * in->width, 0, 0, 61 - EK_HAT_BITS};
    int64_t squares = 0;
    for (int32_t c = 0; c < channels; c++)
        for (int32_t i = 0; i < in->height; i++)
            for (int32_t j = 0; j < in->width; j++) {
                const int32_t v = x[c * in->plane + i * in->row + j] - in->zero;
                group.sum += v;
                squares += v * v;
            }
    int64_t size = group.count * squares - group.sum * group.sum + norm->eps;
    for (; size < INT64_C(1) << 60; group.shift--) size *= 4;
    group.multiplier = (INT64_C(1) << 61) / ek_root(size);
    return group;
}

static uint8_t ek_normalised(const ek_norm *norm, const ek_group *group, int32_t c, int32_t v) {
    const int64_t half = INT64_C(1) << (group->shift - 1);
    const int64_t hat = ((group->count * v - group->sum) * group->multiplier + half) >>
                        group->shift;
    const int64_t y = (hat * norm->factor[c] + norm->offset[c]) >> norm->shift;
    return ek_clamp(y + norm->zero, norm->low, norm->high);
}

/* One channel; where it has more pixels than there are bytes, by a table. */
static void ek_norm_channel(const ek_norm *norm, const ek_group *group, int32_t c,
                            const ek_planes *in, const ek_planes *out, const uint8_t *x,
                            uint8_t *y) {
    const int32_t by_table = in->height * in->width > 256;
    uint8_t table[256];
    for (int32_t u = 0; by_table && u < 256; u++)
        table[u] = ek_normalised(norm, group, c, u - in->zero);
    for (int32_t i = 0; i < in->height; i++)
        for (int32_t j = 0; j < in->width; j++) {
            const uint8_t u = x[i * in->row + j];
            y[i * out->row + j] = by_table ? table[u]
                                           : ek_normalised(norm, group, c, u - in->zero);
        }
}

void ek_group_norm(const ek_norm *norm, const ek_planes *in, const ek_planes *out,
                   const uint8_t *x, uint8_t *y) {
    const int32_t channels = in->channels / norm->groups;
    ek_halo_before(out, y);
    for (int32_t g = 0; g < norm->groups; g++) {
        const ek_group group = ek_group_of(norm, in, x + g * channels * in->plane);
        for (int32_t c = g * channels; c < (g + 1) * channels; c++) {
            ek_norm_channel(norm, &group, c, in, out, x + c * in->plane, y + c * out->plane);
            ek_halo_of(out, y + c * out->plane);
        }
    }
}
