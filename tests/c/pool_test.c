/* pool_test: threads, for ThreadSanitizer. The pool alone, then sessions of one model from several threads at once:
 *
 *     pool_test MODEL.gguf
 *     pool_test --bench N                what a run and a barrier of N threads cost
 *
 * Every result is compared with the one of a single thread, bit by bit. Exits with 1 at the first difference.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/os.h"
#include "base/pool.h"
#include "pygpt.h"

enum { N_THREADS = 4, N_TOKENS = 20, N_ROUNDS = 6 };

static void expect(int true_, const char *what) {
    if (true_) return;
    const char *sentence = gpt_last_error();
    fprintf(stderr, "pool_test: expected %s; last error: %s\n", what, sentence && *sentence ? sentence : "none");
    exit(1);
}

/* Runs fn(arg) on N_THREADS threads at once. */
static void in_threads(void *(*fn)(void *), void *arg) {
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) expect(pthread_create(&threads[i], NULL, fn, arg) == 0, "a thread");
    for (int i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
}

/* ---- the pool ----------------------------------------------------------------------------------------------------- */

struct job {
    struct pool *pool;
    int n;                               /* workers that took part: those asked for, or fewer */
    int seen[POOL_MAX];                  /* each written by its worker alone, read by all others after the barrier */
    int rounds[POOL_MAX];
};

static void job_main(void *arg, int worker, int n) {
    struct job *job = arg;
    if (worker == 0) job->n = n;
    for (int round = 1; round <= 20; round++) {
        job->seen[worker] = round;
        pool_barrier(job->pool, worker, n);
        for (int i = 0; i < n; i++) expect(job->seen[i] == round, "all workers in the same round");
        pool_barrier(job->pool, worker, n);
        job->rounds[worker]++;
    }
}

static void job_run(struct pool *pool, int n) {
    struct job job = {.pool = pool};
    pool_run(pool, n, job_main, &job);
    expect(job.n >= 1 && job.n <= n, "as many workers as asked for, or fewer");
    for (int i = 0; i < POOL_MAX; i++)
        expect(job.rounds[i] == (i < job.n ? 20 : 0), "each worker to run once and to be back when pool_run returns");
}

static void *job_caller(void *arg) {
    struct pool *pool = arg;
    for (int round = 0; round < 30; round++) {
        pool_lock(pool);
        job_run(pool, 1 + round % pool_size(pool));
        job_run(pool, pool_size(pool));
        pool_unlock(pool);
    }
    return NULL;
}

static void pool_alone(void) {
    for (int size = 1; size <= 5; size++) {
        struct pool *pool = pool_new(size);
        expect(pool && pool_size(pool) == size, "a pool");
        job_caller(pool);
        in_threads(job_caller, pool);
        pool_free(pool);
    }
    expect(!pool_new(0) && *gpt_last_error(), "a sentence about 0 threads");
    expect(!pool_new(POOL_MAX + 1) && *gpt_last_error(), "a sentence about too many threads");
}

/* All units of several rounds, taken one after the other with no barrier between them. */
enum { TAKE_ROUNDS = 200, TAKE_UNITS = 100 };
struct taking {
    struct pool *pool;
    int alone;                           /* all but worker 0 come too late for everything */
    int taken[TAKE_ROUNDS][TAKE_UNITS];
};

static void take_main(void *arg, int worker, int n) {
    struct taking *t = arg;
    if (t->alone && worker > 0) return;
    for (int round = 1; round <= TAKE_ROUNDS; round++) {
        struct range part;
        int total = round % (TAKE_UNITS + 1), least = 1 + round % 7;
        while (pool_take(t->pool, worker, n, round, total, least, &part)) {
            expect(part.begin >= 0 && part.begin < part.end && part.end <= total, "a part of what there is");
            for (int64_t i = part.begin; i < part.end; i++) t->taken[round - 1][i]++;
        }
    }
}

static void taking(void) {
    for (int size = 1; size <= 5; size++) {
        struct pool *pool = pool_new(size);
        expect(pool != NULL, "a pool");
        for (int run = 0; run < 20; run++) {
            struct taking *t = calloc(1, sizeof *t);
            expect(t != NULL, "memory");
            t->pool = pool;
            t->alone = run % 2;
            pool_lock(pool);
            pool_run(pool, size, take_main, t);
            pool_unlock(pool);
            for (int round = 1; round <= TAKE_ROUNDS; round++)
                for (int i = 0; i < TAKE_UNITS; i++)
                    expect(t->taken[round - 1][i] == (i < round % (TAKE_UNITS + 1)), "each unit to be taken once");
            free(t);
        }
        pool_free(pool);
    }
}

/* ---- sessions ----------------------------------------------------------------------------------------------------- */

struct text {
    gpt_model *model;
    const struct gpt_model_info *info;
    float *logits;                       /* (N_TOKENS, n_vocab) of one thread: what everybody must find */
    int32_t ids[N_TOKENS];               /* of one generator */
};

static void fill_rows(struct gpt_row *rows, int n_vocab) {
    for (int i = 0; i < N_TOKENS; i++) rows[i] = (struct gpt_row){i * 7 % n_vocab, 0, i, 1};
}

