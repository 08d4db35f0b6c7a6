/* The steps of a trainer: what trainer.h declares, over the model's tables and passes. */
#ifndef TRAINER_RUN_H
#define TRAINER_RUN_H

static int has_all(void) {
    for (int l = 0; l < TRAINER_BATCH; l++)
        if (!STATE->put[l]) return 0;
    return 1;
}

void trainer_begin(uint64_t seed) {
    memset(STATE, 0, sizeof *STATE);
    memset(VELOCITY, 0, TRAINER_VALUES * sizeof(float));
    STATE->seed = seed;
    trainer_epoch();
}

void trainer_epoch(void) {
    STATE->batches = 0;
    memset(STATISTICS, 0, (TRAINER_STATISTICS + 1) * sizeof(double));
}

float *trainer_values(void) { return VALUES; }

float *trainer_input(void) { return INPUT; }

enum trainer_result trainer_put(int place, const float *image, int label) {
    float *x = INPUT;
    if (place < 0 || place >= TRAINER_BATCH || label < 0 || label >= TRAINER_CLASSES)
        return TRAINER_BAD_EXAMPLE;
    for (int i = 0; i < TRAINER_INPUTS; i++) x[(ptrdiff_t)i * LANES + place] = image[i];
    STATE->labels[place] = label;
    STATE->put[place] = 1;
    return TRAINER_OK;
}

/* Add the mean and the variance, unbiased, of each channel of a norm. */
static double *add_statistics(const struct norm *n, double *to) {
    const int channels = n->tensor->channels;
    const double count = norm_count(n);
    for (int c = 0; c < channels; c++) to[c] += n->center[c];
    to += channels;
    for (int c = 0; c < channels; c++) {
        const double mean = n->spread[c] / count;
        to[c] += n->l1 ? HALF_PI * (mean * mean) : n->spread[c] / (count > 2.0 ? count - 1.0 : 1.0);
    }
    return to + channels;
}

float trainer_statistic(int number) {
    return (float)(STATISTICS[number] / (double)STATE->batches);
}

enum trainer_result trainer_step(float rate, float momentum, float decay, double *loss) {
    double *statistics = STATISTICS;
    if (!has_all()) return TRAINER_INCOMPLETE;
    memset(STATE->put, 0, sizeof STATE->put);
    forward_pass();
    *loss = cross_entropy_plain(OUTPUT, STATE->labels);
    if (!(*loss - *loss == 0.0)) return TRAINER_DIVERGED;
    memset(GRADIENT, 0, TRAINER_VALUES * sizeof(float));
    backward_pass();
    for (int i = 0; i < PRUNED; i++) GRADIENT[pruned[i]] = 0.0f;
    sgd_plain(VALUES, VELOCITY, GRADIENT, TRAINER_VALUES, rate, momentum, decay);
    for (int i = 0; i < NORMS; i++) statistics = add_statistics(norms[i], statistics);
    STATE->batches++;
    STATE->step++;
    return TRAINER_OK;
}

#endif
