// SPDX-License-Identifier: BSD-3-Clause
/// Recall: rows are compared with the stored patterns and read them, once or until they come to rest.
///
/// Rows are worked on in blocks. A block that has the machine to itself is split over the segments of the patterns, and its parts are
/// merged; otherwise blocks are the tasks, and each takes all its steps by itself.
#pragma once

#include "recollect/core/parallel.hpp"
#include "recollect/ops/recall_block.hpp"
#include "recollect/ops/recall_pass.hpp"

namespace recollect::detail {

/// Where results go; places not wanted stay empty.
template <class T>
struct RecallResults {
  Placed<T> out, energy, lse, largest, log_sum;  // lse over beta, as energies need it
  Placed<T> log_total;                           // and as it is
  Placed<index_t> steps;
  Placed<bool> converged;
  Placed<index_t> nearest;  // (..., n, k)
  Placed<T> nearest_weight;
  index_t k = 0;
};

template <class T, class Separation>
class Recall {
 public:
  Recall(const RecallProblem<T>& problem, const RecallSteps& steps, const RecallResults<T>& results, bool only_scores)
      : problem_(problem),
        steps_(steps),
        results_(results),
        only_scores_(only_scores),
        measures_(steps.tol >= 0 || results.converged),
        problem_without_values_(without_values(problem)),
        update_(problem_without_values_, true, static_cast<bool>(results.energy), 0),
        last_(only_scores ? problem_without_values_ : problem, !only_scores, static_cast<bool>(results.energy), results.k) {
    block_rows_ = rows_of_a_task(problem, update_.segments());
  }

  void run() {
    if (problem_.rows == 0 || problem_.outer == 0) return;
    const index_t blocks = (problem_.rows + block_rows_ - 1) / block_rows_, total = blocks * problem_.outer;
    if (total >= wanted_tasks || update_.segments() <= 1)
      // Later rows first: under a causal limit they see more, and what takes longest should not come last.
      parallel_for(total, [&](index_t task) { whole_block(task / blocks, blocks - 1 - task % blocks); });
    else
      split_blocks(blocks, total);
  }

 private:
  static constexpr index_t wanted_tasks = 64;

  using Block = RecallBlock<T>;

  index_t rows_in(index_t b) const { return std::min(block_rows_, problem_.rows - b * block_rows_); }

  static RecallProblem<T> without_values(RecallProblem<T> problem) {
    problem.value_rows = {};
    problem.value_width = problem.width;
    return problem;
  }

  /// An update of the state: keeps what moved, lets rest what did not.
  void update_state(Block& block, const Partial<T>& partial) const {
    const index_t width = problem_.width;
    const Scratch::Frame frame(Scratch::local());
    T* next = Scratch::local().take<T>(width);
    index_t still = 0;
    for (index_t a = 0; a < block.moving; ++a) {
      const index_t r = block.active[a];
      finish_read(block, r, a, partial, problem_.stored_at(block.outer), next);
      tell(block, r, a, partial);
      if (block.move(r, next, steps_, measures_)) block.active[still++] = r;
    }
    block.moving = still;
  }

  /// The weighted mean of a row, with the plain definition as the refuge when the fast sums have left the range of T.
  void finish_read(const Block& block, index_t r, index_t a, const Partial<T>& partial, const StoredRows& values, T* out) const {
    const auto& softmax = partial.softmax[a];
    const bool none = sees_nothing(partial, a);
    T check = 0;
    for (index_t k = 0; k < values.width; ++k) {
      out[k] = none ? T(0) : partial.read[a * partial.width + k] / softmax.sum;
      check += out[k] * T(0);
    }
    const bool in_range = softmax.sum > 0 && softmax.sum <= std::numeric_limits<T>::max() && check == T(0);
    if (!none && !in_range) {
      const PlainMemory<T> memory = block.plain_memory(r, values);
      PlainRow<T>(block.state + r * problem_.width, block.beta[r], memory).read(memory, out);
    }
  }

  /// With a bias, scores of -inf are meant; without one they are an overflow, which the plain definition sorts out.
  bool sees_nothing(const Partial<T>& partial, index_t a) const {
    return partial.sight.admissible[a] == 0 || (problem_.bias && partial.softmax[a].sum == T(0));
  }

  /// The sink joins last: it adds to the sum and reads nothing.
  void add_sinks(const Block& block, const Partial<T>& partial) const {
    if (!problem_.sink) return;
    for (index_t a = 0; a < block.moving; ++a) {
      const T sink = static_cast<T>(*problem_.at(problem_.sink, block.outer, block.first + block.active[a]) * log2_e);
      const T shrink = partial.softmax[a].raise(sink);
      if (sink != -std::numeric_limits<T>::infinity()) partial.softmax[a].sum += std::exp2(sink - partial.softmax[a].largest);
      for (index_t k = 0; k < partial.width; ++k) partial.read[a * partial.width + k] *= shrink;
    }
  }

