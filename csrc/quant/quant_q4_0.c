/* q4_0 and q4_1: blocks of 32 weights in 4 bits each.
 *
 *     q4_0    | f16 d | uint8 q[16] |              weight = d * (code - 8)
 *     q4_1    | f16 d | f16 m | uint8 q[16] |      weight = d * code + m
 *
 * Code j is the low nibble of q[j], code 16 + j the high one.
 *
 * q4_0's d takes the sign that puts the weight of largest magnitude at -8, the end that the range has and +8 lacks.
 */
#include <math.h>

#include "quant/quant.h"

static uint8_t nibble(float x) { return (uint8_t)fmaxf(0, fminf(15, x + 8.5f)); }

static void q4_0_quantize(const float *x, int64_t n, void *w) {
    struct block_q4_0 *out = w;
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        float extreme = 0;
        for (int j = 0; j < 32; j++)
            if (fabsf(x[j]) > fabsf(extreme)) extreme = x[j];
        float d = extreme / -8, scale = fabsf(d) >= 0x1p-126f ? 1 / d : 0;      /* 1 / d of a smaller one is infinite */
        out[b].d = float_to_half(d);
        for (int j = 0; j < 16; j++) out[b].q[j] = (uint8_t)(nibble(x[j] * scale) | nibble(x[16 + j] * scale) << 4);
    }
}

static void q4_0_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q4_0 *b = (const struct block_q4_0 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    for (int j = 0; j < 16; j++) {
        c->q[j] = b->q[j] & 15;
        c->q[16 + j] = b->q[j] >> 4;
    }
}

static void q4_1_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q4_1 *b = (const struct block_q4_1 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    c->m[0] = c->m[1] = half_to_float(b->m);
    for (int j = 0; j < 16; j++) {
        c->q[j] = b->q[j] & 15;
        c->q[16 + j] = b->q[j] >> 4;
    }
}

const struct quant quant_q4_0 = {"q4_0", 2, 32, sizeof(struct block_q4_0), FORM_32, 8, q4_0_codes, q4_0_quantize, NULL};
const struct quant quant_q4_1 = {"q4_1", 3, 32, sizeof(struct block_q4_1), FORM_32_MIN, 0, q4_1_codes, NULL, NULL};
