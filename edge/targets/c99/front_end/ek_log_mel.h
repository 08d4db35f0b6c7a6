/* Log-mel levels of sound, in integers: what fedkit/preprocess/log_mel.py defines, to the bit. */
#ifndef EK_LOG_MEL_H
#define EK_LOG_MEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int32_t window, fft, channels;
    const uint16_t *hann;                    /* [window], 0 .. 2^15 */
    const int16_t *cosines, *sines;          /* [fft / 2], of exp(-2 pi i j / fft), +-2^14 */
    const uint16_t *first, *lines, *weights; /* of each triangle; its weights, 0 .. 2^12 */
} ek_log_mel;

/* Levels int8 [channels] of one window of samples, each an eighth of an octave of energy.
 * `real` and `imaginary` are [fft], to work in. */
void ek_log_mel_levels(const ek_log_mel *front_end, const int16_t *samples, int32_t *real,
                       int32_t *imaginary, int8_t *levels);

#ifdef __cplusplus
}
#endif
#endif
