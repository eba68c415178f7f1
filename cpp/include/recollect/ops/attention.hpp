// SPDX-License-Identifier: BSD-3-Clause
/// `attention::attend` on the CPU; the contract is in spec/attention.hpp.
#pragma once

#include "recollect/ops/recall_checks.hpp"
#include "recollect/ops/support_backward.hpp"
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

namespace detail {

/// run<T>(problem, separation), checked.
template <class Run>
void with_problem(const operands& in, const parameters& how, const Shapes& shapes, Run&& run) {
  if (in.sink.given() && how.separation.name != softmax::name && how.separation.name != top_k_softmax::name)
    fail(status::value, op, ": separation is ", how.separation.text(), "; expected 'softmax' or 'top_k_softmax' beside a sink");
  visit_separation(op, how.separation, 'm', shapes.extent('m'), [&](const auto& separation) {
    visit_arithmetic(in.query.type, [&]<class T>() { run(make_attention<T>(shapes, in, how.causal), separation); });
  });
}

}  // namespace detail

/// Cost O(n m (d + e)) time, O(block) memory; a causal rule halves it. A separation other than softmax: O(n m d) and the reads of what has
/// weight, of which memory holds some thousand rows at a time.
inline void attend(const operands& in, const parameters& how, const results& out) {
  detail::check(in);
  const Shapes shapes = detail::bind(in);
  detail::check_results(in, shapes, out);
  detail::with_problem(in, how, shapes, [&]<class T>(const detail::RecallProblem<T>& problem, const auto& separation) {
    const int batch = shapes.batch_rank();
    detail::RecallResults<T> to;
    to.out = problem.fold.template place_output<T>(out.out, batch);
    to.log_total = problem.fold.template place_output<T>(out.lse, batch);
    to.largest = problem.fold.template place_output<T>(out.saved.largest, batch);
    to.log_sum = problem.fold.template place_output<T>(out.saved.log_sum, batch);
    detail::run_recall<T>(problem, separation, {0, -1, 0}, to, false);
  });
}

/// d_in = J^T d_out, with what the forward pass returned and, for softmax, saved for the same operands. Cost 5/2 of the forward pass.
inline void attend_backward(const operands& in, const parameters& how, const saved& kept, const ConstArray& out, const ConstArray& d_out,
                            const gradients& d_in) {
  using namespace detail;
  constexpr std::string_view op = detail::op;
  check(in);
  check_given(op, "out", out);
  check_given(op, "d_out", d_out);
  if (how.separation.name == softmax::name) {
    check_given(op, "largest", kept.largest);
    check_given(op, "log_sum", kept.log_sum);
  }
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
  check_results(in, shapes, {as_output(out), {}, {as_output(kept.largest), as_output(kept.log_sum)}});
  check_output(op, "d_out", as_output(d_out), type, shapes, {shapes.extent('n'), shapes.extent('e')});
  enum { d_query = 7, d_key, d_value, d_scale, d_bias, d_sink };
  const WantedGradients wanted{{d_in.query, shapes[d_query]}, {d_in.key, shapes[d_key]},   {d_in.value, shapes[d_value]},
                               {d_in.scale, shapes[d_scale]}, {d_in.bias, shapes[d_bias]}, {d_in.sink, shapes[d_sink]}};
  with_problem(in, how, shapes, [&]<class T>(const RecallProblem<T>& problem, const auto& separation) {
    const auto place = [&](const ConstArray& array) {
      return problem.fold.template place_output<const T>(as_output(array), shapes.batch_rank());
    };
    const RecallCotangents<T> cotangents{place(d_out), place(out), {}, place(kept.largest), place(kept.log_sum)};
    run_recall_backward(problem, separation, cotangents, wanted);
  });
}

}  // namespace recollect::attention
