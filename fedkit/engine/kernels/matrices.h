/* Products of matrices of which each element is a vec, one example a lane, and what they need of
 * tensors.
 */
#ifndef FEDKIT_MATRICES_H
#define FEDKIT_MATRICES_H

#include "tensor.h"

/* c[i][j] = sum of a[k][i] * b[k][j] over k, or that is added. Steps are in floats. */
struct matrices {
    const float *a, *b;
    float *c;
    ptrdiff_t a_term, a_row, b_term, b_column, c_row, c_column;
    int rows, columns, terms, accumulate;
};

/* The block of c at (i, j); sizes are constants, so that its sums are in registers. */
INLINE void matrices_block(const struct matrices *m, int i, int j, const int rows,
                           const int columns) {
    vec sum[ROWS][PX];
    float *c = m->c + i * m->c_row + j * m->c_column;
    for (int r = 0; r < rows; r++)
        for (int x = 0; x < columns; x++)
            sum[r][x] = m->accumulate ? vec_load(c + r * m->c_row + x * m->c_column) : vec_zero();
    const float *a = m->a + i * m->a_row, *b = m->b + j * m->b_column;
    for (int k = 0; k < m->terms; k++, a += m->a_term, b += m->b_term) {
        vec right[PX];
        for (int x = 0; x < columns; x++) right[x] = vec_load(b + x * m->b_column);
        for (int r = 0; r < rows; r++) {
            const vec left = vec_load(a + r * m->a_row);
            for (int x = 0; x < columns; x++) sum[r][x] = vec_fma(left, right[x], sum[r][x]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int x = 0; x < columns; x++) vec_store(c + r * m->c_row + x * m->c_column, sum[r][x]);
}

INLINE void matrices_rows(const struct matrices *m, int i, const int rows) {
    int j = 0;
    for (; j + PX <= m->columns; j += PX) matrices_block(m, i, j, rows, PX);
    for (; j < m->columns; j++) matrices_block(m, i, j, rows, 1);
}

/* Called from many places; inlined there, it would be most of the library. */
static void multiply_matrices(const struct matrices *m) {
    int i = 0;
    for (; i + ROWS <= m->rows; i += ROWS) matrices_rows(m, i, ROWS);
    for (; i < m->rows; i++) matrices_rows(m, i, 1);
}

/* -- whole tiles ------------------------------------------------------------------------------ */

INLINE ptrdiff_t tile_floats(const struct tensor *t) {
    return (ptrdiff_t)t->channels * t->plane * LANES;
}

/* What is read of a tile: where it is stored, if it is read as it is; else in a room, which then
 * begins behind it. */
INLINE const float *tile_values(const struct tensor *t, int tile, float **room) {
    const float *x = t->x + plane_offset(t, tile, 0);
    if (!t->scale && t->activation == ACT_NONE) return x;
    float *to = *room;
    *room += tile_floats(t);
    for (int c = 0; c < t->channels; c++) {
        const struct reading how = reading_of(t, c);
        const ptrdiff_t at = (ptrdiff_t)c * t->plane * LANES;
        for (int i = 0; i < t->plane; i++)
            vec_store(to + at + i * LANES, read_value(&how, vec_load(x + at + i * LANES)));
    }
    return to;
}

/* The gradient of what is stored of a tile, likewise. */
INLINE const float *tile_gradient(const struct tensor *t, int tile, float **room) {
    const ptrdiff_t from = plane_offset(t, tile, 0);
    if (!t->a) return t->gradient + from;
    float *to = *room;
    *room += tile_floats(t);
    const vec valid = vec_lanes(valid_lanes(t, tile));
    for (int c = 0; c < t->channels; c++) {
        const struct chain how = chain_of(t, c, valid);
        for (int i = 0; i < t->plane; i++) {
            const ptrdiff_t at = ((ptrdiff_t)c * t->plane + i) * LANES;
            const vec g = vec_load(t->gradient + from + at), x = vec_load(t->x + from + at);
            vec_store(to + at, raw_gradient(&how, g, x));
        }
    }
    return to;
}

/* What becomes of the gradient of a source. */
enum gives { GIVES_NOTHING, GIVES_FIRST, GIVES_MORE };

/* Return where the gradient of a tile is added to, NULL where none is wanted; at first it is 0. */
INLINE float *tile_sums(const struct tensor *t, int tile, int gives) {
    if (gives == GIVES_NOTHING) return NULL;
    float *to = t->gradient + plane_offset(t, tile, 0);
    if (gives == GIVES_FIRST)
        for (ptrdiff_t i = 0; i < tile_floats(t); i += LANES) vec_store(to + i, vec_zero());
    return to;
}

#endif
