/* check: tests and times every kernel of every instruction set against scalar C; quantization and conversions too.
 *
 *     check [--seed N] [--isa NAME] [--test GLOB] [--quick] [--bench] [--list]
 *
 * Inputs come from a printed seed: the same seed, kernel by kernel, gives the same inputs whatever else is tested. They are
 * read-only and lie against unmapped pages, so that a read past either end is a crash, and a crash is a failed test by name.
 * Outputs are poisoned, with red zones around. Exits with 1 if anything failed. Knows nothing of models, files and threads.
 */
#include <fnmatch.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "kernels/kernels.h"

/* ---- failing ------------------------------------------------------------------------------------------------------ */

static uint64_t seed;
static int quick;
static const char *isa_only, *test_only;

static sigjmp_buf out_of_test;           /* every failure leaves the test through here */
static char test_name[80];               /* matmul_q8_0_avx2 */
static char test_case[160];              /* n_out 3, n_tok 2, ... */

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    printf("FAIL %s (%s): ", test_name, test_case);
    vprintf(format, args);
    printf("; --seed %llu\n", (unsigned long long)seed);
    va_end(args);
    siglongjmp(out_of_test, 1);
}

static void on_crash(int number) {       /* only ever our own deliberate traps: stdio is good enough here */
    fail("%s", number == SIGILL ? "illegal instruction" : number == SIGFPE ? "arithmetic trap" : "touched memory outside");
}

static void crashes_catch(void) {
    struct sigaction action = {.sa_handler = on_crash, .sa_flags = SA_NODEFER};
    int numbers[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};
    for (size_t i = 0; i < countof(numbers); i++) sigaction(numbers[i], &action, NULL);
}

/* ---- random numbers: splitmix64, Steele et al. 2014 --------------------------------------------------------------- */

static uint64_t rng;

static uint64_t random_u64(void) {
    uint64_t z = rng += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}
static int random_int(int low, int high) { return low + (int)(random_u64() % (uint64_t)(high - low + 1)); }
static float random_float(float low, float high) { return low + (high - low) * (float)(random_u64() >> 40) * 0x1p-24f; }
static float random_normal(void) { return random_float(-1, 1) + random_float(-1, 1) + random_float(-1, 1); }

static void random_seed(const char *name) {      /* by the kernel's name: the inputs do not depend on --test */
    rng = seed;
    for (; *name; name++) rng = (rng ^ (unsigned char)*name) * 0x100000001b3;
}

/* ---- memory: each buffer in an arena of its own, between two unmapped pages --------------------------------------- */

enum { ARENA_BYTES = 8 << 20, RED = 1024, POISON = 0x7fc0dead };         /* the poison is a NaN, too */

struct arena { char *begin, *end; };
static struct arena arenas[8];

static void arenas_map(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < countof(arenas); i++) {
        char *p = mmap(NULL, ARENA_BYTES + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p + page, ARENA_BYTES, PROT_READ | PROT_WRITE)) {
            perror("check: mmap");
            exit(1);
        }
        arenas[i] = (struct arena){p + page, p + page + ARENA_BYTES};
    }
}

static void poison(char *p, const char *end) {
    static const uint32_t pattern = POISON;
    for (int i = 0; p < end; p++, i++) *p = ((const char *)&pattern)[(uintptr_t)p & 3];
}

/* bytes of arena i, against the unmapped page behind (or before); the buffer and RED bytes on both sides are poisoned. */
static void *place(int i, size_t bytes, int at_end) {
    struct arena *a = &arenas[i];
    if (bytes > ARENA_BYTES - RED) fail("check.c: a buffer of %zu bytes does not fit its arena", bytes);
    mprotect(a->begin, ARENA_BYTES, PROT_READ | PROT_WRITE);
    char *data = at_end ? a->end - bytes : a->begin;
    poison(at_end ? data - RED : data, at_end ? a->end : data + bytes + RED);
    return data;
}

static void lock(int i) { mprotect(arenas[i].begin, ARENA_BYTES, PROT_READ); }
static void unlock(int i) { mprotect(arenas[i].begin, ARENA_BYTES, PROT_READ | PROT_WRITE); }

static int poisoned(const void *p, size_t bytes) {
    static const uint32_t pattern = POISON;
    for (const char *c = p, *end = c + bytes; c < end; c++)
        if (*c != ((const char *)&pattern)[(uintptr_t)c & 3]) return 0;
    return 1;
}

/* The red zones of a buffer that place() gave. */
static void red_zones_check(int i, const void *data, size_t bytes) {
    const char *p = data;
    const struct arena *a = &arenas[i];
    if (p != a->begin && !poisoned(p - RED, RED)) fail("wrote before its output");
    if (p + bytes != a->end && !poisoned(p + bytes, RED)) fail("wrote behind its output");
}

static int mostly(void) { return random_int(0, 3) != 0; }
static uint32_t bits_of(float f) { uint32_t b; memcpy(&b, &f, 4); return b; }
static float float_of(uint32_t b) { float f; memcpy(&f, &b, 4); return f; }

/* ---- inputs ------------------------------------------------------------------------------------------------------- */

enum mode { EXACT, NORMAL, OUTLIER, TINY, LARGE, ZERO, EXTREME, N_MODES };
static const char *const mode_names[] = {"exact", "normal", "one outlier per block", "tiny", "large", "zeros", "extremes"};

/* EXACT values are whole numbers whose sums of products float holds, so that every summation order gives the same bits. Blocks
 * of 32 hold one +-127, which makes the scale of int8 activations exactly 1. */
static void fill_floats(float *x, int64_t n, enum mode mode, int exact_max) {
    float level = random_float(0.1f, 2);
    int outlier = random_int(0, 31);
    for (int64_t i = 0; i < n; i++) {
        switch (mode) {
        case EXACT: x[i] = (float)random_int(-exact_max, exact_max); break;
        case NORMAL: x[i] = random_normal(); break;
        case OUTLIER: x[i] = i % 32 == outlier ? 1000 * random_normal() : 0.01f * random_normal(); break;
        case TINY: x[i] = 1e-30f * random_normal(); break;
        case LARGE: x[i] = 1e4f * random_normal(); break;
        case ZERO: x[i] = random_int(0, 1) ? 0.0f : -0.0f; break;
        default: x[i] = random_int(0, 7) ? level : -level; break;
        }
        if (mode == EXACT && exact_max == 127 && i % 32 == outlier) x[i] = random_int(0, 1) ? 127 : -127;
    }
}

/* Where the scales stand in a block, so that its bytes can be drawn directly, past what quantize would write: everything else is codes. */
struct raw {
    const struct quant *type;
    int d, m;                            /* offsets of an f16 scale and of an f16 minimum; -1: none */
    int scales, n_scales;                /* bytes of whole-number scales */
    unsigned char noise, none[16];       /* none: all of these scales are 0 (of mxfp4: 1); flipping bits of noise leaves them small */
};
#define AT(type, field) (int)offsetof(struct block_##type, field)
static const struct raw raws[] = {
    {&quant_q8_0, AT(q8_0, d), -1, 0, 0, 0, {0}},
    {&quant_q4_0, AT(q4_0, d), -1, 0, 0, 0, {0}},
    {&quant_q4_1, AT(q4_1, d), AT(q4_1, m), 0, 0, 0, {0}},
    {&quant_q5_0, AT(q5_0, d), -1, 0, 0, 0, {0}},
    {&quant_q5_1, AT(q5_1, d), AT(q5_1, m), 0, 0, 0, {0}},
    {&quant_q2_k, AT(q2_k, d), AT(q2_k, dmin), AT(q2_k, scales), 16, 0x33, {0}},
    {&quant_q3_k, AT(q3_k, d), -1, AT(q3_k, scales), 12, 0x11, {[8] = 0xaa, 0xaa, 0xaa, 0xaa}},
    {&quant_q4_k, AT(q4_k, d), AT(q4_k, dmin), AT(q4_k, scales), 12, 0x13, {0}},
    {&quant_q5_k, AT(q5_k, d), AT(q5_k, dmin), AT(q5_k, scales), 12, 0x13, {0}},
    {&quant_q6_k, AT(q6_k, d), -1, AT(q6_k, scales), 16, 0x07, {0}},
    {&quant_iq4_nl, AT(iq4_nl, d), -1, 0, 0, 0, {0}},
    {&quant_iq4_xs, AT(iq4_xs, d), -1, AT(iq4_xs, scales_h), 6, 0x01, {0xaa, 0xaa}},
    {&quant_mxfp4, -1, -1, AT(mxfp4, e), 1, 0x03, {128}},
};

static const struct raw *raw_find(const struct quant *type) {
    for (size_t i = 0; i < countof(raws); i++)
        if (raws[i].type == type) return &raws[i];
    if (type->codes) fail("check.c: raws[] has no row for %s", type->name);
    return NULL;
}

static uint16_t random_scale(enum mode mode) {
    switch (mode) {
    case EXACT: return float_to_half(random_int(0, 1) ? 1 : 2);
    case TINY: return (uint16_t)random_int(0, 1023);                         /* subnormal */
    case LARGE: return float_to_half(random_float(100, 65504));
    case ZERO: return random_int(0, 1) ? 0 : 0x8000;
    default: return float_to_half(random_normal() * 0.02f);                  /* negative ones, too */
    }
}

/* One of the patterns that a row of bytes may be made of; 5 is quiet, but for one. */
static void fill_bytes(unsigned char *w, int n, int kind, unsigned char quiet) {
    for (int j = 0; j < n; j++) {
        int q[] = {0x80, 0x7f, 0x00, 0xff, random_int(0, 255), quiet};
        w[j] = (unsigned char)q[kind];
    }
    if (kind == 5 && n) w[random_int(0, n - 1)] = random_int(0, 1) ? 0x7f : 0x80;
}

static void fill_raw(const struct raw *raw, unsigned char *w, int64_t n_blocks, enum mode mode) {
    const struct quant *type = raw->type;
    for (int64_t b = 0; b < n_blocks; b++, w += type->bytes) {
        int extreme = mode == EXTREME || mode == EXACT;
        fill_bytes(w, (int)type->bytes, extreme ? random_int(0, 4) : mode == OUTLIER ? 5 : 4, type == &quant_q4_0 ? 0x88 : 0);
        unsigned char *scales = w + raw->scales;
        fill_bytes(scales, raw->n_scales, extreme ? random_int(0, 4) : 4, 0);
        if (mode == EXACT && (type == &quant_mxfp4 || mostly()))
            for (int j = 0; j < raw->n_scales; j++)
                scales[j] = (unsigned char)(raw->none[j] ^ (random_int(0, 255) & raw->noise));
        if (type == &quant_mxfp4 && mode != EXACT)       /* a power of two */
            *scales = (unsigned char)random_int(mode == TINY ? 0 : mode == LARGE ? 128 : 118, mode == TINY ? 3 : mode == LARGE ? 150 : 130);
        uint16_t d = random_scale(mode), m = mostly() ? random_scale(mode) : 0;
        if (raw->d >= 0) memcpy(w + raw->d, &d, 2);
        if (raw->m >= 0) memcpy(w + raw->m, &m, 2);
    }
}

static void fill_weights(const struct quant *type, void *w, int64_t n_in, enum mode mode) {
    static float x[1 << 16];
    const struct raw *raw = raw_find(type);
    if (raw && (mode == EXACT || !type->quantize || mostly())) { fill_raw(raw, w, n_in / type->block, mode); return; }
    fill_floats(x, n_in, mode == LARGE ? NORMAL : mode, 8);
    if (mode == TINY)                                    /* subnormal halves, and subnormal floats through bf16 and f32 */
        for (int64_t i = 0; i < n_in; i++) x[i] *= type->id == quant_f16.id || raw ? 1e23f : 1e-9f;
    if (mode == LARGE)
        for (int64_t i = 0; i < n_in; i++) x[i] *= 2e4f;
    type->quantize(x, n_in, w);
}

