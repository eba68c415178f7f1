// SPDX-License-Identifier: BSD-3-Clause
/// Reading from a selection: once the k patterns of a row are known, forward and backward touch those k and nothing else.
///
///     w = weights of the k among all (and the sink),   p = w / (sum w + w_sink),   out = sum p_i v_i
///     D = g.out,   ds_i = p_i (g.v_i - D)     and from there as in RecallBackward
///
/// Selecting is one score pass (ops/recall.hpp); what is here costs O(n k (d + e)).
#pragma once

#include <vector>

#include "recollect/ops/recall_gradients.hpp"

namespace recollect::detail {

/// The selection of every row: numbers, -1 where fewer were admissible, and weights.
template <class T>
struct Selection {
  Placed<index_t> index;
  Placed<T> weight;
  index_t k = 0;
};

template <class T>
class TopKRead {
 public:
  TopKRead(const RecallProblem<T>& problem, const Selection<T>& selection) : p_(problem), selection_(selection) {}

  /// The weights come as those of a full softmax with log of its sum `log_total`; they leave normalised to the selection.
  void forward(const Placed<T>& out, const Placed<T>& log_total, const Placed<T>& lse) const {
    constexpr index_t block = 64;
    const index_t blocks = (p_.rows + block - 1) / block;
    parallel_for(p_.outer * blocks, [&](index_t task) {
      const index_t o = task / blocks, first = task % blocks * block;
      for (index_t r = first; r < std::min(first + block, p_.rows); ++r) forward_row(o, r, out, log_total, lse);
    });
  }

  /// One task for each outer entry: rows of one memory may have selected the same patterns.
  void backward(const Placed<const T>& out, const Placed<const T>& d_out, const RecallGradients<T>& to) const {
    if (to.d_stored) std::fill_n(to.d_stored, p_.outer * p_.patterns * p_.width, T(0));
    if (to.d_values) std::fill_n(to.d_values, p_.outer * p_.patterns * p_.value_width, T(0));
    const bool alone = !to.d_bias || covers(p_.fold.outer, to.d_bias.outer);
    const auto entry = [&](index_t o) {
      for (index_t r = 0; r < p_.rows; ++r) backward_row(o, r, out, d_out, to);
    };
    if (alone) return parallel_for(p_.outer, entry);
    for (index_t o = 0; o < p_.outer; ++o) entry(o);
  }

 private:
  void forward_row(index_t o, index_t r, const Placed<T>& out, const Placed<T>& log_total, const Placed<T>& lse) const {
    const index_t* index = p_.at(selection_.index, o, r);
    T* weight = p_.at(selection_.weight, o, r);
    const double total = static_cast<double>(*p_.at(log_total, o, r));
    double sum = p_.sink ? std::exp(*p_.at(p_.sink, o, r) - total) : 0.0;
    if (total == -std::numeric_limits<double>::infinity()) sum = 0;
    for (index_t i = 0; i < selection_.k; ++i) sum += static_cast<double>(weight[i * selection_.weight.inner]);
    T* to = p_.at(out, o, r);
    for (index_t k = 0; k < p_.value_width; ++k) to[k * out.inner] = T(0);
    const StoredRows values = p_.values_at(o);
    for (index_t i = 0; i < selection_.k; ++i) {
      const index_t pattern = index[i * selection_.index.inner];
      if (pattern < 0) continue;
      T& own = weight[i * selection_.weight.inner];
      own = static_cast<T>(static_cast<double>(own) / sum);
      for (index_t k = 0; k < p_.value_width; ++k) to[k * out.inner] += own * stored_number<T>(values, pattern, k);
    }
    if (lse) *p_.at(lse, o, r) = static_cast<T>(total + std::log(sum));
  }

  void backward_row(index_t o, index_t r, const Placed<const T>& out, const Placed<const T>& d_out, const RecallGradients<T>& to) const {
    const double scale = *p_.at(p_.beta, o, r);
    const T *g = p_.at(d_out, o, r), *read = p_.at(out, o, r), *q = p_.at(p_.state, o, r);
    double mean = 0, along = 0, kept = 0;
    for (index_t k = 0; k < p_.value_width; ++k) mean += static_cast<double>(g[k * d_out.inner]) * static_cast<double>(read[k * out.inner]);
    std::vector<double> d_q(static_cast<std::size_t>(p_.width), 0.0);
    const StoredRows keys = p_.stored_at(o), values = p_.values_at(o);
    T* d_values = p_.has_values() ? to.d_values : to.d_stored;
    for (index_t i = 0; i < selection_.k; ++i) {
      const index_t pattern = p_.at(selection_.index, o, r)[i * selection_.index.inner];
      if (pattern < 0) continue;
      const T weight = p_.at(selection_.weight, o, r)[i * selection_.weight.inner];
      double d_weight = 0;
      for (index_t k = 0; k < p_.value_width; ++k)
        d_weight += static_cast<double>(g[k * d_out.inner]) * static_cast<double>(stored_number<T>(values, pattern, k));
      const double d_score = static_cast<double>(weight) * (d_weight - mean);
      kept += static_cast<double>(weight);
      for (index_t k = 0; k < p_.width; ++k) {
        const double x = static_cast<double>(stored_number<T>(keys, pattern, k)), own = static_cast<double>(q[k * p_.state.inner]);
        d_q[k] += d_score * x;
        along += d_score * x * own;
        if (to.d_stored) to.d_stored[(o * p_.patterns + pattern) * p_.width + k] += static_cast<T>(d_score * scale * own);
      }
      for (index_t k = 0; d_values && k < p_.value_width; ++k)
        d_values[(o * p_.patterns + pattern) * p_.value_width + k] += weight * g[k * d_out.inner];
      if (to.d_bias) p_.at(to.d_bias, o, r)[pattern * to.d_bias.inner] += static_cast<T>(d_score);
    }
    for (index_t k = 0; to.d_state && k < p_.width; ++k) p_.at(to.d_state, o, r)[k * to.d_state.inner] = static_cast<T>(scale * d_q[k]);
    if (to.d_beta) to.d_beta[o * p_.rows + r] = along;
    if (to.d_sink) to.d_sink[o * p_.rows + r] = (kept - 1) * mean;  // what the selection does not weigh is the sink's
  }

  const RecallProblem<T>& p_;
  const Selection<T>& selection_;
};

}  // namespace recollect::detail
