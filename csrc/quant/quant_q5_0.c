/* q5_0 and q5_1: blocks of 32 weights in 5 bits each.
 *
 *     q5_0    | f16 d | uint8 qh[4] | uint8 q[16] |              weight = d * (code - 16)
 *     q5_1    | f16 d | f16 m | uint8 qh[4] | uint8 q[16] |      weight = d * code + m
 *
 * The low 4 bits of code j are the low nibble of q[j], of code 16 + j the high one; the fifth is bit j % 8 of qh[j / 8].
 */
#include <math.h>

#include "quant/quant.h"

static void fives(const uint8_t *qh, const uint8_t *q, uint8_t *code) {
    for (int j = 0; j < 16; j++) {
        code[j] = q[j] & 15;
        code[16 + j] = q[j] >> 4;
    }
    for (int j = 0; j < 32; j++) code[j] |= (uint8_t)((qh[j / 8] >> j % 8 & 1) << 4);
}

static void q5_0_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q5_0 *b = (const struct block_q5_0 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    fives(b->qh, b->q, c->q);
}

static void q5_1_codes(const void *row, int64_t i, struct codes *c) {
    const struct block_q5_1 *b = (const struct block_q5_1 *)row + i;
    c->d[0] = c->d[1] = half_to_float(b->d);
    c->m[0] = c->m[1] = half_to_float(b->m);
    fives(b->qh, b->q, c->q);
}

const struct quant quant_q5_0 = {"q5_0", 6, 32, sizeof(struct block_q5_0), FORM_32, 16, q5_0_codes, NULL, NULL};
const struct quant quant_q5_1 = {"q5_1", 7, 32, sizeof(struct block_q5_1), FORM_32_MIN, 0, q5_1_codes, NULL, NULL};