/* Rows of ordinary weights; of types that cannot be made here, of random bytes whose scales are small. */
static void random_rows(const struct quant *type, char *w, size_t row, int n_out, int64_t n_in) {
    static float x[1 << 16];
    for (int r = 0; r < n_out; r++, w += row) {
        fill_floats(x, n_in, NORMAL, 8);
        if (type->quantize) type->quantize(x, n_in, w);
        else for (size_t i = 0; i < row; i++) w[i] = (char)random_int(0, 31);
    }
}

/* ---- matmul ------------------------------------------------------------------------------------------------------- */

/* Vectors as the type wants them. */
static size_t act_bytes(const struct quant *type, int64_t n) { return type->codes ? act_q8_bytes(n) : (size_t)n * 4; }

static double act_value(const struct quant *type, const void *act, int64_t n, int64_t i) {
    if (!type->codes) return ((const float *)act)[i];
    return (double)((const float *)((const char *)act + act_q8_d(n)))[i / 32] * ((const int8_t *)act)[i];
}

/* m->n_tok of the vectors, from vector t on, in an arena, in the arrangement that so many have; the rest of a group is poison. */
static void act_place(struct matmul *m, int arena, const char *vectors, size_t stride, int t) {
    size_t slack = (size_t)random_int(0, mostly() ? 0 : 3), bytes = act_bytes(m->type, m->n_in);
    int groups = m->type->codes && m->n_tok > ACT_FEW;
    m->a_stride = groups ? act_group_bytes(m->n_in) + 64 * slack : bytes + (m->type->codes ? 64 : 4) * slack;
    size_t n = (size_t)(groups ? (m->n_tok + ACT_GROUP - 1) / ACT_GROUP : m->n_tok);
    if (groups) bytes = act_group_bytes(m->n_in);
    char *a = place(arena, n ? (n - 1) * m->a_stride + bytes : 0, 1);
    for (int i = 0; i < m->n_tok; i++) {
        const char *from = vectors + (size_t)(t + i) * stride;
        if (groups) act_group_put(from, m->n_in, i % ACT_GROUP, (struct act_block *)(a + (size_t)(i / ACT_GROUP) * m->a_stride));
        else memcpy(a + (size_t)i * m->a_stride, from, bytes);
    }
    lock(arena);
    m->a = a;
}

/* Calls fn on outputs of its own, poisoned; checks that exactly the outputs were written, and gives them. */
static float *matmul_call(matmul_fn *fn, struct matmul m, int arena) {
    m.y_stride = (size_t)m.n_out + (size_t)random_int(0, 5);
    size_t n = m.n_tok && m.n_out ? (size_t)(m.n_tok - 1) * m.y_stride + (size_t)m.n_out : 0;
    float *y = m.y = place(arena, n * 4, mostly());
    fn(&m);
    red_zones_check(arena, y, n * 4);
    for (int t = 0; n && t < m.n_tok; t++) {
        if (t && !poisoned(y + t * m.y_stride - (m.y_stride - (size_t)m.n_out), (m.y_stride - (size_t)m.n_out) * 4))
            fail("wrote between its rows of outputs");
        memmove(y + t * m.n_out, y + t * m.y_stride, (size_t)m.n_out * 4);
    }
    return y;
}

/* The weights of a row, and how large they are before a minimum takes away from them: |d * (q - zero)| + |m|. */
static void weights_read(const struct quant *type, const void *row, int64_t n, float *w, float *size) {
    quant_dequantize(type, row, n, w);
    for (int64_t i = 0; i < n; i++) size[i] = fabsf(w[i]);
    for (int64_t b = 0; quant_has_mins(type) && b < n / 32; b++) {
        struct codes c;
        type->codes(row, b, &c);
        for (int j = 0; j < 32; j++) size[b * 32 + j] = fabsf(c.d[j / 16] * (float)(c.q[j] - type->zero)) + fabsf(c.m[j / 16]);
    }
}

/* One problem. fn against ref, or, if ref is NULL (scalar itself), against sums in double. Every float evaluation of a sum of n
 * products is within n * FLT_EPSILON / 2 * sum|w * x| (Higham 2002, section 4.2) and a little for rounding the products; the
 * factor 2 leaves room for the latter, and two evaluations differ by twice that; those of codes do not differ at all. Products that underflow add 2^-149 each, times
 * the integers (below 2^14) that a rounded product of scales may be multiplied with. */
static void matmul_case(const struct quant *type, matmul_fn *fn, matmul_fn *ref, int n_out, int n_tok, int64_t n_in,
                        enum mode mode) {
    snprintf(test_case, sizeof test_case, "n_out %d, n_tok %d, n_in %lld, %s", n_out, n_tok, (long long)n_in, mode_names[mode]);
    size_t row = quant_row_bytes(type, n_in);
    struct matmul m = {.type = type, .n_in = n_in, .n_out = n_out, .n_tok = n_tok};
    size_t align = type->bytes == 4 ? 4 : 2;             /* rows of blocks lie at any even address */
    m.w_stride = row + align * (size_t)random_int(0, mostly() ? 0 : 9);

    char *w = place(0, n_out ? (size_t)(n_out - 1) * m.w_stride + row : 0, mostly());
    for (int r = 0; r < n_out; r++) fill_weights(type, w + r * m.w_stride, n_in, mode);
    lock(0);
    m.w = w;
    static _Alignas(64) char vectors[1 << 21];
    size_t stride = (size_t)round_up((int64_t)act_bytes(type, n_in), 64);
    for (int t = 0; t < n_tok; t++) {
        static float x[1 << 16];
        fill_floats(x, n_in, mode, type->codes ? 127 : 8);
        if (type->codes) act_q8_quantize(x, n_in, vectors + t * stride);
        else memcpy(vectors + t * stride, x, (size_t)n_in * 4);
    }
    act_place(&m, 1, vectors, stride, 0);

    float *y = matmul_call(fn, m, 2);
    float *want = ref ? matmul_call(ref, m, 3) : NULL;
    static float wf[1 << 16], sizes[1 << 16];
    for (int r = 0; r < n_out; r++) {
        weights_read(type, w + r * m.w_stride, n_in, wf, sizes);
        for (int t = 0; t < n_tok; t++) {
            double sum = 0, magnitude = 0;
            for (int64_t i = 0; i < n_in; i++) {
                double a = act_value(type, vectors + t * stride, n_in, i);
                sum += wf[i] * a;
                magnitude += sizes[i] * fabs(a);
            }
            float got = y[t * n_out + r];
            int exact = mode == EXACT && magnitude < 0x1p24;
            double expected = exact || !want ? sum : (double)want[t * n_out + r];
            double bound = exact ? 0 : 2 * (double)n_in * (FLT_EPSILON * magnitude + 0x1p14 * 0x1p-149);
            if (!(fabs(got - expected) <= bound))
                fail("row %d, token %d is %.9g, not %.9g within %.3g", r, t, got, expected, bound);
            if (want && type->codes && bits_of(got) != bits_of(want[t * n_out + r]))
                fail("row %d, token %d is %.9g, and %.9g in scalar C, which must be the same bits", r, t, got, want[t * n_out + r]);
        }
    }

    /* A result has the same bits whichever others are computed with it. */
    for (int i = 0; n_out && n_tok && i < (n_out * n_tok > 1 ? 4 : 0); i++) {
        int r = i ? random_int(0, n_out - 1) : n_out - 1, t = i ? random_int(0, n_tok - 1) : n_tok - 1;
        struct matmul part = m;
        part.w = w + r * m.w_stride;
        part.n_out = random_int(1, n_out - r);
        part.n_tok = random_int(1, n_tok - t);
        act_place(&part, 1, vectors, stride, t);
        float *again = matmul_call(fn, part, 4);
        for (int k = 0; k < part.n_out * part.n_tok; k++) {
            int row_k = r + k % part.n_out, token_k = t + k / part.n_out;
            if (bits_of(again[k]) != bits_of(y[token_k * n_out + row_k]))
                fail("row %d, token %d is %.9g in whole, %.9g in rows %d..%d, tokens %d..%d", row_k, token_k,
                     y[token_k * n_out + row_k], again[k], r, r + part.n_out - 1, t, t + part.n_tok - 1);
        }
    }
}

/* Every finite 16-bit number, once as a weight: a kernel's own conversion must be exact, subnormals included. */
static void matmul_every_number(const struct quant *type, matmul_fn *fn) {
    snprintf(test_case, sizeof test_case, "every 16-bit number");
    uint16_t *w = place(0, 65536 * 2, 1);
    float *a = place(1, 64, 1);
    for (int i = 0; i < 65536; i++) w[i] = (uint16_t)i;
    a[0] = 1;
    struct matmul m = {type, w, 2, a, 64, NULL, 0, 1, 65536, 1};
    float *y = matmul_call(fn, m, 2);
    for (int i = 0; i < 65536; i++) {
        float expected;
        type->dequantize(w + i, 1, &expected);
        if (isfinite(expected) && y[i] != expected) fail("0x%04x is %.9g, not %.9g", i, y[i], expected);
    }
}

static void matmul_check(const struct quant *type, void *fn_, void *ref_) {
    matmul_fn *fn = *(matmul_fn **)fn_, *ref = ref_ ? *(matmul_fn **)ref_ : NULL;
    static const int64_t floats[] = {1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 96, 130, 257, 384};
    static const int64_t blocks[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16};
    int n_sizes = type->block == 1 ? (int)countof(floats) : type->block == 32 ? (int)countof(blocks) : 5;
    for (int n_out = 0; n_out <= 35; n_out++) {
        for (int n_tok = 0; n_tok <= 19; n_tok++) {
            for (int i = 0; i < (quick ? 1 : 4); i++) {
                if (quick && n_out > 2 && n_tok > 2 && random_int(0, 3)) continue;
                int k = random_int(0, n_sizes - 1);
                matmul_case(type, fn, ref, n_out, n_tok, type->block == 1 ? floats[k] : blocks[k] * type->block,
                            (enum mode)random_int(0, N_MODES - 1));
            }
        }
    }
    for (int k = 0; k < n_sizes; k++)                    /* every width, at and around the tiles, whole numbers only */
        for (int n_tok = 1; n_tok <= (quick ? 3 : 17); n_tok++)
            matmul_case(type, fn, ref, 17, n_tok, type->block == 1 ? floats[k] : blocks[k] * type->block, EXACT);
    for (int mode = 0; mode < N_MODES; mode++) {         /* long sums */
        matmul_case(type, fn, ref, 5, 3, 4096 + type->block, (enum mode)mode);
        if (!quick) matmul_case(type, fn, ref, 17, 13, 11008, (enum mode)mode);
    }
    if (type->block == 1 && type->bytes == 2) matmul_every_number(type, fn);
}

/* ---- activations in int8 ------------------------------------------------------------------------------------------ */

typedef void act_fn(const float *x, int64_t n, void *act);

static void act_q8_case(act_fn *fn, int64_t n, enum mode mode, int halves, int exponent) {
    snprintf(test_case, sizeof test_case, "n %lld, %s%s, times 2^%d", (long long)n, mode_names[mode], halves ? ", halves" : "", exponent);
    size_t bytes = act_q8_bytes(n), shift = 4 * (size_t)random_int(0, mostly() ? 0 : 15);
    float *x = (float *)((char *)place(0, (size_t)n * 4 + shift, 1));
    fill_floats(x, n, mode, 127);
    for (int64_t i = 0; halves && i < n; i++)            /* ties: to even, as the scale is exactly 1 */
        if (fabsf(x[i]) != 127) x[i] += 0.5f;
    for (int64_t i = 0; exponent && i < n; i++) x[i] = ldexpf(x[i], exponent);
    lock(0);
    char *got = place(1, bytes, mostly()), *want = place(2, bytes, 1);
    fn(x, n, got);
    act_q8_quantize(x, n, want);
    red_zones_check(1, got, bytes);
    for (int64_t i = 0; i < n; i++)
        if (got[i] != want[i]) fail("q[%lld] of %.9g is %d, not %d", (long long)i, x[i], (int8_t)got[i], (int8_t)want[i]);
    for (size_t b = 0; b < (size_t)n / 32; b++) {
        if (memcmp(got + act_q8_d(n) + b * 4, want + act_q8_d(n) + b * 4, 4)) fail("d[%zu] differs", b);
        if (memcmp(got + act_q8_sum(n) + b * 4, want + act_q8_sum(n) + b * 4, 4)) fail("sum[%zu] differs", b);
        if (memcmp(got + act_q8_half(n) + b * 4, want + act_q8_half(n) + b * 4, 4)) fail("half[%zu] differs", b);
    }
}

