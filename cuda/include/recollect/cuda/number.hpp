// SPDX-License-Identifier: BSD-3-Clause
/// Stored numbers: float32, float16 or bfloat16 in memory, float32 in arithmetic.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "recollect/core/dtype.hpp"

namespace recollect::cuda {

/// The nearest half, the even one of two; what is too large becomes infinite, NaN stays NaN.
template <class Half>
constexpr Half narrow(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if constexpr (dtype_of<Half> == dtype::bfloat16) {
    if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
  } else {
    if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and more
    if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 lets the sum's last bit be that of the result
      const std::uint32_t sum = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f);
      return {static_cast<std::uint16_t>(sign | (sum - 0x3f000000u))};
    }
    const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
    return {static_cast<std::uint16_t>(sign | rounded >> 13)};
  }
}

constexpr bool is_stored_type(dtype type) { return type == dtype::float32 || type == dtype::float16 || type == dtype::bfloat16; }

/// Calls f.template operator()<T>() for a type of storage. All threads of a block take the same way.
template <class F>
constexpr void visit_stored(dtype type, F&& f) {
  if (type == dtype::float16) return f.template operator()<float16>();
  if (type == dtype::bfloat16) return f.template operator()<bfloat16>();
  f.template operator()<float>();
}

template <class T>
constexpr float read(const void* data, index_t place) {
  return widen<float>(static_cast<const T*>(data)[place]);
}

template <class T = float>
constexpr float read(const void* data, dtype type, index_t place) {
  float value = 0;
  visit_stored(type, [&]<class Stored>() { value = read<Stored>(data, place); });
  return static_cast<T>(value);
}

template <class T>
constexpr void write(void* data, index_t place, float value) {
  if constexpr (std::is_same_v<T, float>)
    static_cast<float*>(data)[place] = value;
  else
    static_cast<T*>(data)[place] = narrow<T>(value);
}

template <class T = float>
constexpr void write(void* data, dtype type, index_t place, T value) {
  visit_stored(type, [&]<class Stored>() { write<Stored>(data, place, value); });
}

inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// Neither infinite nor NaN.
constexpr bool is_finite(float x) { return x - x == 0; }

inline constexpr float log2_e = 1.44269504088896340736f;
inline constexpr double ln_2 = 0.693147180559945309417;

}  // namespace recollect::cuda
