// SPDX-License-Identifier: BSD-3-Clause
/// The options of a fast weight op as Python hands them over.
#pragma once

#include <string>
#include <tuple>

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "recollect/math/feature_map.hpp"
#include "recollect/spec/fast_weight.hpp"

namespace recollect::python {

/// (op, rule, normalisation, decays are logarithms, chunk)
using Options = std::tuple<std::string, std::string, std::string, bool, index_t>;

inline fast_weight::parameters parameters(const Options& options) {
  const std::string &rule = std::get<1>(options), &normalise = std::get<2>(options);
  using fast_weight::normalisation;
  return {rule == "sum"     ? fast_weight::rule::sum
          : rule == "delta" ? fast_weight::rule::delta
                            : fast_weight::rule::general,
          normalise == "none"      ? normalisation::none
          : normalise == "outputs" ? normalisation::outputs
                                   : normalisation::outputs_and_removals,
          std::get<3>(options), std::get<4>(options)};
}

inline row_norm divisor(const std::string& norm) { return norm == "sum" ? row_norm::sum : norm == "l2" ? row_norm::l2 : row_norm::none; }

}  // namespace recollect::python
