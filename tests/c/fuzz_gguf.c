/* fuzz_gguf: hostile files. Whatever the bytes, opening a model gives a model or a sentence, and a model can be run.
 *
 *     fuzz_gguf FILE...                      each as it is
 *     fuzz_gguf --mutate SEED COUNT FILE     COUNT damaged copies of one that is sound, which is tried first and must load
 *
 * Made for builds with sanitizers, which turn what goes wrong unseen into a crash; the file that did it is kept, and its name
 * printed. Exits with 1 if a promise is broken. Compiled with -DLIBFUZZER, it is libFuzzer's target.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pygpt.h"

enum { SECONDS_MAX = 120, MEGABYTES_MAX = 2048 };

static char path[256];                   /* of the copy that is tried */
static long n_loaded, n_refused;
static volatile unsigned looked_at;      /* so that reading is not optimized away */

static void broken(const char *what, const char *detail) {
    fprintf(stderr, "fuzz_gguf: %s%s; the file is %s\n", what, detail, path);
    abort();
}

/* A sentence that none of the calls below gives, so that an old one is not taken for theirs. */
static void plant(void) { gpt_type_get(-1, NULL); }

static void expect_sentence(const char *what) {
    const char *sentence = gpt_last_error();
    if (!sentence || !*sentence || strncmp(sentence, "type -1;", 8) == 0) broken(what, " failed without a sentence");
    if (strchr(sentence, '\n')) broken(what, " failed with more than one line");
    plant();
}

/* ---- one file ----------------------------------------------------------------------------------------------------- */

/* Everything that the file holds can be looked at. */
static void try_file(const gpt_file *file) {
    unsigned sum = 0;
    for (int64_t i = 0; i < gpt_file_key_count(file); i++) {
        struct gpt_key key;
        if (gpt_file_key(file, i, &key)) { expect_sentence("gpt_file_key"); continue; }
        sum += (unsigned)strlen(key.name);
        if (key.type != GPT_STRING || key.count > 1 << 20) continue;
        const char **text = calloc((size_t)key.count + 1, sizeof *text);
        int64_t *length = calloc((size_t)key.count + 1, sizeof *length);
        if (!text || !length) broken("out of memory", "");
        if (gpt_file_strings(file, i, text, length)) expect_sentence("gpt_file_strings");
        else
            for (int64_t j = 0; j < key.count; j++)
                for (int64_t k = 0; k < length[j]; k++) sum += (unsigned char)text[j][k];
        free(text);
        free(length);
    }
    for (int64_t i = 0; i < gpt_file_tensor_count(file); i++) {
        struct gpt_tensor tensor;
        if (gpt_file_tensor(file, i, &tensor)) { expect_sentence("gpt_file_tensor"); continue; }
        const unsigned char *data = tensor.data;
        if (tensor.bytes > 0) sum += data[0] + data[tensor.bytes - 1];
    }
    looked_at = sum;
}

static void try_session(gpt_model *model) {
    struct gpt_model_info info;
    gpt_model_get_info(model, &info);
    gpt_session *session = gpt_session_new(model, 1, 0);
    if (!session) { expect_sentence("gpt_session_new"); return; }
    struct gpt_row rows[3] = {{0, 0, 0, 1}, {info.n_vocab - 1, 0, 1, 0}, {info.n_vocab / 2, 0, 2, 1}};
    float *logits = malloc(2 * (size_t)info.n_vocab * sizeof *logits);
    if (!logits) broken("out of memory", "");
    if (gpt_session_eval(session, rows, 3, logits) < 0) expect_sentence("gpt_session_eval");
    rows[0].token = info.n_vocab;                        /* and it still knows what a token is */
    rows[0].position = gpt_session_length(session, 0);
    if (gpt_session_eval(session, rows, 1, logits) >= 0) broken("evaluated a token that the model does not have", "");
    expect_sentence("gpt_session_eval");
    free(logits);
    gpt_session_free(session);
}

