// One tile of attention: some query rows of a key/value head over a run of tokens.
#pragma once
#include <algorithm>

#include "attention.h"
#include "vectors.h"

namespace starai {
namespace {  // each user compiles its own: everything here is inlined anyway

constexpr int64_t kChunk = 128;       // tokens; packed keys and values of a chunk stay in L2

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t limit_of(const Spans& spans, int64_t span, int64_t row, int64_t i) {
    return spans.limits ? spans.limits[row] : int64_t(spans.starts[span]) + i + 1;
}

// How numbers are multiplied: `Word` is what one lane holds, `kPer` numbers of the inner dimension.
struct Floats {
    using Number = float;
    using Word = float;
    static constexpr int64_t kPer = 1;
    static f32x16 add_product(f32x16 sum, Word a, f32x16 b) { return sum + a * b; }
};

#ifdef STARAI_BF16_DOT
struct Pairs {
    using Number = bf16;
    using Word = uint32_t;
    static constexpr int64_t kPer = 2;
    static f32x16 add_product(f32x16 sum, Word a, f32x16 b) {
        __m512i both = _mm512_set1_epi32(int(a));
        return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)both, (__m512bh)b);
    }
};
#endif

// C[R][16 N] = A[R][steps] * B, plus C * factor[R] if factors are given. B lies in panels of 16
// columns, `panel` words apart. Every element is one chain of additions, whatever R and N are.
template <class Math, int R, int N>
void multiply_tile(const typename Math::Word* a, int64_t a_stride, const float* b, int64_t panel,
                   int64_t steps, float* c, int64_t c_stride, const float* factor) {
    f32x16 sums[R][N] = {};
    for (int64_t k = 0; k < steps; ++k) {
        f32x16 column[N];
        for (int n = 0; n < N; ++n) column[n] = load(b + n * panel + k * kLanes);
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n)
                sums[r][n] = Math::add_product(sums[r][n], a[r * a_stride + k], column[n]);
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) {
            float* at = c + r * c_stride + n * kLanes;
            store(at, factor ? load(at) * factor[r] + sums[r][n] : sums[r][n]);
        }
}

template <class Math, int N>
void multiply_rows(const typename Math::Word* a, int64_t a_stride, int64_t rows, const float* b,
                   int64_t panel, int64_t steps, float* c, int64_t c_stride, const float* factor) {
    constexpr int kRows = 6;  // 6 x 4 sums, 4 columns, and a few left of 32 registers
    for (int64_t r = 0; r < rows; r += kRows) {
        auto run = [&](auto tile) {
            tile(a + r * a_stride, a_stride, b, panel, steps, c + r * c_stride, c_stride,
                 factor ? factor + r : nullptr);
        };
        switch (std::min<int64_t>(rows - r, kRows)) {
            case 1: run(multiply_tile<Math, 1, N>); break;
            case 2: run(multiply_tile<Math, 2, N>); break;
            case 3: run(multiply_tile<Math, 3, N>); break;
            case 4: run(multiply_tile<Math, 4, N>); break;
            case 5: run(multiply_tile<Math, 5, N>); break;
            default: run(multiply_tile<Math, 6, N>);
        }
    }
}

template <class Math>
void multiply(const typename Math::Word* a, int64_t a_stride, int64_t rows, const float* b,
              int64_t panel, int64_t panels, int64_t steps, float* c, int64_t c_stride,
              const float* factor) {
    int64_t n = 0;
    for (; n + 4 <= panels; n += 4)
        multiply_rows<Math, 4>(a, a_stride, rows, b + n * panel, panel, steps, c + n * kLanes,
                               c_stride, factor);
    for (; n < panels; ++n)
        multiply_rows<Math, 1>(a, a_stride, rows, b + n * panel, panel, steps, c + n * kLanes,
                               c_stride, factor);
}

// The keys of one block, [16][dim], into a panel [word][16 tokens].
template <class Math, class T>
void pack_keys(const T* block, int64_t dim, float* panel) {
    constexpr int64_t kWhole = kLanes * Math::kPer;  // numbers of 16 words
    for (int64_t d = 0; d < dim; d += kWhole, panel += kLanes * kLanes) {
        u32x16 columns[kLanes];
        if (sizeof(T) == sizeof(typename Math::Number) && dim - d >= kWhole) {
            load_transposed(block + d, size_t(dim) * sizeof(T), columns);
        } else {
            typename Math::Number rows[kLanes][kWhole] = {};
            const int64_t width = std::min(dim - d, kWhole);
            for (int t = 0; t < kLanes; ++t) convert(block + t * dim + d, width, rows[t]);
            load_transposed(rows, sizeof rows[0], columns);
        }
        for (int i = 0; i < kLanes; ++i) store_bytes(panel + i * kLanes, columns[i]);
    }
}

