#include "file/gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/error.h"
#include "base/os.h"
#include "quant/quant.h"

enum { NAME_MAX_BYTES = 1024, ALIGNMENT_MAX = 1 << 20 };

struct gpt_file {
    char *path;
    struct os_map map;
    struct gpt_key *keys, **key_order;              /* key_order, tensor_order: sorted by name, for finding */
    struct gpt_tensor *tensors, **tensor_order;
    int64_t n_keys, n_tensors;
};

/* ---- reading, with a check before each step ---- */

struct cursor {
    const uint8_t *at;
    uint64_t left;
    const char *path;
};

static const void *take(struct cursor *c, uint64_t bytes) {
    if (bytes > c->left) {
        error_set(GPT_EFORMAT, "%s: ends too early: %llu more bytes expected, %llu found; the file is truncated or damaged, fetch or "
                  "convert it again", c->path, (unsigned long long)bytes, (unsigned long long)c->left);
        return NULL;
    }
    const void *p = c->at;
    c->at += bytes;
    c->left -= bytes;
    return p;
}

static int take_u32(struct cursor *c, uint32_t *value) {
    const void *p = take(c, 4);
    if (p) memcpy(value, p, 4);
    return p ? GPT_OK : GPT_EFORMAT;
}

static int take_u64(struct cursor *c, uint64_t *value) {
    const void *p = take(c, 8);
    if (p) memcpy(value, p, 8);
    return p ? GPT_OK : GPT_EFORMAT;
}

static int take_string(struct cursor *c, const char **text, uint64_t *length) {
    if (take_u64(c, length)) return GPT_EFORMAT;
    *text = take(c, *length);
    return *text ? GPT_OK : GPT_EFORMAT;
}

/* A name becomes a C string of its own. */
static int take_name(struct cursor *c, const char *what, const char **name) {
    const char *text;
    uint64_t length;
    if (take_string(c, &text, &length)) return GPT_EFORMAT;
    if (length == 0 || length > NAME_MAX_BYTES || memchr(text, 0, length))
        return error_set(GPT_EFORMAT, "%s: a %s has a name of %llu bytes; expected 1 to %d without zeros; the file is damaged",
                         c->path, what, (unsigned long long)length, NAME_MAX_BYTES);
    char *copy = malloc(length + 1);
    if (!copy) return error_set(GPT_ENOMEM, "%s: no memory for its names", c->path);
    memcpy(copy, text, length);
    copy[length] = 0;
    *name = copy;
    return GPT_OK;
}

/* ---- keys ---- */

static uint64_t scalar_bytes(uint32_t type) {
    static const uint8_t bytes[] = {
        [GPT_U8] = 1, [GPT_I8] = 1, [GPT_U16] = 2, [GPT_I16] = 2, [GPT_U32] = 4, [GPT_I32] = 4, [GPT_F32] = 4,
        [GPT_BOOL] = 1, [GPT_U64] = 8, [GPT_I64] = 8, [GPT_F64] = 8,
    };
    return type < countof(bytes) ? bytes[type] : 0;
}

static int too_many(const struct cursor *c, const struct gpt_key *key, uint64_t count) {
    return error_set(GPT_EFORMAT, "%s: key %s claims %llu values, more than the %llu bytes that are left can hold; the file is "
                     "truncated or damaged", c->path, key->name, (unsigned long long)count, (unsigned long long)c->left);
}

static int take_values(struct cursor *c, struct gpt_key *key, uint32_t type, uint64_t count) {
    uint64_t bytes = scalar_bytes(type);
    key->type = (int32_t)type;
    if (type == GPT_STRING) {
        const char *text;
        uint64_t length;
        if (count > c->left / 8) return too_many(c, key, count);      /* each has at least its length */
        key->data = c->at;
        for (uint64_t i = 0; i < count; i++)
            if (take_string(c, &text, &length)) return GPT_EFORMAT;
    } else if (bytes == 0) {
        return error_set(GPT_EFORMAT, "%s: key %s has values of type %u, which is not among GGUF's (nested arrays are not supported); "
                         "the file is damaged or newer than this version", c->path, key->name, type);
    } else {
        if (count > c->left / bytes) return too_many(c, key, count);
        key->data = take(c, count * bytes);
        if (!key->data) return GPT_EFORMAT;
    }
    key->count = (int64_t)count;
    return GPT_OK;
}

