// SPDX-License-Identifier: BSD-3-Clause
/// What all ops on a device check before anything is launched, and the way from checked arrays to what kernels are given. Numbers on the
/// device are not looked at: that would wait for it.
#pragma once

#include <cmath>

#include "recollect/core/checks.hpp"
#include "recollect/core/placement.hpp"
#include "recollect/core/type_list.hpp"
#include "recollect/cuda/recall_arguments.hpp"
#include "recollect/cuda/select.hpp"

namespace recollect::cuda::detail {

using namespace recollect::detail;

inline void check_type(std::string_view op, const char* argument, const ConstArray& array, dtype wanted) {
  if (array.given() && array.type != wanted)
    fail(status::type, op, ": ", argument, " has dtype ", name(array.type), "; expected ", name(wanted), " on a device");
}

inline void check_stored(std::string_view op, const char* argument, const ConstArray& array) {
  if (array.given() && !is_stored_type(array.type))
    fail(status::type, op, ": ", argument, " has dtype ", name(array.type), "; expected float32, float16 or bfloat16 on a device");
}

/// A scale is one number, or an array of the device.
inline void check_scale(std::string_view op, const char* argument, const ConstArray& array, double number, bool positive) {
  check_type(op, argument, array, dtype::float32);
  if (array.given()) return;
  if (!std::isfinite(number) || (positive && number <= 0))
    fail(status::value, op, ": ", argument, " is ", number, "; expected ", positive ? "a positive finite number" : "a finite number");
}

inline void check_width(std::string_view op, const char* argument, const ConstArray& array, index_t width) {
  if (width > widest)
    fail(status::value, op, ": ", argument, " has shape ", array.shape_text(), "; expected rows of at most ", widest,
         " numbers on a device");
}

inline void check_blocks(std::string_view op, index_t blocks) {
  if (blocks > most_blocks) fail(status::value, op, ": the problem needs ", blocks, " blocks; a device takes ", most_blocks);
}

/// Launches Kernel unless there is nothing to do.
template <class Kernel, class Device>
void launch(std::string_view op, Device& device, const typename Kernel::Arguments& arguments) {
  constexpr index_t most_shared = architecture_of<Kernel>() == 90 ? most_shared_bytes_sm90 : most_shared_bytes;
  static_assert(Kernel::shared_bytes() <= most_shared && sizeof(typename Kernel::Arguments) <= 4096);
  const index_t blocks = Kernel::blocks(arguments);
  check_blocks(op, blocks);
  if (blocks > 0) device.template launch<Kernel>(blocks, Kernel::shared_bytes(), arguments);
}

inline Operand<const void> operand(const Fold& fold, const BoundOperand& bound, const ConstArray& array, bool has_rows, int inner_letter) {
  return {fold.place(bound, array.data, has_rows, inner_letter), array.type};
}

inline Operand<void> output(const Fold& fold, const Array& array, int batch_rank) {
  return {fold.template place_output<void>(array, batch_rank), array.type};
}

template <class P>
PatternRows<P> pattern_rows(const Fold& fold, const BoundOperand& bound, P* data, dtype type) {
  return {data, type, fold.place(bound, data, false, 1).outer, bound.inner[0], bound.inner[1]};
}

}  // namespace recollect::cuda::detail
