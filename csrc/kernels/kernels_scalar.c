/* Scalar C: the truth that every other instruction set is tested against, and the fallback. Written to be read. */
#include <math.h>

#include "kernels/kernels.h"

/* ---- matrices ---- */

/* The sums run in 16 lanes, as in the fast kernels. */
static void matmul_floats_scalar(const struct matmul *m) {
    for (int r = 0; r < m->n_out; r++)
        for (int t = 0; t < m->n_tok; t++) {
            const char *row = (const char *)m->w + r * m->w_stride;
            const float *a = (const float *)((const char *)m->a + t * m->a_stride);
            float lane[16] = {0}, sum = 0;
            for (int64_t i = 0; i < m->n_in; i++) {
                float w;
                m->type->dequantize(row + (size_t)i * m->type->bytes, 1, &w);
                lane[i % 16] += w * a[i];
            }
            for (int j = 0; j < 16; j++) sum += lane[j];
            m->y[t * m->y_stride + r] = sum;
        }
}

/* Block b of vector t of the activations. */
struct act { int8_t q[32]; float d; int32_t sum[2]; };

static struct act act_at(const struct matmul *m, int t, int64_t b) {
    struct act a;
    if (m->n_tok <= ACT_FEW) {
        const char *act = (const char *)m->a + t * m->a_stride;
        memcpy(a.q, act + b * 32, 32);
        memcpy(&a.d, act + act_q8_d(m->n_in) + b * 4, 4);
        memcpy(&a.sum[1], act + act_q8_sum(m->n_in) + b * 4, 4);
        memcpy(&a.sum[0], act + act_q8_half(m->n_in) + b * 4, 4);
        a.sum[1] -= a.sum[0];
    } else {
        const struct act_block *block = (const struct act_block *)((const char *)m->a + t / ACT_GROUP * m->a_stride) + b;
        t %= ACT_GROUP;
        for (int k = 0; k < 8; k++) memcpy(a.q + 4 * k, block->q[k][t], 4);
        a.d = block->d[t];
        a.sum[0] = -block->minus_half[t];
        a.sum[1] = block->minus_half[t] - block->minus_sum[t];
    }
    return a;
}

/* The product of 32, as quant.h says for each form. */
static float product_scalar(const struct quant *type, const struct codes *w, const struct act *a) {
    int32_t c[2] = {0};
    for (int i = 0; i < 32; i++) c[i / 16] += (w->q[i] - type->zero) * a->q[i];
    float whole = w->d[0] * (float)(c[0] + c[1]), halves = w->d[0] * (float)c[0] + w->d[1] * (float)c[1];
    switch (type->form) {
    case FORM_32: return a->d * whole;
    case FORM_32_MIN: return a->d * (whole + w->m[0] * (float)(a->sum[0] + a->sum[1]));
    case FORM_16: return a->d * halves;
    default: return a->d * (halves + (w->m[0] * (float)a->sum[0] + w->m[1] * (float)a->sum[1]));
    }
}

static void matmul_codes_scalar(const struct matmul *m) {
    for (int r = 0; r < m->n_out; r++) {
        for (int t = 0; t < m->n_tok; t++) m->y[t * m->y_stride + r] = 0;
        for (int64_t b = 0; b < m->n_in / 32; b++) {
            struct codes w;
            m->type->codes((const char *)m->w + r * m->w_stride, b, &w);
            for (int t = 0; t < m->n_tok; t++) {
                struct act a = act_at(m, t, b);
                m->y[t * m->y_stride + r] += product_scalar(m->type, &w, &a);
            }
        }
    }
}

/* ---- norms and activations ---- */

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

static void rms_norm_scalar(const float *x, const float *w, float eps, int64_t n, float *y) {
    float lane[16] = {0}, squares = 0;
    for (int64_t i = 0; i < n; i++) lane[i % 16] += x[i] * x[i];
    for (int j = 0; j < 16; j++) squares += lane[j];
    float scale = 1 / sqrtf(squares / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void add_scalar(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

static void relu_scalar(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i];   /* not a number stays none */
}

static void relu_squared_scalar(float *x, int64_t n) {        /* So et al. 2021, "Primer", arXiv:2109.08668, section 3 */
    for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i] * x[i];
}

static void softcap_scalar(float *x, float cap, int64_t n) {  /* Gemma 2, arXiv:2408.00118, section 2 */
    for (int64_t i = 0; i < n; i++) x[i] = cap * tanhf(x[i] / cap);
}

static void silu_mul_scalar(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = x[i] / (1 + expf(-x[i])) * y[i];
}

static void halves_scalar(const float *x, int64_t n, uint16_t *h) {
    for (int64_t i = 0; i < n; i++) h[i] = float_to_half(x[i]);
}

static void gelu_erf_scalar(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
}

static void gelu_tanh_scalar(float *x, int64_t n) {          /* Hendrycks and Gimpel, arXiv:1606.08415, section 2 */
    for (int64_t i = 0; i < n; i++)
        x[i] = 0.5f * x[i] * (1 + tanhf(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

/* ---- attention ---- */

static float number_at(const void *p, size_t i, int halves) {
    return halves ? half_to_float(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static void attend_scalar(const struct attention *a, const struct query *q, float *p) {
    float max = -INFINITY, sum = 0;
    for (int i = q->begin; i < q->end; i++) {
        size_t k = (size_t)(i / KV_TILE) * KV_TILE * (size_t)a->head_dim + (size_t)(i % KV_TILE);
        float score = 0;
        for (int d = 0; d < a->head_dim; d++) score += q->q[d] * number_at(a->k, k + (size_t)d * KV_TILE, a->halves);
        p[i] = score * a->scale;
        max = fmaxf(max, p[i]);
    }
    for (int i = q->begin; i < q->end; i++) sum += p[i] = expf(p[i] - max);
    for (int i = q->begin; i < q->end; i++) p[i] /= sum;
    for (int d = 0; d < a->head_dim; d++) {
        float out = 0;
        for (int i = q->begin; i < q->end; i++) out += p[i] * number_at(a->v, (size_t)i * (size_t)a->v_stride + (size_t)d, a->halves);
        q->out[d] = out;
    }
}

static void attention_scalar(const struct attention *a) {
    for (int i = 0; i < a->n_queries; i++) attend_scalar(a, &a->queries[i], a->p + (size_t)i * a->p_stride);
}

/* ---- the machine ---- */

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
        .rms_norm = rms_norm_scalar,
        .gelu_erf = gelu_erf_scalar,
        .gelu_tanh = gelu_tanh_scalar,
        .relu = relu_scalar,
        .relu_squared = relu_squared_scalar,
        .softcap = softcap_scalar,
        .silu_mul = silu_mul_scalar,
        .add = add_scalar,
        .halves = halves_scalar,
        .attention = attention_scalar,
        .mac_peak = mac_peak_scalar,
    };
    for (int i = 0; i < n_quants; i++) k->matmul[quants[i]->id] = quants[i]->codes ? matmul_codes_scalar : matmul_floats_scalar;
}
