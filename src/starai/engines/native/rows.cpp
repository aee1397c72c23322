// Norms, activations and rotations of many rows, for callers that have no whole layer for us.
#include "rows.h"

#include <type_traits>

#include "common.h"

namespace starai {
namespace {

constexpr int64_t kWorthThreads = 1 << 16;  // numbers below which a second thread is late

// body(row) for every row, on as many threads as the numbers are worth.
template <class Body>
void rows(int64_t count, int64_t width, int64_t threads, Body body) {
    bool worth = threads > 1 && count > 1 && count * width >= kWorthThreads;
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (worth)
    for (int64_t r = 0; r < count; ++r) body(r);
}

// body(X*) with the type that a dtype stands for.
template <class Body>
void typed(int64_t dtype, Body body) {
    if (dtype == BF16)
        body(static_cast<bf16*>(nullptr));
    else
        body(static_cast<float*>(nullptr));
}

}  // namespace
}  // namespace starai

using namespace starai;

extern "C" {

// residual += x first, if there is one; then out = norm of it.
void starai_rms_norm(void* residual, const void* x, const void* weight, int64_t m, int64_t n,
                     int64_t dtype, int64_t weight_dtype, double eps, double offset, void* out,
                     int64_t threads) {
    typed(dtype, [&](auto* x_type) {
        typed(weight_dtype, [&](auto* w_type) {
            using X = std::remove_pointer_t<decltype(x_type)>;
            using W = std::remove_pointer_t<decltype(w_type)>;
            rows(m, n, threads, [&](int64_t r) {
                const X* row = static_cast<const X*>(x) + r * n;
                if (residual) {
                    X* sum = static_cast<X*>(residual) + r * n;
                    add(sum, row, n);
                    row = sum;
                }
                rms_norm(row, static_cast<const W*>(weight), n, float(eps), float(offset),
                         static_cast<X*>(out) + r * n);
            });
        });
    });
}

// Norm of each head of rows [m, heads, n] that lie `stride` apart, in place.
void starai_head_norm(void* x, int64_t stride, int64_t m, int64_t heads, int64_t n, int64_t dtype,
                      const void* weight, int64_t weight_dtype, double eps, double offset,
                      int64_t threads) {
    typed(dtype, [&](auto* x_type) {
        typed(weight_dtype, [&](auto* w_type) {
            using X = std::remove_pointer_t<decltype(x_type)>;
            using W = std::remove_pointer_t<decltype(w_type)>;
            rows(m, heads * n, threads, [&](int64_t r) {
                for (int64_t h = 0; h < heads; ++h) {
                    X* head = static_cast<X*>(x) + r * stride + h * n;
                    rms_norm(head, static_cast<const W*>(weight), n, float(eps), float(offset),
                             head);
                }
            });
        });
    });
}

void starai_gated(const void* gate_up, int64_t m, int64_t n, int64_t dtype, int64_t activation,
                  void* out, int64_t threads) {
    typed(dtype, [&](auto* x_type) {
        using X = std::remove_pointer_t<decltype(x_type)>;
        rows(m, n, threads, [&](int64_t r) {
            const X* row = static_cast<const X*>(gate_up) + r * 2 * n;
            gated(row, row + n, n, int(activation), static_cast<X*>(out) + r * n);
        });
    });
}

void starai_rotary(void* x, int64_t stride, int64_t m, int64_t heads, int64_t n, int64_t dtype,
                   const float* cosine, const float* sine, int64_t turned, int64_t threads) {
    typed(dtype, [&](auto* x_type) {
        using X = std::remove_pointer_t<decltype(x_type)>;
        rows(m, heads * n, threads, [&](int64_t r) {
            for (int64_t h = 0; h < heads; ++h)
                rotate(static_cast<X*>(x) + r * stride + h * n, cosine + r * turned,
                       sine + r * turned, turned / 2);
        });
    });
}

}  // extern "C"
