// Dot products of a few rows of activations with four rows of weights: what `linear` is made of.
//
// Each of Int8Dots, Int4Dots, FloatDots and Bf16Dots is one kind of weight. `run<ROWS>` reads the
// weights once, along k, for ROWS rows that lie `x_stride` bytes apart. Which operations add up a
// sum, and in which order, does not depend on ROWS: a row's result is the same in any company.
#pragma once

#include "activations.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define STARAI_AVX512 1
#endif

namespace starai {

constexpr int64_t COLUMNS = 4;  // rows of weights, which are columns of y
constexpr int MAX_ROWS = 8;     // of activations

typedef float Four __attribute__((vector_size(16)));  // one row's results for four columns

// Four rows of weights; the last tile of a matrix repeats its last row instead of reading on.
struct Tile {
    const char* row[COLUMNS];
    const char* scale[COLUMNS];
    Four bias, factor;  // y = sum * factor + bias
    int64_t ahead;      // bytes from where a row is read to what should be fetched meanwhile
};

}  // namespace starai

#ifdef STARAI_AVX512
#include "dots_avx512.h"
#else
#include "dots_plain.h"
#endif
