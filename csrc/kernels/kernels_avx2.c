/* AVX2 with FMA and F16C: Haswell, Zen. The base of all x86 rows: they keep what they cannot do better. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/kernels.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define ISA(op) op##_avx2

/* ---- integers ---- */

/* VPMADDUBSW adds pairs of products in 16 bits, which an unsigned 8-bit weight would overflow. So the weight gives its sign to the
 * activation: |w| <= 128, |a| <= 127, 2 * 128 * 127 < 32768. */
enum { Q8_ZERO = 0 };
TARGET static inline __m256i dot4(__m256i sum, __m256i w, __m256i a) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Unsigned weights below 64: four products, 4 * 63 * 127, fit into 16 bits as they are. */
TARGET static inline __m256i dot4_small(__m256i w, __m256i a) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1));
}
TARGET static inline __m256i dot4_smalls(__m256i w, __m256i a, __m256i x, __m256i b) {
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w, a), _mm256_maddubs_epi16(x, b));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "kernels/panels8.inc"

/* ---- activations ---- */

enum { QUANTIZED = 4 };                  /* blocks at once: their divisions are one */

/* The largest magnitude of each of four blocks, as integers, in whose order NaN stands above all numbers. */
TARGET static inline __m128 largest(const float *x) {
    __m256i max[QUANTIZED];
    for (int b = 0; b < QUANTIZED; b++) {
        max[b] = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++)
            max[b] = _mm256_max_epi32(max[b], _mm256_and_si256(load_32(x + 32 * b + 8 * i), _mm256_set1_epi32(0x7fffffff)));
    }
    __m256i a = _mm256_max_epi32(_mm256_unpacklo_epi32(max[0], max[1]), _mm256_unpackhi_epi32(max[0], max[1]));
    __m256i b = _mm256_max_epi32(_mm256_unpacklo_epi32(max[2], max[3]), _mm256_unpackhi_epi32(max[2], max[3]));
    __m256i both = _mm256_max_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    return _mm_castsi128_ps(_mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
}

/* Numbers that fit no int8 (they come of NaN and infinity) are cut to their low byte, as in scalar C. */
TARGET static inline __m256i quantize_block(const float *x, __m256 scale) {
    __m256i part[4];
    for (int i = 0; i < 4; i++)
        part[i] = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), scale)), _mm256_set1_epi32(255));
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(part[0], part[1]), _mm256_packus_epi32(part[2], part[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));     /* packing works in halves */
}

