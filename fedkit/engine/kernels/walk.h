/* Steps of a program in a table, and the threads that take them. native.py mirrors `struct step` and
 * `struct team` field by field. */
#ifndef FEDKIT_WALK_H
#define FEDKIT_WALK_H

#include <stdint.h>

struct step;

/* What one thread runs of a step, and its own memory. */
struct share {
    int first, last;  /* units */
    float *scratch;
    float *sums[2];   /* where it adds to; NULL as those of the step */
};

/* Calls a kernel with the arguments of a step: steps.h has one of each. */
typedef void step_t(const struct step *step, const struct share *share);

/* A call of a kernel. Its units are tiles, parts or channels, whatever threads may share. */
struct step {
    step_t *run;
    void *pointers[3];   /* arguments by their types, those of a type in their order */
    double real;
    int32_t numbers[2];
    float *sums[2];      /* vectors to which each unit adds; NULL: not wanted */
    int64_t counts[2];   /* their floats */
    int32_t units, begin; /* how many, and the first */
};

struct crew;

/* Who shares steps; each has memory of its own, one behind the other. */
struct team {
    struct crew *crew;   /* NULL: the caller alone */
    float *scratch, *sums;
    int64_t scratch_floats, sums_floats;
    int32_t threads;
};

struct crew *kernels_begin_crew(int threads);
void kernels_end_crew(struct crew *crew);
int kernels_walk(const struct step *steps, int first, int last, const struct team *team);

#endif
