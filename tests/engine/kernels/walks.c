/* Walks through steps whose order shows in the bits; test_walks.py compiles it with walk.c.
 *
 *   walks THREADS ROUNDS
 *
 * It prints how many threads there were, and in hexadecimal what a table of steps computed. With
 * -Dpthread_create=refused the system gives a walk one thread, and no other. */
#define _POSIX_C_SOURCE 200809L

#include "walk.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define UNITS 13
#define COUNT 37
#define MOST 16

#if defined(pthread_create)
#undef pthread_create
int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int refused(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *of) {
    static int asked;
    return asked++ % 3 ? EAGAIN : pthread_create(thread, attributes, run, of);
}
#endif

static float input[UNITS], doubled[UNITS], weights[COUNT], bias[2];

/* Let others fall asleep meanwhile. */
static void dawdle(int unit) {
    const struct timespec moment = {0, 300000};
    if (unit % 5 == 3) nanosleep(&moment, NULL);
}

static void split(const struct step *step, const struct share *share) {
    (void)step;
    for (int unit = share->first; unit < share->last; unit++) {
        dawdle(unit);
        share->scratch[0] = input[unit] * 1.1f;
        doubled[unit] = share->scratch[0] + share->scratch[0];
    }
}

/* Reads what all threads wrote. */
static void alone(const struct step *step, const struct share *share) {
    (void)step, (void)share;
    for (int unit = 0; unit < UNITS; unit++) input[unit] = doubled[UNITS - 1 - unit] / 2.3f;
}

static void summed(const struct step *step, const struct share *share) {
    (void)step;
    for (int unit = share->first; unit < share->last; unit++) {
        dawdle(unit + 1);
        for (int i = 0; share->sums[0] && i < COUNT; i++)
            share->sums[0][i] += input[unit] / (float)(i + unit + 1);
        for (int i = 0; share->sums[1] && i < 2; i++) share->sums[1][i] += input[unit] * 0.7f;
    }
}

int main(int count, char **arguments) {
    static float scratch[MOST * 8], sums[MOST * 48];
    const int threads = count > 1 ? atoi(arguments[1]) : 1, rounds = count > 2 ? atoi(arguments[2]) : 1;
    struct team team = {NULL, scratch, sums, 8, 48, threads};
    struct step table[6];
    int walked = 0;
    memset(table, 0, sizeof table);
    for (int n = 0; n < 6; n++) table[n].units = UNITS;
    table[0].run = split;
    table[1].run = alone, table[1].units = 1;
    for (int n = 2; n < 5; n++) {
        table[n].run = summed;
        if (n != 3) table[n].sums[0] = weights, table[n].counts[0] = COUNT;
        if (n != 4) table[n].sums[1] = bias, table[n].counts[1] = 2;
    }
    table[5].run = split, table[5].units = 2;
    for (int unit = 0; unit < UNITS; unit++) input[unit] = 1.0f / (float)(unit + 3);
    for (int round = 0; round < rounds; round++) {
        if (round % 7 == 0) {
            kernels_end_crew(team.crew);
            team.crew = kernels_begin_crew(threads);
        }
        if (kernels_walk(table, 0, 2, &team) < 1 || kernels_walk(table, 4, 4, &team) < 1) return 1;
        walked = kernels_walk(table, 2, 6, &team);
    }
    kernels_end_crew(team.crew);
    printf("%d\n", walked);
    for (int i = 0; i < COUNT; i++) printf("%a ", (double)weights[i]);
    for (int i = 0; i < UNITS; i++) printf("%a ", (double)doubled[i]);
    printf("%a %a\n", (double)bias[0], (double)bias[1]);
    return 0;
}
