/* Sum of two tensors of one layout. */
#include "ek_simd.h"

static void ek_add_rest(const ek_sum *how, const uint8_t *a, const uint8_t *b, uint8_t *out,
                        int32_t count) {
    const ek_sum sum = *how;
    for (int32_t x = 0; x < count; x++) out[x] = ek_summed(sum, a[x], b[x]);
}

#ifdef EK_SIMD

static void ek_add_plane(const ek_sum *sum, const uint8_t *a, const uint8_t *b, uint8_t *out,
                         int32_t count) {
    const ek_adder adder = ek_adder_of(sum);
    int32_t x = 0;
    for (; count - x >= 32; x += 32)
        ek_store32(out + x, ek_added(&adder, ek_load32(a + x), ek_load32(b + x)));
    if (count - x > 8) {
        uint8_t last[32];
        ek_store32(last, ek_added(&adder, ek_load32(a + x), ek_load32(b + x)));
        ek_copy(out + x, last, count - x);
    } else {
        ek_add_rest(sum, a + x, b + x, out + x, count - x);
    }
}

#else

static void ek_add_plane(const ek_sum *sum, const uint8_t *a, const uint8_t *b, uint8_t *out,
                         int32_t count) {
    ek_add_rest(sum, a, b, out, count);
}

#endif

void ek_add(const ek_sum *sum, const ek_planes *planes, const uint8_t *a, const uint8_t *b,
            uint8_t *out) {
    const int32_t count = (planes->height - 1) * planes->row + planes->width;
    ek_halo_before(planes, out);
    for (int32_t c = 0; c < planes->channels; c++) {
        ek_add_plane(sum, a, b, out, count);
        ek_halo_of(planes, out);
        a += planes->plane;
        b += planes->plane;
        out += planes->plane;
    }
}
