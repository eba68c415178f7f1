// SPDX-License-Identifier: BSD-3-Clause
/// `hopfield::energy` and `hopfield::retrieve` on the CPU; the contract is in spec/hopfield.hpp.
#pragma once

#include "recollect/ops/recall_checks.hpp"
#include "recollect/ops/support_backward.hpp"
#include "recollect/spec/hopfield.hpp"

namespace recollect::hopfield {

namespace detail {

using namespace recollect::detail;

/// Checks everything that is wrong about the operands themselves and returns their shapes.
inline Shapes check(std::string_view op, const operands& in) {
  check_recall_types(op, {"state", "patterns", "values", "beta", "mask"}, in.state, in.patterns, in.values, in.beta, in.mask);
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask};
  return Shapes(op, operand_shapes, list);
}

template <class F>
void with_problem(const operands& in, const Shapes& shapes, std::string_view op, const choice& wanted, F&& f) {
  visit_separation(op, wanted, 'N', shapes.extent('N'), [&](const auto& separation) {
    visit_arithmetic(in.state.type, [&]<class T>() {
      const ConstArray arrays[] = {in.state, in.patterns, in.values, in.beta, in.mask};
      f(make_problem<T>(shapes, arrays, 'N'), separation);
    });
  });
}

/// Gradients have the shapes of their operands; what is not wanted is left out.
inline Shapes check_gradients(std::string_view op, const operands& in, const gradients& d_in) {
  check_gradient(op, "d_state", d_in.state, in.state, in.state.type);
  check_gradient(op, "d_patterns", d_in.patterns, in.patterns, in.state.type);
  check_gradient(op, "d_values", d_in.values, in.values, in.state.type);
  check_gradient(op, "d_beta", d_in.beta, in.beta, dtype::float64);
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask, d_in.state, d_in.patterns, d_in.values, d_in.beta};
  return Shapes(op, gradient_shapes, list);
}

/// Where the rows of the outputs lie.
template <class T>
RecallResults<T> place_results(const RecallProblem<T>& p, const Shapes& shapes, const results& out) {
  const int batch = shapes.batch_rank();
  RecallResults<T> to;
  to.out = p.fold.template place_output<T>(out.state, batch);
  to.energy = p.fold.template place_output<T>(out.energy, batch);
  to.lse = p.fold.template place_output<T>(out.lse, batch);
  to.largest = p.fold.template place_output<T>(out.saved.largest, batch);
  to.log_sum = p.fold.template place_output<T>(out.saved.log_sum, batch);
  to.steps = p.fold.template place_output<index_t>(out.steps, batch);
  to.converged = p.fold.template place_output<bool>(out.converged, batch);
  return to;
}

inline void check_results(std::string_view op, const operands& in, const Shapes& shapes, const results& out) {
  const index_t n = shapes.extent('n'), width = in.values.given() ? shapes.extent('e') : shapes.extent('d');
  check_output(op, "out", out.state, in.state.type, shapes, {n, width});
  check_output(op, "energy", out.energy, in.state.type, shapes, {n});
  check_output(op, "lse", out.lse, in.state.type, shapes, {n});
  check_output(op, "largest", out.saved.largest, in.state.type, shapes, {n});
  check_output(op, "log_sum", out.saved.log_sum, in.state.type, shapes, {n});
  check_output(op, "steps", out.steps, dtype::int64, shapes, {n});
  check_output(op, "converged", out.converged, dtype::boolean, shapes, {n});
}

inline void check_beta(std::string_view op, const ConstArray& beta) {
  check_numbers(op, "beta", beta, [](double b) { return b > 0 && std::isfinite(b); }, "a positive finite number");
}

/// The gradient of either op; `out` is that of a read, and not given for an energy.
inline void backward(std::string_view op, const operands& in, const choice& separation, const saved& kept, const ConstArray& out,
                     const ConstArray& d_out, const gradients& d_in) {
  check(op, in);
  check_beta(op, in.beta);
  const Shapes shapes = check_gradients(op, in, d_in);
  check_given(op, "d_out", d_out);
  if (separation.name == softmax::name) {
    check_given(op, "largest", kept.largest);
    check_given(op, "log_sum", kept.log_sum);
  }
  results forward;
  forward.state = as_output(out);
  forward.saved = {as_output(kept.largest), as_output(kept.log_sum)};
  check_results(op, in, shapes, forward);
  const index_t n = shapes.extent('n'), width = in.values.given() ? shapes.extent('e') : shapes.extent('d');
  if (out.given())
    check_output(op, "d_out", as_output(d_out), in.state.type, shapes, {n, width});
  else
    check_output(op, "d_out", as_output(d_out), in.state.type, shapes, {n});
  with_problem(in, shapes, op, separation, [&]<class T>(const RecallProblem<T>& problem, const auto& separate) {
    const auto place = [&](const ConstArray& array) {
      return problem.fold.template place_output<const T>(as_output(array), shapes.batch_rank());
    };
    RecallCotangents<T> cotangents{{}, place(out), {}, place(kept.largest), place(kept.log_sum)};
    (out.given() ? cotangents.d_out : cotangents.d_energy) = place(d_out);
    enum { d_state = 5, d_patterns, d_values, d_beta };
    run_recall_backward(problem, separate, cotangents,
                        {{d_in.state, shapes[d_state]},
                         {d_in.patterns, shapes[d_patterns]},
                         {d_in.values, shapes[d_values]},
                         {d_in.beta, shapes[d_beta]},
                         {},
                         {}});
  });
}

}  // namespace detail

