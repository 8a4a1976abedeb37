/* gpt: GPT-2 with the freedoms of those who write their own, such as the GPT of Karpathy's lecture "Let's build GPT". */
#include "model/arch_gpt2.h"

static int load(struct gpt_model *m) { return gpt2_load(m, 1); }

const struct arch arch_gpt = {"gpt", load, gpt2_forward, NULL};
