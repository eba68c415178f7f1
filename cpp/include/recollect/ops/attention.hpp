// SPDX-License-Identifier: BSD-3-Clause
/// `attention::attend` on the CPU; the contract is in spec/attention.hpp.
#pragma once

#include <utility>

#include "recollect/ops/recall.hpp"
#include "recollect/ops/recall_checks.hpp"
#include "recollect/ops/recall_gradients.hpp"
#include "recollect/ops/top_k_read.hpp"
#include "recollect/spec/attention.hpp"

namespace recollect::attention {

namespace detail {

using namespace recollect::detail;

inline constexpr std::string_view op = "attention.attend";

inline void check(const operands& in) {
  check_recall_types(op, {"query", "key", "value", "scale", "mask"}, in.query, in.key, in.value, in.scale, in.mask);
  check_given(op, "value", in.value);
  if (in.bias.given() && in.bias.type != in.query.type)
    fail(status::type, op, ": bias has dtype ", name(in.bias.type), "; expected ", name(in.query.type), " as query");
  if (in.sink.given() && in.sink.type != dtype::float64)
    fail(status::type, op, ": sink has dtype ", name(in.sink.type), "; expected float64");
  check_numbers(op, "scale", in.scale, [](double s) { return std::isfinite(s); }, "a finite number");
  if (in.sink.given()) check_numbers(op, "sink", in.sink, [](double c) { return c < INFINITY; }, "a number below +inf");
}

inline Shapes bind(const operands& in) {
  const ConstArray list[] = {in.query, in.key, in.value, in.scale, in.mask, in.bias, in.sink};
  return Shapes(op, operand_shapes, list);
}

template <class T>
RecallProblem<T> make_attention(const Shapes& shapes, const operands& in, causal rule) {
  const ConstArray arrays[] = {in.query, in.key, in.value, in.scale, in.mask};
  RecallProblem<T> p = make_problem<T>(shapes, arrays, 'm');
  p.bias = p.fold.place(shapes[5], static_cast<const T*>(in.bias.data), true, 1);
  p.sink = p.fold.place(shapes[6], static_cast<const double*>(in.sink.data), false, -1);
  p.causal = {rule != causal::none, rule == causal::bottom_right ? p.patterns - shapes.extent('n') : 0};
  return p;
}

inline void check_results(const operands& in, const Shapes& shapes, const results& out) {
  const index_t n = shapes.extent('n');
  check_output(op, "out", out.out, in.query.type, shapes, {n, shapes.extent('e')});
  check_output(op, "lse", out.lse, in.query.type, shapes, {n});
  check_output(op, "largest", out.saved.largest, in.query.type, shapes, {n});
  check_output(op, "log_sum", out.saved.log_sum, in.query.type, shapes, {n});
}

}  // namespace detail

/// Cost O(n m (d + e)) time, O(block) memory; a causal rule halves it.
inline void attend(const operands& in, causal rule, const results& out) {
  detail::check(in);
  const Shapes shapes = detail::bind(in);
  detail::check_results(in, shapes, out);
  visit_arithmetic(in.query.type, [&]<class T>() {
    const detail::RecallProblem<T> problem = detail::make_attention<T>(shapes, in, rule);
    const int batch = shapes.batch_rank();
    detail::RecallResults<T> to;
    to.out = problem.fold.template place_output<T>(out.out, batch);
    to.log_total = problem.fold.template place_output<T>(out.lse, batch);
    to.largest = problem.fold.template place_output<T>(out.saved.largest, batch);
    to.log_sum = problem.fold.template place_output<T>(out.saved.log_sum, batch);
    detail::Recall<T, softmax>(problem, {0, -1, 0}, to, false).run();
  });
}

namespace detail {

/// Everything that any backward pass is given is checked; then run<T>(problem, place, wanted, shapes), where place(array) says where the
/// rows of what is shaped like an output lie.
template <class Run>
void backward(const operands& in, causal rule, const ConstArray& out, const ConstArray& d_out, const gradients& d_in, Run&& run) {
  check(in);
  check_given(op, "out", out);
  check_given(op, "d_out", d_out);
  const dtype type = in.query.type;
  check_gradient(op, "d_query", d_in.query, in.query, type);
  check_gradient(op, "d_key", d_in.key, in.key, type);
  check_gradient(op, "d_value", d_in.value, in.value, type);
  check_gradient(op, "d_scale", d_in.scale, in.scale, dtype::float64);
  check_gradient(op, "d_bias", d_in.bias, in.bias, type);
  check_gradient(op, "d_sink", d_in.sink, in.sink, dtype::float64);
  const ConstArray list[] = {in.query,   in.key,   in.value,   in.scale,   in.mask,   in.bias,  in.sink,
                             d_in.query, d_in.key, d_in.value, d_in.scale, d_in.bias, d_in.sink};
  const Shapes shapes(op, gradient_shapes, list);
  const index_t n = shapes.extent('n'), e = shapes.extent('e');
  check_output(op, "out", as_output(out), type, shapes, {n, e});
  check_output(op, "d_out", as_output(d_out), type, shapes, {n, e});
  enum { d_query = 7, d_key, d_value, d_scale, d_bias, d_sink };
  const WantedGradients wanted{{d_in.query, shapes[d_query]}, {d_in.key, shapes[d_key]},   {d_in.value, shapes[d_value]},
                               {d_in.scale, shapes[d_scale]}, {d_in.bias, shapes[d_bias]}, {d_in.sink, shapes[d_sink]}};
  visit_arithmetic(type, [&]<class T>() {
    const RecallProblem<T> problem = make_attention<T>(shapes, in, rule);
    const auto place = [&](const ConstArray& array) {
      return problem.fold.template place_output<const T>(as_output(array), shapes.batch_rank());
    };
    run.template operator()<T>(problem, place, wanted, shapes);
  });
}

}  // namespace detail

/// d_in = J^T d_out, with what the forward pass returned and saved for the same operands. Cost 5/2 of the forward pass.
inline void attend_backward(const operands& in, causal rule, const saved& kept, const ConstArray& out, const ConstArray& d_out,
                            const gradients& d_in) {
  detail::check_given(detail::op, "largest", kept.largest);
  detail::check_given(detail::op, "log_sum", kept.log_sum);
  detail::backward(in, rule, out, d_out, d_in,
                   [&]<class T>(const detail::RecallProblem<T>& problem, const auto& place, const auto& wanted, const Shapes& shapes) {
                     detail::check_results(in, shapes, {{}, {}, {detail::as_output(kept.largest), detail::as_output(kept.log_sum)}});
                     const detail::RecallCotangents<T> cotangents{place(d_out), place(out), {}, place(kept.largest), place(kept.log_sum)};
                     detail::run_backward<T, softmax>(problem, cotangents, wanted);
                   });
}

/// Attention to the k best keys of each query alone, softmax over them (and the sink): `indices` (..., n, k), int64, and `weights` say
/// which and how much, falling, -1 and 0 where fewer are allowed. Equal scores: the lower index. Cost O(n m d + n k e).
inline void attend_top_k(const operands& in, causal rule, const results& out, const Array& indices, const Array& weights) {
  using namespace detail;
  constexpr std::string_view op = detail::op;
  check(in);
  const Shapes shapes = bind(in);
  check_results(in, shapes, out);
  for (const auto& [argument, array] : {std::pair<const char*, ConstArray>{"out", out.out}, {"indices", indices}, {"weights", weights}})
    check_given(op, argument, array);
  const index_t n = shapes.extent('n'), k = indices.rank > 0 ? indices.extents[indices.rank - 1] : 0;
  if (k < 1 || k > shapes.extent('m')) fail(status::value, op, ": top_k is ", k, "; expected a number from 1 to m=", shapes.extent('m'));
  check_output(op, "indices", indices, dtype::int64, shapes, {n, k});
  check_output(op, "weights", weights, in.query.type, shapes, {n, k});
  visit_arithmetic(in.query.type, [&]<class T>() {
    const RecallProblem<T> problem = make_attention<T>(shapes, in, rule);
    const int batch = shapes.batch_rank();
    const Buffer<T> totals(problem.outer * problem.rows);
    Array total;
    total.data = totals.data();
    total.type = dtype_of<T>;
    total.rank = batch + 1;
    total.extents[batch] = n;
    index_t stride = 1;
    for (int axis = batch; axis >= 0; --axis) {
      if (axis < batch) total.extents[axis] = shapes.batch_extent(axis);
      total.strides[axis] = stride;
      stride *= total.extents[axis];
    }
    RecallResults<T> to;
    to.log_total = problem.fold.template place_output<T>(total, batch);
    to.nearest = problem.fold.template place_output<index_t>(indices, batch);
    to.nearest_weight = problem.fold.template place_output<T>(weights, batch);
    to.k = k;
    Recall<T, softmax>(problem, {0, -1, 0}, to, true).run();
    const Selection<T> selection{to.nearest, to.nearest_weight, k};
    TopKRead<T>(problem, selection)
        .forward(problem.fold.template place_output<T>(out.out, batch), to.log_total,
                 problem.fold.template place_output<T>(out.lse, batch));
  });
}

/// d_in = J^T d_out of `attend_top_k`, through what was selected alone. Cost O(n k (d + e)), and zeros for the rest of the memory.
inline void attend_top_k_backward(const operands& in, causal rule, const ConstArray& indices, const ConstArray& weights,
                                  const ConstArray& out, const ConstArray& d_out, const gradients& d_in) {
  detail::check_given(detail::op, "indices", indices);
  detail::check_given(detail::op, "weights", weights);
  detail::backward(in, rule, out, d_out, d_in,
                   [&]<class T>(const detail::RecallProblem<T>& problem, const auto& place, const auto& wanted, const Shapes& shapes) {
                     const index_t n = shapes.extent('n'), k = indices.rank > 0 ? indices.extents[indices.rank - 1] : 0;
                     detail::check_output(detail::op, "indices", detail::as_output(indices), dtype::int64, shapes, {n, k});
                     detail::check_output(detail::op, "weights", detail::as_output(weights), in.query.type, shapes, {n, k});
                     const int batch = shapes.batch_rank();
                     const detail::Selection<T> selection{problem.fold.template place_output<index_t>(detail::as_output(indices), batch),
                                                          problem.fold.template place_output<T>(detail::as_output(weights), batch), k};
                     detail::with_gradients<T>(problem, wanted, [&](const detail::RecallGradients<T>& to) {
                       detail::TopKRead<T>(problem, selection).backward(place(out), place(d_out), to);
                     });
                   });
}

}  // namespace recollect::attention
