// One number at a time between the formats that tensors come in.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace starai {

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bf16(uint16_t value) { return float_of_bits(uint32_t(value) << 16); }

// Round to nearest, ties to even, as torch does; what is no number stays so.
inline uint16_t to_bf16(float value) {
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_half(uint16_t value) {
    uint32_t sign = uint32_t(value & 0x8000) << 16, rest = value & 0x7fff;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // Shifted into place the exponent is too small by 112; this also makes subnormals right.
    return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}

inline float element(const void* data, int dtype, int64_t i) {
    return dtype == BF16 ? from_bf16(static_cast<const uint16_t*>(data)[i])
                         : static_cast<const float*>(data)[i];
}

}  // namespace starai