static int try_path(const char *name) {
    plant();
    gpt_model *model = gpt_model_open(name, 1 + (int)((n_loaded + n_refused) % 2));
    if (model) {
        n_loaded++;
        try_file(gpt_model_file(model));
        try_session(model);
        gpt_model_close(model);
    } else {
        n_refused++;
        expect_sentence("gpt_model_open");
    }
    return model != NULL;
}

/* ---- the copy ----------------------------------------------------------------------------------------------------- */

static void path_new(void) {
    const char *folder = getenv("TMPDIR"), *memory = "/dev/shm";           /* a folder in memory is 10 times faster */
    if (!folder || !*folder) folder = access(memory, W_OK) == 0 ? memory : "/tmp";
    snprintf(path, sizeof path, "%s/pygpt-fuzz-XXXXXX", folder);
    int fd = mkstemp(path);
    if (fd < 0) { perror(path); exit(1); }
    close(fd);
}

static int try_bytes(const unsigned char *data, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) { perror(path); exit(1); }
    return try_path(path);
}

#ifdef LIBFUZZER

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    if (!*path) path_new();
    try_bytes(data, size);
    return 0;
}

#else

/* ---- damage ------------------------------------------------------------------------------------------------------- */

static uint64_t rng;

static uint64_t random_u64(void) {       /* splitmix64 */
    uint64_t z = rng += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}
static size_t random_below(size_t n) { return n ? (size_t)(random_u64() % n) : 0; }

enum { HEADER = 4096, GROWTH = 4096 };   /* keys and tensors' names stand at the front of a small file, numbers behind */

static int numbers_only;                 /* one copy in four keeps its front, so that it loads and its numbers are computed with */

static size_t random_place(size_t size) {
    if (size <= HEADER) return random_below(size);
    return numbers_only ? HEADER + random_below(size - HEADER) : random_below(random_below(8) ? HEADER : size);
}

static size_t flip_bits(unsigned char *data, size_t size) {
    for (size_t i = 0, n = 1 + random_below(8); i < n; i++) data[random_place(size)] ^= (unsigned char)(1 << random_below(8));
    return size;
}

static size_t truncate_bytes(unsigned char *data, size_t size) {
    (void)data;
    return random_place(size);
}

static const uint64_t extremes[] = {
    0, 1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 31, 32, 33, 64, 255, 256, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
    0x100000000, (1ull << 40) + 1, (1ull << 42) + 1, 1ull << 58, 1ull << 60, 1ull << 61, 1ull << 62, INT64_MAX, 1ull << 63,
    UINT64_MAX - 31, UINT64_MAX,
};

static size_t overwrite_field(unsigned char *data, size_t size) {
    static const size_t widths[] = {1, 2, 4, 8, 8};
    uint64_t value = extremes[random_below(sizeof extremes / sizeof *extremes)];
    size_t width = widths[random_below(5)], place = random_place(size);
    if (place + width <= size) memcpy(data + place, &value, width);        /* little-endian, as the files */
    return size;
}

/* What stands behind a name that the format or the model knows: the numbers that matter. */
static size_t overwrite_number(unsigned char *data, size_t size) {
    static const char *const names[] = {"GGUF", "_length", "_count", "epsilon", "weight", "bias", "tokens",
                                        "architecture", "alignment"};
    const char *name = names[random_below(sizeof names / sizeof *names)];
    size_t length = strlen(name), hits[512], n = 0;
    for (size_t i = 0; i + length + 64 < size && i < HEADER && n < 512; i++)
        if (memcmp(data + i, name, length) == 0) hits[n++] = i + length;
    if (n == 0 || numbers_only) return overwrite_field(data, size);
    uint64_t value = extremes[random_below(sizeof extremes / sizeof *extremes)];
    memcpy(data + hits[random_below(n)] + 4 * random_below(10), &value, random_below(2) ? 4 : 8);
    return size;
}

