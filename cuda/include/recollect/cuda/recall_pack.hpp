// SPDX-License-Identifier: BSD-3-Clause
/// Memories as the kernels of a recall read them. Packed: 16-bit numbers laid out as the tiles that tensor cores read, so that each tile is
/// one run of bytes; a tile that is not full ends in rows of zeros. Plain: one row after the other.
#pragma once

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/tensor_tile.hpp"

namespace recollect::cuda {

inline constexpr int patterns_of_tile = 128;

/// Rows that come behind the `first` patterns that a memory has already; those stay as they are.
struct PackArguments {
  Memory from;
  Axes outer_axes;
  index_t outer = 0, first = 0, patterns = 0;  // patterns: old and new
  char* packed = nullptr;                      // outer x tiles
};

template <int Width>
struct RecallPack {
  using Arguments = PackArguments;
  using Tile = TensorTile<patterns_of_tile, Width>;
  static constexpr int threads = 256, chunk = 8;  // numbers that are moved at once: 16 bytes
  static constexpr const char* name = "recall_pack";

  static constexpr index_t blocks(const Arguments& a) { return a.outer * new_tiles(a); }
  static constexpr index_t shared_bytes() { return threads / warp_size * sizeof(float); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t outer = thread.block() / new_tiles(a), number = a.first / Tile::patterns + thread.block() % new_tiles(a);
    const index_t begin = number * Tile::patterns;
    const std::uint16_t* const from = static_cast<const std::uint16_t*>(a.from.data) + a.outer_axes.offset(outer, a.from.outer);
    char* const tile = a.packed + (outer * tiles_of(a.patterns, Tile::patterns) + number) * Tile::pitch;
    const bool whole = a.from.inner == 1 && a.from.row % chunk == 0 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
    constexpr int per_row = Width / chunk;
    float longest = 0;  // squared
    for (int i = thread.index(); i < Tile::patterns * per_row; i += threads) {
      const index_t pattern = begin + i / per_row;
      const int column = i % per_row * chunk;
      Chunk moved{};
      if (pattern >= a.first && pattern < a.patterns) moved = load(a.from, from, pattern - a.first, column, whole);
      if (pattern >= a.first) *reinterpret_cast<Chunk*>(tile + Tile::offset(i / per_row, column)) = moved;
      const float square = sum_of_lanes<per_row>(thread, square_of(moved, a.from.type));
      longest = square > longest ? square : longest;
    }
    float* const of_warp = reinterpret_cast<float*>(thread.shared());
    longest = largest_of_lanes<warp_size>(thread, longest);
    if (thread.index() % warp_size == 0) of_warp[thread.index() / warp_size] = longest;
    thread.barrier();
    if (thread.index() != 0) return;
    for (int warp = 1; warp < threads / warp_size; ++warp) longest = of_warp[warp] > longest ? of_warp[warp] : longest;
    float& length = *reinterpret_cast<float*>(tile + Tile::bytes);
    longest = std::sqrt(longest);
    length = begin < a.first && length > longest ? length : longest;
  }

 private:
  struct alignas(16) Chunk {
    std::uint32_t words[4];
  };

  static constexpr index_t new_tiles(const Arguments& a) { return tiles_of(a.patterns, Tile::patterns) - a.first / Tile::patterns; }

  static constexpr Chunk load(const Memory& memory, const std::uint16_t* from, index_t row, int column, bool whole) {
    from += row * memory.row + column * memory.inner;
    if (whole) return *reinterpret_cast<const Chunk*>(from);
    Chunk chunk{};
    for (int k = 0; k < 4; ++k) chunk.words[k] = pair(from[2 * k * memory.inner], from[(2 * k + 1) * memory.inner]);
    return chunk;
  }

  static constexpr float square_of(const Chunk& chunk, dtype type) {
    float sum = 0;
    for (const std::uint32_t word : chunk.words)
      for (int k = 0; k < 2; ++k) {
        const std::uint16_t bits = static_cast<std::uint16_t>(word >> 16 * k);
        const float x = type == dtype::float16 ? widen<float>(float16{bits}) : widen<float>(bfloat16{bits});
        sum += x * x;
      }
    return sum;
  }
};

struct StoreArguments {
  Memory from;
  index_t rows = 0, width = 0;
  void* to = nullptr;  // of the same type
};

struct RecallStore {
  using Arguments = StoreArguments;
  static constexpr int threads = 256, per_thread = 8;
  static constexpr const char* name = "recall_store";

  static constexpr index_t blocks(const Arguments& a) { return tiles_of(a.rows * a.width, threads * per_thread); }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t begin = thread.block() * threads * per_thread + thread.index();
    visit_stored(a.from.type, [&]<class T>() {
      for (int i = 0; i < per_thread; ++i) {
        const index_t at = begin + i * threads, row = at / a.width;
        if (row < a.rows)
          static_cast<T*>(a.to)[at] = static_cast<const T*>(a.from.data)[row * a.from.row + (at - row * a.width) * a.from.inner];
      }
    });
  }
};

}  // namespace recollect::cuda
