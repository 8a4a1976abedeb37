/* kv.h: the keys and values of the tokens that sequences have seen.
 *
 *     keys    [sequence][layer][head][tile][head_dim][KV_TILE]     tiles of 16 positions side by side: a query meets 16 keys at a time
 *     values  [sequence][layer][head][position][v_stride]          rows padded with zeros to a multiple of 16
 *     tokens  [sequence][position]                                 what they are keys and values of
 *
 * Memory is taken page by page as positions are written, so a cache costs what it holds and not what it could hold.
 */
#ifndef PYGPT_KV_H
#define PYGPT_KV_H

#include <stddef.h>

#include "model/model.h"

struct kv {
    char *k, *v;             /* floats, or halves */
    int32_t *tokens;
    size_t k_bytes, v_bytes, token_bytes;
    int halves;
    int *length;             /* [n_sequence] positions held */
    int n_sequence, n_ctx, n_layer, n_head_kv, head_dim, v_stride;
};

int kv_init(struct kv *kv, const struct hparams *h, int n_sequence, int n_ctx);      /* n_ctx 0: the model's */
void kv_free(struct kv *kv);
const void *kv_keys(const struct kv *kv, int sequence, int layer, int head);
const void *kv_values(const struct kv *kv, int sequence, int layer, int head);
/* Writes one position of one head; k and v have head_dim values. */
void kv_write(const struct kv *kv, const struct kernels *kernels, int sequence, int layer, int head, int position, const float *k, const float *v);
int32_t *kv_tokens(const struct kv *kv, int sequence);
void kv_copy(const struct kv *from, int from_sequence, struct kv *to, int to_sequence);    /* of equal shape, the first positions */

#endif
