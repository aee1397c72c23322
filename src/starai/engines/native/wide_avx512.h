// Many rows of activations in AVX-512: a lane is a row, so that nothing is added up across lanes and
// weights are read as they lie, four bytes of a row at a time for all lanes.
//
// Integer sums are the very integers that dots find; bfloat16's products and int4's scaled sums of
// groups are added up in the order that dots add them up in: results are the same, bit for bit. Sums
// of float32 are not.
#pragma once

#include "dots_avx512.h"

namespace starai {

constexpr int64_t WIDE = 16;      // rows of a block
constexpr int WIDE_COLUMNS = 12;  // of a tile; with two blocks it has 24 sums in registers
constexpr int WIDE_BLOCKS = 2;

// Activations made ready: of each row its scale and sum; then blocks of 16 rows, in each 64 bytes
// with four bytes of every row after another; for int4 each block ends with its groups' offsets.
struct WideHead {
    float scale[PIECE_ROWS];
    int32_t sum[PIECE_ROWS];
};

inline size_t wide_block_bytes(int kind, int64_t k) {
    switch (kind) {
        case W_F32: return size_t(k) * 64;
        case W_BF16: return size_t(k) * 32;
        case W_INT8: return size_t(k) * 16;
        default: return size_t(k) * 16 + size_t(k / GROUP) * 64;
    }
}

inline size_t wide_bytes(int kind, int64_t k, int64_t m) {
    return sizeof(WideHead) + size_t(up(m, WIDE) / WIDE) * wide_block_bytes(kind, k);
}

// Whether `m` rows fill blocks well enough: blocks do a row in three quarters of the time of dots.
inline bool wide(int kind, int64_t k, int64_t m) {
    const int64_t columns = kind == W_F32 ? 1 : kind == W_BF16 ? 2 * LANES : 4;  // done at a time
    return m > MAX_ROWS && up(m, WIDE) * 3 <= m * 4 && k % columns == 0;
}

// Dots add into 16 lanes and then lanes in pairs, 0 to 2 and 1 to 3. Whoever does each lane to its
// end, in this order, has a short stack of unfinished pairs. (The order is its own inverse.)
inline int64_t in_turn(int64_t lane) {
    constexpr int64_t order[4] = {0, 2, 1, 3};
    return order[lane / 4] * 4 + order[lane % 4];
}

// Where bfloat16's pair p of k / 2 lies when every lane's pairs lie side by side, in that order.
inline int64_t place_of_pair(int64_t p, int64_t k) {
    return in_turn(p % LANES) * (k / (2 * LANES)) + p / LANES;
}

// 16 vectors of 16 rows become 16 rows of 16 vectors.
inline void transpose(__m512 (&v)[16]) {
    __m512 t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        UNROLL for (int j = 0; j < 2; ++j) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    UNROLL for (int j = 0; j < 4; ++j) {
        __m512 a = _mm512_shuffle_f32x4(v[j], v[4 + j], 0x88);
        __m512 b = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0x88);
        __m512 c = _mm512_shuffle_f32x4(v[j], v[4 + j], 0xdd);
        __m512 d = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0xdd);
        t[j] = _mm512_shuffle_f32x4(a, b, 0x88);
        t[8 + j] = _mm512_shuffle_f32x4(a, b, 0xdd);
        t[4 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
        t[12 + j] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Row r of m into its lane; `spare` holds k bytes.
inline void prepare_wide(int kind, const void* x, int dtype, int64_t k, int64_t m, int64_t r,
                         char* prepared, int8_t* spare) {
    auto* head = reinterpret_cast<WideHead*>(prepared);
    char* block = prepared + sizeof(WideHead) + size_t(r / WIDE) * wide_block_bytes(kind, k);
    const char* from = static_cast<const char*>(x);
    int64_t bytes = k * int64_t(dtype_bytes(dtype));
    if (kind >= W_INT8) {
        RowHeader header = quantise(x, dtype, k, spare);
        head->scale[r] = header.scale;
        head->sum[r] = header.sum;
        from = reinterpret_cast<const char*>(spare);
        bytes = k;
    }
    const int64_t lane = r % WIDE;
    for (int64_t i = 0; i < bytes; i += 4) {
        const int64_t at = kind == W_BF16 ? place_of_pair(i / 4, k) * 4 : i;
        std::memcpy(block + at * WIDE + lane * 4, from + i, 4);
    }
    if (kind == W_INT4) {
        auto* offsets = reinterpret_cast<int32_t*>(block + k * WIDE);
        for (int64_t g = 0; g < k / GROUP; ++g) {
            int32_t sum = 0;
            for (int64_t i = 0; i < GROUP; ++i) sum += spare[g * GROUP + i];
            offsets[g * WIDE + lane] = -8 * sum;
        }
    }
    if (r == m - 1 && lane != WIDE - 1)  // lanes without a row: anything but slow numbers
        for (int64_t i = 0; i < bytes; i += 4)
            std::memset(block + i * WIDE + lane * 4 + 4, 0, size_t(WIDE - 1 - lane) * 4);
}

// Sixteen rows of bfloat16 from row r on, a multiple of 16, into their lanes at once.
inline void prepare_wide_bf16(const void* x, int64_t k, int64_t r, char* prepared) {
    char* block = prepared + sizeof(WideHead) + size_t(r / WIDE) * wide_block_bytes(W_BF16, k);
    const char* from = static_cast<const char*>(x);
    const int64_t turns = k / (2 * LANES);
    for (int64_t t = 0; t < turns; ++t) {
        __m512 v[16];
        UNROLL for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_ps(from + i * k * 2 + t * 64);
        transpose(v);
        UNROLL for (int i = 0; i < 16; ++i)
            _mm512_store_ps(block + (in_turn(i) * turns + t) * 64, v[i]);
    }
}

struct WideInt8 {
    using Sum = __m512i;
    INLINE static __m512i spread(const char* four) {  // plus 128: unsigned for dpbusd
        int32_t bits;
        std::memcpy(&bits, four, 4);
        return _mm512_xor_si512(_mm512_set1_epi32(bits), _mm512_set1_epi8(int8_t(0x80)));
    }
    INLINE static void add(Sum& sum, __m512i v, __m512i a) { add_products(sum, v, a); }
    static __m512 value(Sum sum, const int32_t* row_sums) {
        __m512i excess = _mm512_slli_epi32(_mm512_loadu_si512(row_sums), 7);
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, excess));
    }
};