/* The reference itself, by its definition: d = max / 127 and q within half a step (and the rounding of the product). */
static void act_q8_definition(void) {
    static float x[1024];
    static _Alignas(64) char act[8192];
    for (int mode = 0; mode < N_MODES; mode++) {
        snprintf(test_case, sizeof test_case, "%s", mode_names[mode]);
        fill_floats(x, 1024, (enum mode)mode, 127);
        act_q8_quantize(x, 1024, act);
        for (int b = 0; b < 32; b++) {
            float max = 0, d;
            int32_t sum = 0, half = 0, said, half_said;
            for (int j = 0; j < 32; j++) max = fmaxf(max, fabsf(x[b * 32 + j]));
            memcpy(&d, act + act_q8_d(1024) + b * 4, 4);
            memcpy(&said, act + act_q8_sum(1024) + b * 4, 4);
            memcpy(&half_said, act + act_q8_half(1024) + b * 4, 4);
            if (d != max / 127) fail("d[%d] is %.9g for a largest value of %.9g", b, d, max);
            for (int j = 0; j < 32; j++) {
                int q = (int8_t)act[b * 32 + j];
                sum += q;
                half += j < 16 ? q : 0;
                if (!(fabs((double)d * q - x[b * 32 + j]) <= d * (0.5 + 127 * 2 * FLT_EPSILON)))
                    fail("%.9g became %d times %.9g", x[b * 32 + j], q, d);
            }
            if (sum != said) fail("sum[%d] is %d, not %d", b, said, sum);
            if (half != half_said) fail("half[%d] is %d, not %d", b, half_said, half);
        }
    }
}

/* A NaN must not vanish on its way into the products: the scale of its block is NaN, and of no other. */
static void act_q8_nan(act_fn *fn, int64_t n, int64_t at) {
    snprintf(test_case, sizeof test_case, "n %lld, NaN at %lld", (long long)n, (long long)at);
    float *x = (float *)place(0, (size_t)n * 4, 1);
    fill_floats(x, n, NORMAL, 127);
    x[at] = NAN;
    char *got = place(1, act_q8_bytes(n), 1);
    fn(x, n, got);
    for (int64_t b = 0; b < n / 32; b++) {
        float d;
        memcpy(&d, got + act_q8_d(n) + (size_t)b * 4, 4);
        if (!isnan(d) != (b != at / 32)) fail("d[%lld] is %g", (long long)b, (double)d);
    }
}

static void act_q8_check(const struct quant *type, void *fn, void *ref) {
    (void)type;
    if (!ref) act_q8_definition();
    for (int blocks = 1; blocks <= 40; blocks++)
        for (int mode = 0; mode < N_MODES; mode++)
            act_q8_case(*(act_fn **)fn, 32 * blocks, (enum mode)mode, 0, 0);
    for (int blocks = 1; blocks <= 9; blocks++) act_q8_case(*(act_fn **)fn, 32 * blocks, EXACT, 1, 0);
    for (int at = 0; at < 96; at++) act_q8_nan(*(act_fn **)fn, 96, at);
    for (int exponent = -150; exponent <= -110; exponent++)      /* 127 / max overflows on the way */
        act_q8_case(*(act_fn **)fn, 64, NORMAL, 0, exponent);
    act_q8_case(*(act_fn **)fn, 11008, NORMAL, 0, 0);
}

/* ---- layer_norm --------------------------------------------------------------------------------------------------- */

typedef void norm_fn(const float *x, const float *w, const float *b, float eps, int64_t n, float *y);

/* With u = FLT_EPSILON / 2 and sums in 16 lanes (depth L = n / 16 + 16, and 4 more roundings), one evaluation is off by
 *     mean:      dm = (L + 4) u mean|x|
 *     variance:  relative (L + 4) u + dm^2 / (variance + eps), of which the root takes half; never more than all of it
 *     result:    |w| / deviation * (dm + |x - mean| * (root's error + 4 u)) + 2 u (|result| + |b|)
 * and two evaluations by twice that. Against double one of the two would do. */
static void layer_norm_case(norm_fn *fn, norm_fn *ref, int64_t n, enum mode mode, float offset) {
    snprintf(test_case, sizeof test_case, "n %lld, %s around %g", (long long)n, mode_names[mode], offset);
    float eps = mode == TINY ? 1e-12f : 1e-5f;
    int at_end = mostly(), with_b = mostly();
    float *x = place(0, (size_t)n * 4, at_end), *w = place(1, (size_t)n * 4, at_end);
    float *b = with_b ? place(2, (size_t)n * 4, at_end) : NULL;
    fill_floats(x, n, mode, 8);
    for (int64_t i = 0; i < n; i++) x[i] += offset;
    fill_floats(w, n, NORMAL, 8);
    if (b) fill_floats(b, n, NORMAL, 8);
    lock(0);
    lock(1);
    if (b) lock(2);
    float *y = place(3, (size_t)n * 4, mostly()), *in_place = place(4, (size_t)n * 4, mostly());
    fn(x, w, b, eps, n, y);
    red_zones_check(3, y, (size_t)n * 4);
    memcpy(in_place, x, (size_t)n * 4);
    fn(in_place, w, b, eps, n, in_place);
    red_zones_check(4, in_place, (size_t)n * 4);
    if (memcmp(y, in_place, (size_t)n * 4)) fail("differs when the output is the input");

    double sum = 0, magnitude = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i], magnitude += fabsf(x[i]);
    double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    double variance = squares / (double)n + eps, u = FLT_EPSILON / 2.0, depth = (double)n / 16 + 20;
    double dm = depth * u * magnitude / (double)n + 0x1p-149;
    double root = fmin(1, (depth * u + dm * dm / variance) / 2);
    float *want = ref ? place(5, (size_t)n * 4, 1) : NULL;
    if (ref) ref(x, w, b, eps, n, want);
    for (int64_t i = 0; i < n; i++) {
        double bias = b ? b[i] : 0, exact = (x[i] - mean) / sqrt(variance) * w[i] + bias;
        double expected = ref ? (double)want[i] : exact;
        double bound = 2 * (fabsf(w[i]) / sqrt(variance) * (dm + fabs(x[i] - mean) * (root + 4 * u)) +
                            2 * u * (fabs(exact) + fabs(bias)) + 0x1p-148);
        if (!(fabs(y[i] - expected) <= bound))
            fail("y[%lld] is %.9g, not %.9g within %.3g", (long long)i, y[i], expected, bound);
    }
}

static void layer_norm_check(const struct quant *type, void *fn, void *ref) {
    (void)type;
    static const int64_t large[] = {128, 384, 768, 1023, 1600, 4097};
    for (int64_t n = 1; n <= 70 + (int64_t)countof(large); n++)
        for (int mode = 0; mode < N_MODES; mode++)
            layer_norm_case(*(norm_fn **)fn, ref ? *(norm_fn **)ref : NULL, n <= 70 ? n : large[n - 71], (enum mode)mode,
                            mode == NORMAL ? random_float(-100, 100) : 0);
}

/* ---- gelu --------------------------------------------------------------------------------------------------------- */

typedef void gelu_fn(float *x, int64_t n);

static double gelu_erf_exact(double x) { return x * erfc(-x * 0.70710678118654752) / 2; }
static double gelu_tanh_exact(double x) {
    return x / (1 + exp(-2 * 0.79788456080286536 * (x + 0.044715 * x * x * x)));
}

/* Against the function itself, in double. 1 + erf is rounded at 1, so an evaluation is off by FLT_EPSILON / 4 * |x| however
 * good its erf is; 2 FLT_EPSILON for erf or tanh (half of which arrives), 1 for the roundings of their argument (z erf'(z) is
 * at most 0.49, z tanh'(z) at most 0.45), and 1 for the constants and products make less than 4 FLT_EPSILON * |x|. */
static void gelu_values_check(gelu_fn *fn, double (*exact)(double), const float *x, int64_t n) {
    float *y = place(0, (size_t)n * 4, mostly());
    memcpy(y, x, (size_t)n * 4);
    fn(y, n);
    red_zones_check(0, y, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++) {
        double bound = 4 * FLT_EPSILON * fabs((double)x[i]) + 0x1p-148;
        if (!(fabs(y[i] - exact(x[i])) <= bound)) fail("of %.9g is %.9g, not %.9g within %.3g", x[i], y[i], exact(x[i]), bound);
    }
    for (int k = 0; k < 3 && n > 1; k++) {               /* the same bits wherever a value stands */
        int64_t first = random_int(0, (int)n - 1), count = random_int(1, (int)i64_min(n - first, 20));
        float *part = place(1, (size_t)count * 4, 1);
        memcpy(part, x + first, (size_t)count * 4);
        fn(part, count);
        if (memcmp(part, y + first, (size_t)count * 4)) fail("values depend on their place among %lld", (long long)n);
    }
}

static void gelu_check(gelu_fn *fn, double (*exact)(double)) {
    static float x[1 << 17];
    for (int n = 1; n <= 70; n++) {
        for (int mode = 0; mode < N_MODES; mode++) {
            snprintf(test_case, sizeof test_case, "n %d, %s", n, mode_names[mode]);
            fill_floats(x, n, (enum mode)mode, 8);
            gelu_values_check(fn, exact, x, n);
        }
    }
    snprintf(test_case, sizeof test_case, "-12..12");
    for (int i = 0; i < 60000; i++) x[i] = random_float(-12, 12);
    gelu_values_check(fn, exact, x, 60000);
    snprintf(test_case, sizeof test_case, "floats of every size");
    int n = 0;
    for (uint64_t bits = (uint64_t)random_int(0, 50000); bits < 1ull << 32; bits += 50001) {
        float f = float_of((uint32_t)bits);
        if (isfinite(f)) x[n++] = f;
    }
    gelu_values_check(fn, exact, x, n);
}
static void gelu_erf_check(const struct quant *type, void *fn, void *ref) {
    (void)type, (void)ref;
    gelu_check(*(gelu_fn **)fn, gelu_erf_exact);
}
static void gelu_tanh_check(const struct quant *type, void *fn, void *ref) {
    (void)type, (void)ref;
    gelu_check(*(gelu_fn **)fn, gelu_tanh_exact);
}

/* ---- rms_norm ----------------------------------------------------------------------------------------------------- */

typedef void rms_norm_fn(const float *x, const float *w, float eps, int64_t n, float *y);

/* As for layer_norm, without a mean: the mean of squares is off by (L + 4) u, its root by half of that, the result by 4 u more.
 * Squares of tiny values underflow; eps hides them. */
