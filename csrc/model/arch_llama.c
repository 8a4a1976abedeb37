/* llama: the decoder of Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", section 2.2, with what came later:
 * Llama 2's grouped queries, Llama 3's rope factors, Mistral's window, Qwen's biases and norms of heads.
 *
 *     x = token_embd[id]
 *     for each layer:   q, k, v = attn_q(y), attn_k(y), attn_v(y)  with y = norm(x)
 *                       x += attn_output(attention(rope(q), rope(k), v))
 *                       x += ffn_down(silu(ffn_gate(y)) * ffn_up(y))  with y = norm(x)
 *     logits = output(norm(x))                                  output is token_embd unless the file has its own
 *
 * Every norm divides by the root mean square. Biases, and norms of the heads of q and k, are applied where the file has them.
 */
#include "model/arch_llama.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/error.h"
#include "file/gguf.h"
#include "model/ops.h"

struct llama_layer {
    struct norm attn_norm, ffn_norm;
    struct weight q, k, v, out, gate, up, down;
    const float *q_bias, *k_bias, *v_bias, *out_bias, *gate_bias, *up_bias, *down_bias;
    const float *q_norm, *k_norm;
};

struct llama {
    struct weight token_embd, head;
    struct norm output_norm;
    const float *rope_freqs;
    struct rope rope;
    int window;
    struct llama_layer layers[];
};

/* ---- keys and tensors ---- */

static int refuse_experts(const struct gpt_model *m) {
    int experts = 0, rc = model_key_int_if(m, "expert_count", 0, 1 << 16, &experts);
    if (!rc && experts) rc = error_set(GPT_EUNSUPPORTED, "%s: is a mixture of %d experts, which is not supported", gguf_path(m->file), experts);
    return rc;
}

static int read_hparams(struct gpt_model *m) {
    struct hparams *h = &m->h;
    int rc = model_key_common(m, "attention.layer_norm_rms_epsilon");
    if (rc || (rc = refuse_experts(m))) return rc;
    h->rms = 1;
    h->n_head_kv = h->n_head;
    h->head_dim = h->n_embd / h->n_head;
    int value_dim;
    if ((rc = model_key_int_if(m, "attention.head_count_kv", 1, 1 << 16, &h->n_head_kv)) ||
        (rc = model_key_int_if(m, "attention.key_length", 1, 1 << 16, &h->head_dim)))
        return rc;
    value_dim = h->head_dim;
    if ((rc = model_key_int_if(m, "attention.value_length", 1, 1 << 16, &value_dim))) return rc;
    if (h->head_dim < 1 || h->n_head % h->n_head_kv)
        return error_set(GPT_EFORMAT, "%s: %d heads of queries, %d of keys, a width of %d; expected whole groups; the file is damaged",
                         gguf_path(m->file), h->n_head, h->n_head_kv, h->n_embd);
    if (value_dim != h->head_dim)
        return error_set(GPT_EUNSUPPORTED, "%s: its heads have keys of %d and values of %d; they must be equal here", gguf_path(m->file),
                         h->head_dim, value_dim);
    h->attn_scale = 1 / sqrtf((float)h->head_dim);
    return GPT_OK;
}

static int bind_model(struct gpt_model *m, struct llama *g) {
    const struct hparams *h = &m->h;
    int n_rot = h->head_dim, rc = model_key_int_if(m, "rope.dimension_count", 1, h->head_dim, &n_rot);
    const struct binding table[] = {
        {"token_embd.weight", BIND_WEIGHT, offsetof(struct llama, token_embd), h->n_embd, h->n_vocab, 0},
        {"output_norm.weight", BIND_VECTOR, offsetof(struct llama, output_norm.weight), h->n_embd, 1, 0},
        {"output.weight", BIND_WEIGHT, offsetof(struct llama, head), h->n_embd, h->n_vocab, 1},
        {"rope_freqs.weight", BIND_VECTOR, offsetof(struct llama, rope_freqs), n_rot / 2, 1, 1},
    };
    if (!rc) rc = model_bind(m, table, countof(table), 0, g);
    if (!rc && !g->head.data) g->head = g->token_embd;
    return rc;
}

