/* Takes steps one after the other, each by all threads of a team.
 *
 * A step is so many tickets: shares of its units. Threads draw tickets in their order, and run one as
 * soon as all steps before it are done. So nobody waits for a thread that the system does not run,
 * unless it holds a ticket. Who draws what changes no result. Where a system gives fewer threads than
 * were asked for, these draw more tickets. */
#define _POSIX_C_SOURCE 200809L

#include "walk.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Run one of so many shares of a step, with the memory of a thread. */
static void take_share(const struct step *step, int number, int shares, struct share mine) {
    const int64_t units = step->units;
    mine.first = step->begin + (int)(units * number / shares);
    mine.last = step->begin + (int)(units * (number + 1) / shares);
    step->run(step, &mine);
}

#if !defined(FEDKIT_NO_THREADS)

#include <pthread.h>
#include <unistd.h>

#define LOOKS 2000 /* some ten microseconds */
#define STACK (1 << 21) /* addresses; only code that is not optimised has such frames */

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

struct member {
    struct crew *crew;
    int number;
    pthread_t thread;
};

/* Threads beside the caller, which sleep between walks. */
struct crew {
    const struct step *steps;
    const struct team *team;
    int first, last;
    int drawn, done;         /* tickets of this walk */
    int open, joined, left;  /* whether it may be joined; how many threads did; and are through */
    int asleep;              /* threads that wait for tickets, or for others to leave */
    unsigned walks;          /* begun so far */
    int ends;
    pthread_mutex_t lock;
    pthread_cond_t raised, begun; /* a counter, for those asleep; a walk, or the end */
    pid_t process;           /* whose threads they are; 0: there are none yet */
    int wanted, count;
    struct member members[];
};

/* -- waiting ---------------------------------------------------------------------------------- */

static int value_of(const int *counter) { return __atomic_load_n(counter, __ATOMIC_SEQ_CST); }

static int raise_by(int *counter, int more) {
    return __atomic_add_fetch(counter, more, __ATOMIC_SEQ_CST);
}

/* Raise a counter that others wait for. Who counts as asleep looked at it once more since it does. */
static void advance(struct crew *crew, int *counter) {
    raise_by(counter, 1);
    if (!value_of(&crew->asleep)) return;
    pthread_mutex_lock(&crew->lock);
    pthread_cond_broadcast(&crew->raised);
    pthread_mutex_unlock(&crew->lock);
}

