// Whole pre-norm decoder layers, several in one call, on packed rows. What a step of decoding costs
// besides reading the weights is meetings of threads: all layers run in one parallel region, with a
// barrier only where one part of a layer needs all of the part before.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "common.h"
#include "rows.h"

namespace starai {

// A layer's weights. Mirrors `layer._Layer` in Python field for field.
struct Layer {
    Weight qkv, out, gate_up, down;
    // Norms, float32, null where the layer has none: before attention, of each query head and key
    // head, of attention's result, before the feed-forward part, and of its result.
    const float *input_norm, *query_norm, *key_norm, *attention_norm, *inner_norm, *output_norm;
    const float* sinks;
    int64_t heads, kv_heads, head_dim, window, activation;
    int64_t rope;  // which of the given cosines and sines; negative is no rotation
    float eps, scale, softcap, norm_offset;
};

namespace {

// Multiplications of a layer below which a second thread is late.
constexpr int64_t kWorthThreads = 1 << 18;

struct Pass {
    const Layer* layers;
    const Pool* pools;
    int64_t first, last;
    void* hidden;
    int64_t dtype;
    const float *cosine, *sine;  // [ropes, rows, turned]
    int64_t turned;
    Spans spans;
    int threads;
    bool keys_only;  // of the one layer, whose keys and values are kept; hidden states stay
};

// What all threads of the team know: buffers between the parts, for the widest layer.
struct Desk {
    std::vector<Plan> plans;      // of attention, one a shape and window
    std::vector<int64_t> made_for;  // the layer that a plan was first made for
    std::vector<size_t> plan_of;  // a layer's plan
    std::vector<int64_t> slots;   // a row's place in the pool; negative: not written
    Scratch memory;
    char *normed, *qkv, *attended, *gate_up, *gated, *branch, *prepared, *shared;
};

Query query_of(const Layer& layer, const Desk& desk, int64_t dtype) {
    return {desk.qkv,     desk.attended, nullptr,      layer.sinks, layer.heads,
            layer.qkv.n,  dtype,         layer.window, layer.scale, layer.softcap};
}

bool same_shape(const Layer& a, const Layer& b) {
    return a.window == b.window && a.heads == b.heads && a.kv_heads == b.kv_heads &&
           a.head_dim == b.head_dim;
}

void plan_attention(const Pass& pass, Desk& desk) {
    std::vector<int64_t>& made = desk.made_for;
    made.clear();
    desk.plan_of.clear();
    for (int64_t i = pass.first; i < pass.last; ++i) {
        const Layer& layer = pass.layers[i];
        size_t p = 0;
        while (p < made.size() && !same_shape(pass.layers[made[p]], layer)) ++p;
        if (p == made.size()) {
            made.push_back(i);
            if (desk.plans.size() == p) desk.plans.emplace_back();
            desk.plans[p].make(pass.pools[i], pass.spans, query_of(layer, desk, pass.dtype),
                               pass.threads);
        }
        desk.plan_of.push_back(p);
    }
    desk.slots.clear();
    for (int64_t s = 0; s < pass.spans.spans; ++s)
        for (int64_t i = 0; i < pass.spans.counts[s]; ++i)
            desk.slots.push_back(pass.spans.starts[s] < 0 ? -1 : slot_of(pass.spans, s, i));
}

size_t prepared_of(const Weight& w, int64_t rows) {
    return (size_t(rows) + PIECE_ROWS - 1) / PIECE_ROWS * prepared_bytes(w, PIECE_ROWS);
}

void lay_out(const Pass& pass, Desk& desk) {
    int64_t qkv = 0, attended = 0, gate_up = 0, hidden = 0;
    size_t prepared = 0, shared = 0;
    const int64_t rows = pass.spans.rows;
    for (int64_t i = pass.first; i < pass.last; ++i) {
        const Layer& layer = pass.layers[i];
        qkv = std::max(qkv, layer.qkv.n);
        attended = std::max(attended, layer.out.k);
        gate_up = std::max(gate_up, layer.gate_up.n);
        hidden = layer.qkv.k;
        for (const Weight* w : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down})
            prepared = std::max(prepared, prepared_of(*w, rows));
        shared = std::max(shared, desk.plans[desk.plan_of[size_t(i - pass.first)]].shared_bytes);
    }
    const int64_t number = int64_t(dtype_bytes(int(pass.dtype))) * rows;
    size_t bytes = 0;
    for (bool measured : {false, true}) {
        Pieces pieces{measured ? room_in(desk.memory, bytes) : nullptr};
        desk.normed = pieces.take<char>(hidden * number);
        desk.qkv = pieces.take<char>(qkv * number);
        desk.attended = pieces.take<char>(attended * number);
        desk.gate_up = pieces.take<char>(gate_up * number);
        desk.gated = pieces.take<char>(gate_up / 2 * number);
        desk.branch = pieces.take<char>(hidden * number);
        desk.prepared = pieces.take<char>(int64_t(prepared));
        desk.shared = pieces.take<char>(int64_t(shared));
        bytes = pieces.used;
    }
}

// One thread of the team; X is the type of hidden states.
template <class X>
struct Worker {
    const Pass& pass;
    const Desk& desk;
    const int64_t rows = pass.spans.rows;
    const int threads = thread_count(), own = thread_id();
    const int64_t row_begin = rows * own / threads, row_end = rows * (own + 1) / threads;

