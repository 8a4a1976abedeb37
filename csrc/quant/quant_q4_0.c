/* q4_0: blocks of 32 weights with one scale.
 *
 *     | f16 d | uint8 q[16] |         weight j = d * (q[j] & 15) - 8 d,  weight 16 + j = d * (q[j] >> 4) - 8 d
 *
 * d takes the sign that puts the weight of largest magnitude at -8, the end that the range has and +8 lacks.
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

static void q4_0_dequantize(const void *w, int64_t n, float *x) {
    const struct block_q4_0 *in = w;
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        float d = half_to_float(in[b].d);
        for (int j = 0; j < 16; j++) {
            x[j] = d * ((in[b].q[j] & 15) - 8);
            x[16 + j] = d * ((in[b].q[j] >> 4) - 8);
        }
    }
}

static float q4_0_dot(const void *w, const void *act, int64_t n) {
    const struct block_q4_0 *in = w;
    const int8_t *q = act;
    const float *d = (const float *)((const char *)act + act_q8_d(n));
    float sum = 0;
    for (int64_t b = 0; b < n / 32; b++, q += 32) {
        int32_t s = 0;
        for (int j = 0; j < 16; j++) s += ((in[b].q[j] & 15) - 8) * q[j] + ((in[b].q[j] >> 4) - 8) * q[16 + j];
        sum += half_to_float(in[b].d) * d[b] * (float)s;
    }
    return sum;
}

const struct quant quant_q4_0 = {"q4_0", 2, 32, sizeof(struct block_q4_0), ACT_Q8, q4_0_quantize, q4_0_dequantize, q4_0_dot};