static int bind_layer(struct gpt_model *m, struct llama_layer *l, int i) {
    const struct hparams *h = &m->h;
    const int64_t n_q = (int64_t)h->n_head * h->head_dim, n_kv = (int64_t)h->n_head_kv * h->head_dim;
    const struct binding table[] = {
        {"blk.%d.attn_norm.weight", BIND_VECTOR, offsetof(struct llama_layer, attn_norm.weight), h->n_embd, 1, 0},
        {"blk.%d.attn_q.weight", BIND_WEIGHT, offsetof(struct llama_layer, q), h->n_embd, n_q, 0},
        {"blk.%d.attn_k.weight", BIND_WEIGHT, offsetof(struct llama_layer, k), h->n_embd, n_kv, 0},
        {"blk.%d.attn_v.weight", BIND_WEIGHT, offsetof(struct llama_layer, v), h->n_embd, n_kv, 0},
        {"blk.%d.attn_output.weight", BIND_WEIGHT, offsetof(struct llama_layer, out), n_q, h->n_embd, 0},
        {"blk.%d.attn_q.bias", BIND_VECTOR, offsetof(struct llama_layer, q_bias), n_q, 1, 1},
        {"blk.%d.attn_k.bias", BIND_VECTOR, offsetof(struct llama_layer, k_bias), n_kv, 1, 1},
        {"blk.%d.attn_v.bias", BIND_VECTOR, offsetof(struct llama_layer, v_bias), n_kv, 1, 1},
        {"blk.%d.attn_output.bias", BIND_VECTOR, offsetof(struct llama_layer, out_bias), h->n_embd, 1, 1},
        {"blk.%d.attn_q_norm.weight", BIND_VECTOR, offsetof(struct llama_layer, q_norm), h->head_dim, 1, 1},
        {"blk.%d.attn_k_norm.weight", BIND_VECTOR, offsetof(struct llama_layer, k_norm), h->head_dim, 1, 1},
        {"blk.%d.ffn_norm.weight", BIND_VECTOR, offsetof(struct llama_layer, ffn_norm.weight), h->n_embd, 1, 0},
        {"blk.%d.ffn_gate.weight", BIND_WEIGHT, offsetof(struct llama_layer, gate), h->n_embd, h->n_ff, 0},
        {"blk.%d.ffn_up.weight", BIND_WEIGHT, offsetof(struct llama_layer, up), h->n_embd, h->n_ff, 0},
        {"blk.%d.ffn_down.weight", BIND_WEIGHT, offsetof(struct llama_layer, down), h->n_ff, h->n_embd, 0},
        {"blk.%d.ffn_gate.bias", BIND_VECTOR, offsetof(struct llama_layer, gate_bias), h->n_ff, 1, 1},
        {"blk.%d.ffn_up.bias", BIND_VECTOR, offsetof(struct llama_layer, up_bias), h->n_ff, 1, 1},
        {"blk.%d.ffn_down.bias", BIND_VECTOR, offsetof(struct llama_layer, down_bias), h->n_embd, 1, 1},
    };
    return model_bind(m, table, countof(table), i, l);
}

static int64_t layer_bytes(const struct llama_layer *l) {
    return op_weight_bytes(&l->q) + op_weight_bytes(&l->k) + op_weight_bytes(&l->v) + op_weight_bytes(&l->out) +
           op_weight_bytes(&l->gate) + op_weight_bytes(&l->up) + op_weight_bytes(&l->down);
}

