/* Tells the class of pictures: picture [-o] FILE...
 *
 * Files are .pgm (P5) or .ppm (P6) of 8 bits, of the size that the model takes. With -o the outputs
 * of the model are told too, as integers. */
#include "program.h"

#include "model_pixels.h"

static uint8_t pixels[MODEL_PIXELS];
static int8_t input[MODEL_PIXELS];

/* Reads a number of a header, and the one character behind it; -1 if there is none. */
static long read_number(FILE *file) {
    long found = -1;
    int c = getc(file);
    while (c == '#' || c == ' ' || (c >= '\t' && c <= '\r')) {
        if (c == '#')
            while (c != '\n' && c != EOF) c = getc(file);
        if (c != EOF) c = getc(file);
    }
    for (; c >= '0' && c <= '9' && found < 100000000; c = getc(file))
        found = (found < 0 ? 0 : 10 * found) + (c - '0');
    return c == ' ' || c == '\n' || c == '\t' || c == '\r' ? found : -1;
}

/* Reads the pixels; returns 0, or why there are none. */
static const char *read_pixels(FILE *file) {
    static char fault[100];
    char kind[2];
    if (fread(kind, 1, 2, file) != 2 || kind[0] != 'P' || (kind[1] != '5' && kind[1] != '6'))
        return "is no .pgm or .ppm file of bytes (P5, P6)";
    if (kind[1] != (MODEL_PIXELS_CHANNELS == 3 ? '6' : '5'))
        return MODEL_PIXELS_CHANNELS == 3 ? "is grey, and the model takes colours (P6)"
                                          : "has colours, and the model takes grey (P5)";
    const long width = read_number(file), height = width < 0 ? -1 : read_number(file);
    const long levels = height < 0 ? -1 : read_number(file);
    if (levels < 0) return "has a damaged header";
    if (width != MODEL_PIXELS_WIDTH || height != MODEL_PIXELS_HEIGHT) {
        snprintf(fault, sizeof fault, "has %ld x %ld pixels, and the model takes %d x %d", width,
                 height, MODEL_PIXELS_WIDTH, MODEL_PIXELS_HEIGHT);
        return fault;
    }
    if (levels != 255) return "does not have levels of 0 to 255";
    return fread(pixels, 1, MODEL_PIXELS, file) == MODEL_PIXELS ? 0 : "is shorter than it says";
}

static int look(const char *name) {
    FILE *file = fopen(name, "rb");
    if (!file) return refuse(name, "cannot be opened");
    const char *fault = read_pixels(file);
    fclose(file);
    if (fault) return refuse(name, fault);
    model_pixels_input(pixels, input);
    return tell(name, "", input);
}

int main(int count, char **arguments) {
    int failed = 0;
    shows_outputs = count > 1 && !strcmp(arguments[1], "-o");
    for (int i = 1 + shows_outputs; i < count; i++) failed |= look(arguments[i]);
    return failed;
}
