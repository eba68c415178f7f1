// SPDX-License-Identifier: BSD-3-Clause
/// Attention and Hopfield retrieval, portable: softmax over tiles of patterns, one pass. A block owns some rows of one outer entry and a
/// range of patterns; with several ranges a second kernel merges them in order.
#pragma once

#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/tile.hpp"
#include "recollect/math/online_softmax.hpp"

namespace recollect::cuda {

/// What one row comes to: written by the thread whose x is 0.
constexpr void write_row_results(const RecallArguments& a, index_t o, index_t r, const math::OnlineSoftmax<float>& state) {
  const auto [lse, largest, log_sum, scale] = a.offsets(o, r, a.lse, a.largest, a.log_sum, a.scale);
  const double over = a.lse_over_scale ? a.scale_at(scale) : 1.0f;
  if (a.lse.given()) write(a.lse.at.data, a.lse.type, lse, static_cast<float>(state.log_sum() * ln_2 / over));
  if (a.largest.given()) write(a.largest.at.data, a.largest.type, largest, state.largest);
  if (a.log_sum.given()) write(a.log_sum.at.data, a.log_sum.type, log_sum, std::log2(state.sum));
}

template <class T>
struct RecallForward {
  using Arguments = RecallArguments;
  static constexpr int threads = T::threads;
  static constexpr const char* name = "recall_forward";

  static constexpr index_t splits(const Arguments& a) {
    return splits_of(a.outer * tiles_of(a.rows, T::rows), tiles_of(a.patterns, T::rows));
  }
  static constexpr index_t blocks(const Arguments& a) { return a.outer * a.splits * tiles_of(a.rows, T::rows); }
  static constexpr index_t shared_bytes() { return (2 * T::floats + T::weight_floats) * sizeof(float) + T::rows * sizeof(Row); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t row_tiles = tiles_of(a.rows, T::rows), block = thread.block();
    const index_t first_row = block % row_tiles * T::rows, split = block / row_tiles % a.splits, o = block / row_tiles / a.splits;
    if (a.all_rest(thread, o, first_row, T::rows)) return;
    float* const queries = reinterpret_cast<float*>(thread.shared());
    float* const memory = queries + T::floats;
    float* const weights = memory + T::floats;
    const Place at = place_of(thread);
    Row* const table = reinterpret_cast<Row*>(weights + T::weight_floats);
    const bool wanted = thread.index() < T::rows && a.wants(o, first_row + thread.index());
    if (!thread.any(wanted)) return;
    if (thread.index() < T::rows) table[thread.index()] = row_of(a, o, first_row + thread.index());
    thread.barrier();
    load_tile<T>(thread, a.query.at.data, a.query.type, a.query.at.inner, a.width, queries, [&](int r) { return table[r].query; });
    math::OnlineSoftmax<float> state[T::per_thread];
    typename T::Sums sums;
    clear<T>(sums);
    const index_t last_row = first_row + T::rows < a.rows ? first_row + T::rows - 1 : a.rows - 1;
    const index_t tiles = tiles_of(a.limit(first_row, last_row), T::rows), end = first_tile(tiles, split + 1, a.splits);
    for (index_t tile = first_tile(tiles, split, a.splits); tile < end; ++tile) {
      typename T::Scores scores;
      bool odd = load_memory(thread, a, a.key, a.width, o, tile * T::rows, memory);
      products<T>(at, queries, memory, (a.width + 3) & ~3, scores);
#pragma unroll
      for (int i = 0; i < T::per_thread; ++i) {
        const float shrink = weigh(thread, a, table[at.y + square * i], tile * T::rows + at.x, scores[i], state[i]);
#pragma unroll
        for (int m = 0; m < 4 * T::quads; ++m) sums[i][m] *= shrink;
      }
      if (a.value_width == 0) continue;  // nothing to read: lse is all that is asked for
      put_weights<T>(at, scores, weights);
      if (!a.shared()) odd = load_memory(thread, a, a.value, a.value_width, o, tile * T::rows, memory);
      thread.barrier();
      add_weighted<T>(at, odd, weights, memory, sums);
    }
    thread.barrier();
    finish(thread, a, at, o, split, first_row, state, sums, table, memory);
  }

 private:
  /// A tile of keys or values, once everybody is done with what was there before.
  template <class Thread>
  static constexpr bool load_memory(const Thread& thread, const Arguments& a, const Memory& from, int width, index_t o, index_t first,
                                    float* memory) {
    const index_t begin = a.outer_axes.offset(o, from.outer);
    thread.barrier();
    const bool odd = load_tile<T>(thread, from.data, from.type, from.inner, width, memory,
                                  [&](int r) { return first + r < a.patterns ? begin + (first + r) * from.row : index_t(-1); });
    return thread.any(odd);
  }

  /// Products become weights; returns the factor that what was summed before shrinks by.
  template <class Thread>
  static constexpr float weigh(const Thread& thread, const Arguments& a, const Row& row, index_t first, float (&scores)[T::per_thread],
                               math::OnlineSoftmax<float>& state) {
    float largest = -infinity, sum = 0;
#pragma unroll
    for (int j = 0; j < T::per_thread; ++j) {
      scores[j] = score_of(a, row.sight, row.factor, scores[j], first + square * j);
      largest = scores[j] > largest ? scores[j] : largest;
    }
    const float shrink = state.raise(largest_of_lanes<square>(thread, largest));
#pragma unroll
    for (int j = 0; j < T::per_thread; ++j) {
      scores[j] = std::exp2(scores[j] - state.reference());
      sum += scores[j];
    }
    state.sum += sum_of_lanes<square>(thread, sum);
    return shrink;
  }

