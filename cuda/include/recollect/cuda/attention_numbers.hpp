// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <limits>

namespace recollect::cuda {

/// Scale and sink of attention where they are one number; what is an array among the operands counts instead. A sink of -inf is none.
struct AttentionNumbers {
  double scale = 1, sink = -std::numeric_limits<double>::infinity();

  AttentionNumbers(double of_scale) : scale(of_scale) {}
  AttentionNumbers(double of_scale, double of_sink) : scale(of_scale), sink(of_sink) {}
};

}  // namespace recollect::cuda
