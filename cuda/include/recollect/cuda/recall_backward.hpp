// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of a recall, portable and without atomics: with p the weights, recomputed from what the forward pass saved, and g = d_out,
///
///     d_p = V g,   d_s = p (d_p - g . out),   d_query = scale K^T d_s,   d_key = scale d_s^T Q,   d_value = p^T g
///     d_scale = sum of d_s . (Q K^T) = sum over rows of Q . (K^T d_s)
///
/// One kernel owns rows and walks over patterns (d_query, d_scale), another owns patterns and walks over rows (d_key, d_value, or both
/// in one where keys are the values), so that every sum is taken by one thread in a fixed order.
#pragma once

#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/tile.hpp"

namespace recollect::cuda {

/// g . out of every row: 16 threads a row.
struct RecallDots {
  using Arguments = RecallBackwardArguments;
  static constexpr int threads = 128, rows = threads / square;
  static constexpr const char* name = "recall_dots";

  static constexpr index_t blocks(const Arguments& a) { return tiles_of(a.recall.outer * a.recall.rows, rows); }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const index_t row = thread.block() * rows + thread.index() / square, all = a.outer * a.rows;
    float sum = 0;
    if (row < all) {
      const index_t o = row / a.rows, r = row % a.rows;
      const auto [out, d_out] = a.offsets(o, r, a.out, arguments.d_out);
      for (int e = thread.index() % square; e < a.value_width; e += square)
        sum = std::fma(read(a.out.at.data, a.out.type, out + e * a.out.at.inner),
                       read(arguments.d_out.at.data, arguments.d_out.type, d_out + e * arguments.d_out.at.inner), sum);
    }
    sum = sum_of_lanes<square>(thread, sum);
    if (row < all && thread.index() % square == 0) arguments.dots[row] = sum;
  }
};

/// What is known of a row, with what the forward pass saved of it.
constexpr Row row_of(const RecallBackwardArguments& arguments, index_t o, index_t r) {
  const RecallArguments& a = arguments.recall;
  Row row = row_of(a, o, r);
  const auto [at_largest, at_log_sum, d_out] = a.offsets(o, r, a.largest, a.log_sum, arguments.d_out);
  const float largest = read(a.largest.at.data, a.largest.type, at_largest);
  row.shift = largest + read(a.log_sum.at.data, a.log_sum.type, at_log_sum);
  row.d_out = d_out;
  row.dot = arguments.dots[o * a.rows + r];
  if (largest == -infinity) row.sight.limit = 0;
  return row;
}

/// What the two kernels share: how tiles of rows and of patterns come in, and how scores become weights and their gradients.
template <class T>
struct RecallTiles {
  static constexpr index_t shared_bytes() { return (4 * T::floats + T::weight_floats) * sizeof(float) + T::rows * sizeof(Row); }

  /// The table of the rows from `first` on before `end`, and their queries and cotangents. The table before was last read before some
  /// barrier.
  template <class Thread>
  static constexpr void load_rows(const Thread& thread, const RecallBackwardArguments& arguments, index_t o, index_t first, index_t end,
                                  Row* table, float* queries, float* cotangents) {
    const RecallArguments& a = arguments.recall;
    const index_t own = first + thread.index();
    if (thread.index() < T::rows) table[thread.index()] = own < end ? row_of(arguments, o, own) : Row{};
    thread.barrier();
    load_tile<T>(thread, a.query.at.data, a.query.type, a.query.at.inner, a.width, queries, [&](int r) { return table[r].query; });
    load_tile<T>(thread, arguments.d_out.at.data, arguments.d_out.type, arguments.d_out.at.inner, a.value_width, cotangents,
                 [&](int r) { return table[r].d_out; });
  }

  template <class Thread>
  static constexpr bool load_patterns(const Thread& thread, const RecallArguments& a, const Memory& from, int width, index_t o,
                                      index_t first, float* tile) {
    const index_t begin = a.outer_axes.offset(o, from.outer);
    return load_tile<T>(thread, from.data, from.type, from.inner, width, tile,
                        [&](int r) { return first + r < a.patterns ? begin + (first + r) * from.row : index_t(-1); });
  }

