/* gpt2: the decoder of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, as nanoGPT trains it.
 *
 *     x = token_embd[id] + position_embd[position]
 *     for each layer:   x += attn_output(attention(attn_qkv(norm(x))));   x += ffn_down(gelu(ffn_up(norm(x))))
 *     logits = output(norm(x))                                  output is token_embd unless the file has its own
 *
 * Every bias may be absent. pygpt.activation says which GELU: "gelu_erf", or "gelu_tanh", which is also meant when it is absent.
 *
 * gpt is the same for what people make of it, and llama.cpp's gpt2 does not know: gpt.activation may be "relu" too, scores may be
 * multiplied by gpt.attention.scale, heads need not make up the width, and the head may have a bias.
 */
#include "model/arch_gpt2.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "file/gguf.h"
#include "model/ops.h"

struct gpt2_layer {
    struct norm attn_norm, ffn_norm;
    struct weight qkv, out, up, down;
    const float *qkv_bias, *out_bias, *up_bias, *down_bias;
};

typedef void activation_fn(float *x, int64_t n);

struct gpt2 {
    struct weight token_embd, position_embd, head;
    struct norm output_norm;
    const float *head_bias;
    activation_fn *activation;
    struct gpt2_layer layers[];
};

/* ---- keys and tensors ---- */

static int read_hparams(struct gpt_model *m, int general) {
    struct hparams *h = &m->h;
    int rc = model_key_common(m, "attention.layer_norm_epsilon");
    if (rc) return rc;
    h->n_head_kv = h->n_head;
    h->head_dim = h->n_embd % h->n_head ? 0 : h->n_embd / h->n_head;
    if (general && (rc = model_key_int_if(m, "attention.key_length", 1, 1 << 16, &h->head_dim))) return rc;
    if (!h->head_dim)
        return error_set(GPT_EFORMAT, "%s: %d heads do not divide a width of %d; the file is damaged", gguf_path(m->file), h->n_head, h->n_embd);
    h->attn_scale = 1 / sqrtf((float)h->head_dim);
    return general ? model_key_float_if(m, "attention.scale", &h->attn_scale) : GPT_OK;
}

static int read_activation(const struct gpt_model *m, struct gpt2 *g, int general) {
    const struct { const char *name; activation_fn *fn; } known[] = {
        {"gelu_erf", m->k.gelu_erf}, {"gelu_tanh", m->k.gelu_tanh}, {"relu", general ? m->k.relu : NULL},
    };
    const char *key = general ? "gpt.activation" : "pygpt.activation", *text = "gelu_tanh";
    int64_t length = (int64_t)strlen(text);
    if (general || gguf_find(m->file, key)) {
        int rc = gguf_string(m->file, key, &text, &length);
        if (rc) return rc;
    }
    for (size_t i = 0; i < countof(known); i++)
        if (length == (int64_t)strlen(known[i].name) && memcmp(text, known[i].name, (size_t)length) == 0) g->activation = known[i].fn;
    if (!g->activation)
        return error_set(GPT_EUNSUPPORTED, "%s: %s is %.*s, which is not known; expected gelu_erf%s gelu_tanh%s", gguf_path(m->file), key,
                         (int)i64_min(length, 64), text, general ? "," : " or", general ? " or relu" : "");
    return GPT_OK;
}

static int bind_model(struct gpt_model *m, struct gpt2 *g, int general) {
    const struct hparams *h = &m->h;
    const struct binding table[] = {
        {"token_embd.weight", BIND_WEIGHT, offsetof(struct gpt2, token_embd), h->n_embd, h->n_vocab, 0},
        {"position_embd.weight", BIND_WEIGHT, offsetof(struct gpt2, position_embd), h->n_embd, h->n_ctx, 0},
        {"output_norm.weight", BIND_VECTOR, offsetof(struct gpt2, output_norm.weight), h->n_embd, 1, 0},
        {"output_norm.bias", BIND_VECTOR, offsetof(struct gpt2, output_norm.bias), h->n_embd, 1, 1},
        {"output.weight", BIND_WEIGHT, offsetof(struct gpt2, head), h->n_embd, h->n_vocab, 1},
        {"output.bias", BIND_VECTOR, offsetof(struct gpt2, head_bias), h->n_vocab, 1, 1},
    };
    int rc = model_bind(m, table, countof(table) - !general, 0, g);
    if (!rc && !g->head.data) g->head = g->token_embd;
    return rc;
}

