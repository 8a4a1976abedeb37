/* q4_k and q5_k: blocks of 256 weights in 4 or 5 bits each, in 8 sub-blocks of 32.
 *
 *     q4_k    | f16 d | f16 dmin | uint8 scales[12] | uint8 q[128] |                     weight = d * scale * code - dmin * min
 *     q5_k    | f16 d | f16 dmin | uint8 scales[12] | uint8 qh[32] | uint8 q[128] |      the same
 *
 * Sub-block s is weights 32 s .. 32 s + 31. Two of them share 32 bytes of q: the low 4 bits of weight j of sub-block s are a nibble of
 * q[32 (s / 2) + j], the low one if s is even; the fifth is bit s of qh[j]. scale and min have 6 bits each, in scales (S and M are those of
 * sub-blocks 0 .. 3, s and m those of 4 .. 7, high bits first):
 *
 *     bytes 0 .. 3: ssSSSSSS      4 .. 7: mmMMMMMM      8 .. 11: mmmmssss
 */
#include "quant/fit.h"
#include "quant/quant.h"

static void scales_put(const struct fit_256 *f, uint8_t *scales) {
    for (int s = 0; s < 4; s++) {
        scales[s] = (uint8_t)(f->scale[s] | f->scale[4 + s] >> 4 << 6);
        scales[4 + s] = (uint8_t)(f->min[s] | f->min[4 + s] >> 4 << 6);
        scales[8 + s] = (uint8_t)((f->scale[4 + s] & 15) | (f->min[4 + s] & 15) << 4);
    }
}

static void q4_k_quantize(const float *x, int64_t n, void *w) {
    struct block_q4_k *out = w;
    struct fit_256 f;
    for (int64_t b = 0; b < n / 256; b++, x += 256) {
        fit_lines(x, 32, 15, 63, &f);
        memset(&out[b], 0, sizeof out[b]);
        out[b].d = f.d;
        out[b].dmin = f.dmin;
        scales_put(&f, out[b].scales);
        for (int i = 0; i < 256; i++) out[b].q[i / 64 * 32 + i % 32] |= (uint8_t)(f.q[i] << 4 * (i / 32 % 2));
    }
}

static void q5_k_quantize(const float *x, int64_t n, void *w) {
    struct block_q5_k *out = w;
    struct fit_256 f;
    for (int64_t b = 0; b < n / 256; b++, x += 256) {
        fit_lines(x, 32, 31, 63, &f);
        memset(&out[b], 0, sizeof out[b]);
        out[b].d = f.d;
        out[b].dmin = f.dmin;
        scales_put(&f, out[b].scales);
        for (int i = 0; i < 256; i++) {
            out[b].q[i / 64 * 32 + i % 32] |= (uint8_t)((f.q[i] & 15) << 4 * (i / 32 % 2));
            out[b].qh[i % 32] |= (uint8_t)((f.q[i] >> 4) << i / 32);
        }
    }
}

static void q4_k_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q4_k *b = (const struct block_q4_k *)row + i / 8;
    int s = (int)(i % 8);
    c->d[0] = c->d[1] = half_to_float(b->d) * (float)k_scale(b->scales, s);
    c->m[0] = c->m[1] = -(half_to_float(b->dmin) * (float)k_min(b->scales, s));
    for (int j = 0; j < 32; j++) c->q[j] = b->q[s / 2 * 32 + j] >> 4 * (s % 2) & 15;
}

static void q5_k_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q5_k *b = (const struct block_q5_k *)row + i / 8;
    int s = (int)(i % 8);
    c->d[0] = c->d[1] = half_to_float(b->d) * (float)k_scale(b->scales, s);
    c->m[0] = c->m[1] = -(half_to_float(b->dmin) * (float)k_min(b->scales, s));
    for (int j = 0; j < 32; j++) c->q[j] = (uint8_t)((b->q[s / 2 * 32 + j] >> 4 * (s % 2) & 15) | (b->qh[j] >> s & 1) << 4);
}

const struct quant quant_q4_k = {"q4_k", 12, 256, sizeof(struct block_q4_k), FORM_32_MIN, 0, q4_k_codes, q4_k_quantize, NULL};
const struct quant quant_q5_k = {"q5_k", 13, 256, sizeof(struct block_q5_k), FORM_32_MIN, 0, q5_k_codes, q5_k_quantize, NULL};
