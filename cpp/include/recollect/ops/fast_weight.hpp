// SPDX-License-Identifier: BSD-3-Clause
/// `fast_weight::forward` and `backward` on the CPU; the contract is in spec/fast_weight.hpp.
#pragma once

#include <limits>
#include <optional>

#include "recollect/core/parallel.hpp"
#include "recollect/ops/fast_weight_sequence.hpp"
#include "recollect/ops/recall_checks.hpp"
#include "recollect/ops/recall_gradients.hpp"

namespace recollect::fast_weight {

namespace detail {

using namespace recollect::detail;

enum { query, key, value, beta, a, b, decay, channel_decay, scale, state, operand_count };
using Operands = std::array<ConstArray, operand_count>;

inline Operands listed(const operands& in) {
  return {in.query, in.key, in.value, in.beta, in.a, in.b, in.decay, in.channel_decay, in.scale, in.state};
}

inline std::array<Array, operand_count> listed(const gradients& in) {
  return {in.query, in.key, in.value, in.beta, in.a, in.b, in.decay, in.channel_decay, in.scale, in.state};
}

/// Of numbers to visit: what takes less than it takes another thread to wake up is done by this one.
inline constexpr index_t fewest_shared_numbers = index_t{1} << 18;

/// Every decay is in (0, 1], or its logarithm at most 0; NaN is neither.
template <class T>
void check_decay(std::string_view op, const ConstArray& array, bool logarithm) {
  if (!array.given() || array.size() == 0) return;
  Axes axes;
  Strides strides{};
  for (int axis = 0; axis + 1 < array.rank; ++axis) {
    axes.add(array.extents[axis]);
    strides[axis] = array.strides[axis];
  }
  const index_t last = array.extents[array.rank - 1], stride = array.strides[array.rank - 1], rows = axes.count();
  const index_t tasks = rows * last < fewest_shared_numbers ? 1 : std::min<index_t>(rows, 64);
  parallel_for(tasks, [&](index_t task) {
    for (index_t i = rows * task / tasks; i < rows * (task + 1) / tasks; ++i) {
      const T* row = static_cast<const T*>(array.data) + axes.offset(i, strides);
      T low = 1, high = logarithm ? T(0) : T(1);
      const T top = high;
      bool unordered = false;
      for (index_t k = 0; k < last; ++k) {
        const T number = row[k * stride];
        low = number < low ? number : low;
        high = number > high ? number : high;
        unordered |= number != number;
      }
      if (unordered) low = high = std::numeric_limits<T>::quiet_NaN();
      if (!(high <= top) || (!logarithm && low <= 0))
        fail(status::value, op, logarithm ? ": log_decay is " : ": decay is ", static_cast<double>(high <= top ? low : high), "; expected ",
             logarithm ? "a number of at most 0" : "a number above 0 and at most 1");
    }
  });
}

inline dtype type_of(const operands& in) { return in.query.given() ? in.query.type : in.key.type; }

inline void check(std::string_view op, const operands& in, const parameters& p) {
  if (in.key.given() != in.value.given()) fail(status::value, op, ": ", in.key.given() ? "value" : "key", " is missing");
  if (!in.query.given()) check_given(op, "key", in.key);
  if (!in.key.given()) check_given(op, "state", in.state);
  check_given(op, "scale", in.scale);
  if (p.rule == rule::general && in.key.given()) check_given(op, "b", in.b);
  if (p.chunk < 1) fail(status::value, op, ": chunk is ", p.chunk, "; expected a number of 1 or more");
  const Operands all = listed(in);
  const dtype type = type_of(in);
  for (int i = 0; i < operand_count; ++i) {
    if (!all[i].given()) continue;
    const dtype wanted = i == scale ? dtype::float64 : type;
    const bool usable = all[i].type == wanted && (wanted == dtype::float32 || wanted == dtype::float64);
    if (!usable)
      fail(status::type, op, ": ", operand_shapes[i].name, " has dtype ", name(all[i].type), "; expected ",
           all[i].type == wanted ? "float32 or float64" : name(wanted));
  }
  check_numbers(op, "scale", in.scale, [](double s) { return std::isfinite(s); }, "a finite number");
  visit_arithmetic(type, [&]<class T>() {
    check_decay<T>(op, in.decay, p.log_decay);
    check_decay<T>(op, in.channel_decay, p.log_decay);
  });
}

/// What letters alone cannot say: the width of phi, and that of a state with or without its normaliser.
inline void check_widths(std::string_view op, const operands& in, const Shapes& shapes, index_t width, index_t values, index_t behind) {
  const auto fits = [&](const char* argument, const ConstArray& array) {
    if (array.given() && array.extents[array.rank - 1] != width)
      fail(status::value, op, ": ", argument, " has shape ", array.shape_text(), "; expected a last axis of ", width,
           ", the width of the feature map");
  };
  fits("a", in.a);
  fits("b", in.b);
  fits("decay", in.channel_decay);
  const index_t columns = values + behind;
  if (in.state.given() && (shapes.extent('K') != width || shapes.extent('W') != columns))
    fail(status::value, op, ": state has shape ", in.state.shape_text(), "; expected (..., K=", width, ", ", columns, ")",
         behind == 0   ? ""
         : behind == 1 ? ", the last column of which is the normaliser"
                       : ", the last columns of which are the normaliser and the logarithms of what rows are divided by");
}

/// A problem: batch entries, each of which is a sequence.
template <class T>
struct Problem {
  Axes batch;
  index_t tokens = 0, values = 0, columns = 0;
  std::array<BoundOperand, operand_count> bound{};

