// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of a bias: d_bias = d_s, summed over the axes along which the bias was broadcast. A block owns a tile of it and walks over
/// all scores that the tile was added to, so that nothing of the size of the scores is ever kept.
#pragma once

#include "recollect/cuda/recall_backward.hpp"

namespace recollect::cuda {

/// Leading axes of the problem that the bias has (kept) and those that it was broadcast along (gone). A place along them is an outer entry
/// and a row, as in RecallArguments; both are sums over axes.
struct BiasGradientArguments {
  RecallBackwardArguments backward;
  Axes kept, gone;
  detail::Strides kept_outer{}, kept_row{}, kept_to{}, gone_outer{}, gone_row{};
  index_t rows = 0;  // n
  void* to = nullptr;
  dtype type = dtype::none;
  index_t row = 0, inner = 0;  // of `to`; row is 0 where it is broadcast along n

  constexpr bool each_row() const { return row != 0 || rows == 1; }
};

template <class T>
struct RecallBackwardBias {
  using Arguments = BiasGradientArguments;
  using Tiles = RecallTiles<T>;
  static constexpr int threads = T::threads;
  static constexpr const char* name = "recall_backward_bias";

  static constexpr index_t row_tiles(const Arguments& b) { return tiles_of(b.rows, T::rows); }
  static constexpr index_t pattern_tiles(const Arguments& b) { return tiles_of(b.backward.recall.patterns, T::rows); }
  static constexpr index_t blocks(const Arguments& b) { return b.kept.count() * (b.each_row() ? row_tiles(b) : 1) * pattern_tiles(b); }
  static constexpr index_t shared_bytes() { return Tiles::shared_bytes(); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& b) {
    const RecallArguments& a = b.backward.recall;
    const index_t own_tiles = b.each_row() ? row_tiles(b) : 1, rest = thread.block() / pattern_tiles(b), kept = rest / own_tiles;
    const index_t first = thread.block() % pattern_tiles(b) * T::rows, own_row = rest % own_tiles * T::rows;
    const index_t end_row = b.each_row() ? own_row + 1 : b.rows;  // one tile, or all
    float* const queries = reinterpret_cast<float*>(thread.shared());
    float *const cotangents = queries + T::floats, *const keys = cotangents + T::floats, *const apart = keys + T::floats;
    float *const weights = apart + T::floats, *const values = a.shared() ? keys : apart;
    Row* const table = reinterpret_cast<Row*>(weights + T::weight_floats);
    const Place at = place_of(thread);
    typename T::Scores sums;
    clear(sums);
    for (index_t gone = 0; gone < b.gone.count(); ++gone) {
      const index_t o = b.kept.offset(kept, b.kept_outer) + b.gone.offset(gone, b.gone_outer);
      const index_t before = b.kept.offset(kept, b.kept_row) + b.gone.offset(gone, b.gone_row);
      for (index_t row = own_row; row < end_row; row += T::rows) {
        const index_t last = row + T::rows < b.rows ? row + T::rows - 1 : b.rows - 1;
        if (a.limit(before + row, before + last) <= first) continue;  // the same for all threads
        thread.barrier();
        Tiles::load_patterns(thread, a, a.key, a.width, o, first, keys);
        if (!a.shared()) Tiles::load_patterns(thread, a, a.value, a.value_width, o, first, values);
        Tiles::load_rows(thread, b.backward, o, before + row, before + b.rows, table, queries, cotangents);
        thread.barrier();
        add(a, at, first, table, queries, cotangents, keys, values, sums);
      }
    }
    put_weights<T>(at, sums, weights);
    thread.barrier();
    store(thread, b, b.kept.offset(kept, b.kept_to), own_row, first, weights);
  }

 private:
  static constexpr void clear(typename T::Scores& sums) {
    for (int i = 0; i < T::per_thread; ++i)
      for (int j = 0; j < T::per_thread; ++j) sums[i][j] = 0;
  }

  static constexpr void add(const RecallArguments& a, Place at, index_t first, const Row* table, const float* queries,
                            const float* cotangents, const float* keys, const float* values, typename T::Scores& sums) {
    typename T::Scores scores, d_scores;
    products<T>(at, queries, keys, Tiles::depth(a.width), scores);
    products<T>(at, cotangents, values, Tiles::depth(a.value_width), d_scores);
#pragma unroll
    for (int i = 0; i < T::per_thread; ++i)
#pragma unroll
      for (int j = 0; j < T::per_thread; ++j) {
        Tiles::weigh(a, table[at.y + square * i], first + at.x + square * j, scores[i][j], d_scores[i][j]);
        sums[i][j] += d_scores[i][j];
      }
  }

  /// A tile of sums, row by row, or the sum of its rows.
  template <class Thread>
  static constexpr void store(const Thread& thread, const Arguments& b, index_t to, index_t row, index_t first, const float* tile) {
    const index_t patterns = b.backward.recall.patterns;
    for (int i = thread.index(); i < (b.each_row() ? T::rows * T::rows : T::rows); i += T::threads) {
      const int r = i / T::rows, c = i % T::rows;
      if (first + c >= patterns || (b.each_row() && row + r >= b.rows)) continue;
      float sum = 0;
      for (int k = r; k < (b.each_row() ? r + 1 : T::rows); ++k) sum += tile[k * T::weight_pitch + c];
      write(b.to, b.type, to + (row + r) * b.row + (first + c) * b.inner, sum);
    }
  }
};

}  // namespace recollect::cuda
