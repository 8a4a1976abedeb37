/* q3_k: blocks of 256 weights in 3 bits each, in 16 sub-blocks of 16.
 *
 *     | uint8 hmask[32] | uint8 q[64] | uint8 scales[12] | f16 d |      weight = d * (scale - 32) * (code - 4)
 *
 * Sub-block s is weights 16 s .. 16 s + 15. 128 weights share 32 bytes of q: weight 128 h + 32 k + j is bits 2 k, 2 k + 1 of q[32 h + j], and
 * its third bit is bit 4 h + k of hmask[j]. Of scale s, the low 4 bits are in a nibble of scales[s % 8], the low one for s < 8; the high 2
 * are bits 2 (s / 4), 2 (s / 4) + 1 of scales[8 + s % 4].
 */
#include "quant/fit.h"
#include "quant/quant.h"

static int scale_get(const uint8_t *scales, int s) {
    return ((scales[s % 8] >> 4 * (s / 8) & 15) | (scales[8 + s % 4] >> 2 * (s / 4) & 3) << 4) - 32;
}

static const struct grid grid = {-4, 3, 0, NULL};

static void q3_k_quantize(const float *x, int64_t n, void *w) {
    struct block_q3_k *out = w;
    struct fit_256 f;
    for (int64_t b = 0; b < n / 256; b++, x += 256) {
        fit_scales(x, 16, &grid, -32, &f);
        memset(&out[b], 0, sizeof out[b]);
        out[b].d = f.d;
        for (int s = 0; s < 16; s++) {
            int scale = f.scale[s] + 32;
            out[b].scales[s % 8] |= (uint8_t)((scale & 15) << 4 * (s / 8));
            out[b].scales[8 + s % 4] |= (uint8_t)((scale >> 4) << 2 * (s / 4));
        }
        for (int i = 0; i < 256; i++) {
            int code = f.q[i] + 4;
            out[b].q[i / 128 * 32 + i % 32] |= (uint8_t)((code & 3) << 2 * (i % 128 / 32));
            out[b].hmask[i % 32] |= (uint8_t)((code >> 2) << i / 32);
        }
    }
}

static void q3_k_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q3_k *b = (const struct block_q3_k *)row + i / 8;
    float d = half_to_float(b->d);
    int g = (int)(i % 8);
    for (int s = 0; s < 2; s++) c->d[s] = d * (float)scale_get(b->scales, 2 * g + s);
    for (int j = 0; j < 32; j++) c->q[j] = (uint8_t)((b->q[g / 4 * 32 + j] >> 2 * (g % 4) & 3) | (b->hmask[j] >> g & 1) << 2);
}

const struct quant quant_q3_k = {"q3_k", 11, 256, sizeof(struct block_q3_k), FORM_16, 4, q3_k_codes, q3_k_quantize, NULL};
