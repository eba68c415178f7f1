// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of what was read of the selected patterns, through these alone and without atomics. With g = d_out and p the weights,
///
///     d_p_i = g . v_i,   d_s_i = p_i (d_p_i - sum_j p_j d_p_j),   d_query = scale sum_i d_s_i k_i
///     d_value_i += p_i g,   d_key_i += scale d_s_i query                                                 for each row that selected i
///
/// One kernel owns rows; it leaves every row's indices, weights and d_s in memory. Another owns patterns and looks through these for its
/// own, row after row, so that every sum is taken by one thread in a fixed order.
#pragma once

#include "recollect/cuda/top_k_read.hpp"

namespace recollect::cuda {

/// A place of a list, as a gradient reaches what it names: d_key += scale d_score query, d_value += weight d_out. Index -1 is nothing.
struct Selected {
  index_t index = -1;
  float weight = 0, d_score = 0;
};

struct TopKBackwardArguments {
  TopKArguments top;
  Operand<const void> d_out;
  Operand<void> d_query;
  MemoryGradient d_key, d_value;
  float* d_scales = nullptr;     // (outer, rows): what each row adds to the gradient of its scale
  bool joined = false;           // keys are the values: d_key takes both sums
  Selected* selected = nullptr;  // (outer, rows, k)
};

/// How scores of a list became weights, and the way back.
struct SoftmaxChoice {
  RankedList list;
  ListWeights weights;

  template <class Thread>
  static constexpr SoftmaxChoice of(const Thread& thread, const TopKArguments& top, index_t o, index_t r) {
    SoftmaxChoice choice{list_of(thread, top, o, r), {}};
    math::OnlineSoftmax<float> state;
    choice.weights = softmax_of(thread, top.k, choice.list, state);
    return choice;
  }

  /// d_s of every place from d_p; 0 where there is no weight.
  template <class Thread>
  constexpr ListWeights score_gradients(const Thread& thread, const ListWeights& d_weights) const {
    const float mean = weights.dot(thread, d_weights);
    ListWeights d;
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j) d.own[j] = weights.own[j] == 0 ? 0.0f : weights.own[j] * (d_weights.own[j] - mean);
    return d;
  }
};

template <class Choice>
struct TopKBackwardRows : WarpRows {
  using Arguments = TopKBackwardArguments;
  static constexpr const char* name = "top_k_backward_rows";

  static constexpr index_t blocks(const Arguments& arguments) { return blocks_for(arguments.top.recall.outer * arguments.top.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.top.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const int k = arguments.top.k;
    const Choice choice = Choice::of(thread, arguments.top, o, r);
    const ListWeights d_scores = choice.score_gradients(thread, weight_gradients(thread, arguments, o, r, choice.list, choice.weights));
#pragma unroll
    for (int j = 0; j < RankedList::groups; ++j)
      if (const int place = j * warp_size + lane; place < k) {
        const float weight = choice.weights.own[j], d_score = d_scores.own[j];
        arguments.selected[row * k + place] = {weight == 0 && d_score == 0 ? -1 : index_of_rank(choice.list.own[j]), weight, d_score};
      }
    if (!arguments.d_query.given() && !arguments.d_scales) return;
    const LaneRow sums = weighted_rows(thread, arguments.top, a.key, a.width, o, k, choice.list, d_scores);
    if (arguments.d_scales) {
      const LaneRow query = LaneRow::load(lane, a.width, a.query.at.data, a.query.type, a.offsets(o, r, a.query)[0], a.query.at.inner);
      const float product = sum_of_lanes<warp_size>(thread, query.dot(lane, a.width, sums));
      if (lane == 0) arguments.d_scales[row] = product;
    }
    const Operand<void>& to = arguments.d_query;
    if (to.given()) sums.store(lane, a.width, to.at.data, to.type, a.offsets(o, r, to)[0], to.at.inner, row_of(a, o, r).factor / log2_e);
  }

 private:
  /// d_p = g . v of every place; 0 where there is no weight, whatever the value holds.
  template <class Thread>
  static constexpr ListWeights weight_gradients(const Thread& thread, const Arguments& arguments, index_t o, index_t r,
                                                const RankedList& list, const ListWeights& weights) {
    const RecallArguments& a = arguments.top.recall;
    const int own = thread.index() % warp_size;
    const index_t begin = a.outer_axes.offset(o, a.value.outer);
    const LaneRow g = LaneRow::load(own, a.value_width, arguments.d_out.at.data, arguments.d_out.type, a.offsets(o, r, arguments.d_out)[0],
                                    arguments.d_out.at.inner);
    ListWeights d;
    visit_stored(a.value.type, [&]<class Stored>() {
      each_place(arguments.top.k, [&](int j, int lane, int) {
        const index_t at = begin + index_of_rank(shuffle(thread, list.own[j], lane)) * a.value.row;
        if (thread.shuffle(weights.own[j], lane) == 0) return;
        float product = 0;
        LaneRow::each(own, a.value_width,
                      [&](int m, int c) { product = std::fma(g.own[m], read<Stored>(a.value.data, at + c * a.value.inner), product); });
        product = sum_of_lanes<warp_size>(thread, product);
        if (own == lane) d.own[j] = product;
      });
    });
    return d;
  }
};

struct TopKBackwardPatterns {
  using Arguments = TopKBackwardArguments;
  static constexpr int threads = LaneRow::widest, warps = threads / warp_size, patterns = 32;
  static constexpr int words = 32, chunk = words * warp_size;  // places that are looked at between two barriers
  static constexpr const char* name = "top_k_backward_patterns";