    static void meet() {
#pragma omp barrier
    }

    void run() const {
        if (pass.keys_only) return keep_keys(pass.first);
        for (int64_t i = pass.first; i < pass.last; ++i) layer(i);
        add_branch(pass.layers[pass.last - 1].output_norm, pass.layers[pass.last - 1]);
    }

    void layer(int64_t i) const {
        const Layer& layer = pass.layers[i];
        if (i > pass.first) add_branch(pass.layers[i - 1].output_norm, pass.layers[i - 1]);
        normalise(layer.input_norm, layer);
        ready(layer.qkv, desk.normed);
        columns(layer.qkv, desk.normed, desk.qkv);
        meet();
        place_heads(layer, pass.pools[i], 0);
        meet();
        attend(desk.plans[desk.plan_of[size_t(i - pass.first)]], pass.pools[i], pass.spans,
               query_of(layer, desk, pass.dtype), desk.shared);
        if (wants_preparation(layer.out, rows)) ready(layer.out, desk.attended);
        columns(layer.out, desk.attended, desk.branch);
        meet();
        add_branch(layer.attention_norm, layer);
        normalise(layer.inner_norm, layer);
        ready(layer.gate_up, desk.normed);
        feed(layer);
        meet();
        if (wants_preparation(layer.down, rows)) ready(layer.down, desk.gated);
        columns(layer.down, desk.gated, desk.branch);
        meet();
    }

    void keep_keys(int64_t i) const {
        const Layer& layer = pass.layers[i];
        normalise(layer.input_norm, layer);
        ready(layer.qkv, desk.normed);
        const int64_t queries = layer.heads * layer.head_dim;
        int64_t begin, end;
        share(layer.qkv.n - queries, threads, own, &begin, &end);
        multiply_rows(layer.qkv, desk.normed, desk.qkv, queries + begin, queries + end);
        meet();
        place_heads(layer, pass.pools[i], layer.heads);
    }

    // Hidden states of this thread's rows take in what the last part gave.
    void add_branch(const float* norm, const Layer& layer) const {
        const int64_t n = layer.qkv.k;
        for (int64_t r = row_begin; r < row_end; ++r) {
            X* branch = reinterpret_cast<X*>(desk.branch) + r * n;
            if (norm) rms_norm(branch, norm, n, layer.eps, layer.norm_offset, branch);
            add(static_cast<X*>(pass.hidden) + r * n, branch, n);
        }
    }

    void normalise(const float* norm, const Layer& layer) const {
        const int64_t n = layer.qkv.k;
        for (int64_t r = row_begin; r < row_end; ++r) {
            const X* hidden = static_cast<const X*>(pass.hidden) + r * n;
            X* normed = reinterpret_cast<X*>(desk.normed) + r * n;
            if (norm)
                rms_norm(hidden, norm, n, layer.eps, layer.norm_offset, normed);
            else
                convert(hidden, n, normed);
        }
    }

    // This thread's rows as the weight wants them; afterwards all threads' are.
    void ready(const Weight& w, const char* x) const {
        for (int64_t p = 0; p < rows; p += PIECE_ROWS) {
            const int64_t begin = std::max(row_begin, p), end = std::min(row_end, p + PIECE_ROWS);
            if (begin < end)
                prepare(w, x + p * w.k * sizeof(X), int(pass.dtype), std::min(rows - p, PIECE_ROWS),
                        begin - p, end - p, prepared(w, p));
        }
        meet();
    }

    char* prepared(const Weight& w, int64_t row) const {
        return desk.prepared + size_t(row / PIECE_ROWS) * prepared_bytes(w, PIECE_ROWS);
    }

    void multiply_rows(const Weight& w, const char* x, char* y, int64_t begin, int64_t end) const {
        for (int64_t p = 0; p < rows; p += PIECE_ROWS)
            multiply(w, x + p * w.k * sizeof(X), int(pass.dtype), std::min(rows - p, PIECE_ROWS),
                     prepared(w, p), y + p * w.n * sizeof(X), w.n, begin, end);
    }

    void columns(const Weight& w, const char* x, char* y) const {
        int64_t begin, end;
        share(w.n, threads, own, &begin, &end);
        multiply_rows(w, x, y, begin, end);
    }

