// SPDX-License-Identifier: BSD-3-Clause
/// Modern Hopfield networks (Ramsauer et al. 2020, "Hopfield Networks is All You Need", arXiv 2008.02217): the contract of `energy` and
/// `retrieve`, shared by every language and device.
///
/// A state pattern q (one row of `state`) is compared with the stored patterns x_1 ... x_N (the rows of X = `patterns`):
///
///     energy      E(q) = -lse(beta, X q) + |q|^2 / 2 + log(N) / beta + M^2 / 2,   M = max_i |x_i|      (eq. 2)
///                 lse(beta, z) = log(sum_i exp(beta z_i)) / beta
///     retrieve    q <- X^T softmax(beta X q), `steps` times                                            (eq. 3)
///                 with values Y the last step reads Y^T softmax(beta X q) instead
///
/// E never rises along the iteration (theorem 1), grad E = q - X^T softmax(beta X q), and 0 <= E <= 2 M^2 inside the convex hull of the
/// patterns. Only admissible patterns (mask true) count in sums, N and M. A row without any: zeros, lse = -inf, E = +inf and zero
/// gradients. In gradients log(N) / beta and M^2 / 2 do not depend on the patterns; d/d beta includes log(N).
///
/// Letters: n state patterns, N stored patterns, d their width, e the width of the values. beta is float64 and positive.
#pragma once

#include <string_view>

#include "recollect/core/shapes.hpp"

namespace recollect::hopfield {

/// The inputs; of gradients, the same fields with the operands' own shapes. `values` and `mask` may be left out.
template <class Array>
struct basic_operands {
  Array state, patterns, values, beta, mask;
};
using operands = basic_operands<ConstArray>;
using gradients = basic_operands<Array>;

inline constexpr ShapeRow operand_shapes[] = {
    {"state", "... n d"}, {"patterns", "... N d"}, {"values", "... N e"}, {"beta", "..."}, {"mask", "... n N", true},
};

struct parameters {
  std::string_view separation = "softmax";
  index_t steps = 1;  // how many softmaxes at most
  double tol = -1;    // a row stops once |state change|_2 <= tol; negative: never
};

/// What `retrieve` returns. Only `state` must be given.
struct results {
  Array state;      // (..., n, d), or (..., n, e) with values
  Array energy;     // (..., n) of the final state pattern: the returned one, or the one that read the values
  Array lse;        // (..., n) of the same
  Array steps;      // (..., n) int64: softmaxes that the row took
  Array converged;  // (..., n) bool: its last update moved it by at most tol
};

/// What the gradient of one step needs again: the output and lse of that step.
struct saved {
  ConstArray out, lse;
};

/// How short an update counts as no movement when the caller does not say.
constexpr double default_tolerance(dtype type) { return type == dtype::float64 ? 1e-8 : 1e-4; }

/// A row that has not come to rest after so many softmaxes is given back as not converged.
inline constexpr index_t most_steps = 1000;

}  // namespace recollect::hopfield