int llama_load(struct gpt_model *m, int rope_halves) {
    const struct hparams *h = &m->h;
    int rc = read_hparams(m);
    if (rc) return rc;
    struct llama *g = m->layers = calloc(1, sizeof *g + (size_t)h->n_layer * sizeof g->layers[0]);
    if (!g) return error_set(GPT_ENOMEM, "%s: no memory for %d layers", gguf_path(m->file), h->n_layer);
    if ((rc = model_key_int_if(m, "attention.sliding_window", 0, 1 << 24, &g->window)) || (rc = bind_model(m, g)) || (rc = rope_init(&g->rope, m, g->rope_freqs, rope_halves))) return rc;
    m->step_bytes = op_weight_bytes(&g->head);
    for (int i = 0; i < h->n_layer && !rc; i++) {
        rc = bind_layer(m, &g->layers[i], i);
        m->step_bytes += layer_bytes(&g->layers[i]);
    }
    m->work.n_mixed = i64_max(h->n_embd, (int64_t)h->n_head * h->head_dim);
    m->work.n_wide = i64_max((int64_t)(h->n_head + 2 * h->n_head_kv) * h->head_dim, i64_max(2 * (int64_t)h->n_ff, h->n_embd));
    m->work.n_in_max = i64_max(m->work.n_mixed, h->n_ff);
    m->work.n_rot = g->rope.n_rot;
    return rc;
}

void llama_free(struct gpt_model *m) {
    struct llama *g = m->layers;
    if (g) rope_free(&g->rope);
}

/* ---- the forward pass ---- */

static void attend(struct worker *w, const struct llama *g, const struct llama_layer *l, int layer) {
    struct work *b = &w->step->model->work;
    const struct hparams *h = &w->step->model->h;
    const int n_q = h->n_head * h->head_dim, n_kv = h->n_head_kv * h->head_dim, n = w->step->n_rows;
    const struct heads heads = {b->wide, b->wide + n_q, b->wide + n_q + n_kv, (size_t)(n_q + 2 * n_kv), l->q_norm, l->k_norm, &g->rope, g->window};
    struct input in = op_input(w, b->x, &l->attn_norm, FOR(&l->q, &l->k, &l->v), NULL, n);
    op_linear(w, &l->q, l->q_bias, in, heads.q, heads.stride);
    op_linear(w, &l->k, l->k_bias, in, heads.k, heads.stride);
    op_linear(w, &l->v, l->v_bias, in, heads.v, heads.stride);
    op_barrier(w);
    op_remember(w, layer, &heads);
    op_barrier(w);
    op_attention(w, layer, &heads, b->mixed);
    op_barrier(w);
    in = op_input(w, b->mixed, NULL, FOR(&l->out), NULL, n);
    op_linear_add(w, &l->out, l->out_bias, in, b->wide, b->x);
    op_barrier(w);
}

static void feed_forward(struct worker *w, const struct llama_layer *l) {
    struct work *b = &w->step->model->work;
    const int n_ff = w->step->model->h.n_ff, n = w->step->n_rows;
    float *gate = b->wide, *up = b->wide + (size_t)n * (size_t)n_ff;
    struct input in = op_input(w, b->x, &l->ffn_norm, FOR(&l->gate, &l->up), NULL, n);
    for (struct share s = op_share(w, &l->gate, n); op_take(w, &s);) {
        op_rows(w, &l->gate, l->gate_bias, in, s.rows, gate, (size_t)n_ff);
        op_rows(w, &l->up, l->up_bias, in, s.rows, up, (size_t)n_ff);
        op_silu_mul(w, s.rows, gate, up, (size_t)n_ff);
    }
    op_barrier(w);
    in = op_input(w, gate, NULL, FOR(&l->down), NULL, n);
    op_linear_add(w, &l->down, l->down_bias, in, b->mixed, b->x);
    op_barrier(w);
}

void llama_forward(struct worker *w) {
    const struct step *s = w->step;
    const struct llama *g = s->model->layers;
    float *x = s->model->work.x;
    op_embed(w, &g->token_embd, NULL, &g->rope, x);
    op_barrier(w);
    for (int i = 0; i < s->model->h.n_layer; i++) {
        attend(w, g, &g->layers[i], i);
        feed_forward(w, &g->layers[i]);
    }
    if (s->n_wanted == 0) return;
    struct input in = op_input(w, x, &g->output_norm, FOR(&g->head), s->wanted, s->n_wanted);
    op_linear(w, &g->head, NULL, in, s->logits, (size_t)s->model->h.n_vocab);
}

static int load(struct gpt_model *m) { return llama_load(m, 0); }

const struct arch arch_llama = {"llama", load, llama_forward, llama_free};
