/* What surrounds a trainer on a bare processor: one training step, and memory for what is compared.
 * The trainer's own memory is all but what is called bench_. */
#include <string.h>

#include "trainer.h"

#define KEPT __attribute__((used))

KEPT struct {
    float rates[3]; /* rate, momentum, decay */
    int32_t begins; /* a round, with these values */
    int32_t label;
    float values[TRAINER_VALUES];
    float image[TRAINER_INPUTS];
} bench_in;

KEPT struct {
    double loss;
    float values[TRAINER_VALUES];
    float statistics[TRAINER_STATISTICS + 1];
} bench_out;

/* Its calls are told apart, so that copies count for nothing. */
KEPT __attribute__((noinline)) int bench_step(void) {
    if (trainer_put(0, bench_in.image, bench_in.label)) return 1;
    return (int)trainer_step(bench_in.rates[0], bench_in.rates[1], bench_in.rates[2],
                             &bench_out.loss);
}

int bench_run(void) {
    if (bench_in.begins) {
        memcpy(trainer_values(), bench_in.values, sizeof bench_in.values);
        trainer_begin(0);
    }
    const int result = bench_step();
    memcpy(bench_out.values, trainer_values(), sizeof bench_out.values);
    for (int i = 0; i < TRAINER_STATISTICS; i++) bench_out.statistics[i] = trainer_statistic(i);
    return result;
}
