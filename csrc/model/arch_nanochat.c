/* nanochat: Karpathy's "The best ChatGPT that $100 can buy", github.com/karpathy/nanochat, nanochat/gpt.py, of any month.
 *
 *     e = norm(token_embd[id]);  x = e + smear_lambda * sigmoid(smear_gate . e[:G]) * (e of the token before)
 *     for each layer:   x = resid_lambda * x + x0_lambda * (the first x);  y = norm(x)
 *                       q, k, v = norm(rope(attn_q(y))) * qk_scale, norm(rope(attn_k(y))) * qk_scale, attn_v(y)
 *                       v += value_gate_scale * sigmoid(attn_value_gate . y[:G]) * attn_value_embd[id]       per head of keys
 *                       x += attn_output(attention(q, k, v));   x += ffn_down(relu(ffn_up(norm(x)))^2)
 *     x -= backout_lambda * (x after backout_layer);   logits = softcap(output(norm(x)))
 *
 * Norms divide by the root mean square and have no weights; a norm and a turn can change places. RoPE turns the other way round, and
 * pairs values half a head apart. What a file does not hold (older months lack smear, backout, value embeddings, lambdas) is left out.
 */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "file/gguf.h"
#include "model/ops.h"

struct nanochat_layer {
    struct weight q, k, v, out, up, down;
    struct weight value_embd;            /* (n_vocab, n_kv), or no data */
    const float *value_gate;             /* (n_head_kv, n_gate) */
    int n_gate;
};

struct nanochat {
    struct weight token_embd, head;
    const float *resid_lambdas, *x0_lambdas;                     /* (n_layer), or NULL */
    const float *smear_gate, *smear_lambda, *backout_lambda;     /* (n_smear), (1), (1), or NULL */
    struct norm norm;                    /* ones */
    const float *head_norm;              /* (head_dim) qk_scale */
    int *windows;                        /* (n_layer) */
    struct rope rope;
    int n_smear, backout_layer;
    float softcap, value_gate_scale;
    struct nanochat_layer layers[];
};

/* ---- keys and tensors ---- */

static int read_hparams(struct gpt_model *m) {
    struct hparams *h = &m->h;
    int rc = model_key_common(m, "attention.layer_norm_rms_epsilon");
    if (rc || (rc = model_key_int(m, "attention.head_count_kv", 1, 1 << 16, &h->n_head_kv)) ||
        (rc = model_key_int(m, "attention.key_length", 2, 1 << 16, &h->head_dim)))
        return rc;
    h->rms = 1;
    if (h->n_head % h->n_head_kv)
        return error_set(GPT_EFORMAT, "%s: %d heads of queries, %d of keys; expected whole groups; the file is damaged", gguf_path(m->file),
                         h->n_head, h->n_head_kv);
    h->attn_scale = 1 / sqrtf((float)h->head_dim);
    return GPT_OK;
}

/* n times the same number, where others have weights. */
static const float *constant(struct gpt_model *m, int n, float value) {
    float *x = model_floats(m, n);
    for (int i = 0; x && i < n; i++) x[i] = value;
    return x;
}

static int read_constants(struct gpt_model *m, struct nanochat *g) {
    const struct hparams *h = &m->h;
    float qk_scale;
    int rc = model_key_float(m, "attention.qk_scale", &qk_scale);
    if (rc || (rc = model_key_float(m, "final_logit_softcapping", &g->softcap)) || (rc = rope_init(&g->rope, m, NULL, 1))) return rc;
    if (!(g->softcap > 0))
        return error_set(GPT_EFORMAT, "%s: nanochat.final_logit_softcapping is %g; expected more than 0; the file is damaged", gguf_path(m->file),
                         (double)g->softcap);
    for (int i = 0; i < g->rope.n_rot / 2; i++) g->rope.speed[i] = -g->rope.speed[i];
    g->norm.weight = constant(m, h->n_embd, 1);
    g->head_norm = constant(m, h->head_dim, qk_scale);
    g->windows = calloc((size_t)h->n_layer, sizeof *g->windows);
    if (!g->norm.weight || !g->head_norm || !g->windows) return error_set(GPT_ENOMEM, "%s: no memory for constants", gguf_path(m->file));
    return gguf_ints(m->file, "nanochat.attention.sliding_window", 0, 1 << 24, h->n_layer, g->windows);
}

