/* q6_k: blocks of 256 weights in 6 bits each, in 16 sub-blocks of 16.
 *
 *     | uint8 q[128] | uint8 qh[64] | int8 scales[16] | f16 d |      weight = d * scales[s] * (code - 32)
 *
 * Sub-block s is weights 16 s .. 16 s + 15. 128 weights share 64 bytes of q and 32 of qh: of weight 128 h + 32 k + j, the low 4 bits are a
 * nibble of q[64 h + 32 (k % 2) + j], the low one for k < 2; the high 2 are bits 2 k, 2 k + 1 of qh[32 h + j].
 */
#include "quant/fit.h"
#include "quant/quant.h"

static const struct grid grid = {-32, 31, 0, NULL};

static void q6_k_quantize(const float *x, int64_t n, void *w) {
    struct block_q6_k *out = w;
    struct fit_256 f;
    for (int64_t b = 0; b < n / 256; b++, x += 256) {
        fit_scales(x, 16, &grid, -128, &f);
        memset(&out[b], 0, sizeof out[b]);
        out[b].d = f.d;
        for (int s = 0; s < 16; s++) out[b].scales[s] = (int8_t)f.scale[s];
        for (int i = 0; i < 256; i++) {
            int code = f.q[i] + 32, h = i / 128, k = i % 128 / 32, j = i % 32;
            out[b].q[64 * h + 32 * (k % 2) + j] |= (uint8_t)((code & 15) << 4 * (k / 2));
            out[b].qh[32 * h + j] |= (uint8_t)((code >> 4) << 2 * k);
        }
    }
}

static void q6_k_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q6_k *b = (const struct block_q6_k *)row + i / 8;
    float d = half_to_float(b->d);
    int g = (int)(i % 8), h = g / 4, k = g % 4;
    for (int s = 0; s < 2; s++) c->d[s] = d * (float)b->scales[2 * g + s];
    for (int j = 0; j < 32; j++)
        c->q[j] = (uint8_t)((b->q[64 * h + 32 * (k % 2) + j] >> 4 * (k / 2) & 15) | (b->qh[32 * h + j] >> 2 * k & 3) << 4);
}

const struct quant quant_q6_k = {"q6_k", 14, 256, sizeof(struct block_q6_k), FORM_16, 32, q6_k_codes, q6_k_quantize, NULL};