static int bind_layer(struct gpt_model *m, struct gpt2_layer *l, int i) {
    const struct hparams *h = &m->h;
    const int64_t n_q = (int64_t)h->n_head * h->head_dim;
    const struct binding table[] = {
        {"blk.%d.attn_norm.weight", BIND_VECTOR, offsetof(struct gpt2_layer, attn_norm.weight), h->n_embd, 1, 0},
        {"blk.%d.attn_norm.bias", BIND_VECTOR, offsetof(struct gpt2_layer, attn_norm.bias), h->n_embd, 1, 1},
        {"blk.%d.attn_qkv.weight", BIND_WEIGHT, offsetof(struct gpt2_layer, qkv), h->n_embd, 3 * n_q, 0},
        {"blk.%d.attn_qkv.bias", BIND_VECTOR, offsetof(struct gpt2_layer, qkv_bias), 3 * n_q, 1, 1},
        {"blk.%d.attn_output.weight", BIND_WEIGHT, offsetof(struct gpt2_layer, out), n_q, h->n_embd, 0},
        {"blk.%d.attn_output.bias", BIND_VECTOR, offsetof(struct gpt2_layer, out_bias), h->n_embd, 1, 1},
        {"blk.%d.ffn_norm.weight", BIND_VECTOR, offsetof(struct gpt2_layer, ffn_norm.weight), h->n_embd, 1, 0},
        {"blk.%d.ffn_norm.bias", BIND_VECTOR, offsetof(struct gpt2_layer, ffn_norm.bias), h->n_embd, 1, 1},
        {"blk.%d.ffn_up.weight", BIND_WEIGHT, offsetof(struct gpt2_layer, up), h->n_embd, h->n_ff, 0},
        {"blk.%d.ffn_up.bias", BIND_VECTOR, offsetof(struct gpt2_layer, up_bias), h->n_ff, 1, 1},
        {"blk.%d.ffn_down.weight", BIND_WEIGHT, offsetof(struct gpt2_layer, down), h->n_ff, h->n_embd, 0},
        {"blk.%d.ffn_down.bias", BIND_VECTOR, offsetof(struct gpt2_layer, down_bias), h->n_embd, 1, 1},
    };
    return model_bind(m, table, countof(table), i, l);
}

int gpt2_load(struct gpt_model *m, int general) {
    int rc = read_hparams(m, general);
    if (rc) return rc;
    struct gpt2 *g = m->layers = calloc(1, sizeof *g + (size_t)m->h.n_layer * sizeof g->layers[0]);
    if (!g) return error_set(GPT_ENOMEM, "%s: no memory for %d layers", gguf_path(m->file), m->h.n_layer);
    if ((rc = read_activation(m, g, general)) || (rc = bind_model(m, g, general))) return rc;
    m->step_bytes = op_weight_bytes(&g->head);
    for (int i = 0; i < m->h.n_layer && !rc; i++) {
        struct gpt2_layer *l = &g->layers[i];
        rc = bind_layer(m, l, i);
        m->step_bytes += op_weight_bytes(&l->qkv) + op_weight_bytes(&l->out) + op_weight_bytes(&l->up) + op_weight_bytes(&l->down);
    }
    const int64_t n_q = (int64_t)m->h.n_head * m->h.head_dim;
    m->work.n_mixed = i64_max(m->h.n_embd, n_q);
    m->work.n_wide = i64_max(i64_max(3 * n_q, m->h.n_embd), m->h.n_ff);
    m->work.n_in_max = i64_max(m->work.n_mixed, m->h.n_ff);
    return rc;
}

/* ---- the forward pass ---- */

static void attend(struct worker *w, const struct gpt2_layer *l, int layer) {
    struct work *b = &w->step->model->work;
    const int n_q = w->step->model->h.n_head * w->step->model->h.head_dim, n = w->step->n_rows;
    const struct heads heads = {.q = b->wide, .k = b->wide + n_q, .v = b->wide + 2 * n_q, .stride = (size_t)(3 * n_q)};
    struct input in = op_input(w, b->x, &l->attn_norm, FOR(&l->qkv), NULL, n);
    op_linear(w, &l->qkv, l->qkv_bias, in, b->wide, heads.stride);
    op_barrier(w);
    op_remember(w, layer, &heads);
    op_barrier(w);
    op_attention(w, layer, &heads, b->mixed);
    op_barrier(w);
    in = op_input(w, b->mixed, NULL, FOR(&l->out), NULL, n);
    op_linear_add(w, &l->out, l->out_bias, in, b->wide, b->x);
    op_barrier(w);
}

static void feed_forward(struct worker *w, const struct gpt2 *g, const struct gpt2_layer *l) {
    struct work *b = &w->step->model->work;
    const int n_ff = w->step->model->h.n_ff, n = w->step->n_rows;
    struct input in = op_input(w, b->x, &l->ffn_norm, FOR(&l->up), NULL, n);
    for (struct share s = op_share(w, &l->up, n); op_take(w, &s);) {
        op_rows(w, &l->up, l->up_bias, in, s.rows, b->wide, (size_t)n_ff);
        op_apply(w, g->activation, s.rows, b->wide, (size_t)n_ff);
    }
    op_barrier(w);
    in = op_input(w, b->wide, NULL, FOR(&l->down), NULL, n);
    op_linear_add(w, &l->down, l->down_bias, in, b->mixed, b->x);
    op_barrier(w);
}

void gpt2_forward(struct worker *w) {
    const struct step *s = w->step;
    const struct gpt2 *g = s->model->layers;
    float *x = s->model->work.x;
    op_embed(w, &g->token_embd, &g->position_embd, NULL, x);
    op_barrier(w);
    for (int i = 0; i < s->model->h.n_layer; i++) {
        attend(w, &g->layers[i], i);
        feed_forward(w, g, &g->layers[i]);
    }
    if (s->n_wanted == 0) return;
    struct input in = op_input(w, x, &g->output_norm, FOR(&g->head), s->wanted, s->n_wanted);
    op_linear(w, &g->head, g->head_bias, in, s->logits, (size_t)s->model->h.n_vocab);
}

static int load(struct gpt_model *m) { return gpt2_load(m, 0); }

const struct arch arch_gpt2 = {"gpt2", load, gpt2_forward, NULL};
