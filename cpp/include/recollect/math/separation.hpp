// SPDX-License-Identifier: BSD-3-Clause
/// Separations: how scores become weights. A separation has a name, the weight it gives to a score and what normalises the weights.
/// One struct and one entry in `separations` make a new one known everywhere.
#pragma once

#include <string_view>

#include "recollect/core/type_list.hpp"
#include "recollect/math/exp2.hpp"

namespace recollect {

/// w_i = exp(s_i) / sum_j exp(s_j), with the energy -log sum_j exp(s_j). Scores arrive in units of log 2 and relative to a reference
/// that the sum is later divided by, so that no exponential overflows.
struct softmax {
  static constexpr std::string_view name = "softmax";

  template <class T, class V>
  static V weight(V relative_score) {
    return math::exp2<T>(relative_score);
  }
};

using separations = type_list<softmax>;

}  // namespace recollect
