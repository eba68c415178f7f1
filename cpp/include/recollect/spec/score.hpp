// SPDX-License-Identifier: BSD-3-Clause
/// Scores of some queries with all keys, as numbers: what `attention::attend` keeps to itself. They are for reads that are not one
/// softmax of scalar products, some rows of a large problem at a time.
///
///     dot         s_j = scale q.k_j + bias_j
///     additive    s_j = v . tanh(k_j + q) + bias_j          q and k already projected to the A numbers of v
///
/// (Bahdanau et al. 2015, arXiv 1409.0473, appendix A.1.2.) What a query may not attend to scores -inf, whatever it holds: what `mask`
/// forbids, what has bias -inf, and, with a causal rule, of query i all but the first i + 1 + shift keys.
///
/// Letters: n queries, m keys, d their width, A the width of v. scale is float64.
#pragma once

#include "recollect/core/shapes.hpp"

namespace recollect::score {

struct dot_operands {
  ConstArray query, key, scale, mask, bias;
};

inline constexpr ShapeRow dot_shapes[] = {
    {"query", "... n d"}, {"key", "... m d"}, {"scale", "..."}, {"mask", "... n m", true}, {"bias", "... n m", true},
};

struct additive_operands {
  ConstArray query, key, vector, mask, bias;
};

inline constexpr ShapeRow additive_shapes[] = {
    {"query", "... n A"}, {"key", "... m A"}, {"vector", "... A"}, {"mask", "... n m", true}, {"bias", "... n m", true},
};

/// Gradients of the additive score, with all leading axes: what was broadcast is not summed.
struct additive_gradients {
  Array query, key, vector;  // (..., n, A), (..., m, A), (..., A)
};

/// Query i sees the first i + 1 + shift keys, if there is a rule.
struct causality {
  bool on = false;
  index_t shift = 0;
};

}  // namespace recollect::score
