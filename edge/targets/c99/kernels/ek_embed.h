/* Rows of a table. */
#ifndef EK_EMBED_H
#define EK_EMBED_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const uint8_t *table; /* [tokens there are][channels of the output] */
} ek_table_rows;

/* One row for each of `out->width` tokens, all of which the table has. */
void ek_embed(const ek_table_rows *rows, const ek_planes *out, const int32_t *tokens, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
