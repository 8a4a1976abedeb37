/* NEON with SMMLA: Neoverse V1, Apple M2. One instruction multiplies two rows with two tokens over eight weights, so only
 * products of several tokens change; the rest stays dotprod's. */
#if defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 17)      /* older ones refuse TARGET */
#include <arm_neon.h>

#include "kernels/kernels.h"

#define TARGET __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))

enum { TOKENS = 4, MANY = 2 };

#include "kernels/neon.inc"

/* | 8 bytes of a | 8 bytes of b | */
TARGET static inline int8x16_t low_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
TARGET static inline int8x16_t high_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* q[4 pair + k] = | weights 8k .. 8k + 7 of row 2 pair | of row 2 pair + 1 | */
TARGET static inline void panel_pack(const struct block4 *b, struct panel *p) {
    for (int pair = 0; pair < 2; pair++) {
        p->q[4 * pair] = low_halves(b->low[2 * pair], b->low[2 * pair + 1]);
        p->q[4 * pair + 1] = high_halves(b->low[2 * pair], b->low[2 * pair + 1]);
        p->q[4 * pair + 2] = low_halves(b->high[2 * pair], b->high[2 * pair + 1]);
        p->q[4 * pair + 3] = high_halves(b->high[2 * pair], b->high[2 * pair + 1]);
    }
    p->d = b->d;
}

/* Two tokens, which stand in a and b; total[pair] = | row 0 token a | row 0 token b | row 1 token a | row 1 token b | */
TARGET static inline __attribute__((always_inline)) void
multiply_pair(const struct panel *p, const int8_t *a, const int8_t *b, float d_a, float d_b, float32x4_t *total) {
    int8x16_t a_low = vld1q_s8(a), a_high = vld1q_s8(a + 16), b_low = vld1q_s8(b), b_high = vld1q_s8(b + 16);
    int8x16_t q[4] = {low_halves(a_low, b_low), high_halves(a_low, b_low),
                      low_halves(a_high, b_high), high_halves(a_high, b_high)};
    float32x4_t d = vsetq_lane_f32(d_b, vdupq_n_f32(d_a), 1);
    d = vreinterpretq_f32_f64(vdupq_laneq_f64(vreinterpretq_f64_f32(d), 0));
    float32x4_t d_w[2] = {vzip1q_f32(p->d, p->d), vzip2q_f32(p->d, p->d)};
    for (int pair = 0; pair < 2; pair++) {
        int32x4_t s = vdupq_n_s32(0);
        for (int k = 0; k < 4; k++) s = vmmlaq_s32(s, p->q[4 * pair + k], q[k]);
        total[pair] = vfmaq_f32(total[pair], vcvtq_f32_s32(s), vmulq_f32(d_w[pair], d));
    }
}

/* Tokens come in pairs; a missing one repeats the last. pairs is a constant where this is inlined. */
TARGET static inline __attribute__((always_inline)) void
tile_pairs(const struct matmul *m, const struct panel *p, int64_t begin, int64_t end, int r, int n_rows, int t, int n,
           const int pairs) {
    const int8_t *q[TOKENS];
    const float *d[TOKENS];
    float *y[TOKENS];
    float32x4_t total[TOKENS];
    for (int i = 0; i < 2 * pairs; i++) {
        int token = t + (int)i64_min(i, n - 1);
        q[i] = act_q(m, token) + begin * 32;
        d[i] = act_d(m, token) + begin;
        y[i] = m->y + (size_t)token * m->y_stride + r;
        total[i] = vdupq_n_f32(0);
    }
    for (int i = 0; begin && i < 2 * pairs; i += 2) {
        float32x4_t a = load_rows(y[i], n_rows), b = load_rows(y[i + 1], n_rows);
        total[i] = vzip1q_f32(a, b);
        total[i + 1] = vzip2q_f32(a, b);
    }
    for (int64_t b = 0; b < end - begin; b++)
        for (int i = 0; i < 2 * pairs; i += 2)
            multiply_pair(p + b, q[i] + b * 32, q[i + 1] + b * 32, d[i][b], d[i + 1][b], total + i);
    for (int i = 0; i < 2 * pairs; i += 2) {
        store_rows(y[i], n_rows, vuzp1q_f32(total[i], total[i + 1]));
        store_rows(y[i + 1], n_rows, vuzp2q_f32(total[i], total[i + 1]));
    }
}

TARGET static inline void panel_tile(const struct matmul *m, const struct panel *p, int64_t begin, int64_t end, int r,
                                     int n_rows, int t, int n) {
    if (n > 2) tile_pairs(m, p, begin, end, r, n_rows, t, n, 2);
    else tile_pairs(m, p, begin, end, r, n_rows, t, n, 1);
}

TARGET static void matmul_q8_0_i8mm(const struct matmul *m) { matmul_blocks(m, load_q8_0); }
TARGET static void matmul_q4_0_i8mm(const struct matmul *m) { matmul_blocks(m, load_q4_0); }

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
    k->matmul[quant_q8_0.id] = matmul_q8_0_i8mm;
    k->matmul[quant_q4_0.id] = matmul_q4_0_i8mm;
    k->mac_peak = mac_peak_i8mm;
}

#endif
