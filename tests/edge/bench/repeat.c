/* Reads one example from stdin, runs the model as often as the argument says, writes the output. */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

static uint8_t arena[MODEL_ARENA_BYTES] __attribute__((aligned(MODEL_ARENA_ALIGNMENT)));

int main(int argc, char **argv) {
    int8_t in[MODEL_INPUT_BYTES], out[MODEL_OUTPUT_BYTES];
    if (argc != 2 || fread(in, 1, sizeof in, stdin) != sizeof in) return 2;
    for (int left = atoi(argv[1]); left > 0; left--) {
        if (model_invoke(in, out, arena) != 0) return 1;
    }
    return fwrite(out, 1, sizeof out, stdout) != sizeof out;
}
