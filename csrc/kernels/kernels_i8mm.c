/* NEON with SMMLA: Neoverse V1, Apple M2. One instruction multiplies two tokens with two rows over eight weights, so only
 * products of several tokens change; the rest stays dotprod's. */
#if defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 17)      /* older ones refuse TARGET */
#include <arm_neon.h>

#include "kernels/kernels.h"

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#define ISA(op) op##_i8mm

#include "kernels/neon.inc"

/* ---- panels: register 4 p + k of a tile is | row 2 k | row 2 k + 1 | of token 2 p, then of token 2 p + 1 ---- */

/* | 8 bytes of a | 8 bytes of b | */
TARGET static inline int8x16_t low_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
TARGET static inline int8x16_t high_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* q[4 e + k] = | weights 8 e .. 8 e + 7 of row 2 k | of row 2 k + 1 | */
TARGET static inline void panel_pack(const int8x16_t *row, int j, int8_t (*q)[16]) {
    for (int k = 0; k < 2; k++) {
        vst1q_s8(q[2 * j + k], low_halves(row[2 * k], row[2 * k + 1]));
        vst1q_s8(q[4 + 2 * j + k], high_halves(row[2 * k], row[2 * k + 1]));
    }
}

/* pair[p] = | values 8 e .. 8 e + 7 of token 2 p | of token 2 p + 1 |, of which a[0] has the first four, and a[1] the others */
TARGET static inline void token_pairs(const int8_t (*a)[ACT_GROUP][4], const int n, int8x16_t *pair) {
    int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(a[0][0])), high = vreinterpretq_s32_s8(vld1q_s8(a[1][0]));
    pair[0] = vreinterpretq_s8_s32(vzip1q_s32(low, high));
    if (n > 2) pair[1] = vreinterpretq_s8_s32(vzip2q_s32(low, high));
}

TARGET static inline __attribute__((always_inline)) void
panel_dot(const int8_t (*q)[16], const int8_t (*a)[ACT_GROUP][4], const int n, int32x4_t *c) {
    for (int e = 0; e < 2; e++) {
        int8x16_t pair[TILE / 2];
        token_pairs(a + 2 * e, n, pair);
        for (int k = 0; k < 4; k++) {
            int8x16_t w = vld1q_s8(q[4 * e + k]);
            for (int p = 0; p < n / 2; p++) c[4 * p + k] = vmmlaq_s32(c[4 * p + k], pair[p], w);
        }
    }
}

TARGET static inline float32x4_t panel_numbers(const float *number, const int i) {
    float32x2_t two = vld1_f32(number + 2 * (i % 4));
    return vcombine_f32(two, two);
}

TARGET static inline float32x4_t times_tokens(float32x4_t x, float32x4_t number, const int i) {
    return vmulq_f32(x, i < 4 ? vzip1q_f32(number, number) : vzip2q_f32(number, number));
}

/* Exchanges the upper half of a with the lower one of b. */
TARGET static inline void exchange(float32x4_t *a, float32x4_t *b) {
    float64x2_t x = vreinterpretq_f64_f32(*a), y = vreinterpretq_f64_f32(*b);
    *a = vreinterpretq_f32_f64(vtrn1q_f64(x, y));
    *b = vreinterpretq_f32_f64(vtrn2q_f64(x, y));
}

/* Rows 4 j .. 4 j + 3 of token 2 p stand in registers 4 p + 2 j and 4 p + 2 j + 1: once halves are exchanged, of token 2 p in the
 * first and of 2 p + 1 in the second; then the two in the middle change places. */
TARGET static inline __attribute__((always_inline)) void tile_to_rows(float32x4_t *f, const int n) {
    for (int i = 0; i < 2 * n; i += 4) {
        exchange(&f[i], &f[i + 1]);
        exchange(&f[i + 2], &f[i + 3]);
        float32x4_t middle = f[i + 1];
        f[i + 1] = f[i + 2];
        f[i + 2] = middle;
    }
}

TARGET static inline __attribute__((always_inline)) void tile_from_rows(float32x4_t *f, const int n) {
    for (int i = 0; i < 2 * n; i += 4) {
        float32x4_t middle = f[i + 1];
        f[i + 1] = f[i + 2];
        f[i + 2] = middle;
        exchange(&f[i], &f[i + 1]);
        exchange(&f[i + 2], &f[i + 3]);
    }
}

#include "kernels/neon_types.inc"

TARGET static int64_t mac_peak_i8mm(int64_t n) {         /* eight chains of SMMLA */
    int32x4_t s[8] = {{0}};
    int8x16_t w = vdupq_n_s8(1), a = vdupq_n_s8(2);
    int64_t done = 0;
    for (; done < n; done += 8 * 32) {
        __asm__ volatile("" : "+w"(w));
        for (int i = 0; i < 8; i++) s[i] = vmmlaq_s32(s[i], w, a);
    }
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "w"(s[i]));
    return done;
}

void kernels_init_i8mm(struct kernels *k) {
    matmul_init(k);
    k->mac_peak = mac_peak_i8mm;
}

#endif
