/* Products of integer matrices, another for each lane, and what they are made of and put to. */
#ifndef FEDKIT_INT_MATRICES_H
#define FEDKIT_INT_MATRICES_H

#include "int_pass.h"

/* int16 lanes at `at`: how far it is from a row, and from a term of a row, to the next. */
struct int_matrix {
    const int16_t *at;
    ptrdiff_t row, term;
};

/* to[r][c] = (sum over terms of left[r][t] * right[c][t]) >> shift */
struct int_matrices {
    struct int_matrix left, right;
    int16_t *to;
    ptrdiff_t to_row, to_column;
    int rows, columns, terms;
    int shift;
    int even; /* round halves to even, else up */
};

INLINE ipair matrix_pair(const struct int_matrix *m, int row, int term, int terms) {
    const int16_t *at = m->at + row * m->row + term * m->term;
    return ivec_pair(ivec_load(at), term + 1 < terms ? ivec_load(at + m->term) : ivec_set1(0));
}

/* `rows` and `columns` are constants where this is inlined. */
INLINE void int_multiply_block(const struct int_matrices *m, int row, int column, int rows,
                               int columns) {
    isum sum[4][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sum[r][c] = isum_set1(0);
    for (int t = 0; t < m->terms; t += 2) {
        ipair right[2];
        for (int c = 0; c < columns; c++)
            right[c] = matrix_pair(&m->right, column + c, t, m->terms);
        for (int r = 0; r < rows; r++) {
            const ipair left = matrix_pair(&m->left, row + r, t, m->terms);
            for (int c = 0; c < columns; c++) isum_dot_pairs(&sum[r][c], left, right[c]);
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) {
            int16_t *to = m->to + (row + r) * m->to_row + (column + c) * m->to_column;
            ivec_store(to, m->even ? isum_narrow_even(sum[r][c], m->shift)
                                   : isum_narrow(sum[r][c], m->shift));
        }
    }
}

INLINE void int_multiply_rows(const struct int_matrices *m, int row, int rows) {
    int column = 0;
    for (; column + 2 <= m->columns; column += 2) int_multiply_block(m, row, column, rows, 2);
    if (column < m->columns) int_multiply_block(m, row, column, rows, 1);
}

static void int_multiply(const struct int_matrices *m) {
    int row = 0;
#if defined(ISA_AVX512) || defined(ISA_NEON)
    for (; row + 4 <= m->rows; row += 4) int_multiply_rows(m, row, 4);
#endif
    for (; row + 2 <= m->rows; row += 2) int_multiply_rows(m, row, 2);
    if (row < m->rows) int_multiply_rows(m, row, 1);
}

/* Read channels of a tile into int16 lanes, [channels][plane]. */
static void side_values(const struct int_side *s, int tile, int channel, int channels,
                        int16_t *to) {
    for (int c = channel; c < channel + channels; c++) {
        const struct int_reading how = int_reading_of(&s->read, c);
        const int8_t *x = s->tensor->x + int_plane(s->tensor, tile, c);
        for (int i = 0; i < s->tensor->plane * ILANES; i++) *to++ = (int16_t)int_value(&how, x[i]);
    }
}

/* The passed gradients of channels of a tile, [channels][plane]. */
static void chain_values(const struct int_tensor *t, const struct int_chain *chain, int tile,
                         int channel, int channels, int16_t *to) {
    for (int c = channel; c < channel + channels; c++, to += (ptrdiff_t)t->plane * ILANES) {
        const struct int_passing how = int_passing_of(chain, c);
        const struct int_run run = int_run_of(t, tile, c);
        pass_line(chain, &how, &run, 0, t->plane, to);
    }
}

/* Give channels of a side what lies at `new`, [channels][plane], but where its read clipped. */
static void side_put(const struct int_side *s, int tile, int channel, int channels, int16_t *new) {
    const struct int_tensor *t = s->tensor;
    for (int c = channel; c < channel + channels; c++) {
        const ptrdiff_t at = int_plane(t, tile, c);
        const struct int_mixing how = int_mixing_of(&s->mix, c);
        for (int pixel = 0; pixel < t->plane; pixel++, new += ILANES) {
            const ptrdiff_t place = at + (ptrdiff_t)pixel * ILANES;
            for (int i = 0; s->first_unclipped && i < ILANES; i++)
                if (t->x[place + i] < s->first_unclipped[c] || t->x[place + i] > s->last_unclipped[c])
                    new[i] = 0;
            put_pixel(&how, s->accumulate, new, t->gradient + place);
        }
    }
}

#endif
