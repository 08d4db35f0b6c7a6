/* Values from other places. */
#include "ek_take.h"
#include "ek_simd.h"

/* Columns j .. end of all rows and planes. */
static void ek_take_columns(const ek_places *places, const ek_planes *in, const ek_planes *out,
                            const uint8_t *x, uint8_t *y, int32_t j, int32_t end) {
    const uint16_t *columns = places->columns;
    for (int32_t c = 0; c < out->channels; c++, y += out->plane) {
        const uint8_t *plane = x + places->channels[c] * in->plane;
        for (int32_t i = 0; i < out->height; i++) {
            const uint8_t *from = plane + places->rows[i] * in->row;
            uint8_t *to = y + i * out->row;
            if (places->is_run) {
                memcpy(to, from + columns[0], (size_t)end);
            } else {
                for (int32_t k = j; k < end; k++) to[k] = from[columns[k]];
            }
        }
    }
}

#ifdef EK_SIMD

/* Columns that are one after the other; whole planes, where their rows are too and layouts agree. */
static void ek_take_run(const ek_places *places, const ek_planes *in, const ek_planes *out,
                        const uint8_t *x, uint8_t *y) {
    ek_runs runs = {out->height, out->width};
    int32_t after = 1;
    while (after < out->height && places->rows[after] == places->rows[0] + after) after++;
    if (after == out->height) runs = ek_runs_of(out, in->row);
    for (int32_t c = 0; c < out->channels; c++, y += out->plane) {
        const uint8_t *plane = x + places->channels[c] * in->plane + places->columns[0];
        for (int32_t i = 0; i < runs.count; i++)
            memcpy(y + i * out->row, plane + places->rows[i] * in->row, (size_t)runs.length);
    }
}

/* Sixteen columns from j on, or all if there are fewer, by one shuffle of sixteen bytes; 0 if they
 * are of more. Vectors may end in the rows below, which are written next. */
static int ek_take_sixteen(const ek_places *places, const ek_planes *in, const ek_planes *out,
                           const uint8_t *x, uint8_t *y, int32_t j) {
    const int32_t count = out->width < 16 ? out->width : 16, last = (out->height - 1) * out->row;
    const uint16_t *columns = places->columns + j;
    uint8_t index[16] = {0};
    int32_t least = columns[0];
    for (int32_t k = 1; k < count; k++)
        if (columns[k] < least) least = columns[k];
    for (int32_t k = 0; k < count; k++) {
        if (columns[k] - least > 15) return 0;
        index[k] = (uint8_t)(columns[k] - least);
    }
    const ek_bytes16 shuffle = ek_load16(index);
    for (int32_t c = 0; c < out->channels; c++) {
        const uint8_t *plane = x + places->channels[c] * in->plane + least;
        uint8_t *to = y + c * out->plane + j;
        for (int32_t i = 0; i < out->height; i++) {
            const ek_bytes16 found = ek_load16(plane + places->rows[i] * in->row);
            const ek_bytes16 taken = ek_shuffled(found, shuffle);
            if (count == 16 || i * out->row + 16 <= last + out->width) {
                ek_store16(to + i * out->row, taken);
            } else {
                ek_store16(index, taken);
                ek_copy(to + i * out->row, index, count);
            }
        }
    }
    return 1;
}

static void ek_take_any(const ek_places *places, const ek_planes *in, const ek_planes *out,
                        const uint8_t *x, uint8_t *y) {
    if (places->is_run) {
        ek_take_run(places, in, out, x, y);
        return;
    }
    for (int32_t j = 0; j < out->width; j += 16) {
        const int32_t whole = j + 16 <= out->width || j == 0 ? j : out->width - 16;
        const int32_t end = whole + 16 < out->width ? whole + 16 : out->width;
        if (!ek_take_sixteen(places, in, out, x, y, whole))
            ek_take_columns(places, in, out, x, y, whole, end);
    }
}

#else

static void ek_take_any(const ek_places *places, const ek_planes *in, const ek_planes *out,
                        const uint8_t *x, uint8_t *y) {
    ek_take_columns(places, in, out, x, y, 0, out->width);
}

#endif

void ek_take(const ek_places *places, const ek_planes *in, const ek_planes *out, const uint8_t *x,
             uint8_t *y) {
    ek_halo_before(out, y);
    ek_take_any(places, in, out, x, y);
    ek_halos(out, y);
}