  /// The rows' results, by way of a tile.
  template <class Thread>
  static constexpr void finish(const Thread& thread, const Arguments& a, Place at, index_t o, index_t split, index_t first_row,
                               const math::OnlineSoftmax<float> (&state)[T::per_thread], typename T::Sums& sums, Row* table, float* tile) {
    const bool whole = a.splits == 1;
    const index_t part = (split * a.outer + o) * a.rows, own = first_row + thread.index();
    if (thread.index() < T::rows && a.wants(o, own))
      table[thread.index()].out = whole ? a.offsets(o, own, a.out)[0] : (part + own) * a.value_width;
#pragma unroll
    for (int i = 0; i < T::per_thread; ++i) {
      const index_t r = first_row + at.y + square * i;
      const float factor = !whole ? 1.0f : state[i].sum == 0 ? 0.0f : 1 / state[i].sum;
#pragma unroll
      for (int m = 0; m < 4 * T::quads; ++m) sums[i][m] *= factor;
      if (at.x != 0 || !a.wants(o, r)) continue;
      if (whole)
        write_row_results(a, o, r, state[i]);
      else
        a.partial_states[2 * (part + r)] = state[i].largest, a.partial_states[2 * (part + r) + 1] = state[i].sum;
    }
    put_sums<T>(at, sums, tile);
    thread.barrier();
    const auto offset_of = [&](int r) { return table[r].out; };
    if (!whole)
      store_tile<T>(thread, tile, a.partial_sums, dtype::float32, 1, a.value_width, offset_of);
    else if (a.out.given())
      store_tile<T>(thread, tile, a.out.at.data, a.out.type, a.out.at.inner, a.value_width, offset_of);
  }
};

/// The parts of every row, merged in a fixed order: few parts by a warp for each row, many by a block, whose warps take them in turn.
struct RecallMerge {
  using Arguments = RecallArguments;
  static constexpr int warps = 8, threads = warps * warp_size, widest = 256;
  static constexpr const char* name = "recall_merge";

  /// How many warps a row has.
  static constexpr int team(const Arguments& a) { return a.splits > 8 ? warps : 1; }
  static constexpr index_t blocks(const Arguments& a) { return tiles_of(a.outer * a.rows, warps / team(a)); }
  static constexpr index_t shared_bytes() { return warps * widest * sizeof(float); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const int lane = thread.index() % warp_size, warp = thread.index() / warp_size, member = warp % team(a);
    const index_t all = a.outer * a.rows, row = thread.block() * (warps / team(a)) + warp / team(a);
    const bool there = row < all && a.wants(row / a.rows, row % a.rows) && !a.rests(row / a.rows, row % a.rows);
    math::OnlineSoftmax<float> state;
    float* const sums = reinterpret_cast<float*>(thread.shared()) + warp * widest;
    if (there) {
      state = merged(thread, a, row, all, lane);
      for (int e = lane; e < a.value_width && a.out.given(); e += warp_size) {
        float sum = 0;
#pragma unroll 4
        for (index_t split = member; split < a.splits; split += team(a)) {
          const index_t part = split * all + row;
          const float weight = weight_of(a, part, state);
          sum = weight != 0 ? std::fma(weight, a.partial_sums[part * a.value_width + e], sum) : sum;
        }
        sums[e] = sum;
      }
    }
    thread.barrier();
    if (!there || member != 0) return;
    const index_t o = row / a.rows, r = row % a.rows;
    if (lane == 0) write_row_results(a, o, r, state);
    if (!a.out.given()) return;
    const float factor = state.sum == 0 ? 0.0f : 1 / state.sum;
    const index_t begin = a.offsets(o, r, a.out)[0];
    for (int e = lane; e < a.value_width; e += warp_size) {
      float sum = 0;
      for (int other = 0; other < team(a); ++other) sum += sums[other * widest + e];
      write(a.out.at.data, a.out.type, begin + e * a.out.at.inner, sum * factor);
    }
  }

 private:
  /// The state of all parts, in every lane.
  template <class Thread>
  static constexpr math::OnlineSoftmax<float> merged(const Thread& thread, const Arguments& a, index_t row, index_t all, int lane) {
    math::OnlineSoftmax<float> state;
    for (index_t split = lane; split < a.splits; split += warp_size) {
      const float largest = a.partial_states[2 * (split * all + row)];
      state.largest = largest > state.largest ? largest : state.largest;
    }
    state.largest = largest_of_lanes<warp_size>(thread, state.largest);
    for (index_t split = lane; split < a.splits; split += warp_size)
      state.sum += a.partial_states[2 * (split * all + row) + 1] * weight_of(a, split * all + row, state);
    state.sum = sum_of_lanes<warp_size>(thread, state.sum);
    return state;
  }

  static constexpr float weight_of(const Arguments& a, index_t part, const math::OnlineSoftmax<float>& state) {
    return std::exp2(a.partial_states[2 * part] - state.reference());
  }
};

}  // namespace recollect::cuda
