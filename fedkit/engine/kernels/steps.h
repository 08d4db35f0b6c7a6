/* Kernels as steps of a table: a row says which arguments a kernel takes. */
#ifndef FEDKIT_STEPS_H
#define FEDKIT_STEPS_H

#include "walk.h"

#define STEP(kernel, ...)                                                             \
    void NAME(step_##kernel)(const struct step *step, const struct share *share) {    \
        (void)share;                                                                  \
        NAME(kernel)(__VA_ARGS__);                                                    \
    }
#define POINTER(n) step->pointers[n]
#define NUMBER(n) step->numbers[n]
#define UNITS share->first, share->last

STEP(conv_forward, POINTER(0), UNITS, share->scratch)
STEP(conv_backward, POINTER(0), UNITS, share->scratch, share->sums[0], share->sums[1])
STEP(conv_transpose, POINTER(0))
STEP(norm_forward, POINTER(0), NUMBER(0), UNITS)
STEP(norm_backward, POINTER(0), NUMBER(0), UNITS)
STEP(tensor_moments, POINTER(0), UNITS)
STEP(finish_gradient, POINTER(0), UNITS)
STEP(narrow, POINTER(0), UNITS)
STEP(widen, POINTER(0), UNITS)
STEP(place_losses, POINTER(0), POINTER(1), POINTER(2), step->real, UNITS)

STEP(add_forward, POINTER(0), POINTER(1), POINTER(2), UNITS)
STEP(copy_forward, POINTER(0), POINTER(1), NUMBER(0), UNITS)
STEP(copy_backward, POINTER(0), POINTER(1), NUMBER(0), NUMBER(1), UNITS)
STEP(pool_forward, POINTER(0), UNITS)
STEP(pool_backward, POINTER(0), UNITS)
STEP(function_forward, POINTER(0), UNITS)
STEP(function_backward, POINTER(0), UNITS)
STEP(pair_forward, POINTER(0), UNITS)
STEP(pair_backward, POINTER(0), UNITS)
STEP(softmax_forward, POINTER(0), POINTER(1), UNITS)
STEP(softmax_backward, POINTER(0), POINTER(1), NUMBER(0), UNITS)
STEP(product_forward, POINTER(0), UNITS, share->scratch)
STEP(product_backward, POINTER(0), UNITS, share->scratch)
STEP(attention_forward, POINTER(0), UNITS, share->scratch)
STEP(attention_backward, POINTER(0), UNITS, share->scratch)
STEP(spread_forward, POINTER(0), POINTER(1), UNITS)
STEP(spread_gradients, POINTER(0), POINTER(1), UNITS)
STEP(embedding_forward, POINTER(0), POINTER(1), POINTER(2), UNITS)
STEP(embedding_gradients, POINTER(0), POINTER(1), POINTER(2), NUMBER(0), UNITS)
STEP(put_forward, POINTER(0), POINTER(1), POINTER(2), UNITS)
STEP(put_backward, POINTER(0), POINTER(1), POINTER(2), NUMBER(0), UNITS)
STEP(take_forward, POINTER(0), UNITS)
STEP(take_backward, POINTER(0), UNITS)
STEP(depth_to_space_forward, POINTER(0), UNITS)
STEP(depth_to_space_backward, POINTER(0), UNITS)
STEP(depth_to_space_gradients, POINTER(0), UNITS)
STEP(channel_norm_forward, POINTER(0), UNITS)
STEP(channel_norm_backward, POINTER(0), UNITS)
STEP(channel_norm_gradients, POINTER(0), UNITS)
STEP(layer_forward, POINTER(0), UNITS)
STEP(layer_backward, POINTER(0), UNITS)
STEP(layer_gradients, POINTER(0), UNITS)

#endif
