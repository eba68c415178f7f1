// SPDX-License-Identifier: BSD-3-Clause
/// `hopfield::energy` and `hopfield::retrieve` on the CPU; the contract is in spec/hopfield.hpp.
#pragma once

#include "recollect/ops/recall.hpp"
#include "recollect/spec/hopfield.hpp"

namespace recollect::hopfield {

namespace detail {

using namespace recollect::detail;

/// Checks everything that is wrong about the operands themselves and returns their shapes.
inline Shapes check(std::string_view op, const operands& in) {
  const ConstArray* arrays[] = {&in.state, &in.patterns, &in.values, &in.beta, &in.mask};
  constexpr bool needed[] = {true, true, false, true, false};
  for (int i = 0; i < 5; ++i) {
    const char* argument = operand_shapes[i].name;
    const dtype type = arrays[i]->type;
    if (needed[i] && type == dtype::none) fail(status::value, op, ": ", argument, " is missing");
    if (i == 0 && type != dtype::float32 && type != dtype::float64)
      fail(status::type, op, ": ", argument, " has dtype ", name(type), "; expected float32 or float64");
    if ((i == 1 || i == 2) && type != dtype::none && type != in.state.type &&
        (in.state.type == dtype::float64 || (type != dtype::float16 && type != dtype::bfloat16)))
      fail(status::type, op, ": ", argument, " has dtype ", name(type), "; expected ", name(in.state.type), " as state",
           in.state.type == dtype::float32 ? ", or float16 or bfloat16" : "");
    if (i == 3 && type != dtype::float64) fail(status::type, op, ": beta has dtype ", name(type), "; expected float64");
    if (i == 4 && type != dtype::none && type != dtype::boolean)
      fail(status::type, op, ": mask has dtype ", name(type), "; expected bool, true where a state may attend to a pattern");
  }
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask};
  return Shapes(op, operand_shapes, list);
}

inline void check_beta(std::string_view op, const ConstArray& beta) {
  Axes axes;
  Strides strides{};
  for (int axis = 0; axis < beta.rank; ++axis) {
    axes.add(beta.extents[axis]);
    strides[axis] = beta.strides[axis];
  }
  for (index_t i = 0; i < axes.count(); ++i) {
    const double value = static_cast<const double*>(beta.data)[axes.offset(i, strides)];
    if (!(value > 0 && value <= std::numeric_limits<double>::max()))
      fail(status::value, op, ": beta is ", value, "; expected a positive finite number");
  }
}

/// An output that was given has exactly the leading axes of the operands, broadcast, and then `inner`.
inline void check_output(std::string_view op, const char* argument, const Array& out, dtype type, const Shapes& shapes,
                         std::initializer_list<index_t> inner) {
  if (!out.given()) return;
  Array wanted;
  for (int axis = 0; axis < shapes.batch_rank(); ++axis) wanted.extents[wanted.rank++] = shapes.batch_extent(axis);
  for (index_t extent : inner) wanted.extents[wanted.rank++] = extent;
  if (out.rank != wanted.rank || !std::equal(out.extents.begin(), out.extents.begin() + out.rank, wanted.extents.begin()))
    fail(status::value, op, ": ", argument, " has shape ", out.shape_text(), "; expected ", wanted.shape_text());
  if (out.type != type) fail(status::type, op, ": ", argument, " has dtype ", name(out.type), "; expected ", name(type));
}

template <class F>
void with_problem(const operands& in, const Shapes& shapes, std::string_view op, std::string_view separation, F&& f) {
  visit_by_name(separations{}, op, "separation", separation, [&]<class Separation>() {
    visit_arithmetic(in.state.type, [&]<class T>() {
      f.template operator()<T, Separation>(make_problem<T>(shapes, {in.state, in.patterns, in.values, in.beta, in.mask}));
    });
  });
}

}  // namespace detail

/// E of every state pattern. Cost O(n N d) time, O(block) memory.
inline void energy(const operands& in, std::string_view separation, const Array& out) {
  constexpr std::string_view op = "hopfield.energy";
  const Shapes shapes = detail::check(op, in);
  detail::check_beta(op, in.beta);
  detail::check_output(op, "out", out, in.state.type, shapes, {shapes.extent('n')});
  detail::with_problem(in, shapes, op, separation, [&]<class T, class Separation>(const detail::RecallProblem<T>& problem) {
    detail::RecallResults<T> results;
    results.energy = problem.fold.template place_output<T>(out, shapes.batch_rank());
    detail::Recall<T, Separation>(problem, {0, -1, 0}, results, true).run();
  });
}

/// Cost O(steps n N (d + e)) time, O(block) memory.
inline void retrieve(const operands& in, const parameters& p, const results& out) {
  constexpr std::string_view op = "hopfield.retrieve";
  const Shapes shapes = detail::check(op, in);
  detail::check_beta(op, in.beta);
  if (p.steps < 1) fail(status::value, op, ": steps is ", p.steps, "; expected at least 1");
  const index_t n = shapes.extent('n'), width = in.values.given() ? shapes.extent('e') : shapes.extent('d');
  detail::check_output(op, "out", out.state, in.state.type, shapes, {n, width});
  detail::check_output(op, "energy", out.energy, in.state.type, shapes, {n});
  detail::check_output(op, "lse", out.lse, in.state.type, shapes, {n});
  detail::check_output(op, "steps", out.steps, dtype::int64, shapes, {n});
  detail::check_output(op, "converged", out.converged, dtype::boolean, shapes, {n});
  detail::with_problem(in, shapes, op, p.separation, [&]<class T, class Separation>(const detail::RecallProblem<T>& problem) {
    const int batch = shapes.batch_rank();
    const auto& fold = problem.fold;
    const detail::RecallResults<T> results{fold.template place_output<T>(out.state, batch), fold.template place_output<T>(out.energy, batch),
                                           fold.template place_output<T>(out.lse, batch),
                                           fold.template place_output<index_t>(out.steps, batch),
                                           fold.template place_output<bool>(out.converged, batch)};
    const double rest = p.tol >= 0 ? p.tol : default_tolerance(in.state.type);
    detail::Recall<T, Separation>(problem, {p.steps - (in.values.given() ? 1 : 0), p.tol, rest}, results, false).run();
  });
}

}  // namespace recollect::hopfield
