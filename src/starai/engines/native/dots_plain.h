// Dots (dots.h) in plain loops, which compilers turn into what vectors the CPU has.
#pragma once

#include "dots.h"

namespace starai {

// Calls one(row, column) for every result; four numbers become a row of `out`.
template <int ROWS, class One>
void fill(Four* out, One one) {
    for (int r = 0; r < ROWS; ++r) {
        Four row = {};
        for (int c = 0; c < COLUMNS; ++c) row[c] = one(r, c);
        out[r] = row;
    }
}

struct Int8Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        fill<ROWS>(out, [&](int r, int c) {
            auto* a = reinterpret_cast<const int8_t*>(x + r * x_stride + HEADER);
            auto* v = reinterpret_cast<const int8_t*>(w.row[c]);
            int32_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += int32_t(a[i]) * v[i];
            return float(sum);
        });
    }
};

struct Int4Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        fill<ROWS>(out, [&](int r, int c) {
            const char* chunk = x + r * x_stride + HEADER;
            float sum = 0;
            for (int64_t first = 0; first < k; first += CHUNK, chunk += CHUNK_BYTES) {
                const int64_t groups = (k - first < CHUNK ? k - first : CHUNK) / GROUP;
                auto* v = reinterpret_cast<const uint8_t*>(w.row[c]) + first / 2;
                auto* scale = reinterpret_cast<const uint16_t*>(w.scale[c]) + first / GROUP;
                sum += add(v, scale, groups, chunk);
            }
            return sum;
        });
    }

    static float add(const uint8_t* v, const uint16_t* scale, int64_t groups, const char* chunk) {
        int32_t dot[LANES];
        std::memcpy(dot, chunk, sizeof dot);
        auto* a = reinterpret_cast<const int8_t*>(chunk + 64);
        for (int64_t t = 0; t < 4; ++t)
            for (int64_t i = 0; i < 4 * groups; ++i) {
                const int32_t both = v[4 * groups * t + i];
                dot[i / 4] += (both & 15) * a[64 * t + i] + (both >> 4) * a[256 + 64 * t + i];
            }
        float sum = 0;
        for (int64_t g = 0; g < groups; ++g) sum += float(dot[g]) * from_half(scale[g]);
        return sum;
    }
};

// Sums in 16 lanes: what floats add up to must not wait for one addition after another.
template <class Product>
float lanes(int64_t k, Product product) {
    float sum[16] = {};
    int64_t i = 0;
    for (; i + 16 <= k; i += 16)
        for (int lane = 0; lane < 16; ++lane) sum[lane] += product(i + lane);
    for (; i < k; ++i) sum[i % 16] += product(i);
    for (int width = 8; width; width /= 2)
        for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
    return sum[0];
}

struct FloatDots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        fill<ROWS>(out, [&](int r, int c) {
            auto* a = reinterpret_cast<const float*>(x + r * x_stride);
            auto* v = reinterpret_cast<const float*>(w.row[c]);
            return lanes(k, [=](int64_t i) { return a[i] * v[i]; });
        });
    }
};

struct Bf16Dots {
    template <int ROWS>
    static void run(const Tile& w, const char* x, size_t x_stride, int64_t k, Four* out) {
        fill<ROWS>(out, [&](int r, int c) {
            auto* a = reinterpret_cast<const uint16_t*>(x + r * x_stride);
            auto* v = reinterpret_cast<const uint16_t*>(w.row[c]);
            return lanes(k, [=](int64_t i) { return from_bf16(a[i]) * from_bf16(v[i]); });
        });
    }
};

// y = value * factor + bias for the first `count` of four columns.
inline void finish(Four value, Four factor, Four bias, int64_t count, void* y, int dtype) {
    for (int64_t c = 0; c < count; ++c) {
        const float result = value[c] * factor[c] + bias[c];
        if (dtype == F32)
            static_cast<float*>(y)[c] = result;
        else
            static_cast<uint16_t*>(y)[c] = to_bf16(result);
    }
}

}  // namespace starai
