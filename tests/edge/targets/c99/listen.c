/* Feeds int16 samples from stdin, argv[1] at a time; writes the last frame whenever there is one. */
#include <stdio.h>
#include <stdlib.h>

#include "model_audio.h"

static model_audio audio;

int main(int count, char **arguments) {
    const size_t block = (size_t)atoi(arguments[count - 1]);
    int16_t *samples = malloc(block * sizeof *samples);
    model_audio_start(&audio);
    for (size_t held; (held = fread(samples, sizeof *samples, block, stdin)) > 0;) {
        for (size_t at = 0; at < held;) {
            int32_t is_frame;
            at += (size_t)model_audio_feed(&audio, samples + at, (int32_t)(held - at), &is_frame);
            const int8_t *last = audio.input + sizeof audio.input - MODEL_AUDIO_CHANNELS;
            if (is_frame) fwrite(last, 1, MODEL_AUDIO_CHANNELS, stdout);
        }
    }
    free(samples);
    return 0;
}
