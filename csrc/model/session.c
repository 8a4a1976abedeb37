#include "model/session.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/ops.h"

/* A second worker pays off when each gets at least this much to read between two barriers. */
enum { WORKER_BYTES = 8 << 10, PHASES_PER_LAYER = 5 };

struct gpt_session *session_new(struct gpt_model *model, int n_sequence, int n_ctx) {
    if (n_ctx < 0 || n_ctx > model->h.n_ctx) {
        error_set(GPT_EINVAL, "a context of %d tokens; this model has 1 to %d", n_ctx, model->h.n_ctx);
        return NULL;
    }
    if (n_sequence < 1 || n_sequence > 1 << 16) {
        error_set(GPT_EINVAL, "%d sequences; expected 1 to %d", n_sequence, 1 << 16);
        return NULL;
    }
    struct gpt_session *s = calloc(1, sizeof *s);
    if (!s) {
        error_set(GPT_ENOMEM, "no memory for a session");
        return NULL;
    }
    s->model = model;
    if (kv_init(&s->kv, &model->h, n_sequence, n_ctx)) {
        free(s);
        return NULL;
    }
    return s;
}

void session_free(struct gpt_session *s) {
    if (!s) return;
    kv_free(&s->kv);
    free(s);
}

static int check_sequence(const struct gpt_session *s, int sequence) {
    if (sequence >= 0 && sequence < s->kv.n_sequence) return GPT_OK;
    return error_set(GPT_EINVAL, "sequence %d; this session has 0 to %d", sequence, s->kv.n_sequence - 1);
}

/* Takes a row in: its sequence is one longer afterwards. */
static int append_row(struct gpt_session *s, const struct gpt_row *row, int i) {
    int rc = check_sequence(s, row->sequence);
    if (rc) return rc;
    int *length = &s->kv.length[row->sequence];
    if (row->token < 0 || row->token >= s->model->h.n_vocab)
        return error_set(GPT_EINVAL, "token %d at row %d; this model has 0 to %d", row->token, i, s->model->h.n_vocab - 1);
    if (row->position != *length)
        return error_set(GPT_EINVAL, "position %d at row %d; sequence %d goes on at %d", row->position, i, row->sequence, *length);
    if (*length == s->kv.n_ctx)
        return error_set(GPT_EFULL, "the context is full: it holds %d tokens, and row %d would be one more; rewind, or feed less",
                         s->kv.n_ctx, i);
    kv_tokens(&s->kv, row->sequence)[(*length)++] = row->token;
    return GPT_OK;
}

/* All rows or none. */
static int append_rows(struct gpt_session *s, const struct gpt_row *rows, int n_rows) {
    for (int i = 0; i < n_rows; i++) {
        int rc = append_row(s, &rows[i], i);
        if (rc == GPT_OK) continue;
        while (--i >= 0) s->kv.length[rows[i].sequence]--;
        return rc;
    }
    return GPT_OK;
}

static int step_workers(const struct gpt_model *m, int n_rows) {
    int64_t between_barriers = m->step_bytes / (PHASES_PER_LAYER * i64_max(1, m->h.n_layer)) * n_rows;
    return (int)i64_max(1, i64_min(pool_size(m->pool), between_barriers / WORKER_BYTES));
}

static void step_main(void *arg, int index, int n) {
    struct step *step = arg;
    step->model->arch->forward(&(struct worker){step, index, n, 0});
}

int session_eval(struct gpt_session *s, const struct gpt_row *rows, int n_rows, float *logits) {
    if (n_rows < 1) return error_set(GPT_EINVAL, "%d rows; expected at least 1", n_rows);
    for (int i = 0; i < n_rows; i++)
        if (rows[i].logits && !logits) return error_set(GPT_EINVAL, "row %d wants logits, but there is no place for them", i);
    int rc = append_rows(s, rows, n_rows);
    if (rc) return rc;
    for (int done = 0; done < n_rows; done += MODEL_BATCH) {
        struct step step = {.model = s->model, .kv = &s->kv, .rows = rows + done, .logits = logits};
        step.n_rows = (int)i64_min(MODEL_BATCH, n_rows - done);
        for (int t = 0; t < step.n_rows; t++)
            if (step.rows[t].logits) step.wanted[step.n_wanted++] = t;
        pool_lock(s->model->pool);                       /* other sessions get their turns between our steps */
        pool_run(s->model->pool, step_workers(s->model, step.n_rows), step_main, &step);
        pool_unlock(s->model->pool);
        if (logits) logits += (size_t)step.n_wanted * (size_t)s->model->h.n_vocab;
    }
    return GPT_OK;
}

int session_length(const struct gpt_session *s, int sequence) {
    int rc = check_sequence(s, sequence);
    return rc ? rc : s->kv.length[sequence];
}

int session_tokens(const struct gpt_session *s, int sequence, int32_t *ids) {
    int n = session_length(s, sequence);
    if (n > 0) memcpy(ids, kv_tokens(&s->kv, sequence), (size_t)n * sizeof *ids);
    return n;
}

int session_rewind(struct gpt_session *s, int sequence, int length) {
    int rc = check_sequence(s, sequence);
    if (rc) return rc;
    if (length < 0 || length > s->kv.length[sequence])
        return error_set(GPT_EINVAL, "cannot rewind to %d tokens; sequence %d holds %d", length, sequence, s->kv.length[sequence]);
    s->kv.length[sequence] = length;
    return GPT_OK;
}

int session_copy(const struct gpt_session *from, int from_sequence, struct gpt_session *to, int to_sequence) {
    int rc = check_sequence(from, from_sequence);
    if (!rc) rc = check_sequence(to, to_sequence);
    if (rc) return rc;
    if (from->model != to->model) return error_set(GPT_EINVAL, "the two sessions are of different models");
    if (from->kv.length[from_sequence] > to->kv.n_ctx)
        return error_set(GPT_EFULL, "%d tokens do not fit into a context of %d", from->kv.length[from_sequence], to->kv.n_ctx);
    if (from != to || from_sequence != to_sequence) kv_copy(&from->kv, from_sequence, &to->kv, to_sequence);
    return GPT_OK;
}