static void rms_norm_case(rms_norm_fn *fn, rms_norm_fn *ref, int64_t n, enum mode mode) {
    snprintf(test_case, sizeof test_case, "n %lld, %s", (long long)n, mode_names[mode]);
    float eps = mode == TINY ? 1e-12f : 1e-5f;
    int at_end = mostly();
    size_t bytes = (size_t)n * 4;
    float *x = place(0, bytes, at_end), *w = place(1, bytes, at_end);
    fill_floats(x, n, mode, 8);
    fill_floats(w, n, NORMAL, 8);
    lock(0);
    lock(1);
    float *y = place(2, bytes, mostly()), *in_place = place(3, bytes, mostly());
    fn(x, w, eps, n, y);
    red_zones_check(2, y, bytes);
    memcpy(in_place, x, bytes);
    fn(in_place, w, eps, n, in_place);
    red_zones_check(3, in_place, bytes);
    if (memcmp(y, in_place, bytes)) fail("differs when the output is the input");

    double squares = 0, u = FLT_EPSILON / 2.0, root = ((double)n / 16 + 20) * u / 2;
    for (int64_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    float *want = ref ? place(4, bytes, 1) : NULL;
    if (ref) ref(x, w, eps, n, want);
    for (int64_t i = 0; i < n; i++) {
        double exact = x[i] / sqrt(squares / (double)n + eps) * w[i], expected = ref ? (double)want[i] : exact;
        double bound = 2 * (fabs(exact) * (root + 4 * u) + 0x1p-148);
        if (!(fabs(y[i] - expected) <= bound))
            fail("y[%lld] is %.9g, not %.9g within %.3g", (long long)i, y[i], expected, bound);
    }
}

static void rms_norm_check(const struct quant *type, void *fn, void *ref) {
    (void)type;
    static const int64_t large[] = {128, 384, 896, 1023, 2048, 4097};
    for (int64_t n = 1; n <= 70 + (int64_t)countof(large); n++)
        for (int mode = 0; mode < N_MODES; mode++)
            rms_norm_case(*(rms_norm_fn **)fn, ref ? *(rms_norm_fn **)ref : NULL, n <= 70 ? n : large[n - 71], (enum mode)mode);
}

/* ---- silu_mul ----------------------------------------------------------------------------------------------------- */

typedef void silu_fn(float *x, const float *y, int64_t n);

/* Against the function itself, in double. The exponential is good to 2 FLT_EPSILON, the sum, the quotient and the products to half
 * of one each: 4 of the result. It may flush what is below e^-87 to zero, which x and y multiply. */
static void silu_values_check(silu_fn *fn, const float *x, const float *y, int64_t n) {
    size_t bytes = (size_t)n * 4;
    float *got = place(0, bytes, mostly()), *by = place(1, bytes, mostly());
    memcpy(got, x, bytes);
    memcpy(by, y, bytes);
    lock(1);
    fn(got, by, n);
    red_zones_check(0, got, bytes);
    for (int64_t i = 0; i < n; i++) {
        double gate = x[i] / (1 + exp(-(double)x[i])), exact = gate * y[i];
        double bound = 4 * FLT_EPSILON * fabs(exact) + fabs((double)x[i]) * 2 * FLT_MIN * (x[i] < -80) * (double)fabsf(y[i]) +
                       0x1p-148 * (1 + fabs((double)y[i]));
        if (fabs(exact) < FLT_MAX && !(fabs(got[i] - exact) <= bound))
            fail("of %.9g and %.9g is %.9g, not %.9g within %.3g", x[i], y[i], got[i], exact, bound);
    }
    for (int k = 0; k < 3 && n > 1; k++) {               /* the same bits wherever a value stands */
        int64_t first = random_int(0, (int)n - 1), count = random_int(1, (int)i64_min(n - first, 20));
        float *part = place(2, (size_t)count * 4, 1);
        memcpy(part, x + first, (size_t)count * 4);
        fn(part, y + first, count);
        if (memcmp(part, got + first, (size_t)count * 4)) fail("values depend on their place among %lld", (long long)n);
    }
}

static void silu_mul_check(const struct quant *type, void *fn_, void *ref) {
    (void)type, (void)ref;
    silu_fn *fn = *(silu_fn **)fn_;
    static float x[1 << 17], y[1 << 17];
    for (int n = 1; n <= 70; n++)
        for (int mode = 0; mode < N_MODES; mode++) {
            snprintf(test_case, sizeof test_case, "n %d, %s", n, mode_names[mode]);
            fill_floats(x, n, (enum mode)mode, 8);
            fill_floats(y, n, mode == LARGE ? NORMAL : (enum mode)mode, 8);
            silu_values_check(fn, x, y, n);
        }
    snprintf(test_case, sizeof test_case, "-100..100");
    for (int i = 0; i < 60000; i++) x[i] = random_float(-100, 100), y[i] = random_normal();
    silu_values_check(fn, x, y, 60000);
    snprintf(test_case, sizeof test_case, "floats of every size");
    int n = 0;
    for (uint64_t bits = (uint64_t)random_int(0, 50000); bits < 1ull << 32; bits += 50001) {
        float f = float_of((uint32_t)bits);
        if (isfinite(f)) y[n] = random_normal(), x[n++] = f;
    }
    silu_values_check(fn, x, y, n);
}

/* ---- relu --------------------------------------------------------------------------------------------------------- */

static float relu_exact(float x) { return x > 0 ? x : 0; }
static float relu_squared_exact(float x) { return x > 0 ? x * x : 0; }

/* To the bit, but for the sign of zero. What is no number stays none: damaged weights must not become text. */
static void relu_values_check(gelu_fn *fn, float (*exact)(float)) {
    for (int n = 1; n <= 200; n++)
        for (int mode = 0; mode < N_MODES; mode++) {
            float x[200];
            snprintf(test_case, sizeof test_case, "n %d, %s", n, mode_names[mode]);
            fill_floats(x, n, (enum mode)mode, 8);
            float *y = place(0, (size_t)n * 4, mostly());
            memcpy(y, x, (size_t)n * 4);
            fn(y, n);
            red_zones_check(0, y, (size_t)n * 4);
            for (int i = 0; i < n; i++)
                if (y[i] != exact(x[i])) fail("of %.9g is %.9g, not %.9g", x[i], y[i], exact(x[i]));
            y[n / 2] = NAN;
            fn(y, n);
            if (y[n / 2] == y[n / 2]) fail("of NaN is %.9g", y[n / 2]);
        }
}
static void relu_check(const struct quant *type, void *fn, void *ref) {
    (void)type, (void)ref;
    relu_values_check(*(gelu_fn **)fn, relu_exact);
}
static void relu_squared_check(const struct quant *type, void *fn, void *ref) {
    (void)type, (void)ref;
    relu_values_check(*(gelu_fn **)fn, relu_squared_exact);
}

/* ---- softcap ------------------------------------------------------------------------------------------------------ */

typedef void softcap_fn(float *x, float cap, int64_t n);

/* Against the function itself, in double. Of z below 0.1 the series leaves out 62 / 2835 z^9, 0.2 FLT_EPSILON of the result; above,
 * 1 - e is 0.18 or more and has the error of e, 2 FLT_EPSILON: at most 12 of them. */
static void softcap_check(const struct quant *type, void *fn, void *ref) {
    (void)type, (void)ref;
    static const float caps[] = {0.5f, 15, 20, 30, 1000, 1e6f, 1e30f};
    for (int n = 1; n <= 200; n++)
        for (int mode = 0; mode < N_MODES; mode++) {
            float x[200], cap = caps[n % (int)countof(caps)];
            snprintf(test_case, sizeof test_case, "n %d, cap %g, %s", n, (double)cap, mode_names[mode]);
            fill_floats(x, n, (enum mode)mode, 30);
            float *y = place(0, (size_t)n * 4, mostly());
            memcpy(y, x, (size_t)n * 4);
            (*(softcap_fn **)fn)(y, cap, n);
            red_zones_check(0, y, (size_t)n * 4);
            for (int i = 0; i < n; i++) {
                double exact = cap * tanh((double)x[i] / cap), bound = 16 * FLT_EPSILON * fabs(exact) + (cap + 1.0) * FLT_MIN;
                if (!(fabs(y[i] - exact) <= bound)) fail("of %.9g is %.9g, not %.9g within %.3g", x[i], y[i], exact, bound);
            }
            y[n / 2] = NAN;
            (*(softcap_fn **)fn)(y, cap, n);
            if (y[n / 2] == y[n / 2]) fail("of NaN is %.9g", y[n / 2]);
        }
}

/* ---- add ---------------------------------------------------------------------------------------------------------- */

typedef void add_fn(float *y, const float *x, int64_t n);

/* To the bit: there is but one sum of two floats. */
static void add_check(const struct quant *type, void *fn_, void *ref) {
    (void)type, (void)ref;
    add_fn *fn = *(add_fn **)fn_;
    for (int n = 1; n <= 200; n++)
        for (int mode = 0; mode < N_MODES; mode++) {
            float x[200], y[200];
            size_t bytes = (size_t)n * 4;
            snprintf(test_case, sizeof test_case, "n %d, %s", n, mode_names[mode]);
            fill_floats(x, n, (enum mode)mode, 8);
            fill_floats(y, n, (enum mode)mode, 8);
            float *got = place(0, bytes, mostly()), *by = place(1, bytes, mostly());
            memcpy(got, y, bytes);
            memcpy(by, x, bytes);
            lock(1);
            fn(got, by, n);
            red_zones_check(0, got, bytes);
            for (int i = 0; i < n; i++) {
                float sum = y[i] + x[i];
                if (memcmp(&got[i], &sum, 4)) fail("of %.9g and %.9g is %.9g, not %.9g", y[i], x[i], got[i], sum);
            }
        }
}

/* ---- halves ------------------------------------------------------------------------------------------------------- */

typedef void halves_fn(const float *x, int64_t n, uint16_t *h);

/* The same bits as float_to_half's, which is tested below: of NaN, too. */
static void halves_case(halves_fn *fn, const float *values, int64_t n) {
    float *x = place(0, (size_t)n * 4, mostly());
    memcpy(x, values, (size_t)n * 4);
    lock(0);
    uint16_t *h = place(1, (size_t)n * 2, mostly());
    fn(x, n, h);
    red_zones_check(1, h, (size_t)n * 2);
    for (int64_t i = 0; i < n; i++)
        if (h[i] != float_to_half(x[i])) fail("%.9g (0x%08x) became 0x%04x, not 0x%04x", x[i], bits_of(x[i]), h[i], float_to_half(x[i]));
}

static void halves_check(const struct quant *type, void *fn_, void *ref) {
    (void)type, (void)ref;
    halves_fn *fn = *(halves_fn **)fn_;
    static float x[1 << 18];
    for (int n = 1; n <= 70; n++)
        for (int mode = 0; mode < N_MODES; mode++) {
            snprintf(test_case, sizeof test_case, "n %d, %s", n, mode_names[mode]);
            fill_floats(x, n, (enum mode)mode, 127);
            if (!mostly()) x[random_int(0, n - 1)] = float_of(random_int(0, 1) ? 0x7fc00001 : 0xff800000);
            halves_case(fn, x, n);
        }
    snprintf(test_case, sizeof test_case, "around every half");
    int n = 0;
    for (unsigned h = 0; h < 65536; h++) {               /* itself, halfway to the next, and a little on both sides of that */
        uint32_t bits = bits_of(half_to_float((uint16_t)h)), half_way = bits_of(half_to_float((uint16_t)(h + 1)));
        float middle = (float)(((double)float_of(bits) + (double)float_of(half_way)) / 2);
        x[n++] = float_of(bits);
        x[n++] = middle;
        x[n++] = nextafterf(middle, INFINITY);
        x[n++] = nextafterf(middle, -INFINITY);
    }
    halves_case(fn, x, n);
    snprintf(test_case, sizeof test_case, "any bits");
    for (n = 0; n < 1 << 16; n++) x[n] = float_of((uint32_t)random_u64());
    halves_case(fn, x, n);
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

typedef void attention_fn(const struct attention *a);

/* Which arena holds what. */
enum { AT_Q, AT_K, AT_V, AT_P, AT_OUT, AT_REF };

static size_t key_at(const struct attention *a, int i, int d) {      /* where k has dimension d of position i */
    return ((size_t)(i / KV_TILE) * (size_t)a->head_dim + (size_t)d) * KV_TILE + (size_t)(i % KV_TILE);
}
static size_t value_at(const struct attention *a, int i, int d) { return (size_t)i * (size_t)a->v_stride + (size_t)d; }

static float number_get(const struct attention *a, const void *p, size_t at) {
    return a->halves ? half_to_float(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}
static void number_put(const struct attention *a, void *p, size_t at, float f) {
    if (a->halves) ((uint16_t *)p)[at] = float_to_half(f);
    else ((float *)p)[at] = f;
}

/* NaN, or what is kept in saved, into all numbers of position i. */
static void position_put(const struct attention *a, int i, int n, const float *saved) {
    for (int d = 0; d < a->head_dim; d++) number_put(a, (void *)a->k, key_at(a, i, d), saved ? saved[d] : NAN);
    for (int d = 0; i < n && d < a->v_stride; d++)
        number_put(a, (void *)a->v, value_at(a, i, d), saved ? saved[a->head_dim + d] : NAN);
}

/* Calls fn for queries of a that pick names; their outputs lie in an arena, one behind the other with gaps of gap floats. */
static float *attention_call(attention_fn *fn, const struct attention *a, const int *pick, int n, int arena, int gap) {
    struct query queries[ATTENTION_MAX];
    struct attention b = *a;
    size_t stride = (size_t)(a->head_dim + gap), out_bytes = ((size_t)(n - 1) * stride + (size_t)a->head_dim) * 4;
    float *out = place(arena, out_bytes, mostly());
    int end = 0;
    for (int i = 0; i < n; i++) {
        queries[i] = a->queries[pick[i]];
        queries[i].out = out + (size_t)i * stride;
        end = queries[i].end > end ? queries[i].end : end;
    }
    b.queries = queries;
    b.n_queries = n;
    b.p_stride = (size_t)round_up(end, KV_TILE) + (mostly() ? 0 : KV_TILE);
    size_t p_bytes = (size_t)n * b.p_stride * 4;
    b.p = place(AT_P, p_bytes, mostly());
    fn(&b);
    red_zones_check(AT_P, b.p, p_bytes);
    red_zones_check(arena, out, out_bytes);
    for (int i = 1; i < n; i++)
        if (!poisoned(out + (size_t)i * stride - gap, (size_t)gap * 4)) fail("wrote between its outputs");
    for (int i = 1; i < n; i++) memmove(out + i * a->head_dim, out + (size_t)i * stride, (size_t)a->head_dim * 4);
    return out;
}

/* Let u = FLT_EPSILON / 2 and s_i be the exact scores. One evaluation has
 *     scores off by       ds = (head_dim + 2) u max|scale q| . |k|
 *     exp(s_i - max) by   relative e_i = 2 ds + u |s_i - max| + 4 FLT_EPSILON (the exponential itself)
 *     p_i by              relative r_i = e_i + sum_j p_j e_j + (n + 2) u; expm1(r_i) where that is not small, 1 at most
 *     out by              sum_i p_i r_i |v_i| + (n + 1) u sum_i p_i |v_i|
 * and two evaluations differ by twice that. An exponential may flush what is below FLT_MIN to zero. Halves become floats exactly. */
static void attention_values_check(const struct attention *a, const struct query *query, const float *got, const float *want) {
    static double s[1 << 13], prob[1 << 13], e[1 << 13];
    double ds = 0, max = -INFINITY, sum = 0, spread = 0, u = FLT_EPSILON / 2.0;
    int n = query->end - query->begin, first = query->begin;
    for (int i = 0; i < n; i++) {
        double magnitude = 0;
        s[i] = 0;
        for (int d = 0; d < a->head_dim; d++) {
            double product = (double)a->scale * query->q[d] * number_get(a, a->k, key_at(a, first + i, d));
            s[i] += product;
            magnitude += fabs(product);
        }
        ds = fmax(ds, (a->head_dim + 2) * u * magnitude);
        max = fmax(max, s[i]);
    }
    for (int i = 0; i < n; i++) sum += prob[i] = exp(s[i] - max);
    for (int i = 0; i < n; i++) {
        prob[i] /= sum;
        e[i] = 2 * ds + u * (max - s[i]) + 4 * FLT_EPSILON;
        spread += prob[i] * e[i];
    }
    for (int i = 0; i < n; i++) e[i] = expm1(fmin(e[i] + spread + (n + 2) * u, 100));
    for (int d = 0; d < a->head_dim; d++) {
        double exact = 0, bound = 0;
        for (int i = 0; i < n; i++) {
            double value = number_get(a, a->v, value_at(a, first + i, d));
            exact += prob[i] * value;
            bound += fmin(1, 2 * (prob[i] * (e[i] + (n + 1) * u) + FLT_MIN)) * fabs(value) + 0x1p-148;
        }
        double expected = want ? (double)want[d] : exact;
        if (!(fabs(got[d] - expected) <= bound))
            fail("positions %d..%d, out[%d] is %.9g, not %.9g within %.3g", first, query->end - 1, d, got[d], expected, bound);
    }
}

static void bits_check(const struct attention *a, const float *got, const float *want, const char *what, int query) {
    if (memcmp(got, want, (size_t)a->head_dim * 4)) fail("query %d differs %s", query, what);
}

/* What a query does not see must not reach it, though others of the same call see it: positions become NaN and are restored. */
static void attention_unseen(attention_fn *fn, const struct attention *a, const int *pick, const float *want, int n) {
    static float saved[1 << 20];
    int query = random_int(0, a->n_queries - 1), width = a->head_dim + a->v_stride;
    const struct query *q = &a->queries[query];
    for (int i = 0; i < n; i++) {
        for (int d = 0; d < a->head_dim; d++) saved[i * width + d] = number_get(a, a->k, key_at(a, i, d));
        for (int d = 0; d < a->v_stride; d++) saved[i * width + a->head_dim + d] = number_get(a, a->v, value_at(a, i, d));
    }
    unlock(AT_K), unlock(AT_V);
    for (int i = 0; i < n; i++)
        if (i < q->begin || i >= q->end) position_put(a, i, n, NULL);
    lock(AT_K), lock(AT_V);
    float *out = attention_call(fn, a, pick, a->n_queries, AT_REF, 0);
    bits_check(a, out + query * a->head_dim, want + query * a->head_dim, "when what only others see is NaN", query);
    unlock(AT_K), unlock(AT_V);
    for (int i = 0; i < n; i++) position_put(a, i, n, saved + i * width);
    lock(AT_K), lock(AT_V);
}

/* Ranges of positions below n, as models ask for them. */
enum ranges { RUN, WINDOW, GROUPS, ANY, N_RANGES };
static const char *const ranges_names[] = {"a run", "a window", "groups", "any ranges"};

static void ranges_fill(struct query *queries, int n_queries, int n, enum ranges ranges) {
    int group = random_int(1, n_queries), window = random_int(1, n);
    for (int i = 0; i < n_queries; i++) {
        int end = (int)i64_max(1, n - (n_queries - 1 - i) / (ranges == GROUPS ? group : 1));
        queries[i].begin = ranges == WINDOW || (ranges == GROUPS && n % 2) ? (int)i64_max(0, end - window) : 0;
        queries[i].end = end;
        if (ranges == ANY) {
            queries[i].begin = random_int(0, n - 1);
            queries[i].end = random_int(queries[i].begin + 1, n);
        }
    }
    queries[random_int(0, n_queries - 1)].end = n;       /* the last one is always seen */
}

struct attention_case { int n_queries, n, head_dim, halves; enum ranges ranges; enum mode mode; float sharpness; };

static void attention_run(attention_fn *fn, attention_fn *ref, struct attention_case c) {
    if (c.mode == OUTLIER) c.sharpness *= 1e-4f;         /* products of two outliers */
    snprintf(test_case, sizeof test_case, "%d queries, n %d, head_dim %d, %s, %s, %s, sharpness %g", c.n_queries, c.n, c.head_dim,
             c.halves ? "f16" : "f32", ranges_names[c.ranges], mode_names[c.mode], c.sharpness);
    struct query queries[ATTENTION_MAX];
    struct attention a = {.queries = queries, .n_queries = c.n_queries, .halves = c.halves, .head_dim = c.head_dim,
                          .scale = c.sharpness / sqrtf((float)c.head_dim)};
    a.v_stride = (int)round_up(c.head_dim, 16) + 16 * random_int(0, 1);
    int tiles = (c.n + KV_TILE - 1) / KV_TILE, gap = random_int(0, 3), begin = c.n;
    size_t bytes = c.halves ? 2 : 4;
    static float row[1 << 12];
    float *q = place(AT_Q, (size_t)(c.n_queries * (c.head_dim + gap)) * 4, mostly());
    a.k = place(AT_K, (size_t)tiles * KV_TILE * (size_t)c.head_dim * bytes, 1);
    a.v = place(AT_V, (size_t)c.n * (size_t)a.v_stride * bytes, 1);
    ranges_fill(queries, c.n_queries, c.n, c.ranges);
    for (int i = 0; i < c.n_queries; i++) {
        fill_floats(q + i * (c.head_dim + gap), c.head_dim, c.mode, 8);
        queries[i].q = q + i * (c.head_dim + gap);
        begin = (int)i64_min(begin, queries[i].begin);
    }
    for (int i = 0; i < tiles * KV_TILE; i++) {
        position_put(&a, i, c.n, NULL);                  /* those that nobody sees stay so */
        if (i < begin || i >= c.n) continue;
        fill_floats(row, c.head_dim, c.mode, 8);
        for (int d = 0; d < c.head_dim; d++) number_put(&a, (void *)a.k, key_at(&a, i, d), row[d]);
        fill_floats(row, c.head_dim, c.mode, 8);
        for (int d = 0; d < a.v_stride; d++) number_put(&a, (void *)a.v, value_at(&a, i, d), d < c.head_dim ? row[d] : 0);
    }
    lock(AT_Q), lock(AT_K), lock(AT_V);

    int pick[ATTENTION_MAX];
    for (int i = 0; i < c.n_queries; i++) pick[i] = i;
    float *out = attention_call(fn, &a, pick, c.n_queries, AT_OUT, gap);
    float *want = ref ? attention_call(ref, &a, pick, c.n_queries, AT_REF, 0) : NULL;
    for (int i = 0; i < c.n_queries; i++)
        attention_values_check(&a, &queries[i], out + i * c.head_dim, want ? want + i * c.head_dim : NULL);

    attention_unseen(fn, &a, pick, out, c.n);
    for (int i = 0; i < c.n_queries; i++)                /* a query has the same bits alone, or with any others */
        bits_check(&a, attention_call(fn, &a, &i, 1, AT_REF, 0), out + i * c.head_dim, "when it is alone", i);
    for (int i = 0; i < c.n_queries; i++) {
        int other = random_int(i, c.n_queries - 1), kept = pick[i];
        pick[i] = pick[other];
        pick[other] = kept;
    }
    int some = random_int(1, c.n_queries);
    float *again = attention_call(fn, &a, pick, some, AT_REF, gap);
    for (int i = 0; i < some; i++)
        bits_check(&a, again + i * c.head_dim, out + pick[i] * c.head_dim, "in other company", pick[i]);
}

/* A NaN in a key or in a value that is seen is seen in the output, whatever its bits. */
static void attention_nan(attention_fn *fn, int in_value) {
    enum { N = 40, DIM = 32 };
    float *q = place(AT_Q, DIM * 4, 1), *k = place(AT_K, 48 * DIM * 4, 1), *v = place(AT_V, N * DIM * 4, 1);
    int at = random_int(0, N - 1), dim = random_int(0, DIM - 1);
    snprintf(test_case, sizeof test_case, "NaN in a %s of position %d of %d", in_value ? "value" : "key", at, N);
    fill_floats(q, DIM, NORMAL, 8);
    fill_floats(k, 48 * DIM, NORMAL, 8);
    fill_floats(v, N * DIM, NORMAL, 8);
    struct query query = {.q = q, .begin = random_int(0, at), .end = random_int(at + 1, N)};
    struct attention a = {.queries = &query, .n_queries = 1, .k = k, .v = v, .scale = 1, .head_dim = DIM, .v_stride = DIM};
    *(in_value ? &v[value_at(&a, at, dim)] : &k[key_at(&a, at, dim)]) = float_of(0x7fc00000 | (uint32_t)random_int(0, 0x3fffff));
    float *out = attention_call(fn, &a, &(int){0}, 1, AT_OUT, 0);
    for (int d = 0; d < DIM; d++)
        if ((!in_value || d == dim) && !isnan(out[d])) fail("out[%d] is %g", d, (double)out[d]);
}

static void attention_check(const struct quant *type, void *fn_, void *ref_) {
    (void)type;
    attention_fn *fn = *(attention_fn **)fn_, *ref = ref_ ? *(attention_fn **)ref_ : NULL;
    static const int dims[] = {1, 8, 15, 16, 17, 32, 48, 64, 80, 96, 100, 128, 256}, lengths[] = {127, 256, 257, 512, 1025};
    static const enum mode modes[] = {NORMAL, NORMAL, NORMAL, OUTLIER, TINY, ZERO, EXTREME, EXACT};
    static const float sharpness[] = {1, 1, 0.01f, 30, 300};
    for (int n = 1; n <= (quick ? 40 : 140); n++)
        for (int i = 0; i < (quick ? 3 : 12); i++)
            attention_run(fn, ref, (struct attention_case){random_int(1, ATTENTION_MAX), n, dims[random_int(0, (int)countof(dims) - 1)],
                          random_int(0, 1), (enum ranges)random_int(0, N_RANGES - 1), modes[random_int(0, (int)countof(modes) - 1)],
                          sharpness[random_int(0, (int)countof(sharpness) - 1)]});
    for (size_t i = 0; i < countof(dims); i++)           /* every width, number of queries and kind of ranges */
        for (int halves = 0; halves < 2; halves++)
            attention_run(fn, ref, (struct attention_case){3, 37, dims[i], halves, RUN, NORMAL, 1});
    for (int n_queries = 1; n_queries <= ATTENTION_MAX; n_queries++)
        for (int ranges = 0; ranges < N_RANGES; ranges++)
            attention_run(fn, ref, (struct attention_case){n_queries, 90, 64, n_queries % 2, (enum ranges)ranges, NORMAL, 1});
    for (size_t i = 0; i < countof(lengths) - (quick ? 2 : 0); i++)
        for (int halves = 0; halves < 2; halves++)
            attention_run(fn, ref, (struct attention_case){quick ? 7 : 16, lengths[i], 64, halves, (enum ranges)(i % N_RANGES), NORMAL, 1});
    attention_run(fn, ref, (struct attention_case){5, 21, 600, 1, RUN, NORMAL, 1});      /* wider than any model */
    for (int i = 0; i < 100; i++) attention_nan(fn, i % 2);
    if (!quick) attention_run(fn, ref, (struct attention_case){4, 4100, 64, 1, RUN, NORMAL, 1});
}

/* ---- the rate of multiply-adds: says how many it made, about as many as asked ------------------------------------- */

typedef int64_t peak_fn(int64_t n);

static void mac_peak_check(const struct quant *type, void *fn, void *ref) {
    (void)type, (void)ref;
    for (int64_t n = 1; n <= 1 << 20; n = n * 3 + 1) {
        int64_t made = (*(peak_fn **)fn)(n);
        snprintf(test_case, sizeof test_case, "n %lld", (long long)n);
        if (made < n / 2 || made > 2 * n + 8192) fail("made %lld", (long long)made);
    }
}

/* ---- timing: best of several samples, data hot in the caches ------------------------------------------------------ */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Two buffers and sizes: what any one call below needs. */
struct work {
    void *fn;                            /* points at the kernel's pointer */
    struct matmul m;
    struct attention a;
    const char *k, *v;                   /* of n_heads heads */
    size_t k_bytes, v_bytes;             /* of one */
    int head, n_heads;
    float *x, *y, *w;
    int64_t n;
};

static double seconds_per_call(void (*call)(struct work *), struct work *w) {
    double best = INFINITY;
    int repeats = 1;
    for (int sample = 0; sample < 12;) {
        double start = now();
        for (int i = 0; i < repeats; i++) call(w);
        double seconds = now() - start;
        if (seconds < 0.003) { repeats *= 2; continue; }
        best = fmin(best, seconds / repeats);
        sample++;
    }
    return best;
}

static void call_matmul(struct work *w) { (*(matmul_fn **)w->fn)(&w->m); }
static void call_act(struct work *w) { (*(act_fn **)w->fn)(w->x, w->n, w->y); }
static void call_norm(struct work *w) { (*(norm_fn **)w->fn)(w->x, w->w, w->w, 1e-5f, w->n, w->y); }
static void call_gelu(struct work *w) {                  /* fresh inputs: gelu of gelu of ... would end at zeros */
    memcpy(w->y, w->x, (size_t)w->n * 4);
    (*(gelu_fn **)w->fn)(w->y, w->n);
}
static void call_rms_norm(struct work *w) { (*(rms_norm_fn **)w->fn)(w->x, w->w, 1e-5f, w->n, w->y); }
static void call_softcap(struct work *w) {
    memcpy(w->y, w->x, (size_t)w->n * 4);
    (*(softcap_fn **)w->fn)(w->y, 15, w->n);
}
static void call_silu(struct work *w) {
    memcpy(w->y, w->x, (size_t)w->n * 4);
    (*(silu_fn **)w->fn)(w->y, w->w, w->n);
}
static void call_add(struct work *w) { (*(add_fn **)w->fn)(w->y, w->x, w->n); }
static void call_halves(struct work *w) { (*(halves_fn **)w->fn)(w->x, w->n, (uint16_t *)w->y); }
static void call_attention(struct work *w) {             /* one head after the other */
    w->head = (w->head + 1) % w->n_heads;
    w->a.k = w->k + (size_t)w->head * w->k_bytes;
    w->a.v = w->v + (size_t)w->head * w->v_bytes;
    (*(attention_fn **)w->fn)(&w->a);
}
static void call_peak(struct work *w) { (*(peak_fn **)w->fn)(w->n); }

static void bench_line(const char *shape, double amount, const char *unit, void (*call)(struct work *), struct work *w, void *fn,
                       void *ref) {
    w->fn = ref;
    double slow = seconds_per_call(call, w);
    w->fn = fn;
    double fast = seconds_per_call(call, w);
    printf("%-28s %-24s %9.2f %-7s %7.2fx\n", test_name, shape, amount / fast / 1e9, unit, slow / fast);
}

static void *bench_alloc(size_t bytes) {
    void *p = aligned_alloc(64, (size_t)round_up((int64_t)bytes, 64));
    if (!p) exit(1);
    memset(p, 0, (size_t)round_up((int64_t)bytes, 64));
    return p;
}

static void matmul_bench(const struct quant *type, void *fn, void *ref) {
    enum { N_IN = 2048, N_OUT = 512, N_TOK = 96 };
    static const int tokens[] = {1, 8, N_TOK};
    size_t row = quant_row_bytes(type, N_IN), stride = (size_t)round_up((int64_t)act_bytes(type, N_IN), 64);
    char *w = bench_alloc(row * N_OUT), *a = bench_alloc(stride * N_TOK), *groups = bench_alloc(act_group_bytes(N_IN) * N_TOK / ACT_GROUP);
    float *y = bench_alloc(N_OUT * N_TOK * 4), x[N_IN];
    random_rows(type, w, row, N_OUT, N_IN);
    for (int t = 0; t < N_TOK; t++) {
        fill_floats(x, N_IN, NORMAL, 8);
        if (type->codes) act_q8_quantize(x, N_IN, a + t * stride);
        else memcpy(a + t * stride, x, sizeof x);
        if (type->codes)
            act_group_put(a + t * stride, N_IN, t % ACT_GROUP, (struct act_block *)(groups + (size_t)(t / ACT_GROUP) * act_group_bytes(N_IN)));
    }
    for (size_t i = 0; i < countof(tokens); i++) {
        int grouped = type->codes && tokens[i] > ACT_FEW;
        struct work work = {.m = {type, w, row, grouped ? groups : a, grouped ? act_group_bytes(N_IN) : stride, y, N_OUT, N_IN, N_OUT, tokens[i]}};
        char shape[32];
        snprintf(shape, sizeof shape, "%s %dx%dx%d", i ? "prefill" : "decode", N_OUT, N_IN, tokens[i]);
        if (i == 0) bench_line(shape, (double)row * N_OUT, "GB/s", call_matmul, &work, fn, ref);
        else bench_line(shape, (double)N_OUT * N_IN * tokens[i], "GMAC/s", call_matmul, &work, fn, ref);
    }
    free(w), free(a), free(groups), free(y);
}

static void vector_bench(void (*call)(struct work *), int n, void *fn, void *ref) {
    size_t bytes = (size_t)n * 4;
    struct work work = {.x = bench_alloc(bytes), .y = bench_alloc(2 * bytes), .w = bench_alloc(bytes), .n = n};
    char shape[32];
    fill_floats(work.x, n, NORMAL, 8);
    fill_floats(work.w, n, NORMAL, 8);
    snprintf(shape, sizeof shape, "n %d", n);
    bench_line(shape, (double)n * 4, "GB/s", call, &work, fn, ref);
    free(work.x), free(work.y), free(work.w);
}
static void act_q8_bench(const struct quant *type, void *fn, void *ref) {
    (void)type;
    vector_bench(call_act, 768, fn, ref);
    vector_bench(call_act, 8192, fn, ref);
}
static void layer_norm_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_norm, 768, fn, ref); }
static void gelu_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_gelu, 3072, fn, ref); }
static void rms_norm_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_rms_norm, 2048, fn, ref); }
static void add_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_add, 8192, fn, ref); }
static void softcap_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_softcap, 8192, fn, ref); }
static void silu_mul_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_silu, 8192, fn, ref); }
static void halves_bench(const struct quant *type, void *fn, void *ref) { (void)type; vector_bench(call_halves, 2048, fn, ref); }

