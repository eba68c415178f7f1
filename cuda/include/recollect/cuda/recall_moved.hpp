// SPDX-License-Identifier: BSD-3-Clause
/// What `retrieve` tells of its steps: how many a row took, and whether the last of them that moved the state moved it by at most tol.
#pragma once

#include "recollect/cuda/warp_rows.hpp"

namespace recollect::cuda {

struct MovedArguments {
  RecallArguments recall;
  Operand<const void> before, after;  // not given where no step moved the state: then nothing has come to rest
  Operand<void> steps, converged;
  index_t taken = 0;
  float tol = 0;
};

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
    float sum = 0;
    for (int k = lane; arguments.before.given() && k < a.width; k += warp_size) {
      const float move = read(arguments.after.at.data, arguments.after.type, after + k * arguments.after.at.inner) -
                         read(arguments.before.at.data, arguments.before.type, before + k * arguments.before.at.inner);
      sum = std::fma(move, move, sum);
    }
    sum = sum_of_lanes<warp_size>(thread, sum);
    if (lane != 0) return;
    if (arguments.steps.given()) static_cast<index_t*>(arguments.steps.at.data)[steps] = arguments.taken;
    if (arguments.converged.given())
      static_cast<bool*>(arguments.converged.at.data)[converged] = arguments.before.given() && std::sqrt(sum) <= arguments.tol;
  }
};

}  // namespace recollect::cuda
