/* quant.h: the types of weights, and the int8 form of the vectors that they are multiplied with.
 *
 * One file and one row in quants[] per type; layouts are those of the GGUF specification (ggml's block structures). A type says
 * what 32 weights of a row are in integers and scales (struct codes); the product of a row with a vector follows from that.
 */
#ifndef PYGPT_QUANT_H
#define PYGPT_QUANT_H

#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

/* ---- weights ---- */

/* 32 weights: weight i = d[i / 16] * (q[i] - zero) + m[i / 16], zero being the type's. */
struct codes {
    uint8_t q[32];
    float d[2], m[2];
};

/* What may be different within 32 weights; each form leaves a product of 32 (c = sum of (q - zero) * a, s = sum of a, both exact
 * integers, of the 32 or of each 16; da the scale of a) at these floats, unfused, in this order: */
enum form {
    FORM_FLOATS,             /* no codes: f32, f16, bf16 */
    FORM_32,                 /* one d, no m:     da * (d * c) */
    FORM_32_MIN,             /* one d, one m:    da * (d * c + m * s) */
    FORM_16,                 /* two d, no m:     da * (d0 * c0 + d1 * c1) */
    FORM_16_MIN              /* two of each:     da * ((d0 * c0 + d1 * c1) + (m0 * s0 + m1 * s1)) */
};

struct quant {
    const char *name;        /* as the command line says it */
    uint32_t id;             /* GGUF's number */
    int block;               /* weights per block */
    size_t bytes;            /* bytes per block */
    enum form form;
    int zero;                /* 0 or a power of two; q - zero fits int8 */
    void (*codes)(const void *row, int64_t i, struct codes *c);    /* weights 32 i .. 32 i + 31; NULL for floats */
    void (*quantize)(const float *x, int64_t n, void *w);          /* n: a multiple of block; NULL: cannot be made here */
    void (*dequantize)(const void *w, int64_t n, float *x);        /* NULL: quant_dequantize makes it of codes */
};

extern const struct quant *const quants[];
extern const int n_quants;

enum { QUANT_ID_MAX = 64 };                      /* ids are below this: tables may be indexed by them */
const struct quant *quant_find(uint32_t id);     /* NULL if not known */
const char *quant_name(uint32_t id);             /* also of types known by name only; NULL otherwise */

/* Bytes of a row of n weights. */
static inline size_t quant_row_bytes(const struct quant *q, int64_t n) { return (size_t)(n / q->block) * q->bytes; }
static inline int quant_has_mins(const struct quant *q) { return q->form == FORM_32_MIN || q->form == FORM_16_MIN; }
static inline int quant_has_halves(const struct quant *q) { return q->form == FORM_16 || q->form == FORM_16_MIN; }

void quant_dequantize(const struct quant *q, const void *w, int64_t n, float *x);

/* ---- vectors ---- */

/* One vector of n values (a multiple of 32), quantized in blocks of 32:
 *
 *     | int8 q[n] .. to 64 bytes | float d[n/32] .. to 64 bytes | int32 sum[n/32] .. to 64 bytes | int32 half[n/32] .. to 64 bytes |
 *
 * value = d[i/32] * q[i], sum[b] = the sum of the q of block b, half[b] = of its first 16. The vector starts at a multiple of 64 bytes.
 * d = max|x| / 127 and q = x * (127 / max|x|), rounded to nearest even, so every instruction set writes the same bytes; q = 0 where
 * max|x| is below 2^-119. Where x holds a NaN, d is NaN.
 */
static inline size_t act_q8_d(int64_t n) { return (size_t)round_up(n, 64); }                              /* offset of d */
static inline size_t act_q8_sum(int64_t n) { return act_q8_d(n) + (size_t)round_up(n / 32 * 4, 64); }     /* of sum */
static inline size_t act_q8_half(int64_t n) { return act_q8_sum(n) + (size_t)round_up(n / 32 * 4, 64); }  /* of half */
static inline size_t act_q8_bytes(int64_t n) { return act_q8_half(n) + (size_t)round_up(n / 32 * 4, 64); }
void act_q8_quantize(const float *x, int64_t n, void *act);

/* More than ACT_FEW vectors go in groups of ACT_GROUP, side by side: kernels hold a few numbers of many vectors in registers. A
 * group is n / 32 of these, one after the other; groups follow each other, and the last one may be only partly used. */
enum { ACT_FEW = 2, ACT_GROUP = 12 };
struct act_block {
    int8_t q[8][ACT_GROUP][4];           /* values 4 k .. 4 k + 3 of vector t */
    float d[ACT_GROUP];
    int32_t minus_sum[ACT_GROUP], minus_half[ACT_GROUP];     /* negative: what zeros take away is added */
};
_Static_assert(sizeof(struct act_block) == 528, "no padding");

static inline size_t act_group_bytes(int64_t n) { return (size_t)round_up(n / 32 * (int64_t)sizeof(struct act_block), 64); }
/* Puts a quantized vector of n values into its group as number t. */
void act_group_put(const void *act, int64_t n, int t, struct act_block *group);

/* ---- the rows of quants[] ---- */

