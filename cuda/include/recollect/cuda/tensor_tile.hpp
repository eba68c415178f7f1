// SPDX-License-Identifier: BSD-3-Clause
/// Where things are for Hopper's tensor cores: tiles of 16-bit numbers in shared memory, the descriptors that name them, and which thread
/// of a warpgroup (128 threads) holds which numbers of a product. All of it is arithmetic, and tested as such.
#pragma once

#include <cstdint>

#include "recollect/core/dtype.hpp"

namespace recollect::cuda {

inline constexpr int warpgroup_size = 128;

/// The swizzle of 128 bytes: which 16 bytes of a row of 128 come first changes from row to row, with a period of 8 rows. Tiles begin at a
/// multiple of 1024 bytes.
constexpr std::uint32_t swizzled(std::uint32_t address) { return address ^ (address >> 7 & 7u) << 4; }

/// Patterns x width numbers: panels of 64 columns, in each a row of 128 bytes for every pattern, swizzled. In memory a tile is followed by
/// a line of 128 bytes that begins with the length of its longest pattern, a float32.
template <int Patterns, int Width>
struct TensorTile {
  static_assert(Patterns % 16 == 0 && Width % 64 == 0);
  static constexpr int patterns = Patterns, width = Width;
  static constexpr std::uint32_t panel_bytes = Patterns * 128, bytes = panel_bytes * (Width / 64), pitch = bytes + 128;

  static constexpr std::uint32_t offset(int pattern, int column) {
    const std::uint32_t inside = static_cast<std::uint32_t>(pattern * 128 + column % 64 * 2);
    return static_cast<std::uint32_t>(column / 64) * panel_bytes + swizzled(inside);
  }
};

/// What the tensor cores are told of an operand in shared memory: where it begins, and two strides in bytes.
constexpr std::uint64_t descriptor(std::uint32_t address, std::uint32_t leading, std::uint32_t stride) {
  const auto field = [](std::uint32_t bytes) { return static_cast<std::uint64_t>(bytes >> 4 & 0x3fffu); };
  return field(address) | field(leading) << 16 | field(stride) << 32 | std::uint64_t{1} << 62;  // 1: swizzle of 128 bytes
}

/// The operand (16 columns from 16 step on) x all patterns, as scores = queries . patterns^T take it: eight patterns are 1024 bytes.
template <class Tile>
constexpr std::uint64_t columns_descriptor(std::uint32_t tile, int step) {
  return descriptor(tile + static_cast<std::uint32_t>(step / 4) * Tile::panel_bytes + static_cast<std::uint32_t>(step % 4) * 32, 16, 1024);
}

/// The operand (16 patterns from 16 step on) x all columns, as sums = weights . patterns take it: the same bytes, read the other way.
template <class Tile>
constexpr std::uint64_t patterns_descriptor(std::uint32_t tile, int step) {
  return descriptor(tile + static_cast<std::uint32_t>(step) * 2048, Tile::panel_bytes, 1024);
}

/// A product of 64 rows: number i of a thread's accumulators is of this row and column.
constexpr int accumulator_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
constexpr int accumulator_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

/// A left operand of 64 rows x 16: of its four words in a thread, word i holds two numbers, of this row and of this column and the next.
/// They are where eight neighbouring accumulators are: weights become an operand without a move.
constexpr int operand_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8; }
constexpr int operand_column(int thread, int i) { return i / 2 * 8 + thread % 4 * 2; }

/// Two numbers of 16 bits in a word, the first in its low half.
constexpr std::uint32_t pair(std::uint16_t low, std::uint16_t high) { return static_cast<std::uint32_t>(high) << 16 | low; }

}  // namespace recollect::cuda
