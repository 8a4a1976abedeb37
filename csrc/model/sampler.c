#include "model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/error.h"

struct candidate { float p; int32_t id; };

/* ---- random numbers ---- */

double random_uniform(uint64_t seed, uint64_t stream, uint64_t draw) {
    uint32_t c[4] = {(uint32_t)draw, (uint32_t)(draw >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53 * c[0], b = (uint64_t)0xCD9E8D57 * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ key[0], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ key[1], (uint32_t)a};
        memcpy(c, next, sizeof c);
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    return (double)(((uint64_t)c[1] << 32 | c[0]) >> 11) * 0x1p-53;
}

/* ---- options ---- */

static int check_options(const struct gpt_sampling *o) {
    if (!(o->temperature >= 0) || !isfinite(o->temperature))
        return error_set(GPT_EINVAL, "temperature is %g; expected 0 (always the likeliest token) or more", (double)o->temperature);
    if (o->top_k < 0) return error_set(GPT_EINVAL, "top_k is %d; expected 0 (off) or more", o->top_k);
    if (!(o->top_p > 0 && o->top_p <= 1)) return error_set(GPT_EINVAL, "top_p is %g; expected more than 0 and at most 1 (off)", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1)) return error_set(GPT_EINVAL, "min_p is %g; expected 0 (off) to 1", (double)o->min_p);
    if (!(o->repeat_penalty >= 1e-3f && o->repeat_penalty <= 1e3f))
        return error_set(GPT_EINVAL, "repeat_penalty is %g; expected 0.001 to 1000; 1 is off", (double)o->repeat_penalty);
    if (o->repeat_window < 0) return error_set(GPT_EINVAL, "repeat_window is %d; expected 0 or more", o->repeat_window);
    return GPT_OK;
}

static int copy_ids(const int32_t **list, int32_t n, int n_vocab, const char *what) {
    const int32_t *ids = *list;
    *list = NULL;
    if (n < 0 || (n > 0 && !ids)) return error_set(GPT_EINVAL, "%d %s ids; expected 0 or more and a list of them", n, what);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return error_set(GPT_EINVAL, "%s id %d; this model has 0 to %d", what, ids[i], n_vocab - 1);
    int32_t *copy = malloc((size_t)i64_max(n, 1) * sizeof *copy);
    if (!copy) return error_set(GPT_ENOMEM, "no memory for %d %s ids", n, what);
    if (n > 0) memcpy(copy, ids, (size_t)n * sizeof *copy);
    *list = copy;
    return GPT_OK;
}

int sampler_init(struct sampler *s, const struct gpt_sampling *options, int n_vocab) {
    *s = (struct sampler){.options = *options, .n_vocab = n_vocab};
    struct gpt_sampling *o = &s->options;
    const int32_t *stop = o->stop;
    int rc = check_options(o);
    o->stop = NULL;                      /* so that sampler_free never frees the caller's lists */
    if (rc) o->banned = NULL;
    if (!rc) rc = copy_ids(&o->banned, o->n_banned, n_vocab, "banned");
    if (!rc) rc = copy_ids(&stop, o->n_stop, n_vocab, "stop");
    if (!rc) o->stop = stop;
    if (o->top_k > n_vocab) o->top_k = 0;
    if (!rc) {
        s->candidates = malloc((size_t)n_vocab * sizeof *s->candidates);
        s->heap = malloc((size_t)i64_max(o->top_k, 1) * sizeof *s->heap);
        if (!s->candidates || !s->heap) rc = error_set(GPT_ENOMEM, "no memory to sample from %d tokens", n_vocab);
    }
    if (rc) sampler_free(s);
    return rc;
}

void sampler_free(struct sampler *s) {
    free((void *)s->options.banned);
    free((void *)s->options.stop);
    free(s->candidates);
    free(s->heap);
    *s = (struct sampler){0};
}

int sampler_stops(const struct sampler *s, int id) {
    for (int i = 0; i < s->options.n_stop; i++)
        if (s->options.stop[i] == id) return 1;
    return 0;
}