  /// What is told of the state that was compared; energies in wider arithmetic: they are differences of large numbers.
  void tell(const Block& block, index_t r, index_t a, const Partial<T>& partial) const {
    const index_t row = block.first + r;
    if (results_.largest) *problem_.at(results_.largest, block.outer, row) = partial.softmax[a].largest;
    if (results_.log_sum)
      *problem_.at(results_.log_sum, block.outer, row) = static_cast<T>(std::log2(static_cast<double>(partial.softmax[a].sum)));
    if (results_.nearest) tell_nearest(block, r, a, partial);
    if (!results_.energy && !results_.lse && !results_.log_total) return;
    const double beta = block.beta[r];
    const bool none = sees_nothing(partial, a) && !problem_.sink;
    const index_t width = problem_.width;
    const T* state = block.state + r * width;
    using W = wider<T>;
    W log_sum = static_cast<W>(partial.softmax[a].log_sum() * ln_2), norm = static_cast<W>(partial.sight.norm[a]);
    if (!none && !(std::abs(log_sum) + norm <= static_cast<W>(std::numeric_limits<T>::max()))) {
      const PlainRow<T> plain(state, beta, block.plain_memory(r, {}));
      log_sum = plain.log_sum;
      norm = plain.norm;
    }
    const W lse = log_sum / static_cast<W>(beta);
    if (results_.lse) *problem_.at(results_.lse, block.outer, row) = static_cast<T>(none ? -INFINITY : lse);
    if (results_.log_total) *problem_.at(results_.log_total, block.outer, row) = static_cast<T>(none ? -INFINITY : log_sum);
    if (!results_.energy) return;
    W square = 0;
    for (index_t k = 0; k < width; ++k) square += static_cast<W>(state[k]) * static_cast<W>(state[k]);
    const W energy = -lse + square / 2 + std::log(static_cast<W>(partial.sight.admissible[a])) / static_cast<W>(beta) + norm / 2;
    *problem_.at(results_.energy, block.outer, row) = static_cast<T>(none ? INFINITY : energy);
  }

  /// The patterns with the largest weights, falling.
  void tell_nearest(const Block& block, index_t r, index_t a, const Partial<T>& partial) const {
    const math::TopK<T> best = partial.best(a);
    const auto& softmax = partial.softmax[a];
    const bool in_range = softmax.sum > 0 && softmax.sum <= std::numeric_limits<T>::max();
    const bool none = sees_nothing(partial, a);
    std::vector<T> weight(static_cast<std::size_t>(best.k));
    if (in_range || none) {
      for (index_t i = 0; i < best.k; ++i)
        weight[i] =
            best.index[i] < 0 ? T(0) : static_cast<T>(std::exp2(static_cast<double>(best.score[i] - softmax.largest))) / softmax.sum;
    } else {
      const PlainRow<T> plain(block.state + r * problem_.width, block.beta[r], block.plain_memory(r, {}));
      best.reset();
      for (index_t i = 0; i < problem_.patterns; ++i) best.offer(static_cast<T>(plain.weight[i]), i);
      for (index_t i = 0; i < best.k; ++i) weight[i] = best.index[i] < 0 ? static_cast<T>(plain.log_sum * 0) : best.score[i];
    }
    const index_t row = block.first + r;
    for (index_t i = 0; i < best.k; ++i) {
      problem_.at(results_.nearest, block.outer, row)[i * results_.nearest.inner] = best.index[i];
      problem_.at(results_.nearest_weight, block.outer, row)[i * results_.nearest_weight.inner] = weight[i];
    }
  }

  /// After the updates: the read of values or the plain copy of the state, and what is told about each row.
  void finish(Block& block, const Partial<T>* partial) const {
    const Scratch::Frame frame(Scratch::local());
    T* row = Scratch::local().take<T>(problem_.value_width);
    for (index_t r = 0; r < block.count; ++r) {
      const T* result = block.state + r * problem_.width;
      if (partial && !only_scores_) {
        finish_read(block, r, r, *partial, problem_.values_at(block.outer), row);
        ++block.steps[r];
        result = row;
      }
      if (partial) tell(block, r, r, *partial);
      if (results_.out) {
        T* to = problem_.at(results_.out, block.outer, block.first + r);
        for (index_t k = 0; k < problem_.value_width; ++k) to[k * results_.out.inner] = result[k];
      }
      if (results_.steps) *problem_.at(results_.steps, block.outer, block.first + r) = block.steps[r];
      if (results_.converged) *problem_.at(results_.converged, block.outer, block.first + r) = block.converged[r];
    }
  }

