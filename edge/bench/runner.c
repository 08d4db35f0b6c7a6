/* Runs a model on a board: `runner REPEATS LIMIT [ENERGY]` reads inputs.bin and prints one JSON object.
 *
 * First each example once, with what the model gave for it; then the first one REPEATS times, each
 * timed. ENERGY is a file that holds a count of microjoules. After LIMIT seconds SIGALRM ends it,
 * whatever it does. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

static uint8_t memory[MODEL_ARENA_BYTES + MODEL_ARENA_ALIGNMENT];

static uint8_t *arena(void) {
    return memory + (MODEL_ARENA_ALIGNMENT - (uintptr_t)memory % MODEL_ARENA_ALIGNMENT);
}

static long long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1000000000LL * now.tv_sec + now.tv_nsec;
}

/* The number behind `key` in a file, or the first if there is none; -1 if it cannot be read. */
static long long number_in(const char *path, const char *key) {
    char line[256];
    long long found = -1;
    FILE *file = fopen(path, "r");
    while (file && found < 0 && fgets(line, sizeof line, file))
        if (!key || strncmp(line, key, strlen(key)) == 0)
            found = atoll(line + (key ? strlen(key) : 0));
    if (file) fclose(file);
    return found;
}

static int print_outputs(FILE *inputs, void *in) {
    int8_t out[MODEL_OUTPUT_BYTES];
    printf("{\"outputs\": [");
    for (int n = 0; fread(in, 1, MODEL_INPUT_BYTES, inputs) == MODEL_INPUT_BYTES; n++) {
        if (model_invoke(in, out, arena())) return 3;
        printf("%s[", n ? ", " : "");
        for (int i = 0; i < MODEL_OUTPUT_BYTES; i++) printf("%s%d", i ? ", " : "", out[i]);
        printf("]");
    }
    printf("]");
    return 0;
}

static void print_times(const void *in, int repeats) {
    int8_t out[MODEL_OUTPUT_BYTES];
    printf(", \"nanoseconds\": [");
    for (int n = 0; n < repeats; n++) {
        const long long start = nanoseconds();
        model_invoke(in, out, arena());
        printf("%s%lld", n ? ", " : "", nanoseconds() - start);
    }
    printf("]");
}

int main(int count, char **arguments) {
    static int32_t in[(MODEL_INPUT_BYTES + 3) / 4]; /* int8, or tokens */
    FILE *inputs = fopen("inputs.bin", "rb");
    if (count < 3 || !inputs) return 2;
    alarm((unsigned)atoi(arguments[2]));
    const int failed = print_outputs(inputs, in);
    if (failed) return failed;
    rewind(inputs);
    if (fread(in, 1, MODEL_INPUT_BYTES, inputs) != MODEL_INPUT_BYTES) return 2;
    const long long energy = count > 3 ? number_in(arguments[3], NULL) : -1;
    print_times(in, atoi(arguments[1]));
    if (energy >= 0) printf(", \"microjoules\": %lld", number_in(arguments[3], NULL) - energy);
    printf(", \"peak_kib\": %lld}\n", number_in("/proc/self/status", "VmHWM:"));
    return 0;
}
