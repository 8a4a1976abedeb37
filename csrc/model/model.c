#include "model/model.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/os.h"
#include "file/gguf.h"
#include "model/kv.h"

/* The table: to add an architecture, write arch_<name>.c and add its row. */
const struct arch *const archs[] = {
    &arch_gpt2, &arch_gpt, &arch_bigram, &arch_llama, &arch_qwen2, &arch_qwen3, &arch_nanochat,
};
const int n_archs = countof(archs);

/* ---- keys and tensors ---- */

int model_key_int(const struct gpt_model *m, const char *suffix, int64_t min, int64_t max, int *value) {
    char name[128];
    int64_t wide;
    snprintf(name, sizeof name, "%s.%s", m->arch->name, suffix);
    int rc = gguf_int(m->file, name, min, max, &wide);
    if (rc == GPT_OK) *value = (int)wide;
    return rc;
}

int model_key_float(const struct gpt_model *m, const char *suffix, float *value) {
    char name[128];
    double wide;
    snprintf(name, sizeof name, "%s.%s", m->arch->name, suffix);
    int rc = gguf_float(m->file, name, &wide);
    if (rc == GPT_OK && !(fabs(wide) <= FLT_MAX))
        return error_set(GPT_EFORMAT, "%s: %s is %g, which is no number of 32 bits; the file is damaged", gguf_path(m->file), name, wide);
    if (rc == GPT_OK) *value = (float)wide;
    return rc;
}

static int has_key(const struct gpt_model *m, const char *suffix) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", m->arch->name, suffix);
    return gguf_find(m->file, name) != NULL;
}

int model_key_int_if(const struct gpt_model *m, const char *suffix, int64_t min, int64_t max, int *value) {
    return has_key(m, suffix) ? model_key_int(m, suffix, min, max, value) : GPT_OK;
}

int model_key_float_if(const struct gpt_model *m, const char *suffix, float *value) {
    return has_key(m, suffix) ? model_key_float(m, suffix, value) : GPT_OK;
}

int model_key_common(struct gpt_model *m, const char *norm) {
    struct hparams *h = &m->h;
    const struct gpt_tensor *tokens = gguf_find_tensor(m->file, "token_embd.weight");
    int rc;
    if (!tokens || tokens->shape[1] > 1 << 24)
        return error_set(GPT_EFORMAT, "%s: has no usable tensor token_embd.weight; it is incomplete, convert it again", gguf_path(m->file));
    h->n_vocab = (int)tokens->shape[1];
    if ((rc = model_key_int(m, "context_length", 1, 1 << 24, &h->n_ctx)) || (rc = model_key_int(m, "block_count", 1, 1 << 16, &h->n_layer)) ||
        (rc = model_key_int(m, "embedding_length", 1, 1 << 20, &h->n_embd)) ||
        (rc = model_key_int(m, "feed_forward_length", 1, 1 << 22, &h->n_ff)) ||
        (rc = model_key_int(m, "attention.head_count", 1, 1 << 16, &h->n_head)) || (rc = model_key_float(m, norm, &h->norm_eps)))
        return rc;
    if (!(h->norm_eps >= 0 && h->norm_eps <= 1))
        return error_set(GPT_EFORMAT, "%s: %s.%s is %g; expected 0 to 1; the file is damaged", gguf_path(m->file), m->arch->name, norm,
                         (double)h->norm_eps);
    if (h->n_layer > gguf_n_tensors(m->file))
        return error_set(GPT_EFORMAT, "%s: claims %d layers with %lld tensors; it is incomplete, convert it again", gguf_path(m->file),
                         h->n_layer, (long long)gguf_n_tensors(m->file));
    return GPT_OK;
}

float *model_floats(struct gpt_model *m, int64_t n) {
    float **list = realloc(m->own, (size_t)(m->n_own + 1) * sizeof *list);
    if (!list) return NULL;
    m->own = list;
    return list[m->n_own++] = malloc((size_t)n * sizeof **list);
}

static int bind_vector(struct gpt_model *m, const struct gpt_tensor *t, const float **field) {
    if (t->type == (int32_t)quant_f32.id) {
        *field = t->data;
        return GPT_OK;
    }
    int64_t n = t->shape[0] * t->shape[1];
    float *copy = model_floats(m, n);
    if (!copy) return error_set(GPT_ENOMEM, "%s: no memory for tensor %s", gguf_path(m->file), t->name);
    quant_dequantize(quant_find((uint32_t)t->type), t->data, n, copy);
    *field = copy;
    return GPT_OK;
}

static int bind_one(struct gpt_model *m, const struct binding *b, int layer, void *fields) {
    char name[128];
    snprintf(name, sizeof name, b->name, layer);
    const struct gpt_tensor *t = gguf_find_tensor(m->file, name);
    if (!t && b->optional) return GPT_OK;
    if (!t) return error_set(GPT_EFORMAT, "%s: has no tensor %s; it is incomplete, convert it again", gguf_path(m->file), name);
    if (t->shape[0] != b->n_in || t->shape[1] != b->n_out || t->shape[2] != 1 || t->shape[3] != 1)
        return error_set(GPT_EFORMAT, "%s: tensor %s has shape (%lld, %lld%s); expected (%lld, %lld); the file is damaged",
                         gguf_path(m->file), name, (long long)t->shape[1], (long long)t->shape[0],
                         t->shape[2] == 1 && t->shape[3] == 1 ? "" : ", and more", (long long)b->n_out, (long long)b->n_in);
    m->n_bound++;
    void *field = (char *)fields + b->offset;
    if (b->kind == BIND_VECTOR) return bind_vector(m, t, field);
    const struct quant *q = quant_find((uint32_t)t->type);
    *(struct weight *)field = (struct weight){q, t->data, quant_row_bytes(q, b->n_in), b->n_in, b->n_out};
    if (q->codes) m->h.halves = 1;
    return GPT_OK;
}