struct WideBf16 {
    using Sum = __m512;
    INLINE static __m512i spread(const char* four) {
        int32_t bits;
        std::memcpy(&bits, four, 4);
        return _mm512_set1_epi32(bits);
    }
    INLINE static void add(Sum& sum, __m512i v, __m512i a) { add_products(sum, v, a); }
    static __m512 value(Sum sum, const int32_t*) { return sum; }
};

struct WideFloat : WideBf16 {
    INLINE static void add(Sum& sum, __m512i v, __m512i a) {
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(v), _mm512_castsi512_ps(a), sum);
    }
};

typedef __m512 WideSums[WIDE_COLUMNS][WIDE_BLOCKS];

// Twelve rows of weights, `bytes` each and one after another, by blocks of activations.
template <class Kind, int BLOCKS>
__attribute__((noinline)) void wide_sums(const char* weights, int64_t bytes, const char* x,
                                         size_t block, const int32_t* row_sums, WideSums& out) {
    typename Kind::Sum sum[WIDE_COLUMNS][BLOCKS];
    __m512i a[BLOCKS];
    UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c)
        UNROLL for (int b = 0; b < BLOCKS; ++b) sum[c][b] = typename Kind::Sum{};
    const char* every_third[WIDE_COLUMNS / 3];  // what the others are told from by one addition
    UNROLL for (int c = 0; c < WIDE_COLUMNS; c += 3) every_third[c / 3] = weights + c * bytes;
    const char* next = weights + WIDE_COLUMNS * bytes;
    for (int64_t i = 0; i < bytes; i += 4) {
        fetch(next + i * WIDE_COLUMNS);
        UNROLL for (int b = 0; b < BLOCKS; ++b)
            a[b] = _mm512_load_si512(x + size_t(b) * block + i * WIDE);
        UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c) {
            const __m512i v = Kind::spread(every_third[c / 3] + c % 3 * bytes + i);
            UNROLL for (int b = 0; b < BLOCKS; ++b) Kind::add(sum[c][b], v, a[b]);
        }
    }
    UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c)
        UNROLL for (int b = 0; b < BLOCKS; ++b)
            out[c][b] = Kind::value(sum[c][b], row_sums + b * WIDE);
}

