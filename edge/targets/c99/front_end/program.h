/* What programs that take files have in common: the model's memory, and how a class is told. */
#ifndef MODEL_PROGRAM_H
#define MODEL_PROGRAM_H

#include <stdio.h>
#include <string.h>

#include "model.h"
#include "model_classes.h"

static uint8_t memory[MODEL_ARENA_BYTES + MODEL_ARENA_ALIGNMENT];

/* Whether -o is given: outputs are told too, as integers. */
static int shows_outputs;

/* Runs the model; says of a file, or of a part of it that has a name, which class it is. */
static int tell(const char *file, const char *part, const int8_t *input) {
    static int8_t out[MODEL_OUTPUT_BYTES];
    uint8_t *arena = memory + (MODEL_ARENA_ALIGNMENT - (uintptr_t)memory % MODEL_ARENA_ALIGNMENT);
    if (model_invoke(input, out, arena)) return 1;
    printf("%s%s%s\t%s", file, *part ? "\t" : "", part, model_class_names[model_class(out)]);
    for (int32_t i = 0; shows_outputs && i < MODEL_OUTPUT_BYTES; i++)
        printf("%c%d", i ? ' ' : '\t', out[i]);
    putchar('\n');
    return 0;
}

/* Says why a file is not taken; returns 1. */
static int refuse(const char *name, const char *fault) {
    fprintf(stderr, "%s %s\n", name, fault);
    return 1;
}

#endif
