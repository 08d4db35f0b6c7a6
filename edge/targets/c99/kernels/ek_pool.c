/* Means and maxima over windows and planes. */
#include "ek_simd.h"

/* The part of a window that is not padding: rows y0 .. y1, columns x0 .. x1 in steps. */
typedef struct {
    int32_t y0, y1, x0, x1;
} ek_view;

/* Sets the first and the end of `kernel` positions from `start` on, `step` apart, in 0 .. size. */
static void ek_clip(int32_t start, int32_t kernel, int32_t step, int32_t size, int32_t *first,
                    int32_t *end) {
    const int32_t missing = start < 0 ? (step - 1 - start) / step : 0;
    *first = start + missing * step;
    *end = start + kernel * step < size ? start + kernel * step : size;
}

static ek_view ek_view_of(const ek_window *w, const ek_planes *in, int32_t y, int32_t x) {
    ek_view view;
    ek_clip(y * w->stride_y - w->top, w->kernel_y, w->dilation_y, in->height, &view.y0, &view.y1);
    ek_clip(x * w->stride_x - w->left, w->kernel_x, w->dilation_x, in->width, &view.x0, &view.x1);
    return view;
}

static uint8_t ek_average(const ek_window *w, const ek_view *v, const uint8_t *plane, int32_t row) {
    int32_t sum = 0, count = 0;
    for (int32_t y = v->y0; y < v->y1; y += w->dilation_y)
        for (int32_t x = v->x0; x < v->x1; x += w->dilation_x, count++) sum += plane[y * row + x];
    return (uint8_t)((2 * sum + count) / (2 * count));
}

static uint8_t ek_largest(const ek_window *w, const ek_view *v, const uint8_t *plane, int32_t row) {
    uint8_t largest = 0;
    for (int32_t y = v->y0; y < v->y1; y += w->dilation_y)
        for (int32_t x = v->x0; x < v->x1; x += w->dilation_x)
            if (plane[y * row + x] > largest) largest = plane[y * row + x];
    return largest;
}

typedef uint8_t (*ek_reduce)(const ek_window *, const ek_view *, const uint8_t *, int32_t);

/* Columns first .. end of row i, window by window. */
static void ek_pooled(ek_reduce reduce, const ek_window *w, const ek_planes *in, int32_t i,
                      int32_t first, int32_t end, const uint8_t *x, uint8_t *y) {
    for (int32_t j = first; j < end; j++) {
        const ek_view view = ek_view_of(w, in, i, j);
        y[j] = reduce(w, &view, x, in->row);
    }
}

#ifdef EK_SIMD

#define EK_COUNTED 64 /* pixels of a window by which ek_lanes_mean divides */

/* One row of all planes: windows that lie in the input from left to right, sixteen at once. */
typedef struct {
    int32_t first, end; /* columns with such windows */
    int32_t from, rows; /* of the first of them, bytes into a plane; rows of each */
    int32_t room;       /* bytes from column 0 to the end of the plane's last row */
    ek_divisor divisor;
} ek_strip;

static ek_strip ek_strip_of(const ek_window *w, const ek_planes *in, const ek_planes *out,
                            int32_t i, int mean) {
    const int32_t beyond = in->width - 1 - (w->kernel_x - 1) * w->dilation_x + w->left;
    const int32_t end = beyond < 0 ? 0 : beyond / w->stride_x + 1;
    ek_strip s = {(w->left + w->stride_x - 1) / w->stride_x, end, 0, 0, 0, {0, 0, 0}};
    if (s.end > out->width) s.end = out->width;
    const ek_view view = ek_view_of(w, in, i, s.first);
    s.from = view.y0 * in->row + view.x0;
    s.rows = (view.y1 - view.y0 + w->dilation_y - 1) / w->dilation_y;
    s.room = (out->height - 1 - i) * out->row + out->width;
    if (s.first >= s.end || w->stride_x > 2) s.first = s.end = 0;
    if (!mean || s.end == 0) return s;
    if (s.rows <= EK_COUNTED && w->kernel_x <= EK_COUNTED / s.rows) {
        s.divisor = ek_divisor_of(s.rows * w->kernel_x);
    } else {
        s.first = s.end = 0;
    }
    return s;
}

