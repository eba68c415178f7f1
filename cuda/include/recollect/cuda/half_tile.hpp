// SPDX-License-Identifier: BSD-3-Clause
/// Where things are for the tensor cores of every card since compute capability 8.0, which a warp uses alone: tiles of 16-bit numbers in
/// shared memory, and which lane names which of their rows when four matrices of 8 x 8 are read at once. Which lane holds which numbers
/// of a product is told in tensor_tile.hpp: it is as in the first warp of a warpgroup. All of it is arithmetic, and tested as such.
#pragma once

#include <cstdint>

#include "recollect/cuda/device.hpp"

namespace recollect::cuda {

/// Rows of Width numbers. Which 16 bytes of a row come first changes from row to row, so that eight rows are read from eight places.
/// Tiles begin at a multiple of `alignment`.
template <int Width>
struct HalfTile {
  static_assert(Width == 32 || Width == 64 || Width == 128);
  static constexpr int width = Width;
  static constexpr std::uint32_t row_bytes = 2 * Width, alignment = row_bytes;

  static constexpr std::uint32_t offset(int row, int column) {
    const int turn = Width == 32 ? row / 2 % 4 : row % 8;
    return static_cast<std::uint32_t>(row) * row_bytes + static_cast<std::uint32_t>((column / 8 ^ turn) * 16 + column % 8 * 2);
  }

  /// The address of the number `row` rows (a multiple of 8) and `column` columns (of 16) after one in the first 16 columns.
  static constexpr std::uint32_t moved(std::uint32_t address, int row, int column) {
    return (address ^ static_cast<std::uint32_t>(column) * 2) + static_cast<std::uint32_t>(row) * row_bytes;
  }

  /// Of the row that a lane names: 16 x 16 numbers as four matrices, those below each other first,
  static constexpr std::uint32_t down(int lane) { return offset(lane % 16, lane / 16 * 8); }
  /// or those beside each other first.
  static constexpr std::uint32_t across(int lane) { return offset(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8); }
};

}  // namespace recollect::cuda
