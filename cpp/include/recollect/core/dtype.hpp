// SPDX-License-Identifier: BSD-3-Clause
/// Element types as run-time values, the way back from a value to a C++ type, and the two half-width storage types.
#pragma once

#include <bit>
#include <cstdint>

namespace recollect {

using index_t = std::int64_t;

/// Storage only: arithmetic on stored halves is done in float32.
struct float16 {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
};

enum class dtype : std::int8_t { float32, float64, float16, bfloat16, boolean, int64, none };

inline const char* name(dtype type) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16", "bool", "int64", "none"};
  return names[static_cast<int>(type)];
}

constexpr index_t bytes_of(dtype type) {
  constexpr index_t sizes[] = {4, 8, 2, 2, 1, 8, 0};
  return sizes[static_cast<int>(type)];
}

template <class T>
inline constexpr dtype dtype_of = dtype::none;
template <>
inline constexpr dtype dtype_of<float> = dtype::float32;
template <>
inline constexpr dtype dtype_of<double> = dtype::float64;
template <>
inline constexpr dtype dtype_of<float16> = dtype::float16;
template <>
inline constexpr dtype dtype_of<bfloat16> = dtype::bfloat16;
template <>
inline constexpr dtype dtype_of<bool> = dtype::boolean;
template <>
inline constexpr dtype dtype_of<index_t> = dtype::int64;

/// The numbers that arithmetic is done in. `visit_arithmetic(type, f)` calls f.template operator()<T>() for the one that fits.
template <class F>
decltype(auto) visit_arithmetic(dtype type, F&& f) {
  if (type == dtype::float64) return f.template operator()<double>();
  return f.template operator()<float>();
}

template <class T>
constexpr T widen(T value) {
  return value;
}

template <class T>
constexpr T widen(bfloat16 value) {
  return static_cast<T>(std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16));
}

/// IEEE binary16 to float32 without branches: the exponent is moved by one multiplication, which also makes subnormals right;
/// infinities and NaN (all exponent bits set) are patched by widening their exponent.
template <class T>
constexpr T widen(float16 value) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return static_cast<T>(std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | special | sign));
}

}  // namespace recollect
