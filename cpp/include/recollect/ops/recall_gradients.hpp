// SPDX-License-Identifier: BSD-3-Clause
/// From the gradients of every row and memory to gradients of the operands' own shapes: what was broadcast is summed.
#pragma once

#include <optional>

#include "recollect/ops/recall_backward.hpp"

namespace recollect::detail {

/// A memory's gradient is written straight into its place if that is dense over (outer, N, width); otherwise by way of a buffer.
template <class T>
class MemoryGradient {
 public:
  MemoryGradient(const Fold& fold, const BoundOperand& operand, const Array& array, index_t patterns, index_t width)
      : fold_(fold), patterns_(patterns), width_(width) {
    if (!array.given()) return;
    target_ = fold.place(operand, static_cast<T*>(array.data), false, 1);
    row_ = operand.inner[0];
    index_t stride = patterns * width;
    bool dense = target_.inner == 1 && row_ == width;
    for (int axis = fold.outer.rank - 1; axis >= 0; --axis) {
      dense &= target_.outer[axis] == stride || fold.outer.extents[axis] == 1;
      stride *= fold.outer.extents[axis];
    }
    if (!dense) buffer_.emplace(stride);
  }

  T* place() const { return buffer_ ? buffer_->data() : target_.data; }

  void finish() const {
    if (!buffer_) return;
    for (const bool adding : {false, true})  // first zeros, for every place may be met more than once
      for (index_t o = 0; o < fold_.outer.count(); ++o) {
        T* to = target_.data + fold_.outer.offset(o, target_.outer);
        const T* from = buffer_->data() + o * patterns_ * width_;
        for (index_t i = 0; i < patterns_; ++i)
          for (index_t k = 0; k < width_; ++k) {
            T& number = to[i * row_ + k * target_.inner];
            number = adding ? number + from[i * width_ + k] : T(0);
          }
      }
  }

 private:
  const Fold& fold_;
  const index_t patterns_, width_;
  index_t row_ = 0;
  Placed<T> target_;
  std::optional<Buffer<T>> buffer_;
};

/// to(o, r, :) = sum over all (o, r) that are one place of `to`.
template <class To, class From, class Problem>
void sum_rows(const Problem& p, const Placed<To>& to, const From* from, index_t width) {
  for (const bool adding : {false, true})
    for (index_t o = 0; o < p.outer; ++o)
      for (index_t r = 0; r < p.rows; ++r) {
        To* place = p.at(to, o, r);
        for (index_t k = 0; k < width; ++k) {
          To& number = place[k * to.inner];
          number = adding ? number + from[(o * p.rows + r) * width + k] : To(0);
        }
      }
}

template <class T>
void clear(const Array& array) {
  Axes axes;
  Strides strides{};
  for (int axis = 0; axis < array.rank; ++axis) {
    axes.add(array.extents[axis]);
    strides[axis] = array.strides[axis];
  }
  for (index_t i = 0; array.given() && i < axes.count(); ++i) static_cast<T*>(array.data)[axes.offset(i, strides)] = T(0);
}

/// A gradient that may be wanted: its array and how the check bound it.
struct Wanted {
  Array array;
  BoundOperand bound;
};
struct WantedGradients {
  Wanted state, stored, values, beta, bias, sink;
};

/// Calls run(RecallGradients<T>) with places for what is wanted.
template <class T, class Run>
void with_gradients(const RecallProblem<T>& p, const WantedGradients& wanted, Run&& run) {
  if (p.outer == 0 || p.rows == 0) {
    for (const Wanted* w : {&wanted.state, &wanted.stored, &wanted.values, &wanted.bias}) clear<T>(w->array);
    for (const Wanted* w : {&wanted.beta, &wanted.sink}) clear<double>(w->array);
    return;
  }
  RecallGradients<T> to;
  std::optional<Buffer<T>> states;
  std::optional<Buffer<double>> betas, sinks;
  const auto of_rows = [&](const Wanted& w) { return p.fold.place(w.bound, static_cast<double*>(w.array.data), false, -1); };
  const Placed<T> state = p.fold.place(wanted.state.bound, static_cast<T*>(wanted.state.array.data), true, 1);
  to.d_state = state;
  if (state && !(covers(p.fold.outer, state.outer) && covers(p.fold.rows, state.row))) {
    states.emplace(p.outer * p.rows * p.width);
    to.d_state = {states->data(), {}, {}, 1};
    index_t stride = p.width;
    for (int axis = p.fold.rows.rank - 1; axis >= 0; stride *= p.fold.rows.extents[axis--]) to.d_state.row[axis] = stride;
    for (int axis = p.fold.outer.rank - 1; axis >= 0; stride *= p.fold.outer.extents[axis--]) to.d_state.outer[axis] = stride;
  }
  if (wanted.beta.bound.given) to.d_beta = betas.emplace(p.outer * p.rows).data();
  if (wanted.sink.bound.given) to.d_sink = sinks.emplace(p.outer * p.rows).data();
  to.d_bias = p.fold.place(wanted.bias.bound, static_cast<T*>(wanted.bias.array.data), true, 1);
  clear<T>(wanted.bias.array);
  const MemoryGradient<T> stored(p.fold, wanted.stored.bound, wanted.stored.array, p.patterns, p.width);
  const MemoryGradient<T> values(p.fold, wanted.values.bound, wanted.values.array, p.patterns, p.value_width);
  to.d_stored = stored.place();
  to.d_values = values.place();
  run(to);
  stored.finish();
  values.finish();
  if (states) sum_rows(p, state, states->data(), p.width);
  if (betas) sum_rows(p, of_rows(wanted.beta), betas->data(), 1);
  if (sinks) sum_rows(p, of_rows(wanted.sink), sinks->data(), 1);
}

}  // namespace recollect::detail