int model_bind(struct gpt_model *m, const struct binding *table, int n, int layer, void *fields) {
    int rc = GPT_OK;
    for (int i = 0; i < n && !rc; i++) rc = bind_one(m, &table[i], layer, fields);
    return rc;
}

/* ---- the buffers of a step ---- */

static int work_init(struct work *w, const struct hparams *h, int n_workers) {
    int64_t n_in = round_up(w->n_in_max, 32), groups = (MODEL_BATCH + ACT_GROUP - 1) / ACT_GROUP;
    w->own_q8 = (size_t)round_up(ACT_FEW * w->n_in_max * 4, 128);
    w->own_p = w->own_q8 + (size_t)round_up(ACT_FEW * (int64_t)act_q8_bytes(n_in), 128);
    w->own_bytes = w->own_p + (size_t)round_up(ATTENTION_MAX * (round_up(h->n_ctx, KV_TILE) + KV_TILE) * 4, 128);
    int64_t parts[] = {
        MODEL_BATCH * (int64_t)h->n_embd * 4, MODEL_BATCH * w->n_wide * 4, MODEL_BATCH * w->n_mixed * 4,
        MODEL_BATCH * w->n_kept * 4, MODEL_BATCH * w->n_in_max * 4, groups * (int64_t)act_group_bytes(n_in), MODEL_BATCH * w->n_rot * 4,
        (int64_t)w->own_bytes * n_workers,
    };
    void *fields[] = {&w->x, &w->wide, &w->mixed, &w->kept, &w->in, &w->act, &w->turns, &w->own};
    for (size_t i = 0; i < countof(parts); i++) w->bytes += (size_t)round_up(parts[i], 128);
    w->pages = os_pages(w->bytes);
    if (!w->pages) return error_set(GPT_ENOMEM, "no memory for %zu bytes of buffers", w->bytes);
    char *at = w->pages;
    for (size_t i = 0; i < countof(parts); i++) {
        memcpy(fields[i], &at, sizeof at);
        at += round_up(parts[i], 128);
    }
    return GPT_OK;
}

/* ---- opening ---- */

/* Parameters, that is. A bias of zeros is what a model without biases is written with; rope's divisors follow from settings. */
static int is_learned(const struct gpt_tensor *t) {
    const char *dot = strrchr(t->name, '.');
    if (!strcmp(t->name, "rope_freqs.weight")) return 0;
    if (t->n_dims > 1 || !dot || strcmp(dot, ".bias")) return 1;
    for (int64_t i = 0; i < t->bytes; i++)
        if (((const char *)t->data)[i]) return 1;
    return 0;
}

static int find_arch(struct gpt_model *m) {
    const char *text;
    int64_t length;
    char known[256] = "";
    if (gguf_n_tensors(m->file) == 0)
        return error_set(GPT_EUNSUPPORTED, "%s: holds no tensors, only keys (a vocabulary?); expected a model", gguf_path(m->file));
    int rc = gguf_string(m->file, "general.architecture", &text, &length);
    if (rc) return rc;
    for (int i = 0; i < n_archs; i++)
        if ((int64_t)strlen(archs[i]->name) == length && memcmp(archs[i]->name, text, (size_t)length) == 0) m->arch = archs[i];
    for (int i = 0, at = 0; i < n_archs; i++)
        at += snprintf(known + at, sizeof known - (size_t)at, "%s%s", i ? ", " : "", archs[i]->name);
    if (!m->arch)
        return error_set(GPT_EUNSUPPORTED, "%s: its architecture is %.*s, which is not supported yet; supported: %s",
                         gguf_path(m->file), (int)i64_min(length, 64), text, known);
    return GPT_OK;
}

struct gpt_model *model_open(const char *path, int n_threads) {
    struct gpt_model *m = calloc(1, sizeof *m);
    if (!m) {
        error_set(GPT_ENOMEM, "%s: no memory to open it", path);
        return NULL;
    }
    int isa = kernels_choose();
    if (isa < 0) goto fail;
    kernels_init(&m->k, isa);
    m->file = gguf_open(path);
    if (!m->file || find_arch(m) || m->arch->load(m)) goto fail;
    if (m->n_bound != gguf_n_tensors(m->file)) {
        error_set(GPT_EUNSUPPORTED, "%s: has %lld tensors, of which %s knows %lld; what the others do cannot be left out", path,
                  (long long)gguf_n_tensors(m->file), m->arch->name, (long long)m->n_bound);
        goto fail;
    }
    for (int64_t i = 0; i < gguf_n_tensors(m->file); i++) {
        const struct gpt_tensor *t = gguf_tensor(m->file, i);
        if (is_learned(t)) m->n_params += t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
    }
    m->pool = pool_new(n_threads ? n_threads : (int)i64_min(os_cpu_count(), POOL_MAX));
    if (!m->pool || work_init(&m->work, &m->h, pool_size(m->pool))) goto fail;
    return m;
fail:
    model_close(m);
    return NULL;
}

void model_close(struct gpt_model *m) {
    if (!m) return;
    pool_free(m->pool);
    os_pages_free(m->work.pages, m->work.bytes);
    for (int i = 0; i < m->n_own; i++) free(m->own[i]);
    free(m->own);
    if (m->arch && m->arch->free) m->arch->free(m);
    free(m->layers);
    gguf_close(m->file);
    free(m);
}
