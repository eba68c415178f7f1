// SPDX-License-Identifier: BSD-3-Clause
/// Fast weights: the contract of one recurrence, shared by every language and device. A matrix S (K x V) is written to and read from, token
/// after token, with phi a feature map of keys and queries:
///
///     u_t = b_t^T S_{t-1},     S_t = D_t S_{t-1} + a_t u_t^T + k_t v_t^T,     o_t = scale S_t^T phi(q_t)
///
/// D_t is diagonal: one decay for the token or one for each key channel, in (0, 1]. The rules differ in what they write:
///
///     rule::sum       a = 0,                     k_t = phi(key_t)
///     rule::delta     a_t = k_t = beta_t phi(key_t),   b_t = -D_t phi(key_t)     (or -D_t b_t with a removal key of its own)
///     rule::general   a and b as given, k_t = phi(key_t); without a it is k that erases: a_t = k_t
///
/// so that delta is S <- D S, S <- S + beta k (v - k^T S)^T (Schlag et al. 2021, eq. 20, with the decay before the read). Normalised, a
/// vector z_t = D_t z_{t-1} + phi(key_t) goes along, and with `outputs` o_t is divided by z_t . phi(q_t); with `outputs_and_removals` what
/// is removed too, by (D_t z_{t-1}) . phi(key_t). A divisor of 0 makes zeros, and one below the smallest normal
/// number over its precision has no gradient. The state then has one more column, z.
///
/// Where a map gives logarithms of phi, rule::sum with `outputs` works with these, so that nothing over- or underflows: rows k of S and
/// of z are held divided by e^{c_k}, c_k the running maximum of log phi(key)_k and, fading with D, of what came before. c is one more
/// column of the state (0 where z is 0), and a constant for gradients: it cancels in every output, and its own gradient is 0.
///
/// Letters: T tokens, d the width of queries and keys, K = phi's width of it, V that of values, W = V, V + 1 or V + 2. scale is float64.
#pragma once

#include "recollect/core/shapes.hpp"

namespace recollect::fast_weight {

/// The inputs; of gradients, the same fields with the operands' own shapes. Without query nothing is read out, without key and value
/// nothing is written; the rest may be left out. Of decay (a number a token) and channel_decay at most one is given.
template <class Array>
struct basic_operands {
  Array query, key, value, beta, a, b, decay, channel_decay, scale, state;
};
using operands = basic_operands<ConstArray>;
using gradients = basic_operands<Array>;

inline constexpr ShapeRow operand_shapes[] = {
    {"query", "... T d"}, {"key", "... T d"}, {"value", "... T V"},         {"beta", "... T"}, {"a", "... T K"},
    {"b", "... T K"},     {"decay", "... T"}, {"channel_decay", "... T K"}, {"scale", "..."},  {"state", "... K W"},
};

enum class rule { sum, delta, general };
enum class normalisation { none, outputs, outputs_and_removals };

struct parameters {
  fast_weight::rule rule = rule::sum;
  normalisation normalise = normalisation::none;
  bool log_decay = false;  // decays are given as their logarithms, and so are their gradients
  index_t chunk = 64;      // tokens that are prepared together, and between two checkpoints
};

/// What a gradient needs again: what was written, y = v + u (or u where a is given), and S before every chunk.
template <class Array>
struct basic_saved {
  Array written;      // (..., T, V)
  Array checkpoints;  // (..., chunks, K, W)
};
using saved = basic_saved<ConstArray>;

struct results {
  Array out;    // (..., T, V)
  Array state;  // (..., K, W): S after the last token. It may be the very array that was given as the state.
  basic_saved<Array> saved;
};

inline index_t chunks_of(index_t tokens, index_t chunk) { return tokens > 0 ? (tokens + chunk - 1) / chunk : 0; }

}  // namespace recollect::fast_weight
