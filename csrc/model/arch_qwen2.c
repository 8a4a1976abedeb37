/* qwen2: Yang et al. 2024, "Qwen2 Technical Report": Llama with biases of q, k and v, and rope's pairs half a head apart. */
#include "model/arch_llama.h"

static int qwen2_load(struct gpt_model *m) { return llama_load(m, 1); }

const struct arch arch_qwen2 = {"qwen2", qwen2_load, llama_forward, llama_free};