/* Wait until a counter is that high: look for a moment, then sleep. */
static void wait_for(struct crew *crew, const int *counter, int least) {
    for (int look = 0; look < LOOKS; look++) {
        if (value_of(counter) >= least) return;
        RELAX();
    }
    pthread_mutex_lock(&crew->lock);
    raise_by(&crew->asleep, 1);
    while (value_of(counter) < least) pthread_cond_wait(&crew->raised, &crew->lock);
    raise_by(&crew->asleep, -1);
    pthread_mutex_unlock(&crew->lock);
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
static void take_ticket(struct crew *crew, int member, const struct step *step, int ticket,
                        int before) {
    const struct share mine = memory_of(step, crew->team, member);
    wait_for(crew, &crew->done, before);
    take_share(step, ticket, tickets_of(step, crew->team), mine);
    if (is_summed(step)) wait_for(crew, &crew->done, before + ticket);
    for (int i = 0; i < 2; i++)
        if (step->sums[i]) add_to(step->sums[i], mine.sums[i], step->counts[i]);
    advance(crew, &crew->done);
}

static void take_tickets(struct crew *crew, int member) {
    int before = 0, n = crew->first, ticket = raise_by(&crew->drawn, 1) - 1;
    while (n < crew->last) {
        const struct step *step = &crew->steps[n];
        const int count = tickets_of(step, crew->team);
        if (ticket < before + count) {
            take_ticket(crew, member, step, ticket - before, before);
            ticket = raise_by(&crew->drawn, 1) - 1;
        } else {
            before += count;
            n++;
        }
    }
}

/* -- threads ---------------------------------------------------------------------------------- */

/* Join walks while they go on. */
static void *serve(void *of) {
    const struct member *member = of;
    struct crew *crew = member->crew;
    unsigned seen = 0;
    pthread_mutex_lock(&crew->lock);
    for (;;) {
        while (!crew->ends && crew->walks == seen) pthread_cond_wait(&crew->begun, &crew->lock);
        if (crew->ends) break;
        seen = crew->walks;
        if (!crew->open) continue;
        crew->joined++;
        pthread_mutex_unlock(&crew->lock);
        take_tickets(crew, member->number);
        advance(crew, &crew->left);
        pthread_mutex_lock(&crew->lock);
    }
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

/* Start the threads, before the first walk and in a fork, which has none of its parent's. */
static void muster(struct crew *crew) {
    pthread_attr_t attributes;
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->raised, NULL);
    pthread_cond_init(&crew->begun, NULL);
    crew->process = getpid();
    crew->asleep = crew->count = 0;
    crew->walks = 0;
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setstacksize(&attributes, STACK);
    for (; crew->count < crew->wanted; crew->count++) {
        struct member *member = &crew->members[crew->count];
        member->crew = crew;
        member->number = crew->count + 1;
        if (pthread_create(&member->thread, &attributes, serve, member)) break;
    }
    pthread_attr_destroy(&attributes);
}

static int walk_together(const struct step *steps, int first, int last, const struct team *team) {
    struct crew *crew = team->crew;
    if (crew->process != getpid()) muster(crew);
    pthread_mutex_lock(&crew->lock);
    crew->steps = steps, crew->team = team, crew->first = first, crew->last = last;
    crew->drawn = crew->done = crew->joined = crew->left = 0;
    crew->open = 1;
    crew->walks++;
    pthread_cond_broadcast(&crew->begun);
    pthread_mutex_unlock(&crew->lock);
    take_tickets(crew, 0);
    pthread_mutex_lock(&crew->lock);
    crew->open = 0;
    const int joined = crew->joined;
    pthread_mutex_unlock(&crew->lock);
    wait_for(crew, &crew->left, joined);
    return 1 + crew->count;
}

/* Return a crew of so many threads with the caller, or NULL: there is no need of one, or no memory. */
struct crew *kernels_begin_crew(int threads) {
    const size_t others = threads > 1 ? (size_t)threads - 1 : 0;
    struct crew *crew = NULL;
    if (others) crew = calloc(1, sizeof *crew + others * sizeof *crew->members);
    if (crew) crew->wanted = (int)others;
    return crew;
}

/* End the threads of a crew that does not walk. */
void kernels_end_crew(struct crew *crew) {
    if (crew && crew->process == getpid()) {
        pthread_mutex_lock(&crew->lock);
        crew->ends = 1;
        pthread_cond_broadcast(&crew->begun);
        pthread_mutex_unlock(&crew->lock);
        for (int i = 0; i < crew->count; i++) pthread_join(crew->members[i].thread, NULL);
        pthread_cond_destroy(&crew->begun);
        pthread_cond_destroy(&crew->raised);
        pthread_mutex_destroy(&crew->lock);
    }
    free(crew);
}

#else

struct crew *kernels_begin_crew(int threads) { return (void)threads, NULL; }

void kernels_end_crew(struct crew *crew) { (void)crew; }

#endif

/* Take the steps first .. last - 1. Return how many threads did: results are the same for any. */
int kernels_walk(const struct step *steps, int first, int last, const struct team *team) {
#if !defined(FEDKIT_NO_THREADS)
    if (team->crew) return walk_together(steps, first, last, team);
#endif
    for (int n = first; n < last; n++) {
        const struct share mine = {0, 0, team->scratch, {steps[n].sums[0], steps[n].sums[1]}};
        take_share(&steps[n], 0, 1, mine);
    }
    return 1;
}
