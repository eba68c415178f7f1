// SPDX-License-Identifier: BSD-3-Clause
/// What kernels have in common that give every row a warp.
#pragma once

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/recall_arguments.hpp"

namespace recollect::cuda {

struct WarpRows {
  static constexpr int threads = 128, rows = threads / warp_size;

  static constexpr index_t blocks_for(index_t all) { return tiles_of(all, rows); }
  static constexpr index_t shared_bytes() { return 0; }

  /// Row r of outer entry o is row `row` of all; -1 beyond the last one, for the whole warp.
  struct Place {
    index_t row, o, r;
    int lane;
  };

  template <class Thread>
  static constexpr Place place(const Thread& thread, index_t outer, index_t count) {
    const index_t row = thread.block() * rows + thread.index() / warp_size;
    const int lane = thread.index() % warp_size;
    if (row >= outer * count) return {-1, 0, 0, lane};
    return {row, row / count, row % count, lane};
  }
};

}  // namespace recollect::cuda
