// SPDX-License-Identifier: BSD-3-Clause
/// From scores to the weights of a sparse read, and back, for one query. Rules: spec/backtracking.hpp.
#pragma once

#include <cmath>
#include <limits>

#include "recollect/math/tanh.hpp"
#include "recollect/math/top_k.hpp"
#include "recollect/ops/packet.hpp"
#include "recollect/spec/backtracking.hpp"

namespace recollect::backtracking::detail {

template <class T>
inline constexpr T released_epsilon = T(1e-7);

/// The places of one query: k indices and weights, falling, and the memory that gave the threshold.
template <class T>
struct Choice {
  index_t k = 0;
  index_t* indices = nullptr;
  T* weights = nullptr;
  index_t threshold = -1;
  T total = 0;  // R, or 0 where there is no threshold or all kept tie with it
};

template <class T>
void softmax(T* scores, index_t count) {
  using P = Packet<T>;
  T largest = -std::numeric_limits<T>::infinity(), total = 0;
  for (index_t i = 0; i < count; ++i)
    if (!(scores[i] <= largest)) largest = scores[i];  // NaN is taken over, not passed over
  for (index_t i = 0; i < count; i += P::width)
    math::exp_of_negative<T>(P::load_some(scores + i, count - i) - P(largest)).store_some(scores + i, count - i);
  for (index_t i = 0; i < count; ++i) total += scores[i];
  for (index_t i = 0; i < count; ++i) scores[i] /= total;
}

/// Marks the places behind `used` as empty.
template <class T>
void leave_empty(const Choice<T>& choice, index_t used) {
  for (index_t i = used; i < choice.k; ++i) {
    choice.indices[i] = -1;
    choice.weights[i] = T(0);
  }
}

/// All `count` <= k memories from `first` on are read; choice.weights holds their scores.
template <class T>
void choose_all(rule form, index_t first, index_t count, Choice<T>& choice) {
  for (index_t i = 0; i < count; ++i) choice.indices[i] = first + i;
  if (form == rule::paper) softmax(choice.weights, count);
  leave_empty(choice, count);
  choice.threshold = -1;
  choice.total = 0;
}

/// More than k memories, of which `best` holds the k + 1 with the largest scores.
template <class T>
void choose_best(rule form, const math::TopK<T>& best, Choice<T>& choice) {
  const index_t k = choice.k;
  std::copy_n(best.index, k, choice.indices);
  choice.total = 0;
  if (best.index[k] < 0) {  // NaN or -inf among the scores: there is no choice, and no number to hide that behind
    for (index_t i = 0; i < k; ++i) choice.indices[i] = i;
    std::fill_n(choice.weights, k, std::numeric_limits<T>::quiet_NaN());
    choice.threshold = k;
    return;
  }
  const bool released = form == rule::released;
  choice.threshold = best.index[released ? k - 1 : k];
  const T tau = released ? best.score[k - 1] + released_epsilon<T> : best.score[k];
  for (index_t i = 0; i < k; ++i) {
    choice.weights[i] = std::max(T(0), best.score[i] - tau);
    choice.total += choice.weights[i];
  }
  const T below = released ? choice.total + released_epsilon<T> : choice.total;
  for (index_t i = 0; i < k; ++i) choice.weights[i] = below > 0 ? choice.weights[i] / below : T(1) / static_cast<T>(k);
}

/// value = sum_i w_i m_i; memories are `stride` apart. What has no weight is not looked at.
template <class T>
void read_value(const Choice<T>& choice, const T* memory, index_t stride, index_t width, T* value) {
  using P = Packet<T>;
  std::fill_n(value, width, T(0));
  for (index_t i = 0; i < choice.k; ++i) {
    if (choice.indices[i] < 0 || choice.weights[i] == 0) continue;
    const P weight(choice.weights[i]);
    const T* row = memory + choice.indices[i] * stride;
    for (index_t d = 0; d < width; d += P::width)
      fma(weight, P::load_some(row + d, width - d), P::load_some(value + d, width - d)).store_some(value + d, width - d);
  }
}

/// d_score (k + 1, the threshold's last) from g_i = d_value . m_i, when `count` memories could be read.
template <class T>
void score_gradients(rule form, index_t count, const Choice<T>& choice, const T* g, T* d_score) {
  std::fill_n(d_score, choice.k + 1, T(0));
  const bool all = count <= choice.k;
  if (all && form == rule::released) {
    std::copy_n(g, count, d_score);
    return;
  }
  T mean = 0, back = 0;
  for (index_t i = 0; i < choice.k; ++i)
    if (choice.indices[i] >= 0 && choice.weights[i] != 0) mean += choice.weights[i] * g[i];
  if (all) {
    for (index_t i = 0; i < count; ++i) d_score[i] = choice.weights[i] * (g[i] - mean);
    return;
  }
  if (choice.total == 0) return;
  const T below = form == rule::released ? choice.total + released_epsilon<T> : choice.total;
  for (index_t i = 0; i < choice.k; ++i) {
    if (!(choice.weights[i] > 0)) continue;
    d_score[i] = (g[i] - mean) / below;
    back -= d_score[i];
  }
  d_score[choice.k] = back;
}

}  // namespace recollect::backtracking::detail
