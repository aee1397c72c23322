// Linear layers on float, bfloat16, int8 and int4 weights.
#include <cmath>
#include <cstring>

#include "common.h"

namespace starai {
namespace {

float bf16_to_float(uint16_t v) {
    uint32_t bits = uint32_t(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
uint16_t float_to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float half_to_float(uint16_t v) {
    _Float16 h;
    std::memcpy(&h, &v, 2);
    return float(h);
}
float load(const void* p, int dtype, int64_t i) {
    return dtype == BF16 ? bf16_to_float(static_cast<const uint16_t*>(p)[i])
                         : static_cast<const float*>(p)[i];
}
void store(void* p, int dtype, int64_t i, float v) {
    if (dtype == BF16)
        static_cast<uint16_t*>(p)[i] = float_to_bf16(v);
    else
        static_cast<float*>(p)[i] = v;
}
int64_t padded(int64_t k) { return (k + 511) / 512 * 512; }
size_t row_bytes(int64_t k) { return 64 + padded(k); }

}  // namespace

size_t prepared_bytes(const Weight& w, int64_t m) { return m * row_bytes(w.k); }

void prepare(const Weight& w, const void* x, int dtype, int64_t, int64_t row_begin,
             int64_t row_end, void* prepared) {
    if (w.kind < W_INT8) return;
    for (int64_t r = row_begin; r < row_end; ++r) {
        char* out = static_cast<char*>(prepared) + r * row_bytes(w.k);
        float peak = 0;
        for (int64_t i = 0; i < w.k; ++i) peak = std::fmax(peak, std::fabs(load(x, dtype, r * w.k + i)));
        float scale = peak / 127;
        std::memcpy(out, &scale, 4);
        for (int64_t i = 0; i < w.k; ++i)
            out[64 + i] = scale > 0 ? char(std::nearbyint(load(x, dtype, r * w.k + i) / scale)) : 0;
    }
}

void multiply(const Weight& w, const void* x, int dtype, int64_t m, const void* prepared, void* y,
              int64_t ldy, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < m; ++r) {
        const char* row = static_cast<const char*>(prepared) + r * row_bytes(w.k);
        const int8_t* q = reinterpret_cast<const int8_t*>(row + 64);
        float sx = 1;
        if (w.kind >= W_INT8) std::memcpy(&sx, row, 4);
        for (int64_t c = begin; c < end; ++c) {
            float total = 0;
            if (w.kind == W_INT8) {
                const int8_t* v = static_cast<const int8_t*>(w.data) + c * w.k;
                int32_t acc = 0;
                for (int64_t i = 0; i < w.k; ++i) acc += int32_t(q[i]) * v[i];
                total = float(acc) * (sx * static_cast<const float*>(w.scale)[c]);
            } else if (w.kind == W_INT4) {
                const uint8_t* v = static_cast<const uint8_t*>(w.data) + c * w.k / 2;
                const uint16_t* s = static_cast<const uint16_t*>(w.scale) + c * w.k / 32;
                for (int64_t chunk = 0; chunk < w.k; chunk += 512) {
                    int64_t groups = (w.k - chunk < 512 ? w.k - chunk : 512) / 32;
                    for (int64_t g = 0; g < groups; ++g) {
                        int32_t acc = 0;
                        for (int64_t t = 0; t < 4; ++t)
                            for (int64_t i = 0; i < 4; ++i) {
                                int byte = v[chunk / 2 + t * 4 * groups + 4 * g + i];
                                const int8_t* a = q + chunk + 32 * g + 4 * t + i;
                                acc += ((byte & 15) - 8) * a[0] + ((byte >> 4) - 8) * a[16];
                            }
                        total += float(acc) * half_to_float(s[chunk / 32 + g]);
                    }
                }
                total *= sx;
            } else {
                for (int64_t i = 0; i < w.k; ++i)
                    total += load(x, dtype, r * w.k + i) * load(w.data, w.kind, c * w.k + i);
            }
            if (w.bias) total += load(w.bias, w.bias_dtype, c);
            store(y, dtype, r * ldy + c, total);
        }
    }
}

void share(int64_t n, int threads, int thread, int64_t* begin, int64_t* end) {
    int64_t tiles = (n + 15) / 16;
    *begin = tiles * thread / threads * 16;
    *end = tiles * (thread + 1) / threads * 16;
    if (*end > n) *end = n;
}

void linear(const Weight& w, const void* x, int dtype, int64_t m, void* y, int threads) {
    static thread_local Scratch scratch;
    size_t in = w.k * dtype_bytes(dtype), out = w.n * dtype_bytes(dtype);
    for (int64_t first = 0; first < m; first += PIECE_ROWS) {
        int64_t rows = m - first < PIECE_ROWS ? m - first : PIECE_ROWS;
        const char* from = static_cast<const char*>(x) + first * in;
        char* to = static_cast<char*>(y) + first * out;
        void* prepared = scratch.get(prepared_bytes(w, rows));
        prepare(w, from, dtype, rows, 0, rows, prepared);
#pragma omp parallel num_threads(threads)
        {
            int64_t begin, end;
            share(w.n, thread_count(), thread_id(), &begin, &end);
            multiply(w, from, dtype, rows, prepared, to, w.n, begin, end);
        }
    }
}

}  // namespace starai

extern "C" void starai_linear(const void* x, int64_t dtype, int64_t m, int64_t k, const void* weight,
                              int64_t kind, const void* scale, int64_t n, const void* bias,
                              int64_t bias_dtype, void* y, int64_t threads) {
    starai::Weight w{weight, scale, bias, n, k, int32_t(kind), int32_t(bias_dtype)};
    starai::linear(w, x, int(dtype), m, y, int(threads));
}
