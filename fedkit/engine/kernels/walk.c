/* Takes steps one after the other, each by all threads of a team.
 *
 * Which thread runs what changes no result. Threads begin and end with a walk, so that none has to be
 * stopped, or is missing in a fork. They meet after every step; who waits looks for a moment, then
 * sleeps. Where a system gives fewer threads, those that there are take all. */
#define _POSIX_C_SOURCE 200809L

#include "walk.h"

#include <stddef.h>
#include <string.h>

/* Run a member's share of a step, whose sums go to their vectors. */
static void take_share(const struct step *step, const struct team *team, int number, int members) {
    const int64_t units = step->units;
    struct share share = {(int)(units * number / members), (int)(units * (number + 1) / members),
                          team->scratch + team->scratch_floats * number,
                          {step->sums[0], step->sums[1]}};
    if (share.first < share.last) step->run(step, &share);
}

#if !defined(FEDKIT_NO_THREADS)

#include <pthread.h>

#define MOST_MEMBERS 256
#define LOOKS 2000 /* some ten microseconds */
#define STACK (1 << 19)

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* What the members of a walk share. Counters only grow, so that one can wait for a value. */
struct walk {
    const struct step *steps;
    const struct team *team;
    int first, last, members;
    int begun;               /* 1: `members` is known */
    int arrived, met;        /* members that ended a step; steps that all have ended */
    int added;               /* units whose sums were added */
    int asleep;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

struct member {
    struct walk *walk;
    int number;
};

/* -- waiting ---------------------------------------------------------------------------------- */

static int value_of(const int *counter) { return __atomic_load_n(counter, __ATOMIC_SEQ_CST); }

static int raise_by(int *counter, int more) {
    return __atomic_add_fetch(counter, more, __ATOMIC_SEQ_CST);
}

/* Raise a counter that others wait for. Who counts as asleep looked at it once more since it does. */
static void advance(struct walk *walk, int *counter) {
    raise_by(counter, 1);
    if (!value_of(&walk->asleep)) return;
    pthread_mutex_lock(&walk->lock);
    pthread_cond_broadcast(&walk->changed);
    pthread_mutex_unlock(&walk->lock);
}

static void wait_for(struct walk *walk, const int *counter, int least) {
    for (int look = 0; look < LOOKS; look++) {
        if (value_of(counter) >= least) return;
        RELAX();
    }
    pthread_mutex_lock(&walk->lock);
    raise_by(&walk->asleep, 1);
    while (value_of(counter) < least) pthread_cond_wait(&walk->changed, &walk->lock);
    raise_by(&walk->asleep, -1);
    pthread_mutex_unlock(&walk->lock);
}

/* Wait until all members have ended `steps` steps. */
static void meet(struct walk *walk, int steps) {
    if (raise_by(&walk->arrived, 1) == steps * walk->members)
        advance(walk, &walk->met);
    else
        wait_for(walk, &walk->met, steps);
}

/* -- steps ------------------------------------------------------------------------------------ */

static void add_to(float *restrict sum, const float *restrict more, int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] += more[i];
}

/* Run units into vectors of one's own, and add these when it is their turn: the order of the units is
 * that of one thread. `before` is how many were added in earlier steps. */
static void take_turns(const struct member *member, const struct step *step, int before) {
    struct walk *walk = member->walk;
    const struct team *team = walk->team;
    float *own[2] = {team->sums + team->sums_floats * member->number, NULL};
    own[1] = own[0] + (step->sums[0] ? step->counts[0] : 0);
    for (int unit = member->number; unit < step->units; unit += walk->members) {
        struct share share = {unit, unit + 1, team->scratch + team->scratch_floats * member->number,
                              {NULL, NULL}};
        for (int i = 0; i < 2; i++) {
            if (!step->sums[i]) continue;
            share.sums[i] = own[i];
            memset(own[i], 0, (size_t)step->counts[i] * sizeof(float));
        }
        step->run(step, &share);
        wait_for(walk, &walk->added, before + unit);
        for (int i = 0; i < 2; i++)
            if (step->sums[i]) add_to(step->sums[i], own[i], step->counts[i]);
        advance(walk, &walk->added);
    }
}

static void take_steps(const struct member *member) {
    struct walk *walk = member->walk;
    int added = 0;
    wait_for(walk, &walk->begun, 1);
    for (int n = walk->first; n < walk->last; n++) {
        const struct step *step = &walk->steps[n];
        if (walk->members > 1 && (step->sums[0] || step->sums[1])) {
            take_turns(member, step, added);
            added += step->units;
        } else {
            take_share(step, walk->team, member->number, walk->members);
        }
        meet(walk, n + 1 - walk->first);
    }
}

/* -- threads ---------------------------------------------------------------------------------- */

static void *begin(void *member) {
    take_steps((const struct member *)member);
    return NULL;
}

/* Return how many members there are, with the caller. */
static int start(struct walk *walk, struct member *members, pthread_t *threads) {
    const int wanted = walk->team->threads < MOST_MEMBERS ? walk->team->threads : MOST_MEMBERS;
    pthread_attr_t attributes;
    int count = 1;
    if (pthread_attr_init(&attributes)) return 1;
    pthread_attr_setstacksize(&attributes, STACK);
    for (; count < wanted; count++) {
        members[count].walk = walk;
        members[count].number = count;
        if (pthread_create(&threads[count], &attributes, begin, &members[count])) break;
    }
    pthread_attr_destroy(&attributes);
    return count;
}

static int take_together(const struct step *steps, int first, int last, const struct team *team) {
    struct walk walk = {.steps = steps, .team = team, .first = first, .last = last};
    struct member members[MOST_MEMBERS];
    pthread_t threads[MOST_MEMBERS];
    pthread_mutex_init(&walk.lock, NULL);
    pthread_cond_init(&walk.changed, NULL);
    walk.members = start(&walk, members, threads);
    advance(&walk, &walk.begun);
    members[0].walk = &walk;
    members[0].number = 0;
    take_steps(&members[0]);
    for (int i = 1; i < walk.members; i++) pthread_join(threads[i], NULL);
    pthread_cond_destroy(&walk.changed);
    pthread_mutex_destroy(&walk.lock);
    return walk.members;
}

#endif

/* Take the steps first .. last - 1. Return how many threads did: results are the same for any. */
int kernels_walk(const struct step *steps, int first, int last, const struct team *team) {
#if !defined(FEDKIT_NO_THREADS)
    if (team->threads > 1) return take_together(steps, first, last, team);
#endif
    for (int n = first; n < last; n++) take_share(&steps[n], team, 0, 1);
    return 1;
}
