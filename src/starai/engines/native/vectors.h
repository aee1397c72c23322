// Sixteen lanes at a time, in the vector language that gcc and clang share: AVX-512 gets one
// register, AVX2 two, NEON four. Intrinsics stand only where that language has no word.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#define STARAI_BF16_DOT 1
#endif

namespace starai {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t u16x32 __attribute__((vector_size(64)));

constexpr int kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The upper half of a float32; a type of its own so that templates can tell it from an integer.
struct bf16 {
    uint16_t bits;
};

template <class V>
inline V load_bytes(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class V>
inline void store_bytes(void* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

inline f32x16 splat(float x) { return f32x16{} + x; }
inline f32x16 widen(u16x16 v) { return (f32x16)(__builtin_convertvector(v, u32x16) << 16); }
inline u16x16 narrow(f32x16 v) {  // to the nearest, ties to even; NaN stays NaN
#ifdef STARAI_BF16_DOT
    return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
    u32x16 bits = (u32x16)v;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u32x16 quiet = (bits >> 16) | 0x40;
    return __builtin_convertvector(v == v ? rounded : quiet, u16x16);
#endif
}

inline f32x16 load(const float* p) { return load_bytes<f32x16>(p); }
inline f32x16 load(const bf16* p) { return widen(load_bytes<u16x16>(p)); }
inline void store(float* p, f32x16 v) { store_bytes(p, v); }
inline void store(bf16* p, f32x16 v) { store_bytes(p, narrow(v)); }

// The first n < 16 lanes; the others are zero, and memory behind them is not touched.
template <class T>
inline f32x16 load_some(const T* p, int64_t n) {
    T lanes[kLanes] = {};
    std::memcpy(lanes, p, n * sizeof(T));
    return load(lanes);
}
template <class T>
inline void store_some(T* p, f32x16 v, int64_t n) {
    T lanes[kLanes];
    store(lanes, v);
    std::memcpy(p, lanes, n * sizeof(T));
}

// body(offset, read, write) for every 16 elements of a row of n, the last ones padded with zeros.
template <class Body>
inline void each(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        body(i, [](auto* p) { return load(p); }, [](auto* p, f32x16 v) { store(p, v); });
    if (int64_t rest = n - i)
        body(i, [rest](auto* p) { return load_some(p, rest); },
                  [rest](auto* p, f32x16 v) { store_some(p, v, rest); });
}

// n numbers in another type.
template <class X, class T>
inline void convert(const X* from, int64_t n, T* to) {
    each(n, [&](int64_t i, auto read, auto write) { write(to + i, read(from + i)); });
}

// All lanes by one operation, halves first: the same order on every machine.
template <class Op>
inline float fold(f32x16 v, Op op) {
    v = op(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = op(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3));
    v = op(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1));
    v = op(v, __builtin_shufflevector(v, v, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0));
    return v[0];
}
inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline float max(f32x16 v) {
    return fold(v, [](f32x16 a, f32x16 b) { return max(a, b); });
}
inline float sum(f32x16 v) {
    return fold(v, [](f32x16 a, f32x16 b) { return a + b; });
}

// p * 2^n for whole n; 0 or infinite where float32 ends.
inline f32x16 scaled(f32x16 p, f32x16 n) {
#ifdef __AVX512F__
    return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // In two steps: a factor beyond 2^127 has no exponent of its own.
    auto power = [](f32x16 k) { return (f32x16)((__builtin_convertvector(k, i32x16) + 127) << 23); };
    const f32x16 half = __builtin_convertvector(__builtin_convertvector(n * 0.5f, i32x16), f32x16);
    return p * power(half) * power(n - half);
#endif
}

// e^x to about 1e-7 relative; 0 and infinity where float32 ends, NaN for NaN. Cody and Waite's
// reduction by ln 2 in two parts, then Taylor's polynomial of degree 7.
inline f32x16 exp(f32x16 x) {
    const f32x16 low = splat(-150.0f), high = splat(150.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const f32x16 n = (x * 1.44269504088896341f + magic) - magic;
    f32x16 r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    f32x16 p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return scaled(p, n);
}

inline f32x16 tanh(f32x16 x) {  // absolute error about 1e-7
    return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
}

// columns[i] lane j = word i of row j: rows of 16 words, `stride` bytes apart, turned over.
inline void load_transposed(const void* rows, size_t stride, u32x16 (&columns)[kLanes]) {
    const char* from = static_cast<const char*>(rows);
    u32x16 v[kLanes];
    // v[4 q + i] holds quarter q of the rows i, i + 4, i + 8 and i + 12.
    for (int i = 0; i < 4; ++i)
        for (int q = 0; q < 4; ++q) {
#ifdef __AVX512F__  // each quarter goes from memory to its place, past the shuffling unit
            const char* at = from + i * stride + q * 16;
            auto quarter = [&](int n) {
                return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 4 * n * stride));
            };
            __m512i r = _mm512_broadcast_i32x4(quarter(0));
            r = _mm512_mask_broadcast_i32x4(r, 0x00f0, quarter(1));
            r = _mm512_mask_broadcast_i32x4(r, 0x0f00, quarter(2));
            v[4 * q + i] = (u32x16)_mm512_mask_broadcast_i32x4(r, 0xf000, quarter(3));
#else
            for (int n = 0; n < 4; ++n)
                std::memcpy(reinterpret_cast<char*>(&v[4 * q + i]) + 16 * n,
                            from + (i + 4 * n) * stride + q * 16, 16);
#endif
        }
    // Within each quarter of the lanes, four by four words are turned over. Lane 4 n + i of the
    // result belongs to row i + 4 n, which is lane 4 n + i: the rows come out in order.
    for (int q = 0; q < 4; ++q) {
        u32x16 *r = v + 4 * q, *c = columns + 4 * q;
#define STARAI_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define STARAI_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
        u32x16 a = __builtin_shufflevector(r[0], r[2], STARAI_LOW);
        u32x16 b = __builtin_shufflevector(r[1], r[3], STARAI_LOW);
        u32x16 d = __builtin_shufflevector(r[0], r[2], STARAI_HIGH);
        u32x16 e = __builtin_shufflevector(r[1], r[3], STARAI_HIGH);
        c[0] = __builtin_shufflevector(a, b, STARAI_LOW);
        c[1] = __builtin_shufflevector(a, b, STARAI_HIGH);
        c[2] = __builtin_shufflevector(d, e, STARAI_LOW);
        c[3] = __builtin_shufflevector(d, e, STARAI_HIGH);
#undef STARAI_LOW
#undef STARAI_HIGH
    }
}

// Scratch of a step is small; without memory for it nothing can go on, in the middle of a team least.
inline char* room_in(Scratch& memory, size_t bytes) {
    void* room = memory.get(bytes);
    if (bytes && !room) std::abort();
    return static_cast<char*>(room);
}

// Hands out cache-line aligned pieces of one buffer; first with null, to learn how much it takes.
struct Pieces {
    char* buffer = nullptr;
    size_t used = 0;
    template <class T>
    T* take(int64_t count) {
        size_t at = used;
        used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
        return buffer ? reinterpret_cast<T*>(buffer + at) : nullptr;
    }
};

}  // namespace starai
