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
/// With another separation p = argmax p.z - Omega(p) of z = beta X q (math/separation.hpp) instead of softmax, q <- X^T p,
/// E(q) = |q|^2 / 2 - Omega*(z) / beta without further constants, and lse is Omega*(z) / beta (Santos et al. 2024, arXiv 2411.08590).
///
/// E never rises along the iteration (theorem 1), grad E = q - X^T softmax(beta X q), and 0 <= E <= 2 M^2 inside the convex hull of the
/// patterns. Only admissible patterns (mask true) count in sums, N and M. A row without any: zeros, lse = -inf, E = +inf and zero
/// gradients. In gradients log(N) / beta and M^2 / 2 do not depend on the patterns; d/d beta includes log(N).
///
/// Letters: n state patterns, N stored patterns, d their width, e the width of the values. beta is float64 and positive.
#pragma once

#include "recollect/core/shapes.hpp"
#include "recollect/core/type_list.hpp"

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

/// The operands and then their gradients, d_x of the shape of x.
inline constexpr ShapeRow gradient_shapes[] = {
    operand_shapes[0],      operand_shapes[1],         operand_shapes[2],       operand_shapes[3], operand_shapes[4],
    {"d_state", "... n d"}, {"d_patterns", "... N d"}, {"d_values", "... N e"}, {"d_beta", "..."},
};

struct parameters {
  choice separation = "softmax";
  index_t steps = 1;  // how many softmaxes at most
  double tol = -1;    // a row stops once |state change|_2 <= tol; negative: never
};

/// What the gradient of a softmax needs again (other separations keep nothing): the scores of a row as they were compared, in units of
/// log 2. Weights computed from these two are at most 1 and sum to 1 however large the scores are; from lse alone they would not be.
template <class Array>
struct basic_saved {
  Array largest;  // (..., n) the largest score
  Array log_sum;  // (..., n) log2 of the sum of 2^(score - largest)
};
using saved = basic_saved<ConstArray>;

/// What `retrieve` and `energy` return; all that is not wanted is left out. Energies and what is saved belong to the state pattern that
/// a row's last softmax compared.
struct results {
  Array state;      // (..., n, d), or (..., n, e) with values
  Array energy;     // (..., n)
  Array lse;        // (..., n)
  Array steps;      // (..., n) int64: softmaxes that the row took
  Array converged;  // (..., n) bool: its last update moved it by at most tol
  basic_saved<Array> saved;
};

/// How short an update counts as no movement when the caller does not say.
constexpr double default_tolerance(dtype type) { return type == dtype::float64 ? 1e-8 : 1e-4; }

/// A row that has not come to rest after so many softmaxes is given back as not converged.
inline constexpr index_t most_steps = 1000;

}  // namespace recollect::hopfield
