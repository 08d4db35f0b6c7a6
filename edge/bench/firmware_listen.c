/* The front end of a model of sound on a bare processor: one frame of one window of samples. */
#include "model_audio.h"

#define KEPT __attribute__((used))

KEPT int16_t bench_in[MODEL_AUDIO_WINDOW];
KEPT int8_t bench_out[MODEL_AUDIO_CHANNELS];
KEPT model_audio bench_audio;

int bench_run(void) {
    const int8_t *frame = bench_audio.input + sizeof bench_audio.input - MODEL_AUDIO_CHANNELS;
    int32_t is_frame;
    bench_audio.held = 0;
    model_audio_feed(&bench_audio, bench_in, MODEL_AUDIO_WINDOW, &is_frame);
    for (int32_t c = 0; c < MODEL_AUDIO_CHANNELS; c++) bench_out[c] = frame[c];
    return !is_frame;
}
