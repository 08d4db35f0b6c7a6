/* Products of matrices: few-bit integers in, exact int32 out; and how floats become such integers.
 *
 * The left matrix is int16 [rows][2 * pairs], the right one comes in panels of ILANES columns,
 * int16 [panels][pairs][ILANES][2]. What is missing to a pair or a panel is 0.
 */
#ifndef FEDKIT_INT_GEMM_H
#define FEDKIT_INT_GEMM_H

#include <stddef.h>

#include "int_tensor.h"

#define GEMM_ROWS 48 /* rows that stay in the cache while all panels pass */

/* Find the largest magnitude of each column of x [rows][columns], as the bits of a float: those of
 * NaN and infinity are larger than all others. */
void NAME(int_column_peaks)(const float *restrict x, int64_t rows, int32_t columns,
                            uint32_t *restrict peak) {
    memset(peak, 0, (size_t)columns * sizeof *peak);
    for (int64_t row = 0; row < rows; row++, x += columns)
        for (int32_t k = 0; k < columns; k++) {
            uint32_t size;
            memcpy(&size, x + k, sizeof size);
            size &= 0x7fffffffu;
            peak[k] = size > peak[k] ? size : peak[k];
        }
}

/* One row to int16 or to int8, whichever is not NULL, filled up to `width` with 0. */
INLINE void quantize_row(const float *restrict x, int32_t columns, const float *restrict inverse,
                         const int32_t *restrict factor, int32_t limit, uint32_t key_low,
                         uint32_t key_high, uint32_t counter, int16_t *restrict wide,
                         int8_t *restrict narrow, int32_t width) {
    for (int32_t k = 0; k < columns; k++) {
        const uint32_t bits = random_bits(key_low, key_high, counter + (uint32_t)k);
        const float v = x[k] * inverse[k] + (float)(int32_t)(bits >> 8) * 0x1p-24f;
        int32_t q = (int32_t)v;
        q -= v < (float)q;
        q = clamp(q, -limit, limit) * factor[k];
        if (wide)
            wide[k] = (int16_t)q;
        else
            narrow[k] = (int8_t)q;
    }
    for (int32_t k = columns; k < width; k++) {
        if (wide)
            wide[k] = 0;
        else
            narrow[k] = 0;
    }
}

/* Quantise x [rows][columns] to int16 [rows][width]: floor(x * inverse + u), within +-limit,
 * times factor; inverse and factor are [columns]. u is 24 random bits of (key, position in x). */
void NAME(int_quantize)(const float *x, int64_t rows, int32_t columns, const float *inverse,
                        const int32_t *factor, int32_t limit, uint32_t key_low, uint32_t key_high,
                        int16_t *to, int32_t width) {
    for (int64_t row = 0; row < rows; row++)
        quantize_row(x + row * columns, columns, inverse, factor, limit, key_low, key_high,
                     (uint32_t)row * (uint32_t)columns, to + row * width, NULL, width);
}

/* Likewise to int8, which every code times its factor must fit. */
void NAME(int_quantize8)(const float *x, int64_t rows, int32_t columns, const float *inverse,
                         const int32_t *factor, int32_t limit, uint32_t key_low, uint32_t key_high,
                         int8_t *to, int32_t width) {
    for (int64_t row = 0; row < rows; row++)
        quantize_row(x + row * columns, columns, inverse, factor, limit, key_low, key_high,
                     (uint32_t)row * (uint32_t)columns, NULL, to + row * width, width);
}

/* Pack w [columns of the left matrix][columns] as panels. */
void NAME(int_pack_panels)(const int8_t *w, int32_t depth, int32_t columns, int16_t *to) {
    for (int32_t begin = 0; begin < columns; begin += ILANES)
        for (int32_t k = 0; k < depth; k += 2)
            for (int32_t c = begin; c < begin + ILANES; c++, to += 2) {
                to[0] = c < columns ? w[(ptrdiff_t)k * columns + c] : 0;
                to[1] = c < columns && k + 1 < depth ? w[(ptrdiff_t)(k + 1) * columns + c] : 0;
            }
}

/* `rows` rows, 1 or IROWS, times one panel. */
INLINE void gemm_block(const int16_t *a, const int16_t *panel, ptrdiff_t pairs, int32_t *out,
                       ptrdiff_t width, int rows) {
    const int16_t *a1 = a + 2 * pairs, *a2 = a1 + 2 * pairs, *a3 = a2 + 2 * pairs;
    const int16_t *a4 = a3 + 2 * pairs, *a5 = a4 + 2 * pairs;
    isum s0 = isum_set1(0), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0;
    for (ptrdiff_t k = 0; k < 2 * pairs; k += 2, panel += 2 * ILANES) {
        const ipair w = ipair_load(panel);
        isum_dot(&s0, w, a + k);
        if (rows == 1) continue;
        isum_dot(&s1, w, a1 + k);
        isum_dot(&s2, w, a2 + k);
        isum_dot(&s3, w, a3 + k);
        isum_dot(&s4, w, a4 + k);
        isum_dot(&s5, w, a5 + k);
    }
    isum_store(out, &s0);
    if (rows == 1) return;
    isum_store(out + width, &s1);
    isum_store(out + 2 * width, &s2);
    isum_store(out + 3 * width, &s3);
    isum_store(out + 4 * width, &s4);
    isum_store(out + 5 * width, &s5);
}

/* out [rows][panels * ILANES] = a times the panels. */
void NAME(int_gemm)(const int16_t *a, const int16_t *panels, int64_t rows, int32_t pairs,
                    int32_t count, int32_t *out) {
    const ptrdiff_t width = (ptrdiff_t)count * ILANES;
    for (int64_t begin = 0; begin < rows; begin += GEMM_ROWS) {
        const int64_t end = rows - begin < GEMM_ROWS ? rows : begin + GEMM_ROWS;
        for (int32_t p = 0; p < count; p++) {
            const int16_t *panel = panels + (ptrdiff_t)p * pairs * 2 * ILANES;
            int64_t row = begin;
            for (; row + IROWS <= end; row += IROWS)
                gemm_block(a + row * 2 * pairs, panel, pairs, out + row * width + p * ILANES, width,
                           IROWS);
            for (; row < end; row++)
                gemm_block(a + row * 2 * pairs, panel, pairs, out + row * width + p * ILANES, width,
                           1);
        }
    }
}

#endif
