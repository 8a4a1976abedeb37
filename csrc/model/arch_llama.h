/* arch_llama.h: what the architectures of Llama's kind share: arch_llama.c evaluates them all. */
#ifndef PYGPT_ARCH_LLAMA_H
#define PYGPT_ARCH_LLAMA_H

#include "model/model.h"

/* rope_halves: which values rope pairs, see rope.h */
int llama_load(struct gpt_model *m, int rope_halves);
void llama_free(struct gpt_model *m);
void llama_forward(struct worker *w);

#endif
