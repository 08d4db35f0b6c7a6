/* A function of one byte. */
#ifndef EK_TABLE_H
#define EK_TABLE_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const uint8_t *entries; /* [256] */
} ek_table;

/* Both tensors have the layout `planes`, but for the zero point: it is the output's. `out` may be
 * `in`. */
void ek_look_up(const ek_table *table, const ek_planes *planes, const uint8_t *in, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif
