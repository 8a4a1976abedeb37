/* generate.h: the loop: sample a token, evaluate it, again; and what happens when the context is full. */
#ifndef PYGPT_GENERATE_H
#define PYGPT_GENERATE_H

#include "model/session.h"

struct gpt_generator *generator_new(struct gpt_session *session, int sequence, const struct gpt_sampling *sampling);
void generator_free(struct gpt_generator *g);
int generator_feed(struct gpt_generator *g, const int32_t *ids, int n);
int generator_next(struct gpt_generator *g, int32_t *ids, int capacity, double seconds);
int generator_state(const struct gpt_generator *g);
int32_t generator_end_id(const struct gpt_generator *g);

#endif
