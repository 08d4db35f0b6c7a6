/* Axes in another order, and other axes of the same values. */
#ifndef EK_MOVE_H
#define EK_MOVE_H

#include "ek.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EK_LOOPS 8 /* at most */

/* Nested loops, outermost first: how often, and the distances of what is read and written. */
typedef struct {
    int32_t count;
    const int32_t *often, *from, *to;
} ek_loops;

void ek_move(const ek_loops *loops, const ek_planes *out, const uint8_t *x, uint8_t *y);

/* Both have as many values, which keep their order through rows, columns and then channels. */
void ek_reshape(const ek_planes *in, const ek_planes *out, const uint8_t *x, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