/* Decoding in the caches and from memory (heads enough to find none of them again), and pieces of a prompt. */
struct attention_shape { int n_queries, n, head_dim, halves, n_heads; };
static const struct attention_shape attention_shapes[] = {
    {1, 256, 32, 0, 1}, {1, 256, 64, 0, 1}, {1, 4096, 64, 1, 128}, {4, 4096, 64, 1, 128}, {7, 4096, 64, 1, 128},
    {16, 512, 64, 1, 1}, {16, 4096, 64, 1, 1}, {16, 1024, 128, 1, 1},
};

static void attention_shape_bench(struct attention_shape c, void *fn, void *ref) {
    struct query queries[ATTENTION_MAX];
    size_t n = (size_t)c.n * (size_t)c.head_dim, bytes = n * (c.halves ? 2 : 4), p_stride = (size_t)round_up(c.n, 16) + 16;
    char *k = bench_alloc(bytes * (size_t)c.n_heads), *v = bench_alloc(bytes * (size_t)c.n_heads), shape[40];
    float *q = bench_alloc(2 * ATTENTION_MAX * (size_t)c.head_dim * 4), *p = bench_alloc(ATTENTION_MAX * p_stride * 4);
    float *numbers = bench_alloc(n * 4);
    struct work work = {.k = k, .v = v, .k_bytes = bytes, .v_bytes = bytes, .n_heads = c.n_heads};
    work.a = (struct attention){queries, c.n_queries, c.halves, k, v, p, p_stride, 1 / sqrtf((float)c.head_dim), c.head_dim, c.head_dim};
    fill_floats(q, ATTENTION_MAX * c.head_dim, NORMAL, 8);
    for (int i = 0; i < c.n_queries; i++)
        queries[i] = (struct query){q + i * c.head_dim, q + (ATTENTION_MAX + i) * c.head_dim, 0, c.n};
    fill_floats(numbers, (int64_t)n, NORMAL, 8);
    for (size_t i = 0; i < n; i++) number_put(&work.a, k, i, numbers[i]), number_put(&work.a, v, i, numbers[n - 1 - i]);
    for (int h = 1; h < c.n_heads; h++) memcpy(k + (size_t)h * bytes, k, bytes), memcpy(v + (size_t)h * bytes, v, bytes);
    snprintf(shape, sizeof shape, "%dx%dx%d %s%s", c.n_queries, c.n, c.head_dim, c.halves ? "f16" : "f32", c.n_heads > 1 ? " memory" : "");
    if (c.n_heads > 1) bench_line(shape, 2.0 * (double)bytes, "GB/s", call_attention, &work, fn, ref);
    else bench_line(shape, 2.0 * (double)n * c.n_queries, "GMAC/s", call_attention, &work, fn, ref);
    free(k), free(v), free(q), free(p), free(numbers);
}