static size_t splice(unsigned char *data, size_t size) {
    size_t from = random_place(size), to = random_place(size), n = random_below(256);
    size_t longest = size - (from > to ? from : to);
    memmove(data + to, data + from, n < longest ? n : longest);
    return size;
}

static size_t insert_bytes(unsigned char *data, size_t size) {           /* a piece of itself, in the middle */
    size_t from = random_place(size), to = random_place(size), n = random_below(128);
    unsigned char piece[128];
    if (n > size - from) n = size - from;
    memcpy(piece, data + from, n);
    memmove(data + to + n, data + to, size - to);
    memcpy(data + to, piece, n);
    return size + n;
}

static size_t delete_bytes(unsigned char *data, size_t size) {
    size_t place = random_place(size), n = random_below(128);
    if (n > size - place) n = size - place;
    memmove(data + place, data + place + n, size - place - n);
    return size - n;
}

static size_t fill(unsigned char *data, size_t size) {
    size_t place = random_place(size), n = random_below(random_below(2) ? 16 : 4096);
    memset(data + place, random_below(2) ? 0 : 255, n < size - place ? n : size - place);
    return size;
}

static size_t (*const damages[])(unsigned char *data, size_t size) = {
    flip_bits, truncate_bytes, overwrite_field, overwrite_field, overwrite_number, overwrite_number, splice, insert_bytes,
    delete_bytes, fill,
};

static unsigned char *read_whole(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END) || (long)(*size = (size_t)ftell(file)) < 0) { perror(name); exit(1); }
    unsigned char *data = malloc(*size + 1);
    rewind(file);
    if (!data || fread(data, 1, *size, file) != *size) { perror(name); exit(1); }
    fclose(file);
    return data;
}

static void on_alarm(int number) {
    (void)number;
    broken("it takes too long", "");
}

static void mutate(uint64_t seed, long count, const char *name) {
    size_t size;
    unsigned char *sound = read_whole(name, &size), *data = malloc(size + GROWTH);
    if (!data) exit(1);
    path_new();
    if (!try_bytes(sound, size)) broken("the sound file was refused: ", gpt_last_error());
    for (long i = 0; i < count; i++) {
        rng = seed + (uint64_t)i * 0x9e3779b97f4a7c15;
        numbers_only = random_below(4) == 0;
        memcpy(data, sound, size);
        size_t now = size;
        for (size_t k = 0, n = 1 + random_below(3); k < n; k++)
            if (now) now = damages[random_below(sizeof damages / sizeof *damages)](data, now);
        alarm(SECONDS_MAX);
        try_bytes(data, now);
    }
    unlink(path);
    free(sound);
    free(data);
}

int main(int argc, char **argv) {
    signal(SIGALRM, on_alarm);
    if (argc == 5 && strcmp(argv[1], "--mutate") == 0) {
        mutate(strtoull(argv[2], NULL, 10), strtol(argv[3], NULL, 10), argv[4]);
    } else if (argc > 1 && argv[1][0] != '-') {
        for (int i = 1; i < argc; i++) {
            snprintf(path, sizeof path, "%s", argv[i]);
            alarm(SECONDS_MAX);
            printf("%s: %s\n", argv[i], try_path(argv[i]) ? "loads" : gpt_last_error());
        }
    } else {
        fprintf(stderr, "usage: fuzz_gguf FILE... | fuzz_gguf --mutate SEED COUNT FILE\n");
        return 2;
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    long megabytes = usage.ru_maxrss >> 10;
    printf("%ld files: %ld loaded and ran, %ld were refused with a sentence; at most %ld MB\n", n_loaded + n_refused, n_loaded,
           n_refused, megabytes);
    if (megabytes > MEGABYTES_MAX) fprintf(stderr, "fuzz_gguf: a small file took more than %d MB\n", MEGABYTES_MAX);
    return megabytes > MEGABYTES_MAX;
}

#endif
