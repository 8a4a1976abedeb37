/* gguf.h: the only reader of the file format (GGUF versions 2 and 3, github.com/ggml-org/ggml/blob/master/docs/gguf.md).
 *
 * A file is mapped, every length in it is checked against what remains before it is believed, and what is returned points into
 * the mapping. The bytes are hostile until shown otherwise: nothing here trusts, casts or multiplies without a check.
 *
 *     | "GGUF" | u32 version | u64 n_tensors | u64 n_keys |
 *     | n_keys times:    string name | u32 type | value |             string: u64 length | bytes
 *     | n_tensors times: string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset |
 *     | zeros up to a multiple of general.alignment | tensor data, each at its offset from here |
 */
#ifndef PYGPT_GGUF_H
#define PYGPT_GGUF_H

#include "pygpt.h"

gpt_file *gguf_open(const char *path);       /* NULL with a sentence */
void gguf_close(gpt_file *file);
const char *gguf_path(const gpt_file *file);
int64_t gguf_bytes(const gpt_file *file);

int64_t gguf_n_keys(const gpt_file *file);
const struct gpt_key *gguf_key(const gpt_file *file, int64_t i);
const struct gpt_key *gguf_find(const gpt_file *file, const char *name);      /* NULL if absent */
void gguf_strings(const struct gpt_key *key, const char **text, int64_t *length);
int64_t gguf_n_tensors(const gpt_file *file);
const struct gpt_tensor *gguf_tensor(const gpt_file *file, int64_t i);
const struct gpt_tensor *gguf_find_tensor(const gpt_file *file, const char *name);

/* Typed values; 0, or GPT_EFORMAT with a sentence if the key is absent or of another type. Integers of any width are taken. */
int gguf_int(const gpt_file *file, const char *name, int64_t min, int64_t max, int64_t *value);
/* All numbers of an array, which must have n of them. */
int gguf_ints(const gpt_file *file, const char *name, int64_t min, int64_t max, int64_t n, int *values);
int gguf_float(const gpt_file *file, const char *name, double *value);
/* The only string of a key: its bytes and length, not terminated. */
int gguf_string(const gpt_file *file, const char *name, const char **text, int64_t *length);

#endif
