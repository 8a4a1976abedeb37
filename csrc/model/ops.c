#include "model/ops.h"

#include <math.h>

int64_t op_weight_bytes(const struct weight *weight) { return (int64_t)weight->stride * weight->n_out; }

void op_barrier(const struct worker *w) { pool_barrier(w->step->model->pool, w->index, w->n); }

/* ---- embeddings ---- */

void op_lookup(const struct weight *table, int row, float *x) {
    quant_dequantize(table->type, (const char *)table->data + (size_t)row * table->stride, table->n_in, x);
}

void op_embed(const struct worker *w, const struct weight *tokens, const struct weight *positions, const struct rope *rope, float *x) {
    const struct step *s = w->step;
    const struct work *work = &s->model->work;
    struct range mine = range_part(s->n_rows, 1, w->index, w->n);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        float *out = x + t * tokens->n_in, *position = work->mixed + t * work->n_mixed;           /* scratch here */
        op_lookup(tokens, s->rows[t].token, out);
        if (positions) op_lookup(positions, s->rows[t].position, position);
        for (int64_t i = 0; positions && i < tokens->n_in; i++) out[i] += position[i];
        if (rope) rope_turns(rope, s->rows[t].position, work->turns + t * work->n_rot);
    }
}

/* ---- projections ---- */

/* A worker's own memory: ACT_FEW vectors as floats, the same quantized, probabilities of attention. */
static char *own_memory(const struct worker *w) {
    return w->step->model->work.own + (size_t)w->index * w->step->model->work.own_bytes;
}

static void normalise(const struct gpt_model *m, const float *x, const struct norm *norm, int64_t n, float *y) {
    if (m->h.rms) m->k.rms_norm(x, norm->weight, m->h.norm_eps, n, y);
    else m->k.layer_norm(x, norm->weight, norm->bias, m->h.norm_eps, n, y);
}

void op_normalise(const struct worker *w, const float *x, const struct norm *norm, float *y) {
    normalise(w->step->model, x, norm, w->step->model->h.n_embd, y);
}

float op_sigmoid_dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return 1 / (1 + expf(-sum));
}

/* Number t of many vectors, from its quantized form in a worker's own memory into its group. */
static void put_into_group(const struct gpt_model *m, const char *q8, int64_t n_in, int64_t t) {
    char *group = m->work.act + (size_t)(t / ACT_GROUP) * act_group_bytes(n_in);
    act_group_put(q8, n_in, (int)(t % ACT_GROUP), (struct act_block *)group);
}

struct input op_input(const struct worker *w, const float *x, const struct norm *norm, const struct weight *const *for_, const int *pick, int n) {
    const struct gpt_model *m = w->step->model;
    int64_t n_in = for_[0]->n_in;
    int floats = 0, quantized = 0, few = n <= ACT_FEW;
    for (; *for_; for_++) *((*for_)->type->codes ? &quantized : &floats) = 1;

    if (!norm && !quantized && !pick) return (struct input){.x = x, .stride = (size_t)n_in * sizeof *x, .n = n};
    char *own = own_memory(w);
    float *in = few ? (float *)own : m->work.in, *one = (float *)own;     /* one: where it is normalised */
    struct range mine = few ? (struct range){0, n} : range_part(n, 1, w->index, w->n);
    for (int64_t t = mine.begin; t < mine.end; t++) {
        const float *from = x + (pick ? pick[t] : t) * n_in;
        float *to = few || floats ? in + t * n_in : one;
        char *q8 = own + m->work.own_q8 + (few ? (size_t)t * act_q8_bytes(n_in) : 0);
        if (norm) normalise(m, from, norm, n_in, to);
        else if (floats) memcpy(to, from, (size_t)n_in * sizeof *from);
        if (quantized) m->k.act_q8(norm ? to : from, n_in, q8);
        if (quantized && !few) put_into_group(m, q8, n_in, t);
    }
    if (!few) op_barrier(w);
    return (struct input){in, (size_t)n_in * sizeof(float), few ? own + m->work.own_q8 : m->work.act,
                          few ? act_q8_bytes(n_in) : act_group_bytes(n_in), n};
}

/* Few tokens: pieces so long that what it costs memory to begin one does not count, in rows of whole cache lines (16 floats), which
 * workers then do not share. More: stripes, one by one. */
