// Sixteen lanes at a time, in the vector language that gcc and clang share: AVX-512 gets one
// register, AVX2 two, NEON four. Intrinsics stand only where that language has no word.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common.h"
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#include <immintrin.h>
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

// The same order of additions on every machine.
inline float sum(f32x16 v) {
    float lanes[kLanes];
    store(lanes, v);
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}
inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline float max(f32x16 v) {
    float lanes[kLanes];
    store(lanes, v);
    float most = lanes[0];
    for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

// e^x to about 1e-7 relative; 0 below -87.3, infinite above 88.3, NaN for NaN.
// Cody and Waite's reduction by ln 2 in two parts, then Taylor's polynomial of degree 7.
inline f32x16 exp(f32x16 x) {
    const f32x16 low = splat(-87.3f), high = splat(88.3f);
    f32x16 y = x > high ? high : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    f32x16 shifted = y * 1.44269504088896341f + magic;
    f32x16 n = shifted - magic;
    f32x16 r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    f32x16 p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    i32x16 exponent = ((i32x16)shifted - 0x4b400000) << 23;
    f32x16 scaled = (f32x16)((i32x16)p + exponent);
    return x < low ? splat(0.0f) : (x <= high ? scaled : x * kInfinity);
}

inline f32x16 tanh(f32x16 x) {  // absolute error about 1e-7
    return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
}

// rows[i] lane j <-> rows[j] lane i, in four rounds of swapping ever larger squares.
inline void transpose(u32x16 (&rows)[kLanes]) {
#define STARAI_ROUND(step, low, high)                                    \
    for (int i = 0; i < kLanes; ++i)                                       \
        if (!(i & step)) {                                                   \
            u32x16 a = rows[i], b = rows[i + step];                            \
            rows[i] = __builtin_shufflevector(a, b, STARAI_LIST low);          \
            rows[i + step] = __builtin_shufflevector(a, b, STARAI_LIST high);  \
        }
#define STARAI_LIST(...) __VA_ARGS__
    STARAI_ROUND(1, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
               (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    STARAI_ROUND(2, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
               (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    STARAI_ROUND(4, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
               (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    STARAI_ROUND(8, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
               (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#undef STARAI_LIST
#undef STARAI_ROUND
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
