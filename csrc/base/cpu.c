#include "base/cpu.h"

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

/* Two that not every compiler's __builtin_cpu_supports knows by name. They use AVX2's registers, so AVX2 being usable covers the
 * operating system's part. F16C: leaf 1, ECX bit 29. AVX-VNNI: leaf 7, subleaf 1, EAX bit 4. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

unsigned cpu_features(void) {
    unsigned features = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        features |= CPU_AVX2;
        if (has_avxvnni()) features |= CPU_AVXVNNI;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        features |= CPU_AVX512VNNI;
    return features;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

/* Bits of the kernel's hwcap words, from Documentation/arch/arm64/elf_hwcaps. */
enum { HWCAP_ASIMDHP_BIT = 10, HWCAP_ASIMDDP_BIT = 20, HWCAP2_I8MM_BIT = 13 };

unsigned cpu_features(void) {
    unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
    unsigned features = 0;
    if (hwcap >> HWCAP_ASIMDDP_BIT & 1 && hwcap >> HWCAP_ASIMDHP_BIT & 1) {
        features |= CPU_DOTPROD;
        if (hwcap2 >> HWCAP2_I8MM_BIT & 1) features |= CPU_I8MM;
    }
    return features;
}

#elif defined(__aarch64__) && defined(__APPLE__)

#include <stddef.h>
#include <sys/sysctl.h>

static int has(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}

unsigned cpu_features(void) {
    unsigned features = 0;
    if (has("hw.optional.arm.FEAT_DotProd")) {
        features |= CPU_DOTPROD;
        if (has("hw.optional.arm.FEAT_I8MM")) features |= CPU_I8MM;
    }
    return features;
}

#else

unsigned cpu_features(void) { return 0; }

#endif
