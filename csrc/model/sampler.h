/* sampler.h: one token id out of one vector of logits. Knows nothing of models; the order of its steps is in pygpt.h. */
#ifndef PYGPT_SAMPLER_H
#define PYGPT_SAMPLER_H

#include <stdint.h>

#include "pygpt.h"

struct sampler {
    struct gpt_sampling options;         /* its lists are copies of our own */
    int n_vocab;
    struct candidate *candidates;        /* [n_vocab] */
    float *heap;                         /* [top_k] */
};

int sampler_init(struct sampler *s, const struct gpt_sampling *options, int n_vocab);
void sampler_free(struct sampler *s);
/* The id chosen as draw number `draw`, given the ids so far; negative GPT_E... if no logit is a number. Overwrites the logits. */
int sampler_pick(struct sampler *s, float *logits, const int32_t *history, int64_t n_history, uint64_t draw);
int sampler_stops(const struct sampler *s, int id);

/* Uniform in [0, 1), 53 bits: draw number `draw` of stream `stream` of a seed. Philox4x32-10, Salmon et al. 2011,
 * "Parallel random numbers: as easy as 1, 2, 3", section 4.1: counter (draw, stream), key seed. */
double random_uniform(uint64_t seed, uint64_t stream, uint64_t draw);

#endif