/// E of every state pattern, into out.energy; lse and what is saved if wanted. Cost O(n N d) time, O(block) memory.
inline void energy(const operands& in, const choice& separation, const results& out) {
  constexpr std::string_view op = "hopfield.energy";
  if (out.state.given()) fail(status::value, op, ": state is given as an output; an energy moves no state");
  const Shapes shapes = detail::check(op, in);
  detail::check_beta(op, in.beta);
  detail::check_results(op, in, shapes, out);
  detail::with_problem(in, shapes, op, separation, [&]<class T>(const detail::RecallProblem<T>& problem, const auto& separate) {
    const auto results = detail::place_results(problem, shapes, out);
    detail::run_recall<T>(problem, separate, {0, -1, 0}, results, true);
  });
}

/// d_in = J^T d_out, with what the forward pass saved for the same operands. Cost 3/2 to 2 times the forward pass.
inline void energy_backward(const operands& in, const choice& separation, const saved& kept, const ConstArray& d_out,
                            const gradients& d_in) {
  detail::backward("hopfield.energy", in, separation, kept, {}, d_out, d_in);
}

/// Cost O(steps n N (d + e)) time, O(block) memory.
inline void retrieve(const operands& in, const parameters& p, const results& out) {
  constexpr std::string_view op = "hopfield.retrieve";
  const Shapes shapes = detail::check(op, in);
  detail::check_beta(op, in.beta);
  if (p.steps < 1) fail(status::value, op, ": steps is ", p.steps, "; expected at least 1");
  detail::check_results(op, in, shapes, out);
  detail::with_problem(in, shapes, op, p.separation, [&]<class T>(const detail::RecallProblem<T>& problem, const auto& separate) {
    const auto results = detail::place_results(problem, shapes, out);
    const double rest = p.tol >= 0 ? p.tol : default_tolerance(in.state.type);
    detail::run_recall<T>(problem, separate, {p.steps - (in.values.given() ? 1 : 0), p.tol, rest}, results, false);
  });
}

/// The k stored patterns with the largest weights: their numbers into `indices` (..., n, k), int64, and the weights, falling;
/// among equals the lower number first. Where fewer are admissible, number -1 and weight 0. Cost O(n N d) time, O(block) memory.
inline void nearest(const operands& in, const choice& separation, const Array& indices, const Array& weights) {
  constexpr std::string_view op = "hopfield.nearest";
  const Shapes shapes = detail::check(op, in);
  detail::check_beta(op, in.beta);
  detail::check_given(op, "indices", indices);
  detail::check_given(op, "weights", weights);
  const index_t n = shapes.extent('n'), k = indices.rank > 0 ? indices.extents[indices.rank - 1] : 0;
  if (k < 1 || k > shapes.extent('N')) fail(status::value, op, ": k is ", k, "; expected a number from 1 to N=", shapes.extent('N'));
  detail::check_output(op, "indices", indices, dtype::int64, shapes, {n, k});
  detail::check_output(op, "weights", weights, in.state.type, shapes, {n, k});
  detail::with_problem(in, shapes, op, separation, [&]<class T>(const detail::RecallProblem<T>& problem, const auto& separate) {
    detail::RecallResults<T> results;
    results.nearest = problem.fold.template place_output<index_t>(indices, shapes.batch_rank());
    results.nearest_weight = problem.fold.template place_output<T>(weights, shapes.batch_rank());
    results.k = k;
    detail::run_recall<T>(problem, separate, {0, -1, 0}, results, true);
  });
}

/// d_in = J^T d_out of one step with output `out`; several steps are several calls, last step first. Cost 5/2 of the forward pass.
inline void retrieve_backward(const operands& in, const choice& separation, const saved& kept, const ConstArray& out,
                              const ConstArray& d_out, const gradients& d_in) {
  detail::check_given("hopfield.retrieve", "out", out);
  detail::backward("hopfield.retrieve", in, separation, kept, out, d_out, d_in);
}

}  // namespace recollect::hopfield
