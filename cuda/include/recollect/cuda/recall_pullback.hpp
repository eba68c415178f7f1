// SPDX-License-Identifier: BSD-3-Clause
/// What the gradients of all recalls share on the host: where they go, the launches for one softmax, and the sums that come last.
#pragma once

#include <vector>

#include "recollect/cuda/recall.hpp"
#include "recollect/cuda/recall_sum.hpp"

namespace recollect::cuda::detail {

/// A gradient that is wanted, and its strides.
struct Wanted {
  Array array;
  BoundOperand bound;
};

/// The gradient of a number, or of an array of numbers.
inline void check_scale_gradient(std::string_view op, const char* argument, const Array& wanted, const ConstArray& operand) {
  if (operand.given()) return check_gradient(op, argument, wanted, operand, dtype::float32);
  ConstArray number;
  number.type = dtype::float32;
  check_gradient(op, argument, wanted, number, dtype::float32);
}

template <class Device>
class RecallPullback {
 public:
  RecallPullback(std::string_view op, Device& device, const Fold& fold, const RecallArguments& recall)
      : op_(op), device_(device), fold_(fold), outer_(recall.outer), rows_(recall.rows), patterns_(recall.patterns) {}

  float* floats(index_t count) { return static_cast<float*>(device_.scratch(count * static_cast<index_t>(sizeof(float)))); }
  index_t all_rows() const { return outer_ * rows_; }

  /// Dense rows, for all rows.
  template <class P = void>
  Operand<P> dense(float* data, int width, dtype type = dtype::float32) const {
    return {dense_rows<P>(fold_, data, width), type};
  }

  /// The type of what gradients of steps hand on: where tensor cores take it, that of the patterns.
  dtype between(const RecallArguments& recall, const Operand<void>& state) const {
    RecallBackwardArguments a;
    a.recall = recall;
    a.recall.value = {};
    a.recall.query = as_query(state);
    a.d_out = dense<const void>(nullptr, recall.width, recall.key.type);
    return on_tensor_cores(device_.architecture(), a) ? recall.key.type : dtype::float32;
  }

  /// Where the gradient of queries goes: where it is wanted, or what is summed into that.
  Operand<void> rows(const Wanted& d, int width) {
    if (!d.array.given()) return {};
    const Operand<void> to{fold_.place(d.bound, d.array.data, true, 1), d.array.type};
    if (covers(fold_.outer, to.at.outer) && covers(fold_.rows, to.at.row)) return to;
    float* const from = floats(all_rows() * width);
    sums_.push_back(sum_over(from, width, {{fold_.outer, to.at.outer}, {fold_.rows, to.at.row}}, to.at.data, to.type, to.at.inner));
    return dense(from, width);
  }

  /// The same for a memory. One that is added to has to be float32.
  MemoryGradient memory(const Wanted& d, int width, bool added_to) {
    if (!d.array.given()) return {};
    const MemoryGradient to = pattern_rows(fold_, d.bound, d.array.data, d.array.type);
    if (covers(fold_.outer, to.outer) && (!added_to || to.type == dtype::float32)) return to;
    float* const from = floats(outer_ * patterns_ * width);
    Axes stored;
    stored.add(patterns_);
    const Strides row{to.row};
    sums_.push_back(sum_over(from, width, {{fold_.outer, to.outer}, {stored, row}}, to.data, to.type, to.inner));
    return dense_memory(from, width);
  }

  /// Room for a number of every row, `steps` times over, that is summed into the gradient of a scale.
  float* scales(const Wanted& d, index_t steps) {
    if (!d.array.given()) return nullptr;
    const Placed<void> to = fold_.place(d.bound, d.array.data, false, -1);
    float* const from = floats(steps * all_rows());
    Axes taken;
    taken.add(steps);
    const Strides same{};
    sums_.push_back(sum_over(from, 1, {{taken, same}, {fold_.outer, to.outer}, {fold_.rows, to.row}}, to.data, d.array.type, 1));
    return from;
  }

  /// The gradients of one softmax.
  void run(RecallBackwardArguments& a) {
    if (!a.energy) {
      a.dots = floats(all_rows());
      launch<RecallDots>(op_, device_, a);
    }
    if (on_tensor_cores(device_.architecture(), a)) return run_sm80(a);
    select_backward(std::max(a.recall.width, a.recall.value_width), [&]<class RowsKernel, class PatternsKernel>() {
      if (a.d_query.given() || a.d_scales) launch<RowsKernel>(op_, device_, a);
      if (a.d_key.given() || a.d_value.given()) launch<PatternsKernel>(op_, device_, a);
    });
  }

  /// That of a bias, once the rest is done.
  void bias(const Wanted& d, const RecallBackwardArguments& a) {
    if (!d.array.given()) return;
    const Placed<void> to = fold_.place(d.bound, d.array.data, true, 1);
    if (to.inner == 0 && patterns_ > 1) {  // the same for all keys: a softmax does not change with it
      sums_.push_back(sum_over(nullptr, 1, {{fold_.outer, to.outer}, {fold_.rows, to.row}}, to.data, d.array.type, 1));
      sums_.back().gone = {};
      sums_.back().gone.add(0);
      return;
    }
    BiasGradientArguments b;
    b.backward = a;
    b.rows = fold_.rows.extents[fold_.rows.rank - 1];
    b.to = to.data;
    b.type = d.array.type;
    b.row = to.row[fold_.rows.rank - 1];
    b.inner = to.inner;
    lead(b, fold_.outer, fold_.outer.rank, to.outer, b.kept_outer, b.gone_outer);
    lead(b, fold_.rows, fold_.rows.rank - 1, to.row, b.kept_row, b.gone_row);
    select_bias(std::max(a.recall.width, a.recall.value_width), [&]<class Kernel>() { launch<Kernel>(op_, device_, b); });
  }

