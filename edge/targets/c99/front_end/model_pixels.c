#include "model_pixels.h"

#include "model_pixels_tables.h"

void model_pixels_input(const uint8_t *pixels, int8_t *input) {
    for (int32_t i = 0; i < MODEL_PIXELS; i++)
#if MODEL_PIXELS_TABLES
        input[i] = model_pixel_codes[i % MODEL_PIXELS_TABLES][pixels[i]];
#else
        input[i] = (int8_t)(pixels[i] - 128);
#endif
}
