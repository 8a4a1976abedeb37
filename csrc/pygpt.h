/* pygpt.h: the door. The only header that outsiders include, and the whole of what they may call.
 *
 * Token ids go in, logits or token ids come out; text is the caller's business.
 *
 *     gpt_model   *model = gpt_model_open("model.gguf", 0);         immutable, shared by any number of threads
 *     gpt_session *s = gpt_session_new(model, 1, 0);                owns the key/value cache; one thread at a time
 *     struct gpt_row row = {.token = 18, .sequence = 0, .position = 0, .logits = 1};
 *     gpt_session_eval(s, &row, 1, logits);
 *
 * Functions that return int give 0 or a count, or a negative GPT_E... code; constructors give NULL on failure. The sentence
 * that says what went wrong is in gpt_last_error(), one per thread, until that thread's next failing call. Nothing here
 * prints, exits or aborts. cffi reads this file as it is: declarations only, no macros, and preprocessor lines are skipped.
 */
#ifndef PYGPT_H
#define PYGPT_H

#include <stddef.h>
#include <stdint.h>

enum {
    GPT_OK = 0,
    GPT_EINVAL = -1,         /* an argument that cannot be */
    GPT_ENOMEM = -2,
    GPT_ENOENT = -3,         /* no such file */
    GPT_EIO = -4,            /* a file that cannot be read */
    GPT_EFORMAT = -5,        /* a file whose bytes contradict the format */
    GPT_EUNSUPPORTED = -6,   /* a correct file of something not known here */
    GPT_EFULL = -7           /* more tokens than the context holds */
};

const char *gpt_last_error(void);
int gpt_last_code(void);     /* the code that came with the sentence: what a constructor's NULL stands for */

/* ---- the machine -------------------------------------------------------------------------------------------------- */

/* The instruction sets that kernels exist for on this processor family, slowest first. The best one that the processor has
 * is used; the environment variable PYGPT_ISA names another. */
int gpt_isa_count(void);
const char *gpt_isa_name(int i);
int gpt_isa_available(int i);            /* 1 if this processor can run it */
const char *gpt_isa_current(void);       /* NULL if PYGPT_ISA names what is unknown or cannot run here */

int gpt_cpu_count(void);                             /* processors that this process may use */
double gpt_measure_read(int n_threads, double seconds);   /* bytes per second, all threads together, linear, from
                                                      * memory; negative GPT_E... */
double gpt_measure_mac(int n_threads, double seconds);    /* int8 multiply-adds per second of the current instruction set */
int gpt_memory(int64_t *anonymous, int64_t *file);   /* resident bytes of this process; GPT_EUNSUPPORTED where unknown */

/* ---- types of weights --------------------------------------------------------------------------------------------- */

struct gpt_type {
    const char *name;        /* "q8_0" */
    int32_t id;              /* the number that GGUF files use */
    int32_t block;           /* weights per block; a row holds whole blocks */
    int32_t bytes;           /* bytes per block */
    int32_t writable;        /* gpt_quantize makes it */
};
int gpt_type_count(void);
int gpt_type_get(int i, struct gpt_type *type);
const char *gpt_type_name(int32_t id);   /* also of types that are known by name only; NULL if no such number */
/* n is a multiple of the type's block; dst holds n / block * bytes */
int gpt_quantize(int32_t id, const float *src, int64_t n, void *dst);
int gpt_dequantize(int32_t id, const void *src, int64_t n, float *dst);

/* ---- GGUF files, mapped and checked ------------------------------------------------------------------------------- */

/* Replace a file by renaming another to its name: one that is cut short while it is open ends the process that reads it. */

typedef struct gpt_file gpt_file;

enum {                       /* types of values */
    GPT_U8 = 0, GPT_I8 = 1, GPT_U16 = 2, GPT_I16 = 3, GPT_U32 = 4, GPT_I32 = 5, GPT_F32 = 6, GPT_BOOL = 7,
    GPT_STRING = 8, GPT_ARRAY = 9, GPT_U64 = 10, GPT_I64 = 11, GPT_F64 = 12
};
struct gpt_key {
    const char *name;
    int32_t is_array;
    int32_t type;            /* of the value, or of the array's elements; never GPT_ARRAY */
    int64_t count;           /* 1, or the array's length */
    const void *data;        /* count little-endian values, not aligned; strings: see gpt_file_strings */
};
struct gpt_tensor {
    const char *name;
    int32_t type, n_dims;
    int64_t shape[4];        /* shape[0] runs fastest (the row's width); unused ones are 1 */
    int64_t bytes;
    const void *data;
};

