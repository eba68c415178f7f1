// SPDX-License-Identifier: BSD-3-Clause
/// Memories as RecallSm80 reads them: tiles of 16-bit numbers, each one run of bytes in the order of shared memory. Of float32 every
/// number is split into two of float16 (half_product.hpp), and a tile has a power of two of its own. What is not there is zero.
#pragma once

#include "recollect/cuda/half_product.hpp"
#include "recollect/cuda/recall_arguments.hpp"

namespace recollect::cuda {

/// A tile: the rows of its patterns, split ones twice, heads and rests; behind them a line with the float32 that brings them back, a
/// power of two. It is infinite where 16 bits do not hold the tile: then what is in it means nothing, and portable kernels have to serve.
template <bool Split, int Width>
struct HalfMemory {
  using Tile = HalfTile<Width>;
  static constexpr int patterns = Split ? 32 : 64, parts = Split ? 2 : 1, chunk = 8;  // numbers that are moved at once: 16 bytes
  static constexpr std::uint32_t part_bytes = patterns * Tile::row_bytes, bytes = parts * part_bytes, pitch = bytes + 128;
};

struct HalfPackArguments {
  Memory from;
  Axes outer_axes;
  index_t outer = 0, patterns = 0;
  int width = 0;
  char* packed = nullptr;  // outer x tiles
};

template <bool Split, int Width>
struct RecallHalfPack {
  using Arguments = HalfPackArguments;
  using Tiles = HalfMemory<Split, Width>;
  static constexpr int architecture = 80, threads = 256;
  static constexpr const char* name = "recall_half_pack";

  static constexpr index_t blocks(const Arguments& a) { return a.outer * tiles_of(a.patterns, Tiles::patterns); }
  static constexpr index_t shared_bytes() { return Split ? (threads * chunk + Width) * sizeof(float) : 16; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t tiles = tiles_of(a.patterns, Tiles::patterns), first = thread.block() % tiles * Tiles::patterns;
    const index_t begin = a.outer_axes.offset(thread.block() / tiles, a.from.outer);
    const int row = thread.index() / per_row, column = thread.index() % per_row * chunk;
    Numbers numbers;
    visit_stored(a.from.type, [&]<class Stored>() {
#pragma unroll
      for (int i = 0; i < rounds; ++i) load<Stored>(a, begin, first + row + i * rows_at_once, column, numbers[i]);
    });
    bool lost = false;
#pragma unroll
    for (int i = 0; i < rounds; ++i)
#pragma unroll
      for (int k = 0; k < chunk; ++k) lost |= !is_finite(numbers[i][k]);
    Fit size;
    if constexpr (Split) size = fit_tile(thread, row, column, numbers, lost);
    lost = thread.any(lost);
    char* const tile = a.packed + thread.block() * Tiles::pitch;
    if (thread.index() == 0) *reinterpret_cast<float*>(tile + Tiles::bytes) = lost ? infinity : size.up;
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      Chunk parts[Tiles::parts];
#pragma unroll
      for (int w = 0; w < chunk / 2; ++w) {
        const float low = numbers[i][2 * w] * size.down, high = numbers[i][2 * w + 1] * size.down;
        if constexpr (Split) {
          std::uint32_t both[2] = {};
          split_heads(thread, low, high, both);
          parts[0].words[w] = both[0], parts[1].words[w] = both[1];
        } else {
          const bool narrow = a.from.type == dtype::float16;
          parts[0].words[w] = narrow ? thread.template rounded<float16>(low, high) : thread.template rounded<bfloat16>(low, high);
        }
      }
#pragma unroll
      for (int p = 0; p < Tiles::parts; ++p)
        *reinterpret_cast<Chunk*>(tile + p * Tiles::part_bytes + Tiles::Tile::offset(row + i * rows_at_once, column)) = parts[p];
    }
  }

 private:
  static constexpr int chunk = Tiles::chunk, per_row = Width / chunk, rows_at_once = threads / per_row;
  static constexpr int rounds = Tiles::patterns / rows_at_once;

  using Numbers = float[rounds][chunk];
  struct alignas(16) Chunk {
    std::uint32_t words[4] = {};
  };

  /// Eight numbers of a pattern, at once if they lie so.
  template <class Stored>
  static constexpr void load(const Arguments& a, index_t begin, index_t pattern, int column, float (&numbers)[chunk]) {
    const Stored* const from = static_cast<const Stored*>(a.from.data) + begin + pattern * a.from.row + column * a.from.inner;
    const bool there = pattern < a.patterns;
    if (there && a.from.inner == 1 && column + chunk <= a.width && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
      struct alignas(16) Run {
        Stored at[chunk];
      };
      const Run run = *reinterpret_cast<const Run*>(from);
#pragma unroll
      for (int k = 0; k < chunk; ++k) numbers[k] = widen<float>(run.at[k]);
      return;
    }
#pragma unroll
    for (int k = 0; k < chunk; ++k) numbers[k] = there && column + k < a.width ? widen<float>(from[k * a.from.inner]) : 0.0f;
  }

  /// The power of two of a tile. It is lost if a pattern, or a column, is all small beside the largest number, or a number would vanish:
  /// what such are multiplied by may be large.
  template <class Thread>
  static constexpr Fit fit_tile(const Thread& thread, int row, int column, const Numbers& numbers, bool& lost) {
    float* const pieces = reinterpret_cast<float*>(thread.shared());
    float* const columns = pieces + threads * chunk;
    float of_pattern[rounds] = {};
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      float largest = 0;
#pragma unroll
      for (int i = 0; i < rounds; ++i) {
        const float size = std::fabs(numbers[i][k]);
        largest = size > largest ? size : largest;
        of_pattern[i] = size > of_pattern[i] ? size : of_pattern[i];
      }
      pieces[row * Width + column + k] = largest;
    }
    thread.barrier();
    float of_column = 0;
    if (thread.index() < Width) {
      for (int r = 0; r < rows_at_once; ++r) {
        const float piece = pieces[r * Width + thread.index()];
        of_column = piece > of_column ? piece : of_column;
      }
      columns[thread.index()] = of_column;
    }
    thread.barrier();
    float largest = 0;
    for (int c = thread.index() % warp_size; c < Width; c += warp_size) largest = columns[c] > largest ? columns[c] : largest;
    const Fit size = lift(largest_of_lanes<warp_size>(thread, largest));
    const auto vanishes = [&](float x, float least) { return x != 0 && !(x * size.down >= least); };
    lost |= vanishes(of_column, 0x1p-3f);
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      lost |= vanishes(largest_of_lanes<per_row>(thread, of_pattern[i]), 0x1p-3f);
#pragma unroll
      for (int k = 0; k < chunk; ++k) lost |= vanishes(std::fabs(numbers[i][k]), 0x1p-25f);
    }
    return size;
  }
};

}  // namespace recollect::cuda
