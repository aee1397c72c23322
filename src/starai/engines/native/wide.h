// Linear layers on many rows (wide_avx512.h): tiles of twelve columns, all rows of each.
#pragma once

#include "wide_avx512.h"

namespace starai {

class Wide {
  public:
    Wide(const Weight& w, const void* prepared, int64_t m, void* y, int64_t ldy, int dtype)
        : w_(w), row_(weight_row_bytes(w)), ordered_(row_ + 64),
          block_(wide_block_bytes(w.kind, w.k)), m_(m), ldy_(ldy),
          head_(static_cast<const WideHead*>(prepared)),
          x_(static_cast<const char*>(prepared) + sizeof(WideHead)), y_(static_cast<char*>(y)),
          dtype_(dtype) {}

    void columns(int64_t begin, int64_t end) const {
        for (int64_t column = begin; column < end; column += WIDE_COLUMNS) {
            // The last tile starts early enough to be whole, and keeps what is not its own to itself.
            int64_t first = column + WIDE_COLUMNS > w_.n ? w_.n - WIDE_COLUMNS : column;
            if (first < 0) first = 0;
            const int64_t skipped = column - first;
            int64_t count = WIDE_COLUMNS - skipped < w_.n - column ? WIDE_COLUMNS - skipped : w_.n - column;
            if (count > end - column) count = end - column;
            tile(first, __mmask16(((1u << count) - 1) << skipped));
        }
    }

  private:
    void tile(int64_t first, __mmask16 mask) const {
        static thread_local Scratch scratch;
        float bias[16] = {}, factor[16];
        for (int64_t c = 0; c < WIDE_COLUMNS; ++c) {
            const int64_t n = first + c < w_.n ? first + c : w_.n - 1;
            if (w_.bias) bias[c] = element(w_.bias, w_.bias_dtype, n);
            factor[c] = w_.kind == W_INT8 ? static_cast<const float*>(w_.scale)[n] : 1.0f;
        }
        const char* weights = static_cast<const char*>(w_.data) + size_t(first) * row_;
        const float* scales = nullptr;
        const char* next = weights + WIDE_COLUMNS * row_;
        if (w_.kind == W_INT4 || w_.kind == W_BF16 || w_.n < WIDE_COLUMNS)
            weights = gather(scratch, first, &scales);
        for (int64_t row = 0; row < m_; row += WIDE_BLOCKS * WIDE) {
            WideSums sums;
            const int blocks = m_ - row > WIDE ? 2 : 1;
            if (blocks == 2)
                some<2>(weights, scales, next, row, sums);
            else
                some<1>(weights, scales, next, row, sums);
            for (int b = 0; b < blocks; ++b)
                store(sums, b, row + b * WIDE, first, mask, _mm512_loadu_ps(factor), _mm512_loadu_ps(bias));
        }
    }

    // A tile's weights where they are not usable as they lie: packed, in another order, or too few.
    const char* gather(Scratch& scratch, int64_t first, const float** scales) const {
        const size_t row = w_.kind == W_INT4 ? size_t(w_.k) : w_.kind == W_BF16 ? ordered_ : row_;
        const size_t groups = size_t(w_.k / GROUP);
        char* bytes = static_cast<char*>(scratch.get(WIDE_COLUMNS * (row + groups * 4)));
        auto* floats = reinterpret_cast<float*>(bytes + WIDE_COLUMNS * row);
        for (int64_t c = 0; c < WIDE_COLUMNS; ++c) {
            const size_t n = size_t(first + c < w_.n ? first + c : w_.n - 1);
            const char* from = static_cast<const char*>(w_.data) + n * row_;
            if (w_.kind == W_INT4)
                unpack(from, static_cast<const char*>(w_.scale) + n * groups * 2, w_.k,
                       bytes + size_t(c) * row, floats + size_t(c) * groups);
            else if (w_.kind == W_BF16)
                put_in_order(from, w_.k, bytes + size_t(c) * row);
            else
                std::memcpy(bytes + size_t(c) * row, from, row_);
        }
        *scales = floats;
        return bytes;
    }

    template <int BLOCKS>
    void some(const char* weights, const float* scales, const char* next, int64_t row,
              WideSums& sums) const {
        const char* x = x_ + size_t(row / WIDE) * block_;
        const int32_t* row_sums = head_->sum + row;
        switch (w_.kind) {
            case W_F32:
                return wide_sums<WideFloat, BLOCKS>(weights, int64_t(row_), x, block_, row_sums, sums);
            case W_BF16:
                return wide_bf16_sums<BLOCKS>(weights, int64_t(ordered_), w_.k, next, x, block_, sums);
            case W_INT8:
                return wide_sums<WideInt8, BLOCKS>(weights, int64_t(row_), x, block_, row_sums, sums);
            default:
                for (int h = 0; h < WIDE_COLUMNS; h += HALF)
                    wide_int4_sums<BLOCKS>(weights + h * w_.k, scales + h * (w_.k / GROUP), w_.k, x,
                                           block_, sums + h);
        }
    }

    void store(const WideSums& sums, int block, int64_t row, int64_t first, __mmask16 mask,
               __m512 factor, __m512 bias) const {
        __m512 value[16];
        UNROLL for (int c = 0; c < 16; ++c)
            value[c] = c < WIDE_COLUMNS ? sums[c][block] : _mm512_setzero_ps();
        transpose(value);
        const int64_t count = m_ - row < WIDE ? m_ - row : WIDE;
        for (int64_t r = 0; r < count; ++r) {
            const __m512 own = w_.kind >= W_INT8 ? _mm512_set1_ps(head_->scale[row + r]) : _mm512_set1_ps(1);
            const __m512 result = _mm512_fmadd_ps(value[r], _mm512_mul_ps(own, factor), bias);
            char* to = y_ + size_t((row + r) * ldy_ + first) * dtype_bytes(dtype_);
            if (dtype_ == F32)
                _mm512_mask_storeu_ps(to, mask, result);
            else
                _mm256_mask_storeu_epi16(to, mask, narrow(result));
        }
    }

    const Weight& w_;
    size_t row_;
    size_t ordered_;  // of a gathered bfloat16 row: no power of two, which would share cache sets
    size_t block_;
    int64_t m_, ldy_;
    const WideHead* head_;
    const char* x_;
    char* y_;
    int dtype_;
};

}  // namespace starai
