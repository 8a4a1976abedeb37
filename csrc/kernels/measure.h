/* measure.h: this machine's own limits, beside which speeds are reported. */
#ifndef PYGPT_MEASURE_H
#define PYGPT_MEASURE_H

double measure_read(int n_threads, double seconds);    /* bytes per second, linear reads of memory beyond any cache; negative GPT_E... */
double measure_mac(int n_threads, double seconds);     /* int8 multiply-adds per second, in registers; negative GPT_E... */

#endif
