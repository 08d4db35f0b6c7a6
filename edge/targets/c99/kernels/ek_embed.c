/* Rows of a table. */
#include "ek_embed.h"
#include "ek_simd.h"

void ek_embed(const ek_table_rows *rows, const ek_planes *out, const int32_t *tokens, uint8_t *y) {
    const int32_t channels = out->channels;
    ek_halo_before(out, y);
    for (int32_t t = 0; t < out->width; t++) {
        const uint8_t *row = rows->table + (size_t)tokens[t] * (size_t)channels;
        for (int32_t c = 0; c < channels; c++) y[c * out->plane + t] = row[c];
    }
    ek_halos(out, y);
}