  Strides strides(const BoundOperand& operand) const {
    Strides all{};
    std::copy_n(operand.batch.begin(), batch.rank, all.begin());
    return all;
  }

  template <class P>
  Rows<P> rows(int operand, P* data, index_t h) const {
    const BoundOperand& o = bound[operand];
    if (!data || !o.given) return {};
    return {data + batch.offset(h, strides(o)), o.inner[0], o.inner[1]};
  }

  /// Rows of an output or of what is shaped like one: (leading axes..., two letters).
  template <class P, class Given>
  Rows<P> output(const Given& array, index_t h) const {
    if (!array.given()) return {};
    Strides all{};
    std::copy_n(array.strides.begin(), batch.rank, all.begin());
    return {static_cast<P*>(array.data) + batch.offset(h, all), array.strides[batch.rank], array.strides[batch.rank + 1]};
  }

  Sequence<const T> sequence(const Operands& in, index_t h) const {
    const auto at = [&](int operand) { return rows(operand, static_cast<const T*>(in[operand].data), h); };
    return {at(query), at(key), at(value), at(beta), at(a), at(b), at(decay), at(channel_decay), at(state)};
  }

  double scale_of(const Operands& in, index_t h) const {
    return static_cast<const double*>(in[scale].data)[batch.offset(h, strides(bound[scale]))];
  }
};

template <class T>
Problem<T> make_problem(const Shapes& shapes, index_t tokens, index_t values, index_t behind) {
  Problem<T> problem;
  for (int axis = 0; axis < shapes.batch_rank(); ++axis) problem.batch.add(shapes.batch_extent(axis));
  for (int i = 0; i < operand_count; ++i) problem.bound[i] = shapes[i];
  problem.tokens = tokens;
  problem.values = values;
  problem.columns = values + behind;
  return problem;
}

inline index_t value_width(const operands& in, const Shapes& shapes, index_t behind) {
  if (in.value.given()) return shapes.extent('V');
  return std::max<index_t>(shapes.extent('W') - behind, 0);
}

inline void check_results(std::string_view op, const operands& in, const parameters& p, const Shapes& shapes, const results& out, index_t K,
                          index_t V, index_t behind) {
  const dtype type = type_of(in);
  const index_t T = shapes.extent('T'), W = V + behind;
  check_output(op, "out", out.out, type, shapes, {T, V});
  check_output(op, "state", out.state, type, shapes, {K, W});
  check_output(op, "written", out.saved.written, type, shapes, {T, V});
  check_output(op, "checkpoints", out.saved.checkpoints, type, shapes, {chunks_of(T, p.chunk), K, W});
}

/// Dense behind the leading axes: the place of entry h.
template <class P, class Given, class T>
P* dense_at(const Given& array, const Problem<T>& problem, index_t h) {
  if (!array.given()) return nullptr;
  index_t size = 1;
  for (int axis = problem.batch.rank; axis < array.rank; ++axis) size *= array.extents[axis];
  return static_cast<P*>(array.data) + h * size;
}

/// Few sequences are cut into blocks of value columns, which do not depend on each other.
template <class T>
index_t column_blocks(index_t sequences, index_t values) {
  const index_t strips = (values + strip_columns<T> - 1) / strip_columns<T>;
  return std::clamp<index_t>(8 / std::max<index_t>(sequences, 1), 1, std::max<index_t>(strips, 1));
}

/// The columns of one block of `rows` and what is left of them.
template <class P>
Rows<P> from_column(Rows<P> rows, index_t column) {
  if (rows) rows.data += column * rows.inner;
  return rows;
}

}  // namespace detail

/// How many columns a state has behind those of its values, for keys and queries of d numbers.
template <class Map>
index_t columns_behind(const Map& map, index_t d, row_norm norm, const parameters& p) {
  return detail::columns_behind(p, detail::RowMap<float>(map, d, norm));
}

/// One pass over all tokens. `map` is what keys and queries go through: any type with `width`, `values` and `pullback`. Cost
/// O(T K V) time, 6 K V multiply-adds and adds a token for the delta rule; O(chunk) memory beyond what is saved.
template <class Map>
void forward(std::string_view op, const operands& in, const Map& map, row_norm norm, const parameters& p, const results& out) {
  using namespace detail;
  check(op, in, p);
  if (out.out.given()) check_given(op, "query", in.query);
  const Operands all = listed(in);
  const Shapes shapes(op, operand_shapes, all);
  const index_t d = shapes.extent('d'), behind = fast_weight::columns_behind(map, d, norm, p);
  const index_t V = value_width(in, shapes, behind), K = map.width(d);
  check_widths(op, in, shapes, K, V, behind);
  check_results(op, in, p, shapes, out, K, V, behind);
  visit_arithmetic(type_of(in), [&]<class T>() {
    const Problem<T> problem = make_problem<T>(shapes, shapes.extent('T'), V, behind);
    const RowMap<T> rows(map, d, norm);
    const index_t sequences = problem.batch.count();
    const bool normalised = p.normalise != normalisation::none;
    const bool few = sequences * problem.tokens * K * V < fewest_shared_numbers;
    const index_t blocks = few || normalised || out.saved.checkpoints.given() ? 1 : column_blocks<T>(sequences, V);
    const index_t strips = (V + strip_columns<T> - 1) / strip_columns<T>;
    const index_t tasks = few ? 1 : std::min<index_t>(sequences, 64) * blocks;
    parallel_for(tasks, [&](index_t task) {
      const index_t part = task / blocks, parts = tasks / blocks, block = task % blocks;
      const index_t column = std::min(V, block * strips / blocks * strip_columns<T>);
      const index_t end = std::min(V, (block + 1) * strips / blocks * strip_columns<T>);
      const SequenceScan<T> scan(p, rows, problem.tokens, end - column);
      for (index_t h = sequences * part / parts; h < sequences * (part + 1) / parts; ++h) {
        Sequence<const T> from = problem.sequence(all, h);
        from.value = from_column(from.value, column);
        from.state = from_column(from.state, column);
        const SequenceResults<T> to{
            from_column(problem.template output<T>(out.out, h), column), from_column(problem.template output<T>(out.state, h), column),
            from_column(problem.template output<T>(out.saved.written, h), column), dense_at<T>(out.saved.checkpoints, problem, h)};
        scan.forward(from, problem.scale_of(all, h), to);
      }
    });
  });
}

namespace detail {

/// The gradient of one operand: written where it belongs if every sequence has a place of its own there, otherwise into a buffer of all
/// sequences, which are then summed in order.
template <class T>
class OperandGradient {
 public:
  OperandGradient(const Problem<T>& problem, int operand, const Array& array, index_t rows, index_t columns)
      : problem_(problem), operand_(operand), array_(array), rows_(rows), columns_(columns) {
    if (!array.given() || covers(problem.batch, problem.strides(problem.bound[operand]))) return;
    buffer_.emplace(problem.batch.count() * rows * columns);
  }