  /// Whether a pass follows the updates: it reads the values, or only scores.
  bool has_last_pass() const { return only_scores_ || problem_.has_values(); }

  /// How wide a read of any pass can be; one that only scores reads nothing.
  index_t widest() const { return only_scores_ ? 0 : std::max(problem_.width, problem_.value_width); }

  void whole_block(index_t outer, index_t b) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const auto take = [&]<class U>(index_t count) { return scratch.take<U>(count); };
    Block block(problem_, outer, b * block_rows_, rows_in(b), take);
    const Partial<T> partial = Partial<T>::make(block.count, widest(), results_.k, take);
    const auto pass = [&](const RecallPass<T, Separation>& p) {
      const Partial<T> narrow = p.fit(partial);
      p.gather(outer, block.prepare(log2_e), 0, p.segments(), narrow);
      add_sinks(block, narrow);
      return narrow;
    };
    for (index_t step = 0; step < steps_.updates && block.moving > 0; ++step) update_state(block, pass(update_));
    if (!has_last_pass()) return finish(block, nullptr);
    block.all_active();
    const Partial<T> gathered = pass(last_);
    finish(block, &gathered);
  }

  /// Few rows and many patterns: every step is one region over (block, run of segments) and one over blocks.
  void split_blocks(index_t blocks, index_t total) const {
    std::vector<Buffer<std::byte>> memory;
    const auto take = [&]<class U>(index_t count) {
      memory.emplace_back(count * static_cast<index_t>(sizeof(U)));
      return reinterpret_cast<U*>(memory.back().data());
    };
    std::vector<Block> state;
    for (index_t task = 0; task < total; ++task)
      state.emplace_back(problem_, task / blocks, task % blocks * block_rows_, rows_in(task % blocks), take);
    // A run is a power of two of segments, so that it is a subtree of the fixed tree.
    const index_t segments = std::max(last_.segments(), update_.segments());
    const index_t run =
        static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>((segments * total + wanted_tasks - 1) / wanted_tasks)));
    const index_t runs = (segments + run - 1) / run;
    std::vector<Partial<T>> parts;
    for (index_t i = 0; i < total * runs; ++i) parts.push_back(Partial<T>::make(state[i / runs].count, widest(), results_.k, take));

    const auto pass = [&](const RecallPass<T, Separation>& p) {
      std::vector<Cues<T>> cues;
      for (Block& block : state) cues.push_back(block.prepare(log2_e));
      for (Partial<T>& part : parts) part = p.fit(part);
      parallel_for(total * runs, [&](index_t task) {
        const index_t first = std::min(task % runs * run, p.segments()), last = std::min(first + run, p.segments());
        const Block& block = state[task / runs];
        if (block.moving > 0 && first < last) p.gather(block.outer, cues[task / runs], first, last, parts[task]);
      });
      const index_t filled = (p.segments() + run - 1) / run;
      parallel_for(total, [&](index_t b) {
        merge_runs(&parts[b * runs], filled, state[b].moving);
        add_sinks(state[b], parts[b * runs]);
      });
    };
    for (index_t step = 0; step < steps_.updates; ++step) {
      if (std::all_of(state.begin(), state.end(), [](const Block& b) { return b.moving == 0; })) break;
      pass(update_);
      parallel_for(total, [&](index_t b) { update_state(state[b], parts[b * runs]); });
    }
    for (Block& block : state) block.all_active();
    if (has_last_pass()) pass(last_);
    parallel_for(total, [&](index_t b) { finish(state[b], has_last_pass() ? &parts[b * runs] : nullptr); });
  }

  /// The upper levels of the fixed tree, into the first part.
  static void merge_runs(Partial<T>* parts, index_t count, index_t rows) {
    std::vector<index_t> stack;
    const auto join = [&] {
      parts[stack[stack.size() - 2]].merge(parts[stack.back()], rows);
      stack.pop_back();
    };
    for (index_t i = 0; i < count; ++i) {
      stack.push_back(i);
      for (index_t done = i + 1; done % 2 == 0; done /= 2) join();
    }
    while (stack.size() > 1) join();
  }

  const RecallProblem<T>& problem_;
  const RecallSteps steps_;
  const RecallResults<T>& results_;
  const bool only_scores_, measures_;
  RecallProblem<T> problem_without_values_;
  RecallPass<T, Separation> update_, last_;
  index_t block_rows_;
};

}  // namespace recollect::detail