#ifdef STARAI_BF16_DOT
// Two tokens' values [32], number by number, into two panels.
inline void pack_pair(const bf16* first, const bf16* second, float* out, int64_t panel) {
    const u16x32 a = load_bytes<u16x32>(first), b = load_bytes<u16x32>(second);
    store_bytes(out, __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38,
                                             7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45,
                                             14, 46, 15, 47));
    store_bytes(out + panel,
                __builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22,
                                        54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61,
                                        30, 62, 31, 63));
}
#endif

// The values of the first `tokens` of a block, [16][dim], into panels [word of tokens][16 columns];
// the other tokens are zero: their memory may hold anything.
template <class Math, class T>
void pack_values(const T* block, int64_t dim, int64_t tokens, float* out, int64_t panel) {
    for (int64_t t = 0; t < kBlockTokens; t += Math::kPer, out += kLanes) {
        const T* row = block + t * dim;
        int64_t d = 0;
#ifdef STARAI_BF16_DOT
        if constexpr (Math::kPer == 2)
            for (; t + 2 <= tokens && d + 32 <= dim; d += 32)
                pack_pair(row + d, row + dim + d, out + d / kLanes * panel, panel);
#endif
        for (; d < dim; d += kLanes) {
            int64_t width = std::min<int64_t>(dim - d, kLanes);
            auto part = [&](int64_t token, const T* from) {
                if (token >= tokens) return f32x16{};
                return width == kLanes ? load(from) : load_some(from, width);
            };
            f32x16 first = part(t, row + d);
            if constexpr (Math::kPer == 2) {  // the first in the lower half, the second in the upper
                u32x16 second = (u32x16)part(t + 1, row + dim + d);
                first = (f32x16)(((u32x16)first >> 16) | second);
            }
            store(out + d / kLanes * panel, first);
        }
    }
}

// Running maximum, sum and weighted values of a tile's rows.
struct Partial {
    float* most;
    float* total;
    float* out;  // [rows][width]
};

Partial take_partial(Pieces& pieces, int64_t rows, int64_t width) {
    return {pieces.take<float>(rows), pieces.take<float>(rows), pieces.take<float>(rows * width)};
}

size_t partial_bytes(int64_t rows, int64_t width) {
    Pieces measure;
    take_partial(measure, rows, width);
    return measure.used;
}

template <class Math>
struct Tile {
    using Word = typename Math::Word;
    const Pool& pool;
    const Spans& spans;
    const Query& query;
    const Task& task;
    const int64_t group = query.heads / pool.heads;
    const int64_t rows = task.count * group;
    const int64_t steps = (pool.key_dim + Math::kPer - 1) / Math::kPer;
    const int64_t width = up(pool.value_dim, kLanes);
    // A line more than a panel needs: panels 4 KiB apart would fight for the same lines of L1.
    const int64_t key_panel = up(pool.key_dim, kLanes * Math::kPer) / Math::kPer * kLanes + kLanes;
    const int64_t value_panel = kChunk / Math::kPer * kLanes + kLanes;
    Word* queries = nullptr;
    float *keys = nullptr, *values = nullptr, *scores = nullptr, *factor = nullptr;
    typename Math::Number* weights = nullptr;
    Partial partial{};

    void lay_out(Pieces& pieces) {
        queries = pieces.take<Word>(rows * steps);
        keys = pieces.take<float>(kChunk / kBlockTokens * key_panel);
        values = pieces.take<float>(width / kLanes * value_panel);
        scores = pieces.take<float>(rows * kChunk);
        weights = pieces.take<typename Math::Number>(rows * kChunk);
        factor = pieces.take<float>(rows);
        partial = lay_out_partial(pieces);
    }

    Partial lay_out_partial(Pieces& pieces) const { return take_partial(pieces, rows, width); }

