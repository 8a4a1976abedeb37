/* fit.h: what the quantizers share: the scales that leave the least squared error, and the codes nearest to weights under a scale.
 *
 * The scale that lets the largest weight just fit is not the best one: a smaller one clips a few weights and is finer for all others.
 * So scales around it are tried. Each gives codes, and for given codes the best scale is known: that of the line of least squares
 * through the points (code, weight). All weights count alike: where large ones counted for more, the outputs of two trained models (the
 * Shakespeare ones) were further from the originals. Sums run in 4 lanes, so that every compiler and processor writes the same file.
 */
#ifndef PYGPT_FIT_H
#define PYGPT_FIT_H

#include <stdint.h>

/* The codes of a type: low .. high, or only the n ascending ones in values. */
struct grid { int low, high, n; const int8_t *values; };

/* weight = d * code + m */
struct line { float d, m; };

/* For n weights, 16 or 32. */
float fit_scale(const float *x, int n, const struct grid *g);                            /* m = 0 */
struct line fit_line(const float *x, int n, int high, float m_max);                      /* codes 0 .. high, m <= m_max */
void fit_codes(const float *x, int n, struct line l, const struct grid *g, int8_t *q);   /* those nearest to (x - m) / d */
float fit_error(const float *x, int n, struct line l, const struct grid *g);             /* squared, that these leave */

/* To f16, and finite. */
uint16_t fit_half(float x);

/* 256 weights in sub-blocks of `size`, whose scales are whole numbers: weight = d * scale[s] * code - dmin * min[s] */
struct fit_256 {
    uint16_t d, dmin;                    /* f16 */
    int scale[16], min[16];
    int8_t q[256];
};
void fit_scales(const float *x, int size, const struct grid *g, int scale_low, struct fit_256 *f);   /* scales scale_low .. -scale_low - 1, no min */
void fit_lines(const float *x, int size, int high, int scale_high, struct fit_256 *f);               /* codes 0 .. high, scales 0 .. scale_high */

#endif
