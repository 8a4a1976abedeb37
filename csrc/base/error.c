#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char sentence[8192];            /* a path and two names, each as long as may be, and the reason */
static _Thread_local int last_code;

int error_set(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    for (char *c = sentence; *c; c++)                    /* names in files may hold anything; a sentence is one line */
        if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
    last_code = code;
    return code;
}

const char *error_last(void) { return sentence; }

int error_code(void) { return last_code; }
