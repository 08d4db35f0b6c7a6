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
#define EK_WINDOW 256 /* pixels of the largest window of a strip */

/* One row of all planes: windows that lie in the input from left to right, sixteen at once. */
typedef struct {
    int32_t first, end; /* columns with such windows */
    int32_t room;       /* bytes from column 0 to the end of the plane's last row */
    int32_t taps;
    int halved; /* windows are two columns wide and two apart, for maxima */
    ek_divisor divisor;
    int32_t at[EK_WINDOW]; /* of each tap of the window of `first`, bytes into a plane */
} ek_strip;

static void ek_strip_taps(ek_strip *s, const ek_window *w, const ek_planes *in,
                          const ek_view *view) {
    s->taps = 0;
    for (int32_t y = view->y0; y < view->y1; y += w->dilation_y)
        for (int32_t x = view->x0; x < view->x1; x += w->dilation_x)
            s->at[s->taps++] = y * in->row + x;
}

static void ek_strip_of(ek_strip *s, const ek_window *w, const ek_planes *in, const ek_planes *out,
                        int32_t i, int mean) {
    const int32_t most = mean ? EK_COUNTED : EK_WINDOW;
    const int32_t beyond = in->width - 1 - (w->kernel_x - 1) * w->dilation_x + w->left;
    const int32_t end = beyond < 0 ? 0 : beyond / w->stride_x + 1;
    s->first = (w->left + w->stride_x - 1) / w->stride_x;
    s->end = end < out->width ? end : out->width;
    s->room = (out->height - 1 - i) * out->row + out->width;
    if (s->first >= s->end || w->stride_x > 2 || w->kernel_x > most / w->kernel_y) {
        s->first = s->end = 0;
        return;
    }
    s->halved = !mean && w->stride_x == 2 && w->kernel_x == 2 && w->dilation_x == 1;
    const ek_view view = ek_view_of(w, in, i, s->first);
    ek_strip_taps(s, w, in, &view);
    if (s->taps == 0) s->first = s->end = 0;
    if (mean && s->taps > 0) s->divisor = ek_divisor_of(s->taps);
}

EK_INLINE ek_bytes16 ek_sixteen_windows(const int32_t *at, int32_t taps, const ek_divisor *by,
                                        const uint8_t *p, int32_t step, int mean) {
    ek_lanes all = ek_lanes_of(p + at[0], step);
    for (int32_t tap = 1; tap < taps; tap++) {
        const ek_lanes found = ek_lanes_of(p + at[tap], step);
        all = mean ? ek_lanes_sum(all, found) : ek_lanes_most(all, found);
    }
    return ek_lanes_bytes(mean ? ek_lanes_mean(all, by) : all);
}

/* Maxima over windows of two columns, two apart: of their rows, then of each two bytes. */
EK_INLINE ek_bytes32 ek_rows_most(const int32_t *at, int32_t taps, const uint8_t *p) {
    ek_bytes32 all = ek_load32(p + at[0]);
    for (int32_t tap = 2; tap < taps; tap += 2) all = ek_most(all, ek_load32(p + at[tap]));
    return all;
}
EK_INLINE ek_bytes32 ek_halved_windows(const int32_t *at, int32_t taps, const uint8_t *p) {
    return ek_most_of_two(ek_rows_most(at, taps, p), ek_rows_most(at, taps, p + 32));
}

/* One row of all planes. Vectors may end in the rows below, which are written next, and in the
 * halo. */
EK_INLINE void ek_strip_planes(const ek_strip *s, const ek_planes *in, const ek_planes *out,
                               const int32_t *at, int32_t taps, const uint8_t *x, uint8_t *y,
                               int32_t step, int mean) {
    const int32_t first = s->first, end = s->end, room = s->room;
    const ek_divisor by = s->divisor;
    const int32_t halved = s->halved ? (end < room - 15 ? end - 16 : room - 31) : first;
    const ptrdiff_t from = in->plane, to = out->plane;
    for (int32_t c = out->channels; c > 0; c--, x += from, y += to) {
        const uint8_t *p = x;
        int32_t j = first;
        for (; j < halved; j += 32, p += 64) ek_store32(y + j, ek_halved_windows(at, taps, p));
        for (; j < end; j += 16, p += 16 * step) {
            const ek_bytes16 bytes = ek_sixteen_windows(at, taps, &by, p, step, mean);
            if (room - j >= 16) {
                ek_store16(y + j, bytes);
            } else {
                uint8_t last[16];
                ek_store16(last, bytes);
                ek_copy(y + j, last, end - j);
            }
        }
    }
}

/* The same; for the usual windows with what a compiler keeps in registers. */
EK_INLINE void ek_strip_of_taps(const ek_strip *s, const ek_planes *in, const ek_planes *out,
                                const uint8_t *x, uint8_t *y, int32_t step, int mean) {
    const int32_t at[4] = {s->at[0], s->at[1], s->at[2], s->at[3]};
    if (s->taps == 2) {
        ek_strip_planes(s, in, out, at, 2, x, y, step, mean);
    } else if (s->taps == 4) {
        ek_strip_planes(s, in, out, at, 4, x, y, step, mean);
    } else {
        ek_strip_planes(s, in, out, s->at, s->taps, x, y, step, mean);
    }
}

/* Row by row, all planes of each; what lies at the borders window by window. */
EK_INLINE void ek_pool(ek_reduce reduce, const ek_window *w, const ek_planes *in,
                       const ek_planes *out, const uint8_t *x, uint8_t *y, int mean) {
    ek_strip s;
    memset(&s, 0, sizeof s);
    ek_halo_before(out, y);
    for (int32_t i = 0; i < out->height; i++) {
        uint8_t *to = y + i * out->row;
        ek_strip_of(&s, w, in, out, i, mean);
        if (w->stride_x == 1) {
            ek_strip_of_taps(&s, in, out, x, to, 1, mean);
        } else {
            ek_strip_of_taps(&s, in, out, x, to, 2, mean);
        }
        for (int32_t c = 0; c < out->channels && s.end - s.first < out->width; c++) {
            const uint8_t *from = x + c * in->plane;
            ek_pooled(reduce, w, in, i, 0, s.first, from, to + c * out->plane);
            ek_pooled(reduce, w, in, i, s.end, out->width, from, to + c * out->plane);
        }
    }
    ek_halos(out, y);
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
    const int32_t extent = ek_extent(in), halo = (extent - in->height * in->width) * in->zero;
    const ek_scaler scaler = ek_scaler_of(requant, 0);
    for (int32_t c = 0; c < in->channels; c++, x += in->plane) {
        const int32_t sum = ek_total(x, extent) - halo;
        out[c] = ek_scaled(scaler, sum + requant->bias[0]);
    }
}

void ek_sum_rows(const ek_row_sums *sums, const uint8_t *x, uint8_t *out) {
    const ek_planes *in = &sums->in, *to = &sums->out;
    ek_halo_before(to, out);
    for (int32_t c = 0; c < in->channels; c++, x += in->plane, out += to->plane) {
        const ek_scaler scaler = ek_scaler_of(&sums->requant, c);
        const int32_t weight = sums->weights[c], bias = sums->requant.bias[c];
        for (int32_t i = 0; i < in->height; i++)
            out[i * to->row] = ek_scaled(scaler, weight * ek_total(x + i * in->row, in->width) + bias);
        ek_halo_of(to, out);
    }
}
