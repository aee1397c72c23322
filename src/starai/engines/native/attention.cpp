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

#include "tile.h"

namespace starai {
namespace {

constexpr int64_t kPartition = 1024;        // tokens; a multiple of a chunk
constexpr int64_t kTileRows = 64;           // query rows that share a packed chunk
constexpr int64_t kWorthThreads = 1 << 18;  // multiplications below which a second thread is late

int64_t after(int64_t token) { return (token / kPartition + 1) * kPartition; }

// A call, with the types of its numbers settled.
template <class Math, class Q, class T>
struct Run {
    const Plan& plan;
    const Pool& pool;
    const Spans& spans;
    const Query& query;

    Pieces room(Tile<Math>& tile) const {
        static thread_local Scratch memory;
        Pieces measure;
        tile.lay_out(measure);
        tile.lay_out_partial(measure);
        return Pieces{room_in(memory, measure.used)};
    }

    void whole(const Task& task) const {
        Tile<Math> tile{pool, spans, query, task};
        Pieces pieces = room(tile);
        tile.lay_out(pieces);
        Partial total = tile.partial, next = tile.lay_out_partial(pieces);
        tile.template take_queries<Q>();
        int64_t at = task.begin;
        do {
            tile.template attend<T>(at, std::min(task.end, after(at)));
            if (at != task.begin) tile.merge(total, next);
            tile.partial = next;
            at = after(at);
        } while (at < task.end);
        tile.template finish<Q>(total);
    }

    void part(const Part& part, char* shared) const {
        const Task& task = plan.tasks[size_t(part.task)];
        Tile<Math> tile{pool, spans, query, task};
        Pieces pieces = room(tile), place{shared, part.at};
        tile.lay_out(pieces);
        tile.partial = tile.lay_out_partial(place);
        tile.template take_queries<Q>();
        tile.template attend<T>(part.begin, std::min(task.end, after(part.begin)));
    }

    // The parts of a task lie one after the other.
    void join(const Part& first, char* shared) const {
        const Task& task = plan.tasks[size_t(first.task)];
        Tile<Math> tile{pool, spans, query, task};
        Pieces place{shared, first.at};
        Partial total = tile.lay_out_partial(place);
        for (int64_t at = after(task.begin); at < task.end; at = after(at))
            tile.merge(total, tile.lay_out_partial(place));
        tile.template finish<Q>(total);
    }

    // The loops are shared by the threads of the team that calls, if one does.
    void operator()(char* shared) const {
        int64_t count = int64_t(plan.parts.empty() ? plan.tasks.size() : plan.parts.size());
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; ++i)
            if (plan.parts.empty())
                whole(plan.tasks[size_t(i)]);
            else
                part(plan.parts[size_t(i)], shared);
        if (plan.parts.empty()) return;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; ++i) {
            const Part& first = plan.parts[size_t(i)];
            if (first.begin == plan.tasks[size_t(first.task)].begin) join(first, shared);
        }
    }
};

template <class T, class Q>
void copy_rows(const Pool& pool, const Spans& spans, void* memory, int64_t dim, const void* rows,
               int64_t stride) {
    const Q* row = static_cast<const Q*>(rows);
    for (int64_t s = 0; s < spans.spans; ++s)
        for (int64_t i = 0; i < spans.counts[s]; ++i, row += stride) {
            if (spans.starts[s] < 0) continue;
            int64_t slot = slot_of(spans, s, i);
            for (int64_t h = 0; h < pool.heads; ++h)
                convert(row + h * dim, dim, static_cast<T*>(memory) + offset_of(pool, h, slot, dim));
        }
}

template <class T, class Q>
void write_both(const Pool& pool, const Spans& spans, const NewRows& rows) {
    copy_rows<T, Q>(pool, spans, pool.keys, pool.key_dim, rows.keys, rows.key_stride);
    copy_rows<T, Q>(pool, spans, pool.values, pool.value_dim, rows.values, rows.value_stride);
}

template <class Math, class Q, class T>
void attend_as(const Plan& plan, const Pool& pool, const Spans& spans, const Query& query,
               char* shared) {
    Run<Math, Q, T>{plan, pool, spans, query}(shared);
}

}  // namespace

// Tiles of every span and head, those that see most first: the last one decides when all are done.
void Plan::make(const Pool& pool, const Spans& spans, const Query& query, int most_threads) {
    int64_t group = query.heads / pool.heads, per_tile = std::max<int64_t>(1, kTileRows / group);
    int64_t work = 0, longest = 0;
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
            longest = std::max(longest, task.end - task.begin);
        }
    }
    threads = work * (pool.key_dim + pool.value_dim) < kWorthThreads ? 1 : most_threads;
    parts.clear();
    shared_bytes = 0;
    if (threads == 1 || int64_t(tasks.size()) >= 2 * threads || longest <= kPartition) return;
    for (size_t t = 0; t < tasks.size(); ++t) {
        int64_t at = tasks[t].begin;
        do {
            parts.push_back({int64_t(t), at, shared_bytes});
            shared_bytes += partial_bytes(tasks[t].count * group, up(pool.value_dim, kLanes));
            at = after(at);
        } while (at < tasks[t].end);
    }
}

void write_kv(const Pool& pool, const Spans& spans, const NewRows& rows) {
    auto write = pool.dtype == BF16
                     ? (rows.dtype == BF16 ? write_both<bf16, bf16> : write_both<bf16, float>)
                     : (rows.dtype == BF16 ? write_both<float, bf16> : write_both<float, float>);
    write(pool, spans, rows);
}

void attend(const Plan& plan, const Pool& pool, const Spans& spans, const Query& query,
            char* shared) {
#ifdef STARAI_BF16_DOT
    using Narrow = Pairs;
#else
    using Narrow = Floats;
#endif
    auto run = pool.dtype == BF16 ? (query.dtype == BF16 ? attend_as<Narrow, bf16, bf16>
                                                         : attend_as<Floats, float, bf16>)
                                  : (query.dtype == BF16 ? attend_as<Floats, bf16, float>
                                                         : attend_as<Floats, float, float>);
    run(plan, pool, spans, query, shared);
}

const char* refuse(const Pool& pool, const Spans& spans, int64_t window, bool writes) {
    int64_t row = 0;
    for (int64_t s = 0; s < spans.spans; ++s) {
        int64_t start = spans.starts[s], count = spans.counts[s];
        bool looks = start < 0 && spans.limits;  // and is not written
        if ((start < 0 && !looks) || count < 0 || row + count > spans.rows)
            return "starts and counts must not be negative and counts must add up to the rows";
        int64_t begin = INT64_MAX, end = 0;
        for (int64_t i = 0; i < count; ++i) {
            int64_t limit = limit_of(spans, s, row + i, i);
            begin = std::min(begin, window ? limit - window : 0);
            end = std::max(end, limit);
        }
        if (writes && count && !looks) begin = std::min(begin, start), end = std::max(end, start + count);
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
    starai::write_kv(pool, all, {rows_k, rows_v, key_stride, value_stride, dtype});
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
    static thread_local starai::Plan plan;
    static thread_local starai::Scratch memory;
    plan.make(pool, all, asked, int(threads));
    const starai::Plan& made = plan;  // this thread's, in the others too
    char* shared = starai::room_in(memory, made.shared_bytes);
#pragma omp parallel num_threads(made.threads) if (made.threads > 1)
    starai::attend(made, pool, all, asked, shared);
    return nullptr;
}

}  // extern "C"
