/* Takes steps one after the other, each by all threads of a team.
 *
 * A step is so many tickets: shares of its units. Threads draw tickets in their order, and run one as
 * soon as all steps before it are done, so that nobody waits for a thread that the system does not
 * run, unless it holds a ticket. Who draws what changes no result. Threads begin and end with a walk:
 * none has to be stopped, or is missing in a fork. Where a system gives fewer, these draw more. */
#define _POSIX_C_SOURCE 200809L

#include "walk.h"

#include <stddef.h>
#include <string.h>

/* Run one of so many shares of a step, with the memory of a thread. */
static void take_share(const struct step *step, int number, int shares, struct share mine) {
    const int64_t units = step->units;
    mine.first = (int)(units * number / shares);
    mine.last = (int)(units * (number + 1) / shares);
    step->run(step, &mine);
}

#if !defined(FEDKIT_NO_THREADS)

#include <pthread.h>

#define MOST_THREADS 256
#define LOOKS 2000 /* some ten microseconds */
#define STACK (1 << 19)

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* What the threads of a walk share. */
struct walk {
    const struct step *steps;
    const struct team *team;
    int first, last;
    int drawn, done;         /* tickets */
    int asleep;              /* threads that wait for `done` */
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

/* Who counts as asleep looked at `done` once more since it does, so that none sleeps on. */
static void end_ticket(struct walk *walk) {
    raise_by(&walk->done, 1);
    if (!value_of(&walk->asleep)) return;
    pthread_mutex_lock(&walk->lock);
    pthread_cond_broadcast(&walk->changed);
    pthread_mutex_unlock(&walk->lock);
}

/* Wait until so many tickets are done: look for a moment, then sleep. */
static void wait_for(struct walk *walk, int least) {
    for (int look = 0; look < LOOKS; look++) {
        if (value_of(&walk->done) >= least) return;
        RELAX();
    }
    pthread_mutex_lock(&walk->lock);
    raise_by(&walk->asleep, 1);
    while (value_of(&walk->done) < least) pthread_cond_wait(&walk->changed, &walk->lock);
    raise_by(&walk->asleep, -1);
    pthread_mutex_unlock(&walk->lock);
}

/* -- tickets ---------------------------------------------------------------------------------- */

static int is_summed(const struct step *step) { return step->sums[0] || step->sums[1]; }

/* Of a sum, each unit is one: they are added in their order, as one thread does. */
static int tickets_of(const struct step *step, const struct team *team) {
    return is_summed(step) || step->units < team->threads ? step->units : team->threads;
}

/* Return the memory of one thread. */
static struct share memory_of(const struct step *step, const struct team *team, int number) {
    struct share mine = {0, 0, team->scratch + team->scratch_floats * number, {NULL, NULL}};
    float *own = team->sums + team->sums_floats * number;
    for (int i = 0; i < 2; i++) {
        if (!step->sums[i]) continue;
        memset(own, 0, (size_t)step->counts[i] * sizeof(float));
        mine.sums[i] = own;
        own += step->counts[i];
    }
    return mine;
}

static void add_to(float *restrict sum, const float *restrict more, int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] += more[i];
}

/* Run a ticket of a step; `before` are those of all steps before it. */
static void take_ticket(const struct member *member, const struct step *step, int ticket,
                        int before) {
    struct walk *walk = member->walk;
    const struct share mine = memory_of(step, walk->team, member->number);
    wait_for(walk, before);
    take_share(step, ticket, tickets_of(step, walk->team), mine);
    if (is_summed(step)) wait_for(walk, before + ticket);
    for (int i = 0; i < 2; i++)
        if (step->sums[i]) add_to(step->sums[i], mine.sums[i], step->counts[i]);
    end_ticket(walk);
}

static void *take_tickets(void *of) {
    const struct member *member = of;
    struct walk *walk = member->walk;
    int before = 0, n = walk->first, ticket = raise_by(&walk->drawn, 1) - 1;
    while (n < walk->last) {
        const struct step *step = &walk->steps[n];
        const int count = tickets_of(step, walk->team);
        if (ticket < before + count) {
            take_ticket(member, step, ticket - before, before);
            ticket = raise_by(&walk->drawn, 1) - 1;
        } else {
            before += count;
            n++;
        }
    }
    return NULL;
}

/* -- threads ---------------------------------------------------------------------------------- */

/* Let others begin; return how many. */
static int start(struct walk *walk, struct member *others, pthread_t *threads) {
    const int most = walk->team->threads < MOST_THREADS ? walk->team->threads : MOST_THREADS;
    pthread_attr_t attributes;
    int count = 0;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setstacksize(&attributes, STACK);
    for (; count < most - 1; count++) {
        others[count].walk = walk;
        others[count].number = count + 1;
        if (pthread_create(&threads[count], &attributes, take_tickets, &others[count])) break;
    }
    pthread_attr_destroy(&attributes);
    return count;
}

static int walk_together(const struct step *steps, int first, int last, const struct team *team) {
    struct walk walk = {.steps = steps, .team = team, .first = first, .last = last};
    struct member caller = {&walk, 0}, others[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    pthread_mutex_init(&walk.lock, NULL);
    pthread_cond_init(&walk.changed, NULL);
    const int count = start(&walk, others, threads);
    take_tickets(&caller);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    pthread_cond_destroy(&walk.changed);
    pthread_mutex_destroy(&walk.lock);
    return 1 + count;
}

#endif

/* Take the steps first .. last - 1. Return how many threads did: results are the same for any. */
int kernels_walk(const struct step *steps, int first, int last, const struct team *team) {
#if !defined(FEDKIT_NO_THREADS)
    if (team->threads > 1) return walk_together(steps, first, last, team);
#endif
    for (int n = first; n < last; n++) {
        const struct share mine = {0, 0, team->scratch, {steps[n].sums[0], steps[n].sums[1]}};
        take_share(&steps[n], 0, 1, mine);
    }
    return 1;
}
