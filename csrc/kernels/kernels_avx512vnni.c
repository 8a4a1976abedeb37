/* AVX-512 with VNNI: Cascade Lake, Ice Lake, Zen 4. Matrices in 512 bits, but for one or two tokens. A Zen 4 does two operations of 256 bits
 * in the time of one of 512, but half as many of them wait for each other: gelu and silu are half again as fast as avx2's. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/kernels.h"

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define ISA(op) op##_avx512vnni

/* ---- one or two tokens ---- */

enum { Q8_ZERO = 128 };                  /* VPDPBUSD's weights are unsigned */
TARGET static inline __m256i dot4(__m256i sum, __m256i w, __m256i a) { return _mm256_dpbusd_epi32(sum, w, a); }
TARGET static inline __m256i dot4_small(__m256i w, __m256i a) { return dot4(_mm256_setzero_si256(), w, a); }
TARGET static inline __m256i dot4_smalls(__m256i w, __m256i a, __m256i x, __m256i b) { return dot4(dot4_small(w, a), x, b); }

#include "kernels/few.inc"
#include "kernels/few256.inc"
#include "kernels/few512.inc"

/* ---- more tokens: panels of sixteen rows ---- */

#include "kernels/panels16.inc"

/* ---- the types ---- */

MATMUL(q8_0, FEW_Q8_0)
MATMUL(q4_0, FEW512_Q4_0)
MATMUL(q4_1, FEW_Q4_1)
MATMUL(q5_0, FEW512_Q5_0)
MATMUL(q5_1, FEW_Q5_1)
MATMUL(q2_k, FEW_Q2_K)
MATMUL(q3_k, FEW_Q3_K)
MATMUL(q4_k, FEW512_Q4_K)
MATMUL(q5_k, FEW_Q5_K)
MATMUL(q6_k, FEW512_Q6_K)
MATMUL(iq4_nl, FEW_IQ4_NL)
MATMUL(iq4_xs, FEW_IQ4_XS)
MATMUL(mxfp4, FEW_MXFP4)

MATMULS_SET

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

enum { SUMS = 24 };

TARGET static inline part part_set1(float f) { return _mm512_set1_ps(f); }
TARGET static inline part part_max(part a, part b) { return _mm512_max_ps(a, b); }
TARGET static inline void part_store(float *p, part a) { _mm512_storeu_ps(p, a); }
TARGET static inline float part_largest(const part *v) {
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#include "kernels/attention.inc"

#define ints_peak ints_dot4
#define REGISTER "v"
#include "kernels/peak.inc"

void kernels_init_avx512vnni(struct kernels *k) {
    k->matmul[quant_f32.id] = matmul_f32_avx512vnni;
    k->matmul[quant_f16.id] = matmul_f16_avx512vnni;
    k->matmul[quant_bf16.id] = matmul_bf16_avx512vnni;
    matmuls_set_avx512vnni(k);
    k->layer_norm = layer_norm_avx512vnni;
    k->rms_norm = rms_norm_avx512vnni;
    k->gelu_erf = gelu_erf_avx512vnni;
    k->gelu_tanh = gelu_tanh_avx512vnni;
    k->relu = relu_avx512vnni;
    k->relu_squared = relu_squared_avx512vnni;
    k->softcap = softcap_avx512vnni;
    k->silu_mul = silu_mul_avx512vnni;
    k->add = add_avx512vnni;
    k->attention = attention_avx512vnni;
    k->mac_peak = mac_peak_avx512vnni;
}

#endif