    template <class T>
    void take_queries() {
        using Number = typename Math::Number;
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = static_cast<const T*>(query.query) +
                            (task.row + r / group) * query.stride +
                            (task.head * group + r % group) * pool.key_dim;
            Number* to = reinterpret_cast<Number*>(queries + r * steps);
            convert(from, pool.key_dim, to);
            if (pool.key_dim % Math::kPer) to[pool.key_dim] = Number{};
        }
    }

    int64_t limit(int64_t r) const {
        int64_t i = r / group;
        return limit_of(spans, task.span, task.row + i, task.first + i);
    }

    // `tokens` from `begin` on; blocks before `seen` are outside every window and may be gone.
    template <class T>
    void pack(int64_t begin, int64_t tokens, int64_t seen) {
        const int32_t* table = spans.tables + task.span * spans.max_blocks + begin / kBlockTokens;
        for (int64_t t = 0; t < tokens; t += kBlockTokens, ++table) {
            bool gone = begin + t + kBlockTokens <= seen;
            int64_t block = gone ? 0 : (task.head * pool.blocks + *table) * kBlockTokens;
            if (!gone)
                pack_keys<Math>(static_cast<const T*>(pool.keys) + block * pool.key_dim,
                                pool.key_dim, keys + t / kBlockTokens * key_panel);
            pack_values<Math>(static_cast<const T*>(pool.values) + block * pool.value_dim,
                              pool.value_dim, gone ? 0 : tokens - t,
                              values + t / Math::kPer * kLanes, value_panel);
        }
    }

    // Scores of row r for the chunk's tokens in [low, high): weights against the running maximum.
    void weigh(int64_t r, int64_t low, int64_t high, int64_t columns) {
        float* row = scores + r * kChunk;
        f32x16 most = splat(-kInfinity);
        const bool partly = low > 0 || high < columns;
        i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int64_t c = 0; c < columns; c += kLanes) {
            f32x16 s = load(row + c) * query.scale;
            if (query.softcap > 0) s = tanh(s / query.softcap) * query.softcap;
            if (partly) {
                i32x16 at = lane + int32_t(c);
                s = ((at >= int32_t(low)) & (at < int32_t(high))) ? s : splat(-kInfinity);
            }
            most = max(most, s);
            store(row + c, s);
        }
        float before = partial.most[r];
        float now = std::max(before, max(most));
        bool none = now == -kInfinity;
        f32x16 total = {};
        for (int64_t c = 0; c < columns; c += kLanes) {
            f32x16 p = none ? f32x16{} : exp(load(row + c) - now);
            total += p;
            store(weights + r * kChunk + c, p);
        }
        factor[r] = none ? 1.0f : std::exp(before - now);
        partial.most[r] = now;
        partial.total[r] = partial.total[r] * factor[r] + sum(total);
    }

    // One partition of the tokens, from nothing.
    template <class T>
    void attend(int64_t begin, int64_t end) {
        for (int64_t r = 0; r < rows; ++r) partial.most[r] = -kInfinity, partial.total[r] = 0;
        std::memset(partial.out, 0, size_t(rows * width) * sizeof(float));
        for (int64_t at = begin / kChunk * kChunk; at < end; at += kChunk) {
            int64_t tokens = std::min(kChunk, end - at), columns = up(tokens, kLanes);
            pack<T>(at, tokens, begin);
            multiply<Math>(queries, steps, rows, keys, key_panel, columns / kLanes, steps, scores,
                           kChunk, nullptr);
            for (int64_t r = 0; r < rows; ++r) {
                int64_t high = limit(r), low = query.window ? high - query.window : 0;
                weigh(r, std::max<int64_t>(low - at, 0),
                      std::clamp<int64_t>(high - at, 0, tokens), columns);
            }
            multiply<Math>(reinterpret_cast<const Word*>(weights), kChunk / Math::kPer, rows, values,
                           value_panel, width / kLanes, columns / Math::kPer, partial.out, width,
                           factor);
        }
    }

    // total += other, in the sense of a softmax over both.
    void merge(Partial& total, const Partial& other) const {
        for (int64_t r = 0; r < rows; ++r) {
            float now = std::max(total.most[r], other.most[r]);
            if (now == -kInfinity) continue;
            float a = std::exp(total.most[r] - now), b = std::exp(other.most[r] - now);
            total.most[r] = now;
            total.total[r] = total.total[r] * a + other.total[r] * b;
            float *to = total.out + r * width, *from = other.out + r * width;
            for (int64_t d = 0; d < width; d += kLanes)
                store(to + d, load(to + d) * a + load(from + d) * b);
        }
    }

    template <class Out>
    void finish(Partial& total) const {
        for (int64_t r = 0; r < rows; ++r) {
            int64_t head = task.head * group + r % group;
            int64_t at = (task.row + r / group) * query.heads + head;
            float most = total.most[r], divisor = total.total[r], scale = 1;
            if (query.sinks) {
                float now = std::max(most, query.sinks[head]);
                scale = std::exp(most - now);
                divisor = divisor * scale + std::exp(query.sinks[head] - now);
                most = now;
            }
            scale = divisor > 0 ? scale / divisor : (divisor == 0 ? 0 : divisor);
            Out* to = static_cast<Out*>(query.out) + at * pool.value_dim;
            const float* from = total.out + r * width;
            each(pool.value_dim, [&](int64_t i, auto read, auto write) {
                write(to + i, read(from + i) * scale);
            });
            if (query.lse) query.lse[at] = most + std::log(divisor);
        }
    }
};

}  // namespace
}  // namespace starai
