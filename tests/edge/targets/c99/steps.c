/* Runs a network of kernels, and takes the time of it. */
#define _POSIX_C_SOURCE 199309L
#include <time.h>

#include "ek.h"

typedef struct {
    int32_t kernel;
    const void *layer, *planes, *in, *other;
    void *out;
} step;

enum { LOAD, SPLIT, SPARSE, STREAM, DENSE, ADD, MEAN, LINEAR };

static void run_step(const step *s, void *scratch) {
    const uint8_t *in = (const uint8_t *)s->in, *other = (const uint8_t *)s->other;
    const ek_planes *planes = (const ek_planes *)s->planes;
    uint8_t *out = (uint8_t *)s->out;
    if (s->kernel == LOAD) ek_load(planes, (const int8_t *)s->in, out);
    if (s->kernel == SPLIT) ek_split((const ek_phases *)s->layer, in, out);
    if (s->kernel == SPARSE) ek_conv_sparse((const ek_sparse_conv *)s->layer, in, other, out);
    if (s->kernel == STREAM)
        ek_conv_stream((const ek_stream_conv *)s->layer, in, other, out, scratch);
    if (s->kernel == DENSE)
        ek_conv_dense((const ek_dense_conv *)s->layer, in, other, out, scratch);
    if (s->kernel == ADD) ek_add((const ek_sum *)s->layer, planes, in, other, out);
    if (s->kernel == MEAN) ek_mean((const ek_requant *)s->layer, planes, in, out);
    if (s->kernel == LINEAR) ek_linear((const ek_linear_layer *)s->layer, in, out);
}

/* Fills `microseconds` [repeats]. */
void run_steps(const step *steps, int32_t count, void *scratch, int32_t repeats,
               double *microseconds) {
    for (int32_t r = 0; r < repeats; r++) {
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (int32_t n = 0; n < count; n++) run_step(&steps[n], scratch);
        clock_gettime(CLOCK_MONOTONIC, &end);
        microseconds[r] = 1e6 * (double)(end.tv_sec - start.tv_sec) +
                          1e-3 * (double)(end.tv_nsec - start.tv_nsec);
    }
}