    // This thread's columns of gate and up, and what they make together.
    void feed(const Layer& layer) const {
        int64_t begin, end, n = layer.gate_up.n / 2;
        share(n, threads, own, &begin, &end);
        multiply_rows(layer.gate_up, desk.normed, desk.gate_up, begin, end);
        multiply_rows(layer.gate_up, desk.normed, desk.gate_up, n + begin, n + end);
        for (int64_t r = 0; r < rows; ++r) {
            const X* gate = reinterpret_cast<const X*>(desk.gate_up) + r * 2 * n + begin;
            X* out = reinterpret_cast<X*>(desk.gated) + r * n + begin;
            gated(gate, gate + n, end - begin, int(layer.activation), out);
        }
    }

    // Norm and rotation of heads from `first` on, new keys and values into the pool; heads are dealt
    // to threads.
    void place_heads(const Layer& layer, const Pool& pool, int64_t first) const {
        const int64_t all = layer.heads + 2 * layer.kv_heads, some = all - first;
        const int64_t begin = rows * some * own / threads, end = rows * some * (own + 1) / threads;
        for (int64_t item = begin; item < end; ++item) {
            const int64_t r = item / some, h = first + item % some;
            X* head = reinterpret_cast<X*>(desk.qkv) + (r * all + h) * layer.head_dim;
            if (h < layer.heads) {
                turn(layer, layer.query_norm, head, r);
            } else if (h < layer.heads + layer.kv_heads) {
                turn(layer, layer.key_norm, head, r);
                keep(pool, pool.keys, h - layer.heads, desk.slots[size_t(r)], head);
            } else {
                keep(pool, pool.values, h - layer.heads - layer.kv_heads, desk.slots[size_t(r)],
                     head);
            }
        }
    }

    void turn(const Layer& layer, const float* norm, X* head, int64_t r) const {
        if (norm) rms_norm(head, norm, layer.head_dim, layer.eps, layer.norm_offset, head);
        if (layer.rope < 0) return;
        const int64_t at = (layer.rope * rows + r) * pass.turned;
        rotate(head, pass.cosine + at, pass.sine + at, pass.turned / 2);
    }

    void keep(const Pool& pool, void* memory, int64_t h, int64_t slot, const X* head) const {
        if (slot < 0) return;
        const int64_t at = offset_of(pool, h, slot, pool.key_dim);
        if (pool.dtype == BF16)
            convert(head, pool.key_dim, static_cast<bf16*>(memory) + at);
        else
            convert(head, pool.key_dim, static_cast<float*>(memory) + at);
    }
};

template <class X>
void run_team(const Pass& pass, const Desk& desk) {
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1)
    Worker<X>{pass, desk}.run();
}

// Layers with as little work as a test's are done before a second thread has woken.
int threads_worth(const Pass& pass, int64_t most) {
    int64_t work = 0;
    for (int64_t i = pass.first; i < pass.last; ++i)
        for (const Weight* w : {&pass.layers[i].qkv, &pass.layers[i].out, &pass.layers[i].gate_up,
                                &pass.layers[i].down})
            work += w->n * w->k;
    return work * pass.spans.rows < kWorthThreads * (pass.last - pass.first) ? 1 : int(most);
}

}  // namespace
}  // namespace starai

extern "C" {

// Layers [first, last) on hidden [rows, width] in place; with `keys_only`, which is for one layer, its
// keys and values are kept and hidden stays. Null, or why the spans cannot be.
const char* starai_decoder_layers(const starai::Layer* layers, const starai::Pool* pools,
                                  int64_t first, int64_t last, void* hidden, int64_t dtype,
                                  const float* cosine, const float* sine, int64_t turned,
                                  const int32_t* tables, const int32_t* starts,
                                  const int32_t* counts, const int32_t* limits, int64_t spans,
                                  int64_t max_blocks, int64_t rows, int64_t threads,
                                  int64_t keys_only) {
    using namespace starai;
    Pass pass{layers, pools, first, last, hidden, dtype, cosine, sine, turned,
              {tables, starts, counts, limits, spans, max_blocks, rows}, 1, keys_only != 0};
    for (int64_t i = first; i < last; ++i)
        if (i == first || pools[i].blocks != pools[i - 1].blocks ||
            layers[i].window != layers[i - 1].window)
            if (const char* reason = refuse(pools[i], pass.spans, layers[i].window, true))
                return reason;
    if (first >= last || rows == 0) return nullptr;
    static thread_local Desk own;
    Desk& desk = own;  // this thread's, in the others too
    pass.threads = threads_worth(pass, threads);
    plan_attention(pass, desk);
    lay_out(pass, desk);
    if (dtype == BF16)
        run_team<bf16>(pass, desk);
    else
        run_team<float>(pass, desk);
    return nullptr;
}

// So that Python can check its mirror of the structs.
int64_t starai_layer_bytes() { return sizeof(starai::Layer); }

}  // extern "C"
