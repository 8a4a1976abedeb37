/* ops.h: the words that forwards are written in.
 *
 * Every worker runs the whole forward; each word does this worker's share: its rows of a projection, its heads of attention.
 * Between a word that writes a buffer and one that reads it stands op_barrier. Nothing computed depends on how many workers
 * there are.
 */
#ifndef PYGPT_OPS_H
#define PYGPT_OPS_H

#include "model/kv.h"
#include "model/model.h"

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
};

struct norm { const float *weight, *bias; };                 /* bias may be NULL */

/* Vectors on their way into a projection: as floats and, if its weights want that, quantized. */
struct input {
    const float *x;  size_t stride;      /* bytes from vector to vector */
    const char *q8;  size_t q8_stride;
    int n;                               /* vectors */
};

void op_barrier(const struct worker *w);

/* x[t] = token_embd[rows[t].token] + position_embd[rows[t].position], for all rows */
void op_embed(const struct worker *w, const struct weight *tokens, const struct weight *positions, float *x);

/* What `for_` reads: the normalised (norm may be NULL: as they are) vectors of x, of all rows or of the n that pick names.
 * Few vectors are prepared by every worker for itself; many are shared out, with a barrier. */
struct input op_input(const struct worker *w, const float *x, const struct norm *norm, const struct weight *for_, const int *pick, int n);

/* This worker's rows r of y[t][r] = weight[r] . in[t] + bias[r] (bias may be NULL); op_linear returns which rows those are. */
struct range op_linear(const struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, size_t y_stride);
/* The same, added to x; y is scratch. */
void op_linear_add(const struct worker *w, const struct weight *weight, const float *bias, struct input in, float *y, float *x);

/* For this worker's heads: appends the rows' keys and values (qkv holds q, k, v side by side) to the cache, then
 * out[t] = softmax(q . k / sqrt(head_dim)) . v over what each row's sequence holds up to its position. */
void op_attention(const struct worker *w, int layer, const float *qkv, size_t qkv_stride, float *out);

/* fn applied to columns `range` of all vectors of y */
void op_apply(const struct worker *w, void (*fn)(float *x, int64_t n), struct range range, float *y, size_t y_stride);

#endif
