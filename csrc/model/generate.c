#include "model/generate.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/os.h"
#include "model/sampler.h"

struct gpt_generator {
    struct gpt_session *session;
    struct sampler sampler;
    int sequence, state;
    int32_t end_id;              /* the stop id that was drawn last; -1: none */
    int32_t *history;            /* [n_history] all ids, prompt included */
    int64_t n_history, capacity;
    int64_t n_fed;               /* ids that were given, beside those that the sequence held */
    int64_t n_evaluated;         /* of history; the last id chosen is evaluated when the next one is asked for */
    uint64_t draws;
    float *logits;               /* [n_vocab] after the last evaluated id */
    struct gpt_row *rows;        /* [n_ctx] */
};

struct gpt_generator *generator_new(struct gpt_session *session, int sequence, const struct gpt_sampling *sampling) {
    int n_vocab = session->model->h.n_vocab, n_ctx = session->kv.n_ctx, length = session_length(session, sequence);
    if (length < 0) return NULL;
    if (sampling->on_full < GPT_FULL_EXACT || sampling->on_full > GPT_FULL_STOP) {
        error_set(GPT_EINVAL, "on_full is %d; expected GPT_FULL_EXACT, GPT_FULL_JUMP or GPT_FULL_STOP", sampling->on_full);
        return NULL;
    }
    struct gpt_generator *g = calloc(1, sizeof *g);
    if (!g || sampler_init(&g->sampler, sampling, n_vocab)) {
        if (!g) error_set(GPT_ENOMEM, "no memory for a generator");
        free(g);
        return NULL;
    }
    g->session = session;
    g->sequence = sequence;
    g->end_id = -1;
    g->capacity = 2 * (int64_t)n_ctx;
    g->history = malloc((size_t)g->capacity * sizeof *g->history);
    g->logits = malloc((size_t)n_vocab * sizeof *g->logits);
    g->rows = malloc((size_t)n_ctx * sizeof *g->rows);
    if (g->history && g->logits && g->rows) {
        g->n_history = g->n_evaluated = session_tokens(session, sequence, g->history);
        return g;
    }
    error_set(GPT_ENOMEM, "no memory to generate with a context of %d tokens", n_ctx);
    generator_free(g);
    return NULL;
}

void generator_free(struct gpt_generator *g) {
    if (!g) return;
    sampler_free(&g->sampler);
    free(g->history);
    free(g->logits);
    free(g->rows);
    free(g);
}

int generator_state(const struct gpt_generator *g) { return g->state; }
int32_t generator_end_id(const struct gpt_generator *g) { return g->end_id; }

/* Evaluates history[from..n_history) where the sequence ends, for the logits of the last. */
static int evaluate(struct gpt_generator *g, int64_t from) {
    int n = (int)(g->n_history - from), position = session_length(g->session, g->sequence);
    for (int i = 0; i < n; i++) g->rows[i] = (struct gpt_row){g->history[from + i], g->sequence, position + i, i == n - 1};
    int rc = session_eval(g->session, g->rows, n, g->logits);
    if (rc == GPT_OK) g->n_evaluated = g->n_history;
    return rc;
}

/* Brings the logits up to the end of the history, making room as on_full says. */
static int catch_up(struct gpt_generator *g) {
    int n_ctx = g->session->kv.n_ctx, on_full = g->sampler.options.on_full;
    int64_t missing = g->n_history - g->n_evaluated;
    if (missing == 0) return GPT_OK;
    if (session_length(g->session, g->sequence) + missing <= n_ctx) return evaluate(g, g->n_evaluated);
    if (on_full == GPT_FULL_STOP) {
        g->state = GPT_ENDED_BY_CONTEXT;
        return GPT_OK;
    }
    int64_t keep = i64_min(g->n_history, on_full == GPT_FULL_EXACT ? n_ctx : i64_max(1, n_ctx / 2));
    session_rewind(g->session, g->sequence, 0);
    return evaluate(g, g->n_history - keep);
}

static int append(struct gpt_generator *g, int32_t id) {
    if (g->n_history == g->capacity) {
        int32_t *more = realloc(g->history, (size_t)g->capacity * 2 * sizeof *more);
        if (!more) return error_set(GPT_ENOMEM, "no memory for a text of %lld tokens", (long long)g->n_history);
        g->history = more;
        g->capacity *= 2;
    }
    g->history[g->n_history++] = id;
    return GPT_OK;
}

int generator_feed(struct gpt_generator *g, const int32_t *ids, int n) {
    int64_t before = g->n_history, length = session_length(g->session, g->sequence) + before - g->n_evaluated;
    int rc = GPT_OK;
    if (n < 1) return error_set(GPT_EINVAL, "a prompt of %d tokens; expected at least 1", n);
    if (length + n > g->session->kv.n_ctx)
        return error_set(GPT_EFULL, "%d more tokens after %lld do not fit into a context of %d; shorten the prompt", n,
                         (long long)length, g->session->kv.n_ctx);
    for (int i = 0; i < n && !rc; i++) {
        if (ids[i] < 0 || ids[i] >= g->session->model->h.n_vocab)
            rc = error_set(GPT_EINVAL, "token %d at place %d of the prompt; this model has 0 to %d", ids[i], i, g->session->model->h.n_vocab - 1);
        else rc = append(g, ids[i]);
    }
    if (!rc) rc = catch_up(g);
    if (rc) g->n_history = before;
    else g->state = GPT_RUNNING, g->n_fed += n;
    return rc;
}

int generator_next(struct gpt_generator *g, int32_t *ids, int capacity, double seconds) {
    double end = os_seconds() + seconds;
    int n = 0;
    if (g->n_fed == 0) return error_set(GPT_EINVAL, "nothing to continue; feed a prompt first");
    while (n < capacity && g->state == GPT_RUNNING) {
        int rc = catch_up(g);
        if (rc) return n ? n : rc;                       /* what there is first: the next call fails again */
        if (g->state != GPT_RUNNING) break;
        int id = sampler_pick(&g->sampler, g->logits, g->history, g->n_history, g->draws++);
        if (id < 0) return n ? n : id;
        if (sampler_stops(&g->sampler, id)) g->state = GPT_ENDED_BY_ID, g->end_id = id;
        else if ((rc = append(g, id))) return n ? n : rc;
        else ids[n++] = id;
        if (os_seconds() >= end) break;
    }
    return n;
}
