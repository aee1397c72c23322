// Dots (dots.h) in AVX-512 with VNNI: 64 int8 or 32 bfloat16 products an instruction.
#pragma once

#include <immintrin.h>

#include "dots.h"

namespace starai {

// Sums are arrays in name only: they stay in registers if loops are unrolled and calls inlined before
// the compiler decides on that.
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE __attribute__((always_inline))

// Written out because gcc 12 copies every sum before and after the intrinsics, which halves the speed.
INLINE inline void add_products(__m512i& sum, __m512i unsigned8, __m512i signed8) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned8), "v"(signed8));
}

// Adds the products of 32 pairs of bfloat16, two to a lane.
INLINE inline void add_products(__m512& sum, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    const __m512i odd = _mm512_set1_epi32(int(0xffff0000));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, odd)),
                          _mm512_castsi512_ps(_mm512_and_si512(b, odd)), sum);
#endif
}

// To bfloat16, to the nearest, ties to even.
inline __m256i narrow(__m512 value) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(value);
#else
    __m512i bits = _mm512_castps_si512(value), half = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(half, _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    __m512i quiet = _mm512_or_si512(half, _mm512_set1_epi32(0x40));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, _mm512_srli_epi32(up, 16), quiet));
#endif
}

inline __m128i reduce(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

inline Four reduce(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
    __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)),
                               _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Of the `width` columns from i on, those that there are.
inline uint64_t columns_left(int64_t i, int64_t k, int width) {
    return k - i >= width ? ~uint64_t(0) : (uint64_t(1) << (k - i)) - 1;
}

struct Int8Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        const __m512i flip = _mm512_set1_epi8(int8_t(0x80));  // w + 128: unsigned for dpbusd
        __m512i sum[ROWS][COLUMNS], v[COLUMNS];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = _mm512_setzero_si512();
        const char* q = x + HEADER;
        for (int64_t i = 0; i < k; i += 64) {
            const __mmask64 mask = columns_left(i, k, 64);
            UNROLL for (int c = 0; c < COLUMNS; ++c) {
                _mm_prefetch(w.row[c] + i + w.ahead, _MM_HINT_T0);
                v[c] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, w.row[c] + i), flip);
            }
            UNROLL for (int r = 0; r < ROWS; ++r) {
                __m512i a = _mm512_load_si512(q + r * x_stride + i);
                UNROLL for (int c = 0; c < COLUMNS; ++c) add_products(sum[r][c], v[c], a);
            }
        }
        UNROLL for (int r = 0; r < ROWS; ++r) {
            int32_t excess = reinterpret_cast<const RowHeader*>(x + r * x_stride)->sum * 128;
            __m128i total = reduce(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
            out[r] = _mm_cvtepi32_ps(_mm_sub_epi32(total, _mm_set1_epi32(excess)));
        }
    }
};

struct Int4Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        __m512 sum[ROWS][COLUMNS];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = _mm512_setzero_ps();
        const char* chunk = x + HEADER;
        int64_t i = 0;
        for (; i + CHUNK <= k; i += CHUNK, chunk += CHUNK_BYTES)
            add<ROWS, true>(w, i, 0xffff, chunk, x_stride, sum);
        if (i < k) add<ROWS, false>(w, i, __mmask16((1u << (k - i) / GROUP) - 1), chunk, x_stride, sum);
        UNROLL for (int r = 0; r < ROWS; ++r)
            out[r] = reduce(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }

    // The chunk that begins at column i, of as many groups as the mask has bits.
    template <int ROWS, bool FULL>
    INLINE static void add(const Tile& w, int64_t i, __mmask16 mask, const char* x, size_t x_stride,
                    __m512 (*sum)[COLUMNS]) {
        const __m512i nibble = _mm512_set1_epi8(15);
        const int64_t step = FULL ? 64 : 4 * __builtin_popcount(mask);
        UNROLL for (int c = 0; c < COLUMNS; ++c) {
            const char* from = w.row[c] + i / 2;
            __m512i dot[ROWS];
            UNROLL for (int r = 0; r < ROWS; ++r) dot[r] = _mm512_load_si512(x + r * x_stride);
            UNROLL for (int t = 0; t < 4; ++t) {
                if (FULL) _mm_prefetch(from + 64 * t + w.ahead, _MM_HINT_T0);
                __m512i both = FULL ? _mm512_loadu_si512(from + 64 * t)
                                    : _mm512_maskz_loadu_epi32(mask, from + step * t);
                __m512i low = _mm512_and_si512(both, nibble);
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
                UNROLL for (int r = 0; r < ROWS; ++r) {
                    const char* a = x + r * x_stride + 64 + 64 * t;
                    add_products(dot[r], low, _mm512_load_si512(a));
                    add_products(dot[r], high, _mm512_load_si512(a + 256));
                }
            }
            const char* scales = w.scale[c] + i / GROUP * 2;
            __m512 scale = _mm512_cvtph_ps(FULL ? _mm256_loadu_si256((const __m256i*)scales)
                                                : _mm256_maskz_loadu_epi16(mask, scales));
            UNROLL for (int r = 0; r < ROWS; ++r)
                sum[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), scale, sum[r][c]);
        }
    }
};

struct FloatDots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        __m512 sum[ROWS][COLUMNS], v[COLUMNS];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = _mm512_setzero_ps();
        for (int64_t i = 0; i < k; i += 16) {
            const __mmask16 mask = __mmask16(columns_left(i, k, 16));
            UNROLL for (int c = 0; c < COLUMNS; ++c) {
                _mm_prefetch(w.row[c] + 4 * i + w.ahead, _MM_HINT_T0);
                v[c] = _mm512_maskz_loadu_ps(mask, w.row[c] + 4 * i);
            }
            UNROLL for (int r = 0; r < ROWS; ++r) {
                __m512 a = _mm512_maskz_loadu_ps(mask, x + r * x_stride + 4 * i);
                UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = _mm512_fmadd_ps(a, v[c], sum[r][c]);
            }
        }
        UNROLL for (int r = 0; r < ROWS; ++r)
            out[r] = reduce(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }
};

struct Bf16Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        __m512 sum[ROWS][COLUMNS];
        __m512i v[COLUMNS];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = _mm512_setzero_ps();
        for (int64_t i = 0; i < k; i += 32) {
            const __mmask32 mask = __mmask32(columns_left(i, k, 32));
            UNROLL for (int c = 0; c < COLUMNS; ++c) {
                _mm_prefetch(w.row[c] + 2 * i + w.ahead, _MM_HINT_T0);
                v[c] = _mm512_maskz_loadu_epi16(mask, w.row[c] + 2 * i);
            }
            UNROLL for (int r = 0; r < ROWS; ++r) {
                __m512i a = _mm512_maskz_loadu_epi16(mask, x + r * x_stride + 2 * i);
                UNROLL for (int c = 0; c < COLUMNS; ++c) add_products(sum[r][c], v[c], a);
            }
        }
        UNROLL for (int r = 0; r < ROWS; ++r)
            out[r] = reduce(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }
};

// y = value * factor + bias for the first `count` of four columns.
inline void finish(Four value, const float* factor, const float* bias, int64_t count, void* y,
                   int dtype) {
    __m128 result = _mm_fmadd_ps(value, _mm_loadu_ps(factor), _mm_loadu_ps(bias));
    __mmask8 mask = __mmask8((1u << count) - 1);
    if (dtype == F32)
        _mm_mask_storeu_ps(y, mask, result);
    else
        _mm_mask_storeu_epi16(y, mask, _mm256_castsi256_si128(narrow(_mm512_castps128_ps512(result))));
}

}  // namespace starai
