// SPDX-License-Identifier: BSD-3-Clause
/// The rows of one task of a recall and how far they have come: their states, what each may see, and which of them still move.
#pragma once

#include <cmath>

#include "recollect/ops/plain.hpp"
#include "recollect/ops/score_pass.hpp"

namespace recollect::detail {

struct RecallSteps {
  index_t updates;  // state updates at most; a read of values comes on top
  double tol;       // a row stops after an update of at most this length; negative: never
  double rest;      // an update of at most this length counts as converged
};

/// How many rows make a block: their states and reads stay in the second-level cache.
template <class T>
index_t rows_of_a_block(const RecallProblem<T>& p) {
  const index_t width = std::max(padded<T>(p.width), padded<T>(p.value_width));
  const index_t fitting = (96 << 10) / static_cast<index_t>(sizeof(T)) / std::max<index_t>(width, 1) / 24 * 24;
  return std::min(std::clamp<index_t>(fitting, 24, 384), p.rows);
}

/// The same where blocks are tasks, each of `parts` parts of the patterns: fewer rows if there would be too few tasks to share out, as
/// long as each is worth handing out.
template <class T>
index_t rows_of_a_task(const RecallProblem<T>& p, index_t parts) {
  constexpr index_t enough_tasks = 8, enough_work = index_t{1} << 20;  // multiply-adds
  const auto in_steps = [](index_t rows) { return std::max<index_t>((rows + 23) / 24, 1) * 24; };
  const index_t worth = enough_work / std::max<index_t>(p.patterns * (p.width + p.value_width), 1);
  const index_t shared = p.rows * p.outer * std::max<index_t>(parts, 1) / enough_tasks;
  return std::min(rows_of_a_block(p), in_steps(std::max(worth, shared)));
}

template <class T>
struct RecallBlock {
  const RecallProblem<T>& problem;
  index_t outer, first, count, moving;
  T *state, *cues;  // (count, width); (moving, padded width)
  double* beta;
  index_t *active, *steps, *limit;  // which rows still move; softmaxes so far; how many patterns are seen at most
  bool* converged;
  const bool **mask, **active_mask;
  const T **bias, **active_bias;
  index_t* active_limit;

  template <class Take>
  RecallBlock(const RecallProblem<T>& p, index_t o, index_t first_row, index_t rows, Take&& take)
      : problem(p), outer(o), first(first_row), count(rows) {
    state = take.template operator()<T>(count * p.width);
    cues = take.template operator()<T>(count * padded<T>(p.width));
    beta = take.template operator()<double>(count);
    active = take.template operator()<index_t>(count);
    steps = take.template operator()<index_t>(count);
    converged = take.template operator()<bool>(count);
    mask = take.template operator()<const bool*>(count);
    active_mask = take.template operator()<const bool*>(count);
    bias = take.template operator()<const T*>(count);
    active_bias = take.template operator()<const T*>(count);
    limit = take.template operator()<index_t>(count);
    active_limit = take.template operator()<index_t>(count);
    for (index_t r = 0; r < count; ++r) {
      const T* from = p.at(p.state, o, first + r);
      for (index_t k = 0; k < p.width; ++k) state[r * p.width + k] = from[k * p.state.inner];
      beta[r] = *p.at(p.beta, o, first + r);
      mask[r] = p.mask ? p.at(p.mask, o, first + r) : nullptr;
      bias[r] = p.bias ? p.at(p.bias, o, first + r) : nullptr;
      limit[r] = p.limit(first + r);
      steps[r] = 0;
      converged[r] = false;
    }
    all_active();
  }

  void all_active() {
    moving = count;
    for (index_t r = 0; r < count; ++r) active[r] = r;
  }

  /// Packs the cues of the rows that still move; scores will be in units of 1 / `unit`.
  Cues<T> prepare(double unit) const {
    const index_t width = problem.width, stride = padded<T>(width);
    for (index_t a = 0; a < moving; ++a) {
      const index_t r = active[a];
      const T scale = static_cast<T>(beta[r] * unit);
      for (index_t k = 0; k < width; ++k) cues[a * stride + k] = scale * state[r * width + k];
      std::fill(cues + a * stride + width, cues + (a + 1) * stride, T(0));
      active_mask[a] = mask[r];
      active_bias[a] = bias[r];
      active_limit[a] = limit[r];
    }
    return {cues,
            moving,
            active_limit,
            problem.mask ? active_mask : nullptr,
            problem.bias ? active_bias : nullptr,
            problem.mask.inner,
            problem.bias.inner,
            problem.shared_by_rows(problem.mask),
            problem.shared_by_rows(problem.bias),
            static_cast<T>(unit)};
  }

  /// Row r takes its next state. With `measures`, says whether it goes on to move; a row that has become NaN does not: it will not come
  /// to rest.
  bool move(index_t r, const T* next, const RecallSteps& rule, bool measures) {
    T* now = state + r * problem.width;
    ++steps[r];
    bool goes_on = true;
    if (measures) {
      double square = 0;
      for (index_t k = 0; k < problem.width; ++k) {
        const double step = static_cast<double>(next[k]) - static_cast<double>(now[k]);
        square += step * step;
      }
      const double moved = std::sqrt(square);
      converged[r] = moved <= rule.rest;
      goes_on = rule.tol < 0 || moved > rule.tol;
    }
    std::copy(next, next + problem.width, now);
    return goes_on;
  }

  /// What row r sees, for the plain definitions.
  PlainMemory<T> plain_memory(index_t r, const StoredRows& values) const {
    return {problem.stored_at(outer),
            values,
            problem.patterns,
            mask[r],
            problem.mask.inner,
            limit[r],
            bias[r],
            problem.bias.inner,
            problem.sink ? problem.at(problem.sink, outer, first + r) : nullptr};
  }
};

}  // namespace recollect::detail
