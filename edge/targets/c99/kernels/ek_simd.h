/* The instruction set that the compiler may use, by one vocabulary; with none, EK_SIMD is undefined
 * and kernels are plain C. Each header defines:
 *
 *   ek_bytes32, ek_bytes16   bytes of so many pixels: ek_load32, ek_store32, ek_load16, ...
 *   ek_block, ek_sixteen, ek_eight   sums of 32, 16 and 8 pixels
 *   EK_LESS                  what it takes from each byte before it multiplies it: biases of sums
 *                            have that times the weights more
 *   ek_quad_block, ek_pair_block, ek_quad_run, ek_quad_eight, ek_pair_eight
 *                            taps of a sparse convolution, added to sums
 *   EK_DEEP, ek_store_patch, ek_unpack, ek_tile
 *                            a dense one: patches of EK_DEEP taps, weights in the same order (and
 *                            biases as EK_LESS asks), 4 output channels of 16 pixels
 *   ek_scale, ek_scaled_block, ek_scaled_sixteen, ek_scaled_eight
 *                            requantisation; of the last, 8 bytes matter
 *   ek_adder, ek_added, ek_added_half   what ek_sum says
 *   ek_lanes                 16 numbers of 16 bits, of windows: ek_lanes_of, ek_lanes_most, ...
 *   ek_shuffled              16 bytes in another order
 *   ek_dot, ek_total, ek_load_three, ek_load_eight, ek_halves   linear layers, means, layouts
 *   EK_AVX512, if planes of sparse convolutions have a form of their own: ek_planes512.h
 *   EK_VBMI, if any 64 bytes can be permuted
 *
 * Constants are the same for all. */
#ifndef EK_SIMD_H
#define EK_SIMD_H

#include "ek_avx512.h"
#include "ek_neon.h"

#ifdef EK_SIMD
/* Where a convolution has no sum: an ek_adder is made of it, and not used. */
static const ek_sum ek_no_sum = {0, 0, 0, 1, 0, 0, 0};
#endif

#endif
