#include "model/kv.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/os.h"

/* Bytes of one head of one layer of one sequence. */
static size_t number_bytes(const struct kv *kv) { return kv->halves ? sizeof(uint16_t) : sizeof(float); }
static size_t head_keys(const struct kv *kv) { return (size_t)round_up(kv->n_ctx, KV_TILE) * (size_t)kv->head_dim * number_bytes(kv); }
static size_t head_values(const struct kv *kv) { return (size_t)kv->n_ctx * (size_t)kv->v_stride * number_bytes(kv); }

/* A context that was asked for must fit into the machine; the model's own takes memory only as it fills. */
int kv_init(struct kv *kv, const struct hparams *h, int n_sequence, int n_ctx) {
    *kv = (struct kv){.n_sequence = n_sequence, .n_ctx = n_ctx ? n_ctx : h->n_ctx, .n_layer = h->n_layer, .n_head_kv = h->n_head_kv,
                      .head_dim = h->head_dim, .v_stride = (int)round_up(h->head_dim, 16), .halves = h->halves};
    size_t heads, k, v, total;
    int impossible = __builtin_mul_overflow((size_t)n_sequence, (size_t)h->n_layer * (size_t)h->n_head_kv, &heads) ||
                     __builtin_mul_overflow(heads, head_keys(kv), &k) || __builtin_mul_overflow(heads, head_values(kv), &v) ||
                     __builtin_add_overflow(k, v, &total) || total > PTRDIFF_MAX || (n_ctx && total > os_physical_memory());
    if (!impossible) {
        kv->k_bytes = (size_t)i64_max(1, (int64_t)k);            /* a model without layers keeps nothing */
        kv->v_bytes = (size_t)i64_max(1, (int64_t)v);
        kv->token_bytes = (size_t)n_sequence * (size_t)kv->n_ctx * sizeof *kv->tokens;
        kv->k = os_pages(kv->k_bytes);
        kv->v = os_pages(kv->v_bytes);
        kv->tokens = os_pages(kv->token_bytes);
        kv->length = calloc((size_t)n_sequence, sizeof *kv->length);
    }
    if (kv->k && kv->v && kv->tokens && kv->length) return GPT_OK;
    double megabytes = ((double)head_keys(kv) + (double)head_values(kv)) * 1e-6 * n_sequence * h->n_layer * h->n_head_kv;
    kv_free(kv);
    return error_set(GPT_ENOMEM, "a context of %d tokens times %d sequences takes %.1f MB, and this machine has %.1f MB; ask for a smaller one",
                     kv->n_ctx, n_sequence, megabytes, (double)os_physical_memory() * 1e-6);
}

void kv_free(struct kv *kv) {
    os_pages_free(kv->k, kv->k_bytes);
    os_pages_free(kv->v, kv->v_bytes);
    os_pages_free(kv->tokens, kv->token_bytes);
    free(kv->length);
    kv->k = kv->v = NULL;
    kv->tokens = NULL;
    kv->length = NULL;
}

static size_t head_index(const struct kv *kv, int sequence, int layer, int head) {
    return ((size_t)sequence * (size_t)kv->n_layer + (size_t)layer) * (size_t)kv->n_head_kv + (size_t)head;
}

static char *keys_at(const struct kv *kv, int sequence, int layer, int head) {
    return kv->k + head_index(kv, sequence, layer, head) * head_keys(kv);
}
static char *values_at(const struct kv *kv, int sequence, int layer, int head) {
    return kv->v + head_index(kv, sequence, layer, head) * head_values(kv);
}

int32_t *kv_tokens(const struct kv *kv, int sequence) { return kv->tokens + (size_t)sequence * (size_t)kv->n_ctx; }

const void *kv_keys(const struct kv *kv, int sequence, int layer, int head) { return keys_at(kv, sequence, layer, head); }
const void *kv_values(const struct kv *kv, int sequence, int layer, int head) { return values_at(kv, sequence, layer, head); }

void kv_write(const struct kv *kv, const struct kernels *kernels, int sequence, int layer, int head, int position, const float *k, const float *v) {
    char *keys = keys_at(kv, sequence, layer, head), *values = values_at(kv, sequence, layer, head);
    size_t key = (size_t)(position / KV_TILE) * KV_TILE * (size_t)kv->head_dim + (size_t)(position % KV_TILE);
    size_t value = (size_t)position * (size_t)kv->v_stride;
    if (!kv->halves) {
        for (int d = 0; d < kv->head_dim; d++) ((float *)keys)[key + (size_t)d * KV_TILE] = k[d];
        memcpy((float *)values + value, v, (size_t)kv->head_dim * sizeof *v);
        return;
    }
    for (int d = 0; d < kv->head_dim; d += 64) {
        uint16_t part[64];
        int n = (int)i64_min(64, kv->head_dim - d);
        kernels->halves(k + d, n, part);
        for (int i = 0; i < n; i++) ((uint16_t *)keys)[key + (size_t)(d + i) * KV_TILE] = part[i];
    }
    kernels->halves(v, kv->head_dim, (uint16_t *)values + value);
}

void kv_copy(const struct kv *from, int from_sequence, struct kv *to, int to_sequence) {
    int length = from->length[from_sequence];
    size_t k_bytes = (size_t)round_up(length, KV_TILE) * (size_t)from->head_dim * number_bytes(from);
    size_t v_bytes = (size_t)length * (size_t)from->v_stride * number_bytes(from);
    for (int layer = 0; layer < from->n_layer; layer++)
        for (int head = 0; head < from->n_head_kv; head++) {
            memcpy(keys_at(to, to_sequence, layer, head), keys_at(from, from_sequence, layer, head), k_bytes);
            memcpy(values_at(to, to_sequence, layer, head), values_at(from, from_sequence, layer, head), v_bytes);
        }
    memcpy(kv_tokens(to, to_sequence), kv_tokens(from, from_sequence), (size_t)length * sizeof *to->tokens);
    to->length[to_sequence] = length;
}
