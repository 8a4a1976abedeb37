/* error.h: the sentence behind an error code, one per thread. */
#ifndef PYGPT_ERROR_H
#define PYGPT_ERROR_H

/* Keeps the sentence and returns the code, so that `return error_set(GPT_EINVAL, "...")` reads well. */
int error_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *error_last(void);
int error_code(void);        /* the code that came with the sentence */

#endif