// bfloat16: twelve rows of weights, `stride` bytes apart, in the order of `place_of_pair`, as
// activations are. The next tile's rows, which lie at `next` one after another, are fetched meanwhile.
template <int BLOCKS>
__attribute__((noinline)) void wide_bf16_sums(const char* weights, int64_t stride, int64_t k,
                                              const char* next, const char* x, size_t block,
                                              WideSums& out) {
    const int64_t lane_bytes = k * 2 / LANES;
    __m512 stack[5][WIDE_COLUMNS][BLOCKS];
    for (int64_t n = 0; n < LANES; ++n, weights += lane_bytes, x += lane_bytes * WIDE) {
        __m512 sum[WIDE_COLUMNS][BLOCKS];
        __m512i a[BLOCKS];
        UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c)
            UNROLL for (int b = 0; b < BLOCKS; ++b) sum[c][b] = _mm512_setzero_ps();
        const char* every_third[WIDE_COLUMNS / 3];
        UNROLL for (int c = 0; c < WIDE_COLUMNS; c += 3) every_third[c / 3] = weights + c * stride;
        for (int64_t i = 0; i < lane_bytes; i += 4, next += 4 * WIDE_COLUMNS) {
            fetch(next);
            UNROLL for (int b = 0; b < BLOCKS; ++b)
                a[b] = _mm512_load_si512(x + size_t(b) * block + i * WIDE);
            UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c) {
                const __m512i v = WideBf16::spread(every_third[c / 3] + c % 3 * stride + i);
                UNROLL for (int b = 0; b < BLOCKS; ++b) add_products(sum[c][b], v, a[b]);
            }
        }
        int level = 0;
        for (int64_t finished = n; finished & 1; finished >>= 1, ++level)
            UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c)
                UNROLL for (int b = 0; b < BLOCKS; ++b)
                    sum[c][b] = _mm512_add_ps(sum[c][b], stack[level][c][b]);
        UNROLL for (int c = 0; c < WIDE_COLUMNS; ++c)
            UNROLL for (int b = 0; b < BLOCKS; ++b) stack[level][c][b] = sum[c][b];
    }
    for (int c = 0; c < WIDE_COLUMNS; ++c)
        for (int b = 0; b < BLOCKS; ++b) out[c][b] = stack[4][c][b];
}

// int4, half a tile: six rows of weights unpacked to bytes in the packed order, with their scales.
constexpr int HALF = WIDE_COLUMNS / 2;

