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

static void q8_0_dequantize(const void *w, int64_t n, float *x) {
    const struct block_q8_0 *in = w;
    for (int64_t b = 0; b < n / 32; b++) {
        float d = half_to_float(in[b].d);
        for (int j = 0; j < 32; j++) x[b * 32 + j] = d * in[b].q[j];
    }
}

static float q8_0_dot(const void *w, const void *act, int64_t n) {
    const struct block_q8_0 *in = w;
    const int8_t *q = act;
    const float *d = (const float *)((const char *)act + act_q8_d(n));
    float sum = 0;
    for (int64_t b = 0; b < n / 32; b++) {
        int32_t s = 0;
        for (int j = 0; j < 32; j++) s += in[b].q[j] * q[b * 32 + j];
        sum += half_to_float(in[b].d) * d[b] * (float)s;
    }
    return sum;
}

const struct quant quant_q8_0 = {"q8_0", 8, 32, sizeof(struct block_q8_0), ACT_Q8, q8_0_quantize, q8_0_dequantize, q8_0_dot};
