// Activations made ready for integer weights: one row after another, quantised to int8.
//
// x is about q * scale, with scale = max|x| / 127 of the row and q rounded to nearest even. A row
// that holds no number or an infinity gets a scale that is no number, and so becomes all NaN.
#pragma once

#include <cmath>

#include "convert.h"

namespace starai {

constexpr int64_t GROUP = 32;                 // int4: columns of one scale
constexpr int64_t LANES = 16;                 // int4: groups of a chunk
constexpr int64_t CHUNK = GROUP * LANES;      // int4: columns of a chunk
constexpr int64_t CHUNK_BYTES = 64 + CHUNK;   // int4: LANES offsets (int32), then permuted q
constexpr int64_t HEADER = 64;                // scale, sum of q; keeps the rest on a cache line
constexpr float SMALLEST = 1e-30f;            // a row below it counts as zero: 127 / x overflows

struct RowHeader {
    float scale;
    int32_t sum;
};

inline int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

inline size_t weight_row_bytes(const Weight& w) {
    switch (w.kind) {
        case W_F32: return size_t(w.k) * 4;
        case W_BF16: return size_t(w.k) * 2;
        case W_INT4: return size_t(w.k) / 2;
        default: return size_t(w.k);
    }
}

// Of a row made ready for dots.
inline size_t row_bytes(int kind, int64_t k) {
    if (kind == W_INT8) return size_t(HEADER + up(k, 64));
    if (kind == W_INT4) return size_t(HEADER + (k + CHUNK - 1) / CHUNK * CHUNK_BYTES);
    return 0;
}

template <class Load>
RowHeader quantise(Load load, int64_t k, int8_t* q) {
    uint32_t peak_bits = 0;  // as integers, |NaN| > |infinity| > |anything else|
    for (int64_t i = 0; i < k; ++i) {
        uint32_t bits = bits_of_float(load(i)) & 0x7fffffff;
        peak_bits = bits > peak_bits ? bits : peak_bits;
    }
    float peak = float_of_bits(peak_bits);
    bool finite = peak_bits < 0x7f800000;
    float factor = finite && peak > SMALLEST ? 127.0f / peak : 0.0f;
    int32_t sum = 0;
    if (finite) {
        for (int64_t i = 0; i < k; ++i) {
            int32_t value = int32_t(std::rint(load(i) * factor));
            sum += value;
            q[i] = int8_t(value);
        }
    } else {
        std::memset(q, 0, size_t(k));
    }
    return {finite ? peak / 127.0f : float_of_bits(0x7fc00000), sum};
}

inline RowHeader quantise(const void* x, int dtype, int64_t k, int8_t* q) {
    if (dtype == BF16) {
        auto* row = static_cast<const uint16_t*>(x);
        return quantise([row](int64_t i) { return from_bf16(row[i]); }, k, q);
    }
    auto* row = static_cast<const float*>(x);
    return quantise([row](int64_t i) { return row[i]; }, k, q);
}

// int4: in each chunk, lane g of vector t holds columns 32g + 4t .. 32g + 4t + 3, so that eight dot
// products leave in lane g the sum of group g. The weights' offset of 8 is where that sum starts.
inline void permute(const int8_t* q, int64_t k, char* out) {
    for (int64_t first = 0; first < k; first += CHUNK, out += CHUNK_BYTES) {
        int64_t groups = (k - first < CHUNK ? k - first : CHUNK) / GROUP;
        std::memset(out, 0, size_t(CHUNK_BYTES));
        auto* offsets = reinterpret_cast<int32_t*>(out);
        for (int64_t g = 0; g < groups; ++g) {
            const int8_t* from = q + first + g * GROUP;
            int32_t sum = 0;
            for (int64_t i = 0; i < GROUP; ++i) sum += from[i];
            offsets[g] = -8 * sum;
            for (int64_t t = 0; t < 8; ++t) std::memcpy(out + 64 + 64 * t + 4 * g, from + 4 * t, 4);
        }
    }
}

// Row r for dots with integer weights; `spare` holds up(k, 64) bytes.
inline void prepare_row(int kind, const void* x, int dtype, int64_t k, int64_t r, char* prepared,
                        int8_t* spare) {
    char* out = prepared + size_t(r) * row_bytes(kind, k);
    auto* q = kind == W_INT8 ? reinterpret_cast<int8_t*>(out + HEADER) : spare;
    RowHeader header = quantise(x, dtype, k, q);
    std::memcpy(out, &header, sizeof header);
    if (kind == W_INT8)
        std::memset(q + k, 0, size_t(up(k, 64) - k));
    else
        permute(q, k, out + HEADER);
}

}  // namespace starai