/* Some at once or none: half of a mechanism is a damaged file. */
static int together(const struct gpt_model *m, const char *what, int n_found, int n) {
    if (n_found == 0 || n_found == n) return GPT_OK;
    return error_set(GPT_EFORMAT, "%s: has %d of %d tensors for %s; it is incomplete, convert it again", gguf_path(m->file), n_found, n, what);
}

/* The width of a tensor whose width no key says: how many values a gate looks at. */
static int tensor_width(const struct gpt_model *m, const char *name) {
    const struct gpt_tensor *t = gguf_find_tensor(m->file, name);
    return t ? (int)i64_min(t->shape[0], m->h.n_embd) : 0;
}

static int bind_model(struct gpt_model *m, struct nanochat *g) {
    const struct hparams *h = &m->h;
    g->n_smear = tensor_width(m, "smear_gate.weight");
    const struct binding table[] = {
        {"token_embd.weight", BIND_WEIGHT, offsetof(struct nanochat, token_embd), h->n_embd, h->n_vocab, 0},
        {"output.weight", BIND_WEIGHT, offsetof(struct nanochat, head), h->n_embd, h->n_vocab, 0},
        {"resid_lambdas.weight", BIND_VECTOR, offsetof(struct nanochat, resid_lambdas), h->n_layer, 1, 1},
        {"x0_lambdas.weight", BIND_VECTOR, offsetof(struct nanochat, x0_lambdas), h->n_layer, 1, 1},
        {"smear_gate.weight", BIND_VECTOR, offsetof(struct nanochat, smear_gate), g->n_smear, 1, 1},
        {"smear_lambda.weight", BIND_VECTOR, offsetof(struct nanochat, smear_lambda), 1, 1, 1},
        {"backout_lambda.weight", BIND_VECTOR, offsetof(struct nanochat, backout_lambda), 1, 1, 1},
    };
    int rc = model_bind(m, table, countof(table), 0, g);
    if (!rc) rc = together(m, "the mix of the first x", !!g->resid_lambdas + !!g->x0_lambdas, 2);
    if (!rc) rc = together(m, "smear", !!g->smear_gate + !!g->smear_lambda, 2);
    if (!rc && g->backout_lambda) rc = model_key_int(m, "backout_layer", 0, h->n_layer - 1, &g->backout_layer);
    return rc;
}

