/* kernels.h: the functions that take the time, once per instruction set, and the choice among them.
 *
 * A kernel is a pure function: no pool, no model, no allocation, no input or output, and no idea that other threads run it.
 * Scalar C (kernels_scalar.c) is the truth. Each kernels_<isa>.c overwrites the entries that it does better; names end in the
 * instruction set: matmul_q8_0_avx2. tests/c/check.c proves every entry of every row against the scalar one.
 *
 * The order of a float sum is fixed (16 lanes for f32, f16, bf16 and norms; block after block for quantized weights), so one
 * instruction set gives one result for any number of threads and whatever is computed in the same call. Quantized weights give the
 * same bits on all of them; sums of floats differ within 2 * n * FLT_EPSILON * sum|w * x|.
 */
#ifndef PYGPT_KERNELS_H
#define PYGPT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "quant/quant.h"

/* y[t][r] = sum over k of w[r][k] * a[t][k]. What the products of 32 are is said in quant.h; they are added in their order, so a
 * result has the same bits whatever else is computed in the same call. */
struct matmul {
    const struct quant *type;            /* of w */
    const void *w;  size_t w_stride;     /* (n_out, n_in) weights as they lie in the file; bytes from row to row */
    const void *a;  size_t a_stride;     /* floats: (n_tok, n_in), bytes from vector to vector. Else int8, at a multiple of 64 bytes: up to
                                          * ACT_FEW vectors, bytes from one to the next; more are groups, bytes from group to group */
    float *y;       size_t y_stride;     /* (n_tok, n_out); floats from vector to vector */
    int64_t n_in;                        /* a multiple of type->block */
    int n_out, n_tok;
};
typedef void matmul_fn(const struct matmul *m);

enum { STRIPE = 64 };        /* rows that are unpacked together for many vectors: a matrix is best cut between stripes */

enum { KV_TILE = 16, ATTENTION_MAX = 16 };     /* positions per tile of keys; queries per call */

/* One query of one head, and the positions that it sees: begin <= i < end. */
struct query {
    const float *q;                      /* (head_dim) */
    float *out;                          /* (head_dim) */
    int begin, end;
};

/* Queries over the keys and values of one head of one sequence, each:
 *     p = softmax(scale * q . k[begin..end)),  out = sum over i of p[i] * v[i]
 * A query's result has the same bits whatever queries come with it. */
struct attention {
    const struct query *queries;
    int n_queries;                       /* 1 .. ATTENTION_MAX */
    int halves;                          /* keys and values are f16; else f32 */
    const void *k;                       /* (tiles, head_dim, KV_TILE): tiles of positions side by side */
    const void *v;                       /* (positions, v_stride), rows padded with zeros to v_stride, a multiple of 16 */
    float *p;  size_t p_stride;          /* (n_queries, p_stride) scratch, p_stride a multiple of 16 not below the largest end */
    float scale;
    int head_dim, v_stride;
};

struct kernels {
    matmul_fn *matmul[QUANT_ID_MAX];                                                  /* by quant.id; never NULL for a known type */
    void (*act_q8)(const float *x, int64_t n, void *act);                             /* as act_q8_quantize, same bytes */
    /* y = (x - mean) / sqrt(variance + eps) * w + b over n values; b may be NULL; y may be x */
    void (*layer_norm)(const float *x, const float *w, const float *b, float eps, int64_t n, float *y);
    /* y = x / sqrt(mean of x^2 + eps) * w; y may be x */
    void (*rms_norm)(const float *x, const float *w, float eps, int64_t n, float *y);
    void (*gelu_erf)(float *x, int64_t n);                                            /* x * (1 + erf(x / sqrt 2)) / 2 */
    void (*gelu_tanh)(float *x, int64_t n);                                           /* the tanh approximation of it */
    void (*relu)(float *x, int64_t n);                                                /* max(x, 0) */
    void (*relu_squared)(float *x, int64_t n);                                        /* max(x, 0)^2 */
    void (*softcap)(float *x, float cap, int64_t n);                                  /* cap * tanh(x / cap) */
    void (*silu_mul)(float *x, const float *y, int64_t n);                            /* x = x / (1 + e^-x) * y */
    void (*add)(float *y, const float *x, int64_t n);                                 /* y += x; they do not overlap */
    void (*halves)(const float *x, int64_t n, uint16_t *h);                           /* f16, rounded to nearest even */
    void (*attention)(const struct attention *a);
    int64_t (*mac_peak)(int64_t n);      /* makes about n int8 multiply-adds in registers, the fastest way there is; returns how many */
};

/* One row per instruction set, slowest first. A table of kernels is made by the init of the row's base, then its own. */
struct isa {
    const char *name;
    unsigned needs;                      /* CPU_... clusters */
    int base;                            /* the row that this one overwrites; -1 for scalar */
    void (*init)(struct kernels *k);
};
extern const struct isa isas[];
extern const int n_isas;

int isa_available(int i);                /* 1 if this processor can run row i */
/* Fills a table for row i of isas[], whether the processor has it or not. */
void kernels_init(struct kernels *k, int i);
/* The row to use: the last one that the processor can run, or the one that PYGPT_ISA names. Negative GPT_E... on error. */
int kernels_choose(void);

void kernels_init_scalar(struct kernels *k);
void kernels_init_avx2(struct kernels *k);
void kernels_init_avxvnni(struct kernels *k);
void kernels_init_avx512ymm(struct kernels *k);
void kernels_init_avx512vnni(struct kernels *k);
void kernels_init_dotprod(struct kernels *k);
void kernels_init_i8mm(struct kernels *k);

#endif
