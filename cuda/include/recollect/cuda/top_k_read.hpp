// SPDX-License-Identifier: BSD-3-Clause
/// What is read of the patterns that were selected (top_k_scan.hpp): softmax over them, or the sparse read of spec/backtracking.hpp. A warp
/// for each row.
#pragma once

#include "recollect/cuda/recall_forward.hpp"
#include "recollect/cuda/top_k_scan.hpp"
#include "recollect/cuda/warp_rows.hpp"

namespace recollect::cuda {

/// Weights of the places of a RankedList, held alike.
struct ListWeights {
  float own[RankedList::groups] = {};

  template <class Thread>
  constexpr float sum(const Thread& thread) const {
    float total = 0;
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) total += sum_of_lanes<warp_size>(thread, own[j]);
    return total;
  }

  template <class Thread>
  constexpr float dot(const Thread& thread, const ListWeights& other) const {
    ListWeights products;
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) products.own[j] = own[j] * other.own[j];
    return products.sum(thread);
  }

  constexpr void scale(float factor) {
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) own[j] *= factor;
  }
};

/// visit(group, lane, place) for the places below k, in order: groups are known to the compiler, so that lists stay in registers.
template <class Visit>
constexpr void each_place(int k, Visit&& visit) {
#pragma unroll
  for (int j = 0; j < RankedList::groups; ++j)
    for (int lane = 0; lane < warp_size && j * warp_size + lane < k; ++lane) visit(j, lane, j * warp_size + lane);
}

/// The softmax of scores in units of log 2, places from k on left out.
template <class Thread>
constexpr ListWeights softmax_of(const Thread& thread, int k, const RankedList& list, math::OnlineSoftmax<float>& state) {
  ListWeights weights;
  state.raise(score_of_rank(list.at(thread, 0)));
#pragma unroll
  for (int j = 0; j < RankedList::groups; ++j) {
    const bool there = j * warp_size + thread.index() % warp_size < k && list.own[j] != no_rank;
    weights.own[j] = there ? std::exp2(score_of_rank(list.own[j]) - state.reference()) : 0.0f;
  }
  state.sum = weights.sum(thread);
  weights.scale(state.sum == 0 ? 0.0f : 1 / state.sum);
  return weights;
}

/// A row of numbers, of which lane c holds columns c, c + 32, ...
struct LaneRow {
  static constexpr int groups = 8, widest = groups * warp_size;

  float own[groups] = {};

  /// visit(m, column) for the columns of a lane.
  template <class Visit>
  static constexpr void each(int lane, int width, Visit&& visit) {
#pragma unroll
    for (int m = 0; m < groups; ++m)
      if (m * warp_size + lane < width) visit(m, m * warp_size + lane);
  }

  static constexpr LaneRow load(int lane, int width, const void* data, dtype type, index_t begin, index_t inner) {
    LaneRow row;
    visit_stored(type,
                 [&]<class Stored>() { each(lane, width, [&](int m, int c) { row.own[m] = read<Stored>(data, begin + c * inner); }); });
    return row;
  }

  /// This lane's part of a scalar product.
  constexpr float dot(int lane, int width, const LaneRow& other) const {
    float sum = 0;
    each(lane, width, [&](int m, int) { sum = std::fma(own[m], other.own[m], sum); });
    return sum;
  }

  constexpr void store(int lane, int width, void* data, dtype type, index_t begin, index_t inner, float factor = 1) const {
    visit_stored(
        type, [&]<class Stored>() { each(lane, width, [&](int m, int c) { write<Stored>(data, begin + c * inner, factor * own[m]); }); });
  }
};

/// sum_i w_i times pattern i of the list, in the order of the list. What has no weight is not looked at.
template <class Thread>
constexpr LaneRow weighted_rows(const Thread& thread, const TopKArguments& arguments, const Memory& from, int width, index_t o, int k,
                                const RankedList& list, const ListWeights& weights) {
  const index_t begin = arguments.recall.outer_axes.offset(o, from.outer);
  const int own = thread.index() % warp_size;
  LaneRow sums;
  visit_stored(from.type, [&]<class Stored>() {
    each_place(k, [&](int j, int lane, int) {
      const float weight = thread.shuffle(weights.own[j], lane);
      const index_t row = begin + index_of_rank(shuffle(thread, list.own[j], lane)) * from.row;
      if (weight == 0) return;
      LaneRow::each(own, width,
                    [&](int m, int c) { sums.own[m] = std::fma(weight, read<Stored>(from.data, row + c * from.inner), sums.own[m]); });
    });
  });
  return sums;
}

struct TopKRead : WarpRows {
  using Arguments = TopKArguments;
  static constexpr const char* name = "top_k_read";

  static constexpr index_t blocks(const Arguments& arguments) { return blocks_for(arguments.recall.outer * arguments.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const RankedList list = list_of(thread, arguments, o, r);
    math::OnlineSoftmax<float> state;
    const ListWeights weights = softmax_of(thread, arguments.k, list, state);
    if (lane == 0) write_row_results(a, o, r, state);
    if (!a.out.given()) return;
    weighted_rows(thread, arguments, a.value, a.value_width, o, arguments.k, list, weights)
        .store(lane, a.value_width, a.out.at.data, a.out.type, a.offsets(o, r, a.out)[0], a.out.at.inner);
  }
};

}  // namespace recollect::cuda