  Rows<T> at(index_t h) const {
    if (!array_.given()) return {};
    if (buffer_) return {buffer_->data() + h * rows_ * columns_, columns_, 1};
    return problem_.rows(operand_, static_cast<T*>(array_.data), h);
  }

  void finish() const {
    // Without sequences nothing is written, and what is broadcast along the empty axis still has a gradient: zeros.
    if (buffer_ || (array_.given() && problem_.batch.count() == 0)) clear<T>(array_);
    if (!buffer_) return;
    for (index_t h = 0; h < problem_.batch.count(); ++h) {
      const Rows<T> to = problem_.rows(operand_, static_cast<T*>(array_.data), h);
      for (index_t i = 0; i < rows_; ++i)
        for (index_t k = 0; k < columns_; ++k) to.at(i, k) += buffer_->data()[(h * rows_ + i) * columns_ + k];
    }
  }

 private:
  const Problem<T>& problem_;
  const int operand_;
  const Array array_;
  const index_t rows_, columns_;
  std::optional<Buffer<T>> buffer_;
};

}  // namespace detail

/// d_in = J^T (d_out, d_state), with what the forward pass saved for the same operands and parameters; a cotangent not given is zero.
/// Cost three times the forward pass.
template <class Map>
void backward(std::string_view op, const operands& in, const Map& map, row_norm norm, const parameters& p, const saved& kept,
              const ConstArray& d_out, const ConstArray& d_state, const gradients& d_in) {
  using namespace detail;
  check(op, in, p);
  if (d_out.given()) check_given(op, "query", in.query);
  const Operands all = listed(in);
  const std::array<Array, operand_count> wanted = listed(d_in);
  const Shapes shapes(op, operand_shapes, all);
  const index_t d = shapes.extent('d'), behind = fast_weight::columns_behind(map, d, norm, p);
  const index_t V = value_width(in, shapes, behind), K = map.width(d);
  check_widths(op, in, shapes, K, V, behind);
  check_given(op, "checkpoints", kept.checkpoints);
  if (p.rule != rule::sum && in.key.given()) check_given(op, "written", kept.written);
  check_results(op, in, p, shapes, {as_output(d_out), as_output(d_state), {as_output(kept.written), as_output(kept.checkpoints)}}, K, V,
                behind);
  static constexpr const char* names[] = {"d_query", "d_key",   "d_value", "d_beta",  "d_a",
                                          "d_b",     "d_decay", "d_decay", "d_scale", "d_state"};
  for (int i = 0; i < operand_count; ++i) check_gradient(op, names[i], wanted[i], all[i], i == scale ? dtype::float64 : type_of(in));
  visit_arithmetic(type_of(in), [&]<class T>() {
    Problem<T> problem = make_problem<T>(shapes, shapes.extent('T'), V, behind);
    const RowMap<T> rows(map, d, norm);
    // Gradients lie at strides of their own: the operands' shapes are bound once more, with the gradients in their places.
    Operands places = all;
    for (int i = 0; i < operand_count; ++i)
      if (wanted[i].given()) places[i] = wanted[i];
    const Shapes gradient_shapes(op, operand_shapes, places);
    const Problem<T> to_problem = make_problem<T>(gradient_shapes, problem.tokens, V, behind);
    const index_t sequences = problem.batch.count(), tokens = problem.tokens;
    const index_t columns[] = {d, d, V, 1, K, K, 1, K, 0, problem.columns};
    std::vector<OperandGradient<T>> to;
    to.reserve(operand_count);
    for (int i = 0; i < operand_count; ++i)
      to.emplace_back(to_problem, i, i == scale ? Array{} : wanted[i], i == state ? K : tokens, columns[i]);
    const Buffer<double> scales(sequences);
    const SequenceScan<T> scan(p, rows, tokens, V);
    const index_t tasks = std::min<index_t>(sequences, 64);
    parallel_for(tasks, [&](index_t task) {
      for (index_t h = sequences * task / tasks; h < sequences * (task + 1) / tasks; ++h) {
        const SequenceTape<T> tape{problem.template output<const T>(d_out, h), problem.template output<const T>(d_state, h),
                                   problem.template output<const T>(kept.written, h), dense_at<const T>(kept.checkpoints, problem, h)};
        const Sequence<T> gradient{to[query].at(h), to[key].at(h),   to[value].at(h),         to[beta].at(h), to[a].at(h),
                                   to[b].at(h),     to[decay].at(h), to[channel_decay].at(h), to[state].at(h)};
        scales.data()[h] = scan.backward(problem.sequence(all, h), problem.scale_of(all, h), tape, gradient);
      }
    });
    for (const OperandGradient<T>& gradient : to) gradient.finish();
    clear<double>(d_in.scale);
    for (index_t h = 0; d_in.scale.given() && h < sequences; ++h)
      static_cast<double*>(d_in.scale.data)[to_problem.batch.offset(h, to_problem.strides(to_problem.bound[scale]))] += scales.data()[h];
  });
}

}  // namespace recollect::fast_weight
