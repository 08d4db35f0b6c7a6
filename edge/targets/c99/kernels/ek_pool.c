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

static void ek_pool(ek_reduce reduce, const ek_window *window, const ek_planes *in,
                    const ek_planes *out, const uint8_t *x, uint8_t *y) {
    ek_halo_before(out, y);
    for (int32_t c = 0; c < out->channels; c++, x += in->plane, y += out->plane) {
        for (int32_t i = 0; i < out->height; i++)
            for (int32_t j = 0; j < out->width; j++) {
                const ek_view view = ek_view_of(window, in, i, j);
                y[i * out->row + j] = reduce(window, &view, x, in->row);
            }
        ek_halo_of(out, y);
    }
}

void ek_avg_pool(const ek_window *window, const ek_planes *in, const ek_planes *out,
                 const uint8_t *x, uint8_t *y) {
    ek_pool(ek_average, window, in, out, x, y);
}

void ek_max_pool(const ek_window *window, const ek_planes *in, const ek_planes *out,
                 const uint8_t *x, uint8_t *y) {
    ek_pool(ek_largest, window, in, out, x, y);
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
