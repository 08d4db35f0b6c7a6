/* Between layouts. */
#include "ek_dsp.h"
#include "ek_simd.h"

/* One row of one channel. */
static void ek_load_row(const int8_t *image, int32_t channels, int32_t count, uint8_t *out) {
    for (int32_t x = 0; x < count; x++) out[x] = (uint8_t)(image[x * channels] ^ 0x80);
}

#ifdef EK_SIMD

/* Blocks of pixels of all channels of three, or of eight channels; returns how many pixels. */
static int32_t ek_load_by_three(const ek_planes *planes, const int8_t *image, uint8_t *out) {
    int32_t x = 0;
    for (; planes->width - x >= 16; x += 16)
        ek_load_three((const uint8_t *)image + 3 * x, out + x, planes->plane);
    return x;
}
static int32_t ek_load_by_eight(const ek_planes *planes, const int8_t *image, uint8_t *out) {
    const int32_t channels = planes->channels;
    int32_t x = 0;
    for (; planes->width - x >= 8; x += 8)
        ek_load_eight((const uint8_t *)image + channels * x, channels, out + x, planes->plane);
    return x;
}

static void ek_load_channels(const ek_planes *planes, const int8_t *image, uint8_t *out) {
    const int32_t channels = planes->channels;
    int32_t x = channels == 3 ? ek_load_by_three(planes, image, out) : 0;
    for (int32_t c = 0; c < channels; c++, image++, out += planes->plane) {
        if (c % 8 == 0 && channels > 3)
            x = channels - c >= 8 ? ek_load_by_eight(planes, image, out) : 0;
        ek_load_row(image + x * channels, channels, planes->width - x, out + x);
    }
}

#else

static void ek_load_channels(const ek_planes *planes, const int8_t *image, uint8_t *out) {
    for (int32_t c = 0; c < planes->channels; c++)
        ek_load_row(image + c, planes->channels, planes->width, out + c * planes->plane);
}

#endif

void ek_load(const ek_planes *planes, const int8_t *image, uint8_t *out) {
    const int32_t channels = planes->channels;
    ek_halo_before(planes, out);
    for (int32_t y = 0; y < planes->height; y++, image += planes->width * channels)
        ek_load_channels(planes, image, out + y * planes->row);
    ek_halos(planes, out);
}

void ek_store(int32_t count, const uint8_t *x, int8_t *out) {
    for (int32_t i = 0; i < count; i++) out[i] = (int8_t)(x[i] - 128);
}

void ek_pad(const ek_planes *in, const ek_planes *out, int32_t top, int32_t left, const uint8_t *x,
            uint8_t *y) {
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, x += in->plane, y += out->plane) {
        if (in->height != out->height || in->width != out->width)
            memset(y, out->zero, (size_t)(out->height * out->row));
        for (int32_t i = 0; i < in->height; i++)
            memcpy(y + (top + i) * out->row + left, x + i * in->row, (size_t)in->width);
        ek_halo_of(out, y);
    }
}

void ek_concat(const ek_planes *in, const uint8_t *x, uint8_t *out) {
    ek_halo_before(in, out);
    memcpy(out, x, (size_t)(in->channels * in->plane));
}

void ek_flatten(const ek_planes *in, const uint8_t *x, uint8_t *out) {
    for (int32_t c = 0; c < in->channels; c++, x += in->plane)
        for (int32_t i = 0; i < in->height; i++, out += in->width)
            memcpy(out, x + i * in->row, (size_t)in->width);
}

void ek_interleave(const ek_planes *in, const uint8_t *x, uint8_t *out) {
    for (int32_t i = 0; i < in->height; i++, x += in->row)
        for (int32_t j = 0; j < in->width; j++)
            for (int32_t c = 0; c < in->channels; c++) *out++ = x[c * in->plane + j];
}

/* out[x] = p[x * step] for all x below count. */
static void ek_stride(const uint8_t *p, int32_t step, int32_t count, uint8_t *out) {
    for (int32_t x = 0; x < count; x++) out[x] = p[x * step];
}

#ifdef EK_SIMD

static void ek_two_strides_row(const uint8_t *p, int32_t count, uint8_t *even, uint8_t *odd) {
    int32_t x = 0;
    for (; count - x >= 16; x += 16) ek_halves(p + 2 * x, even + x, odd + x);
    if (count > x) {
        uint8_t last[32];
        ek_halves(p + 2 * x, last, last + 16);
        ek_copy(even + x, last, count - x);
        ek_copy(odd + x, last + 16, count - x);
    }
}

