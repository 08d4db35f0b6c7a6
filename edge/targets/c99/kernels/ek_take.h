/* Values from other places. */
#ifndef EK_TAKE_H
#define EK_TAKE_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which row, column and channel of the input those of the output are; as many as that has. */
typedef struct {
    const uint16_t *rows, *columns, *channels;
    int32_t is_run; /* whether the columns are one after the other */
} ek_places;

void ek_take(const ek_places *places, const ek_planes *in, const ek_planes *out, const uint8_t *x,
             uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
