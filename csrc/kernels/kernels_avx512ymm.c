/* The 256-bit VNNI kernels in AVX-512's spelling: they let processors with AVX-512 test what kernels_avxvnni.c runs. */
#if defined(__x86_64__)

#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define ISA(op) op##_avx512ymm
#define DPBUSD _mm256_dpbusd_epi32

#include "kernels/vnni256.inc"

void kernels_init_avx512ymm(struct kernels *k) {
    matmuls_set_avx512ymm(k);
    k->mac_peak = mac_peak_avx512ymm;
}

#endif
