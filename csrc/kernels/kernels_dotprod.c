/* NEON with SDOT: Cortex-A76, Neoverse N1, Apple M1. */
#if defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 17)      /* older ones refuse TARGET */
#include <arm_neon.h>

#include "kernels/kernels.h"

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define ISA(op) op##_dotprod

#include "kernels/lanes.inc"

/* ---- halves ---- */

/* A NaN loses what else it says, as in scalar C. */
TARGET static inline uint16x4_t four_halves(float32x4_t f) {
    const uint32x4_t sign = vdupq_n_u32(0x80000000), nan = vdupq_n_u32(0x7fc00000);
    float32x4_t plain = vreinterpretq_f32_u32(vbslq_u32(sign, vreinterpretq_u32_f32(f), nan));
    return vreinterpret_u16_f16(vcvt_f16_f32(vbslq_f32(vceqq_f32(f, f), f, plain)));
}

TARGET static void halves_dotprod(const float *x, int64_t n, uint16_t *h) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(h + i, four_halves(vld1q_f32(x + i)));
    float rest[4] = {0};
    uint16_t last[4];
    memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
    vst1_u16(last, four_halves(vld1q_f32(rest)));
    memcpy(h + i, last, (size_t)(n - i) * sizeof *h);
}

/* ---- attention ---- */

enum { SUMS = 20, PARTS = 4 };
typedef float32x4_t part;

TARGET static inline part part_zero(void) { return vdupq_n_f32(0); }
TARGET static inline part part_set1(float f) { return vdupq_n_f32(f); }
TARGET static inline part part_f32(const char *p) { return vld1q_f32((const float *)p); }
TARGET static inline part part_f16(const char *p) { return vcvt_f32_f16(vld1_f16((const float16_t *)p)); }
TARGET static inline void part_store(float *p, part a) { vst1q_f32(p, a); }
TARGET static inline part part_fma(part a, part b, part c) { return vfmaq_f32(c, a, b); }
TARGET static inline part part_max(part a, part b) { return vmaxq_f32(a, b); }
TARGET static inline float part_largest(const part *v) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[1]), vmaxq_f32(v[2], v[3]))); }
TARGET static inline float part_total(const part *sum) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

#include "kernels/attention.inc"

/* ---- quantized weights: neon.inc; many tokens by SDOT with a lane, four rows times four weights of one token ---- */

#include "kernels/neon.inc"

/* 4 x 4 dwords: out[k] = | dword k of v[0] | of v[1] | of v[2] | of v[3] | */
TARGET static inline void transpose(const int8x16_t *v, int8x16_t *out) {
    int32x4_t a = vreinterpretq_s32_s8(v[0]), b = vreinterpretq_s32_s8(v[1]);
    int32x4_t c = vreinterpretq_s32_s8(v[2]), d = vreinterpretq_s32_s8(v[3]);
    int64x2_t ab_even = vreinterpretq_s64_s32(vtrn1q_s32(a, b)), ab_odd = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
    int64x2_t cd_even = vreinterpretq_s64_s32(vtrn1q_s32(c, d)), cd_odd = vreinterpretq_s64_s32(vtrn2q_s32(c, d));
    out[0] = vreinterpretq_s8_s64(vtrn1q_s64(ab_even, cd_even));
    out[1] = vreinterpretq_s8_s64(vtrn1q_s64(ab_odd, cd_odd));
    out[2] = vreinterpretq_s8_s64(vtrn2q_s64(ab_even, cd_even));
    out[3] = vreinterpretq_s8_s64(vtrn2q_s64(ab_odd, cd_odd));
}

/* q[2 k + j] = weights 4 k .. 4 k + 3 of rows 4 j .. 4 j + 3 */
TARGET static inline void panel_pack(const int8x16_t *row, int j, int8_t (*q)[16]) {
    int8x16_t out[4];
    transpose(row, out);
    for (int k = 0; k < 4; k++) vst1q_s8(q[2 * k + j], out[k]);
}

