#include "kernels/kernels.h"

#include <stdlib.h>

#include "base/cpu.h"
#include "base/error.h"
#include "pygpt.h"

/* To add an instruction set, write kernels_<isa>.c and add its row. */
const struct isa isas[] = {
    {"scalar", 0, -1, kernels_init_scalar},                          /* portable C */
#if defined(__x86_64__)
    {"avx2", CPU_AVX2, 0, kernels_init_avx2},                        /* Haswell (2013), Zen (2017) */
    {"avxvnni", CPU_AVX2 | CPU_AVXVNNI, 1, kernels_init_avxvnni},    /* Alder Lake (2021), laptops without AVX-512 */
    {"avx512ymm", CPU_AVX2 | CPU_AVX512VNNI, 1, kernels_init_avx512ymm},   /* avxvnni's source in AVX-512's spelling */
    {"avx512vnni", CPU_AVX2 | CPU_AVX512VNNI, 1, kernels_init_avx512vnni}, /* Cascade Lake (2019), Zen 4 (2022) */
#elif defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 17)      /* older ones lack these targets */
    {"dotprod", CPU_DOTPROD, 0, kernels_init_dotprod},               /* Cortex-A76 (2018), Apple M1 (2020) */
    {"i8mm", CPU_DOTPROD | CPU_I8MM, 1, kernels_init_i8mm},          /* Neoverse V1 (2021), Apple M2 (2022) */
#endif
};
const int n_isas = countof(isas);

void kernels_init(struct kernels *k, int i) {
    if (isas[i].base >= 0) kernels_init(k, isas[i].base);
    isas[i].init(k);
}

int isa_available(int i) { return (isas[i].needs & ~cpu_features()) == 0; }

int kernels_choose(void) {
    const char *forced = getenv("PYGPT_ISA");
    for (int i = n_isas - 1; i >= 0; i--) {
        if (forced && *forced ? strcmp(forced, isas[i].name) == 0 : isa_available(i)) {
            if (isa_available(i)) return i;
            return error_set(GPT_EUNSUPPORTED, "PYGPT_ISA is %s, which this processor cannot run; unset it, or see pygpt info", forced);
        }
    }
    return error_set(GPT_EINVAL, "PYGPT_ISA is %s, which is no instruction set known here; unset it, or see pygpt info", forced);
}