enum { PIECE_BYTES = 256 << 10, LINE_ROWS = 16 };

struct share op_share(struct worker *w, const struct weight *weight, int n_tok) {
    int many = n_tok > ACT_GROUP;
    struct share s = {.n_rows = weight->n_out, .unit = many ? STRIPE : LINE_ROWS};
    s.least = many ? 1 : i64_max(1, PIECE_BYTES / ((int64_t)weight->stride * LINE_ROWS));
    int64_t n_units = (s.n_rows + s.unit - 1) / s.unit;
    s.most = many ? 1 : n_units;
    if (w->n > 1 && n_units > s.least * w->n) s.round = ++w->round;
    else s.units = range_part(n_units, 1, w->index, w->n);
    return s;
}

int op_take(const struct worker *w, struct share *s) {
    int64_t n_units = (s->n_rows + s->unit - 1) / s->unit;
    if (s->units.begin == s->units.end &&
        (!s->round || !pool_take(w->step->model->pool, w->index, w->n, s->round, n_units, s->least, &s->units)))
        return 0;
    int64_t end = i64_min(s->units.begin + s->most, s->units.end);
    s->rows = (struct range){s->units.begin * s->unit, i64_min(end * s->unit, s->n_rows)};
    s->units.begin = end;
    return 1;
}

void op_rows(const struct worker *w, const struct weight *weight, const float *bias, struct input in, struct range rows, float *y, size_t y_stride) {
    const struct kernels *k = &w->step->model->k;
    int quantized = weight->type->codes != NULL;
    k->matmul[weight->type->id](&(struct matmul){
        .type = weight->type,
        .w = (const char *)weight->data + (size_t)rows.begin * weight->stride, .w_stride = weight->stride,
        .a = quantized ? (const void *)in.act : in.x, .a_stride = quantized ? in.act_stride : in.stride,
        .y = y + rows.begin, .y_stride = y_stride,
        .n_in = weight->n_in, .n_out = (int)(rows.end - rows.begin), .n_tok = in.n,
    });
    for (int t = 0; bias && t < in.n; t++)
        k->add(y + (size_t)t * y_stride + rows.begin, bias + rows.begin, rows.end - rows.begin);
}

void op_linear(struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, size_t y_stride) {
    for (struct share s = op_share(w, weight, in.n); op_take(w, &s);) op_rows(w, weight, bias, in, s.rows, y, y_stride);
}

void op_linear_add(struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, float *x) {
    size_t stride = (size_t)weight->n_out;
    for (struct share s = op_share(w, weight, in.n); op_take(w, &s);) {
        op_rows(w, weight, bias, in, s.rows, y, stride);
        for (int t = 0; t < in.n; t++) {
            size_t at = (size_t)t * stride + (size_t)s.rows.begin;
            w->step->model->k.add(x + at, y + at, s.rows.end - s.rows.begin);
        }
    }
}

void op_apply(const struct worker *w, void (*fn)(float *x, int64_t n), struct range rows, float *y, size_t y_stride) {
    for (int t = 0; t < w->step->n_rows; t++) fn(y + (size_t)t * y_stride + rows.begin, rows.end - rows.begin);
}

void op_silu_mul(const struct worker *w, struct range rows, float *gate, const float *up, size_t stride) {
    for (int t = 0; t < w->step->n_rows; t++) {
        size_t at = (size_t)t * stride + (size_t)rows.begin;
        w->step->model->k.silu_mul(gate + at, up + at, rows.end - rows.begin);
    }
}

void op_mix(const struct worker *w, float scale, float by, const float *other, float *x) {
    const int64_t n_embd = w->step->model->h.n_embd;
    struct range mine = range_part(w->step->n_rows, 1, w->index, w->n);
    for (int64_t i = mine.begin * n_embd; i < mine.end * n_embd; i++) x[i] = other ? scale * x[i] + by * other[i] : scale * x[i];
}

/* ---- attention ---- */

static void make_ready(const struct gpt_model *m, const struct heads *heads, const float *norm, int t, float *x) {
    if (norm) m->k.rms_norm(x, norm, m->h.norm_eps, m->h.head_dim, x);
    if (heads->rope) rope_apply(heads->rope, m->work.turns + t * m->work.n_rot, x);
}

