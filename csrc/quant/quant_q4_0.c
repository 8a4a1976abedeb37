/* q4_0 and q4_1: blocks of 32 weights in 4 bits each.
 *
 *     q4_0    | f16 d | uint8 q[16] |              weight = d * (code - 8)
 *     q4_1    | f16 d | f16 m | uint8 q[16] |      weight = d * code + m
 *
 * Code j is the low nibble of q[j], code 16 + j the high one. q4_0's d takes the sign that puts the weight of largest magnitude at -8, the
 * end that the range has and +8 lacks.
 */
#include <math.h>

#include "quant/fit.h"
#include "quant/quant.h"

static void nibbles_get(const uint8_t *q, uint8_t *code) {
    for (int j = 0; j < 16; j++) {
        code[j] = q[j] & 15;
        code[16 + j] = q[j] >> 4;
    }
}

static const struct grid q4_0_grid = {-8, 7, 0, NULL}, q4_1_grid = {0, 15, 0, NULL};

static void q4_0_quantize(const float *x, int64_t n, void *w) {
    struct block_q4_0 *out = w;
    int8_t q[32];
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        out[b].d = fit_half(fit_scale(x, 32, &q4_0_grid));
        fit_codes(x, 32, (struct line){half_to_float(out[b].d), 0}, &q4_0_grid, q);
        for (int j = 0; j < 16; j++) out[b].q[j] = (uint8_t)((q[j] + 8) | (q[16 + j] + 8) << 4);
    }
}

static void q4_1_quantize(const float *x, int64_t n, void *w) {
    struct block_q4_1 *out = w;
    int8_t q[32];
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        struct line l = fit_line(x, 32, 15, INFINITY);
        out[b].d = fit_half(l.d);
        out[b].m = fit_half(l.m);
        fit_codes(x, 32, (struct line){half_to_float(out[b].d), half_to_float(out[b].m)}, &q4_1_grid, q);
        for (int j = 0; j < 16; j++) out[b].q[j] = (uint8_t)(q[j] | q[16 + j] << 4);
    }
}

static void q4_0_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q4_0 *b = (const struct block_q4_0 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    nibbles_get(b->q, c->q);
}

static void q4_1_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q4_1 *b = (const struct block_q4_1 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    c->m[0] = c->m[1] = half_to_float(b->m);
    nibbles_get(b->q, c->q);
}

const struct quant quant_q4_0 = {"q4_0", 2, 32, sizeof(struct block_q4_0), FORM_32, 8, q4_0_codes, q4_0_quantize, NULL};
const struct quant quant_q4_1 = {"q4_1", 3, 32, sizeof(struct block_q4_1), FORM_32_MIN, 0, q4_1_codes, q4_1_quantize, NULL};
