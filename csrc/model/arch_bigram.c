/* bigram: the first model of Karpathy's lecture "Let's build GPT": logits = token_embd[id]. It remembers nothing but the last token. */
#include <stdlib.h>

#include "base/error.h"
#include "file/gguf.h"
#include "model/ops.h"

static int bigram_load(struct gpt_model *m) {
    struct hparams *h = &m->h;
    const struct gpt_tensor *table = gguf_find_tensor(m->file, "token_embd.weight");
    if (!table || table->shape[0] > 1 << 20)
        return error_set(GPT_EFORMAT, "%s: has no usable tensor token_embd.weight; it is incomplete, convert it again", gguf_path(m->file));
    h->n_vocab = h->n_embd = (int)table->shape[0];
    h->n_head = h->n_head_kv = h->head_dim = 1;
    int rc = model_key_int(m, "context_length", 1, 1 << 24, &h->n_ctx);
    if (rc) return rc;
    m->layers = calloc(1, sizeof(struct weight));
    if (!m->layers) return error_set(GPT_ENOMEM, "%s: no memory for a table", gguf_path(m->file));
    m->step_bytes = (int64_t)quant_row_bytes(quant_find((uint32_t)table->type), h->n_vocab);
    m->work.n_mixed = m->work.n_wide = m->work.n_in_max = h->n_embd;
    const struct binding row = {"token_embd.weight", BIND_WEIGHT, 0, h->n_vocab, h->n_vocab, 0};
    return model_bind(m, &row, 1, 0, m->layers);
}

static void bigram_forward(struct worker *w) {
    const struct step *s = w->step;
    op_embed(w, s->model->layers, NULL, NULL, s->model->work.x);
    op_barrier(w);
    size_t n_vocab = (size_t)s->model->h.n_vocab;
    for (int i = w->index; i < s->n_wanted; i += w->n)
        memcpy(s->logits + (size_t)i * n_vocab, s->model->work.x + (size_t)s->wanted[i] * n_vocab, n_vocab * sizeof(float));
}

const struct arch arch_bigram = {"bigram", bigram_load, bigram_forward, NULL};
