/* q8_0: blocks of 32 weights with one scale.
 *
 *     | f16 d | int8 q[32] |          weight j = d * q[j],  d = max|weight| / 127
 */
#include <math.h>

#include "quant/quant.h"

static void q8_0_quantize(const float *x, int64_t n, void *w) {
    struct block_q8_0 *out = w;
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        float max = 0;
        for (int j = 0; j < 32; j++) max = fmaxf(max, fabsf(x[j]));
        float d = max / 127, scale = d >= 0x1p-126f ? 1 / d : 0;      /* 1 / d of a smaller one is infinite */
        out[b].d = float_to_half(d);
        for (int j = 0; j < 32; j++) out[b].q[j] = (int8_t)roundf(fmaxf(-127, fminf(127, x[j] * scale)));
    }
}

static void q8_0_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q8_0 *b = (const struct block_q8_0 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    for (int j = 0; j < 32; j++) c->q[j] = (uint8_t)(b->q[j] + 128);
}

const struct quant quant_q8_0 = {"q8_0", 8, 32, sizeof(struct block_q8_0), FORM_32, 128, q8_0_codes, q8_0_quantize, NULL};
