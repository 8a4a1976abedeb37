/* f32, f16, bf16: one number per block. */
#include "quant/quant.h"

static void f32_copy(const float *x, int64_t n, void *w) { memcpy(w, x, (size_t)n * 4); }
static void f32_dequantize(const void *w, int64_t n, float *x) { memcpy(x, w, (size_t)n * 4); }

static void f16_quantize(const float *x, int64_t n, void *w) {
    uint16_t *h = w;
    for (int64_t i = 0; i < n; i++) h[i] = float_to_half(x[i]);
}

static void f16_dequantize(const void *w, int64_t n, float *x) {
    const uint16_t *h = w;
    for (int64_t i = 0; i < n; i++) x[i] = half_to_float(h[i]);
}

static void bf16_quantize(const float *x, int64_t n, void *w) {
    uint16_t *b = w;
    for (int64_t i = 0; i < n; i++) b[i] = float_to_bf16(x[i]);
}

static void bf16_dequantize(const void *w, int64_t n, float *x) {
    const uint16_t *b = w;
    for (int64_t i = 0; i < n; i++) x[i] = bf16_to_float(b[i]);
}

const struct quant quant_f32 = {"f32", 0, 1, 4, FORM_FLOATS, 0, NULL, f32_copy, f32_dequantize};
const struct quant quant_f16 = {"f16", 1, 1, 2, FORM_FLOATS, 0, NULL, f16_quantize, f16_dequantize};
const struct quant quant_bf16 = {"bf16", 30, 1, 2, FORM_FLOATS, 0, NULL, bf16_quantize, bf16_dequantize};