extern const struct quant quant_f32, quant_f16, quant_bf16, quant_q8_0;
extern const struct quant quant_q4_0, quant_q4_1, quant_q5_0, quant_q5_1;
extern const struct quant quant_q2_k, quant_q3_k, quant_q4_k, quant_q5_k, quant_q6_k;
extern const struct quant quant_iq4_nl, quant_iq4_xs, quant_mxfp4;

/* Blocks, packed as they lie in files: rows start at any even address (mxfp4: at any). d, m and dmin are f16; lo and hi are the low and
 * the high nibble of a byte; the files of the types say where every bit stands. */

/* 32 weights; in nibbles, weight j is lo(q[j]) and weight 16 + j hi(q[j]); a fifth bit is bit j of qh, read as one little-endian number */
struct block_q8_0 { uint16_t d; int8_t q[32]; };                           /* d * q */
struct block_q4_0 { uint16_t d; uint8_t q[16]; };                          /* d * (nibble - 8) */
struct block_q4_1 { uint16_t d, m; uint8_t q[16]; };                       /* d * nibble + m */
struct block_q5_0 { uint16_t d; uint8_t qh[4], q[16]; };                   /* d * ((nibble | bit << 4) - 16) */
struct block_q5_1 { uint16_t d, m; uint8_t qh[4], q[16]; };                /* d * (nibble | bit << 4) + m */
struct block_iq4_nl { uint16_t d; uint8_t q[16]; };                        /* d * iq4_values[nibble] */
struct block_mxfp4 { uint8_t e, q[16]; };                                  /* 2^(e - 128) * twice the FP4 (E2M1) number */

/* 256 weights; in sub-blocks of 16 or 32 with whole-number scales and minimums of their own */
struct block_q2_k { uint8_t scales[16], q[64]; uint16_t d, dmin; };        /* 16 of 16: d * lo(scale) * q - dmin * hi(scale); q: 2 bits */
struct block_q3_k { uint8_t hmask[32], q[64], scales[12]; uint16_t d; };   /* 16 of 16: d * (scale - 32) * (q - 4); q: 2 + 1 bits */
struct block_q4_k { uint16_t d, dmin; uint8_t scales[12], q[128]; };       /* 8 of 32: d * scale * q - dmin * min; q: 4 bits */
struct block_q5_k { uint16_t d, dmin; uint8_t scales[12], qh[32], q[128]; };       /* the same; q: 4 + 1 bits */
struct block_q6_k { uint8_t q[128], qh[64]; int8_t scales[16]; uint16_t d; };      /* 16 of 16: d * scale * (q - 32); q: 4 + 2 bits */
struct block_iq4_xs { uint16_t d, scales_h; uint8_t scales_l[4], q[128]; };        /* 8 of 32: d * (scale - 32) * iq4_values[nibble] */

_Static_assert(sizeof(struct block_q8_0) == 34, "q8_0 is 34 bytes in files");
_Static_assert(sizeof(struct block_q4_0) == 18, "q4_0 is 18 bytes in files");
_Static_assert(sizeof(struct block_q4_1) == 20, "q4_1 is 20 bytes in files");
_Static_assert(sizeof(struct block_q5_0) == 22, "q5_0 is 22 bytes in files");
_Static_assert(sizeof(struct block_q5_1) == 24, "q5_1 is 24 bytes in files");
_Static_assert(sizeof(struct block_iq4_nl) == 18, "iq4_nl is 18 bytes in files");
_Static_assert(sizeof(struct block_mxfp4) == 17, "mxfp4 is 17 bytes in files");
_Static_assert(sizeof(struct block_q2_k) == 84, "q2_k is 84 bytes in files");
_Static_assert(sizeof(struct block_q3_k) == 110, "q3_k is 110 bytes in files");
_Static_assert(sizeof(struct block_q4_k) == 144, "q4_k is 144 bytes in files");
_Static_assert(sizeof(struct block_q5_k) == 176, "q5_k is 176 bytes in files");
_Static_assert(sizeof(struct block_q6_k) == 210, "q6_k is 210 bytes in files");
_Static_assert(sizeof(struct block_iq4_xs) == 136, "iq4_xs is 136 bytes in files");

/* What the nibbles of iq4_nl and iq4_xs stand for, and twice the numbers of FP4, each with its type's zero added. */
extern const uint8_t iq4_values[16], mxfp4_values[16];

/* The 6-bit scale and minimum of sub-block j of q4_k and q5_k, from their 12 bytes (j < 4: the low 6 bits of bytes j and 4 + j; else the
 * nibbles of byte 4 + j, and above them the top 2 bits of bytes j - 4 and j). */
static inline uint8_t k_scale(const uint8_t *s, int j) { return j < 4 ? s[j] & 63 : (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4); }
static inline uint8_t k_min(const uint8_t *s, int j) { return j < 4 ? s[j + 4] & 63 : (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6) << 4); }

/* 2^(e - 128), the scale of mxfp4; subnormal below e = 2. */
static inline float mxfp4_scale(uint8_t e) {
    uint32_t bits = e < 2 ? 0x200000u << e : (uint32_t)(e - 1) << 23;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

#endif
