// SPDX-License-Identifier: BSD-3-Clause
/// What comes after an update of the states of `retrieve`: how many steps a row took, whether the last of them that moved the state moved
/// it by at most tol, and, where that ends a row, that it stays what it is while others go on.
#pragma once

#include "recollect/cuda/warp_rows.hpp"

namespace recollect::cuda {

struct MovedArguments {
  RecallArguments recall;      // rows that were at rest before the update take back what it did
  Operand<const void> before;  // not given where no step moved the state: then nothing has come to rest
  Operand<void> after, steps, converged;
  Operand<void> lse;        // gets that of the update, recall.lse, where the row was not at rest
  bool* resting = nullptr;  // (outer, rows): gets those that are at rest from now on, if an update of at most tol ends a row
  index_t taken = 0;
  double tol = 0;
};

/// In the place of what is saved of a row's softmax: there was none, the row was at rest. A row that sees nothing has twice -infinity.
inline constexpr float rested_largest = -infinity, rested_log_sum = 0;

struct RecallMoved : WarpRows {
  using Arguments = MovedArguments;
  static constexpr const char* name = "recall_moved";

  static constexpr index_t blocks(const Arguments& a) { return blocks_for(a.recall.outer * a.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const auto [before, after, steps, converged] = a.offsets(o, r, arguments.before, arguments.after, arguments.steps, arguments.converged);
    const bool rests = a.rests(o, r);
    double sum = 0;
    for (int k = lane; arguments.before.given() && k < a.width; k += warp_size) {
      const float from = read(arguments.before.at.data, arguments.before.type, before + k * arguments.before.at.inner);
      const index_t place = after + k * arguments.after.at.inner;
      if (rests) {
        write(arguments.after.at.data, arguments.after.type, place, from);
        continue;
      }
      const double move = static_cast<double>(read(arguments.after.at.data, arguments.after.type, place)) - static_cast<double>(from);
      sum = std::fma(move, move, sum);
    }
    sum = sum_of_lanes<warp_size>(thread, sum);
    if (lane != 0) return;
    if (rests) return mark(a, o, r);
    if (arguments.lse.given()) {
      const auto [from, to] = a.offsets(o, r, a.lse, arguments.lse);
      write(arguments.lse.at.data, arguments.lse.type, to, read(a.lse.at.data, a.lse.type, from));
    }
    const double moved = std::sqrt(sum);
    if (arguments.steps.given()) static_cast<index_t*>(arguments.steps.at.data)[steps] = arguments.taken;
    if (arguments.converged.given())
      static_cast<bool*>(arguments.converged.at.data)[converged] = arguments.before.given() && moved <= arguments.tol;
    if (arguments.resting) arguments.resting[row] = !(moved > arguments.tol);  // a row that has become NaN will not come to rest
  }

 private:
  static constexpr void mark(const RecallArguments& a, index_t o, index_t r) {
    const auto [largest, log_sum] = a.offsets(o, r, a.largest, a.log_sum);
    if (a.largest.given()) write(a.largest.at.data, a.largest.type, largest, rested_largest);
    if (a.log_sum.given()) write(a.log_sum.at.data, a.log_sum.type, log_sum, rested_log_sum);
  }
};

/// The gradient of an update where rows rested: they pass their cotangents on.
struct RecallRested : WarpRows {
  using Arguments = RecallBackwardArguments;
  static constexpr const char* name = "recall_rested";

  static constexpr index_t blocks(const Arguments& a) { return blocks_for(a.recall.outer * a.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const auto [largest, log_sum, d_out, d_query] = a.offsets(o, r, a.largest, a.log_sum, arguments.d_out, arguments.d_query);
    if (read(a.largest.at.data, a.largest.type, largest) != rested_largest) return;
    if (read(a.log_sum.at.data, a.log_sum.type, log_sum) != rested_log_sum) return;
    for (int k = lane; k < a.width; k += warp_size)
      write(arguments.d_query.at.data, arguments.d_query.type, d_query + k * arguments.d_query.at.inner,
            read(arguments.d_out.at.data, arguments.d_out.type, d_out + k * arguments.d_out.at.inner));
  }
};

}  // namespace recollect::cuda
