// Attention over paged keys and values: what attention.cpp offers to the other kernels.
#pragma once
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
// first being token starts[s] of it; its blocks are tables[s][0 .. max_blocks).
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

// Rows of keys and values, each row's heads one after the other, into the pool.
void write_kv(const Pool& pool, const Spans& spans, const void* keys, int64_t key_stride,
              const void* values, int64_t value_stride, int64_t dtype);

bool attend(const Pool& pool, const Spans& spans, const Query& query, int threads);

// Null, or why these spans cannot be: what a kernel would otherwise read or write outside its memory.
const char* refuse(const Pool& pool, const Spans& spans, int64_t window, bool writes);

}  // namespace starai
