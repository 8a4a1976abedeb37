#include "quant/fit.h"

#include <math.h>

#include "base/base.h"

enum { TRIES = 9 };
static const float STEP = 0.02f;             /* from scale to scale that is tried: finer steps and more of them take below 1 % from the error */
static const float SMALL = 1e-15f;           /* weights below are 0: f16 ends at 6e-8 */

/* ---- 4 lanes: gcc's and clang's vectors ---- */

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

static inline f32x4 all(float x) { return (f32x4){x, x, x, x}; }
static inline f32x4 load(const float *x) { f32x4 v; memcpy(&v, x, 16); return v; }
static inline float sum(f32x4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
static inline f32x4 either(i32x4 mask, f32x4 yes, f32x4 no) { return (f32x4)((mask & (i32x4)yes) | (~mask & (i32x4)no)); }

/* The codes nearest to x. */
static inline f32x4 nearest(f32x4 x, const struct grid *g) {
    x = either(x > all((float)g->low), x, all((float)g->low));                   /* a NaN becomes low */
    x = either(x < all((float)g->high), x, all((float)g->high));
    if (!g->values) return x + all(0x1.8p23f) - all(0x1.8p23f);                  /* floats above 2^23 are whole numbers */
    f32x4 code = all((float)g->values[0]);
    for (int k = 1; k < g->n; k++) {
        float step = (float)(g->values[k] - g->values[k - 1]);
        code += (f32x4)((x > all((float)g->values[k] - step / 2)) & (i32x4)all(step));
    }
    return code;
}

/* Sums over the codes q nearest to weights x under a line: what least squares needs, and what the line itself leaves. */
struct sums { float q, qq, qx, error; };

static inline struct sums sums_of(const float *weights, int n, struct line l, const struct grid *g) {
    f32x4 s = all(0), qq = all(0), qx = all(0), errors = all(0);
    f32x4 d = all(l.d), m = all(l.m), inverse = all(l.d != 0 ? 1 / l.d : 0);
    for (int i = 0; i < n; i += 4) {
        f32x4 x = load(weights + i), q = nearest((x - m) * inverse, g), error = x - (d * q + m);
        s += q;
        qq += q * q;
        qx += q * x;
        errors += error * error;
    }
    return (struct sums){sum(s), sum(qq), sum(qx), sum(errors)};
}

void fit_codes(const float *x, int n, struct line l, const struct grid *g, int8_t *codes) {
    float inverse = l.d != 0 ? 1 / l.d : 0;
    for (int i = 0; i < n; i += 4) {
        f32x4 q = nearest((load(x + i) - all(l.m)) * all(inverse), g);
        for (int j = 0; j < 4; j++) codes[i + j] = (int8_t)q[j];
    }
}

float fit_error(const float *x, int n, struct line l, const struct grid *g) { return sums_of(x, n, l, g).error; }

/* ---- 16 or 32 weights ---- */

/* With the best d for its codes, (sum q x) / sum q^2, a try takes (sum q x)^2 / sum q^2 from the squared error. */
float fit_scale(const float *x, int n, const struct grid *g) {
    float extreme = 0, best = 0, d = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    if (!(fabsf(extreme) > SMALL)) return 0;
    for (int end = 0; end <= (g->values != NULL); end++)             /* the ends of whole numbers differ by 1 only: not worth the time */
        for (int i = -TRIES; i <= TRIES; i++) {
            struct line l = {extreme / ((float)(end ? g->high : g->low) * (1 + STEP * (float)i)), 0};
            struct sums s = sums_of(x, n, l, g);
            if (s.qx * s.qx > best * s.qq) {
                best = s.qx * s.qx / s.qq;
                d = s.qx / s.qq;
            }
        }
    return d;
}

/* y = x - min is fitted, which rounds less where min is far from 0. The last try goes on from the best line. */
struct line fit_line(const float *x, int n, int high, float m_max) {
    struct grid g = {0, high, 0, NULL};
    float min = m_max, max = x[0], y[32], sum_y = 0, best = 0, count = (float)n;
    for (int i = 0; i < n; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
    }
    if (!(max - min > SMALL)) return (struct line){0, min};
    for (int i = 0; i < n; i++) sum_y += y[i] = x[i] - min;
    struct line line = {0, 0};
    for (int i = -TRIES; i <= TRIES + 1; i++) {
        struct line l = {(max - min) / ((float)high * (1 + STEP * (float)i)), 0};
        struct sums s = sums_of(y, n, i > TRIES ? line : l, &g);
        float determinant = count * s.qq - s.q * s.q;
        l.m = determinant > 0 ? (s.qq * sum_y - s.q * s.qx) / determinant : 0;         /* 0: all codes are the same */
        if (l.m > m_max - min) l.m = m_max - min;
        l.d = (s.qx - l.m * s.q) / s.qq;
        float gain = l.d * (2 * s.qx - l.d * s.qq - 2 * l.m * s.q) + l.m * (2 * sum_y - l.m * count);    /* sum y^2 - sum (y - d q - m)^2 */
        if (gain > best) {
            best = gain;
            line = l;
        }
    }
    line.m += min;
    return line;
}

/* ---- blocks of 256 ----
 *
 * Each sub-block is fitted alone, and the largest scale says what d is. Rounded to whole numbers, the scales are no longer the best ones:
 * so their neighbours are tried, and with the codes that this gives d and dmin are fitted to all 256 weights, once. */

static float clamp(float x, float low, float high) { return x > low ? (x < high ? x : high) : low; }
uint16_t fit_half(float x) { return float_to_half(clamp(x, -65504, 65504)); }

/* x / unit as a whole number from low to high, and its neighbours. */
static struct range near(float x, float unit, int low, int high) {
    if (unit == 0) return (struct range){0, 1};
    int64_t guess = lrintf(clamp(x / unit, (float)low, (float)high));
    return (struct range){i64_max(guess - 1, low), i64_min(guess + 1, high) + 1};
}

/* Chooses scale and min of sub-block s, with f's d and dmin; l is what fits it best. */
static struct sums scale_choose(const float *x, int size, const struct grid *g, struct line l, int low, int high, struct fit_256 *f, int s) {
    float d = half_to_float(f->d), dmin = half_to_float(f->dmin);
    struct range scales = near(l.d, d, low, high), mins = near(-l.m, dmin, 0, high);
    struct sums best = {.error = INFINITY};
    for (int64_t scale = scales.begin; scale < scales.end; scale++)
        for (int64_t min = mins.begin; min < mins.end; min++) {
            struct sums t = sums_of(x, size, (struct line){d * (float)scale, -(dmin * (float)min)}, g);
            if (!(t.error < best.error)) continue;
            best = t;
            f->scale[s] = (int)scale;
            f->min[s] = (int)min;
        }
    return best;
}

/* Chooses all scales and mins of f; gives the squared error, and f's best d and dmin for what was chosen. */
static double scales_choose(const float *x, int size, const struct grid *g, const struct line *l, int low, int high, struct fit_256 *f,
                            struct line *refit) {
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0, error = 0;        /* x = d a + dmin b, where a = scale * q and b = -min */
    for (int s = 0; s < 256 / size; s++, x += size) {
        struct sums t = scale_choose(x, size, g, l[s], low, high, f, s);
        double scale = f->scale[s], min = f->min[s], sum_x = 0;
        for (int i = 0; i < size; i++) sum_x += x[i];
        aa += scale * scale * t.qq;
        ab -= scale * min * t.q;
        bb += min * min * size;
        ax += scale * t.qx;
        bx -= min * sum_x;
        error += t.error;
    }
    double determinant = aa * bb - ab * ab;
    *refit = (struct line){half_to_float(f->d), half_to_float(f->dmin)};
    if (bb == 0 && aa > 0) refit->d = (float)(ax / aa);
    else if (determinant > 1e-9 * aa * bb)
        *refit = (struct line){(float)((ax * bb - bx * ab) / determinant), (float)((bx * aa - ax * ab) / determinant)};
    return error;
}

static void block_fit(const float *x, int size, const struct grid *g, const struct line *l, int low, int high, struct fit_256 *f) {
    struct line refit, unused;
    double error = scales_choose(x, size, g, l, low, high, f, &refit);
    struct fit_256 again = {.d = fit_half(refit.d), .dmin = fit_half(refit.m)};
    if (scales_choose(x, size, g, l, low, high, &again, &unused) < error) *f = again;
    for (int s = 0; s < 256 / size; s++) {
        struct line line = {half_to_float(f->d) * (float)f->scale[s], -(half_to_float(f->dmin) * (float)f->min[s])};
        fit_codes(x + s * size, size, line, g, f->q + s * size);
    }
}

void fit_scales(const float *x, int size, const struct grid *g, int scale_low, struct fit_256 *f) {
    struct line l[16] = {{0, 0}};
    float extreme = 0;
    for (int s = 0; s < 256 / size; s++) {
        l[s].d = fit_scale(x + s * size, size, g);
        if (fabsf(l[s].d) > fabsf(extreme)) extreme = l[s].d;
    }
    *f = (struct fit_256){.d = fit_half(extreme / (float)scale_low)};
    block_fit(x, size, g, l, scale_low, -scale_low - 1, f);
}

void fit_lines(const float *x, int size, int high, int scale_high, struct fit_256 *f) {
    struct grid g = {0, high, 0, NULL};
    struct line l[16], most = {0, 0};
    for (int s = 0; s < 256 / size; s++) {
        l[s] = fit_line(x + s * size, size, high, 0);
        most = (struct line){fmaxf(most.d, l[s].d), fminf(most.m, l[s].m)};
    }
    *f = (struct fit_256){.d = fit_half(most.d / (float)scale_high), .dmin = fit_half(-most.m / (float)scale_high)};
    block_fit(x, size, &g, l, 0, scale_high, f);
}
