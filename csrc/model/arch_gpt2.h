/* arch_gpt2.h: what the architectures of GPT-2's kind share: arch_gpt2.c evaluates them. */
#ifndef PYGPT_ARCH_GPT2_H
#define PYGPT_ARCH_GPT2_H

#include "model/model.h"

/* general: the file may say what gpt2 cannot */
int gpt2_load(struct gpt_model *m, int general);
void gpt2_forward(struct worker *w);

#endif
