/* AVX-512 with VNNI: Cascade Lake, Ice Lake, Zen 4. Matrices in 512 bits, but for one or two tokens. A Zen 4 does two operations of 256 bits
 * in the time of one of 512, but half as many of them wait for each other: gelu and silu are 1.7 times as fast as avx2's. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/kernels.h"

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define ISA(op) op##_avx512vnni

/* ---- one or two tokens ---- */

enum { Q8_ZERO = 128 };                  /* VPDPBUSD's weights are unsigned */
TARGET static inline __m256i dot4(__m256i sum, __m256i w, __m256i a) { return _mm256_dpbusd_epi32(sum, w, a); }

#include "kernels/few.inc"
#include "kernels/few512.inc"

/* ---- more tokens: panels of sixteen rows ---- */

enum { ROWS = 16, TOKENS = 12 };
typedef __m512i ints;
typedef __m512 floats;

TARGET static inline ints ints_set1(int32_t i) { return _mm512_set1_epi32(i); }
TARGET static inline ints ints_load(const void *p) { return _mm512_loadu_si512(p); }
TARGET static inline ints ints_dot4(ints sum, ints w, ints a) { return _mm512_dpbusd_epi32(sum, w, a); }
TARGET static inline floats floats_zero(void) { return _mm512_setzero_ps(); }
TARGET static inline floats floats_load(const float *p) { return _mm512_loadu_ps(p); }
TARGET static inline __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
TARGET static inline floats floats_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
TARGET static inline void floats_store_n(float *p, int n, floats f) { _mm512_mask_storeu_ps(p, first(n), f); }
TARGET static inline floats floats_add_product(floats f, ints product, floats d_w, const float *d_a) {
    return _mm512_add_ps(f, _mm512_mul_ps(_mm512_set1_ps(*d_a), _mm512_mul_ps(d_w, _mm512_cvtepi32_ps(product))));
}

#include "kernels/panels.inc"

TARGET static inline ints join(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* In each 128 bits: 32 bits i of v[0], v[1], v[2], v[3] become u[i]. */
TARGET static inline void transpose_quarters(const ints *v, ints *u) {
    ints a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]);
    ints c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    u[0] = _mm512_unpacklo_epi64(a, b);
    u[1] = _mm512_unpackhi_epi64(a, b);
    u[2] = _mm512_unpacklo_epi64(c, d);
    u[3] = _mm512_unpackhi_epi64(c, d);
}

TARGET static inline void store_scales(float *d, const uint8_t *const *at) {
    _mm256_storeu_ps(d, load_halves(at));
    _mm256_storeu_ps(d + 8, load_halves(at + 8));
}

/* v[i] = | row i | row i + 4 |, v[4 + i] = | row i + 8 | row i + 12 |, i < 4: so rows come out in order. */
TARGET static void unpack_q8_0(const uint8_t *const *row, int64_t block, struct panel *p) {
    const uint8_t *at[16];
    ints v[8], u[8];
    for (int i = 0; i < 16; i++) at[i] = row[i] + (size_t)block * sizeof(struct block_q8_0);
    for (int i = 0; i < 4; i++) {
        v[i] = join(load_q8_0(at[i]), load_q8_0(at[i + 4]));
        v[4 + i] = join(load_q8_0(at[i + 8]), load_q8_0(at[i + 12]));
    }
    transpose_quarters(v, u);
    transpose_quarters(v + 4, u + 4);
    for (int k = 0; k < 4; k++) {
        _mm512_storeu_si512(p->q[k], _mm512_shuffle_i32x4(u[k], u[4 + k], 0x88));          /* the even quarters of both */
        _mm512_storeu_si512(p->q[4 + k], _mm512_shuffle_i32x4(u[k], u[4 + k], 0xdd));      /* the odd ones */
    }
    store_scales(p->d, at);
}

/* v[i] = | row i | row i + 4 | row i + 8 | row i + 12 | */
TARGET static void unpack_q4_0(const uint8_t *const *row, int64_t block, struct panel *p) {
    const uint8_t *at[16];
    ints v[4], u[4];
    for (int i = 0; i < 16; i++) at[i] = row[i] + (size_t)block * sizeof(struct block_q4_0);
    for (int i = 0; i < 4; i++)
        v[i] = join(load_2x16(at[i] + 2, at[i + 4] + 2), load_2x16(at[i + 8] + 2, at[i + 12] + 2));
    transpose_quarters(v, u);
    for (int k = 0; k < 4; k++) {
        _mm512_storeu_si512(p->q[k], _mm512_and_si512(u[k], _mm512_set1_epi8(15)));
        _mm512_storeu_si512(p->q[4 + k], _mm512_and_si512(_mm512_srli_epi16(u[k], 4), _mm512_set1_epi8(15)));
    }
    store_scales(p->d, at);
}

TARGET static void matmul_q8_0_avx512vnni(const struct matmul *m) {
    if (m->n_tok <= 2) multiply_few(m, FEW_Q8_0);
    else multiply_many(m, unpack_q8_0, Q8_ZERO);
}

TARGET static void matmul_q4_0_avx512vnni(const struct matmul *m) {
    if (m->n_tok <= 2) multiply_few(m, FEW_Q4_0);
    else multiply_many(m, unpack_q4_0, 8);
}

/* ---- floats ---- */

enum { FEW_ROWS = 4, MANY_ROWS = 4, MANY_TOKENS = 6, PARTS = 1 };
typedef __m512 part;

TARGET static inline part part_zero(void) { return _mm512_setzero_ps(); }
TARGET static inline part part_fma(part a, part b, part c) { return _mm512_fmadd_ps(a, b, c); }
TARGET static inline float part_total(const part *sum) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum[0]), _mm512_extractf32x8_ps(sum[0], 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
TARGET static inline part part_f32(const char *p) { return _mm512_loadu_ps(p); }
TARGET static inline part part_f16(const char *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
TARGET static inline part part_bf16(const char *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

#include "kernels/floats.inc"

/* ---- norms and activations ---- */

#include "kernels/lanes.inc"

/* ---- attention ---- */

enum { TOGETHER = 4, SUMS = 16 };        /* six together: 8 % slower on a Zen 4 */

TARGET static inline part part_set1(float f) { return _mm512_set1_ps(f); }
TARGET static inline part part_max(part a, part b) { return _mm512_max_ps(a, b); }
TARGET static inline void part_store(float *p, part a) { _mm512_storeu_ps(p, a); }

#include "kernels/attention.inc"

#define ints_peak ints_dot4
#define REGISTER "v"
#include "kernels/peak.inc"

void kernels_init_avx512vnni(struct kernels *k) {
    k->matmul[quant_f32.id] = matmul_f32_avx512vnni;
    k->matmul[quant_f16.id] = matmul_f16_avx512vnni;
    k->matmul[quant_bf16.id] = matmul_bf16_avx512vnni;
    k->matmul[quant_q8_0.id] = matmul_q8_0_avx512vnni;
    k->matmul[quant_q4_0.id] = matmul_q4_0_avx512vnni;
    k->layer_norm = layer_norm_avx512vnni;
    k->rms_norm = rms_norm_avx512vnni;
    k->gelu_erf = gelu_erf_avx512vnni;
    k->gelu_tanh = gelu_tanh_avx512vnni;
    k->silu_mul = silu_mul_avx512vnni;
    k->attention = attention_avx512vnni;
    k->mac_peak = mac_peak_avx512vnni;
}

#endif
