#include "model/rope.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "file/gguf.h"

/* YaRN, Peng et al. 2023, arXiv:2309.00071, section 3.2: pairs that turn fast are left alone, pairs that turn slowly are slowed down by
 * the factor, those between are mixed. */
struct yarn { float factor, original, fast, slow, attention; };

static int read_yarn(const struct gpt_model *m, struct yarn *y) {
    int rc, original = m->h.n_ctx;
    *y = (struct yarn){.fast = 32, .slow = 1, .attention = 1};
    if ((rc = model_key_float(m, "rope.scaling.factor", &y->factor)) ||
        (rc = model_key_int_if(m, "rope.scaling.original_context_length", 1, 1 << 24, &original)) ||
        (rc = model_key_float_if(m, "rope.scaling.yarn_beta_fast", &y->fast)) ||
        (rc = model_key_float_if(m, "rope.scaling.yarn_beta_slow", &y->slow)) ||
        (rc = model_key_float_if(m, "rope.scaling.attn_factor", &y->attention)) ||
        (rc = model_key_float_if(m, "rope.scaling.yarn_attn_factor", &y->attention)))
        return rc;
    y->original = (float)original;
    if (!(y->factor >= 1 && y->fast > 0 && y->slow > 0))
        return error_set(GPT_EFORMAT, "%s: rope.scaling of yarn has factor %g, beta_fast %g, beta_slow %g; expected 1 or more and positive numbers; "
                         "the file is damaged", gguf_path(m->file), (double)y->factor, (double)y->fast, (double)y->slow);
    return GPT_OK;
}

/* The pair, as a fraction, that makes so many turns within the original context. */
static double yarn_pair(const struct yarn *y, double turns, int n_rot, double base) {
    return n_rot * log(y->original / (turns * 2 * M_PI)) / (2 * log(base));
}

static void apply_yarn(struct rope *r, const struct yarn *y, double base) {
    double low = fmax(0, floor(yarn_pair(y, y->fast, r->n_rot, base)));
    double high = fmin(r->n_rot - 1, ceil(yarn_pair(y, y->slow, r->n_rot, base)));
    for (int i = 0; i < r->n_rot / 2; i++) {
        double slowed = fmin(1, fmax(0, (i - low) / fmax(0.001, high - low)));
        r->speed[i] *= slowed / y->factor + (1 - slowed);
    }
    r->magnitude = (float)(y->attention * (1 + 0.1 * log(y->factor)));
}

static int is(const char *text, int64_t length, const char *word) {
    return length == (int64_t)strlen(word) && memcmp(text, word, (size_t)length) == 0;
}

static int read_scaling(struct rope *r, const struct gpt_model *m, double base) {
    const char *type = "linear";
    int64_t length = 6;
    char name[64];
    float factor = 1;
    struct yarn yarn;
    int rc = model_key_float_if(m, "rope.scale_linear", &factor);                /* older files */
    if (!rc) rc = model_key_float_if(m, "rope.scaling.factor", &factor);
    snprintf(name, sizeof name, "%s.rope.scaling.type", m->arch->name);
    if (!rc && gguf_find(m->file, name)) rc = gguf_string(m->file, name, &type, &length);
    if (rc) return rc;
    if (is(type, length, "none")) return GPT_OK;
    if (is(type, length, "yarn")) {
        if ((rc = read_yarn(m, &yarn))) return rc;
        apply_yarn(r, &yarn, base);
        return GPT_OK;
    }
    if (!is(type, length, "linear"))
        return error_set(GPT_EUNSUPPORTED, "%s: its %s is %.*s, which is not supported; supported: none, linear, yarn", gguf_path(m->file), name,
                         (int)i64_min(length, 64), type);
    if (!(factor > 0)) return error_set(GPT_EFORMAT, "%s: rope.scaling.factor is %g; expected more than 0; the file is damaged",
                                        gguf_path(m->file), (double)factor);
    for (int i = 0; i < r->n_rot / 2; i++) r->speed[i] /= factor;
    return GPT_OK;
}

int rope_init(struct rope *r, const struct gpt_model *m, const float *factors, int halves) {
    float base = 10000;
    *r = (struct rope){.n_rot = m->h.head_dim, .halves = halves, .magnitude = 1};
    int rc = model_key_int_if(m, "rope.dimension_count", 1, m->h.head_dim, &r->n_rot);
    if (!rc) rc = model_key_float_if(m, "rope.freq_base", &base);
    if (rc) return rc;
    if (r->n_rot % 2 || !(base > 1))
        return error_set(GPT_EFORMAT, "%s: rope.dimension_count is %d and rope.freq_base %g; expected an even number and more than 1; "
                         "the file is damaged", gguf_path(m->file), r->n_rot, (double)base);
    r->speed = malloc((size_t)r->n_rot / 2 * sizeof *r->speed);
    if (!r->speed) return error_set(GPT_ENOMEM, "%s: no memory for positions", gguf_path(m->file));
    for (int i = 0; i < r->n_rot / 2; i++) r->speed[i] = pow(base, -2.0 * i / r->n_rot);
    rc = read_scaling(r, m, base);
    for (int i = 0; factors && i < r->n_rot / 2 && !rc; i++) {
        if (!(factors[i] > 0))
            return error_set(GPT_EFORMAT, "%s: rope_freqs.weight holds %g; expected more than 0; the file is damaged", gguf_path(m->file), (double)factors[i]);
        r->speed[i] /= factors[i];
    }
    return rc;
}

void rope_free(struct rope *r) {
    free(r->speed);
    r->speed = NULL;
}

void rope_turns(const struct rope *r, int position, float *turns) {
    for (int i = 0, half = r->n_rot / 2; i < half; i++) {
        turns[i] = (float)cos(position * r->speed[i]) * r->magnitude;
        turns[half + i] = (float)sin(position * r->speed[i]) * r->magnitude;
    }
}

void rope_apply(const struct rope *r, const float *turns, float *x) {
    const int half = r->n_rot / 2, step = r->halves ? 1 : 2, other = r->halves ? half : 1;
    for (int i = 0; i < half; i++, x += step) {
        float a = x[0], b = x[other];
        x[0] = a * turns[i] - b * turns[half + i];
        x[other] = a * turns[half + i] + b * turns[i];
    }
}
