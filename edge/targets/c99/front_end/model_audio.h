/* From samples to the model's input.
 *
 *     model_audio_start(&audio);
 *     while (count > 0) {
 *         const int32_t taken = model_audio_feed(&audio, samples, count, &is_frame);
 *         samples += taken, count -= taken;
 *         if (!is_frame) continue;
 *         model_invoke(audio.input, out, arena);
 *         say(model_class_names[model_class(out)]);
 *     }
 */
#ifndef MODEL_AUDIO_H
#define MODEL_AUDIO_H

#include <stdint.h>

#include "model_audio_sizes.h"
#include "model_classes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int8_t input[MODEL_AUDIO_FRAMES * MODEL_AUDIO_CHANNELS]; /* the last frames, oldest first */
    int16_t samples[MODEL_AUDIO_WINDOW];
    int32_t held; /* samples of the next window that are there */
    int32_t real[MODEL_AUDIO_FFT], imaginary[MODEL_AUDIO_FFT];
} model_audio;

/* Begins with silence. */
void model_audio_start(model_audio *audio);

/* Takes samples up to the end of the next frame; returns how many. `is_frame` becomes 1 if there is
 * a new frame in `input`, else 0. */
int32_t model_audio_feed(model_audio *audio, const int16_t *samples, int32_t count,
                         int32_t *is_frame);

#ifdef __cplusplus
}
#endif
#endif
