/* A function of one byte, by a table of all 256. */
#include "ek_table.h"
#include "ek_simd.h"

static void ek_look_up_rest(const uint8_t *table, const uint8_t *x, uint8_t *y, int32_t count) {
    for (int32_t i = 0; i < count; i++) y[i] = table[x[i]];
}

#if defined(EK_VBMI) /* any of 128 bytes at once */

#define EK_LOOKED_UP 64

static void ek_look_up_run(const uint8_t *table, const uint8_t *x, uint8_t *y, int32_t count) {
    __m512i part[4];
    for (int32_t i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(table + 64 * i);
    for (; count >= EK_LOOKED_UP; count -= EK_LOOKED_UP, x += EK_LOOKED_UP, y += EK_LOOKED_UP) {
        const __m512i at = _mm512_loadu_si512(x);
        const __m512i low = _mm512_permutex2var_epi8(part[0], at, part[1]);
        const __m512i high = _mm512_permutex2var_epi8(part[2], at, part[3]);
        _mm512_storeu_si512(y, _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high));
    }
    ek_look_up_rest(table, x, y, count);
}

#elif defined(EK_AVX2)

#define EK_LOOKED_UP 32

/* One row of 16 entries: of bytes whose high half is another, x ^ row is 16 or more, and the sum
 * has its highest bit set, for which a shuffle gives 0. */
static inline __m256i ek_table_row(const uint8_t *table, __m256i x, int32_t row) {
    const __m128i entries = _mm_loadu_si128((const __m128i *)(const void *)(table + 16 * row));
    const __m256i low = _mm256_xor_si256(x, _mm256_set1_epi8((char)(16 * row)));
    const __m256i at = _mm256_adds_epu8(low, _mm256_set1_epi8(0x70));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), at);
}

static void ek_look_up_run(const uint8_t *table, const uint8_t *x, uint8_t *y, int32_t count) {
    for (; count >= EK_LOOKED_UP; count -= EK_LOOKED_UP, x += EK_LOOKED_UP, y += EK_LOOKED_UP) {
        const __m256i at = ek_load32(x);
        __m256i even = ek_table_row(table, at, 0), odd = ek_table_row(table, at, 1);
        for (int32_t row = 2; row < 16; row += 2) {
            even = _mm256_or_si256(even, ek_table_row(table, at, row));
            odd = _mm256_or_si256(odd, ek_table_row(table, at, row + 1));
        }
        ek_store32(y, _mm256_or_si256(even, odd));
    }
    ek_look_up_rest(table, x, y, count);
}

#elif defined(EK_NEON)

#define EK_LOOKED_UP 16

static void ek_look_up_run(const uint8_t *table, const uint8_t *x, uint8_t *y, int32_t count) {
    uint8x16x4_t part[4];
    for (int32_t i = 0; i < 4; i++)
        for (int32_t j = 0; j < 4; j++) part[i].val[j] = vld1q_u8(table + 64 * i + 16 * j);
    for (; count >= EK_LOOKED_UP; count -= EK_LOOKED_UP, x += EK_LOOKED_UP, y += EK_LOOKED_UP) {
        uint8x16_t at = vld1q_u8(x);
        uint8x16_t found = vqtbl4q_u8(part[0], at);
        for (int32_t i = 1; i < 4; i++) {
            at = vsubq_u8(at, vdupq_n_u8(64));
            found = vqtbx4q_u8(found, part[i], at);
        }
        vst1q_u8(y, found);
    }
    ek_look_up_rest(table, x, y, count);
}

#else

static void ek_look_up_run(const uint8_t *table, const uint8_t *x, uint8_t *y, int32_t count) {
    ek_look_up_rest(table, x, y, count);
}

#endif

void ek_look_up(const ek_table *table, const ek_planes *planes, const uint8_t *in, uint8_t *out) {
    const int32_t plane = (planes->height - 1) * planes->row + planes->width;
    ek_halo_before(planes, out);
    ek_look_up_run(table->entries, in, out, (planes->channels - 1) * planes->plane + plane);
    ek_halos(planes, out);
}
