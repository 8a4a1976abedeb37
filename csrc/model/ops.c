#include "model/ops.h"

#include <math.h>

void op_barrier(const struct worker *w) { pool_barrier(w->step->model->pool, w->index, w->n); }

static void embed_row(const struct weight *table, int row, float *x) {
    table->type->dequantize((const char *)table->data + (size_t)row * table->stride, table->n_in, x);
}

void op_embed(const struct worker *w, const struct weight *tokens, const struct weight *positions, float *x) {
    const struct step *s = w->step;
    struct range mine = range_part(s->n_rows, 1, w->index, w->n);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        float *out = x + t * tokens->n_in, *position = s->model->work.mixed + t * tokens->n_in;   /* scratch here */
        embed_row(tokens, s->rows[t].token, out);
        embed_row(positions, s->rows[t].position, position);
        for (int64_t i = 0; i < tokens->n_in; i++) out[i] += position[i];
    }
}

/* ---- projections ---- */

/* A worker's own memory: private vectors as floats, the same quantized, probabilities of attention. */
static char *own_memory(const struct worker *w) {
    return w->step->model->work.own + (size_t)w->index * w->step->model->work.own_bytes;
}

static char *own_q8(const struct worker *w) {
    return own_memory(w) + round_up(MODEL_FEW * w->step->model->work.n_in_max * 4, 128);
}

static float *own_probabilities(const struct worker *w) {
    const struct work *work = &w->step->model->work;
    return (float *)(own_q8(w) + round_up(MODEL_FEW * (int64_t)act_q8_bytes(round_up(work->n_in_max, 32)), 128));
}

struct input op_input(const struct worker *w, const float *x, const struct norm *norm, const struct weight *for_, const int *pick, int n) {
    const struct gpt_model *m = w->step->model;
    int64_t n_in = for_->n_in;
    int quantized = for_->type->act == ACT_Q8, alone = n <= MODEL_FEW;
    if (!norm && !quantized && !pick) return (struct input){x, (size_t)n_in * sizeof(float), NULL, 0, n};

    float *floats = alone ? (float *)own_memory(w) : m->work.in;
    char *q8 = alone ? own_q8(w) : m->work.act;
    size_t q8_stride = act_q8_bytes(n_in);
    struct range mine = alone ? (struct range){0, n} : range_part(n, 1, w->index, w->n);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        const float *from = x + (pick ? pick[t] : t) * n_in;
        if (norm) {
            m->k.layer_norm(from, norm->weight, norm->bias, m->h.norm_eps, n_in, floats + t * n_in);
            from = floats + t * n_in;
        } else if (!quantized) {
            memcpy(floats + t * n_in, from, (size_t)n_in * sizeof *from);
        }
        if (quantized) m->k.act_q8(from, n_in, q8 + (size_t)t * q8_stride);
    }
    if (!alone) op_barrier(w);
    return (struct input){floats, (size_t)n_in * sizeof(float), q8, q8_stride, n};
}

struct range op_linear(const struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, size_t y_stride) {
    const struct kernels *k = &w->step->model->k;
    struct range mine = range_part(weight->n_out, 16, w->index, w->n);     /* 16 floats: workers seldom share a cache line */
    if (mine.begin == mine.end) return mine;
    int quantized = weight->type->act == ACT_Q8;
    k->matmul[weight->type->id](&(struct matmul){
        .type = weight->type,
        .w = (const char *)weight->data + (size_t)mine.begin * weight->stride, .w_stride = weight->stride,
        .a = quantized ? (const void *)in.q8 : in.x, .a_stride = quantized ? in.q8_stride : in.stride,
        .y = y + mine.begin, .y_stride = y_stride,
        .n_in = weight->n_in, .n_out = (int)(mine.end - mine.begin), .n_tok = in.n,
    });
    for (int t = 0; bias && t < in.n; t++)
        for (int64_t r = mine.begin; r < mine.end; r++) y[(size_t)t * y_stride + (size_t)r] += bias[r];
    return mine;
}

void op_linear_add(const struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, float *x) {
    size_t stride = (size_t)weight->n_out;
    struct range mine = op_linear(w, weight, bias, in, y, stride);
    for (int t = 0; t < in.n; t++)
        for (int64_t r = mine.begin; r < mine.end; r++) x[(size_t)t * stride + (size_t)r] += y[(size_t)t * stride + (size_t)r];
}

void op_apply(const struct worker *w, void (*fn)(float *x, int64_t n), struct range range, float *y, size_t y_stride) {
    for (int t = 0; range.begin < range.end && t < w->step->n_rows; t++)
        fn(y + (size_t)t * y_stride + range.begin, range.end - range.begin);
}

/* ---- attention ---- */

void op_attention(const struct worker *w, int layer, const float *qkv, size_t qkv_stride, float *out) {
    const struct step *s = w->step;
    const struct hparams *h = &s->model->h;
    struct range mine = range_part(h->n_head, 1, w->index, w->n);
    for (int head = (int)mine.begin; head < (int)mine.end; head++) {
        const float *q = qkv + head * h->head_dim, *k = q + h->n_embd, *v = k + h->n_embd;
        for (int t = 0; t < s->n_rows; t++)
            kv_write(s->kv, s->rows[t].sequence, layer, head, s->rows[t].position, k + (size_t)t * qkv_stride, v + (size_t)t * qkv_stride);
        for (int t = 0; t < s->n_rows; t++)
            s->model->k.attention(&(struct attention){
                .q = q + (size_t)t * qkv_stride,
                .k = kv_keys(s->kv, s->rows[t].sequence, layer, head), .v = kv_values(s->kv, s->rows[t].sequence, layer, head),
                .p = own_probabilities(w), .out = out + (size_t)t * (size_t)h->n_embd + head * h->head_dim,
                .scale = 1 / sqrtf((float)h->head_dim),
                .n = s->rows[t].position + 1, .head_dim = h->head_dim, .v_stride = s->kv->v_stride,
            });
    }
}
