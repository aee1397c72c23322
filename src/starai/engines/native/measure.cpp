// The machine's physical limits, measured: what no kernel can beat.
#include <chrono>
#include <cstring>

#include "common.h"

namespace {

double now_s() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

typedef int64_t wide __attribute__((vector_size(64)));

// Sums a slice with several streams in flight, as a good kernel reads weights.
int64_t sum(const char* data, size_t bytes) {
    wide total[4] = {};
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        __builtin_prefetch(data + i + 4096);
        for (int j = 0; j < 4; ++j) {
            wide line;
            std::memcpy(&line, data + i + 64 * j, 64);
            total[j] += line;
        }
    }
    wide all = total[0] + total[1] + total[2] + total[3];
    int64_t result = 0;
    for (int j = 0; j < 8; ++j) result += all[j];
    return result;
}

}  // namespace

// Best of `repeats` reads of `bytes` (choose several times the last cache) by `threads`, in GB/s.
// Zero when there is no memory for it.
extern "C" double starai_read_bandwidth(int64_t bytes, int64_t threads, int64_t repeats) {
    size_t part = size_t(bytes) / size_t(threads) & ~size_t(4095);
    char* data = static_cast<char*>(std::aligned_alloc(4096, part * size_t(threads)));
    if (!data) return 0;
    double best_s = 1e30;
    volatile int64_t sink = 0;
#pragma omp parallel for schedule(static, 1) num_threads(int(threads))
    for (int64_t t = 0; t < threads; ++t) std::memset(data + size_t(t) * part, 1, part);
    for (int64_t r = 0; r < repeats; ++r) {
        double begin = now_s();
        int64_t total = 0;
#pragma omp parallel for schedule(static, 1) num_threads(int(threads)) reduction(+ : total)
        for (int64_t t = 0; t < threads; ++t) total += sum(data + size_t(t) * part, part);
        double took = now_s() - begin;
        sink = sink + total;
        if (took < best_s) best_s = took;
    }
    std::free(data);
    return double(part) * double(threads) / best_s / 1e9;
}
