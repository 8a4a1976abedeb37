#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include "base/error.h"
#include "pygpt.h"

int os_map(const char *path, struct os_map *map) {
    *map = (struct os_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = GPT_OK;    /* a pipe must not make us wait */
    if (fd < 0) {
        if (errno == ENOENT) return error_set(GPT_ENOENT, "%s: no such file", path);
        return error_set(GPT_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0) {
        rc = error_set(GPT_EIO, "%s: cannot be read: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        rc = error_set(GPT_EIO, "%s: is %s; expected a GGUF file", path, S_ISDIR(st.st_mode) ? "a folder" : "no regular file");
    } else if (st.st_size > 0) {                                             /* an empty file maps to nothing */
        void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) rc = error_set(GPT_EIO, "%s: cannot be mapped: %s", path, strerror(errno));
        else *map = (struct os_map){data, (size_t)st.st_size};
    }
    close(fd);
    return rc;
}

void os_unmap(struct os_map *map) {
    if (map->data) munmap((void *)map->data, map->bytes);
    *map = (struct os_map){0};
}

void os_forget(const void *data, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data / page * page;
    if (bytes) madvise((void *)begin, (uintptr_t)data + bytes - begin, MADV_DONTNEED);
}

void *os_pages(size_t bytes) {
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void os_pages_free(void *pages, size_t bytes) {
    if (pages) munmap(pages, bytes);
}

double os_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

size_t os_physical_memory(void) {
#if defined(_SC_PHYS_PAGES)
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    if (pages > 0 && size > 0) return (size_t)pages * (size_t)size;
#endif
    return SIZE_MAX;
}

#if defined(__linux__)

int os_cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);              /* more than a cpu_set_t can name */
    return n > 0 ? (int)n : 1;
}

int os_memory(int64_t *anonymous, int64_t *file) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    long long kib;
    *anonymous = *file = -1;
    if (status) {
        while (fgets(line, sizeof line, status)) {
            if (sscanf(line, "RssAnon: %lld kB", &kib) == 1) *anonymous = kib * 1024;
            if (sscanf(line, "RssFile: %lld kB", &kib) == 1) *file = kib * 1024;
        }
        fclose(status);
    }
    return *anonymous >= 0 && *file >= 0 ? GPT_OK : error_set(GPT_EUNSUPPORTED, "this system does not say how much memory is used");
}

#else

int os_cpu_count(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

int os_memory(int64_t *anonymous, int64_t *file) {
    *anonymous = *file = -1;
    return error_set(GPT_EUNSUPPORTED, "this system does not say how much memory is used");
}

#endif
