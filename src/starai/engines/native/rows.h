// What happens to one row between the linear layers. Computed in float32, rounded once.
#pragma once
#include "vectors.h"

namespace starai {

enum Activation : int { SILU = 0, GELU_TANH = 1 };

template <class X>
inline float inverse_rms(const X* x, int64_t n, float eps) {
    f32x16 squares = {};
    each(n, [&](int64_t i, auto read, auto) {
        f32x16 v = read(x + i);
        squares += v * v;
    });
    return 1.0f / std::sqrt(sum(squares) / float(n) + eps);
}

// out = x / rms(x) * (weight + offset); out may be x.
template <class X, class W>
inline void rms_norm(const X* x, const W* weight, int64_t n, float eps, float offset, X* out) {
    float scale = inverse_rms(x, n, eps);
    each(n, [&](int64_t i, auto read, auto write) {
        write(out + i, read(x + i) * scale * (read(weight + i) + offset));
    });
}

// to += x.
template <class X>
inline void add(X* to, const X* x, int64_t n) {
    each(n, [&](int64_t i, auto read, auto write) { write(to + i, read(to + i) + read(x + i)); });
}

inline f32x16 activate(f32x16 x, int activation) {
    if (activation == SILU) return x / (1.0f + exp(-x));
    constexpr float kSlope = 0.7978845608028654f;  // sqrt(2 / pi)
    return 0.5f * x * (1.0f + tanh(kSlope * (x + 0.044715f * x * x * x)));
}

// out = activation(gate) * up.
template <class X>
inline void gated(const X* gate, const X* up, int64_t n, int activation, X* out) {
    each(n, [&](int64_t i, auto read, auto write) {
        write(out + i, activate(read(gate + i), activation) * read(up + i));
    });
}

// Turns pairs (i, i + half) of a head's first 2 * half components, in place (Su et al.: RoFormer,
// 2021; halves as in GPT-NeoX).
template <class X>
inline void rotate(X* head, const float* cosine, const float* sine, int64_t half) {
    each(half, [&](int64_t i, auto read, auto write) {
        f32x16 a = read(head + i), b = read(head + half + i);
        write(head + i, a * read(cosine + i) - b * read(sine + i));
        write(head + half + i, b * read(cosine + half + i) + a * read(sine + half + i));
    });
}

}  // namespace starai