static void attention_bench(const struct quant *type, void *fn, void *ref) {
    (void)type;
    for (size_t i = 0; i < countof(attention_shapes); i++) attention_shape_bench(attention_shapes[i], fn, ref);
}

static void mac_peak_bench(const struct quant *type, void *fn, void *ref) {
    (void)type;
    struct work work = {.n = 1 << 20};
    bench_line("n 1048576", 1 << 20, "GMAC/s", call_peak, &work, fn, ref);
}

/* ---- quantization and conversions --------------------------------------------------------------------------------- */

/* |dequantize(quantize(x)) - x| for a value x of a block whose largest value is max: half a step and the rounding of the scale. */
struct precision {
    const struct quant *type;
    double of_x;                         /* of the value itself */
    double of_max;                       /* of the largest of the block */
    double absolute;                     /* where the number format ends */
};
static const struct precision precisions[] = {
    {&quant_f32, 0, 0, 0},
    {&quant_f16, 0x1p-11, 0, 0x1p-25},
    {&quant_bf16, 0x1p-8, 0, 0x1p-134},
    {&quant_q8_0, 0, 1 / 254.0 + 0x1p-11, 128 * 0x1p-25},
};

static void precision_check(const struct precision *p, const float *x, const float *back, int64_t n) {
    int block = p->type->block;
    for (int64_t i = 0; i < n; i++) {
        float max = 0;
        for (int64_t j = i / block * block; j < i / block * block + block; j++) max = fmaxf(max, fabsf(x[j]));
        double slack = block > 1 ? 4 * FLT_EPSILON : 0;                      /* roundings of the division */
        double bound = p->of_x * fabs((double)x[i]) + (p->of_max + slack) * max + p->absolute;
        if (!(fabs((double)back[i] - x[i]) <= bound))
            fail("%.9g of a block up to %.9g came back as %.9g, not within %.3g", x[i], max, back[i], bound);
    }
}

