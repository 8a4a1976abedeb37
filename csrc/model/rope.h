/* rope.h: rotary position embedding, Su et al. 2021, "RoFormer", section 3.4: pairs of a query's or key's values are turned by angles
 * that grow with the position, so that their product depends on the distance. */
#ifndef PYGPT_ROPE_H
#define PYGPT_ROPE_H

#include "model/model.h"

struct rope {
    int n_rot;               /* values of a head that are turned: the first; the rest stay */
    int halves;              /* value i is paired with i + n_rot / 2 (GPT-NeoX, Hugging Face); else 2 i with 2 i + 1 */
    float magnitude;         /* YaRN makes the turned values longer */
    double *speed;           /* [n_rot / 2] radians per position; freed by rope_free */
};

/* From the keys rope.* and the tensor rope_freqs.weight (factors[n_rot / 2], or NULL). */
int rope_init(struct rope *r, const struct gpt_model *m, const float *factors, int halves);
void rope_free(struct rope *r);
/* cosines, then sines, of one position: turns[n_rot] */
void rope_turns(const struct rope *r, int position, float *turns);
void rope_apply(const struct rope *r, const float *turns, float *x);

#endif