template <int BLOCKS>
__attribute__((noinline)) void wide_int4_sums(const char* weights, const float* scales, int64_t k,
                                              const char* x, size_t block, __m512 (*out)[WIDE_BLOCKS]) {
    const int64_t groups = k / GROUP;
    // A chunk's 16 groups are dots' 16 lanes.
    __m512 stack[5][HALF][BLOCKS];
    for (int64_t n = 0; n < LANES; ++n) {
        const int64_t lane = in_turn(n);
        __m512 sum[HALF][BLOCKS];
        UNROLL for (int c = 0; c < HALF; ++c)
            UNROLL for (int b = 0; b < BLOCKS; ++b) sum[c][b] = _mm512_setzero_ps();
        for (int64_t g = lane; g < groups; g += LANES) {
            const int64_t first = g - lane;
            const int64_t step = 4 * (groups - first < LANES ? groups - first : LANES);
            const char* v = weights + first * GROUP + lane * 4;
            const char* at = x + g * GROUP * WIDE;
            __m512i dot[HALF][BLOCKS], a[BLOCKS];
            UNROLL for (int b = 0; b < BLOCKS; ++b) {
                a[b] = _mm512_load_si512(x + size_t(b) * block + k * WIDE + g * 64);
                UNROLL for (int c = 0; c < HALF; ++c) dot[c][b] = a[b];
            }
            for (int64_t t = 0; t < 8; ++t, v += step, at += 64) {
                UNROLL for (int b = 0; b < BLOCKS; ++b)
                    a[b] = _mm512_load_si512(at + size_t(b) * block);
                UNROLL for (int c = 0; c < HALF; ++c) {
                    const __m512i four = WideBf16::spread(v + c * k);
                    UNROLL for (int b = 0; b < BLOCKS; ++b) add_products(dot[c][b], four, a[b]);
                }
            }
            UNROLL for (int c = 0; c < HALF; ++c) {
                const __m512 scale = _mm512_set1_ps(scales[c * groups + g]);
                UNROLL for (int b = 0; b < BLOCKS; ++b)
                    sum[c][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[c][b]), scale, sum[c][b]);
            }
        }
        int level = 0;
        for (int64_t finished = n; finished & 1; finished >>= 1, ++level)
            UNROLL for (int c = 0; c < HALF; ++c)
                UNROLL for (int b = 0; b < BLOCKS; ++b)
                    sum[c][b] = _mm512_add_ps(sum[c][b], stack[level][c][b]);
        UNROLL for (int c = 0; c < HALF; ++c)
            UNROLL for (int b = 0; b < BLOCKS; ++b) stack[level][c][b] = sum[c][b];
    }
    for (int c = 0; c < HALF; ++c)
        for (int b = 0; b < BLOCKS; ++b) out[c][b] = stack[4][c][b];
}

// One row of int4 weights into bytes of the same order, and its scales into floats.
inline void unpack(const char* packed, const char* halves, int64_t k, char* bytes, float* scales) {
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int64_t first = 0; first < k; first += CHUNK) {
        const int64_t half = (k - first < CHUNK ? k - first : CHUNK) / 2;
        for (int64_t i = 0; i < half; i += 64) {
            const __mmask64 mask = columns_left(i, half, 64);
            __m512i both = _mm512_maskz_loadu_epi8(mask, packed + first / 2 + i);
            __m512i high = _mm512_srli_epi16(both, 4);
            _mm512_mask_storeu_epi8(bytes + first + i, mask, _mm512_and_si512(both, nibble));
            _mm512_mask_storeu_epi8(bytes + first + half + i, mask, _mm512_and_si512(high, nibble));
        }
    }
    for (int64_t g = 0; g < k / GROUP; g += 16) {
        const __mmask16 mask = __mmask16(columns_left(g, k / GROUP, 16));
        __m256i some = _mm256_maskz_loadu_epi16(mask, halves + 2 * g);
        _mm512_mask_storeu_ps(scales + g, mask, _mm512_cvtph_ps(some));
    }
}

// One row of bfloat16 weights in the order of `place_of_pair`.
inline void put_in_order(const char* row, int64_t k, char* to) {
    const int64_t turns = k / (2 * LANES);
    int64_t t = 0;
    for (; t + 16 <= turns; t += 16) {
        __m512 v[16];
        UNROLL for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_ps(row + (t + i) * 64);
        transpose(v);
        UNROLL for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + (in_turn(i) * turns + t) * 4, v[i]);
    }
    for (int64_t p = t * LANES; p < turns * LANES; ++p)
        std::memcpy(to + place_of_pair(p, k) * 4, row + p * 4, 4);
}

}  // namespace starai
