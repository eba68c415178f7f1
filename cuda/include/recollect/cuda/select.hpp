// SPDX-License-Identifier: BSD-3-Clause
/// Which kernel serves a problem: the one place that knows of architectures. So far there are portable kernels alone; those for one
/// architecture are asked first, by `architecture` (90 for compute capability 9.0) and element type, and these remain for the rest.
#pragma once

#include "recollect/cuda/fast_weight_scan.hpp"
#include "recollect/cuda/recall_backward.hpp"
#include "recollect/cuda/recall_forward.hpp"

namespace recollect::cuda {

inline constexpr int widest = 256;

/// run<Kernel>() with the forward kernel for rows of `width` numbers, the wider of d and e.
template <class Run>
void select_forward([[maybe_unused]] int architecture, int width, Run&& run) {
  if (width <= 64) return run.template operator()<RecallForward<Tile<64, 4>>>();
  if (width <= 128) return run.template operator()<RecallForward<Tile<128, 4>>>();
  run.template operator()<RecallForward<Tile<256, 2>>>();
}

/// run<RowsKernel, PatternsKernel>() for the gradient.
template <class Run>
void select_backward([[maybe_unused]] int architecture, int width, Run&& run) {
  const auto with = [&]<class T>() { run.template operator()<RecallBackwardRows<T>, RecallBackwardPatterns<T>>(); };
  if (width <= 64) return with.template operator()<Tile<64, 2>>();
  if (width <= 128) return with.template operator()<Tile<128, 2>>();
  with.template operator()<Tile<256, 1>>();
}

/// run<Kernel>() with the scan for K = `keys` key channels.
template <class Run>
void select_scan([[maybe_unused]] int architecture, int keys, bool normalised, Run&& run) {
  const auto with = [&]<int per_thread>() {
    if (normalised) return run.template operator()<FastWeightScan<per_thread, true>>();
    run.template operator()<FastWeightScan<per_thread, false>>();
  };
  if (keys <= 64) return with.template operator()<8>();
  if (keys <= 128) return with.template operator()<16>();
  with.template operator()<32>();
}

}  // namespace recollect::cuda