EK_INLINE ek_bytes16 ek_sixteen_windows(const ek_window *w, const ek_strip *s, int32_t row,
                                const uint8_t *p, int32_t step, int mean) {
    ek_lanes all = ek_lanes_none();
    for (int32_t i = 0; i < s->rows; i++, p += w->dilation_y * row) {
        const uint8_t *tap = p;
        for (int32_t j = 0; j < w->kernel_x; j++, tap += w->dilation_x) {
            const ek_lanes found = ek_lanes_of(tap, step);
            all = mean ? ek_lanes_sum(all, found) : ek_lanes_most(all, found);
        }
    }
    return ek_lanes_bytes(mean ? ek_lanes_mean(all, &s->divisor) : all);
}

/* Vectors may end in the rows below, which are written next, and in the halo. */
EK_INLINE void ek_strip_row(const ek_window *w, const ek_strip *s, int32_t row, const uint8_t *x,
                            uint8_t *y, int32_t step, int mean) {
    const uint8_t *p = x + s->from;
    for (int32_t j = s->first; j < s->end; j += 16, p += 16 * step) {
        const ek_bytes16 bytes = ek_sixteen_windows(w, s, row, p, step, mean);
        if (s->room - j >= 16) {
            ek_store16(y + j, bytes);
        } else {
            uint8_t last[16];
            ek_store16(last, bytes);
            ek_copy(y + j, last, s->end - j);
        }
    }
}

EK_INLINE void ek_pool(ek_reduce reduce, const ek_window *w, const ek_planes *in,
                       const ek_planes *out, const uint8_t *x, uint8_t *y, int mean) {
    ek_halo_before(out, y);
    for (int32_t i = 0; i < out->height; i++) {
        const ek_strip strip = ek_strip_of(w, in, out, i, mean);
        const uint8_t *from = x;
        uint8_t *to = y + i * out->row;
        for (int32_t c = 0; c < out->channels; c++, from += in->plane, to += out->plane) {
            if (w->stride_x == 1) {
                ek_strip_row(w, &strip, in->row, from, to, 1, mean);
            } else {
                ek_strip_row(w, &strip, in->row, from, to, 2, mean);
            }
            ek_pooled(reduce, w, in, i, 0, strip.first, from, to);
            ek_pooled(reduce, w, in, i, strip.end, out->width, from, to);
        }
    }
    for (int32_t c = 0; c < out->channels; c++) ek_halo_of(out, y + c * out->plane);
}

#else

static void ek_pool(ek_reduce reduce, const ek_window *window, const ek_planes *in,
                    const ek_planes *out, const uint8_t *x, uint8_t *y, int mean) {
    (void)mean;
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, x += in->plane, y += out->plane) {
        for (int32_t i = 0; i < out->height; i++)
            ek_pooled(reduce, window, in, i, 0, out->width, x, y + i * out->row);
        ek_halo_of(out, y);
    }
}

#endif

void ek_avg_pool(const ek_window *window, const ek_planes *in, const ek_planes *out,
                 const uint8_t *x, uint8_t *y) {
    ek_pool(ek_average, window, in, out, x, y, 1);
}

void ek_max_pool(const ek_window *window, const ek_planes *in, const ek_planes *out,
                 const uint8_t *x, uint8_t *y) {
    ek_pool(ek_largest, window, in, out, x, y, 0);
}

#ifndef EK_SIMD

static int32_t ek_total(const uint8_t *p, int32_t count) {
    int32_t total = 0;
    for (int32_t x = 0; x < count; x++) total += p[x];
    return total;
}

#endif

void ek_mean(const ek_requant *requant, const ek_planes *in, const uint8_t *x, uint8_t *out) {
    const int32_t halo = in->height * (in->row - in->width) * in->zero;
    const ek_scaler scaler = ek_scaler_of(requant, 0);
    for (int32_t c = 0; c < in->channels; c++, x += in->plane) {
        const int32_t sum = ek_total(x, in->height * in->row) - halo;
        out[c] = ek_scaled(scaler, sum + requant->bias[0]);
    }
}
