// SPDX-License-Identifier: BSD-3-Clause
/// A separation by itself: rows of scores z become weights p (math/separation.hpp), for what wants the weights and not what they read.
///
///     p = argmax p.z - Omega(p)        over the scores of a row that are not -inf; zeros where all are
///
/// Letters: n rows, m scores.
#pragma once

#include "recollect/core/shapes.hpp"

namespace recollect::weights {

inline constexpr ShapeRow shapes[] = {{"scores", "... n m"}};
inline constexpr ShapeRow gradient_shapes[] = {{"weights", "... n m"}, {"d_weights", "... n m"}};

}  // namespace recollect::weights
