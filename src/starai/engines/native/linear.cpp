// Linear layers on float, bfloat16, int8 and int4 weights: who computes which part of y.
#include <algorithm>

#include "dots.h"
#ifdef STARAI_AVX512
#include "wide.h"
#endif

namespace starai {
namespace {

// Rows of activations that stay in the first-level cache while all weights pass by.
constexpr int64_t NEAR_BYTES = 20 << 10;
// Weights that stay in the second-level cache while all activations pass by.
constexpr int64_t MIDDLE_BYTES = 256 << 10;

// How far ahead weights are fetched, at least: what memory delivers while one load waits for it.
constexpr int64_t AHEAD_BYTES = 4096;

// Activations made ready at a time, which share the second-level cache with weights.
constexpr int64_t PREPARED_BYTES = 1 << 20;
// Rows from which float32 is summed by blocks: faster, but a row's last bits then depend on the
// number of rows. Below, as with all other kinds always, they do not.
constexpr int64_t FLOAT_WIDE_ROWS = 48;
// Multiplications below which a second thread is late.
constexpr int64_t WORTH_THREADS = 1 << 16;

// One call's operands.
struct Job {
    const Weight& w;
    const char* x;  // rows as `run` reads them
    size_t x_stride;
    char* y;
    int64_t ldy;
    int dtype;
};

template <class Dots, int ROWS>
void rows_by_tile(const Job& job, const Tile& tile, int64_t row, int64_t column, int64_t count) {
    Four value[ROWS];
    const char* x = job.x + row * int64_t(job.x_stride);
    Dots::template run<ROWS>(tile, x, job.x_stride, job.w.k, value);
    for (int r = 0; r < ROWS; ++r) {
        Four factor = tile.factor;
        if (job.w.kind >= W_INT8)
            factor *= reinterpret_cast<const RowHeader*>(x + r * job.x_stride)->scale;
        const size_t at = size_t((row + r) * job.ldy + column) * dtype_bytes(job.dtype);
        finish(value[r], factor, tile.bias, count, job.y + at, job.dtype);
    }
}

// Rows [first, last) and columns [begin, end), four columns at a time.
template <class Dots>
void block(const Job& job, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const size_t stride = weight_row_bytes(job.w), scales = size_t(job.w.k) / GROUP * 2;
    Tile tile;
    tile.ahead = up(AHEAD_BYTES, COLUMNS * int64_t(stride));  // the same place of a later tile
    for (int64_t column = begin; column < end; column += COLUMNS) {
        int64_t count = end - column < COLUMNS ? end - column : COLUMNS;
        for (int64_t c = 0; c < COLUMNS; ++c) {
            int64_t n = column + (c < count ? c : count - 1);
            tile.row[c] = static_cast<const char*>(job.w.data) + n * int64_t(stride);
            tile.scale[c] = static_cast<const char*>(job.w.scale) + n * int64_t(scales);
            tile.bias[c] = job.w.bias ? element(job.w.bias, job.w.bias_dtype, n) : 0.0f;
            tile.factor[c] = job.w.kind == W_INT8 ? static_cast<const float*>(job.w.scale)[n] : 1.0f;
        }
        for (int64_t row = first; row < last;) {
            int64_t left = last - row, tiles = (left + MAX_ROWS - 1) / MAX_ROWS;
            int rows = int((left + tiles - 1) / tiles);
            switch (rows) {
                case 1: rows_by_tile<Dots, 1>(job, tile, row, column, count); break;
                case 2: rows_by_tile<Dots, 2>(job, tile, row, column, count); break;
                case 3: rows_by_tile<Dots, 3>(job, tile, row, column, count); break;
                case 4: rows_by_tile<Dots, 4>(job, tile, row, column, count); break;
                case 5: rows_by_tile<Dots, 5>(job, tile, row, column, count); break;
                case 6: rows_by_tile<Dots, 6>(job, tile, row, column, count); break;
                case 7: rows_by_tile<Dots, 7>(job, tile, row, column, count); break;
                default: rows_by_tile<Dots, 8>(job, tile, row, column, count); break;
            }
            row += rows;
        }
    }
}

template <class Dots>
void all_blocks(const Job& job, int64_t m, int64_t begin, int64_t end) {
    int64_t near = NEAR_BYTES / int64_t(job.x_stride) / MAX_ROWS * MAX_ROWS;
    if (near < 2 * MAX_ROWS) near = 2 * MAX_ROWS;
    int64_t middle = MIDDLE_BYTES / int64_t(weight_row_bytes(job.w) + 1) / COLUMNS * COLUMNS;
    if (middle < COLUMNS) middle = COLUMNS;
    if (near >= m) middle = end - begin;
    for (int64_t column = begin; column < end; column += middle) {
        int64_t until = end - column < middle ? end : column + middle;
        for (int64_t row = 0; row < m; row += near)
            block<Dots>(job, row, m - row < near ? m : row + near, column, until);
    }
}

// Whether rows are made ready, and multiplied, sixteen at a time.
bool use_wide(const Weight& w, int64_t m) {
#ifdef STARAI_AVX512
    return wide(w.kind, w.k, m);
#else
    return (void)w, (void)m, false;
#endif
}

void prepare_rows(const Weight& w, const void* x, int dtype, int64_t m, int64_t row_begin,
                  int64_t row_end, void* prepared, bool by_blocks) {
    if (w.kind < W_INT8 && !by_blocks) return;
    static thread_local Scratch scratch;
    auto* spare = static_cast<int8_t*>(scratch.get(size_t(up(w.k, 64))));
    const size_t bytes = size_t(w.k) * dtype_bytes(dtype);
    auto* to = static_cast<char*>(prepared);
    for (int64_t r = row_begin; r < row_end; ++r) {
        const char* from = static_cast<const char*>(x) + size_t(r) * bytes;
#ifdef STARAI_AVX512
        if (by_blocks && w.kind == W_BF16 && r % WIDE == 0 && r + WIDE <= row_end) {
            prepare_wide_bf16(from, w.k, r, to);
            r += WIDE - 1;
            continue;
        }
        if (by_blocks) {
            prepare_wide(w.kind, from, dtype, w.k, m, r, to, spare);
            continue;
        }
#endif
        prepare_row(w.kind, from, dtype, w.k, r, to, spare);
    }
    (void)m;
}

void multiply_rows(const Weight& w, const void* x, int dtype, int64_t m, const void* prepared,
                   void* y, int64_t ldy, int64_t begin, int64_t end, bool by_blocks) {
#ifdef STARAI_AVX512
    if (by_blocks) return Wide(w, prepared, m, y, ldy, dtype).columns(begin, end);
#endif
    (void)by_blocks;
    const bool integer = w.kind >= W_INT8;
    const size_t stride = integer ? row_bytes(w.kind, w.k) : size_t(w.k) * dtype_bytes(dtype);
    Job job{w, static_cast<const char*>(integer ? prepared : x), stride, static_cast<char*>(y), ldy,
            dtype};
    switch (w.kind) {
        case W_F32: return all_blocks<FloatDots>(job, m, begin, end);
        case W_BF16: return all_blocks<Bf16Dots>(job, m, begin, end);
        case W_INT8: return all_blocks<Int8Dots>(job, m, begin, end);
        default: return all_blocks<Int4Dots>(job, m, begin, end);
    }
}

// Bytes that m rows made ready take, in blocks or not.
size_t room_for(const Weight& w, int64_t m) {
    const size_t dots = size_t(m) * row_bytes(w.kind, w.k);
#ifdef STARAI_AVX512
    const size_t blocks = wide_bytes(w.kind, w.k, m);
    return blocks > dots ? blocks : dots;
#else
    return dots;
#endif
}

// Rows that are made ready at a time: with room beside them in the second-level cache.
int64_t piece_rows(const Weight& w) {
    constexpr int64_t STEP = 32;
    const int64_t fit = PREPARED_BYTES / (int64_t(w.k) * (w.kind >= W_INT8 ? 1 : w.kind == W_BF16 ? 2 : 4) + 1);
    return fit >= PIECE_ROWS ? PIECE_ROWS : fit < STEP ? STEP : fit / STEP * STEP;
}

// Rows [0, m), few enough to be made ready at once, on several threads.
void piece(const Weight& w, const void* x, int dtype, int64_t m, void* y, int threads, bool by_blocks) {
    static thread_local Scratch scratch;
    void* prepared = scratch.get(room_for(w, m));
    // A few rows are made ready sooner than threads are woken.
    const bool alone = threads == 1 || (m < 8 && !by_blocks);
    if (alone) prepare_rows(w, x, dtype, m, 0, m, prepared, by_blocks);
    if (threads == 1) return multiply_rows(w, x, dtype, m, prepared, y, w.n, 0, w.n, by_blocks);
#pragma omp parallel num_threads(threads)
    {
        const int count = thread_count(), own = thread_id();
        if (!alone) {
            prepare_rows(w, x, dtype, m, m * own / count, m * (own + 1) / count, prepared, by_blocks);
#pragma omp barrier
        }
        int64_t begin, end;
        share(w.n, count, own, &begin, &end);
        multiply_rows(w, x, dtype, m, prepared, y, w.n, begin, end, by_blocks);
    }
}

}  // namespace

size_t prepared_bytes(const Weight& w, int64_t m) {
    return w.kind == W_F32 ? 0 : room_for(w, m);  // float32 is taken as it is
}

void prepare(const Weight& w, const void* x, int dtype, int64_t m, int64_t row_begin, int64_t row_end,
             void* prepared) {
    prepare_rows(w, x, dtype, m, row_begin, row_end, prepared, w.kind != W_F32 && use_wide(w, m));
}

void multiply(const Weight& w, const void* x, int dtype, int64_t m, const void* prepared, void* y,
              int64_t ldy, int64_t begin, int64_t end) {
    multiply_rows(w, x, dtype, m, prepared, y, ldy, begin, end, w.kind != W_F32 && use_wide(w, m));
}

bool wants_preparation(const Weight& w, int64_t m) {
    return w.kind >= W_INT8 || (w.kind == W_BF16 && use_wide(w, std::min(m, PIECE_ROWS)));
}

void share(int64_t n, int threads, int thread, int64_t* begin, int64_t* end) {
    int64_t tiles = (n + 15) / 16;
    *begin = tiles * thread / threads * 16;
    *end = tiles * (thread + 1) / threads * 16;
    if (*begin > n) *begin = n;
    if (*end > n) *end = n;
}

void linear(const Weight& w, const void* x, int dtype, int64_t m, void* y, int threads) {
    const size_t in = size_t(w.k) * dtype_bytes(dtype), out = size_t(w.n) * dtype_bytes(dtype);
    const int64_t most = piece_rows(w);
    if (w.n * w.k * m < WORTH_THREADS) threads = 1;
    for (int64_t first = 0; first < m; first += most) {
        const int64_t rows = m - first < most ? m - first : most;
        const bool by_blocks = use_wide(w, rows) && (w.kind != W_F32 || m >= FLOAT_WIDE_ROWS);
        piece(w, static_cast<const char*>(x) + size_t(first) * in, dtype, rows,
              static_cast<char*>(y) + size_t(first) * out, threads, by_blocks);
    }
}

}  // namespace starai

extern "C" void starai_linear(const void* x, int64_t dtype, int64_t m, int64_t k, const void* weight,
                              int64_t kind, const void* scale, int64_t n, const void* bias,
                              int64_t bias_dtype, void* y, int64_t threads) {
    starai::Weight w{weight, scale, bias, n, k, int32_t(kind), int32_t(bias_dtype)};
    starai::linear(w, x, int(dtype), m, y, int(threads));
}

// What was compiled in: 1 if many rows are multiplied by blocks, 2 if the CPU has a matrix unit,
// which is left to others.
extern "C" int64_t starai_abilities() {
    int64_t abilities = 0;
#ifdef STARAI_AVX512
    abilities |= 1;
#endif
#ifdef __AMX_BF16__
    abilities |= 2;
#endif
    return abilities;
}
