#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/os.h"
#include "pygpt.h"

#if defined(__x86_64__) || defined(__i386__)
#define cpu_relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define cpu_relax() __asm__ volatile("yield")
#else
#define cpu_relax() ((void)0)
#endif

enum {
    LINE = 128,                            /* two cache lines: processors fetch them in pairs */
    STACK_BYTES = 1 << 20                  /* kernels take 130 KB; some systems give a thread no more */
};

struct worker_state {
    _Alignas(LINE) atomic_uint arrived;    /* barriers of the current run that this worker has reached */
    atomic_uint_fast64_t done;             /* the last ticket that it has finished */
    _Alignas(LINE) atomic_uint_fast64_t left;    /* of its part of a round: round << 48 | begin << 24 | end */
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int size, spins;                       /* spins: pauses before giving the processor away */
    double stalled;                        /* seconds of this run that the caller waited beyond its spins */
    double alone_until;                    /* the caller runs alone before this time */
    int alone_factor;                      /* for so many times as long as it has waited */
    unsigned forks;                        /* the process's fork count when the threads were made */
    pthread_mutex_t turn;                  /* held by the caller whose runs these are */

    pool_fn *fn;                           /* the current job: written before the ticket, read after it */
    void *arg;
    _Alignas(LINE) atomic_uint_fast64_t ticket;   /* run number << 9 | workers taking part; 0 workers: go home */

    pthread_mutex_t sleep;
    pthread_cond_t wake;
    atomic_int sleepers;
    struct worker_state *workers;          /* [size] */
};

static const double idle_spin_seconds = 50e-6;

/* A child process has none of its parent's threads; pools notice by this count. */
static atomic_uint fork_count;
static pthread_mutex_t restart = PTHREAD_MUTEX_INITIALIZER;      /* two threads of a child must not both start workers */

static void count_fork(void) {
    pthread_mutex_init(&restart, NULL);
    atomic_fetch_add(&fork_count, 1);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

/* One look further, kept in a waiting loop: pauses at first, then gives the processor away, and says since when. */
struct patience { int spins; double since; };

static void wait_a_little(struct patience *p, int limit) {
    if (++p->spins < limit) {
        cpu_relax();
    } else {
        if (p->since == 0) p->since = os_seconds();
        sched_yield();
    }
}

static void count_stall(struct pool *pool, const struct patience *p) {
    if (p->since > 0) pool->stalled += os_seconds() - p->since;
}

void pool_barrier(struct pool *pool, int worker, int n) {
    if (n == 1) return;
    struct worker_state *w = pool->workers;
    struct patience patience = {0};
    unsigned mine = atomic_load_explicit(&w[worker].arrived, memory_order_relaxed) + 1;
    atomic_store_explicit(&w[worker].arrived, mine, memory_order_release);
    for (int i = 0; i < n; i++)
        while ((int)(atomic_load_explicit(&w[i].arrived, memory_order_acquire) - mine) < 0)
            wait_a_little(&patience, pool->spins);
    if (worker == 0) count_stall(pool, &patience);
}

/* Takes from what is left of the owner's part, as its first taker makes it; nothing if that has gone on to a later round: then all of
 * this one is taken, for nobody leaves a round before. Owners take from the front, so that they read on where they are. */
static int take_from(struct pool *pool, int owner, int worker, int round, struct range all, int64_t least, struct range *part) {
    atomic_uint_fast64_t *at = &pool->workers[owner].left;
    uint64_t left = atomic_load_explicit(at, memory_order_relaxed), rest;
    do {
        int ahead = (int16_t)((unsigned)(left >> 48) - (unsigned)round);
        struct range r = ahead < 0 ? all : (struct range){(int64_t)(left >> 24 & 0xffffff), (int64_t)(left & 0xffffff)};
        if (ahead > 0 || r.begin == r.end) return 0;
        int64_t n = i64_min(i64_max((r.end - r.begin + 1) / 2, least), r.end - r.begin);
        *part = owner == worker ? (struct range){r.begin, r.begin + n} : (struct range){r.end - n, r.end};
        if (owner == worker) r.begin += n;
        else r.end -= n;
        rest = (uint64_t)(round & 0xffff) << 48 | (uint64_t)r.begin << 24 | (uint64_t)r.end;
    } while (!atomic_compare_exchange_weak_explicit(at, &left, rest, memory_order_relaxed, memory_order_relaxed));
    return 1;
}

int pool_take(struct pool *pool, int worker, int n, int round, int64_t total, int64_t least, struct range *part) {
    for (int i = 0; i < n; i++) {
        int owner = (worker + i) % n;
        if (take_from(pool, owner, worker, round, range_part(total, 1, owner, n), least, part)) return 1;
    }
    return 0;
}

/* Waits for a ticket other than the last one: first spinning, then asleep. */
static uint64_t next_ticket(struct pool *pool, uint64_t last) {
    uint64_t ticket;
    double end = os_seconds() + idle_spin_seconds;
    do {
        for (int i = 0; i < 64; i++) {
            ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
            if (ticket != last) return ticket;
            cpu_relax();
        }
    } while (os_seconds() < end);
    pthread_mutex_lock(&pool->sleep);
    atomic_fetch_add(&pool->sleepers, 1);
    while ((ticket = atomic_load(&pool->ticket)) == last) pthread_cond_wait(&pool->wake, &pool->sleep);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->sleep);
    return ticket;
}

