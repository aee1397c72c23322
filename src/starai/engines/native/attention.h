// Attention over paged keys and values: what attention.cpp offers to the other kernels.
#pragma once
#include <vector>

#include "common.h"

namespace starai {

constexpr int64_t kBlockTokens = 16;  // tokens of a block: one vector of scores

// Pool of one layer: keys [heads, blocks, 16, key_dim] and values [heads, blocks, 16, value_dim].
struct Pool {
    void* keys;
    void* values;
    int64_t blocks, heads, key_dim, value_dim, dtype;
};

// Packed rows of a pass: span s is rows of one sequence, counts[s] of them one after the other, the
// first being token starts[s] of it; its blocks are tables[s][0 .. max_blocks). A negative start says
// that the rows only look, as their limits tell, and are not written.
struct Spans {
    const int32_t* tables;
    const int32_t* starts;
    const int32_t* counts;
    const int32_t* limits;  // null, or per row how many tokens it may see, in place of causality
    int64_t spans, max_blocks, rows;
};

struct Query {
    const void* query;   // [rows, heads, key_dim], rows `stride` elements apart
    void* out;           // [rows, heads, value_dim]
    float* lse;          // null, or [rows, heads]
    const float* sinks;  // null, or [heads]
    int64_t heads, stride, dtype;
    int64_t window;  // how many of the last tokens a row sees, itself included; 0 is all
    float scale, softcap;
};

// Why these spans cannot be, or null: tells what would lead a kernel outside its memory.
const char* refuse(const Pool& pool, const Spans& spans, int64_t window, bool writes);

// Where token i of a span's rows lies in its block's head: block * 16 + place. For rows to be written.
inline int64_t slot_of(const Spans& spans, int64_t span, int64_t i) {
    int64_t token = int64_t(spans.starts[span]) + i;
    int64_t block = spans.tables[span * spans.max_blocks + token / kBlockTokens];
    return block * kBlockTokens + token % kBlockTokens;
}

// The keys (or values) of a head at a slot, as elements from the beginning of the pool's tensor.
inline int64_t offset_of(const Pool& pool, int64_t head, int64_t slot, int64_t dim) {
    return (head * pool.blocks * kBlockTokens + slot) * dim;
}

// New rows' keys and values, to be put into the pool.
struct NewRows {
    const void* keys;  // [rows, heads, key_dim], rows `key_stride` elements apart
    const void* values;
    int64_t key_stride, value_stride, dtype;
};
void write_kv(const Pool& pool, const Spans& spans, const NewRows& rows);

// A tile: a key/value head and some rows of a span, with the tokens that any of them sees.
struct Task {
    int64_t span, head;
    int64_t first, count;  // rows of the span
    int64_t row;           // of the pass, the first one's
    int64_t begin, end;    // tokens
};

// A partition of a task's tokens, and where in shared memory its result waits for the others.
struct Part {
    int64_t task, begin;
    size_t at;
};

// Who attends to what. The same for all layers of a pass whose shapes and windows agree.
struct Plan {
    std::vector<Task> tasks;
    std::vector<Part> parts;  // empty unless there are too few tasks for the threads
    size_t shared_bytes = 0;
    int threads = 1;
    void make(const Pool& pool, const Spans& spans, const Query& query, int most_threads);
};

// Called by every thread of a team (or by one alone), with `shared_bytes` of memory they all see.
void attend(const Plan& plan, const Pool& pool, const Spans& spans, const Query& query,
            char* shared);

}  // namespace starai
