/* pool.h: the only place that knows threads.
 *
 *     pool_run(pool, n, fn, arg)      fn(arg, 0, n) here, fn(arg, 1, n) .. fn(arg, n - 1, n) on workers, back when all have returned
 *     pool_barrier(pool, i, n)        inside fn: nobody goes on before all n have come
 *     pool_take(pool, i, n, ..)       inside fn: the next part of something to do that nobody else does
 *
 * Workers wait for the next run by spinning for 50 microseconds, so that the steps of a generation follow each other without a
 * system call, and then sleep. Callers from several threads take turns, one run at a time. What fn computes must not depend on n:
 * pool_run uses fewer workers than asked when other processes keep the processors busy, or when a fork has left it without threads.
 */
#ifndef PYGPT_POOL_H
#define PYGPT_POOL_H

#include "base/base.h"

enum { POOL_MAX = 256 };
struct pool;
typedef void pool_fn(void *arg, int worker, int n);

struct pool *pool_new(int n);              /* n workers, the caller among them; NULL with a sentence */
void pool_free(struct pool *pool);
int pool_size(const struct pool *pool);

void pool_lock(struct pool *pool);         /* for one caller's several runs, or what they share, in a row */
void pool_unlock(struct pool *pool);
void pool_run(struct pool *pool, int n, pool_fn *fn, void *arg);    /* under the lock; n at most pool_size */
void pool_barrier(struct pool *pool, int worker, int n);
/* Inside fn: takes a part of 0 .. total, `least` of it or more if there are as many; 0 when all is taken. round: 1, 2, .. for what
 * is done first, second, .. in a run; each worker comes to the same rounds with the same totals, and takes until it gets 0. */
int pool_take(struct pool *pool, int worker, int n, int round, int64_t total, int64_t least, struct range *part);

#endif
