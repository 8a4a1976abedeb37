/* mxfp4: blocks of 32 numbers of 4 bits (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) with a power of two as their scale.
 *
 *     | uint8 e | uint8 q[16] |      weight = 2^(e - 127) * number
 *
 * Number j is the low nibble of q[j], number 16 + j the high one. OCP Microscaling Formats (MX) 1.0, section 5; its NaN, e = 255, is a
 * number in GGUF files. The table holds the numbers doubled, and the scale halved, so that they are whole; -0 is 0.
 */
#include <math.h>

#include "quant/fit.h"
#include "quant/quant.h"

enum { ZERO = 16 };
const uint8_t mxfp4_values[16] = {
    ZERO, ZERO + 1, ZERO + 2, ZERO + 3, ZERO + 4, ZERO + 6, ZERO + 8, ZERO + 12,
    ZERO, ZERO - 1, ZERO - 2, ZERO - 3, ZERO - 4, ZERO - 6, ZERO - 8, ZERO - 12,
};

static const int8_t signed_values[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
static const struct grid grid = {-12, 12, 15, signed_values};

static int nibble(int8_t value) {
    int k = 0;
    while (mxfp4_values[k] != ZERO + value) k++;
    return k;
}

static void mxfp4_quantize(const float *x, int64_t n, void *w) {
    struct block_mxfp4 *out = w;
    int8_t q[32];
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        float max = 0, least = INFINITY;
        int exponent;
        for (int j = 0; j < 32; j++) max = fmaxf(max, fabsf(x[j]));
        frexpf(max, &exponent);                          /* max < 2^exponent */
        out[b].e = 0;
        for (int e = exponent + 123; e <= exponent + 126; e++) {
            if (e < 0 || e > 254) continue;
            float error = fit_error(x, 32, (struct line){mxfp4_scale((uint8_t)e), 0}, &grid);
            if (error < least) {
                least = error;
                out[b].e = (uint8_t)e;
            }
        }
        fit_codes(x, 32, (struct line){mxfp4_scale(out[b].e), 0}, &grid, q);
        for (int j = 0; j < 16; j++) out[b].q[j] = (uint8_t)(nibble(q[j]) | nibble(q[16 + j]) << 4);
    }
}

static void mxfp4_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_mxfp4 *b = (const struct block_mxfp4 *)row + i;
    c->d[0] = c->d[1] = mxfp4_scale(b->e);
    for (int j = 0; j < 16; j++) {
        c->q[j] = mxfp4_values[b->q[j] & 15];
        c->q[16 + j] = mxfp4_values[b->q[j] >> 4];
    }
}

const struct quant quant_mxfp4 = {"mxfp4", 39, 32, sizeof(struct block_mxfp4), FORM_32, ZERO, mxfp4_codes, mxfp4_quantize, NULL};
