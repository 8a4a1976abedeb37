/* quant.h: the types of weights: what their bytes mean, and a product that is right everywhere and fast nowhere.
 *
 * One file and one row in quants[] per type; layouts are those of the GGUF specification (ggml's block structures).
 */
#ifndef PYGPT_QUANT_H
#define PYGPT_QUANT_H

#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

/* The form in which a type wants the vectors that it is multiplied with. */
enum activation {
    ACT_F32,                 /* as they are */
    ACT_Q8                   /* struct-of-arrays int8, below */
};

/* ACT_Q8: one vector of n values (a multiple of 32), quantized in blocks of 32:
 *
 *     | int8 q[n] .. to 64 bytes | float d[n/32] .. to 64 bytes | int32 sum[n/32] .. to 64 bytes |
 *
 * value = d[i/32] * q[i], sum[b] = the sum of the q of block b. The vector starts at a multiple of 64 bytes.
 * d = max|x| / 127 and q = x * (127 / max|x|), rounded to nearest even, so every instruction set writes the same bytes; q = 0 where
 * max|x| is below 2^-119. Where x holds a NaN, d is NaN.
 */
static inline size_t act_q8_d(int64_t n) { return (size_t)round_up(n, 64); }                              /* offset of d */
static inline size_t act_q8_sum(int64_t n) { return act_q8_d(n) + (size_t)round_up(n / 32 * 4, 64); }     /* of sum */
static inline size_t act_q8_bytes(int64_t n) { return act_q8_sum(n) + (size_t)round_up(n / 32 * 4, 64); }
void act_q8_quantize(const float *x, int64_t n, void *act);

struct quant {
    const char *name;        /* as the command line says it */
    uint32_t id;             /* GGUF's number */
    int block;               /* weights per block */
    size_t bytes;            /* bytes per block */
    enum activation act;
    void (*quantize)(const float *x, int64_t n, void *w);          /* n: a multiple of block */
    void (*dequantize)(const void *w, int64_t n, float *x);
    float (*dot)(const void *w, const void *act, int64_t n);       /* reference product of one row with one vector */
};

extern const struct quant *const quants[];
extern const int n_quants;

enum { QUANT_ID_MAX = 64 };                      /* ids are below this: tables may be indexed by them */
const struct quant *quant_find(uint32_t id);     /* NULL if not known */
const char *quant_name(uint32_t id);             /* also of types known by name only; NULL otherwise */

/* Bytes of a row of n weights. */
static inline size_t quant_row_bytes(const struct quant *q, int64_t n) { return (size_t)(n / q->block) * q->bytes; }

extern const struct quant quant_f32, quant_f16, quant_bf16, quant_q8_0, quant_q4_0;

/* Blocks, packed as they lie in files: rows start at any even address. */
struct block_q8_0 { uint16_t d; int8_t q[32]; };           /* d * q[j] */
struct block_q4_0 { uint16_t d; uint8_t q[16]; };          /* element j: d * (low nibble of q[j] - 8), 16 + j: the high one */
_Static_assert(sizeof(struct block_q8_0) == 34, "q8_0 is 34 bytes in files");
_Static_assert(sizeof(struct block_q4_0) == 18, "q4_0 is 18 bytes in files");

#endif