  /// The weight of pattern c for a row, and the gradient of its score. What has no weight has no gradient, whatever it holds.
  static constexpr void weigh(const RecallArguments& a, const Row& row, index_t c, float& product, float& d_weight) {
    const float score = score_of(a, row.sight, row.factor, product, c);
    const float weight = score == -infinity ? 0.0f : std::exp2(score - row.shift);
    product = weight;
    d_weight = weight == 0 ? 0.0f : weight * (d_weight - row.dot);
  }

  static constexpr float scale_of(const Row& row) { return row.factor / log2_e; }

  static constexpr int depth(int width) { return (width + 3) & ~3; }
};

template <class T>
struct RecallBackwardRows {
  using Arguments = RecallBackwardArguments;
  using Tiles = RecallTiles<T>;
  static constexpr int threads = T::threads;
  static constexpr const char* name = "recall_backward_rows";

  static constexpr index_t blocks(const Arguments& a) { return a.recall.outer * tiles_of(a.recall.rows, T::rows); }
  static constexpr index_t shared_bytes() { return Tiles::shared_bytes(); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const index_t row_tiles = tiles_of(a.rows, T::rows);
    const index_t first_row = thread.block() % row_tiles * T::rows, o = thread.block() / row_tiles;
    float* const queries = reinterpret_cast<float*>(thread.shared());
    float *const cotangents = queries + T::floats, *const keys = cotangents + T::floats, *const apart = keys + T::floats;
    float *const weights = apart + T::floats, *const values = a.shared() ? keys : apart;
    const Place at = place_of(thread);
    Row* const table = reinterpret_cast<Row*>(weights + T::weight_floats);
    typename T::Sums sums;
    clear<T>(sums);
    Tiles::load_rows(thread, arguments, o, first_row, a.rows, table, queries, cotangents);
    const index_t last_row = first_row + T::rows < a.rows ? first_row + T::rows - 1 : a.rows - 1, end = a.limit(first_row, last_row);
    for (index_t first = 0; first < end; first += T::rows) {
      thread.barrier();
      const bool odd = Tiles::load_patterns(thread, a, a.key, a.width, o, first, keys);
      if (!a.shared()) Tiles::load_patterns(thread, a, a.value, a.value_width, o, first, values);
      const bool guarded = thread.any(odd);
      typename T::Scores scores, d_scores;
      products<T>(at, queries, keys, Tiles::depth(a.width), scores);
      products<T>(at, cotangents, values, Tiles::depth(a.value_width), d_scores);
#pragma unroll
      for (int i = 0; i < T::per_thread; ++i)
#pragma unroll
        for (int j = 0; j < T::per_thread; ++j)
          Tiles::weigh(a, table[at.y + square * i], first + at.x + square * j, scores[i][j], d_scores[i][j]);
      put_weights<T>(at, d_scores, weights);
      thread.barrier();
      add_weighted<T>(at, guarded, weights, keys, sums);
    }
    thread.barrier();
    finish(thread, arguments, at, o * a.rows + first_row, table, queries, sums);
    if (!arguments.d_query.given()) return;
    const index_t own = first_row + thread.index();
    if (thread.index() < T::rows && own < a.rows) table[thread.index()].out = a.offsets(o, own, arguments.d_query)[0];
    put_sums<T>(at, sums, queries);
    thread.barrier();
    store_tile<T>(thread, queries, arguments.d_query.at.data, arguments.d_query.type, arguments.d_query.at.inner, a.width,
                  [&](int r) { return table[r].out; });
  }

 private:
  /// From K^T d_s to gradients of queries and scales. A row without weights has none, whatever its query holds. A thread reads of the
  /// queries what it will overwrite.
  template <class Thread>
  static constexpr void finish(const Thread& thread, const Arguments& arguments, Place at, index_t first, const Row* table,
                               const float* queries, typename T::Sums& sums) {
#pragma unroll
    for (int i = 0; i < T::per_thread; ++i) {
      const Row& row = table[at.y + square * i];
      const bool weighs = row.sight.limit > 0;
      float d_scale = 0;
#pragma unroll
      for (int m = 0; m < 4 * T::quads; ++m) {
        const float query = weighs ? queries[(at.y + square * i) * T::pitch + 4 * at.x + 64 * (m / 4) + m % 4] : 0.0f;
        d_scale = std::fma(sums[i][m], query, d_scale);
        sums[i][m] = Tiles::scale_of(row) * (arguments.energy ? std::fma(row.dot, query, sums[i][m]) : sums[i][m]);
      }
      if (!arguments.d_scales) continue;
      d_scale = sum_of_lanes<square>(thread, d_scale);
      if (at.x == 0 && row.query >= 0) {
        float& to = arguments.d_scales[first + at.y + square * i];
        to = arguments.energy ? to + d_scale : d_scale;
      }
    }
  }
};