/* Four blocks: their q, d, sum and half. */
TARGET static inline void quantize(const float *x, int8_t *q, float *d, int32_t *sum, int32_t *half) {
    __m256i sums[QUANTIZED];
    __m128 max = largest(x), enough = _mm_cmpge_ps(max, _mm_set1_ps(0x1p-119f));
    float scale[QUANTIZED];
    _mm_storeu_ps(d, _mm_div_ps(max, _mm_set1_ps(127)));
    _mm_storeu_ps(scale, _mm_and_ps(enough, _mm_div_ps(_mm_set1_ps(127), max)));
    for (int b = 0; b < QUANTIZED; b++) {
        __m256i bytes = quantize_block(x + 32 * b, _mm256_set1_ps(scale[b]));
        _mm256_storeu_si256((__m256i *)(q + 32 * b), bytes);
        sums[b] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
    }
    __m256i halves = sum_quarters(sums);
    _mm_storeu_si128((__m128i *)half, _mm256_castsi256_si128(halves));
    _mm_storeu_si128((__m128i *)sum, _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}

TARGET static void act_q8_avx2(const float *x, int64_t n, void *act) {
    int8_t *q = act;
    float *d = (float *)(q + act_q8_d(n));
    int32_t *sum = (int32_t *)(q + act_q8_sum(n)), *half = (int32_t *)(q + act_q8_half(n));
    int64_t b = 0, rest = n / 32 % QUANTIZED;
    for (; b + QUANTIZED <= n / 32; b += QUANTIZED) quantize(x + 32 * b, q + 32 * b, d + b, sum + b, half + b);
    if (rest == 0) return;
    float last[32 * QUANTIZED] = {0};
    int8_t last_q[32 * QUANTIZED];
    memcpy(last, x + 32 * b, (size_t)rest * 32 * sizeof *x);
    quantize(last, last_q, d + b, sum + b, half + b);        /* which have room up to a multiple of 16 */
    memcpy(q + 32 * b, last_q, (size_t)rest * 32);
}

/* ---- floats ---- */

enum { FEW_ROWS = 4, MANY_ROWS = 2, MANY_TOKENS = 3, PARTS = 2 };
typedef __m256 part;

TARGET static inline part part_zero(void) { return _mm256_setzero_ps(); }
TARGET static inline part part_fma(part a, part b, part c) { return _mm256_fmadd_ps(a, b, c); }
TARGET static inline float part_total(const part *sum) {
    __m256 eight = _mm256_add_ps(sum[0], sum[1]);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
TARGET static inline part part_f32(const char *p) { return _mm256_loadu_ps((const float *)p); }
TARGET static inline part part_f16(const char *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
TARGET static inline part part_bf16(const char *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

#include "kernels/floats.inc"
#include "kernels/lanes.inc"

/* ---- attention ---- */

enum { SUMS = 10 };                      /* twelve, where six queries have two each */

TARGET static inline part part_set1(float f) { return _mm256_set1_ps(f); }
TARGET static inline part part_max(part a, part b) { return _mm256_max_ps(a, b); }
TARGET static inline void part_store(float *p, part a) { _mm256_storeu_ps(p, a); }
TARGET static inline float part_largest(const part *v) {
    __m256 eight = _mm256_max_ps(v[0], v[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#include "kernels/attention.inc"

/* ---- halves ---- */

/* A NaN loses what else it says, as in scalar C. */
TARGET static inline __m128i eight_halves(__m256 f) {
    const __m256 sign = _mm256_set1_ps(-0.0f), nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    __m256 plain = _mm256_or_ps(_mm256_and_ps(f, sign), nan);
    return _mm256_cvtps_ph(_mm256_blendv_ps(f, plain, _mm256_cmp_ps(f, f, _CMP_UNORD_Q)), _MM_FROUND_TO_NEAREST_INT);
}

TARGET static void halves_avx2(const float *x, int64_t n, uint16_t *h) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i *)(h + i), eight_halves(_mm256_loadu_ps(x + i)));
    float rest[8] = {0};
    memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
    __m128i last = eight_halves(_mm256_loadu_ps(rest));
    memcpy(h + i, &last, (size_t)(n - i) * sizeof *h);
}

/* ---- the most that there is ---- */

/* Without the signs that dot4 moves about. */
TARGET static inline ints ints_peak(ints sum, ints w, ints a) {
    return sum + (ints)dot4_small((__m256i)w, (__m256i)a);
}
#define REGISTER "x"
#include "kernels/peak.inc"

void kernels_init_avx2(struct kernels *k) {
    k->matmul[quant_f32.id] = matmul_f32_avx2;
    k->matmul[quant_f16.id] = matmul_f16_avx2;
    k->matmul[quant_bf16.id] = matmul_bf16_avx2;
    matmuls_set_avx2(k);
    k->act_q8 = act_q8_avx2;
    k->layer_norm = layer_norm_avx2;
    k->rms_norm = rms_norm_avx2;
    k->gelu_erf = gelu_erf_avx2;
    k->gelu_tanh = gelu_tanh_avx2;
    k->relu = relu_avx2;
    k->relu_squared = relu_squared_avx2;
    k->softcap = softcap_avx2;
    k->silu_mul = silu_mul_avx2;
    k->add = add_avx2;
    k->halves = halves_avx2;
    k->attention = attention_avx2;
    k->mac_peak = mac_peak_avx2;
}

#endif
