// SPDX-License-Identifier: BSD-3-Clause
/// Products of 16-bit numbers as the gradient of a recall has them (recall_backward_sm80.hpp). A block keeps 128 rows of one kind, rows or
/// patterns, and meets those of the other kind 32 at a time; a warp has 16 Groups of its own:
///
///     scores (own x met) = own . met^T      sums (own x Width) += weights (own x met) . met
///
/// Weights are left operands where the products left them; a tile that is met is read in both directions.
#pragma once

#include "recollect/cuda/half_product.hpp"
#include "recollect/cuda/tile.hpp"

namespace recollect::cuda {

template <class T, int Width, int Groups>
struct RecallHalves {
  static constexpr int own = 128, met = 32, groups = Groups, rows_of_warp = 16 * Groups, threads = own / rows_of_warp * warp_size;
  static constexpr int tile_bytes = met * 2 * Width, own_bytes = own * 2 * Width;
  static constexpr bool narrow_range = dtype_of<T> == dtype::float16;
  using Rows = HalfTile<Width>;
  using Scores = cuda::Sums[Groups][met / 8];
  using Sums = cuda::Sums[Groups][Width / 8];
  /// Of float32, through which sums go out.
  struct Whole : Tile<Width, own / square> {
    static constexpr int threads = RecallHalves::threads;
  };

  template <class Thread>
  static constexpr std::uint32_t first_row(const Thread& thread) {
    return static_cast<std::uint32_t>(thread.index() / warp_size * rows_of_warp);
  }
  /// Which of the block's own rows number i of a product's group is of; which of those met, in piece n.
  template <class Thread>
  static constexpr int own_at(const Thread& thread, int group, int i) {
    return static_cast<int>(first_row(thread)) + 16 * group + accumulator_row(lane_of(thread), i);
  }
  static constexpr int met_at(int lane, int n, int i) { return 8 * n + accumulator_column(lane, i); }

  /// Starts copies of `count` rows, of which row r begins at element offset_of(r), or is zero if that is negative.
  template <int count, class Thread, class OffsetOf>
  static constexpr void fetch(const Thread& thread, const void* data, const char* tile, OffsetOf&& offset_of) {
    constexpr int pieces = Width / 8;
    const T* const from = static_cast<const T*>(data);
    const int column = thread.index() % pieces * 8;
    const std::uint32_t to = thread.address(tile);
#pragma unroll 1
    for (int row = thread.index() / pieces; row < count; row += threads / pieces) {
      const index_t offset = offset_of(row);
      thread.copy16(to + Rows::offset(row, column), offset < 0 ? from : from + offset + column, offset >= 0);
    }
  }

  template <int pieces>
  static constexpr void clear(cuda::Sums (&sums)[Groups][pieces]) {
#pragma unroll
    for (int g = 0; g < Groups; ++g)
#pragma unroll
      for (int n = 0; n < pieces; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[g][n][i] = 0;
  }

  /// Of all own rows of the warp with the rows of a tile.
  template <class Thread>
  static constexpr void products(const Thread& thread, const char* own_tile, const char* tile, Scores& scores) {
    const int lane = lane_of(thread);
    const std::uint32_t left = thread.address(own_tile) + first_row(thread) * Rows::row_bytes, right = thread.address(tile);
    clear(scores);
#pragma unroll 2  // as a whole it takes registers that are not there
    for (int k = 0; k < Width; k += 16) {
      Words a[Groups];
#pragma unroll
      for (int g = 0; g < Groups; ++g) thread.template matrices<false>(a[g], left + place(Rows::down(lane), 16 * g, k));
#pragma unroll
      for (int p = 0; p < met / 16; ++p) add<false>(thread, a, right + place(Rows::across(lane), 16 * p, k), 2 * p, scores);
    }
  }

  /// sums += weights . tile, in a unit.
  template <class Thread>
  static constexpr void add_weighted(const Thread& thread, const Scores& weights, float unit, const char* tile, Sums& sums) {
    const std::uint32_t rows = thread.address(tile);
#pragma unroll
    for (int p = 0; p < met / 16; ++p) {
      Words a[Groups];
#pragma unroll
      for (int g = 0; g < Groups; ++g) round<T>(thread, weights[g][2 * p], weights[g][2 * p + 1], inverse(unit), a[g]);
#pragma unroll
      for (int k = 0; k < Width; k += 16) add<true>(thread, a, rows + place(Rows::down(lane_of(thread)), 16 * p, k), k / 8, sums);
    }
  }

  /// What a lane has met, as the unit of sums has to grow with it.
  static constexpr float largest(const Scores& numbers, float before = 0) {
    if constexpr (narrow_range)
#pragma unroll
      for (int g = 0; g < Groups; ++g)
#pragma unroll
        for (int n = 0; n < met / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) before = std::fmax(before, std::fabs(numbers[g][n][i]));
    return before;
  }

  /// Sums are counted in a unit, so that all that was ever added to them had its place in float16: the largest numbers are brought near
  /// 2^14. It is a power of two, and only grows. Where the range is wide it is 1.
  static constexpr float first_unit() { return narrow_range ? 0x1p-78f : 1.0f; }
  static constexpr float inverse(float power_of_two) {
    return std::bit_cast<float>(0x7f000000u - std::bit_cast<std::uint32_t>(power_of_two));
  }
  template <class Thread>
  static constexpr void grow(const Thread& thread, float largest, float& unit, Sums& sums) {
    if constexpr (narrow_range) {
      const float now = fit<T>(0x1p-14f * std::fmax(largest_of_lanes<warp_size>(thread, largest), 0x1p-64f)).up;
      if (now <= unit) return;
      const float factor = unit * inverse(now);
      unit = now;
#pragma unroll
      for (int g = 0; g < Groups; ++g)
#pragma unroll
        for (int n = 0; n < Width / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[g][n][i] *= factor;
    }
  }

  /// Sums into memory, all threads together; row r goes to offset_of(r), or nowhere if that is negative. Shared memory from `room` on is
  /// not needed any more.
  template <class Thread, class OffsetOf>
  static constexpr void store(const Thread& thread, const Sums& sums, float factor, void* room, void* data, dtype type, index_t inner,
                              OffsetOf&& offset_of, bool adds = false) {
    float* const tile = static_cast<float*>(room);
    thread.barrier();
#pragma unroll
    for (int g = 0; g < Groups; ++g)
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) tile[own_at(thread, g, i) * Whole::pitch + met_at(lane_of(thread), n, i)] = factor * sums[g][n][i];
    thread.barrier();
    store_tile<Whole>(thread, tile, data, type, inner, Width, offset_of, adds);
  }

 private:
  /// As HalfTile::moved. What changes from row to row is within 128 bytes; the rest is left to the loads, which add it.
  static constexpr std::uint32_t place(std::uint32_t from, int row, int column) {
    return Rows::moved(from, row, column % 64) + static_cast<std::uint32_t>(column / 64 * 128);
  }

  /// Pieces n and n + 1 of sums += a . (a tile's 16 x 16)
  template <bool flip, class Thread, int pieces>
  static constexpr void add(const Thread& thread, const Words (&a)[Groups], std::uint32_t tile, int n, cuda::Sums (&sums)[Groups][pieces]) {
    Words b;
    thread.template matrices<flip>(b, tile);
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
      thread.template multiply<T>(sums[g][n], a[g], b[0], b[1]);
      thread.template multiply<T>(sums[g][n + 1], a[g], b[2], b[3]);
    }
  }
};

}  // namespace recollect::cuda