gpt_file *gpt_file_open(const char *path);
void gpt_file_close(gpt_file *file);
int64_t gpt_file_bytes(const gpt_file *file);
int64_t gpt_file_key_count(const gpt_file *file);
int gpt_file_key(const gpt_file *file, int64_t i, struct gpt_key *key);
/* The strings of key i, not terminated by zeros: text[j] has length[j] bytes; both arrays hold the key's count. */
int gpt_file_strings(const gpt_file *file, int64_t i, const char **text, int64_t *length);
int64_t gpt_file_tensor_count(const gpt_file *file);
int gpt_file_tensor(const gpt_file *file, int64_t i, struct gpt_tensor *tensor);
void gpt_file_forget(const gpt_file *file, int64_t i);   /* what was read of a tensor leaves memory; it can be read again */

/* ---- models ------------------------------------------------------------------------------------------------------- */

typedef struct gpt_model gpt_model;

struct gpt_model_info {
    const char *architecture;
    int32_t n_vocab, n_ctx, n_layer, n_head, n_head_kv, n_embd, n_ff, n_threads;
    int64_t n_params;
    int64_t bytes_per_token; /* weights that one decoded token reads */
};

/* Maps the file and binds its tensors. n_threads 0 takes every processor that this process may use. */
gpt_model *gpt_model_open(const char *path, int n_threads);
void gpt_model_close(gpt_model *model);              /* after its sessions */
void gpt_model_get_info(const gpt_model *model, struct gpt_model_info *info);
const gpt_file *gpt_model_file(const gpt_model *model);  /* lives as long as the model */

/* ---- sessions ----------------------------------------------------------------------------------------------------- */

typedef struct gpt_session gpt_session;

/* One token of one sequence. Rows of different sequences may be mixed; those of one sequence come in order, the first at the
 * position where the sequence ends. */
struct gpt_row {
    int32_t token, sequence, position;
    int32_t logits;          /* nonzero: this row's logits are wanted */
};

gpt_session *gpt_session_new(gpt_model *model, int n_sequence, int n_ctx);   /* n_ctx 0: the model's */
void gpt_session_free(gpt_session *session);
/* logits: (rows that want them, n_vocab), in the order of the rows; NULL if none does. On error nothing was appended. */
int gpt_session_eval(gpt_session *session, const struct gpt_row *rows, int n_rows, float *logits);
int gpt_session_length(const gpt_session *session, int sequence);
int gpt_session_tokens(const gpt_session *session, int sequence, int32_t *ids);     /* writes and returns as many as its length */
int gpt_session_rewind(gpt_session *session, int sequence, int length);      /* forget all but the first length tokens */
/* Copies a whole sequence, also between sessions of one model; what the target held is forgotten. */
int gpt_session_copy(const gpt_session *from, int from_sequence, gpt_session *to, int to_sequence);

/* ---- generation --------------------------------------------------------------------------------------------------- */

typedef struct gpt_generator gpt_generator;

/* What happens when the context is full: learned positions cannot slide. */
enum {
    GPT_FULL_EXACT = 0,      /* evaluate the last n_ctx tokens anew for every token, as nanoGPT's sampling does */
    GPT_FULL_JUMP = 1,       /* keep the last half, evaluate it anew, go on */
    GPT_FULL_STOP = 2
};
enum { GPT_RUNNING = 0, GPT_ENDED_BY_ID = 1, GPT_ENDED_BY_CONTEXT = 2 };

/* Applied in this order; the neutral values switch a step off. */
struct gpt_sampling {
    float repeat_penalty;    /* 1: off; 0.001 to 1000. Logits of tokens among the last repeat_window are divided (if > 0) or multiplied */
    int32_t repeat_window;
    float temperature;       /* 0: always the likeliest token, and what follows is ignored */
    int32_t top_k;           /* 0: off. Ties with the k-th are kept */
    float top_p;             /* 1: off. The smallest set of likeliest tokens whose probabilities reach top_p */
    float min_p;             /* 0: off. Tokens at least min_p times as likely as the likeliest */
    uint64_t seed, stream;   /* the same pair gives the same text; streams of one seed are independent */
    const int32_t *banned;   /* ids that are never chosen */
    int32_t n_banned;
    const int32_t *stop;     /* ids that end the text; they are not returned */
    int32_t n_stop;
    int32_t on_full;         /* GPT_FULL_... */
};

/* Continues one sequence of a session. The session belongs to the generator until it is freed, and then holds the whole text, of
 * which the last token may not have been evaluated. */
gpt_generator *gpt_generator_new(gpt_session *session, int sequence, const struct gpt_sampling *sampling);
void gpt_generator_free(gpt_generator *generator);
/* Appends a prompt, or goes on after the text has ended. GPT_EFULL if ids do not fit behind what the context holds: on_full is
 * for generated tokens only. */
int gpt_generator_feed(gpt_generator *generator, const int32_t *ids, int n);
/* Writes up to capacity ids and returns how many; comes back early after about `seconds`, or when the text has ended. */
int gpt_generator_next(gpt_generator *generator, int32_t *ids, int capacity, double seconds);
int gpt_generator_state(const gpt_generator *generator);     /* GPT_RUNNING or why it ended */
int32_t gpt_generator_end_id(const gpt_generator *generator); /* the stop id that ended the text last; -1: none has */

#endif
