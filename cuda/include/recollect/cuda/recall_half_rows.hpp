// SPDX-License-Identifier: BSD-3-Clause
/// What kernels for the tensor cores of compute capability 8.0 share that compare rows with packed memories (recall_half_pack.hpp): rows in
/// shared memory, the ring of slots that tiles pass through, and the products of a warp's rows and a tile.
#pragma once

#include "recollect/cuda/recall_half_pack.hpp"

namespace recollect::cuda {

/// T: float16 or bfloat16, of rows and memories alike; float for any types, which are split.
template <class T, int Width>
struct RecallHalfRows {
  static constexpr bool split = std::is_same_v<T, float>;
  using Half = std::conditional_t<split, float16, T>;
  using Memories = HalfMemory<split, Width>;
  using Tile = HalfTile<Width>;
  static constexpr int rows = 128, warp_rows = Width == 64 ? 32 : 16, threads = rows / warp_rows * warp_size;
  static constexpr int slots = Width == 64 ? 4 : split ? 2 : 3;
  static constexpr int patterns = Memories::patterns, parts = Memories::parts, halves = warp_rows / 16, own_rows = 2 * halves;

  struct Known {
    index_t query = -1;  // where it begins
    float factor = 0;    // from products of what was brought into range to scores
    int limit = 0;
  };

  /// In shared memory: the rows, the ring, the lines of its tiles, and what is known of rows.
  static constexpr std::uint32_t rows_bytes = rows * Tile::row_bytes, ring_begin = parts * rows_bytes;
  static constexpr std::uint32_t line_begin = ring_begin + slots * Memories::bytes, table_begin = line_begin + slots * 16;
  static constexpr index_t bytes = table_begin + rows * sizeof(Known);

  template <int columns>
  using Pieces = Sums[halves][columns / 8];  // of a warp's rows

  template <class Thread>
  static constexpr float line(const Thread& thread, int slot) {
    return *reinterpret_cast<const float*>(thread.shared() + line_begin + slot * 16);
  }
  template <class Thread>
  static constexpr Known* table(const Thread& thread) {
    return reinterpret_cast<Known*>(thread.shared() + table_begin);
  }
  template <class Thread>
  static constexpr std::uint32_t slot_begin(const Thread& thread, int slot) {
    return thread.address(thread.shared()) + ring_begin + slot * Memories::bytes;
  }
  /// The first of a warp's rows in the block. A lane has rows lane / 4, lane / 4 + 8, ... of them.
  template <class Thread>
  static constexpr int warp_begin(const Thread& thread) {
    return thread.index() / warp_size * warp_rows;
  }

  /// The warp's rows of queries into shared memory, to be read behind a barrier. The sign of a scale is the query's, so that -inf stays
  /// what it is.
  template <class Thread>
  static constexpr void load_queries(const Thread& thread, const RecallArguments& a, int outer, int first) {
    constexpr int at_once = 4, pairs = Width / 64;
    const int lane = lane_of(thread), begin = warp_begin(thread);
    Known* const known = table(thread) + begin;
    if (lane < warp_rows) {
      const Row own = row_of(a, outer, first + lane);
      known[lane] = {own.query, own.factor, static_cast<int>(own.sight.limit)};
    }
    thread.warp_barrier();
    for (int r = 0; r < warp_rows; r += at_once) {
      float numbers[at_once][2 * pairs];
      visit_query(a.query.type, [&]<class Stored>() {
#pragma unroll
        for (int i = 0; i < at_once; ++i)
#pragma unroll
          for (int k = 0; k < 2 * pairs; ++k) {
            const int column = k / 2 * 64 + 2 * lane + k % 2;
            const bool there = known[r + i].query >= 0 && column < a.width;
            numbers[i][k] = there ? read<Stored>(a.query.at.data, known[r + i].query + column * a.query.at.inner) : 0.0f;
          }
      });
      Fit sizes[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) sizes[i] = put_query(thread, known[r + i].factor < 0, begin + r + i, numbers[i]);
      thread.warp_barrier();
#pragma unroll
      for (int i = 0; i < at_once; ++i)
        if (lane == i) known[r + i].factor = std::fabs(known[r + i].factor) * sizes[i].up;
    }
  }

