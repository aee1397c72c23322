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

// Into the second-level cache: the first can wait for too few lines at a time to keep memory busy.
INLINE inline void fetch(const char* from) { _mm_prefetch(from, _MM_HINT_T1); }

// Rows of weights read side by side. With few rows of activations memory is what takes time, and it
// is read fastest one row after another; with more, loading those twice as often would be.
constexpr int together(int rows) { return rows <= 4 ? 1 : 2; }

// What a kind of weight does with 64 bytes of weights and of activations.
struct Int8Step {
    using Sum = __m512i;
    static constexpr int64_t BYTES = 1, SKIPPED = HEADER;
    INLINE static __m512i weights(__m512i v) {  // plus 128: unsigned for dpbusd
        return _mm512_xor_si512(v, _mm512_set1_epi8(int8_t(0x80)));
    }
    INLINE static void add(Sum& sum, __m512i v, __m512i a) { add_products(sum, v, a); }
    static Four values(const Sum* sum, const char* x) {
        const int32_t excess = reinterpret_cast<const RowHeader*>(x)->sum * 128;
        __m128i total = reduce(sum[0], sum[1], sum[2], sum[3]);
        return _mm_cvtepi32_ps(_mm_sub_epi32(total, _mm_set1_epi32(excess)));
    }
};

struct Bf16Step {
    using Sum = __m512;
    static constexpr int64_t BYTES = 2, SKIPPED = 0;
    INLINE static __m512i weights(__m512i v) { return v; }
    INLINE static void add(Sum& sum, __m512i v, __m512i a) { add_products(sum, v, a); }
    static Four values(const Sum* sum, const char*) {
        return reduce(sum[0], sum[1], sum[2], sum[3]);
    }
};

struct FloatStep : Bf16Step {
    static constexpr int64_t BYTES = 4;
    INLINE static void add(Sum& sum, __m512i v, __m512i a) {
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(v), _mm512_castsi512_ps(a), sum);
    }
};

template <class Step>
struct VectorDots {
    using Sum = typename Step::Sum;

    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        constexpr int TOGETHER = together(ROWS);
        Sum sum[ROWS][COLUMNS];
        UNROLL for (int c = 0; c < COLUMNS; c += TOGETHER)
            some<ROWS, TOGETHER>(w, c, x, x_stride, k * Step::BYTES, sum);
        UNROLL for (int r = 0; r < ROWS; ++r) out[r] = Step::values(sum[r], x + r * x_stride);
    }

    template <int ROWS, int TOGETHER>
    INLINE static void some(const Tile& w, int column, const char* x, size_t x_stride,
                            int64_t bytes, Sum (&out)[ROWS][COLUMNS]) {
        Sum sum[ROWS][TOGETHER];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < TOGETHER; ++c) sum[r][c] = Sum{};
        int64_t i = 0;
        for (; i + 64 <= bytes; i += 64)
            step<ROWS, TOGETHER>(w, column, x + i, x_stride, i, ~__mmask64(0), sum);
        if (i < bytes)
            step<ROWS, TOGETHER>(w, column, x + i, x_stride, i, columns_left(i, bytes, 64), sum);
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < TOGETHER; ++c) out[r][column + c] = sum[r][c];
    }

    template <int ROWS, int TOGETHER>
    INLINE static void step(const Tile& w, int column, const char* x, size_t x_stride, int64_t i,
                            __mmask64 mask, Sum (&sum)[ROWS][TOGETHER]) {
        __m512i v[TOGETHER];
        UNROLL for (int c = 0; c < TOGETHER; ++c) {
            const char* from = w.row[column + c] + i;
            fetch(from + w.ahead);
            v[c] = Step::weights(_mm512_maskz_loadu_epi8(mask, from));
        }
        UNROLL for (int r = 0; r < ROWS; ++r) {
            const __m512i a = _mm512_maskz_loadu_epi8(mask, x + Step::SKIPPED + r * x_stride);
            UNROLL for (int c = 0; c < TOGETHER; ++c) Step::add(sum[r][c], v[c], a);
        }
    }
};

using Int8Dots = VectorDots<Int8Step>;
using Bf16Dots = VectorDots<Bf16Step>;
using FloatDots = VectorDots<FloatStep>;

struct Int4Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        constexpr int TOGETHER = ROWS > 1 ? 2 : 1;
        __m512 sum[ROWS][COLUMNS];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = _mm512_setzero_ps();
        const char* chunk = x + HEADER;
        for (int64_t i = 0; i < k; i += CHUNK, chunk += CHUNK_BYTES) {
            const __mmask16 mask = __mmask16(columns_left(i / GROUP, k / GROUP, LANES));
            UNROLL for (int c = 0; c < COLUMNS; c += TOGETHER)
                add<ROWS, TOGETHER>(w, c, i, mask, chunk, x_stride, sum);
        }
        UNROLL for (int r = 0; r < ROWS; ++r)
            out[r] = reduce(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }

    // The chunk that begins at column i, of as many groups as the mask has bits.
    template <int ROWS, int TOGETHER>
    INLINE static void add(const Tile& w, int column, int64_t i, __mmask16 mask, const char* x,
                           size_t x_stride, __m512 (&sum)[ROWS][COLUMNS]) {
        const __m512i nibble = _mm512_set1_epi8(15);
        const int64_t step = 4 * __builtin_popcount(mask);
        __m512i dot[ROWS][TOGETHER];
        UNROLL for (int r = 0; r < ROWS; ++r)
            UNROLL for (int c = 0; c < TOGETHER; ++c)
                dot[r][c] = _mm512_load_si512(x + r * x_stride);
        UNROLL for (int t = 0; t < 4; ++t) {
            __m512i low[TOGETHER], high[TOGETHER];
            UNROLL for (int c = 0; c < TOGETHER; ++c) {
                const char* from = w.row[column + c] + i / 2 + step * t;
                fetch(from + w.ahead);
                const __m512i both = _mm512_maskz_loadu_epi32(mask, from);
                low[c] = _mm512_and_si512(both, nibble);
                high[c] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            }
            UNROLL for (int r = 0; r < ROWS; ++r) {
                const char* at = x + r * x_stride + 64 + 64 * t;
                const __m512i a = _mm512_load_si512(at), b = _mm512_load_si512(at + 256);
                UNROLL for (int c = 0; c < TOGETHER; ++c) {
                    add_products(dot[r][c], low[c], a);
                    add_products(dot[r][c], high[c], b);
                }
            }
        }
        UNROLL for (int c = 0; c < TOGETHER; ++c) {
            const __m512 scale = _mm512_cvtph_ps(
                _mm256_maskz_loadu_epi16(mask, w.scale[column + c] + i / GROUP * 2));
            UNROLL for (int r = 0; r < ROWS; ++r)
                sum[r][column + c] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][c]), scale, sum[r][column + c]);
        }
    }
};

// y = value * factor + bias for the first `count` of four columns.
inline void finish(Four value, Four factor, Four bias, int64_t count, void* y, int dtype) {
    __m128 result = _mm_fmadd_ps(value, factor, bias);
    __mmask8 mask = __mmask8((1u << count) - 1);
    if (dtype == F32)
        _mm_mask_storeu_ps(y, mask, result);
    else
        _mm_mask_storeu_epi16(y, mask, _mm256_castsi256_si128(narrow(_mm512_castps128_ps512(result))));
}

}  // namespace starai
