// SPDX-License-Identifier: BSD-3-Clause
/// nb::ndarray -> ConstArray or Array without copies: the only glue between nanobind and the library.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "recollect/core/view.hpp"

namespace recollect::python {

namespace nb = nanobind;

using In = nb::ndarray<nb::ro>;
using Out = nb::ndarray<>;

/// NumPy has no bfloat16 of its own: its bits travel as uint16, which means nothing else here. Frameworks of devices have one.
inline dtype dtype_from(nb::dlpack::dtype type) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) { return type.code == static_cast<std::uint8_t>(code) && type.bits == bits; };
  if (is(Code::Float, 32)) return dtype::float32;
  if (is(Code::Float, 64)) return dtype::float64;
  if (is(Code::Float, 16)) return dtype::float16;
  if (is(Code::UInt, 16) || is(Code::Bfloat, 16)) return dtype::bfloat16;
  if (is(Code::Bool, 8)) return dtype::boolean;
  if (is(Code::Int, 64)) return dtype::int64;
  fail(status::type, "an array has an element type that recollect does not know");
}

/// An array that was not given (None) becomes one that says so.
template <class To, class From>
To convert(const From& from) {
  To to;
  if (!from.is_valid()) return to;
  if (from.ndim() > max_rank) fail(status::value, "an array has ", from.ndim(), " axes; at most ", max_rank, " are supported");
  to.data = from.data();
  to.type = dtype_from(from.dtype());
  to.rank = static_cast<int>(from.ndim());
  for (int axis = 0; axis < to.rank; ++axis) {
    to.extents[axis] = static_cast<index_t>(from.shape(axis));
    to.strides[axis] = from.stride(axis);
  }
  return to;
}

inline ConstArray input(const In& array) { return convert<ConstArray>(array); }
inline Array output(const Out& array) { return convert<Array>(array); }

/// An array that is taken as it is, never converted; one that may be None; one that need not be named.
template <class Name>
auto array(Name name) {
  return name.noconvert();
}
template <class Name>
auto optional(Name name) {
  return name.noconvert().none();
}
template <class Name>
auto extra(Name name) {
  return name.noconvert().none() = nb::none();
}

}  // namespace recollect::python
