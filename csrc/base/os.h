/* os.h: all that the library asks of the operating system, apart from threads (pool.h). */
#ifndef PYGPT_OS_H
#define PYGPT_OS_H

#include <stddef.h>
#include <stdint.h>

struct os_map { const uint8_t *data; size_t bytes; };

int os_map(const char *path, struct os_map *map);   /* a regular file, read-only; 0 or GPT_E... with a sentence */
void os_unmap(struct os_map *map);
void os_forget(const void *data, size_t bytes);            /* a part of a mapped file: its pages are read again when needed */

/* Zeroed pages that take memory only when they are touched; NULL if the address space does not hold them. */
void *os_pages(size_t bytes);
void os_pages_free(void *pages, size_t bytes);

double os_seconds(void);                            /* of a clock that only goes forward */
int os_cpu_count(void);                             /* processors that this process may use, at least 1 */
size_t os_physical_memory(void);                    /* bytes of the machine; SIZE_MAX where unknown */
int os_memory(int64_t *anonymous, int64_t *file);   /* resident bytes; GPT_EUNSUPPORTED where unknown */

#endif