static int take_key(struct cursor *c, struct gpt_key *key) {
    uint32_t type;
    uint64_t count = 1;
    int rc = take_name(c, "key", &key->name);
    if (rc) return rc;
    if (take_u32(c, &type)) return GPT_EFORMAT;
    key->is_array = type == GPT_ARRAY;
    if (key->is_array && (take_u32(c, &type) || take_u64(c, &count))) return GPT_EFORMAT;
    return take_values(c, key, type, count);
}

/* ---- tensors ---- */

static int take_tensor(struct cursor *c, struct gpt_tensor *t, uint64_t *offset) {
    uint32_t n_dims, type;
    uint64_t dim, elements = 1;
    int rc = take_name(c, "tensor", &t->name);
    if (rc) return rc;
    if (take_u32(c, &n_dims)) return GPT_EFORMAT;
    if (n_dims < 1 || n_dims > 4)
        return error_set(GPT_EFORMAT, "%s: tensor %s has %u dimensions; expected 1 to 4; the file is damaged", c->path, t->name, n_dims);
    t->n_dims = (int32_t)n_dims;
    for (uint32_t i = 0; i < 4; i++) {
        t->shape[i] = 1;
        if (i >= n_dims) continue;
        if (take_u64(c, &dim)) return GPT_EFORMAT;
        if (dim == 0 || dim > INT64_MAX / 8 || __builtin_mul_overflow(elements, dim, &elements) || elements > INT64_MAX / 8)
            return error_set(GPT_EFORMAT, "%s: tensor %s has a dimension of %llu, which cannot be; the file is damaged", c->path,
                             t->name, (unsigned long long)dim);
        t->shape[i] = (int64_t)dim;
    }
    if (take_u32(c, &type) || take_u64(c, offset)) return GPT_EFORMAT;
    const struct quant *q = quant_find(type);
    if (!q && quant_name(type))
        return error_set(GPT_EUNSUPPORTED, "%s: tensor %s has type %s, which is not supported yet", c->path, t->name, quant_name(type));
    if (!q)
        return error_set(GPT_EFORMAT, "%s: tensor %s has type number %u, which is not known; the file is damaged or newer than this "
                         "version", c->path, t->name, type);
    if (t->shape[0] % q->block)
        return error_set(GPT_EFORMAT, "%s: tensor %s has rows of %lld weights; type %s needs a multiple of %d; the file is damaged",
                         c->path, t->name, (long long)t->shape[0], q->name, q->block);
    t->type = (int32_t)type;
    t->bytes = (int64_t)(elements / (uint64_t)q->block * q->bytes);
    return GPT_OK;
}

static int by_data(const void *a, const void *b) {
    const struct gpt_tensor *s = *(struct gpt_tensor *const *)a, *t = *(struct gpt_tensor *const *)b;
    return s->data < t->data ? -1 : s->data > t->data;
}

static int place_tensor(struct gpt_file *f, struct gpt_tensor *t, uint64_t offset, uint64_t start, uint64_t alignment) {
    uint64_t size = f->map.bytes;
    if (offset % alignment || start > size || offset > size - start || (uint64_t)t->bytes > size - start - offset)
        return error_set(GPT_EFORMAT, "%s: tensor %s should be %lld bytes at offset %llu of the data, but the file has %llu bytes in all; "
                         "it is truncated or damaged, fetch or convert it again", f->path, t->name, (long long)t->bytes,
                         (unsigned long long)offset, (unsigned long long)size);
    t->data = f->map.data + start + offset;
    return GPT_OK;
}