void op_remember(const struct worker *w, int layer, const struct heads *heads) {
    const struct step *s = w->step;
    const struct gpt_model *m = s->model;
    const int n_q = heads->q_norm || heads->rope ? m->h.n_head : 0, per_row = n_q + m->h.n_head_kv;      /* heads with work */
    struct range mine = range_part((int64_t)s->n_rows * per_row, 1, w->index, w->n);
    for (int64_t i = mine.begin; i < mine.end; i++) {
        int t = (int)(i / per_row), head = (int)(i % per_row) - n_q;
        size_t row = (size_t)t * heads->stride;
        if (head < 0) {
            make_ready(m, heads, heads->q_norm, t, heads->q + row + (head + n_q) * m->h.head_dim);
            continue;
        }
        float *k = heads->k + row + head * m->h.head_dim;
        make_ready(m, heads, heads->k_norm, t, k);
        kv_write(s->kv, &m->k, s->rows[t].sequence, layer, head, s->rows[t].position, k, heads->v + row + head * m->h.head_dim);
    }
}

/* Rows [from, to) of one sequence times the query heads [first, last) of one key head: what is attended in one call. */
struct patch { int from, to, head_kv, first, last; };

static void attend_patch(const struct worker *w, int layer, const struct heads *heads, const struct patch *p, float *out) {
    const struct step *s = w->step;
    const struct hparams *h = &s->model->h;
    struct query queries[ATTENTION_MAX];
    int n = 0, sequence = s->rows[p->from].sequence, last = s->rows[p->to - 1].position;
    for (int t = p->from; t < p->to; t++)
        for (int head = p->first; head < p->last; head++) {
            int end = s->rows[t].position + 1, begin = heads->window && end > heads->window ? end - heads->window : 0;
            queries[n++] = (struct query){heads->q + (size_t)t * heads->stride + head * h->head_dim,
                                          out + ((size_t)t * (size_t)h->n_head + (size_t)head) * (size_t)h->head_dim, begin, end};
        }
    s->model->k.attention(&(struct attention){
        .queries = queries, .n_queries = n, .halves = s->kv->halves,
        .k = kv_keys(s->kv, sequence, layer, p->head_kv), .v = kv_values(s->kv, sequence, layer, p->head_kv),
        .p = (float *)(own_memory(w) + s->model->work.own_p), .p_stride = (size_t)round_up(last + 1, KV_TILE) + KV_TILE,
        .scale = h->attn_scale, .head_dim = h->head_dim, .v_stride = s->kv->v_stride,
    });
}

/* Rows that are attended together, of one sequence each: where they begin; the last entry is n_rows. Returns how many there are. */
static int attention_rows(const struct step *s, int most, int *begin) {
    int n = 0;
    for (int t = 0; t < s->n_rows; t++)
        if (t == 0 || t == begin[n - 1] + most || s->rows[t].sequence != s->rows[t - 1].sequence) begin[n++] = t;
    begin[n] = s->n_rows;
    return n;
}

/* Patches are parts of a key head's queries, times rows that are attended together. */
void op_attention(struct worker *w, int layer, const struct heads *heads, float *out) {
    const struct step *s = w->step;
    const struct hparams *h = &s->model->h;
    int group = h->n_head / h->n_head_kv, together = (int)i64_min(group, ATTENTION_MAX), begin[MODEL_BATCH + 1];
    if (s->n_rows * h->n_head_kv < w->n) together = (together + 1) / 2;
    int n_rows = attention_rows(s, ATTENTION_MAX / together, begin), parts = (group + together - 1) / together, round = ++w->round;
    for (struct range taken; pool_take(s->model->pool, w->index, w->n, round, (int64_t)h->n_head_kv * parts * n_rows, 1, &taken);)
        for (int64_t i = taken.begin; i < taken.end; i++) {
            int rows = (int)(i % n_rows), part = (int)(i / n_rows) % parts, head_kv = (int)(i / n_rows) / parts;
            int first = head_kv * group + part * together, end = (head_kv + 1) * group;
            attend_patch(w, layer, heads, &(struct patch){begin[rows], begin[rows + 1], head_kv, first, (int)i64_min(first + together, end)}, out);
        }
}
