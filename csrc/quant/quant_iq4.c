/* iq4_nl and iq4_xs: 4 bits per weight that choose one of 16 values, closer together near zero, where most weights are.
 *
 *     iq4_nl    32 weights    | f16 d | uint8 q[16] |      weight = d * value
 *     iq4_xs    256           | f16 d | uint16 scales_h | uint8 scales_l[4] | uint8 q[128] |      weight = d * (scale - 32) * value
 *
 * Sub-block s of iq4_xs is weights 32 s .. 32 s + 31 and bytes 16 s .. of q. Its scale's low 4 bits are a nibble of scales_l[s / 2], the low
 * one if s is even; the high 2 are bits 2 s, 2 s + 1 of scales_h. In 16 bytes, weight j has the low nibble of byte j, 16 + j the high one.
 */
#include "quant/fit.h"
#include "quant/quant.h"

enum { ZERO = 128 };
const uint8_t iq4_values[16] = {             /* -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 */
    ZERO - 127, ZERO - 104, ZERO - 83, ZERO - 65, ZERO - 49, ZERO - 35, ZERO - 22, ZERO - 10,
    ZERO + 1, ZERO + 13, ZERO + 25, ZERO + 38, ZERO + 53, ZERO + 69, ZERO + 89, ZERO + 113,
};

static const int8_t signed_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const struct grid grid = {-127, 113, 16, signed_values};

static int nibble(int8_t value) {
    int k = 0;
    while (signed_values[k] < value) k++;
    return k;
}

static void iq4_nl_quantize(const float *x, int64_t n, void *w) {
    struct block_iq4_nl *out = w;
    int8_t q[32];
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        out[b].d = fit_half(fit_scale(x, 32, &grid));
        fit_codes(x, 32, (struct line){half_to_float(out[b].d), 0}, &grid, q);
        for (int j = 0; j < 16; j++) out[b].q[j] = (uint8_t)(nibble(q[j]) | nibble(q[16 + j]) << 4);
    }
}

static void iq4_xs_quantize(const float *x, int64_t n, void *w) {
    struct block_iq4_xs *out = w;
    struct fit_256 f;
    for (int64_t b = 0; b < n / 256; b++, x += 256) {
        fit_scales(x, 32, &grid, -32, &f);
        memset(&out[b], 0, sizeof out[b]);
        out[b].d = f.d;
        for (int s = 0; s < 8; s++) {
            int scale = f.scale[s] + 32;
            out[b].scales_l[s / 2] |= (uint8_t)((scale & 15) << 4 * (s % 2));
            out[b].scales_h |= (uint16_t)(scale >> 4 << 2 * s);
        }
        for (int i = 0; i < 256; i++) out[b].q[i / 32 * 16 + i % 16] |= (uint8_t)(nibble(f.q[i]) << 4 * (i / 16 % 2));
    }
}

static void values(const uint8_t *q, struct codes *c) {
    for (int j = 0; j < 16; j++) {
        c->q[j] = iq4_values[q[j] & 15];
        c->q[16 + j] = iq4_values[q[j] >> 4];
    }
}

static void iq4_nl_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_iq4_nl *b = (const struct block_iq4_nl *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    values(b->q, c);
}

static void iq4_xs_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_iq4_xs *b = (const struct block_iq4_xs *)row + i / 8;
    int s = (int)(i % 8), scale = (b->scales_l[s / 2] >> 4 * (s % 2) & 15) | (b->scales_h >> 2 * s & 3) << 4;
    c->d[0] = c->d[1] = half_to_float(b->d) * (float)(scale - 32);
    values(b->q + 16 * s, c);
}

const struct quant quant_iq4_nl = {"iq4_nl", 20, 32, sizeof(struct block_iq4_nl), FORM_32, ZERO, iq4_nl_codes, iq4_nl_quantize, NULL};
const struct quant quant_iq4_xs = {"iq4_xs", 23, 256, sizeof(struct block_iq4_xs), FORM_32, ZERO, iq4_xs_codes, iq4_xs_quantize, NULL};
