#include "model/kv.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/os.h"

/* Floats of one head of one layer of one sequence. */
static size_t head_keys(const struct kv *kv) { return (size_t)round_up(kv->n_ctx, KV_TILE) * (size_t)kv->head_dim; }
static size_t head_values(const struct kv *kv) { return (size_t)kv->n_ctx * (size_t)kv->v_stride; }

int kv_init(struct kv *kv, const struct hparams *h, int n_sequence, int n_ctx) {
    *kv = (struct kv){.n_sequence = n_sequence, .n_ctx = n_ctx, .n_layer = h->n_layer, .n_head_kv = h->n_head_kv,
                      .head_dim = h->head_dim, .v_stride = (int)round_up(h->head_dim, 16)};
    size_t heads, k, v, total;
    int overflow = __builtin_mul_overflow((size_t)n_sequence, (size_t)h->n_layer * (size_t)h->n_head_kv, &heads) ||
                   __builtin_mul_overflow(heads, head_keys(kv) * sizeof(float), &k) ||
                   __builtin_mul_overflow(heads, head_values(kv) * sizeof(float), &v) || __builtin_add_overflow(k, v, &total) ||
                   total > PTRDIFF_MAX;
    if (!overflow) {
        kv->k_bytes = k;
        kv->v_bytes = v;
        kv->k = os_pages(k);
        kv->v = os_pages(v);
        kv->length = calloc((size_t)n_sequence, sizeof *kv->length);
    }
    if (kv->k && kv->v && kv->length) return GPT_OK;
    kv_free(kv);
    return error_set(GPT_ENOMEM, "no memory for a context of %d tokens times %d sequences (%.1f MB); ask for a smaller one", n_ctx,
                     n_sequence, ((double)head_keys(kv) + (double)head_values(kv)) * 4e-6 * n_sequence * h->n_layer * h->n_head_kv);
}

void kv_free(struct kv *kv) {
    os_pages_free(kv->k, kv->k_bytes);
    os_pages_free(kv->v, kv->v_bytes);
    free(kv->length);
    kv->k = kv->v = NULL;
    kv->length = NULL;
}

static size_t head_index(const struct kv *kv, int sequence, int layer, int head) {
    return ((size_t)sequence * (size_t)kv->n_layer + (size_t)layer) * (size_t)kv->n_head_kv + (size_t)head;
}

float *kv_keys(const struct kv *kv, int sequence, int layer, int head) {
    return kv->k + head_index(kv, sequence, layer, head) * head_keys(kv);
}

float *kv_values(const struct kv *kv, int sequence, int layer, int head) {
    return kv->v + head_index(kv, sequence, layer, head) * head_values(kv);
}

void kv_write(const struct kv *kv, int sequence, int layer, int head, int position, const float *k, const float *v) {
    float *keys = kv_keys(kv, sequence, layer, head) + (size_t)(position / KV_TILE) * KV_TILE * (size_t)kv->head_dim;
    for (int d = 0; d < kv->head_dim; d++) keys[d * KV_TILE + position % KV_TILE] = k[d];
    memcpy(kv_values(kv, sequence, layer, head) + (size_t)position * (size_t)kv->v_stride, v, (size_t)kv->head_dim * sizeof *v);
}

void kv_copy(const struct kv *from, int from_sequence, struct kv *to, int to_sequence) {
    int length = from->length[from_sequence];
    size_t k_bytes = (size_t)round_up(length, KV_TILE) * (size_t)from->head_dim * sizeof(float);
    size_t v_bytes = (size_t)length * (size_t)from->v_stride * sizeof(float);
    for (int layer = 0; layer < from->n_layer; layer++)
        for (int head = 0; head < from->n_head_kv; head++) {
            memcpy(kv_keys(to, to_sequence, layer, head), kv_keys(from, from_sequence, layer, head), k_bytes);
            memcpy(kv_values(to, to_sequence, layer, head), kv_values(from, from_sequence, layer, head), v_bytes);
        }
    to->length[to_sequence] = length;
}