static int check_overlap(struct gpt_file *f) {
    for (int64_t i = 0; i < f->n_tensors; i++) f->tensor_order[i] = &f->tensors[i];
    if (f->n_tensors > 1) qsort(f->tensor_order, (size_t)f->n_tensors, sizeof *f->tensor_order, by_data);
    for (int64_t i = 1; i < f->n_tensors; i++) {
        const struct gpt_tensor *a = f->tensor_order[i - 1], *b = f->tensor_order[i];
        if ((const char *)a->data + a->bytes > (const char *)b->data)
            return error_set(GPT_EFORMAT, "%s: tensors %s and %s overlap; the file is damaged", f->path, a->name, b->name);
    }
    return GPT_OK;
}

/* ---- finding by name: both kinds of entry begin with their name ---- */

static const char *entry_name(const void *entry) { return *(const char *const *)entry; }

static int by_name(const void *a, const void *b) {
    return strcmp(entry_name(*(const void *const *)a), entry_name(*(const void *const *)b));
}

static int sort_names(struct gpt_file *f, const char *what, const void **order, int64_t n) {
    if (n > 1) qsort(order, (size_t)n, sizeof *order, by_name);
    for (int64_t i = 1; i < n; i++)
        if (strcmp(entry_name(order[i - 1]), entry_name(order[i])) == 0)
            return error_set(GPT_EFORMAT, "%s: %s %s occurs twice; the file is damaged", f->path, what, entry_name(order[i]));
    return GPT_OK;
}