static void publish(struct pool *pool, int n) {
    uint64_t run = (atomic_load(&pool->ticket) >> 9) + 1;
    atomic_store(&pool->ticket, run << 9 | (unsigned)n);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->sleep);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->sleep);
    }
}

static void *worker_main(void *arg) {
    struct worker_state *self = arg;
    struct pool *pool = self->pool;
    uint64_t ticket = atomic_load(&self->done);
    for (;;) {
        ticket = next_ticket(pool, ticket);
        int n = (int)(ticket & 511);
        if (n == 0) return NULL;
        if (self->index >= n) continue;
        pool->fn(pool->arg, self->index, n);
        atomic_store_explicit(&self->done, ticket, memory_order_release);
    }
}

/* Starts workers 1 .. size - 1, or as many as there are threads to be had; returns that many. */
static int start_workers(struct pool *pool, int size) {
    pthread_mutex_init(&pool->sleep, NULL);
    pthread_cond_init(&pool->wake, NULL);
    atomic_store(&pool->sleepers, 0);
    pool->forks = atomic_load(&fork_count);
    pthread_attr_t roomy;
    pthread_attr_init(&roomy);
    pthread_attr_setstacksize(&roomy, STACK_BYTES);
    int started = 0;
    for (; started < size; started++) {
        struct worker_state *w = &pool->workers[started];
        w->pool = pool;
        w->index = started;
        atomic_store(&w->done, atomic_load(&pool->ticket));
        if (started > 0 && pthread_create(&w->thread, &roomy, worker_main, w) != 0) break;
    }
    pthread_attr_destroy(&roomy);
    return started;
}

struct pool *pool_new(int n) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (n < 1 || n > POOL_MAX) {
        error_set(GPT_EINVAL, "%d threads; expected 1 to %d", n, POOL_MAX);
        return NULL;
    }
    pthread_once(&once, watch_forks);
    struct pool *pool = aligned_alloc(LINE, sizeof *pool);
    struct worker_state *workers = aligned_alloc(LINE, (size_t)n * sizeof *workers);
    if (!pool || !workers) {
        free(pool);
        free(workers);
        error_set(GPT_ENOMEM, "no memory for %d threads", n);
        return NULL;
    }
    memset(pool, 0, sizeof *pool);
    memset(workers, 0, (size_t)n * sizeof *workers);
    pool->workers = workers;
    pool->alone_factor = 1;
    pool->spins = n > os_cpu_count() ? 16 : 4096;      /* with too few processors somebody must make room */
    pthread_mutex_init(&pool->turn, NULL);
    pool->size = start_workers(pool, n);
    if (pool->size < n) {
        error_set(GPT_ENOMEM, "%d threads cannot be started; try fewer", n);
        pool_free(pool);
        return NULL;
    }
    return pool;
}

void pool_free(struct pool *pool) {
    if (!pool) return;
    if (pool->forks == atomic_load(&fork_count)) {
        publish(pool, 0);
        for (int i = 1; i < pool->size; i++) pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool->workers);
    free(pool);
}

int pool_size(const struct pool *pool) { return pool->size; }

void pool_lock(struct pool *pool) {
    pthread_mutex_lock(&restart);
    if (pool->forks != atomic_load(&fork_count)) {     /* whoever held these in the parent does not exist here */
        pthread_mutex_init(&pool->turn, NULL);
        pool->size = start_workers(pool, pool->size);
    }
    pthread_mutex_unlock(&restart);
    pthread_mutex_lock(&pool->turn);
}

void pool_unlock(struct pool *pool) { pthread_mutex_unlock(&pool->turn); }

/* Runs fn on n > 1 workers and returns when all have. */
static void run_together(struct pool *pool, int n, pool_fn *fn, void *arg) {
    struct patience patience = {0};
    for (int i = 0; i < n; i++) {
        atomic_store_explicit(&pool->workers[i].arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->workers[i].left, 0, memory_order_relaxed);
    }
    pool->fn = fn;
    pool->arg = arg;
    publish(pool, n);
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_relaxed);
    fn(arg, 0, n);
    for (int i = 1; i < n; i++)
        while (atomic_load_explicit(&pool->workers[i].done, memory_order_acquire) != ticket)
            wait_a_little(&patience, pool->spins);
    count_stall(pool, &patience);
}

/* When other processes take the processors, a worker may lose its one in the middle of a run, for milliseconds, and all wait for
 * it at every barrier: two busy neighbours on two processors cost a small model 95 % of its speed. So a caller that spent most of a
 * run waiting goes on alone for twice as long as it waited; when that happens again soon, for four times as long, and so on to 32,
 * and back when it does not. */
static void go_alone(struct pool *pool, double start, double end) {
    int soon = start - pool->alone_until < 10 * pool->stalled;
    int factor = soon ? 2 * pool->alone_factor : pool->alone_factor / 2;
    pool->alone_factor = factor < 2 ? 2 : factor > 32 ? 32 : factor;
    pool->alone_until = end + pool->alone_factor * pool->stalled;
}

void pool_run(struct pool *pool, int n, pool_fn *fn, void *arg) {
    if (n > pool->size) n = pool->size;
    double start = n > 1 ? os_seconds() : 0;
    if (n == 1 || start < pool->alone_until) {
        atomic_store_explicit(&pool->workers[0].left, 0, memory_order_relaxed);
        fn(arg, 0, 1);
        return;
    }
    pool->stalled = 0;
    run_together(pool, n, fn, arg);
    double end = os_seconds();
    if (2 * pool->stalled > end - start) go_alone(pool, start, end);
}