/* The others choose the scales of least squared error, which clip: held to what the scales would leave that let all weights just fit. */
struct fitted {
    const struct quant *type;
    int size;                            /* weights per scale */
    int low, high, gap;                  /* codes; the largest distance between two neighbours */
    int scale_most;                      /* of whole-number scales; 0: none */
};
static const struct fitted fits[] = {
    {&quant_q4_0, 32, -8, 7, 1, 0},         {&quant_q4_1, 32, 0, 15, 1, 0},   {&quant_q5_0, 32, -16, 15, 1, 0},
    {&quant_q5_1, 32, 0, 31, 1, 0},         {&quant_q2_k, 16, 0, 3, 1, 15},   {&quant_q3_k, 16, -4, 3, 1, 31},
    {&quant_q4_k, 32, 0, 15, 1, 63},        {&quant_q5_k, 32, 0, 31, 1, 63},  {&quant_q6_k, 16, -32, 31, 1, 127},
    {&quant_iq4_nl, 32, -127, 113, 23, 0},  {&quant_iq4_xs, 32, -127, 113, 23, 31},
    {&quant_mxfp4, 32, -8, 6, 4, 0},                                         /* of a scale that is a power of two, -8 is not there */
};

/* Squares of what n weights may be off under a scale that they just fit: half a step, and where the codes end early, a whole one. */
static double fit_squares(const struct fitted *f, const float *x, int n, double *step) {
    float min = f->scale_most ? 0 : x[0], max = min, extreme = 0;            /* K-quants have no minimum above 0 */
    for (int i = 0; i < n; i++) {
        min = fminf(min, x[i]);
        max = fmaxf(max, x[i]);
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    }
    double d = f->low ? (double)extreme / f->low : ((double)max - min) / f->high, squares = 0;
    for (int i = 0; i < n; i++) {
        double off = fabs(d) * f->gap * (f->low && x[i] / d > f->high + f->gap / 2.0 ? 1 : 0.5);
        squares += off * off;
    }
    *step = fabs(d);
    return squares;
}

static void fit_check(const struct fitted *f, const float *x, const float *back, int64_t n) {
    int block = f->type->block, most = f->low ? -f->low : f->high;
    for (int64_t b = 0; b < n; b += block) {
        double bound = 0, squares = 0, step_most = 0, max = 0, step;
        for (int i = 0; i < block; i += f->size) {
            bound += fit_squares(f, x + b + i, f->size, &step);
            step_most = fmax(step_most, step);
        }
        for (int i = 0; i < block; i++) {
            max = fmax(max, fabs((double)x[b + i]));
            squares += ((double)back[b + i] - x[b + i]) * ((double)back[b + i] - x[b + i]);
        }
        /* Each weight may be off by more, as scales are rounded: to f16, of which the last bit may be as much as 2^-24, and to half a whole
         * number. A fitted step may be a third larger than one that just fits, and minimums are rounded as scales are. */
        double rounding = (most + 1) * (0x1p-11 * step_most * 4 / 3 + 0x1p-25) + 0x1p-11 * max;
        if (f->scale_most) rounding = rounding * f->scale_most + (most * step_most * 4 / 3 + max) / 2 / f->scale_most;
        bound = sqrt(bound) + sqrt(block) * rounding;
        if (!(sqrt(squares) <= bound)) fail("weights from %lld on are off by %.4g, not %.4g", (long long)b, sqrt(squares), bound);
    }
}

static void round_trip_check(const struct quant *type, const float *x, int64_t n) {
    static char w[1 << 16];
    static float back[1 << 12];
    int known = 0;
    type->quantize(x, n, w);
    quant_dequantize(type, w, n, back);
    for (size_t i = 0; i < countof(precisions); i++)
        if (precisions[i].type == type) known = 1, precision_check(&precisions[i], x, back, n);
    for (size_t i = 0; i < countof(fits); i++)
        if (fits[i].type == type) known = 1, fit_check(&fits[i], x, back, n);
    if (!known) fail("check.c: neither precisions[] nor fits[] has a row for %s", type->name);
}

static void round_trips(void) {
    static float x[1 << 10];
    for (int i = 0; i < n_quants; i++) {
        if (!quants[i]->quantize) continue;
        for (int mode = 0; mode < N_MODES; mode++) {
            for (int repeat = 0; repeat < (quick ? 5 : 50); repeat++) {
                snprintf(test_case, sizeof test_case, "%s, %s", quants[i]->name, mode_names[mode]);
                fill_floats(x, 1024, (enum mode)mode, 127);
                round_trip_check(quants[i], x, mode == LARGE && quants[i] == &quant_f16 ? 512 : 1024);
            }
        }
        snprintf(test_case, sizeof test_case, "%s, subnormal floats", quants[i]->name);
        for (int j = 0; j < 1024; j++) x[j] = float_of((uint32_t)random_u64() & 0x807fffff);
        round_trip_check(quants[i], x, 1024);
        snprintf(test_case, sizeof test_case, "%s, halfway between steps", quants[i]->name);
        for (int j = 0; j < 1024; j++) x[j] = j % 32 ? (float)(j % 32 % 16 - 8) + 0.5f : -8;
        round_trip_check(quants[i], x, 1024);
    }
}

/* One block of each format written by hand from the specification. */
static void layout(const struct quant *type, const void *block, float (*weight)(int j)) {
    float x[256];
    snprintf(test_case, sizeof test_case, "%s", type->name);
    quant_dequantize(type, block, type->block, x);
    for (int j = 0; j < type->block; j++)
        if (x[j] != weight(j)) fail("weight %d is %g, not %g", j, x[j], weight(j));
}

