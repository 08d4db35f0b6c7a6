/* From pixels to the model's input: `pixels` are rows of bytes, the channels of a pixel together.
 *
 *     model_pixels_input(pixels, input);
 *     model_invoke(input, out, arena);
 *     say(model_class_names[model_class(out)]);
 */
#ifndef MODEL_PIXELS_H
#define MODEL_PIXELS_H

#include <stdint.h>

#include "model_classes.h"
#include "model_pixels_sizes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Makes int8 [MODEL_PIXELS] of as many pixels; both may be the same memory. */
void model_pixels_input(const uint8_t *pixels, int8_t *input);

#ifdef __cplusplus
}
#endif
#endif
