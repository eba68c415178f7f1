// SPDX-License-Identifier: BSD-3-Clause
/// Sums of gradients over the axes along which an operand was broadcast, and over steps; and the way from float32 to an operand's type.
#pragma once

#include <iterator>

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/recall_arguments.hpp"

namespace recollect::cuda {

/// to[kept] = sum over `gone` of from[kept, gone], each a row of `width` numbers.
struct SumArguments {
  const float* from = nullptr;
  Axes kept, gone;
  detail::Strides from_kept{}, from_gone{}, to_kept{};
  int width = 1;
  void* to = nullptr;
  dtype type = dtype::float32;
  index_t inner = 1;  // of `to`
};

/// A block for each row of the result: as many threads along it as it is wide, and the rest take parts of the sum.
struct RecallSum {
  using Arguments = SumArguments;
  static constexpr int threads = 128;
  static constexpr const char* name = "recall_sum";

  static constexpr index_t blocks(const Arguments& a) { return a.kept.count(); }
  static constexpr index_t shared_bytes() { return threads * sizeof(double); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    double* const sums = reinterpret_cast<double*>(thread.shared());
    const int own = thread.index();
    int across = 1;
    while (across < threads && across < a.width) across *= 2;
    const int part = own / across, parts = threads / across;
    const index_t from = a.kept.offset(thread.block(), a.from_kept), to = a.kept.offset(thread.block(), a.to_kept), count = a.gone.count();
    for (int first = 0; first < a.width; first += across) {
      const int column = first + own % across;
      double sum = 0;
      for (index_t i = part; column < a.width && i < count; i += parts) sum += a.from[from + gone(a, i) + column];
      sums[own] = sum;
      thread.barrier();
      for (int half = parts / 2; half > 0; half /= 2) {
        if (part < half) sums[own] += sums[own + half * across];
        thread.barrier();
      }
      if (part == 0 && column < a.width) write(a.to, a.type, to + column * a.inner, static_cast<float>(sums[own]));
    }
  }

 private:
  /// Divisions are slow, and most sums are over one axis.
  static constexpr index_t gone(const Arguments& a, index_t i) {
    return a.gone.rank == 1 ? i * a.from_gone[0] : a.gone.offset(i, a.from_gone);
  }
};

/// Axes, and the strides of a target along them: 0 where the target was broadcast.
struct Walked {
  const Axes& axes;
  const detail::Strides& to;
};

/// From dense rows of `width` numbers along all axes, the last of them fastest.
inline SumArguments sum_over(const float* from, int width, std::initializer_list<Walked> walked, void* to, dtype type, index_t inner) {
  SumArguments a;
  a.from = from;
  a.width = width;
  a.to = to;
  a.type = type;
  a.inner = inner;
  index_t stride = width;
  bool after_gone = false;  // neighbours that are both summed over are one axis
  for (auto group = std::rbegin(walked); group != std::rend(walked); ++group)
    for (int axis = group->axes.rank - 1; axis >= 0; --axis) {
      const index_t extent = group->axes.extents[axis], to_stride = group->to[axis];
      if (extent == 1) continue;
      if (to_stride != 0) {
        a.from_kept[a.kept.rank] = stride;
        a.to_kept[a.kept.rank] = to_stride;
        a.kept.add(extent);
      } else if (after_gone) {
        a.gone.extents[a.gone.rank - 1] *= extent;
      } else {
        a.from_gone[a.gone.rank] = stride;
        a.gone.add(extent);
      }
      after_gone = to_stride == 0;
      stride *= extent;
    }
  return a;
}

}  // namespace recollect::cuda