  template <class Visit>
  static constexpr void visit_query(dtype type, Visit&& visit) {
    if constexpr (split)
      visit_stored(type, visit);
    else
      visit.template operator()<T>();
  }

  /// A lane's pairs of one query.
  template <class Thread, int count>
  static constexpr Fit put_query(const Thread& thread, bool negative, int row, const float (&numbers)[count]) {
    Fit size;
    if constexpr (split) {
      float largest = 0;
#pragma unroll
      for (float number : numbers) {
        const float of_number = is_finite(number) ? std::fabs(number) : infinity;
        largest = of_number > largest ? of_number : largest;
      }
      size = lift(largest_of_lanes<warp_size>(thread, largest));
    }
    const float factor = negative ? -size.down : size.down;
#pragma unroll
    for (int k = 0; k < count; k += 2) {
      const float low = numbers[k] * factor, high = numbers[k + 1] * factor;
      char* const to = thread.shared() + Tile::offset(row, k / 2 * 64 + 2 * lane_of(thread));
      std::uint32_t words[2] = {};
      if constexpr (split)
        split_heads(thread, low, high, words);
      else
        words[0] = thread.template rounded<Half>(low, high);
#pragma unroll
      for (int p = 0; p < parts; ++p) *reinterpret_cast<std::uint32_t*>(to + p * rows_bytes) = words[p];
    }
    return size;
  }

  /// Number i of all.
  template <int count>
  static constexpr float& at(Sums (&sums)[halves][count], int i) {
    return sums[i / 4 / count][i / 4 % count][i % 4];
  }

  template <int count>
  static constexpr void clear(Sums (&sums)[halves][count]) {
#pragma unroll
    for (int i = 0; i < 4 * halves * count; ++i) at(sums, i) = 0;
  }

  /// sums (warp_rows x 16, two pieces from `place` on) += a . b
  template <class Thread, int count>
  static constexpr void multiply(const Thread& thread, const Words (&a)[halves], const Words& b, int place, Sums (&sums)[halves][count]) {
#pragma unroll
    for (int i = 0; i < 2 * halves; ++i)
      thread.template multiply<Half>(sums[i / 2][place + i % 2], a[i / 2], b[i % 2 * 2], b[i % 2 * 2 + 1]);
  }

  /// Products of the warp's queries and the keys of a slot.
  template <class Thread>
  static constexpr void compare(const Thread& thread, int slot, Pieces<patterns>& scores) {
    const int lane = lane_of(thread);
    const std::uint32_t queries = thread.address(thread.shared()) + warp_begin(thread) * Tile::row_bytes + Tile::down(lane);
    const std::uint32_t keys = slot_begin(thread, slot) + Tile::across(lane);
    Pieces<split ? patterns : 8> small;
    clear(scores), clear(small);
#pragma unroll
    for (int k = 0; k < Width; k += 16) {
      Words query[halves], query_rest[halves];
#pragma unroll
      for (int half = 0; half < halves; ++half) {
        const std::uint32_t place = Tile::moved(queries, 16 * half, k);
        thread.template matrices<false>(query[half], place);
        if constexpr (split) thread.template matrices<false>(query_rest[half], place + rows_bytes);
      }
#pragma unroll
      for (int p = 0; p < patterns / 16; ++p) {
        Words key;
        const std::uint32_t place = Tile::moved(keys, 16 * p, k);
        thread.template matrices<false>(key, place);
        multiply(thread, query, key, 2 * p, scores);
        if constexpr (split) {
          multiply(thread, query_rest, key, 2 * p, small);
          thread.template matrices<false>(key, place + Memories::part_bytes);
          multiply(thread, query, key, 2 * p, small);
        }
      }
    }
    if constexpr (split) {
#pragma unroll
      for (int i = 0; i < halves * patterns / 2; ++i) at(scores, i) += at(small, i);
    }
  }
};

}  // namespace recollect::cuda
