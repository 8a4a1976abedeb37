/* session.h: the sequences of one caller: checks rows, cuts them into steps, runs the steps on the pool. */
#ifndef PYGPT_SESSION_H
#define PYGPT_SESSION_H

#include "model/kv.h"
#include "model/model.h"

struct gpt_session {
    struct gpt_model *model;
    struct kv kv;
};

struct gpt_session *session_new(struct gpt_model *model, int n_sequence, int n_ctx);
void session_free(struct gpt_session *s);
int session_eval(struct gpt_session *s, const struct gpt_row *rows, int n_rows, float *logits);
int session_length(const struct gpt_session *s, int sequence);
int session_tokens(const struct gpt_session *s, int sequence, int32_t *ids);
int session_rewind(struct gpt_session *s, int sequence, int length);
int session_copy(const struct gpt_session *from, int from_sequence, struct gpt_session *to, int to_sequence);

#endif
