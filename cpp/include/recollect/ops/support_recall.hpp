// SPDX-License-Identifier: BSD-3-Clause
/// Recall through a separation that gives weight to few patterns: what Recall is for softmax. A pass finds the support of every row
/// (ops/support_pass.hpp); what is read costs as much as the support is large.
#pragma once

#include "recollect/ops/recall.hpp"
#include "recollect/ops/support_pass.hpp"

namespace recollect::detail {

/// How many runs the patterns are cut into for blocks that are too few to be tasks by themselves.
inline index_t runs_for(index_t tasks, index_t patterns) {
  constexpr index_t wanted = 64, least = 16384;  // every run begins with candidates that later prove to be none
  return std::clamp<index_t>(patterns / least, 1, std::max<index_t>(wanted / std::max<index_t>(tasks, 1), 1));
}

template <class T>
class SupportRecall {
 public:
  SupportRecall(const RecallProblem<T>& problem, const SupportRule<T>& rule, const RecallSteps& steps, const RecallResults<T>& results,
                bool only_scores)
      : problem_(problem),
        steps_(steps),
        results_(results),
        only_scores_(only_scores),
        measures_(steps.tol >= 0 || results.converged),
        pass_(problem, rule, results.energy || results.lse || results.log_total),
        block_rows_(rows_of_a_block(problem)) {}

  void run() {
    if (problem_.rows == 0 || problem_.outer == 0) return;
    const index_t blocks = (problem_.rows + block_rows_ - 1) / block_rows_, total = blocks * problem_.outer;
    const index_t runs = runs_for(total, problem_.patterns);
    const auto block = [&](index_t task) { whole_block(task / blocks, blocks - 1 - task % blocks, runs); };
    if (runs == 1) return parallel_for(total, block);
    for (index_t task = 0; task < total; ++task) block(task);
  }

 private:
  using W = wider<T>;

  void whole_block(index_t outer, index_t b, index_t runs) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const auto take = [&]<class U>(index_t count) { return scratch.take<U>(count); };
    const index_t first = b * block_rows_;
    RecallBlock<T> block(problem_, outer, first, std::min(block_rows_, problem_.rows - first), take);
    T* next = scratch.take<T>(block.count * problem_.width);
    for (index_t step = 0; step < steps_.updates && block.moving > 0; ++step) {
      pass_.for_each(block, runs, [&](index_t a, const Support<T>& support) {
        tell(block, block.active[a], support);
        read(problem_.stored_at(outer), support, next + a * problem_.width, 1);
      });
      index_t still = 0;
      for (index_t a = 0; a < block.moving; ++a) {
        const index_t r = block.active[a];
        if (block.move(r, next + a * problem_.width, steps_, measures_)) block.active[still++] = r;
      }
      block.moving = still;
    }
    block.all_active();
    if (only_scores_ || problem_.has_values())
      pass_.for_each(block, runs, [&](index_t r, const Support<T>& support) {
        tell(block, r, support);
        if (only_scores_) return;
        ++block.steps[r];
        if (results_.out) read(problem_.values_at(outer), support, problem_.at(results_.out, outer, first + r), results_.out.inner);
      });
    for (index_t r = 0; r < block.count; ++r) finish(block, r);
  }

  void finish(const RecallBlock<T>& block, index_t r) const {
    const index_t row = block.first + r;
    if (results_.steps) *problem_.at(results_.steps, block.outer, row) = block.steps[r];
    if (results_.converged) *problem_.at(results_.converged, block.outer, row) = block.converged[r];
    if (!results_.out || problem_.has_values()) return;
    T* to = problem_.at(results_.out, block.outer, row);
    for (index_t k = 0; k < problem_.width; ++k) to[k * results_.out.inner] = block.state[r * problem_.width + k];
  }

  static void read(const StoredRows& values, const Support<T>& support, T* to, index_t inner) {
    const Scratch::Frame frame(Scratch::local());
    StoredReader<T> reader(values);
    T* row = Scratch::local().take<T>(reader.stride());
    read_support(support.index.data(), support.weight.data(), support.size(), reader, row);
    for (index_t k = 0; k < values.width; ++k) to[k * inner] = row[k];
  }

  /// What is told of the state that was compared: the potential Omega* of its scores stands for the log-sum-exp of softmax.
  void tell(const RecallBlock<T>& block, index_t r, const Support<T>& support) const {
    if (results_.nearest) tell_nearest(block, r, support);
    const index_t row = block.first + r;
    const auto write = [&](const Placed<T>& to, W value) {
      if (to) *problem_.at(to, block.outer, row) = static_cast<T>(value);
    };
    const W lse = support.potential / static_cast<W>(block.beta[r]);
    write(results_.log_total, support.potential);
    write(results_.lse, lse);
    if (!results_.energy) return;
    W square = 0;
    for (index_t k = 0; k < problem_.width; ++k) {
      const W own = static_cast<W>(block.state[r * problem_.width + k]);
      square += own * own;
    }
    write(results_.energy, square / 2 - lse);
  }

  /// The largest weights, falling; among equals the lower index first.
  void tell_nearest(const RecallBlock<T>& block, index_t r, const Support<T>& support) const {
    std::vector<T> score(static_cast<std::size_t>(results_.k));
    std::vector<index_t> index(score.size());
    const math::TopK<T> best{score.data(), index.data(), results_.k};
    best.reset();
    for (index_t i = 0; i < support.size(); ++i) best.offer(support.weight[i], support.index[i]);
    const index_t row = block.first + r;
    for (index_t i = 0; i < best.k; ++i) {
      problem_.at(results_.nearest, block.outer, row)[i * results_.nearest.inner] = best.index[i];
      problem_.at(results_.nearest_weight, block.outer, row)[i * results_.nearest_weight.inner] = best.index[i] < 0 ? T(0) : best.score[i];
    }
  }

  const RecallProblem<T>& problem_;
  const RecallSteps steps_;
  const RecallResults<T>& results_;
  const bool only_scores_, measures_;
  const SupportPass<T> pass_;
  const index_t block_rows_;
};

}  // namespace recollect::detail
