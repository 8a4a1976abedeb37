/* ops.h: the words that forwards are written in.
 *
 * Every worker runs the whole forward; each word does this worker's share: rows of a projection, heads of attention.
 * Between a word that writes a buffer and one that reads it stands op_barrier. Nothing computed depends on how many workers
 * there are.
 */
#ifndef PYGPT_OPS_H
#define PYGPT_OPS_H

#include "model/kv.h"
#include "model/model.h"
#include "model/rope.h"

struct step {                /* one evaluation of rows */
    struct gpt_model *model;
    struct kv *kv;
    const struct gpt_row *rows;          /* [n_rows] */
    int n_rows;
    int wanted[MODEL_BATCH];             /* [n_wanted] the rows whose logits are wanted */
    int n_wanted;
    float *logits;                       /* (n_wanted, n_vocab) */
};

struct worker {
    struct step *step;
    int index, n;
    int round;                           /* things that were shared out so far */
};

struct norm { const float *weight, *bias; };                 /* bias may be NULL */

/* Vectors on their way into projections: as floats and quantized, as far as the weights want it. */
struct input {
    const float *x;   size_t stride;     /* bytes from vector to vector */
    const char *act;  size_t act_stride; /* as struct matmul wants it */
    int n;                               /* vectors */
};
#define FOR(...) ((const struct weight *const[]){__VA_ARGS__, NULL})      /* the projections that an input is for */

/* The queries, keys and values of all rows, as projections have written them. */
struct heads {
    float *q, *k, *v;                    /* of the first row */
    size_t stride;                       /* floats from row to row */
    const float *q_norm, *k_norm;        /* (head_dim), or NULL: each head is normalised by its root mean square */
    const struct rope *rope;             /* or NULL */
    int window;                          /* a token sees itself and the window - 1 before it; 0: all before it */
};

int64_t op_weight_bytes(const struct weight *weight);
void op_barrier(const struct worker *w);

void op_lookup(const struct weight *table, int row, float *x);           /* x = table[row] */
float op_sigmoid_dot(const float *a, const float *b, int64_t n);         /* 1 / (1 + e^-(a . b)): a gate */
void op_normalise(const struct worker *w, const float *x, const struct norm *norm, float *y);      /* one vector (n_embd) */

/* x[t] = token_embd[rows[t].token] for all rows, + positions[rows[t].position] if there are; rope's angles are prepared */
void op_embed(const struct worker *w, const struct weight *tokens, const struct weight *positions, const struct rope *rope, float *x);

/* What `for_` read: the normalised (norm may be NULL: as they are) vectors of x, of all rows or of the n that pick names.
 * Few vectors are prepared by every worker for itself; many are shared out, with a barrier. */
struct input op_input(const struct worker *w, const float *x, const struct norm *norm, const struct weight *const *for_, const int *pick, int n);

/* Rows of a projection are taken piece by piece, and from whoever is late: memory and processors often serve one worker worse than
 * another. What is done with a piece at once finds it in the cache.
 *     for (struct share s = op_share(w, weight, in.n); op_take(w, &s);) .. s.rows .. */
struct share {
    struct range rows;                   /* the piece */
    int64_t n_rows, unit, least, most;   /* pieces are multiples of unit; how many are taken at least, and handed out at most */
    struct range units;                  /* taken, but not handed out yet */
    int round;                           /* 0: each worker has but its own part */
};
struct share op_share(struct worker *w, const struct weight *weight, int n_tok);
int op_take(const struct worker *w, struct share *s);

/* y[t][r] = weight[r] . in[t] + bias[r] (bias may be NULL) for the rows r of a piece, and for all that this worker takes */
void op_rows(const struct worker *w, const struct weight *weight, const float *bias, struct input in, struct range rows, float *y, size_t y_stride);
void op_linear(struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, size_t y_stride);
/* The same, added to x; y is scratch. */
void op_linear_add(struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, float *x);

/* Makes the heads ready (norms, rope; in place) and appends keys and values to the cache. */
void op_remember(const struct worker *w, int layer, const struct heads *heads);
/* out[t] = softmax(attn_scale * q . k) . v over what each row's sequence holds up to its position: (n_rows, n_head, head_dim). The heads
 * of queries share those of keys in groups of n_head / n_head_kv. */
void op_attention(struct worker *w, int layer, const struct heads *heads, float *out);

/* fn applied to columns `rows` of all vectors of y */
void op_apply(const struct worker *w, void (*fn)(float *x, int64_t n), struct range rows, float *y, size_t y_stride);
/* x[t] *= scale, then += by * other[t] (other may be NULL), for the vectors of x (n_rows, n_embd) that are this worker's part */
void op_mix(const struct worker *w, float scale, float by, const float *other, float *x);
/* gate = silu(gate) * up, in columns `rows` of all vectors */
void op_silu_mul(const struct worker *w, struct range rows, float *gate, const float *up, size_t stride);

#endif
