// The machine's physical limits, measured: what no kernel can beat.
#include <chrono>
#include <cstring>

#include "common.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

double now_s() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

typedef int64_t wide __attribute__((vector_size(64)));

// Sums a slice. Lines are fetched into the second-level cache: the first can wait for too few at a
// time to keep memory busy.
int64_t sum(const char* data, size_t bytes) {
    wide total[4] = {};
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        for (int j = 0; j < 4; ++j) {
            __builtin_prefetch(data + i + 64 * j + 4096, 0, 2);
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

namespace {

constexpr int CHAINS = 16;  // enough to hide an instruction's latency, few enough for the registers

// Best rate of `repeats` runs of one multiply-add instruction on one thread, in operations a second.
template <class V, class Step>
double rate(int64_t repeats, double operations, Step step) {
    constexpr int64_t ROUNDS = 200000;
    double best_s = 1e30;
    for (int64_t r = 0; r < repeats; ++r) {
        V sum[CHAINS] = {}, a = {}, b = {};
        const double begin = now_s();
        for (int64_t i = 0; i < ROUNDS; ++i) {
#pragma GCC unroll 16
            for (int c = 0; c < CHAINS; ++c) {
                sum[c] = step(sum[c], a, b);
#if defined(__x86_64__)
                asm volatile("" : "+v"(sum[c]));  // else it would be seen to stay zero
#elif defined(__aarch64__)
                asm volatile("" : "+w"(sum[c]));
#endif
            }
        }
        const double took = now_s() - begin;
        if (took < best_s) best_s = took;
    }
    return double(ROUNDS) * CHAINS * operations / best_s;
}

#if defined(__AVX512F__)
typedef float floats __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float floats __attribute__((vector_size(32)));
#else
typedef float floats __attribute__((vector_size(16)));
#endif

double rate_of(int64_t kind, int64_t repeats) {
#ifdef __AVX512VNNI__
    if (kind == starai::W_INT8 || kind == starai::W_INT4)
        return rate<__m512i>(repeats, 128, [](__m512i s, __m512i a, __m512i b) {
            return _mm512_dpbusd_epi32(s, a, b);
        });
#endif
#ifdef __AVX512BF16__
    if (kind == starai::W_BF16)
        return rate<__m512>(repeats, 64, [](__m512 s, __m512 a, __m512 b) {
            return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b);
        });
#endif
    return rate<floats>(repeats, 2.0 * sizeof(floats) / 4,
                        [](floats s, floats a, floats b) { return s + a * b; });
}

}  // namespace

// What the multiply-add instruction for a `Kind` of weights reaches on all threads together, in
// operations a second, two to a multiply-add: no matrix multiplication can be faster.
extern "C" double starai_peak(int64_t kind, int64_t threads, int64_t repeats) {
    double total = 0;
#pragma omp parallel num_threads(int(threads)) reduction(+ : total)
    total += rate_of(kind, repeats);
    return total;
}