/* Register 2 i + j of a tile is rows 4 j .. 4 j + 3 of token i, as it is stored. */
TARGET static inline __attribute__((always_inline)) void
panel_dot(const int8_t (*q)[16], const int8_t (*a)[ACT_GROUP][4], const int n, int32x4_t *c) {
    for (int k = 0; k < 4; k++) {
        int8x16_t four = vld1q_s8(a[k][0]);              /* values of each of four tokens */
        for (int j = 0; j < 2; j++) {
            int8x16_t w = vld1q_s8(q[2 * k + j]);
            c[j] = vdotq_laneq_s32(c[j], w, four, 0);
            c[2 + j] = vdotq_laneq_s32(c[2 + j], w, four, 1);
            if (n > 2) c[4 + j] = vdotq_laneq_s32(c[4 + j], w, four, 2);
            if (n > 2) c[6 + j] = vdotq_laneq_s32(c[6 + j], w, four, 3);
        }
    }
}

TARGET static inline float32x4_t panel_numbers(const float *number, const int i) { return vld1q_f32(number + 4 * (i % 2)); }

TARGET static inline __attribute__((always_inline)) float32x4_t times_tokens(float32x4_t x, float32x4_t number, const int i) {
    switch (i / 2) {
    case 0: return vmulq_laneq_f32(x, number, 0);
    case 1: return vmulq_laneq_f32(x, number, 1);
    case 2: return vmulq_laneq_f32(x, number, 2);
    default: return vmulq_laneq_f32(x, number, 3);
    }
}

TARGET static inline void tile_from_rows(float32x4_t *f, const int n) { (void)f, (void)n; }
TARGET static inline void tile_to_rows(float32x4_t *f, const int n) { (void)f, (void)n; }

#include "kernels/neon_types.inc"

/* ---- f32, f16, bf16: sums in 16 lanes, two rows times up to three tokens ---- */

enum { FLOAT_ROWS = 2, FLOAT_TOKENS = 3 };

typedef struct { float32x4_t v[4]; } lanes;
typedef lanes lanes_fn(const uint8_t *p);

TARGET static inline lanes lanes_f32(const uint8_t *p) {
    lanes l;
    for (int i = 0; i < 4; i++) l.v[i] = vreinterpretq_f32_u8(vld1q_u8(p + 16 * i));
    return l;
}

TARGET static inline lanes lanes_f16(const uint8_t *p) {
    lanes l;
    for (int i = 0; i < 4; i++) l.v[i] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i)));
    return l;
}

TARGET static inline lanes lanes_bf16(const uint8_t *p) {
    lanes l;
    for (int i = 0; i < 4; i++) l.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * i)), 16));
    return l;
}

/* The last n < 16 numbers, then zeros. */
TARGET static inline lanes lanes_tail(lanes_fn *load, const uint8_t *p, size_t bytes) {
    uint8_t buffer[64] = {0};
    memcpy(buffer, p, bytes);
    return load(buffer);
}

TARGET static inline void lanes_multiply(lanes *sum, const lanes *a, const lanes *b) {
    for (int i = 0; i < 4; i++) sum->v[i] = vfmaq_f32(sum->v[i], a->v[i], b->v[i]);
}

TARGET static inline __attribute__((always_inline)) void
float_tile(const struct matmul *m, lanes_fn *load, size_t size, int r, int t, const int n) {
    const uint8_t *w[FLOAT_ROWS], *a = (const uint8_t *)m->a + (size_t)t * m->a_stride;
    lanes sum[FLOAT_ROWS][FLOAT_TOKENS];
    int n_rows = (int)i64_min(FLOAT_ROWS, m->n_out - r);
    for (int j = 0; j < FLOAT_ROWS; j++) {
        w[j] = (const uint8_t *)m->w + (size_t)(r + i64_min(j, n_rows - 1)) * m->w_stride;
        for (int i = 0; i < n; i++) sum[j][i] = (lanes){{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}};
    }
    size_t n_in = (size_t)m->n_in, k = 0;
    for (; k + 16 <= n_in; k += 16) {
        lanes x[FLOAT_ROWS];
        for (int j = 0; j < FLOAT_ROWS; j++) x[j] = load(w[j] + k * size);
        for (int i = 0; i < n; i++) {
            lanes y = lanes_f32(a + (size_t)i * m->a_stride + k * 4);
            for (int j = 0; j < FLOAT_ROWS; j++) lanes_multiply(&sum[j][i], &x[j], &y);
        }
    }
    if (k < n_in) {
        lanes x[FLOAT_ROWS];
        for (int j = 0; j < FLOAT_ROWS; j++) x[j] = lanes_tail(load, w[j] + k * size, (n_in - k) * size);
        for (int i = 0; i < n; i++) {
            lanes y = lanes_tail(lanes_f32, a + (size_t)i * m->a_stride + k * 4, (n_in - k) * 4);
            for (int j = 0; j < FLOAT_ROWS; j++) lanes_multiply(&sum[j][i], &x[j], &y);
        }
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n_rows; j++) {
            const float32x4_t *v = sum[j][i].v;
            m->y[(size_t)(t + i) * m->y_stride + (size_t)(r + j)] =
                vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[1]), vaddq_f32(v[2], v[3])));
        }
    }
}

