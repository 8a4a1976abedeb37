/* The door: every public function, each a few lines above the floors below. */
#include "pygpt.h"

#include "base/error.h"
#include "base/os.h"
#include "base/pool.h"
#include "file/gguf.h"
#include "kernels/kernels.h"
#include "kernels/measure.h"
#include "model/generate.h"
#include "model/model.h"
#include "model/session.h"

const char *gpt_last_error(void) { return error_last(); }
int gpt_last_code(void) { return error_code(); }

/* ---- the machine ---- */

int gpt_isa_count(void) { return n_isas; }
const char *gpt_isa_name(int i) { return i >= 0 && i < n_isas ? isas[i].name : NULL; }
int gpt_isa_available(int i) { return i >= 0 && i < n_isas && isa_available(i); }

const char *gpt_isa_current(void) {
    int i = kernels_choose();
    return i < 0 ? NULL : isas[i].name;
}

int gpt_cpu_count(void) { return os_cpu_count(); }
double gpt_measure_read(int n_threads, double seconds) { return measure_read(n_threads, seconds); }
double gpt_measure_mac(int n_threads, double seconds) { return measure_mac(n_threads, seconds); }
int gpt_memory(int64_t *anonymous, int64_t *file) { return os_memory(anonymous, file); }

/* ---- types ---- */

int gpt_type_count(void) { return n_quants; }

int gpt_type_get(int i, struct gpt_type *type) {
    if (i < 0 || i >= n_quants) return error_set(GPT_EINVAL, "type %d; there are 0 to %d", i, n_quants - 1);
    *type = (struct gpt_type){quants[i]->name, (int32_t)quants[i]->id, quants[i]->block, (int32_t)quants[i]->bytes, quants[i]->quantize != NULL};
    return GPT_OK;
}

const char *gpt_type_name(int32_t id) { return id < 0 ? NULL : quant_name((uint32_t)id); }

/* The type, if n weights make whole blocks of it. */
static const struct quant *whole_blocks(int32_t id, int64_t n) {
    const struct quant *q = id < 0 ? NULL : quant_find((uint32_t)id);
    if (!q) error_set(GPT_EUNSUPPORTED, "type %d (%s) cannot be computed here", id, gpt_type_name(id) ? gpt_type_name(id) : "unknown");
    else if (n < 0 || n % q->block) error_set(GPT_EINVAL, "%lld weights; type %s needs a multiple of %d", (long long)n, q->name, q->block);
    else return q;
    return NULL;
}

int gpt_quantize(int32_t id, const float *src, int64_t n, void *dst) {
    const struct quant *q = whole_blocks(id, n);
    if (!q) return error_code();
    if (!q->quantize) return error_set(GPT_EUNSUPPORTED, "type %s can be read here, but not written", q->name);
    q->quantize(src, n, dst);
    return GPT_OK;
}

int gpt_dequantize(int32_t id, const void *src, int64_t n, float *dst) {
    const struct quant *q = whole_blocks(id, n);
    if (!q) return error_code();
    quant_dequantize(q, src, n, dst);
    return GPT_OK;
}

/* ---- files ---- */

gpt_file *gpt_file_open(const char *path) { return gguf_open(path); }
void gpt_file_close(gpt_file *file) { gguf_close(file); }
int64_t gpt_file_bytes(const gpt_file *file) { return gguf_bytes(file); }
int64_t gpt_file_key_count(const gpt_file *file) { return gguf_n_keys(file); }
int64_t gpt_file_tensor_count(const gpt_file *file) { return gguf_n_tensors(file); }

int gpt_file_key(const gpt_file *file, int64_t i, struct gpt_key *key) {
    if (i < 0 || i >= gguf_n_keys(file)) return error_set(GPT_EINVAL, "key %lld; there are %lld", (long long)i, (long long)gguf_n_keys(file));
    *key = *gguf_key(file, i);
    return GPT_OK;
}

int gpt_file_strings(const gpt_file *file, int64_t i, const char **text, int64_t *length) {
    struct gpt_key key;
    int rc = gpt_file_key(file, i, &key);
    if (rc) return rc;
    if (key.type != GPT_STRING) return error_set(GPT_EINVAL, "key %s holds no strings", key.name);
    gguf_strings(&key, text, length);
    return GPT_OK;
}

int gpt_file_tensor(const gpt_file *file, int64_t i, struct gpt_tensor *tensor) {
    if (i < 0 || i >= gguf_n_tensors(file))
        return error_set(GPT_EINVAL, "tensor %lld; there are %lld", (long long)i, (long long)gguf_n_tensors(file));
    *tensor = *gguf_tensor(file, i);
    return GPT_OK;
}

void gpt_file_forget(const gpt_file *file, int64_t i) {
    if (i >= 0 && i < gguf_n_tensors(file)) os_forget(gguf_tensor(file, i)->data, (size_t)gguf_tensor(file, i)->bytes);
}

/* ---- models and sessions ---- */

gpt_model *gpt_model_open(const char *path, int n_threads) { return model_open(path, n_threads); }
void gpt_model_close(gpt_model *model) { model_close(model); }
const gpt_file *gpt_model_file(const gpt_model *model) { return model->file; }

void gpt_model_get_info(const gpt_model *m, struct gpt_model_info *info) {
    const struct hparams *h = &m->h;
    *info = (struct gpt_model_info){
        .architecture = m->arch->name, .n_vocab = h->n_vocab, .n_ctx = h->n_ctx, .n_layer = h->n_layer, .n_head = h->n_head,
        .n_head_kv = h->n_head_kv, .n_embd = h->n_embd, .n_ff = h->n_ff, .n_threads = pool_size(m->pool), .n_params = m->n_params,
        .bytes_per_token = m->step_bytes,
    };
}

gpt_session *gpt_session_new(gpt_model *model, int n_sequence, int n_ctx) { return session_new(model, n_sequence, n_ctx); }
void gpt_session_free(gpt_session *session) { session_free(session); }

int gpt_session_eval(gpt_session *session, const struct gpt_row *rows, int n_rows, float *logits) {
    return session_eval(session, rows, n_rows, logits);
}

int gpt_session_length(const gpt_session *session, int sequence) { return session_length(session, sequence); }
int gpt_session_tokens(const gpt_session *session, int sequence, int32_t *ids) { return session_tokens(session, sequence, ids); }
int gpt_session_rewind(gpt_session *session, int sequence, int length) { return session_rewind(session, sequence, length); }

int gpt_session_copy(const gpt_session *from, int from_sequence, gpt_session *to, int to_sequence) {
    return session_copy(from, from_sequence, to, to_sequence);
}

/* ---- generation ---- */

gpt_generator *gpt_generator_new(gpt_session *session, int sequence, const struct gpt_sampling *sampling) {
    return generator_new(session, sequence, sampling);
}

void gpt_generator_free(gpt_generator *generator) { generator_free(generator); }
int gpt_generator_feed(gpt_generator *generator, const int32_t *ids, int n) { return generator_feed(generator, ids, n); }

int gpt_generator_next(gpt_generator *generator, int32_t *ids, int capacity, double seconds) {
    return generator_next(generator, ids, capacity, seconds);
}

int gpt_generator_state(const gpt_generator *generator) { return generator_state(generator); }

int32_t gpt_generator_end_id(const gpt_generator *generator) { return generator_end_id(generator); }
