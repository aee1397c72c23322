// What the kernels share: names of formats, buffers that outlive a call, and the linear layers that
// other kernels build on. Everything C++ lives in namespace starai; only extern "C" starai_* is seen
// from Python, with addresses and 64-bit counts as arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace starai {

enum Dtype : int { F32 = 0, BF16 = 1 };  // of activations

inline size_t dtype_bytes(int dtype) { return dtype == BF16 ? 2 : 4; }

inline int thread_id() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline int thread_count() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

// A buffer that grows to what was ever asked of it and is then reused: no allocation per call.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least `bytes`, aligned to a cache line; null when there is no memory left.
    void* get(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = (bytes + bytes / 4 + 4095) & ~size_t(4095);
            memory_ = std::aligned_alloc(64, size_);
            if (!memory_) size_ = 0;
        }
        return memory_;
    }

  private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

// ---- linear layers: y = x W^T + bias (linear.cpp) ----

enum Kind : int { W_F32 = 0, W_BF16 = 1, W_INT8 = 2, W_INT4 = 3 };

// A weight matrix. Mirrors `linear.Weight` in Python field for field.
struct Weight {
    const void* data;    // row-major [n, k]; int4: [n, k/2] bytes in the order of `linear.pack_int4`
    const void* scale;   // int8: float [n]; int4: half [n, k/32]; else null
    const void* bias;    // [n] or null
    int64_t n, k;
    int32_t kind;        // Kind; F32 and BF16 weights want activations of the same type
    int32_t bias_dtype;  // Dtype
};

// A complete linear layer on `threads` threads: x [m, k], y [m, n], rows without gaps.
void linear(const Weight& w, const void* x, int dtype, int64_t m, void* y, int threads);

// The same in pieces, for callers that are inside a parallel region of their own. All rows must be
// prepared, by any threads, before any thread multiplies. Prepared rows depend on the weight's kind
// and k only, so that several weights may share them.
constexpr int64_t PIECE_ROWS = 128;  // most rows that `prepare` and `multiply` take
size_t prepared_bytes(const Weight& w, int64_t m);
// Whether `multiply` will look at what `prepare` made of m rows, in pieces.
bool wants_preparation(const Weight& w, int64_t m);
void prepare(const Weight& w, const void* x, int dtype, int64_t m, int64_t row_begin,
             int64_t row_end, void* prepared);
// Columns [begin, end) of y, whose rows are `ldy` elements apart.
void multiply(const Weight& w, const void* x, int dtype, int64_t m, const void* prepared, void* y,
              int64_t ldy, int64_t begin, int64_t end);
// The columns of one thread of several: nearly equal shares, in whole tiles.
void share(int64_t n, int threads, int thread, int64_t* begin, int64_t* end);

}  // namespace starai
