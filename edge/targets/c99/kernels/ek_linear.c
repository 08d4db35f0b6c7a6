/* A layer whose every output sees every input. */
#include "ek_simd.h"

#ifndef EK_SIMD

static int32_t ek_dot(const int8_t *weights, const uint8_t *in, int32_t count) {
    return ek_dot_rest(weights, in, count);
}

#endif

void ek_linear(const ek_linear_layer *layer, const uint8_t *in, uint8_t *out) {
    const int8_t *weights = layer->weights;
    for (int32_t o = 0; o < layer->outputs; o++, weights += layer->inputs) {
        const int32_t sum = layer->requant.bias[o] + ek_dot(weights, in, layer->inputs);
        out[o] = ek_scaled(ek_scaler_of(&layer->requant, o), sum);
    }
}
