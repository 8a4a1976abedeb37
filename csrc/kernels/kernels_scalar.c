/* Scalar C: the truth that every other instruction set is tested against, and the fallback. Written to be read. */
#include <math.h>

#include "kernels/kernels.h"

static void matmul_scalar(const struct matmul *m) {
    for (int t = 0; t < m->n_tok; t++)
        for (int r = 0; r < m->n_out; r++)
            m->y[t * m->y_stride + r] = m->type->dot((const char *)m->w + r * m->w_stride,
                                                     (const char *)m->a + t * m->a_stride, m->n_in);
}

static void layer_norm_scalar(const float *x, const float *w, const float *b, float eps, int64_t n, float *y) {
    float lane[16] = {0}, sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) lane[i % 16] += x[i];
    for (int j = 0; j < 16; j++) sum += lane[j];
    float mean = sum / (float)n;
    memset(lane, 0, sizeof lane);
    for (int64_t i = 0; i < n; i++) lane[i % 16] += (x[i] - mean) * (x[i] - mean);
    for (int j = 0; j < 16; j++) squares += lane[j];
    float scale = 1 / sqrtf(squares / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * w[i] + (b ? b[i] : 0);
}

static void gelu_erf_scalar(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
}

static void gelu_tanh_scalar(float *x, int64_t n) {          /* Hendrycks and Gimpel, arXiv:1606.08415, section 2 */
    for (int64_t i = 0; i < n; i++)
        x[i] = 0.5f * x[i] * (1 + tanhf(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

static void attention_scalar(const struct attention *a) {
    float max = -INFINITY, sum = 0;
    for (int i = 0; i < a->n; i++) {
        const float *k = a->k + (size_t)(i / KV_TILE) * KV_TILE * a->head_dim + i % KV_TILE;
        float score = 0;
        for (int d = 0; d < a->head_dim; d++) score += a->q[d] * k[d * KV_TILE];
        a->p[i] = score * a->scale;
        max = fmaxf(max, a->p[i]);
    }
    for (int i = 0; i < a->n; i++) sum += a->p[i] = expf(a->p[i] - max);
    for (int i = 0; i < a->n; i++) a->p[i] /= sum;
    for (int d = 0; d < a->head_dim; d++) {
        float out = 0;
        for (int i = 0; i < a->n; i++) out += a->p[i] * a->v[(size_t)i * a->v_stride + d];
        a->out[d] = out;
    }
}

static int64_t mac_peak_scalar(int64_t n) {
    int8_t w[16] = {1, 2, 3}, a[16] = {3, 2, 1};
    int32_t sum[16] = {0};
    for (int64_t i = 0; i < n; i += 16) {
        __asm__ volatile("" : "+m"(w), "+m"(a), "+m"(sum));           /* so that the compiler computes every round */
        for (int j = 0; j < 16; j++) sum[j] += w[j] * a[j];
    }
    return n;
}

void kernels_init_scalar(struct kernels *k) {
    *k = (struct kernels){
        .act_q8 = act_q8_quantize,
        .layer_norm = layer_norm_scalar,
        .gelu_erf = gelu_erf_scalar,
        .gelu_tanh = gelu_tanh_scalar,
        .attention = attention_scalar,
        .mac_peak = mac_peak_scalar,
    };
    for (int i = 0; i < n_quants; i++) k->matmul[quants[i]->id] = matmul_scalar;
}
