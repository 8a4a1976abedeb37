/* q2_k: blocks of 256 weights in 2 bits each, in 16 sub-blocks of 16.
 *
 *     | uint8 scales[16] | uint8 q[64] | f16 d | f16 dmin |      weight = d * (scales[s] & 15) * code - dmin * (scales[s] >> 4)
 *
 * Sub-block s is weights 16 s .. 16 s + 15. 128 weights share 32 bytes of q: weight 128 h + 32 k + j is bits 2 k, 2 k + 1 of q[32 h + j].
 */
#include "quant/fit.h"
#include "quant/quant.h"

static void q2_k_quantize(const float *x, int64_t n, void *w) {
    struct block_q2_k *out = w;
    struct fit_256 f;
    for (int64_t b = 0; b < n / 256; b++, x += 256) {
        fit_lines(x, 16, 3, 15, &f);
        memset(&out[b], 0, sizeof out[b]);
        out[b].d = f.d;
        out[b].dmin = f.dmin;
        for (int s = 0; s < 16; s++) out[b].scales[s] = (uint8_t)(f.scale[s] | f.min[s] << 4);
        for (int i = 0; i < 256; i++) out[b].q[i / 128 * 32 + i % 32] |= (uint8_t)(f.q[i] << 2 * (i % 128 / 32));
    }
}

static void q2_k_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q2_k *b = (const struct block_q2_k *)row + i / 8;
    float d = half_to_float(b->d), dmin = half_to_float(b->dmin);
    int g = (int)(i % 8);
    for (int s = 0; s < 2; s++) {
        c->d[s] = d * (float)(b->scales[2 * g + s] & 15);
        c->m[s] = -(dmin * (float)(b->scales[2 * g + s] >> 4));
    }
    for (int j = 0; j < 32; j++) c->q[j] = b->q[g / 4 * 32 + j] >> 2 * (g % 4) & 3;
}

const struct quant quant_q2_k = {"q2_k", 10, 256, sizeof(struct block_q2_k), FORM_16_MIN, 0, q2_k_codes, q2_k_quantize, NULL};