/* All rows, `step` apart in p; of most, vectors may end in the rows below, which are written next. */
static void ek_two_strides(const uint8_t *p, int32_t step, const ek_planes *to, uint8_t *even,
                           uint8_t *odd) {
    const int32_t up = (to->width + 15) / 16 * 16, row = to->row;
    int32_t y = 0;
    for (; up <= to->width + (to->height - 1 - y) * row; y++, p += step, even += row, odd += row) {
        int32_t x = 0;
        do {
            ek_halves(p + 2 * x, even + x, odd + x);
            x += 16;
        } while (x < up);
    }
    for (; y < to->height; y++, p += step, even += row, odd += row)
        ek_two_strides_row(p, to->width, even, odd);
}

#else

static void ek_two_strides_row(const uint8_t *p, int32_t count, uint8_t *even, uint8_t *odd) {
#ifdef EK_DSP
    for (; count >= 4; count -= 4, p += 8, even += 4, odd += 4) {
        const uint32_t a = ek_load_word(p), b = ek_load_word(p + 4);
        ek_store_word(even, ek_joined(ek_even(a), ek_even(b)));
        ek_store_word(odd, ek_joined(ek_odd(a), ek_odd(b)));
    }
#endif
    ek_stride(p, 2, count, even);
    ek_stride(p + 1, 2, count, odd);
}

static void ek_two_strides(const uint8_t *p, int32_t step, const ek_planes *to, uint8_t *even,
                           uint8_t *odd) {
    for (int32_t y = 0; y < to->height; y++, p += step, even += to->row, odd += to->row)
        ek_two_strides_row(p, to->width, even, odd);
}

#endif

#ifdef EK_VBMI

/* By permutations of 64 bytes, which hold two rows and 16 of all four phases, or one and 32 of two. */
EK_INLINE void ek_permute_rows(const ek_phases *phases, const uint8_t *x, uint8_t *out,
                               int32_t lane) {
    const ek_planes in = phases->in, to = phases->out;
    uint8_t index[64];
    for (int32_t i = 0; i < 64; i++)
        index[i] = (uint8_t)((i / (2 * lane) * in.row + i / lane % 2 + i % lane * 2) & 63);
    const __m512i order = ek_load64(index);
    for (int32_t c = 0; c < in.channels; c++, x += in.plane, out += 4 * to.plane)
        for (int32_t y = 0; y < to.height; y++) {
            const uint8_t *row = x + 2 * y * in.row;
            uint8_t *at = out + y * to.row;
            const int32_t count = to.plane - y * to.row < lane ? to.width : lane;
            const __m512i first = ek_permuted64(order, ek_load64(row));
            if (lane == 16) {
                ek_store_quarters(at, to.plane, count, first);
            } else {
                ek_store_halves(at, to.plane, count, first);
                ek_store_halves(at + 2 * to.plane, to.plane, count,
                                ek_permuted64(order, ek_load64(row + in.row)));
            }
        }
}

static int ek_split_rows(const ek_phases *phases, const uint8_t *x, uint8_t *out) {
    const int32_t width = phases->out.width;
    if (phases->stride_y != 2 || phases->stride_x != 2 || width > 32) return 0;
    if (width <= 16 && phases->in.row + 2 * width <= 64) {
        ek_permute_rows(phases, x, out, 16);
    } else {
        ek_permute_rows(phases, x, out, 32);
    }
    return 1;
}

#else

static int ek_split_rows(const ek_phases *phases, const uint8_t *x, uint8_t *out) {
    (void)phases, (void)x, (void)out;
    return 0;
}

#endif

void ek_split(const ek_phases *phases, const uint8_t *x, uint8_t *out) {
    const ek_planes *in = &phases->in, *to = &phases->out;
    const int32_t step_y = phases->stride_y, step_x = phases->stride_x;
    x -= phases->top * in->row + phases->left;
    if (ek_split_rows(phases, x, out)) return;
    for (int32_t c = 0; c < in->channels; c++, x += in->plane)
        for (int32_t a = 0; a < step_y; a++, out += step_x * to->plane) {
            const uint8_t *from = x + a * in->row;
            if (step_x == 2) {
                ek_two_strides(from, step_y * in->row, to, out, out + to->plane);
                continue;
            }
            for (int32_t y = 0; y < to->height; y++, from += step_y * in->row)
                for (int32_t b = 0; b < step_x; b++)
                    ek_stride(from + b, step_x, to->width, out + y * to->row + b * to->plane);
        }
}