/* ---- the steps ---- */

/* Keskar et al. 2019, "CTRL", section 4.1: each token that occurred counts once, however often it did. */
static void penalize(const struct gpt_sampling *o, struct candidate *seen, float *logits, const int32_t *history, int64_t n) {
    const int32_t *recent = history + i64_max(0, n - o->repeat_window), *end = history + n;
    for (const int32_t *id = recent; id < end; id++) seen[*id].id = 0;
    for (const int32_t *id = recent; id < end; id++)
        if (!seen[*id].id++) logits[*id] *= logits[*id] > 0 ? 1 / o->repeat_penalty : o->repeat_penalty;
}

static int argmax(const float *logits, int n) {
    int best = -1;
    for (int i = 0; i < n; i++)
        if (logits[i] > -INFINITY && (best < 0 || logits[i] > logits[best])) best = i;
    return best;
}

/* heap[0] is the smallest; puts x in its place and lets it sink. */
static void heap_replace(float *heap, int n, float x) {
    int i = 0;
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

/* The k-th largest logit. */
static float kth_largest(const float *logits, int n, float *heap, int k) {
    for (int i = 0; i < k; i++) heap[i] = -INFINITY;
    for (int i = 0; i < n; i++)
        if (logits[i] > heap[0]) heap_replace(heap, k, logits[i]);
    return heap[0];
}

/* By falling probability, equal ones by id. */
static int by_probability(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int keep_top_p(struct candidate *c, int n, double total, float top_p) {
    double sum = 0, least = 0.999 * (1 - (double)top_p) * total / n;     /* n tokens below it cannot make up what is left out */
    int kept = 0;
    for (int i = 0; i < n; i++)
        if ((double)c[i].p >= least) c[kept++] = c[i];
    qsort(c, (size_t)kept, sizeof *c, by_probability);
    for (int i = 0; i < kept; i++)
        if ((sum += (double)c[i].p) >= (double)top_p * total) return i + 1;
    return kept;
}

static int keep_min_p(struct candidate *c, int n, float min_p) {
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (c[i].p >= min_p) c[kept++] = c[i];            /* the likeliest has p = 1 */
    return kept;
}

static double total_of(const struct candidate *c, int n) {
    double total = 0;
    for (int i = 0; i < n; i++) total += (double)c[i].p;
    return total;
}

int sampler_pick(struct sampler *s, float *logits, const int32_t *history, int64_t n_history, uint64_t draw) {
    const struct gpt_sampling *o = &s->options;
    struct candidate *c = s->candidates;
    if (o->repeat_penalty != 1) penalize(o, c, logits, history, n_history);
    int likeliest = argmax(logits, s->n_vocab);
    for (int i = 0; i < o->n_banned; i++) logits[o->banned[i]] = -INFINITY;
    int best = argmax(logits, s->n_vocab), n = 0;
    if (best < 0 && likeliest >= 0) return error_set(GPT_EINVAL, "every token that could be chosen is banned; ban fewer");
    if (best < 0 || !isfinite(logits[best]))
        return error_set(GPT_EFORMAT, "the model's logits are not numbers; its weights are damaged, fetch or convert it again");
    if (o->temperature == 0) return best;

    float max = logits[best], least = -INFINITY;
    if (o->top_k > 0) least = kth_largest(logits, s->n_vocab, s->heap, o->top_k);
    for (int i = 0; i < s->n_vocab; i++)
        if (logits[i] >= least && logits[i] > -INFINITY) c[n++] = (struct candidate){expf((logits[i] - max) / o->temperature), i};
    double total = total_of(c, n);
    if (o->top_p < 1) n = keep_top_p(c, n, total, o->top_p);
    if (o->min_p > 0) n = keep_min_p(c, n, o->min_p);
    double left = random_uniform(o->seed, o->stream, draw) * total_of(c, n);
    for (int i = 0; i < n; i++)
        if ((left -= (double)c[i].p) < 0) return c[i].id;
    return best;                                          /* rounding used up all of them */
}
