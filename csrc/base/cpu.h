/* cpu.h: what this processor can do, in clusters of features that come together. Nothing else asks the processor. */
#ifndef PYGPT_CPU_H
#define PYGPT_CPU_H

enum {
    CPU_AVX2 = 1,            /* AVX2 + FMA + F16C */
    CPU_AVXVNNI = 2,         /* AVX-VNNI: VPDPBUSD in 256 bits without AVX-512 */
    CPU_AVX512VNNI = 4,      /* AVX-512 F + BW + VL + DQ + VNNI */
    CPU_DOTPROD = 8,         /* Armv8.2 SDOT, with half-precision conversion */
    CPU_I8MM = 16            /* Armv8.6 SMMLA */
};

/* The clusters that the processor has and whose registers the operating system saves. */
unsigned cpu_features(void);

#endif
