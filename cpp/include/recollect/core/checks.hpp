// SPDX-License-Identifier: BSD-3-Clause
/// What every op on every device checks of the arrays it is given, and the sentences for it.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "recollect/core/shapes.hpp"

namespace recollect::detail {

inline void check_given(std::string_view op, const char* argument, const ConstArray& array) {
  if (!array.given()) fail(status::value, op, ": ", argument, " is missing");
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

/// An input that, like an output, has exactly the leading axes of the operands, broadcast.
inline Array as_output(const ConstArray& array) {
  Array same;
  same.data = const_cast<void*>(array.data);
  same.type = array.type;
  same.rank = array.rank;
  same.extents = array.extents;
  same.strides = array.strides;
  return same;
}

/// A gradient that is wanted has the shape of its operand.
inline void check_gradient(std::string_view op, const char* argument, const Array& wanted, const ConstArray& operand, dtype type) {
  if (!wanted.given()) return;
  check_given(op, argument + 2, operand);  // the gradient d_x of an operand x
  if (wanted.rank != operand.rank || !std::equal(wanted.extents.begin(), wanted.extents.begin() + wanted.rank, operand.extents.begin()))
    fail(status::value, op, ": ", argument, " has shape ", wanted.shape_text(), "; expected ", operand.shape_text());
  if (wanted.type != type) fail(status::type, op, ": ", argument, " has dtype ", name(wanted.type), "; expected ", name(type));
}

}  // namespace recollect::detail
