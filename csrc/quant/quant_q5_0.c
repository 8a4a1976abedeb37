/* q5_0 and q5_1: blocks of 32 weights in 5 bits each.
 *
 *     q5_0    | f16 d | uint8 qh[4] | uint8 q[16] |              weight = d * (code - 16)
 *     q5_1    | f16 d | f16 m | uint8 qh[4] | uint8 q[16] |      weight = d * code + m
 *
 * The low 4 bits of code j are the low nibble of q[j], of code 16 + j the high one; the fifth is bit j % 8 of qh[j / 8].
 */
#include <math.h>

#include "quant/fit.h"
#include "quant/quant.h"

static void fives_get(const uint8_t *qh, const uint8_t *q, uint8_t *code) {
    for (int j = 0; j < 16; j++) {
        code[j] = q[j] & 15;
        code[16 + j] = q[j] >> 4;
    }
    for (int j = 0; j < 32; j++) code[j] |= (uint8_t)((qh[j / 8] >> j % 8 & 1) << 4);
}

static void fives_put(const int8_t *code, uint8_t *qh, uint8_t *q) {
    for (int j = 0; j < 16; j++) q[j] = (uint8_t)((code[j] & 15) | (code[16 + j] & 15) << 4);
    for (int i = 0; i < 4; i++) {
        unsigned bits = 0;
        for (int j = 0; j < 8; j++) bits |= (unsigned)(code[8 * i + j] >> 4) << j;
        qh[i] = (uint8_t)bits;
    }
}

static const struct grid q5_0_grid = {-16, 15, 0, NULL}, q5_1_grid = {0, 31, 0, NULL};

static void q5_0_quantize(const float *x, int64_t n, void *w) {
    struct block_q5_0 *out = w;
    int8_t q[32];
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        out[b].d = fit_half(fit_scale(x, 32, &q5_0_grid));
        fit_codes(x, 32, (struct line){half_to_float(out[b].d), 0}, &q5_0_grid, q);
        for (int j = 0; j < 32; j++) q[j] = (int8_t)(q[j] + 16);
        fives_put(q, out[b].qh, out[b].q);
    }
}

static void q5_1_quantize(const float *x, int64_t n, void *w) {
    struct block_q5_1 *out = w;
    int8_t q[32];
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        struct line l = fit_line(x, 32, 31, INFINITY);
        out[b].d = fit_half(l.d);
        out[b].m = fit_half(l.m);
        fit_codes(x, 32, (struct line){half_to_float(out[b].d), half_to_float(out[b].m)}, &q5_1_grid, q);
        fives_put(q, out[b].qh, out[b].q);
    }
}

static void q5_0_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q5_0 *b = (const struct block_q5_0 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    fives_get(b->qh, b->q, c->q);
}

static void q5_1_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q5_1 *b = (const struct block_q5_1 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    c->m[0] = c->m[1] = half_to_float(b->m);
    fives_get(b->qh, b->q, c->q);
}

const struct quant quant_q5_0 = {"q5_0", 6, 32, sizeof(struct block_q5_0), FORM_32, 16, q5_0_codes, q5_0_quantize, NULL};
const struct quant quant_q5_1 = {"q5_1", 7, 32, sizeof(struct block_q5_1), FORM_32_MIN, 0, q5_1_codes, q5_1_quantize, NULL};