  void finish() {
    for (const SumArguments& sum : sums_) launch<RecallSum>(op_, device_, sum);
  }

 private:
  MemoryGradient dense_memory(float* data, int width) const {
    MemoryGradient dense{data, dtype::float32, {}, width, 1};
    index_t stride = patterns_ * width;
    for (int axis = fold_.outer.rank - 1; axis >= 0; stride *= fold_.outer.extents[axis--]) dense.outer[axis] = stride;
    return dense;
  }

  void run_sm80(const RecallBackwardArguments& a) {
    RecallBackwardSm80Arguments b{a};
    b.terms = static_cast<RowTerms*>(device_.scratch(b.table_rows() * static_cast<index_t>(sizeof(RowTerms))));
    b.places = static_cast<RowPlaces*>(device_.scratch(b.table_rows() * static_cast<index_t>(sizeof(RowPlaces))));
    launch<RecallBackwardTable>(op_, device_, b);
    select_backward_sm80(a.recall.key.type, a.recall.width, a.recall.shared() || a.energy, [&]<class RowsKernel, class PatternsKernel>() {
      if (a.d_query.given() || a.d_scales) run_rows<RowsKernel>(b);
      if (a.d_key.given() || a.d_value.given()) run_patterns<PatternsKernel>(b);
    });
  }

  /// Parts of a walk give results of their own, which are summed to where one result would go.
  template <class Kernel>
  void run_rows(RecallBackwardSm80Arguments b) {
    const RecallBackwardArguments to = b.backward;
    const index_t splits = to.energy ? 1 : b.splits(b.row_tiles(), patterns_);
    const int width = to.recall.width;
    b.backward.recall.splits = splits;
    float* const parts = splits > 1 && to.d_query.given() ? floats(splits * all_rows() * width) : nullptr;
    float* const scales = splits > 1 && to.d_scales ? floats(splits * all_rows()) : nullptr;
    if (parts) b.backward.d_query = dense(parts, width);
    if (scales) b.backward.d_scales = scales;
    launch<Kernel>(op_, device_, b);
    const auto sum = [&](const float* from, int wide, const Operand<void>& d) {
      sum_parts(splits, from, wide, {fold_.outer, d.at.outer}, {fold_.rows, d.at.row}, d.at.data, d.type, d.at.inner);
    };
    if (parts) sum(parts, width, to.d_query);
    if (scales) sum(scales, 1, dense(to.d_scales, 1));
  }
  template <class Kernel>
  void run_patterns(RecallBackwardSm80Arguments b) {
    const RecallBackwardArguments to = b.backward;
    const index_t splits = to.adds ? 1 : b.splits(b.pattern_tiles(), rows_);
    const int width = to.recall.width;
    b.backward.recall.splits = splits;
    const auto parts = [&](MemoryGradient& d) {
      if (splits > 1 && d.given()) d = dense_memory(floats(splits * outer_ * patterns_ * width), width);
    };
    parts(b.backward.d_key), parts(b.backward.d_value);
    launch<Kernel>(op_, device_, b);
    Axes stored;
    stored.add(patterns_);
    const auto sum = [&](const MemoryGradient& from, const MemoryGradient& d) {
      if (splits == 1 || !d.given()) return;
      const Strides row{d.row};
      sum_parts(splits, static_cast<const float*>(from.data), width, {fold_.outer, d.outer}, {stored, row}, d.data, d.type, d.inner);
    };
    sum(b.backward.d_key, to.d_key), sum(b.backward.d_value, to.d_value);
  }
  void sum_parts(index_t splits, const float* from, int width, Walked outer, Walked rows, void* to, dtype type, index_t inner) {
    Axes parts;
    parts.add(splits);
    const Strides same{};
    launch<RecallSum>(op_, device_, sum_over(from, width, {{parts, same}, outer, rows}, to, type, inner));
  }

  /// The first `rank` of some axes, along which a bias may be broadcast.
  static void lead(BiasGradientArguments& b, const Axes& axes, int rank, const Strides& to, Strides& kept, Strides& gone) {
    index_t stride = 1;
    for (int axis = axes.rank - 1; axis >= 0; stride *= axes.extents[axis--]) {
      if (axis >= rank) continue;
      if (to[axis] == 0) {
        gone[b.gone.rank] = stride;
        b.gone.add(axes.extents[axis]);
      } else {
        kept[b.kept.rank] = stride;
        b.kept_to[b.kept.rank] = to[axis];
        b.kept.add(axes.extents[axis]);
      }
    }
  }

  std::string_view op_;
  Device& device_;
  const Fold& fold_;
  index_t outer_, rows_, patterns_;
  std::vector<SumArguments> sums_;
};

}  // namespace recollect::cuda::detail