/* The same tokens in pieces of `step` rows. */
static void eval_in_steps(const struct text *text, int step, float *logits) {
    struct gpt_row rows[N_TOKENS];
    fill_rows(rows, text->info->n_vocab);
    gpt_session *session = gpt_session_new(text->model, 1, 0);
    expect(session != NULL, "a session");
    for (int i = 0; i < N_TOKENS; i += step)
        expect(gpt_session_eval(session, rows + i, (int)i64_min(step, N_TOKENS - i), logits + i * text->info->n_vocab) >= 0, "logits");
    gpt_session_free(session);
}

static void generate(const struct text *text, int32_t *ids) {
    gpt_session *session = gpt_session_new(text->model, 1, 0);
    expect(session != NULL, "a session");
    struct gpt_sampling sampling = {.repeat_penalty = 1, .temperature = 1, .top_p = 1, .seed = 7};
    gpt_generator *generator = gpt_generator_new(session, 0, &sampling);
    const int32_t prompt = 1;
    expect(generator && gpt_generator_feed(generator, &prompt, 1) >= 0, "a generator");
    for (int n = 0; n < N_TOKENS;) {
        int got = gpt_generator_next(generator, ids + n, N_TOKENS - n, 10);
        expect(got > 0, "tokens");
        n += got;
    }
    gpt_generator_free(generator);
    gpt_session_free(session);
}

static void *text_main(void *arg) {
    const struct text *text = arg;
    size_t bytes = (size_t)(N_TOKENS * text->info->n_vocab) * sizeof(float);
    float *logits = malloc(bytes);
    int32_t ids[N_TOKENS];
    expect(logits != NULL, "memory");
    for (int round = 0; round < N_ROUNDS; round++) {
        eval_in_steps(text, 1 + round % 5, logits);
        expect(memcmp(logits, text->logits, bytes) == 0, "the logits of one thread");
        generate(text, ids);
        expect(memcmp(ids, text->ids, sizeof ids) == 0, "the tokens of one thread");
    }
    free(logits);
    return NULL;
}

static void *open_and_close(void *arg) {
    for (int round = 0; round < N_ROUNDS; round++) {
        gpt_model *model = gpt_model_open(arg, 1 + round % 3);
        expect(model != NULL, "a model");
        gpt_model_close(model);
        expect(!gpt_model_open("no such file", 1) && strstr(gpt_last_error(), "no such file"), "this thread's own sentence");
    }
    return NULL;
}

static void sessions(const char *path) {
    struct gpt_model_info info;
    struct text text = {.info = &info};
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        text.model = gpt_model_open(path, n_threads);
        expect(text.model != NULL, "a model");
        gpt_model_get_info(text.model, &info);
        if (n_threads == 1) {
            text.logits = malloc((size_t)(N_TOKENS * info.n_vocab) * sizeof(float));
            expect(text.logits != NULL, "memory");
            eval_in_steps(&text, N_TOKENS, text.logits);
            generate(&text, text.ids);
        }
        text_main(&text);
        in_threads(text_main, &text);
        gpt_model_close(text.model);
    }
    free(text.logits);
}

/* ---- cost --------------------------------------------------------------------------------------------------------- */

enum { BENCH_BATCHES = 101, BENCH_STEPS = 1000 };

/* Counts the runs that had fewer workers than asked for, as they do on a busy machine: a batch with such a run does not count. */
struct bench { struct pool *pool; int n; long alone; };

static void almost_nothing(void *arg, int worker, int n) {
    struct bench *b = arg;
    if (worker == 0) b->alone += n != b->n;
}

static void barriers(void *arg, int worker, int n) {
    struct bench *b = arg;
    almost_nothing(arg, worker, n);
    for (int i = 0; i < BENCH_STEPS; i++) pool_barrier(b->pool, worker, n);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values) {
    qsort(values, BENCH_BATCHES, sizeof *values, by_size);
    return values[BENCH_BATCHES / 2];
}

static void bench(int n) {
    double run[BENCH_BATCHES], barrier[BENCH_BATCHES];
    struct pool *pool = pool_new(n);
    struct bench b = {pool, n, 0};
    expect(pool != NULL, "a pool");
    for (int batch = 0, tries = 0; batch < BENCH_BATCHES; batch += b.alone == 0) {
        expect(++tries < 1000 * BENCH_BATCHES, "a machine that is not busy");
        b.alone = 0;
        double start = os_seconds();
        for (int i = 0; i < BENCH_STEPS; i++) pool_run(pool, n, almost_nothing, &b);
        double middle = os_seconds();
        pool_run(pool, n, barriers, &b);
        run[batch] = (middle - start) / BENCH_STEPS * 1e9;
        barrier[batch] = (os_seconds() - middle) / BENCH_STEPS * 1e9;
    }
    printf("%d threads: %.0f ns per run, %.0f ns per barrier\n", n, median(run), median(barrier));
    pool_free(pool);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--bench") == 0) {
        int n = atoi(argv[2]);
        expect(n >= 1 && n <= POOL_MAX, "a number of threads");
        bench(n);
        return 0;
    }
    if (argc != 2) {
        fprintf(stderr, "usage: pool_test MODEL.gguf | --bench N\n");
        return 2;
    }
    pool_alone();
    taking();
    printf("ok   pool\n");
    sessions(argv[1]);
    printf("ok   sessions of one model in %d threads\n", N_THREADS);
    in_threads(open_and_close, argv[1]);
    printf("ok   models opened in %d threads\n", N_THREADS);
    return 0;
}
