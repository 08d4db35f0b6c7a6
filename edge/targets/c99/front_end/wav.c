/* Tells the class of .wav files: wav [-s] [-o] FILE...
 *
 * A sound is cut off or filled up with silence to one input of the model. With -s all of it is
 * listened to, and each frame of which there is a whole input has a line of its own. With -o the
 * outputs of the model are told too, as integers. */
#include "program.h"

#include "model_audio.h"

#define BLOCK 512

static model_audio audio;

static uint32_t number(const uint8_t *bytes, int count) {
    uint32_t found = 0;
    while (count--) found = found << 8 | bytes[count];
    return found;
}

static int skip(FILE *file, uint32_t count) {
    while (count > 0 && getc(file) != EOF) count--;
    return count == 0;
}

/* Finds the samples of a file; returns 0 and how many bytes they have, or why there are none. */
static const char *find_samples(FILE *file, uint32_t *bytes) {
    uint8_t head[12], format[16];
    int is_known = 0;
    if (fread(head, 1, 12, file) != 12 || memcmp(head, "RIFF", 4) || memcmp(head + 8, "WAVE", 4))
        return "is not a .wav file";
    while (fread(head, 1, 8, file) == 8) {
        const uint32_t size = number(head + 4, 4);
        if (!memcmp(head, "data", 4)) {
            *bytes = size;
            return !is_known ? "has no format" : size < 2 ? "holds no samples" : 0;
        }
        if (!memcmp(head, "fmt ", 4) && size >= 16 && fread(format, 1, 16, file) == 16) {
            if (number(format, 2) != 1) return "is not PCM";
            if (number(format + 2, 2) != 1) return "has several channels";
            if (number(format + 4, 4) != MODEL_AUDIO_RATE) return "has another rate";
            if (number(format + 14, 2) != 16) return "does not have 16 bits";
            is_known = 1;
            if (!skip(file, size - 16 + (size & 1))) break;
        } else if (!skip(file, size + (size & 1))) {
            break;
        }
    }
    return "holds no samples";
}

/* Says when a frame ends, from the beginning of the file. */
static const char *moment(long frame) {
    static char text[40];
    const double hop = MODEL_AUDIO_HOP, behind = MODEL_AUDIO_WINDOW - MODEL_AUDIO_HOP;
    snprintf(text, sizeof text, "%.2f s", ((double)frame * hop + behind) / MODEL_AUDIO_RATE);
    return text;
}

/* Reads samples; returns how many. */
static int32_t read_block(FILE *file, uint32_t *bytes, int16_t *samples, int32_t most) {
    uint8_t pair[2];
    int32_t count = 0;
    for (; count < most && *bytes >= 2 && fread(pair, 1, 2, file) == 2; *bytes -= 2) {
        const int32_t code = (int32_t)number(pair, 2);
        samples[count++] = (int16_t)(code < 0x8000 ? code : code - 0x10000);
    }
    return count;
}

/* Feeds samples; returns how many frames they complete. */
static int listen(const char *name, int16_t *samples, int32_t count, long *frames, int is_stream) {
    while (count > 0) {
        int32_t is_frame;
        const int32_t taken = model_audio_feed(&audio, samples, count, &is_frame);
        samples += taken, count -= taken, *frames += is_frame;
        const int is_whole = *frames >= MODEL_AUDIO_FRAMES;
        if (is_frame && is_whole && (is_stream || *frames == MODEL_AUDIO_FRAMES))
            if (tell(name, is_stream ? moment(*frames) : "", audio.input)) return 1;
    }
    return 0;
}

static int hear(const char *name, int is_stream) {
    static int16_t samples[BLOCK];
    uint32_t bytes = 0;
    long frames = 0;
    FILE *file = fopen(name, "rb");
    const char *fault = file ? find_samples(file, &bytes) : "cannot be opened";
    if (fault) {
        if (file) fclose(file);
        return refuse(name, fault);
    }
    int failed = 0;
    model_audio_start(&audio);
    for (int32_t count = 1; count > 0 && !failed;) {
        count = read_block(file, &bytes, samples, BLOCK);
        failed = listen(name, samples, count, &frames, is_stream);
    }
    fclose(file);
    if (bytes >= 2) return refuse(name, "is shorter than it says");
    memset(samples, 0, sizeof samples);
    while (frames < MODEL_AUDIO_FRAMES && !failed)
        failed = listen(name, samples, MODEL_AUDIO_HOP < BLOCK ? MODEL_AUDIO_HOP : BLOCK, &frames, 0);
    return failed;
}

int main(int count, char **arguments) {
    int first = 1, is_stream = 0, failed = 0;
    for (; first < count && arguments[first][0] == '-'; first++) {
        is_stream |= !strcmp(arguments[first], "-s");
        shows_outputs |= !strcmp(arguments[first], "-o");
    }
    for (int i = first; i < count; i++) failed |= hear(arguments[i], is_stream);
    return failed;
}
