#include "model_audio.h"

#include "ek_log_mel.h"
#include "model_audio_tables.h"

#define MODEL_KEPT (MODEL_AUDIO_WINDOW - MODEL_AUDIO_HOP)
#define MODEL_OLD ((MODEL_AUDIO_FRAMES - 1) * MODEL_AUDIO_CHANNELS)

void model_audio_start(model_audio *audio) {
    for (int32_t i = 0; i < MODEL_OLD + MODEL_AUDIO_CHANNELS; i++) audio->input[i] = model_levels[0];
    audio->held = 0;
}

/* Moves the older frames to the front, and makes the last one. */
static void model_add_frame(model_audio *audio) {
    int8_t *frame = audio->input + MODEL_OLD;
    for (int32_t i = 0; i < MODEL_OLD; i++) audio->input[i] = audio->input[i + MODEL_AUDIO_CHANNELS];
    ek_log_mel_levels(&model_front_end, audio->samples, audio->real, audio->imaginary, frame);
    for (int32_t c = 0; c < MODEL_AUDIO_CHANNELS; c++) frame[c] = model_levels[frame[c] + 128];
}

int32_t model_audio_feed(model_audio *audio, const int16_t *samples, int32_t count,
                         int32_t *is_frame) {
    int32_t taken = 0;
    while (taken < count && audio->held < MODEL_AUDIO_WINDOW)
        audio->samples[audio->held++] = samples[taken++];
    *is_frame = audio->held == MODEL_AUDIO_WINDOW;
    if (*is_frame) {
        model_add_frame(audio);
        for (int32_t i = 0; i < MODEL_KEPT; i++)
            audio->samples[i] = audio->samples[i + MODEL_AUDIO_HOP];
        audio->held = MODEL_KEPT;
    }
    return taken;
}
