// Attention that reads keys and values through block tables, for one new token or a whole prompt.
//
// A task is one key/value head of one span and a tile of its rows: all query heads that share the
// head, so that keys and values are read once for them. It goes over the tokens in chunks; a chunk
// is packed (keys transposed, so that a vector holds the same component of 16 tokens), multiplied,
// weighed with a running maximum (Milakov and Gimelshein: Online normalizer calculation for softmax,
// 2018) and summed. Partitions of tokens are merged by their log-sum-exp, as in Flash-Decoding
// (Dao et al., 2023); when there are few tasks, partitions run in parallel.
//
// Chunks and partitions lie at fixed places and every sum has a fixed order: what a row gives does
// not depend, to the last bit, on the other rows, on how a prompt is cut, or on threads.
#include "attention.h"

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace starai {
namespace {

constexpr int64_t kChunk = 128;       // tokens; packed keys and values of a chunk stay in L2
constexpr int64_t kPartition = 1024;  // tokens; a multiple of a chunk
constexpr int64_t kTileRows = 64;     // query rows that share a packed chunk
constexpr int64_t kWorthThreads = 1 << 18;  // multiplications below which a second thread is late

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

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

// One row of 16 words, numbers of type T taken as Math wants them.
template <class Math, class T>
u32x16 words(const T* row, int64_t numbers) {
    constexpr int64_t kWhole = kLanes * Math::kPer;
    if constexpr (sizeof(T) * kWhole == sizeof(u32x16)) {
        if (numbers >= kWhole) return load_bytes<u32x16>(row);
        T padded[kWhole] = {};
        std::memcpy(padded, row, size_t(numbers) * sizeof(T));
        return load_bytes<u32x16>(padded);
    } else {
        return (u32x16)(numbers >= kLanes ? load(row) : load_some(row, numbers));
    }
}

// The keys of one block, [16][dim], into a panel [word][16 tokens].
template <class Math, class T>
void pack_keys(const T* block, int64_t dim, float* panel) {
    for (int64_t d = 0; d < dim; d += kLanes * Math::kPer) {
        u32x16 rows[kLanes];
        for (int t = 0; t < kLanes; ++t) rows[t] = words<Math>(block + t * dim + d, dim - d);
        transpose(rows);
        for (int i = 0; i < kLanes; ++i) store_bytes(panel + i * kLanes, rows[i]);
        panel += kLanes * kLanes;
    }
}

// The values of the first `tokens` of a block, [16][dim], into panels [word of tokens][16 columns];
// the other tokens are zero: their memory may hold anything.
template <class Math, class T>
void pack_values(const T* block, int64_t dim, int64_t tokens, float* out, int64_t panel) {
    for (int64_t t = 0; t < kBlockTokens; t += Math::kPer, out += kLanes) {
        const T* row = block + t * dim;
        for (int64_t d = 0; d < dim; d += kLanes) {
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

struct Task {
    int64_t span, head, first, count, row;  // queries first .. first + count; `row` is the first's
    int64_t begin, end;                     // the tokens that any of them sees
};

// Running maximum, sum and weighted values of a tile's rows.
struct Partial {
    float* most;
    float* total;
    float* out;  // [rows][width]
};

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
    const int64_t key_panel = up(pool.key_dim, kLanes * Math::kPer) / Math::kPer * kLanes;
    const int64_t value_panel = kChunk / Math::kPer * kLanes;
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

    Partial lay_out_partial(Pieces& pieces) const {
        return {pieces.take<float>(rows), pieces.take<float>(rows), pieces.take<float>(rows * width)};
    }

    template <class T>
    void take_queries() {
        using Number = typename Math::Number;
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = static_cast<const T*>(query.query) +
                            (task.row + r / group) * query.stride +
                            (task.head * group + r % group) * pool.key_dim;
            Number* to = reinterpret_cast<Number*>(queries + r * steps);
            each(pool.key_dim, [&](int64_t i, auto read, auto write) {
                write(to + i, read(from + i));
            });
            if (pool.key_dim % Math::kPer) to[pool.key_dim] = Number{};
        }
    }

    int64_t limit(int64_t r) const {
        int64_t i = r / group;
        return spans.limits ? spans.limits[task.row + i]
                            : spans.starts[task.span] + task.first + i + 1;
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
        i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int64_t c = 0; c < columns; c += kLanes) {
            f32x16 s = load(row + c) * query.scale;
            if (query.softcap > 0) s = tanh(s / query.softcap) * query.softcap;
            i32x16 at = lane + int32_t(c);
            s = ((at >= int32_t(low)) & (at < int32_t(high))) ? s : splat(-kInfinity);
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

// All tasks of a call, with the types of its numbers settled.
template <class Math, class Q, class T>
struct Run {
    const Pool& pool;
    const Spans& spans;
    const Query& query;
    const std::vector<Task>& tasks;
    int threads;

    static Scratch& scratch() {
        thread_local Scratch memory;
        return memory;
    }

    // Lays out a tile and `spare` more partials in this thread's scratch.
    char* room(Tile<Math>& tile, bool spare) const {
        Pieces measure;
        tile.lay_out(measure);
        if (spare) tile.lay_out_partial(measure);
        return static_cast<char*>(scratch().get(measure.used));
    }

    bool whole(const Task& task) const {
        Tile<Math> tile{pool, spans, query, task};
        Pieces pieces{room(tile, true)};
        if (!pieces.buffer) return false;
        tile.lay_out(pieces);
        Partial total = tile.partial, next = tile.lay_out_partial(pieces);
        tile.template take_queries<Q>();
        for (int64_t at = task.begin; at < task.end || at == task.begin; at = after(at)) {
            tile.template attend<T>(at, std::min(task.end, after(at)));
            if (at != task.begin) tile.merge(total, next);
            tile.partial = next;
        }
        tile.template finish<Q>(total);
        return true;
    }

    // One partition of a task into memory that all threads see.
    bool part(const Task& task, int64_t at, Pieces& shared) const {
        Tile<Math> tile{pool, spans, query, task};
        Pieces pieces{room(tile, false)};
        if (!pieces.buffer) return false;
        tile.lay_out(pieces);
        tile.partial = tile.lay_out_partial(shared);
        tile.template take_queries<Q>();
        tile.template attend<T>(at, std::min(task.end, after(at)));
        return true;
    }

    void join(const Task& task, Pieces& shared) const {
        Tile<Math> tile{pool, spans, query, task};
        Partial total = tile.lay_out_partial(shared);
        for (int64_t at = after(task.begin); at < task.end; at = after(at))
            tile.merge(total, tile.lay_out_partial(shared));
        tile.template finish<Q>(total);
    }

    static int64_t after(int64_t token) { return (token / kPartition + 1) * kPartition; }

    static int64_t partitions(const Task& task) {
        int64_t last = std::max(task.begin, task.end - 1);
        return last / kPartition - task.begin / kPartition + 1;
    }

    bool operator()() const {
        int64_t count = int64_t(tasks.size()), most = 0;
        for (const Task& task : tasks) most = std::max(most, partitions(task));
        if (threads > 1 && count < 2 * threads && most > 1) return split();
        int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(+ : failed)
        for (int64_t i = 0; i < count; ++i) failed += !whole(tasks[size_t(i)]);
        return !failed;
    }

    struct Job {
        const Task* task;
        int64_t at;
        Pieces shared;
    };

    bool split() const {
        thread_local std::vector<Job> jobs;
        jobs.clear();
        Pieces measure;
        for (const Task& task : tasks)
            for (int64_t at = task.begin; at < task.end || at == task.begin; at = after(at)) {
                jobs.push_back({&task, at, measure});
                Tile<Math>{pool, spans, query, task}.lay_out_partial(measure);
            }
        thread_local Scratch memory;
        char* buffer = static_cast<char*>(memory.get(measure.used));
        if (!buffer) return false;
        std::vector<Job>& all = jobs;  // this thread's, whichever thread reads it
        int64_t count = int64_t(all.size());
        int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(+ : failed)
        for (int64_t i = 0; i < count; ++i) {
            Job& job = all[size_t(i)];
            job.shared.buffer = buffer;
            Pieces shared = job.shared;
            failed += !part(*job.task, job.at, shared);
        }
        if (failed) return false;
        for (Job& job : all)
            if (job.at == job.task->begin) join(*job.task, job.shared);
        return true;
    }
};

int64_t limit_of(const Spans& spans, int64_t span, int64_t row, int64_t i) {
    return spans.limits ? spans.limits[row] : int64_t(spans.starts[span]) + i + 1;
}

// Tiles of every span and head, those that see most first: the last one decides when all are done.
int64_t plan(const Pool& pool, const Spans& spans, const Query& query, std::vector<Task>& tasks) {
    int64_t per_tile = std::max<int64_t>(1, kTileRows / (query.heads / pool.heads)), work = 0;
    tasks.clear();
    for (int64_t s = 0, row = 0; s < spans.spans; row += spans.counts[s++]) {
        int64_t count = spans.counts[s];
        for (int64_t first = (count - 1) / per_tile * per_tile; count && first >= 0;
             first -= per_tile) {
            Task task{s, 0, first, std::min(per_tile, count - first), row + first, INT64_MAX, 0};
            for (int64_t i = first; i < first + task.count; ++i) {
                int64_t limit = limit_of(spans, s, row + i, i);
                task.end = std::max(task.end, limit);
                task.begin = std::min(task.begin, query.window ? limit - query.window : 0);
            }
            task.begin = std::max<int64_t>(task.begin, 0);
            for (task.head = 0; task.head < pool.heads; ++task.head) tasks.push_back(task);
            work += (task.end - task.begin) * task.count * query.heads;
        }
    }
    return work * (pool.key_dim + pool.value_dim);
}

template <class T, class Q>
void copy_rows(const Pool& pool, const Spans& spans, void* memory, int64_t dim, const Q* rows,
               int64_t stride) {
    for (int64_t s = 0; s < spans.spans; ++s)
        for (int64_t i = 0; i < spans.counts[s]; ++i, rows += stride) {
            int64_t token = spans.starts[s] + i;
            int64_t block = spans.tables[s * spans.max_blocks + token / kBlockTokens];
            for (int64_t h = 0; h < pool.heads; ++h) {
                int64_t slot = (h * pool.blocks + block) * kBlockTokens + token % kBlockTokens;
                T* to = static_cast<T*>(memory) + slot * dim;
                const Q* from = rows + h * dim;
                each(dim, [&](int64_t d, auto read, auto write) { write(to + d, read(from + d)); });
            }
        }
}

template <class T, class Q>
void write_both(const Pool& pool, const Spans& spans, const void* keys, int64_t key_stride,
                const void* values, int64_t value_stride) {
    copy_rows<T>(pool, spans, pool.keys, pool.key_dim, static_cast<const Q*>(keys), key_stride);
    copy_rows<T>(pool, spans, pool.values, pool.value_dim, static_cast<const Q*>(values),
                 value_stride);
}

template <class Math, class Q, class T>
bool attend_as(const Pool& pool, const Spans& spans, const Query& query, int threads) {
    thread_local std::vector<Task> tasks;
    if (plan(pool, spans, query, tasks) < kWorthThreads) threads = 1;
    return Run<Math, Q, T>{pool, spans, query, tasks, threads}();
}

}  // namespace

void write_kv(const Pool& pool, const Spans& spans, const void* keys, int64_t key_stride,
              const void* values, int64_t value_stride, int64_t dtype) {
    auto write = pool.dtype == BF16
                     ? (dtype == BF16 ? write_both<bf16, bf16> : write_both<bf16, float>)
                     : (dtype == BF16 ? write_both<float, bf16> : write_both<float, float>);
    write(pool, spans, keys, key_stride, values, value_stride);
}

bool attend(const Pool& pool, const Spans& spans, const Query& query, int threads) {
#ifdef STARAI_BF16_DOT
    using Narrow = Pairs;
#else
    using Narrow = Floats;
#endif
    auto run = pool.dtype == BF16 ? (query.dtype == BF16 ? attend_as<Narrow, bf16, bf16>
                                                         : attend_as<Floats, float, bf16>)
                                  : (query.dtype == BF16 ? attend_as<Floats, bf16, float>
                                                         : attend_as<Floats, float, float>);
    return run(pool, spans, query, threads);
}

const char* refuse(const Pool& pool, const Spans& spans, int64_t window, bool writes) {
    int64_t row = 0;
    for (int64_t s = 0; s < spans.spans; ++s) {
        int64_t start = spans.starts[s], count = spans.counts[s];
        if (start < 0 || count < 0 || row + count > spans.rows)
            return "starts and counts must not be negative and counts must add up to the rows";
        int64_t begin = INT64_MAX, end = 0;
        for (int64_t i = 0; i < count; ++i) {
            int64_t limit = limit_of(spans, s, row + i, i);
            begin = std::min(begin, window ? limit - window : 0);
            end = std::max(end, limit);
        }
        if (writes && count) begin = std::min(begin, start), end = std::max(end, start + count);
        if (end > spans.max_blocks * kBlockTokens) return "a span is longer than its block table";
        for (int64_t b = std::max<int64_t>(begin, 0) / kBlockTokens; b * kBlockTokens < end; ++b) {
            int32_t block = spans.tables[s * spans.max_blocks + b];
            if (block < 0 || block >= pool.blocks) return "a block table names a block outside the pool";
        }
        row += count;
    }
    return row == spans.rows ? nullptr : "counts must add up to the rows";
}

}  // namespace starai

extern "C" {

// Both return null, or why the arguments cannot be.
const char* starai_write_kv(const void* rows_k, int64_t key_stride, const void* rows_v,
                            int64_t value_stride, int64_t dtype, void* keys, void* values,
                            int64_t blocks, int64_t kv_heads, int64_t key_dim, int64_t value_dim,
                            int64_t pool_dtype, const int32_t* tables, const int32_t* starts,
                            const int32_t* counts, const int32_t* limits, int64_t spans,
                            int64_t max_blocks, int64_t rows) {
    starai::Pool pool{keys, values, blocks, kv_heads, key_dim, value_dim, pool_dtype};
    starai::Spans all{tables, starts, counts, limits, spans, max_blocks, rows};
    if (const char* reason = starai::refuse(pool, all, 1, true)) return reason;
    starai::write_kv(pool, all, rows_k, key_stride, rows_v, value_stride, dtype);
    return nullptr;
}

const char* starai_paged_attention(const void* query, int64_t stride, int64_t heads, int64_t dtype,
                                   void* keys, void* values, int64_t blocks, int64_t kv_heads,
                                   int64_t key_dim, int64_t value_dim, int64_t pool_dtype,
                                   const int32_t* tables, const int32_t* starts,
                                   const int32_t* counts, const int32_t* limits, int64_t spans,
                                   int64_t max_blocks, int64_t rows, double scale, int64_t window,
                                   double softcap, const float* sinks, void* out, float* lse,
                                   int64_t threads) {
    starai::Pool pool{keys, values, blocks, kv_heads, key_dim, value_dim, pool_dtype};
    starai::Spans all{tables, starts, counts, limits, spans, max_blocks, rows};
    if (const char* reason = starai::refuse(pool, all, window, false)) return reason;
    starai::Query asked{query, out,    lse,          sinks,         heads, stride,
                        dtype, window, float(scale), float(softcap)};
    return starai::attend(pool, all, asked, int(threads)) ? nullptr : "no memory for scratch";
}

}  // extern "C"