static int bind_layer(struct gpt_model *m, struct nanochat *g, int i) {
    struct nanochat_layer *l = &g->layers[i];
    const struct hparams *h = &m->h;
    const int64_t n_q = (int64_t)h->n_head * h->head_dim, n_kv = (int64_t)h->n_head_kv * h->head_dim;
    char gate[64];
    snprintf(gate, sizeof gate, "blk.%d.attn_value_gate.weight", i);
    l->n_gate = tensor_width(m, gate);
    const struct binding table[] = {
        {"blk.%d.attn_q.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, q), h->n_embd, n_q, 0},
        {"blk.%d.attn_k.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, k), h->n_embd, n_kv, 0},
        {"blk.%d.attn_v.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, v), h->n_embd, n_kv, 0},
        {"blk.%d.attn_output.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, out), n_q, h->n_embd, 0},
        {"blk.%d.ffn_up.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, up), h->n_embd, h->n_ff, 0},
        {"blk.%d.ffn_down.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, down), h->n_ff, h->n_embd, 0},
        {"blk.%d.attn_value_embd.weight", BIND_WEIGHT, offsetof(struct nanochat_layer, value_embd), n_kv, h->n_vocab, 1},
        {"blk.%d.attn_value_gate.weight", BIND_VECTOR, offsetof(struct nanochat_layer, value_gate), l->n_gate, h->n_head_kv, 1},
    };
    int rc = model_bind(m, table, countof(table), i, l);
    if (!rc) rc = together(m, "value embeddings", !!l->value_embd.data + !!l->value_gate, 2);
    return rc || !l->value_gate ? rc : model_key_float(m, "value_gate_scale", &g->value_gate_scale);
}

static int64_t layer_bytes(const struct nanochat_layer *l) {
    return op_weight_bytes(&l->q) + op_weight_bytes(&l->k) + op_weight_bytes(&l->v) + op_weight_bytes(&l->out) + op_weight_bytes(&l->up) +
           op_weight_bytes(&l->down);
}

static int nanochat_load(struct gpt_model *m) {
    const struct hparams *h = &m->h;
    int rc = read_hparams(m);
    if (rc) return rc;
    struct nanochat *g = m->layers = calloc(1, sizeof *g + (size_t)h->n_layer * sizeof g->layers[0]);
    if (!g) return error_set(GPT_ENOMEM, "%s: no memory for %d layers", gguf_path(m->file), h->n_layer);
    if ((rc = read_constants(m, g)) || (rc = bind_model(m, g))) return rc;
    m->step_bytes = op_weight_bytes(&g->head);
    for (int i = 0; i < h->n_layer && !rc; i++) {
        rc = bind_layer(m, g, i);
        m->step_bytes += layer_bytes(&g->layers[i]);
    }
    const int64_t n_q = (int64_t)h->n_head * h->head_dim, n_kv = (int64_t)h->n_head_kv * h->head_dim;
    m->work.n_mixed = i64_max(h->n_embd + n_kv, n_q);            /* a norm and a value embedding side by side */
    m->work.n_wide = i64_max(n_q + 2 * n_kv, i64_max(h->n_embd, h->n_ff));
    m->work.n_kept = 2 * (int64_t)h->n_embd;
    m->work.n_in_max = i64_max(i64_max(h->n_embd, n_q), h->n_ff);
    m->work.n_rot = g->rope.n_rot;
    return rc;
}

static void nanochat_free(struct gpt_model *m) {
    struct nanochat *g = m->layers;
    if (!g) return;
    rope_free(&g->rope);
    free(g->windows);
}

/* ---- the forward pass ---- */

/* Work on the residual stream is cut by rows, the same ones for every word here and in op_mix: between two of them no barrier is
 * needed. */
static struct range own_rows(const struct worker *w) { return range_part(w->step->n_rows, 1, w->index, w->n); }

/* x[t] = e of its token + a part of e of the token before, which the cache remembers. */
static void embed(const struct worker *w, const struct nanochat *g, float *x) {
    const struct step *s = w->step;
    const struct work *b = &s->model->work;
    const int n_embd = s->model->h.n_embd;
    for (int64_t t = own_rows(w).begin; t < own_rows(w).end; t++) {
        const struct gpt_row *row = &s->rows[t];
        float *e = x + t * n_embd, *before = b->mixed + t * b->n_mixed;
        rope_turns(&g->rope, row->position, b->turns + t * b->n_rot);
        op_lookup(&g->token_embd, row->token, e);
        op_normalise(w, e, &g->norm, e);
        if (g->smear_gate && row->position > 0) {
            float gate = *g->smear_lambda * op_sigmoid_dot(g->smear_gate, e, g->n_smear);
            op_lookup(&g->token_embd, kv_tokens(s->kv, row->sequence)[row->position - 1], before);
            op_normalise(w, before, &g->norm, before);
            for (int i = 0; i < n_embd; i++) e[i] += gate * before[i];
        }
    }
}

static void keep(const struct worker *w, const float *x, float *kept) {
    const int64_t n_embd = w->step->model->h.n_embd;
    struct range mine = own_rows(w);
    memcpy(kept + mine.begin * n_embd, x + mine.begin * n_embd, (size_t)((mine.end - mine.begin) * n_embd) * sizeof *x);
}

/* v += value_gate_scale * sigmoid(gate . y) * value_embd[id] in each head */
static void add_values(const struct worker *w, const struct nanochat *g, const struct nanochat_layer *l, const struct heads *heads) {
    const struct step *s = w->step;
    const struct work *b = &s->model->work;
    const struct hparams *h = &s->model->h;
    for (int64_t t = own_rows(w).begin; t < own_rows(w).end; t++) {
        float *y = b->mixed + t * b->n_mixed, *value = y + h->n_embd, *v = heads->v + (size_t)t * heads->stride;
        op_normalise(w, b->x + t * h->n_embd, &g->norm, y);
        op_lookup(&l->value_embd, s->rows[t].token, value);
        for (int head = 0; head < h->n_head_kv; head++, v += h->head_dim, value += h->head_dim) {
            float gate = g->value_gate_scale * op_sigmoid_dot(l->value_gate + head * l->n_gate, y, l->n_gate);
            for (int i = 0; i < h->head_dim; i++) v[i] += gate * value[i];
        }
    }
}

static void attend(struct worker *w, const struct nanochat *g, const struct nanochat_layer *l, int layer) {
    struct work *b = &w->step->model->work;
    const struct hparams *h = &w->step->model->h;
    const int n_q = h->n_head * h->head_dim, n_kv = h->n_head_kv * h->head_dim, n = w->step->n_rows;
    const struct heads heads = {b->wide, b->wide + n_q, b->wide + n_q + n_kv, (size_t)(n_q + 2 * n_kv), g->head_norm, g->head_norm, &g->rope,
                                g->windows[layer]};
    struct input in = op_input(w, b->x, &g->norm, FOR(&l->q, &l->k, &l->v), NULL, n);
    op_linear(w, &l->q, NULL, in, heads.q, heads.stride);
    op_linear(w, &l->k, NULL, in, heads.k, heads.stride);
    op_linear(w, &l->v, NULL, in, heads.v, heads.stride);
    op_barrier(w);
    if (l->value_gate) {
        add_values(w, g, l, &heads);
        op_barrier(w);
    }
    op_remember(w, layer, &heads);
    op_barrier(w);
    op_attention(w, layer, &heads, b->mixed);
    op_barrier(w);
    in = op_input(w, b->mixed, NULL, FOR(&l->out), NULL, n);
    op_linear_add(w, &l->out, NULL, in, b->wide, b->x);
    op_barrier(w);
}

static void feed_forward(struct worker *w, const struct nanochat *g, const struct nanochat_layer *l) {
    struct work *b = &w->step->model->work;
    const int n_ff = w->step->model->h.n_ff, n = w->step->n_rows;
    struct input in = op_input(w, b->x, &g->norm, FOR(&l->up), NULL, n);
    for (struct share s = op_share(w, &l->up, n); op_take(w, &s);) {
        op_rows(w, &l->up, NULL, in, s.rows, b->wide, (size_t)n_ff);
        op_apply(w, w->step->model->k.relu_squared, s.rows, b->wide, (size_t)n_ff);
    }
    op_barrier(w);
    in = op_input(w, b->wide, NULL, FOR(&l->down), NULL, n);
    op_linear_add(w, &l->down, NULL, in, b->mixed, b->x);
    op_barrier(w);
}

static void head(struct worker *w, const struct nanochat *g) {
    const struct step *s = w->step;
    const size_t n_vocab = (size_t)s->model->h.n_vocab;
    struct input in = op_input(w, s->model->work.x, &g->norm, FOR(&g->head), s->wanted, s->n_wanted);
    for (struct share share = op_share(w, &g->head, in.n); op_take(w, &share);) {
        op_rows(w, &g->head, NULL, in, share.rows, s->logits, n_vocab);
        for (int i = 0; i < s->n_wanted; i++)
            s->model->k.softcap(s->logits + (size_t)i * n_vocab + share.rows.begin, g->softcap, share.rows.end - share.rows.begin);
    }
}

static void nanochat_forward(struct worker *w) {
    const struct step *s = w->step;
    const struct nanochat *g = s->model->layers;
    float *x = s->model->work.x, *x0 = s->model->work.kept, *backout = x0 + (size_t)s->n_rows * (size_t)s->model->h.n_embd;
    embed(w, g, x);
    keep(w, x, x0);
    op_barrier(w);
    for (int i = 0; i < s->model->h.n_layer; i++) {
        if (g->resid_lambdas) {
            op_mix(w, g->resid_lambdas[i], g->x0_lambdas[i], x0, x);
            op_barrier(w);
        }
        attend(w, g, &g->layers[i], i);
        feed_forward(w, g, &g->layers[i]);
        if (g->backout_lambda && i == g->backout_layer) keep(w, x, backout);
    }
    if (g->backout_lambda) {
        op_mix(w, 1, -*g->backout_lambda, backout, x);
        op_barrier(w);
    }
    if (s->n_wanted) head(w, g);
}

const struct arch arch_nanochat = {"nanochat", nanochat_load, nanochat_forward, nanochat_free};