  static constexpr index_t blocks(const Arguments& arguments) {
    return arguments.top.recall.outer * tiles_of(arguments.top.recall.patterns, patterns);
  }
  static constexpr index_t shared_bytes() { return 2 * patterns * threads * sizeof(float) + words * sizeof(std::uint32_t); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.top.recall;
    const index_t tiles = tiles_of(a.patterns, patterns), first = thread.block() % tiles * patterns, o = thread.block() / tiles;
    const index_t places = a.rows * arguments.top.k;
    const Selected* const selected = arguments.selected + o * places;
    // Thread c owns column c of both sums.
    float* const d_keys = reinterpret_cast<float*>(thread.shared());
    float* const d_values = d_keys + patterns * threads;
    std::uint32_t* const found = reinterpret_cast<std::uint32_t*>(d_values + patterns * threads);
    const int column = thread.index();
    for (int i = 0; i < patterns; ++i) d_keys[i * threads + column] = d_values[i * threads + column] = 0;
    for (index_t begin = 0; begin < places; begin += chunk) {
      for (int word = thread.index() / warp_size; word < words; word += warps) {
        const index_t place = begin + word * warp_size + thread.index() % warp_size;
        const index_t index = place < places ? selected[place].index : -1;
        const std::uint32_t mine = thread.ballot(index >= first && index < first + patterns);
        if (thread.index() % warp_size == 0) found[word] = mine;
      }
      thread.barrier();
      for (int word = 0; word < words; ++word)
        for (std::uint32_t left = found[word]; left != 0; left &= left - 1)
          add(arguments, o, first, begin + word * warp_size + std::countr_zero(left), selected, d_keys, d_values, column);
      thread.barrier();
    }
    if (arguments.joined)
      for (int i = 0; i < patterns; ++i) d_keys[i * threads + column] += d_values[i * threads + column];
    store(a, arguments.d_key, a.width, o, first, d_keys, column);
    store(a, arguments.d_value, a.value_width, o, first, d_values, column);
  }

 private:
  static constexpr void add(const Arguments& arguments, index_t o, index_t first, index_t place, const Selected* selected, float* d_keys,
                            float* d_values, int column) {
    const RecallArguments& a = arguments.top.recall;
    const Selected from = selected[place];
    const auto [query, d_out, scale] = a.offsets(o, place / arguments.top.k, a.query, arguments.d_out, a.scale);
    const int at = static_cast<int>(from.index - first) * LaneRow::widest + column;
    if (column < a.width) {
      const float factor = a.scale.given() ? read(a.scale.at.data, a.scale.type, scale) : a.scale_number;
      d_keys[at] = std::fma(factor * from.d_score, read(a.query.at.data, a.query.type, query + column * a.query.at.inner), d_keys[at]);
    }
    if (column < a.value_width)
      d_values[at] = std::fma(from.weight, read(arguments.d_out.at.data, arguments.d_out.type, d_out + column * arguments.d_out.at.inner),
                              d_values[at]);
  }

  static constexpr void store(const RecallArguments& a, const MemoryGradient& to, int width, index_t o, index_t first, const float* sums,
                              int column) {
    if (!to.given() || column >= width) return;
    const index_t begin = a.outer_axes.offset(o, to.outer) + column * to.inner;
    for (int i = 0; i < patterns && first + i < a.patterns; ++i)
      write(to.data, to.type, begin + (first + i) * to.row, sums[i * LaneRow::widest + column]);
  }
};

}  // namespace recollect::cuda
