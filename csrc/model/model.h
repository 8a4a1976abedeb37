/* model.h: a file turned into something that can be evaluated: hyperparameters, bound weights, and the table of architectures.
 *
 * Weights stay where they lie in the mapped file. A model does not change after it was opened; the buffers in `work` belong to
 * whoever holds the pool's lock, one step at a time.
 */
#ifndef PYGPT_MODEL_H
#define PYGPT_MODEL_H

#include "base/pool.h"
#include "kernels/kernels.h"
#include "pygpt.h"
#include "quant/quant.h"

struct step;
struct worker;

struct hparams {
    int n_vocab, n_ctx, n_layer, n_head, n_head_kv, n_embd, n_ff, head_dim;
    int rms;                 /* norms divide by the root mean square; else they are layer norms */
    float norm_eps, attn_scale;
    int halves;              /* keys and values are kept as f16: where weights are quantized */
};

struct weight {              /* a matrix (n_out, n_in): y = w x */
    const struct quant *type;
    const void *data;
    size_t stride;           /* bytes from row to row */
    int64_t n_in, n_out;
};

/* How a tensor of the file becomes a field of an architecture's own structure. */
enum binding_kind { BIND_WEIGHT, BIND_VECTOR };
struct binding {
    const char *name;        /* in the file; with %d for the layer */
    enum binding_kind kind;  /* struct weight, or const float * */
    size_t offset;           /* of the field */
    int64_t n_in, n_out;
    int optional;            /* absent: the field stays NULL */
};

/* One row per architecture. */
struct arch {
    const char *name;        /* general.architecture */
    int (*load)(struct gpt_model *m);                /* reads the keys, binds the tensors, sets m->work sizes */
    void (*forward)(struct worker *w);               /* one step, run by every worker at once */
    void (*free)(struct gpt_model *m);               /* what load made beside m->layers; may be NULL */
};
extern const struct arch *const archs[];
extern const int n_archs;
extern const struct arch arch_gpt2, arch_gpt, arch_bigram, arch_llama, arch_qwen2, arch_qwen3, arch_nanochat;

enum { MODEL_BATCH = 256 };  /* rows that one step evaluates at most */

/* Buffers of one step, pages of which take memory when they are touched; sizes in floats per row where not said otherwise. */
struct work {
    float *x;                /* (MODEL_BATCH, n_embd) the residual stream */
    float *wide;             /* (MODEL_BATCH, n_wide) what projections write before it is used: q, k, v or the feed-forward's middle */
    float *mixed;            /* (MODEL_BATCH, n_mixed) what attention gives; what projections into the residual stream write */
    float *kept;             /* (MODEL_BATCH, n_kept) what later layers still need of earlier ones */
    float *in;               /* (MODEL_BATCH, n_in_max) input of projections, where their weights are floats */
    char *act;               /* the same quantized, in groups of ACT_GROUP */
    float *turns;            /* (MODEL_BATCH, n_rot) cosines and sines of the rows' positions */
    char *own;               /* (workers, own_bytes) per worker: ACT_FEW private inputs, and the probabilities of attention */
    int64_t n_wide, n_mixed, n_kept, n_in_max, n_rot;
    size_t own_q8, own_p, own_bytes, bytes;      /* own_..: where they are in a worker's own */
    void *pages;
};

struct gpt_model {
    gpt_file *file;
    const struct arch *arch;
    struct hparams h;
    struct kernels k;
    struct pool *pool;
    struct work work;
    void *layers;            /* the architecture's own structures */
    float **own;             /* vectors that were not f32 in the file, or are not in it */
    int n_own;
    int64_t n_bound;         /* tensors of the file that are fields now */
    int64_t n_params;        /* without biases of zeros */
    int64_t step_bytes;      /* weights that a step reads */
};

struct gpt_model *model_open(const char *path, int n_threads);
void model_close(struct gpt_model *m);

/* For architectures: each gives 0 or a GPT_E... code with a sentence. */
int model_key_int(const struct gpt_model *m, const char *suffix, int64_t min, int64_t max, int *value);   /* "<arch>.<suffix>" */
int model_key_float(const struct gpt_model *m, const char *suffix, float *value);
/* The same for keys that may be absent, which leaves *value as it is. */
int model_key_int_if(const struct gpt_model *m, const char *suffix, int64_t min, int64_t max, int *value);
int model_key_float_if(const struct gpt_model *m, const char *suffix, float *value);
/* The keys that every architecture has, and n_vocab from token_embd.weight; norm: the key's suffix of the norms' epsilon. */
int model_key_common(struct gpt_model *m, const char *norm);
float *model_floats(struct gpt_model *m, int64_t n);         /* freed with the model; NULL where there is no memory */
int model_bind(struct gpt_model *m, const struct binding *table, int n, int layer, void *fields);

#endif
