#include "model_audio.h"

#include <string.h>

#include "ek_log_mel.h"
#include "model_audio_tables.h"

void model_audio_start(model_audio *audio) {
    memset(audio, 0, sizeof *audio);
    memset(audio->input, model_levels[0], sizeof audio->input);
}

static void model_add_frame(model_audio *audio) {
    const size_t old = sizeof audio->input - MODEL_AUDIO_CHANNELS;
    int8_t *frame = audio->input + old;
    memmove(audio->input, audio->input + MODEL_AUDIO_CHANNELS, old);
    ek_log_mel_levels(&model_front_end, audio->samples, audio->real, audio->imaginary, frame);
    for (int32_t c = 0; c < MODEL_AUDIO_CHANNELS; c++) frame[c] = model_levels[frame[c] + 128];
}

int32_t model_audio_feed(model_audio *audio, const int16_t *samples, int32_t count,
                         int32_t *is_frame) {
    const int32_t kept = MODEL_AUDIO_WINDOW - MODEL_AUDIO_HOP, wanted = MODEL_AUDIO_WINDOW - audio->held;
    const int32_t taken = count < wanted ? count : wanted;
    *is_frame = taken == wanted;
    if (taken <= 0) return 0;
    memcpy(audio->samples + audio->held, samples, (size_t)taken * sizeof *samples);
    audio->held += taken;
    if (*is_frame) {
        model_add_frame(audio);
        memmove(audio->samples, audio->samples + MODEL_AUDIO_HOP, (size_t)kept * sizeof *samples);
        audio->held = kept;
    }
    return taken;
}

int32_t model_class(const int8_t *out) {
    int32_t best = 0;
    for (int32_t i = 1; i < MODEL_CLASSES; i++) best = out[i] > out[best] ? i : best;
    return best;
}
