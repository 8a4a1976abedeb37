/* base.h: the few words that every floor uses. Knows nothing of models, files or processors. */
#ifndef PYGPT_BASE_H
#define PYGPT_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define countof(array) (sizeof(array) / sizeof((array)[0]))

static inline int64_t i64_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t i64_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* The smallest multiple of `multiple` that is not below n; the caller has made sure that it fits. */
static inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* Part i of 0..total cut into n nearly equal parts whose borders are multiples of `multiple`. */
struct range { int64_t begin, end; };
static inline struct range range_part(int64_t total, int64_t multiple, int i, int n) {
    int64_t units = (total + multiple - 1) / multiple;
    return (struct range){i64_min(units * i / n * multiple, total), i64_min(units * (i + 1) / n * multiple, total)};
}

/* IEEE half precision, in integers: exact in both directions, rounding to nearest even, subnormals and NaN kept. */
static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023, bits;
    float f;
    if (exponent == 0) {                                    /* zero or subnormal: mantissa * 2^-24 */
        f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    } else if (exponent == 31) {
        bits = sign | 0x7f800000 | mantissa << 13;
    } else {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    }
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t float_to_half(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);             /* NaN */
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);            /* rounds to infinity */
    if (magnitude < 0x38800000) {                                             /* below 2^-14: a multiple of 2^-24 */
        float m, scaled;
        memcpy(&m, &magnitude, 4);
        scaled = m * 0x1p24f + 0x1p23f;                                       /* the addition rounds */
        memcpy(&magnitude, &scaled, 4);
        return (uint16_t)(sign | (magnitude - 0x4b000000));
    }
    magnitude += 0xc8000fff + (magnitude >> 13 & 1);                          /* exponent - 112, round to nearest even */
    return (uint16_t)(sign | magnitude >> 13);
}

static inline float bf16_to_float(uint16_t b) {
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t float_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64);  /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
