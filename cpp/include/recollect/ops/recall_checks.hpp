// SPDX-License-Identifier: BSD-3-Clause
/// What recalls of every kind check of their arguments, beyond shapes, and the sentences for it.
#pragma once

#include <cmath>
#include <limits>

#include "recollect/core/checks.hpp"
#include "recollect/math/separation.hpp"
#include "recollect/ops/recall_problem.hpp"

namespace recollect::detail {

/// Calls f(separation) for the one that is wanted, made with its parameter; there are so many patterns, `letter` in the words of the op.
template <class F>
void visit_separation(std::string_view op, const choice& wanted, char letter, index_t patterns, F&& f) {
  const auto refuse = [&](const auto&... expected) {
    fail(status::value, op, ": separation is ", wanted.text(), "; expected ", expected...);
  };
  visit_by_name(separations{}, op, "separation", wanted, [&]<class Separation>() {
    if constexpr (Separation::parameter.empty()) {
      if (wanted.has_parameter()) refuse("'", wanted.name, "' alone: it has no parameter");
    } else {
      using rule = typename Separation::parameter_rule;
      if (!wanted.has_parameter()) refuse("('", wanted.name, "', ", Separation::parameter, ")");
      if (std::is_same_v<rule, how_many> && patterns > 0 &&
          !(rule::allows(wanted.parameter) && wanted.parameter <= static_cast<double>(patterns)))
        refuse(Separation::parameter, " to be a whole number from 1 to ", std::string(1, letter), "=", patterns);
      if (!rule::allows(wanted.parameter)) refuse(Separation::parameter, " to be ", rule::expected);
    }
    f(Separation(wanted.parameter));
  });
}

/// The names of state, memory, values, scale and mask in the words of an op.
using RecallNames = std::array<const char*, 5>;

inline void check_recall_types(std::string_view op, const RecallNames& names, const ConstArray& state, const ConstArray& memory,
                               const ConstArray& values, const ConstArray& scale, const ConstArray& mask) {
  check_given(op, names[0], state);
  check_given(op, names[1], memory);
  check_given(op, names[3], scale);
  if (state.type != dtype::float32 && state.type != dtype::float64)
    fail(status::type, op, ": ", names[0], " has dtype ", name(state.type), "; expected float32 or float64");
  const auto stored = [&](const char* argument, const ConstArray& array) {
    const bool half = array.type == dtype::float16 || array.type == dtype::bfloat16;
    if (array.given() && array.type != state.type && !(half && state.type == dtype::float32))
      fail(status::type, op, ": ", argument, " has dtype ", name(array.type), "; expected ", name(state.type), " as ", names[0],
           state.type == dtype::float32 ? ", or float16 or bfloat16" : "");
  };
  stored(names[1], memory);
  stored(names[2], values);
  if (scale.type != dtype::float64) fail(status::type, op, ": ", names[3], " has dtype ", name(scale.type), "; expected float64");
  if (mask.given() && mask.type != dtype::boolean)
    fail(status::type, op, ": ", names[4], " has dtype ", name(mask.type), "; expected bool, true where attention is allowed");
}

/// Every number of a float64 array satisfies a rule.
template <class Rule>
void check_numbers(std::string_view op, const char* argument, const ConstArray& array, Rule&& rule, const char* expected) {
  Axes axes;
  Strides strides{};
  for (int axis = 0; axis < array.rank; ++axis) {
    axes.add(array.extents[axis]);
    strides[axis] = array.strides[axis];
  }
  for (index_t i = 0; i < axes.count(); ++i) {
    const double value = static_cast<const double*>(array.data)[axes.offset(i, strides)];
    if (!rule(value)) fail(status::value, op, ": ", argument, " is ", value, "; expected ", expected);
  }
}

}  // namespace recollect::detail
