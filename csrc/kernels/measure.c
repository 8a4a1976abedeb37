#include "kernels/measure.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/os.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "pygpt.h"

enum { READ_BYTES = 256 << 20, PIECE = 64 << 10, MAC_ROUND = 1 << 16 };

struct measure {
    const struct kernels *k;
    const uint8_t *memory;
    double seconds, amount[POOL_MAX];
    volatile uint64_t sink[POOL_MAX];    /* so that the reads are not optimized away */
};

/* Sums of 64-bit words in eight lanes: as many loads as the compiler's vectors allow. */
static uint64_t read_piece(const uint64_t *p) {
    uint64_t lane[8] = {0}, sum = 0;
    for (int i = 0; i < PIECE / 8; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += p[i + j];
    for (int j = 0; j < 8; j++) sum += lane[j];
    return sum;
}

static void read_main(void *arg, int index, int n) {
    struct measure *m = arg;
    struct range mine = range_part(READ_BYTES, PIECE, index, n);
    double start = os_seconds(), now = start, bytes = 0;
    uint64_t sum = 0;
    for (int64_t at = mine.begin; now - start < m->seconds; at = at + PIECE < mine.end ? at + PIECE : mine.begin) {
        sum += read_piece((const uint64_t *)(m->memory + at));
        bytes += PIECE;
        now = os_seconds();
    }
    m->sink[index] = sum;
    m->amount[index] = bytes / (now - start);
}

static void mac_main(void *arg, int index, int n) {
    struct measure *m = arg;
    double start = os_seconds(), now = start, macs = 0;
    (void)n;
    for (; now - start < m->seconds; now = os_seconds()) macs += (double)m->k->mac_peak(MAC_ROUND);
    m->amount[index] = macs / (now - start);
}

static double measure(int n_threads, pool_fn *fn, struct measure *m) {
    if (!(m->seconds > 0)) return error_set(GPT_EINVAL, "%g seconds; expected more than 0", m->seconds);
    struct pool *pool = pool_new(n_threads);
    double total = 0;
    if (!pool) return error_code();
    pool_lock(pool);
    pool_run(pool, n_threads, fn, m);
    pool_unlock(pool);
    pool_free(pool);
    for (int i = 0; i < n_threads; i++) total += m->amount[i];
    return total;
}

double measure_read(int n_threads, double seconds) {
    struct measure m = {.seconds = seconds};
    uint8_t *memory = os_pages(READ_BYTES);
    if (!memory) return error_set(GPT_ENOMEM, "no memory to measure its speed");
    memset(memory, 1, READ_BYTES);                    /* untouched pages would all be one page of zeros */
    m.memory = memory;
    double rate = measure(n_threads, read_main, &m);
    os_pages_free(memory, READ_BYTES);
    return rate;
}

double measure_mac(int n_threads, double seconds) {
    struct kernels k;
    int isa = kernels_choose();
    if (isa < 0) return isa;
    kernels_init(&k, isa);
    return measure(n_threads, mac_main, &(struct measure){.k = &k, .seconds = seconds});
}
