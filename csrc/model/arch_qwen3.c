/* qwen3: Yang et al. 2025, "Qwen3 Technical Report": Qwen2 without biases; each head of q and k is normalised by its root mean square. */
#include "model/arch_llama.h"

static int qwen3_load(struct gpt_model *m) { return llama_load(m, 1); }

const struct arch arch_qwen3 = {"qwen3", qwen3_load, llama_forward, llama_free};