static float weight_q8_0(int j) { return 2.0f * (float)j - 64; }
static float weight_q4_0(int j) { return -2.0f * (float)(j < 16 ? j - 8 : 7 - (j - 16)); }
static float weight_q4_1(int j) { return -2.0f * (float)(j < 16 ? j : 15 - (j - 16)) + 0.5f; }
static float weight_q5_0(int j) { return -2.0f * (float)(j - 16); }
static float weight_q5_1(int j) { return -2.0f * (float)j + 0.5f; }
static float weight_iq4_nl(int j) {
    static const int values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return -2.0f * (float)values[j < 16 ? j : 15 - (j - 16)];
}
static float weight_mxfp4(int j) {
    static const float values[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    return 0.25f * values[j < 16 ? j : 15 - (j - 16)];
}
static int code_256(int j, int most) { return (7 * j + j / 32) % (most + 1); }       /* no two sub-blocks have the same */
static float weight_q2_k(int j) { return -2.0f * (float)(j / 16) * (float)code_256(j, 3) - 0.5f * (float)(15 - j / 16); }
static float weight_q3_k(int j) { return -2.0f * (float)(4 * (j / 16) + 1 - 32) * (float)(code_256(j, 7) - 4); }
static int scale_k(int j) { return 8 * (j / 32) + 5; }
static float weight_q4_k(int j) { return -2.0f * (float)scale_k(j) * (float)code_256(j, 15) - 0.5f * (float)(63 - scale_k(j)); }
static float weight_q5_k(int j) { return -2.0f * (float)scale_k(j) * (float)code_256(j, 31) - 0.5f * (float)(63 - scale_k(j)); }
static float weight_q6_k(int j) { return -2.0f * (float)(17 * (j / 16) - 128) * (float)(code_256(j, 63) - 32); }
static float weight_iq4_xs(int j) { return (float)(scale_k(j) - 32) * weight_iq4_nl(code_256(j, 15)); }

static void put(uint8_t *byte, int from, int value) { *byte = (uint8_t)(*byte | value << from); }

static void layouts_32(void) {
    struct block_q8_0 q8_0 = {.d = 0x3800};                                  /* 0.5 */
    struct block_q4_0 q4_0 = {.d = 0xc000};                                  /* -2 */
    struct block_q4_1 q4_1 = {.d = 0xc000, .m = 0x3800};
    struct block_q5_0 q5_0 = {.d = 0xc000, .qh = {0, 0, 0xff, 0xff}};        /* code j of q5 is j */
    struct block_q5_1 q5_1 = {.d = 0xc000, .m = 0x3800, .qh = {0, 0, 0xff, 0xff}};
    struct block_iq4_nl iq4_nl = {.d = 0xc000};
    struct block_mxfp4 mxfp4 = {.e = 125};                                   /* 1/4 */
    for (int j = 0; j < 32; j++) q8_0.q[j] = (int8_t)(4 * j - 128);
    for (int j = 0; j < 16; j++) {
        q4_0.q[j] = q4_1.q[j] = iq4_nl.q[j] = mxfp4.q[j] = (uint8_t)(j | (15 - j) << 4);
        q5_0.q[j] = q5_1.q[j] = (uint8_t)(j | j << 4);
    }
    layout(&quant_q8_0, &q8_0, weight_q8_0);
    layout(&quant_q4_0, &q4_0, weight_q4_0);
    layout(&quant_q4_1, &q4_1, weight_q4_1);
    layout(&quant_q5_0, &q5_0, weight_q5_0);
    layout(&quant_q5_1, &q5_1, weight_q5_1);
    layout(&quant_iq4_nl, &iq4_nl, weight_iq4_nl);
    layout(&quant_mxfp4, &mxfp4, weight_mxfp4);
}

static void layouts_256(void) {
    struct block_q2_k q2_k = {.d = 0xc000, .dmin = 0x3800};
    struct block_q3_k q3_k = {.d = 0xc000};
    struct block_q4_k q4_k = {.d = 0xc000, .dmin = 0x3800};
    struct block_q5_k q5_k = {.d = 0xc000, .dmin = 0x3800};
    struct block_q6_k q6_k = {.d = 0xc000};
    struct block_iq4_xs iq4_xs = {.d = 0xc000};
    for (int j = 0; j < 256; j++) {
        int in_32 = j % 32, of_32 = j / 32, in_128 = j % 128 / 32, half = j / 128;
        put(&q2_k.q[32 * half + in_32], 2 * in_128, code_256(j, 3));
        put(&q3_k.q[32 * half + in_32], 2 * in_128, code_256(j, 7) & 3);
        put(&q3_k.hmask[in_32], of_32, code_256(j, 7) >> 2);
        put(&q4_k.q[of_32 / 2 * 32 + in_32], of_32 % 2 * 4, code_256(j, 15));
        put(&q5_k.q[of_32 / 2 * 32 + in_32], of_32 % 2 * 4, code_256(j, 31) & 15);
        put(&q5_k.qh[in_32], of_32, code_256(j, 31) >> 4);
        put(&q6_k.q[64 * half + in_128 % 2 * 32 + in_32], in_128 / 2 * 4, code_256(j, 63) & 15);
        put(&q6_k.qh[32 * half + in_32], 2 * in_128, code_256(j, 63) >> 4);
        put(&iq4_xs.q[16 * of_32 + in_32 % 16], in_32 / 16 * 4, code_256(j, 15));
    }
    for (int s = 0; s < 16; s++) {
        q2_k.scales[s] = (uint8_t)(s | (15 - s) << 4);
        put(&q3_k.scales[s % 8], s / 8 * 4, (4 * s + 1) & 15);
        put(&q3_k.scales[8 + s % 4], s / 4 * 2, (4 * s + 1) >> 4);
        q6_k.scales[s] = (int8_t)(17 * s - 128);
    }
    for (int s = 0; s < 8; s++) {
        int scale = 8 * s + 5, min = 63 - scale;
        put(&iq4_xs.scales_l[s / 2], s % 2 * 4, scale & 15);
        iq4_xs.scales_h = (uint16_t)(iq4_xs.scales_h | scale >> 4 << 2 * s);
        if (s < 4) {
            put(&q4_k.scales[s], 0, scale);
            put(&q4_k.scales[4 + s], 0, min);
        } else {
            put(&q4_k.scales[4 + s], 0, scale & 15);
            put(&q4_k.scales[4 + s], 4, min & 15);
            put(&q4_k.scales[s - 4], 6, scale >> 4);
            put(&q4_k.scales[s], 6, min >> 4);
        }
    }
    memcpy(q5_k.scales, q4_k.scales, 12);
    layout(&quant_q2_k, &q2_k, weight_q2_k);
    layout(&quant_q3_k, &q3_k, weight_q3_k);
    layout(&quant_q4_k, &q4_k, weight_q4_k);
    layout(&quant_q5_k, &q5_k, weight_q5_k);
    layout(&quant_q6_k, &q6_k, weight_q6_k);
    layout(&quant_iq4_xs, &iq4_xs, weight_iq4_xs);
}

static void layouts(void) {
    layouts_32();
    layouts_256();
}

/* A 16-bit float with so many bits of mantissa and exponent, read as the textbook says. */
static double small_float(unsigned h, int mantissa_bits, int exponent_bits) {
    unsigned mantissa = h & ((1u << mantissa_bits) - 1), exponent = h >> mantissa_bits & ((1u << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    double sign = h >> 15 ? -1 : 1;
    if ((int)exponent == top) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1u << mantissa_bits), (int)exponent - bias - mantissa_bits);
}

struct format {
    const char *name;
    int mantissa_bits, exponent_bits;
    float (*to)(uint16_t);
    uint16_t (*from)(float);
};
static const struct format formats[] = {
    {"f16", 10, 5, half_to_float, float_to_half},
    {"bf16", 7, 8, bf16_to_float, float_to_bf16},
};

static void rounds_to(const struct format *f, float x, unsigned h) {
    if (f->from(x) != h) fail("%.9g became 0x%04x, not 0x%04x", x, f->from(x), h);
    if (f->from(-x) != (h | 0x8000)) fail("%.9g became 0x%04x, not 0x%04x", -x, f->from(-x), h | 0x8000);
}

static void conversions(void) {
    for (size_t k = 0; k < countof(formats); k++) {
        const struct format *f = &formats[k];
        unsigned infinity = ((1u << f->exponent_bits) - 1) << f->mantissa_bits;
        snprintf(test_case, sizeof test_case, "%s", f->name);
        for (unsigned h = 0; h < 65536; h++) {
            double value = small_float(h, f->mantissa_bits, f->exponent_bits);
            float got = f->to((uint16_t)h);
            if (isnan(value) ? !isnan(got) : got != value) fail("0x%04x became %.9g, not %.9g", h, got, value);
            if (!signbit(got) != !(h >> 15)) fail("0x%04x lost its sign", h);
            uint16_t back = f->from(got);
            if (isnan(value) ? !isnan(f->to(back)) : back != h) fail("0x%04x came back as 0x%04x", h, back);
        }
        for (unsigned h = 0; h < infinity; h++) {        /* what lies between two neighbours; the largest's upper one would be */
            double low = small_float(h, f->mantissa_bits, f->exponent_bits);
            double high = h + 1 < infinity ? small_float(h + 1, f->mantissa_bits, f->exponent_bits)
                                           : ldexp(1, (1 << (f->exponent_bits - 1)));
            float middle = (float)((low + high) / 2);
            rounds_to(f, middle, h + (h & 1));
            rounds_to(f, nextafterf(middle, INFINITY), h + 1);
            if (middle > 0) rounds_to(f, nextafterf(middle, 0), h);
        }
        rounds_to(f, FLT_MAX, infinity);
        rounds_to(f, INFINITY, infinity);
        uint32_t nans[] = {0x7f800001, 0x7fc00000, 0x7fffffff, 0x7f80ffff, 0x7f810000};
        for (size_t i = 0; i < countof(nans); i++)
            for (uint32_t sign = 0; sign < 2; sign++)
                if (!isnan(f->to(f->from(float_of(nans[i] | sign << 31))))) fail("NaN 0x%08x became a number", nans[i]);
    }
}

/* ---- the list, and running it ------------------------------------------------------------------------------------- */

/* A kernel is where its pointer stands in struct kernels. */
struct kernel {
    const char *name;
    size_t offset;
    void (*check)(const struct quant *type, void *fn, void *ref);            /* pointers to the kernels' pointers */
    void (*bench)(const struct quant *type, void *fn, void *ref);
};
static const struct kernel kernels[] = {
    {"act_q8", offsetof(struct kernels, act_q8), act_q8_check, act_q8_bench},
    {"layer_norm", offsetof(struct kernels, layer_norm), layer_norm_check, layer_norm_bench},
    {"gelu_erf", offsetof(struct kernels, gelu_erf), gelu_erf_check, gelu_bench},
    {"gelu_tanh", offsetof(struct kernels, gelu_tanh), gelu_tanh_check, gelu_bench},
    {"relu", offsetof(struct kernels, relu), relu_check, gelu_bench},
    {"relu_squared", offsetof(struct kernels, relu_squared), relu_squared_check, gelu_bench},
    {"softcap", offsetof(struct kernels, softcap), softcap_check, softcap_bench},
    {"rms_norm", offsetof(struct kernels, rms_norm), rms_norm_check, rms_norm_bench},
    {"silu_mul", offsetof(struct kernels, silu_mul), silu_mul_check, silu_mul_bench},
    {"add", offsetof(struct kernels, add), add_check, add_bench},
    {"halves", offsetof(struct kernels, halves), halves_check, halves_bench},
    {"attention", offsetof(struct kernels, attention), attention_check, attention_bench},
    {"mac_peak", offsetof(struct kernels, mac_peak), mac_peak_check, mac_peak_bench},
};
static const struct { const char *name; void (*run)(void); } plain[] = {     /* what no instruction set changes */
    {"conversions", conversions}, {"layouts", layouts}, {"round_trips", round_trips},
};

static int n_failed;

static int wanted(const char *name) { return !test_only || fnmatch(test_only, name, 0) == 0; }

static void plain_run(size_t i) {
    snprintf(test_name, sizeof test_name, "%s", plain[i].name);
    snprintf(test_case, sizeof test_case, "start");
    random_seed(test_name);
    if (sigsetjmp(out_of_test, 1)) { n_failed++; return; }
    plain[i].run();
    printf("ok   %s\n", test_name);
}

enum action { LIST, CHECK, BENCH };

/* One kernel of one instruction set; gives 0 if it is the base's own or not wanted. ref is NULL for scalar itself. */
static int kernel_run(enum action action, const struct kernel *kernel, const struct quant *type, int isa, int *not_wanted) {
    struct kernels table, base, scalar;
    kernels_init(&table, isa);
    kernels_init(&scalar, 0);
    if (isas[isa].base >= 0) kernels_init(&base, isas[isa].base);
    char *fn = (char *)&table + kernel->offset, *ref = (char *)&scalar + kernel->offset;
    if (isas[isa].base >= 0 && memcmp(fn, (char *)&base + kernel->offset, sizeof(void *)) == 0) return 0;
    snprintf(test_name, sizeof test_name, "%s%s%s_%s", kernel->name, type ? "_" : "", type ? type->name : "", isas[isa].name);
    if (!wanted(test_name)) { *not_wanted += 1; return 0; }
    if (action == LIST) { printf("%s\n", test_name); return 1; }
    char generic[64];                                    /* the same inputs for every instruction set */
    snprintf(generic, sizeof generic, "%s%s", kernel->name, type ? type->name : "");
    random_seed(generic);
    snprintf(test_case, sizeof test_case, "start");
    if (sigsetjmp(out_of_test, 1)) { n_failed++; return 1; }
    if (action == BENCH) kernel->bench(type, fn, ref);
    else kernel->check(type, fn, isa ? ref : NULL);
    return 1;
}

static void isa_run(enum action action, int isa) {
    int count = 0, not_wanted = 0, failed = n_failed;
    if (isas[isa].needs & ~cpu_features()) {
        if (action == LIST) return;                      /* what can be run here */
        printf("%-12s not available on this processor%s\n", isas[isa].name, isa_only ? ": nothing was checked" : "");
        if (isa_only) n_failed++;
        return;
    }
    struct kernel matmul = {"matmul", 0, matmul_check, matmul_bench};
    for (int i = 0; i < n_quants; i++) {
        struct kernels table;
        kernels_init(&table, isa);
        if (!table.matmul[quants[i]->id]) {
            printf("FAIL %s: no matmul for %s\n", isas[isa].name, quants[i]->name);
            n_failed++;
            continue;
        }
        matmul.offset = offsetof(struct kernels, matmul) + quants[i]->id * sizeof table.matmul[0];
        count += kernel_run(action, &matmul, quants[i], isa, &not_wanted);
    }
    for (size_t i = 0; i < countof(kernels); i++) count += kernel_run(action, &kernels[i], NULL, isa, &not_wanted);
    if (action != CHECK) return;
    printf("%-12s %d kernels checked", isas[isa].name, count);
    if (not_wanted) printf(", %d left out by --test", not_wanted);
    if (n_failed > failed) printf(", %d FAILED", n_failed - failed);
    printf("\n");
}

static int usage(const char *what) {
    fprintf(stderr, "check: %s\nusage: check [--seed N] [--isa NAME] [--test GLOB] [--quick] [--bench] [--list]\n", what);
    return 2;
}

int main(int argc, char **argv) {
    enum action action = CHECK;
    seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--quick") == 0) quick = 1;
        else if (strcmp(argv[i], "--bench") == 0) action = BENCH;
        else if (strcmp(argv[i], "--list") == 0) action = LIST;
        else if (strcmp(argv[i], "--seed") == 0 && value) seed = strtoull(value, NULL, 10), i++;
        else if (strcmp(argv[i], "--isa") == 0 && value) isa_only = value, i++;
        else if (strcmp(argv[i], "--test") == 0 && value) test_only = value, i++;
        else return usage(argv[i]);
    }
    int known = !isa_only;
    for (int i = 0; i < n_isas; i++) known |= isa_only && strcmp(isa_only, isas[i].name) == 0;
    if (!known) return usage("no such instruction set");
    setvbuf(stdout, NULL, _IOLBF, 0);
    arenas_map();
    crashes_catch();
    if (action != LIST) printf("seed %llu%s\n", (unsigned long long)seed, quick ? ", quick" : "");
    int with_plain = !isa_only || strcmp(isa_only, isas[0].name) == 0;          /* no instruction set changes them: with the first */
    for (size_t i = 0; with_plain && i < countof(plain); i++) {
        if (!wanted(plain[i].name)) continue;
        if (action == LIST) printf("%s\n", plain[i].name);
        else plain_run(i);
    }
    for (int i = 0; i < n_isas; i++)
        if (!isa_only || strcmp(isa_only, isas[i].name) == 0) isa_run(action == LIST ? LIST : CHECK, i);
    if (action == BENCH && n_failed == 0)
        for (int i = 0; i < n_isas; i++)
            if ((!isa_only || strcmp(isa_only, isas[i].name) == 0) && !(isas[i].needs & ~cpu_features())) isa_run(BENCH, i);
    if (n_failed) printf("%d FAILED\n", n_failed);
    return n_failed ? 1 : 0;
}