TARGET static inline __attribute__((always_inline)) void matmul_floats(const struct matmul *m, lanes_fn *load, size_t size) {
    for (int r = 0; r < m->n_out; r += FLOAT_ROWS) {
        int t = 0;
        for (; t + FLOAT_TOKENS <= m->n_tok; t += FLOAT_TOKENS) float_tile(m, load, size, r, t, FLOAT_TOKENS);
        for (; t < m->n_tok; t++) float_tile(m, load, size, r, t, 1);
    }
}

TARGET static void matmul_f32_dotprod(const struct matmul *m) { matmul_floats(m, lanes_f32, 4); }
TARGET static void matmul_f16_dotprod(const struct matmul *m) { matmul_floats(m, lanes_f16, 2); }
TARGET static void matmul_bf16_dotprod(const struct matmul *m) { matmul_floats(m, lanes_bf16, 2); }

/* ---- activations in int8 ---- */

TARGET static void act_q8_dotprod(const float *x, int64_t n, void *act) {
    int8_t *q = act;
    float *d = (float *)(q + act_q8_d(n));
    int32_t *sum = (int32_t *)(q + act_q8_sum(n)), *half = (int32_t *)(q + act_q8_half(n));
    for (int64_t b = 0; b < n / 32; b++) {
        float32x4_t v[8], top = vdupq_n_f32(0);
        for (int i = 0; i < 8; i++) top = vmaxq_f32(top, vabsq_f32(v[i] = vld1q_f32(x + b * 32 + 4 * i)));
        float max = vmaxvq_f32(top), scale = max >= 0x1p-119f ? 127.0f / max : 0;
        int16x8_t s[4];
        for (int i = 0; i < 4; i++)
            s[i] = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v[2 * i], scale))),
                                vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v[2 * i + 1], scale))));
        vst1q_s8(q + b * 32, vcombine_s8(vqmovn_s16(s[0]), vqmovn_s16(s[1])));
        vst1q_s8(q + b * 32 + 16, vcombine_s8(vqmovn_s16(s[2]), vqmovn_s16(s[3])));
        d[b] = max / 127.0f;
        half[b] = vaddvq_s16(vaddq_s16(s[0], s[1]));
        sum[b] = half[b] + vaddvq_s16(vaddq_s16(s[2], s[3]));
    }
}

/* ---- the most that there is: eight chains of SDOT, which wait for nobody ---- */

TARGET static int64_t mac_peak_dotprod(int64_t n) {
    int32x4_t s[8] = {{0}};
    int8x16_t w = vdupq_n_s8(1), a = vdupq_n_s8(2);
    int64_t done = 0;
    for (; done < n; done += 8 * 16) {
        __asm__ volatile("" : "+w"(w));                  /* may have changed: every round is made */
        for (int i = 0; i < 8; i++) s[i] = vdotq_s32(s[i], w, a);
    }
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "w"(s[i]));
    return done;
}

void kernels_init_dotprod(struct kernels *k) {
    k->matmul[quant_f32.id] = matmul_f32_dotprod;
    k->matmul[quant_f16.id] = matmul_f16_dotprod;
    k->matmul[quant_bf16.id] = matmul_bf16_dotprod;
    matmul_init(k);
    k->act_q8 = act_q8_dotprod;
    k->layer_norm = layer_norm_dotprod;
    k->rms_norm = rms_norm_dotprod;
    k->gelu_erf = gelu_erf_dotprod;
    k->gelu_tanh = gelu_tanh_dotprod;
    k->relu = relu_dotprod;
    k->relu_squared = relu_squared_dotprod;
    k->softcap = softcap_dotprod;
    k->silu_mul = silu_mul_dotprod;
    k->add = add_dotprod;
    k->halves = halves_dotprod;
    k->attention = attention_dotprod;
    k->mac_peak = mac_peak_dotprod;
}

#endif
