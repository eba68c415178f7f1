// SPDX-License-Identifier: BSD-3-Clause
/// The k patterns with the largest scores of every row, without the scores in memory: patterns stream by in tiles, and a score that is
/// above the k-th best so far enters the row's list. Among N scores in random order that is k (1 + log(N / k)) of them, so that the lists
/// may lie in device memory. A block owns some rows of one outer entry and a range of patterns; whoever reads the lists merges the ranges.
#pragma once

#include "recollect/cuda/ranked_list.hpp"
#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/tile.hpp"

namespace recollect::cuda {

struct TopKArguments {
  RecallArguments recall;
  int k = 1;
  Rank* lists = nullptr;       // of every split, outer entry and row
  Operand<const void> length;  // int64: so many patterns, from the first on, are there for a row; all if not given
  Operand<const void> vector;  // of the additive score

  constexpr Rank* list(index_t split, index_t o, index_t r) const {
    return lists + ((split * recall.outer + o) * recall.rows + r) * RankedList::pitch(k);
  }

  /// How many patterns there are for a row.
  constexpr index_t count(index_t o, index_t r) const {
    if (!length.given()) return recall.patterns;
    const index_t own = static_cast<const index_t*>(length.at.data)[recall.offsets(o, r, length)[0]];
    return own < 0 ? 0 : own < recall.patterns ? own : recall.patterns;
  }
};

/// scores[i][j] = sum_c vector[c] tanh(row y + 16 i of a + row x + 16 j of b)
template <class T>
constexpr void hidden_products(Place at, const float* a, const float* b, const float* vector, int depth, typename T::Scores& scores) {
  for (int i = 0; i < T::per_thread; ++i)
    for (int j = 0; j < T::per_thread; ++j) {
      scores[i][j] = 0;
      for (int c = 0; c < depth; ++c)
        scores[i][j] =
            std::fma(vector[c], std::tanh(a[(at.y + square * i) * T::pitch + c] + b[(at.x + square * j) * T::pitch + c]), scores[i][j]);
    }
}

template <class T, bool additive>
struct TopKScan {
  using Arguments = TopKArguments;
  static constexpr int threads = T::threads, warps = threads / warp_size;
  static constexpr const char* name = "top_k_scan";

  static constexpr index_t splits(const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    return splits_of(a.outer * tiles_of(a.rows, T::rows), tiles_of(a.patterns, T::rows));
  }
  static constexpr index_t blocks(const Arguments& arguments) {
    return arguments.recall.outer * arguments.recall.splits * tiles_of(arguments.recall.rows, T::rows);
  }
  static constexpr index_t shared_bytes() {
    return (2 * T::floats + T::weight_floats + (additive ? T::width : 0)) * sizeof(float) + T::rows * (sizeof(Row) + sizeof(Rank));
  }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const index_t row_tiles = tiles_of(a.rows, T::rows), block = thread.block();
    const index_t first_row = block % row_tiles * T::rows, split = block / row_tiles % a.splits, o = block / row_tiles / a.splits;
    const int rows = static_cast<int>(a.rows - first_row < T::rows ? a.rows - first_row : T::rows);
    const int warp = thread.index() / warp_size;
    float* const queries = reinterpret_cast<float*>(thread.shared());
    float *const keys = queries + T::floats, *const scores = keys + T::floats;
    Row* const table = reinterpret_cast<Row*>(scores + T::weight_floats);
    Rank* const thresholds = reinterpret_cast<Rank*>(table + T::rows);
    float* const vector = reinterpret_cast<float*>(thresholds + T::rows);
    const Place at = place_of(thread);
    prepare(thread, arguments, o, first_row, table, thresholds, vector);
    for (int r = warp; r < rows; r += warps) RankedList{}.store(thread, arguments.k, arguments.list(split, o, first_row + r));
    thread.barrier();
    load_tile<T>(thread, a.query.at.data, a.query.type, a.query.at.inner, a.width, queries, [&](int r) { return table[r].query; });
    const index_t begin = a.outer_axes.offset(o, a.key.outer);
    const index_t tiles = tiles_of(a.limit(first_row, first_row + rows - 1), T::rows), end = first_tile(tiles, split + 1, a.splits);
    for (index_t tile = first_tile(tiles, split, a.splits); tile < end; ++tile) {
      const index_t first = tile * T::rows;
      load_tile<T>(thread, a.key.data, a.key.type, a.key.inner, a.width, keys,
                   [&](int r) { return first + r < a.patterns ? begin + (first + r) * a.key.row : index_t(-1); });
      thread.barrier();
      typename T::Scores products_here;
      if constexpr (additive)
        hidden_products<T>(at, queries, keys, vector, a.width, products_here);
      else
        products<T>(at, queries, keys, (a.width + 3) & ~3, products_here);
      put_weights<T>(at, products_here, scores);
      thread.barrier();
      for (int r = warp; r < rows; r += warps)
        select(thread, arguments, table[r], first, scores + r * T::weight_pitch, thresholds[r], arguments.list(split, o, first_row + r));
    }
  }

 private:
  template <class Thread>
  static constexpr void prepare(const Thread& thread, const Arguments& arguments, index_t o, index_t first_row, Row* table,
                                Rank* thresholds, float* vector) {
    const int i = thread.index();
    if (i < T::rows) {
      Row row = row_of(arguments.recall, o, first_row + i);
      if (arguments.length.given() && first_row + i < arguments.recall.rows) row.sight.limit = arguments.count(o, first_row + i);
      table[i] = row;
      thresholds[i] = no_rank;
    }
    if constexpr (additive)
      for (int c = i; c < arguments.recall.width; c += threads)
        vector[c] = read(arguments.vector.at.data, arguments.vector.type, c * arguments.vector.at.inner);
  }

  /// One row's scores of one tile, by the warp that has the row from the first tile to the last.
  template <class Thread>
  static constexpr void select(const Thread& thread, const Arguments& arguments, const Row& row, index_t first, const float* scores,
                               Rank& threshold, Rank* memory) {
    const int lane = thread.index() % warp_size, k = arguments.k;
    RankedList list;
    list.threshold = threshold;
    bool loaded = false;
    for (int begin = 0; begin < T::rows; begin += warp_size) {
      const int c = begin + lane;
      const bool there = c < T::rows && first + c < row.sight.limit;
      const Rank rank = there ? rank_of(score_of(arguments.recall, row.sight, row.factor, scores[c], first + c), first + c) : no_rank;
      if (thread.ballot(rank > list.threshold) == 0) continue;
      if (!loaded) list = RankedList::load(thread, k, memory);
      loaded = true;
      list.offer(thread, k, rank);
    }
    if (!loaded) return;
    list.store(thread, k, memory);
    if (lane == 0) threshold = list.threshold;
  }
};

/// The list of a row, that of its splits merged.
template <class Thread>
constexpr RankedList list_of(const Thread& thread, const TopKArguments& arguments, index_t o, index_t r) {
  RankedList list = RankedList::load(thread, arguments.k, arguments.list(0, o, r));
  for (index_t split = 1; split < arguments.recall.splits; ++split)
    for (int begin = 0; begin < arguments.k; begin += warp_size)
      list.offer(thread, arguments.k, arguments.list(split, o, r)[begin + thread.index() % warp_size]);
  return list;
}

}  // namespace recollect::cuda
