/* Products of int8 matrices by the tiles of AMX: 16 rows of 64 bytes, or of 16 sums.
 *
 * The left matrix is int8 [rows][depth]. The right one lies in tiles, int8 [columns / 16][depth / 64]
 * [16][16][4]: of 64 rows of it, four of one column side by side. Rows and columns are multiples of
 * 32, the depth one of 64, filled up with 0. Compilers that do not know AMX build functions that say
 * that it is not there. */
#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))

#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-int8")
#endif

long syscall(long number, ...); /* which -std=c99 hides */

#define TILE 16            /* rows of a tile */
#define DEEP 64            /* its bytes */
#define BLOCK 32           /* two tiles by two are summed at once */
#define CACHED (1 << 20)   /* bytes of the left matrix that stay in the cache */
#define TILE_DATA 18       /* the state that Linux saves on request only */
#define REQUEST_STATE 0x1023 /* ARCH_REQ_XCOMP_PERM */

/* Whether the processor has tiles of int8, and the system lets this process use them. */
int kernels_amx(void) {
    unsigned eax, ebx, ecx, edx, low, high;
    const unsigned osxsave = 1u << 27, tiles = 1u << 24 | 1u << 25, saved = 3u << 17;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & saved) != saved || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
    return (edx & tiles) == tiles && syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0;
}

struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* out = 32 rows of a times 32 columns; the tiles of the second 16 columns lie `depth` * 16 behind. */
static void block(const int8_t *a, const int8_t *b, ptrdiff_t depth, int32_t *out, ptrdiff_t width) {
    const int8_t *a1 = a + TILE * depth, *b1 = b + TILE * depth;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (ptrdiff_t k = 0; k < depth; k += DEEP) {
        _tile_loadd(4, a + k, depth);
        _tile_loadd(6, b + k * TILE, DEEP);
        _tile_loadd(7, b1 + k * TILE, DEEP);
        _tile_loadd(5, a1 + k, depth);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    const ptrdiff_t line = width * (ptrdiff_t)sizeof *out;
    _tile_stored(0, out, line);
    _tile_stored(1, out + TILE, line);
    _tile_stored(2, out + TILE * width, line);
    _tile_stored(3, out + TILE * width + TILE, line);
}

/* out [rows][columns] = a times b. So many rows at a time as stay in the cache meet all columns. */
void int_gemm_amx(const int8_t *a, const int8_t *b, int64_t rows, int32_t depth, int32_t columns,
                  int32_t *out) {
    struct tile_shapes shapes = {1, 0, {0}, {0}, {0}};
    const int64_t most = CACHED / depth > BLOCK ? CACHED / depth / BLOCK * BLOCK : BLOCK;
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = DEEP;
        shapes.rows[i] = TILE;
    }
    _tile_loadconfig(&shapes);
    for (int64_t begin = 0; begin < rows; begin += most) {
        const int64_t end = rows - begin < most ? rows : begin + most;
        for (int32_t c = 0; c < columns; c += BLOCK)
            for (int64_t row = begin; row < end; row += BLOCK)
                block(a + row * depth, b + (ptrdiff_t)c * depth, depth, out + row * columns + c,
                      columns);
    }
    _tile_release();
}

/* Four rows of 16 columns, of which `rows` and `columns` are there, side by side by column. */
static void interleave(const int8_t *w, ptrdiff_t width, int rows, int columns, int8_t *to) {
    __m128i row[4];
    for (int i = 0; i < 4; i++) {
        int8_t part[TILE] = {0};
        if (i < rows) memcpy(part, w + i * width, (size_t)columns);
        row[i] = _mm_loadu_si128((const __m128i *)part);
    }
    const __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), cd = _mm_unpacklo_epi8(row[2], row[3]);
    const __m128i AB = _mm_unpackhi_epi8(row[0], row[1]), CD = _mm_unpackhi_epi8(row[2], row[3]);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi16(ab, cd));
    _mm_storeu_si128((__m128i *)(to + 16), _mm_unpackhi_epi16(ab, cd));
    _mm_storeu_si128((__m128i *)(to + 32), _mm_unpacklo_epi16(AB, CD));
    _mm_storeu_si128((__m128i *)(to + 48), _mm_unpackhi_epi16(AB, CD));
}

static int up_to(int most, int count) { return count < 0 ? 0 : count < most ? count : most; }

/* Pack w [depth][columns] as tiles, of `deep` rows and `wide` columns with the zeros behind them. */
void int_pack_tiles(const int8_t *w, int32_t depth, int32_t columns, int32_t deep, int32_t wide,
                    int8_t *to) {
    for (int32_t c = 0; c < wide; c += TILE)
        for (int32_t k = 0; k < deep; k += 4, to += 4 * TILE)
            interleave(w + (ptrdiff_t)k * columns + c, columns, up_to(4, depth - k),
                       up_to(TILE, columns - c), to);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

#include <stdint.h>

int kernels_amx(void) { return 0; }
void int_gemm_amx(const int8_t *a, const int8_t *b, int64_t rows, int32_t depth, int32_t columns,
                  int32_t *out) {
    (void)a, (void)b, (void)rows, (void)depth, (void)columns, (void)out;
}
void int_pack_tiles(const int8_t *w, int32_t depth, int32_t columns, int32_t deep, int32_t wide,
                    int8_t *to) {
    (void)w, (void)depth, (void)columns, (void)deep, (void)wide, (void)to;
}

#endif
