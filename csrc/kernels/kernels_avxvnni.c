/* AVX-VNNI: processors without AVX-512, from Alder Lake on. */
#if defined(__x86_64__)

#define TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#define ISA(op) op##_avxvnni
#define DPBUSD _mm256_dpbusd_avx_epi32

#include "kernels/vnni256.inc"

void kernels_init_avxvnni(struct kernels *k) {
    matmuls_set_avxvnni(k);
    k->mac_peak = mac_peak_avxvnni;
}

#endif
