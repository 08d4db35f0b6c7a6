/* See fedkit/preprocess/log_mel.py, which proves that nothing overflows. Shifts of negative numbers
 * round down, as those of all compilers do. */
#include "ek_log_mel.h"

#define EK_ONE (INT64_C(1) << 14)

/* Samples times the window, in the order of reversed bits. */
static void ek_place(const ek_log_mel *f, const int16_t *samples, int32_t *real,
                     int32_t *imaginary) {
    for (int32_t k = 0; k < f->fft; k++) real[k] = imaginary[k] = 0;
    for (int32_t k = 0, reversed = 0; k < f->window; k++) {
        real[reversed] = (int32_t)samples[k] * (int32_t)f->hann[k];
        int32_t bit = f->fft >> 1;
        for (; reversed & bit; bit >>= 1) reversed ^= bit;
        reversed |= bit;
    }
}

/* The halved spectrum, in place. */
static void ek_spectrum(const ek_log_mel *f, int32_t *real, int32_t *imaginary) {
    for (int32_t half = 1; half < f->fft; half *= 2) {
        const int32_t step = f->fft / (2 * half);
        for (int32_t j = 0; j < half; j++) {
            const int64_t c = f->cosines[j * step], s = f->sines[j * step];
            for (int32_t a = j, b = j + half; a < f->fft; a += 2 * half, b += 2 * half) {
                const int64_t re = real[b] * c - imaginary[b] * s;
                const int64_t im = real[b] * s + imaginary[b] * c;
                const int64_t x = real[a] * EK_ONE + EK_ONE, y = imaginary[a] * EK_ONE + EK_ONE;
                real[a] = (int32_t)((x + re) >> 15);
                imaginary[a] = (int32_t)((y + im) >> 15);
                real[b] = (int32_t)((x - re) >> 15);
                imaginary[b] = (int32_t)((y - im) >> 15);
            }
        }
    }
}

/* log2 of 1 .. 2^62 in 8 bits behind the point, by squaring. */
static int32_t ek_log2(uint64_t x) {
    int32_t found = 63;
    for (; !(x >> 63); found--) x <<= 1;
    x >>= 32;
    for (int32_t bit = 0; bit < 8; bit++) {
        x = (x * x) >> 31;
        const uint32_t carry = (uint32_t)(x >> 32);
        x >>= carry;
        found = 2 * found + (int32_t)carry;
    }
    return found;
}

static int8_t ek_level(uint64_t energy) {
    const int32_t level = ((ek_log2(energy + 1) + 16) >> 5) - 336;
    return (int8_t)(level < -128 ? -128 : level > 127 ? 127 : level);
}

void ek_log_mel_levels(const ek_log_mel *front_end, const int16_t *samples, int32_t *real,
                       int32_t *imaginary, int8_t *levels) {
    const uint16_t *weight = front_end->weights;
    ek_place(front_end, samples, real, imaginary);
    ek_spectrum(front_end, real, imaginary);
    for (int32_t c = 0; c < front_end->channels; c++) {
        uint64_t energy = 0;
        const int32_t first = front_end->first[c], last = first + front_end->lines[c];
        for (int32_t line = first; line < last; line++) {
            const int64_t re = real[line], im = imaginary[line];
            energy += (uint64_t)((re * re + im * im) >> 12) * *weight++;
        }
        levels[c] = ek_level(energy);
    }
}
