// SPDX-License-Identifier: BSD-3-Clause
/// A memory of 16-bit numbers laid out as the tiles that tensor cores read, so that each tile is one run of bytes. A tile that is not full
/// ends in rows of zeros.
#pragma once

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/tensor_tile.hpp"

namespace recollect::cuda {

inline constexpr int patterns_of_tile = 128;

struct PackArguments {
  Memory from;
  Axes outer_axes;
  index_t outer = 0, patterns = 0;
  char* packed = nullptr;  // outer x tiles
};

template <int Width>
struct RecallPack {
  using Arguments = PackArguments;
  using Tile = TensorTile<patterns_of_tile, Width>;
  static constexpr int threads = 256, chunk = 8;  // numbers that are moved at once: 16 bytes
  static constexpr const char* name = "recall_pack";

  static constexpr index_t blocks(const Arguments& a) { return a.outer * tiles_of(a.patterns, Tile::patterns); }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t tiles = tiles_of(a.patterns, Tile::patterns), first = thread.block() % tiles * Tile::patterns;
    const std::uint16_t* const from =
        static_cast<const std::uint16_t*>(a.from.data) + a.outer_axes.offset(thread.block() / tiles, a.from.outer);
    char* const tile = a.packed + thread.block() * Tile::bytes;
    const bool whole = a.from.inner == 1 && a.from.row % chunk == 0 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
    constexpr int per_row = Width / chunk;
    for (int i = thread.index(); i < Tile::patterns * per_row; i += threads) {
      const int pattern = i / per_row, column = i % per_row * chunk;
      const std::uint16_t* const row = from + (first + pattern) * a.from.row + column * a.from.inner;
      Chunk moved{};
      if (first + pattern >= a.patterns) {
      } else if (whole) {
        moved = *reinterpret_cast<const Chunk*>(row);
      } else {
        for (int k = 0; k < 4; ++k) moved.words[k] = pair(row[2 * k * a.from.inner], row[(2 * k + 1) * a.from.inner]);
      }
      *reinterpret_cast<Chunk*>(tile + Tile::offset(pattern, column)) = moved;
    }
  }

 private:
  struct alignas(16) Chunk {
    std::uint32_t words[4];
  };
};

}  // namespace recollect::cuda
