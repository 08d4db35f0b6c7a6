/* Trains one model, under the masks that it was made for, on this machine: nothing is allocated.
 *
 *   trainer_begin(seed);                     a round begins
 *   trainer_epoch();                         and an epoch of it
 *   trainer_put(0, image, label);            for each example of a batch
 *   trainer_step(0.05f, 0.9f, 0.0005f, &loss);
 *
 * The weights lie in trainer_values(), of each pruned layer only those kept. What a step computes
 * equals the sparse engine of fedkit to the bit, where the compiler fuses no products and sums
 * (-ffp-contract=off) and float and double are those of IEEE 754. */
#ifndef TRAINER_H
#define TRAINER_H

#include <stdint.h>

#include "trainer_model.h"

enum trainer_result {
    TRAINER_OK,
    TRAINER_BAD_EXAMPLE, /* a label that is no class, or no place of a batch */
    TRAINER_INCOMPLETE,  /* a step without TRAINER_BATCH examples that were put before */
    TRAINER_DIVERGED     /* the loss is not finite; the weights are as they were */
};

/* Forget the momentum and count steps anew; the seed is that of stored values' rounding. */
void trainer_begin(uint64_t seed);

/* Begin the running statistics of norms anew: they are the mean over the batches of an epoch. */
void trainer_epoch(void);

/* Where the image of a batch of one lies. Who fills this needs no memory of his own for it, and
 * gives it to trainer_put; a step overwrites it. */
float *trainer_input(void);

/* Give one example of the next batch: image [TRAINER_INPUTS], by channel, row and column. */
enum trainer_result trainer_put(int place, const float *image, int label);

/* Train on the batch that was put. */
enum trainer_result trainer_step(float rate, float momentum, float decay, double *loss);

/* Weights [TRAINER_VALUES], to be read and written between steps. */
float *trainer_values(void);

/* One of the running statistics, 0 .. TRAINER_STATISTICS - 1: of each norm the means of its channels,
 * then the variances. NaN before the first step of an epoch. */
float trainer_statistic(int number);

#endif
