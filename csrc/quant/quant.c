#include "quant/quant.h"

#include <math.h>

/* The table: to add a type, write quant_<type>.c and add its row. */
const struct quant *const quants[] = {
    &quant_f32, &quant_f16, &quant_bf16, &quant_q8_0, &quant_q4_0, &quant_q4_1, &quant_q5_0, &quant_q5_1, &quant_q2_k,
    &quant_q3_k, &quant_q4_k, &quant_q5_k, &quant_q6_k, &quant_iq4_nl, &quant_iq4_xs, &quant_mxfp4,
};
const int n_quants = countof(quants);

/* GGUF's numbers of types, from the specification, so that a type that cannot be computed can still be called by its name. */
static const char *const names[QUANT_ID_MAX] = {
    [0] = "f32", [1] = "f16", [2] = "q4_0", [3] = "q4_1", [6] = "q5_0", [7] = "q5_1", [8] = "q8_0", [9] = "q8_1",
    [10] = "q2_k", [11] = "q3_k", [12] = "q4_k", [13] = "q5_k", [14] = "q6_k", [15] = "q8_k", [16] = "iq2_xxs",
    [17] = "iq2_xs", [18] = "iq3_xxs", [19] = "iq1_s", [20] = "iq4_nl", [21] = "iq3_s", [22] = "iq2_s", [23] = "iq4_xs",
    [24] = "i8", [25] = "i16", [26] = "i32", [27] = "i64", [28] = "f64", [29] = "iq1_m", [30] = "bf16", [34] = "tq1_0",
    [35] = "tq2_0", [39] = "mxfp4",
};

const struct quant *quant_find(uint32_t id) {
    for (int i = 0; i < n_quants; i++)
        if (quants[i]->id == id) return quants[i];
    return NULL;
}

const char *quant_name(uint32_t id) { return id < QUANT_ID_MAX ? names[id] : NULL; }

void quant_dequantize(const struct quant *q, const void *w, int64_t n, float *x) {
    if (q->dequantize) {
        q->dequantize(w, n, x);
        return;
    }
    struct codes c;
    int mins = quant_has_mins(q);
    for (int64_t b = 0; b < n / 32; b++, x += 32) {
        q->codes(w, b, &c);
        for (int i = 0; i < 32; i++) x[i] = c.d[i / 16] * (float)(c.q[i] - q->zero);
        for (int i = 0; mins && i < 32; i++) x[i] += c.m[i / 16];
    }
}

/* ---- vectors ---- */

void act_q8_quantize(const float *x, int64_t n, void *act) {
    int8_t *q = act;
    float *d = (float *)((char *)act + act_q8_d(n));
    int32_t *sum = (int32_t *)((char *)act + act_q8_sum(n)), *half = (int32_t *)((char *)act + act_q8_half(n));
    for (int64_t b = 0; b < n / 32; b++) {
        float max = 0;
        for (int j = 0; j < 32; j++)                         /* a NaN stays, and makes d NaN */
            if (!(fabsf(x[b * 32 + j]) <= max) && !isnan(max)) max = fabsf(x[b * 32 + j]);
        float scale = max >= 0x1p-119f ? 127.0f / max : 0;         /* 127 / max of a smaller one may be infinite */
        int32_t s[2] = {0};
        for (int j = 0; j < 32; j++) s[j / 16] += q[b * 32 + j] = (int8_t)lrintf(x[b * 32 + j] * scale);
        d[b] = max / 127.0f;
        sum[b] = s[0] + s[1];
        half[b] = s[0];
    }
}

void act_group_put(const void *act, int64_t n, int t, struct act_block *group) {
    const char *q = act;
    const float *d = (const float *)(q + act_q8_d(n));
    const int32_t *sum = (const int32_t *)(q + act_q8_sum(n)), *half = (const int32_t *)(q + act_q8_half(n));
    for (int64_t b = 0; b < n / 32; b++, q += 32) {
        for (int k = 0; k < 8; k++) {
            uint32_t four;
            memcpy(&four, q + 4 * k, 4);
            __asm__("" : "+r"(four));    /* else gcc 12 loads vectors and takes them apart, in three times the time */
            memcpy(group[b].q[k][t], &four, 4);
        }
        group[b].d[t] = d[b];
        group[b].minus_sum[t] = -sum[b];
        group[b].minus_half[t] = -half[b];
    }
}