template <class T>
struct RecallBackwardPatterns {
  using Arguments = RecallBackwardArguments;
  using Tiles = RecallTiles<T>;
  static constexpr int threads = T::threads;
  static constexpr const char* name = "recall_backward_patterns";

  static constexpr index_t blocks(const Arguments& a) { return a.recall.outer * tiles_of(a.recall.patterns, T::rows); }
  static constexpr index_t shared_bytes() { return Tiles::shared_bytes(); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const index_t pattern_tiles = tiles_of(a.patterns, T::rows);
    const index_t first = thread.block() % pattern_tiles * T::rows, o = thread.block() / pattern_tiles;
    float* const keys = reinterpret_cast<float*>(thread.shared());
    float *const apart = keys + T::floats, *const queries = apart + T::floats, *const cotangents = queries + T::floats;
    float *const weights = cotangents + T::floats, *const values = a.shared() ? keys : apart;
    Row* const table = reinterpret_cast<Row*>(weights + T::weight_floats);
    const Place at = place_of(thread);
    typename T::Sums d_keys, d_values;  // with shared keys and values all goes into d_keys
    clear<T>(d_keys);
    clear<T>(d_values);
    const bool reads = a.shared() || arguments.d_value.given();
    Tiles::load_patterns(thread, a, a.key, a.width, o, first, keys);
    if (!a.shared()) Tiles::load_patterns(thread, a, a.value, a.value_width, o, first, values);
    for (index_t first_row = 0; first_row < a.rows; first_row += T::rows) {
      const index_t last_row = first_row + T::rows < a.rows ? first_row + T::rows - 1 : a.rows - 1;
      if (a.limit(first_row, last_row) <= first) continue;  // the same for all threads
      Tiles::load_rows(thread, arguments, o, first_row, a.rows, table, queries, cotangents);
      thread.barrier();
      typename T::Scores scores, d_scores;  // a row for each pattern
      products<T>(at, keys, queries, Tiles::depth(a.width), scores);
      products<T>(at, values, cotangents, Tiles::depth(a.value_width), d_scores);
#pragma unroll
      for (int i = 0; i < T::per_thread; ++i)
#pragma unroll
        for (int j = 0; j < T::per_thread; ++j) weigh(a, table[at.x + square * j], first + at.y + square * i, scores[i][j], d_scores[i][j]);
      if (reads) {
        put_weights<T>(at, scores, weights);
        thread.barrier();
        if (a.shared())
          add_weighted<T, true>(at, weights, cotangents, d_keys);
        else
          add_weighted<T, true>(at, weights, cotangents, d_values);
        thread.barrier();
      }
      put_weights<T>(at, d_scores, weights);
      thread.barrier();
      add_weighted<T, true>(at, weights, queries, d_keys);
    }
    thread.barrier();
    store(thread, a, at, arguments.d_key, a.width, o, first, d_keys, queries, arguments.adds);
    store(thread, a, at, arguments.d_value, a.value_width, o, first, d_values, cotangents, false);
  }

 private:
  /// Here keys want the gradient of scalar products, not of scores.
  static constexpr void weigh(const RecallArguments& a, const Row& row, index_t c, float& product, float& d_weight) {
    Tiles::weigh(a, row, c, product, d_weight);
    d_weight *= Tiles::scale_of(row);
  }

  template <class Thread>
  static constexpr void store(const Thread& thread, const RecallArguments& a, Place at, const MemoryGradient& to, int width, index_t o,
                              index_t first, const typename T::Sums& sums, float* tile, bool adds) {
    if (!to.given()) return;
    put_sums<T>(at, sums, tile);
    thread.barrier();
    const index_t begin = a.outer_axes.offset(o, to.outer);
    store_tile<T>(
        thread, tile, to.data, to.type, to.inner, width,
        [&](int r) { return first + r < a.patterns ? begin + (first + r) * to.row : index_t(-1); }, adds);
  }
};

}  // namespace recollect::cuda
