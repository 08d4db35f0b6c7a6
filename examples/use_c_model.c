/* Classify images of floats from stdin, [height, width, channels] each, by an exported model:
 *   make -C FOLDER && cc -IFOLDER examples/use_c_model.c FOLDER/libmodel.a -lm -o classify */
#include <math.h>
#include <stdio.h>

#include "model.h"

static int8_t to_int8(float value) {
    float code = rintf(value / MODEL_INPUT_SCALE) + MODEL_INPUT_ZERO_POINT;
    return (int8_t)fminf(fmaxf(code, -128.0f), 127.0f);
}

int main(void) {
    static uint8_t arena[MODEL_ARENA_BYTES] __attribute__((aligned(MODEL_ARENA_ALIGNMENT)));
    static float image[MODEL_INPUT_BYTES];
    static int8_t in[MODEL_INPUT_BYTES], out[MODEL_OUTPUT_BYTES];
    while (fread(image, sizeof(float), MODEL_INPUT_BYTES, stdin) == MODEL_INPUT_BYTES) {
        for (int i = 0; i < MODEL_INPUT_BYTES; i++) in[i] = to_int8(image[i]);
        if (model_invoke(in, out, arena) != 0) return 1;
        int best = 0;
        for (int i = 1; i < MODEL_OUTPUT_BYTES; i++)
            if (out[i] > out[best]) best = i;
        printf("%d %f\n", best, (out[best] - MODEL_OUTPUT_ZERO_POINT) * MODEL_OUTPUT_SCALE);
    }
    return 0;
}
