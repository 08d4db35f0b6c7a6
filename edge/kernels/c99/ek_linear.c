/* A layer whose every output sees every input. */
#include "ek_avx2.h"

static int32_t ek_dot_rest(const int8_t *weights, const uint8_t *in, int32_t count) {
    int32_t sum = 0;
    for (int32_t i = 0; i < count; i++) sum += weights[i] * in[i];
    return sum;
}

#ifdef EK_AVX2

static int32_t ek_dot(const int8_t *weights, const uint8_t *in, int32_t count) {
    __m256i sum = _mm256_setzero_si256();
    int32_t i = 0;
    for (; count - i >= 16; i += 16) {
        const __m256i w = _mm256_cvtepi8_epi16(ek_load16((const uint8_t *)weights + i));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, _mm256_cvtepu8_epi16(ek_load16(in + i))));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
    return _mm_cvtsi128_si32(four) + ek_dot_rest(weights + i, in + i, count - i);
}

#else

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
