// SPDX-License-Identifier: BSD-3-Clause
/// Products of 16-bit numbers by one warp, as fast_weight_chunk.hpp has them: operands out of sums and out of tiles.
#pragma once

#include <bit>
#include <cmath>

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/half_tile.hpp"
#include "recollect/cuda/number.hpp"
#include "recollect/cuda/tensor_tile.hpp"

namespace recollect::cuda {

template <class Thread>
constexpr int lane_of(const Thread& thread) {
  return thread.index() % warp_size;
}

/// An operand of 16 x 16, and sums of 16 x 8, as a lane holds them (tensor_tile.hpp).
using Words = std::uint32_t[4];
using Sums = float[4];

/// Two pieces of a product as a left operand.
template <class T, class Thread>
constexpr void round(const Thread& thread, const Sums& left, const Sums& right, float factor, Words& words) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const Sums& from = w < 2 ? left : right;
    words[w] = thread.template rounded<T>(from[w % 2 * 2] * factor, from[w % 2 * 2 + 1] * factor);
  }
}

/// sums (16 x 16) += a . (a tile's 16 x 16)
template <class T, bool flip, class Thread>
constexpr void add(const Thread& thread, const Words& a, std::uint32_t tile, Sums& left, Sums& right) {
  Words b;
  thread.template matrices<flip>(b, tile);
  thread.template multiply<T>(left, a, b[0], b[1]);
  thread.template multiply<T>(right, a, b[2], b[3]);
}

/// Number i of a word.
template <class T>
constexpr float half_of(std::uint32_t word, int i) {
  return widen<float>(T{static_cast<std::uint16_t>(word >> 16 * i)});
}

/// What a pair of numbers is in 16 bits, and what these leave.
template <class T, class Thread>
constexpr void split(const Thread& thread, float low, float high, std::uint32_t (&words)[2]) {
  words[0] = thread.template rounded<T>(low, high);
  words[1] = thread.template rounded<T>(low - half_of<T>(words[0], 0), high - half_of<T>(words[0], 1));
}

/// The same of two pieces of a product, as left operands.
template <class T, class Thread>
constexpr void split(const Thread& thread, const Sums& left, const Sums& right, Words& words, Words& rest) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const Sums& from = w < 2 ? left : right;
    std::uint32_t both[2] = {};
    split<T>(thread, from[w % 2 * 2], from[w % 2 * 2 + 1], both);
    words[w] = both[0], rest[w] = both[1];
  }
}

/// A power of two and its inverse: `down` brings a number near 1, `up` back.
struct Fit {
  float down = 1, up = 1;
};

template <class T>
constexpr Fit fit(float largest) {
  if constexpr (dtype_of<T> == dtype::bfloat16) return {};
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(largest) >> 23;
  if (exponent == 0 || exponent > 253) return {};
  return {std::bit_cast<float>((254u - exponent) << 23), std::bit_cast<float>(exponent << 23)};
}

template <class T, class Thread, int count>
constexpr Fit fit_of(const Thread& thread, const Sums (&numbers)[count]) {
  float largest = 0;
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = std::fmax(largest, std::fabs(numbers[n][i]));
  return fit<T>(largest_of_lanes<warp_size>(thread, largest));
}

/// Numbers of float32 as two of float16, head and rest, which together miss a number by 2^-22 of it and 2^-25 at most. Where the largest is
/// brought to 2^14 ... 2^15 first, numbers down to 2^-17 of it have 22 bits, and smaller ones miss by 2^-40 of the largest.

/// The nearest number of 11 bits.
constexpr float head(float x) { return std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) + 0x1000u) & 0xffffe000u); }

template <class Thread>
constexpr void split_heads(const Thread& thread, float low, float high, std::uint32_t (&words)[2]) {
  const float heads[2] = {head(low), head(high)};
  words[0] = thread.template rounded<float16>(heads[0], heads[1]);
  words[1] = thread.template rounded<float16>(low - heads[0], high - heads[1]);
}

/// The same of two pieces of a product, as left operands.
template <class Thread>
constexpr void split_heads(const Thread& thread, const Sums& left, const Sums& right, Words& words, Words& rest) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const Sums& from = w < 2 ? left : right;
    std::uint32_t both[2] = {};
    split_heads(thread, from[w % 2 * 2], from[w % 2 * 2 + 1], both);
    words[w] = both[0], rest[w] = both[1];
  }
}

/// `down` brings numbers up to `largest` below 2^15, and the largest to 2^14 at least unless it is near nothing; `up` is infinite where
/// that is no finite number.
constexpr Fit lift(float largest) {
  if (largest == 0) return {};
  if (!is_finite(largest)) return {1, infinity};
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(largest) >> 23, kept = exponent < 15 ? 15 : exponent;
  return {std::bit_cast<float>((268u - kept) << 23), std::bit_cast<float>((kept - 14u) << 23)};
}

}  // namespace recollect::cuda
