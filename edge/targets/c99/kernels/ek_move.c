/* Axes in another order, and other axes of the same values. */
#include "ek_move.h"
#include "ek_plain.h"

/* The two innermost loops. */
static void ek_move_lines(const int32_t *often, const int32_t *from, const int32_t *to,
                          const uint8_t *x, uint8_t *y) {
    const int32_t lines = often[0], count = often[1], read = from[1], write = to[1];
    for (int32_t i = 0; i < lines; i++, x += from[0], y += to[0]) {
        if (read == 1 && write == 1) {
            ek_copy(y, x, count);
        } else {
            for (int32_t j = 0; j < count; j++) y[j * write] = x[j * read];
        }
    }
}

void ek_move(const ek_loops *loops, const ek_planes *out, const uint8_t *x, uint8_t *y) {
    const int32_t outer = loops->count - 2;
    int32_t often[2] = {1, loops->often[loops->count - 1]};
    int32_t from[2] = {0, loops->from[loops->count - 1]};
    int32_t to[2] = {0, loops->to[loops->count - 1]};
    int32_t done[EK_LOOPS] = {0};
    int32_t k;
    if (outer >= 0) {
        often[0] = loops->often[outer], from[0] = loops->from[outer], to[0] = loops->to[outer];
    }
    ek_halo_before(out, y);
    uint8_t *first = y;
    do {
        ek_move_lines(often, from, to, x, y);
        for (k = outer - 1; k >= 0; k--) {
            x += loops->from[k], y += loops->to[k];
            if (++done[k] < loops->often[k]) break;
            x -= loops->from[k] * loops->often[k], y -= loops->to[k] * loops->often[k];
            done[k] = 0;
        }
    } while (k >= 0);
    ek_halos(out, first);
}

/* The pixel after one, or of the next channel. */
typedef struct {
    int32_t row, column, channel;
} ek_at;

static ek_at ek_next(const ek_planes *planes, ek_at at) {
    if (++at.channel == planes->channels) {
        at.channel = 0;
        if (++at.column == planes->width) {
            at.column = 0;
            at.row++;
        }
    }
    return at;
}

static int32_t ek_offset(const ek_planes *planes, ek_at at) {
    return at.channel * planes->plane + at.row * planes->row + at.column;
}

void ek_reshape(const ek_planes *in, const ek_planes *out, const uint8_t *x, uint8_t *y) {
    const int32_t count = in->channels * in->height * in->width;
    ek_at from = {0, 0, 0}, to = {0, 0, 0};
    ek_halo_before(out, y);
    for (int32_t i = 0; i < count; i++) {
        y[ek_offset(out, to)] = x[ek_offset(in, from)];
        from = ek_next(in, from);
        to = ek_next(out, to);
    }
    ek_halos(out, y);
}