static const void *find(const void *const *order, int64_t n, const char *name) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int c = strcmp(entry_name(order[middle]), name);
        if (c == 0) return order[middle];
        if (c < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

/* ---- the file ---- */

static int read_header(struct gpt_file *f, struct cursor *c) {
    uint32_t version;
    uint64_t n_tensors, n_keys;
    if (f->map.bytes < 4 || memcmp(f->map.data, "GGUF", 4) != 0)
        return error_set(GPT_EFORMAT, "%s: is no GGUF file (it does not begin with GGUF); make one with: pygpt convert", f->path);
    take(c, 4);
    if (take_u32(c, &version)) return GPT_EFORMAT;
    if (version == 0x02000000 || version == 0x03000000)
        return error_set(GPT_EUNSUPPORTED, "%s: is a big-endian GGUF file; only little-endian ones are supported", f->path);
    if (version < 2 || version > 3)
        return error_set(GPT_EUNSUPPORTED, "%s: is GGUF version %u; supported are 2 and 3", f->path, version);
    if (take_u64(c, &n_tensors) || take_u64(c, &n_keys)) return GPT_EFORMAT;
    if (n_keys > c->left / 13 || n_tensors > c->left / 32)              /* the least bytes that an entry takes */
        return error_set(GPT_EFORMAT, "%s: claims %llu keys and %llu tensors, more than its %llu bytes can hold; it is truncated or "
                         "damaged", f->path, (unsigned long long)n_keys, (unsigned long long)n_tensors, (unsigned long long)f->map.bytes);
    f->keys = calloc(n_keys + 1, sizeof *f->keys);
    f->key_order = calloc(n_keys + 1, sizeof *f->key_order);
    f->tensors = calloc(n_tensors + 1, sizeof *f->tensors);
    f->tensor_order = calloc(n_tensors + 1, sizeof *f->tensor_order);
    if (!f->keys || !f->key_order || !f->tensors || !f->tensor_order)
        return error_set(GPT_ENOMEM, "%s: no memory for its %llu keys and %llu tensors", f->path, (unsigned long long)n_keys,
                         (unsigned long long)n_tensors);
    f->n_keys = (int64_t)n_keys;
    f->n_tensors = (int64_t)n_tensors;
    return GPT_OK;
}

static int read_alignment(struct gpt_file *f, int64_t *alignment) {
    *alignment = 32;
    const struct gpt_key *key = gguf_find(f, "general.alignment");
    if (!key) return GPT_OK;
    if (key->is_array || key->type != GPT_U32)
        return error_set(GPT_EFORMAT, "%s: general.alignment is not a 32-bit number; the file is damaged", f->path);
    int rc = gguf_int(f, "general.alignment", 8, ALIGNMENT_MAX, alignment);
    if (rc == GPT_OK && (*alignment & (*alignment - 1)))
        rc = error_set(GPT_EFORMAT, "%s: general.alignment is %lld; expected a power of two; the file is damaged", f->path,
                       (long long)*alignment);
    return rc;
}

static int read_tensors(struct gpt_file *f, struct cursor *c, int64_t alignment) {
    int rc = GPT_OK;
    uint64_t *offsets = calloc((size_t)f->n_tensors + 1, sizeof *offsets);
    if (!offsets) return error_set(GPT_ENOMEM, "%s: no memory for its tensors", f->path);
    for (int64_t i = 0; i < f->n_tensors && !rc; i++) rc = take_tensor(c, &f->tensors[i], &offsets[i]);
    uint64_t start = (uint64_t)round_up(c->at - f->map.data, alignment);
    for (int64_t i = 0; i < f->n_tensors && !rc; i++) rc = place_tensor(f, &f->tensors[i], offsets[i], start, (uint64_t)alignment);
    free(offsets);
    return rc;
}

static int read_all(struct gpt_file *f) {
    struct cursor c = {f->map.data, f->map.bytes, f->path};
    int64_t alignment;
    int rc = read_header(f, &c);
    for (int64_t i = 0; i < f->n_keys && !rc; i++) {
        rc = take_key(&c, &f->keys[i]);
        f->key_order[i] = &f->keys[i];
    }
    if (!rc) rc = sort_names(f, "key", (const void **)f->key_order, f->n_keys);
    if (!rc) rc = read_alignment(f, &alignment);
    if (!rc) rc = read_tensors(f, &c, alignment);
    if (!rc) rc = check_overlap(f);
    if (!rc) rc = sort_names(f, "tensor", (const void **)f->tensor_order, f->n_tensors);
    return rc;
}

gpt_file *gguf_open(const char *path) {
    struct gpt_file *f = calloc(1, sizeof *f);
    if (f) f->path = strdup(path);
    if (!f || !f->path) {
        free(f);
        error_set(GPT_ENOMEM, "%s: no memory to open it", path);
        return NULL;
    }
    if (os_map(path, &f->map) == GPT_OK && read_all(f) == GPT_OK) return f;
    gguf_close(f);
    return NULL;
}

void gguf_close(gpt_file *f) {
    if (!f) return;
    for (int64_t i = 0; i < f->n_keys; i++) free((char *)f->keys[i].name);
    for (int64_t i = 0; i < f->n_tensors; i++) free((char *)f->tensors[i].name);
    free(f->keys);
    free(f->key_order);
    free(f->tensors);
    free(f->tensor_order);
    os_unmap(&f->map);
    free(f->path);
    free(f);
}

const char *gguf_path(const gpt_file *f) { return f->path; }
int64_t gguf_bytes(const gpt_file *f) { return (int64_t)f->map.bytes; }
int64_t gguf_n_keys(const gpt_file *f) { return f->n_keys; }
const struct gpt_key *gguf_key(const gpt_file *f, int64_t i) { return &f->keys[i]; }
int64_t gguf_n_tensors(const gpt_file *f) { return f->n_tensors; }
const struct gpt_tensor *gguf_tensor(const gpt_file *f, int64_t i) { return &f->tensors[i]; }

const struct gpt_key *gguf_find(const gpt_file *f, const char *name) {
    return find((const void *const *)f->key_order, f->n_keys, name);
}

const struct gpt_tensor *gguf_find_tensor(const gpt_file *f, const char *name) {
    return find((const void *const *)f->tensor_order, f->n_tensors, name);
}

void gguf_strings(const struct gpt_key *key, const char **text, int64_t *length) {
    const char *at = key->data;
    for (int64_t i = 0; i < key->count; i++) {
        memcpy(&length[i], at, 8);
        text[i] = at + 8;
        at += 8 + length[i];
    }
}

/* ---- typed values ---- */

static const struct gpt_key *find_single(const gpt_file *f, const char *name) {
    const struct gpt_key *key = gguf_find(f, name);
    if (key && !key->is_array) return key;
    error_set(GPT_EFORMAT, key ? "%s: key %s is an array; expected a single value" : "%s: has no key %s; it is incomplete, convert it again",
              f->path, name);
    return NULL;
}

static int read_int(const struct gpt_key *key, int64_t *value) {
    union { uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32; int64_t i64; } v = {0};
    if (key->type == GPT_STRING || key->type == GPT_F32 || key->type == GPT_F64 || key->type == GPT_BOOL) return GPT_EFORMAT;
    memcpy(&v, key->data, scalar_bytes((uint32_t)key->type));
    switch (key->type) {
    case GPT_U8: *value = v.u8; break;
    case GPT_I8: *value = v.i8; break;
    case GPT_U16: *value = v.u16; break;
    case GPT_I16: *value = v.i16; break;
    case GPT_U32: *value = v.u32; break;
    case GPT_I32: *value = v.i32; break;
    default: *value = v.i64; break;              /* a u64 beyond 2^63 turns negative and fails the caller's range */
    }
    return GPT_OK;
}

int gguf_int(const gpt_file *f, const char *name, int64_t min, int64_t max, int64_t *value) {
    const struct gpt_key *key = find_single(f, name);
    if (!key) return GPT_EFORMAT;
    if (read_int(key, value)) return error_set(GPT_EFORMAT, "%s: key %s is not a whole number; the file is damaged", f->path, name);
    if (*value < min || *value > max)
        return error_set(GPT_EFORMAT, "%s: key %s is %lld; expected %lld to %lld; the file is damaged", f->path, name,
                         (long long)*value, (long long)min, (long long)max);
    return GPT_OK;
}

int gguf_ints(const gpt_file *f, const char *name, int64_t min, int64_t max, int64_t n, int *values) {
    const struct gpt_key *key = gguf_find(f, name);
    if (!key || !key->is_array || key->count != n)
        return error_set(GPT_EFORMAT, "%s: expected a key %s with %lld numbers; the file is damaged", f->path, name, (long long)n);
    struct gpt_key element = *key;
    for (int64_t i = 0, value = 0; i < n; i++) {
        if (read_int(&element, &value) || value < min || value > max)
            return error_set(GPT_EFORMAT, "%s: number %lld of key %s is none from %lld to %lld; the file is damaged", f->path, (long long)i, name,
                             (long long)min, (long long)max);
        values[i] = (int)value;
        element.data = (const char *)element.data + scalar_bytes((uint32_t)key->type);
    }
    return GPT_OK;
}

int gguf_float(const gpt_file *f, const char *name, double *value) {
    const struct gpt_key *key = find_single(f, name);
    float single;
    if (!key) return GPT_EFORMAT;
    if (key->type == GPT_F64) {
        memcpy(value, key->data, 8);
    } else if (key->type == GPT_F32) {
        memcpy(&single, key->data, 4);
        *value = single;
    } else {
        return error_set(GPT_EFORMAT, "%s: key %s is not a floating-point number; the file is damaged", f->path, name);
    }
    if (!isfinite(*value)) return error_set(GPT_EFORMAT, "%s: key %s is not finite; the file is damaged", f->path, name);
    return GPT_OK;
}

int gguf_string(const gpt_file *f, const char *name, const char **text, int64_t *length) {
    const struct gpt_key *key = find_single(f, name);
    if (!key) return GPT_EFORMAT;
    if (key->type != GPT_STRING) return error_set(GPT_EFORMAT, "%s: key %s is not a text; the file is damaged", f->path, name);
    gguf_strings(key, text, length);
    return GPT_OK;
}
