// SPDX-License-Identifier: BSD-3-Clause
/// Attention: the contract of `attend`, shared by every language and device.
///
///     out = sum_j p_j v_j,    p = softmax(s),    s_j = scale q.k_j + bias_j          for each query q
///     lse = log sum_j exp(s_j)
///
/// over the keys that a query may attend to: those that `mask` allows, whose bias is not -inf, and, if causal, of n queries and m keys the
/// first i + 1 + (m - n) for query i (the last query sees all keys), or the first i + 1 with `causal::top_left`. A sink c is one more
/// logit, exp(c) in the sum and nothing in the output. A query that may attend to nothing: zeros, lse = -inf (with a sink c), zero
/// gradients. It is one step of Hopfield retrieval with values (Ramsauer et al. 2020, arXiv 2008.02217, section 3), and the same kernel.
///
/// With another separation p = argmax p.s - Omega(p) instead of softmax (math/separation.hpp), lse is Omega*(s), and there is no sink but
/// for top_k_softmax.
///
/// Letters: n queries, m keys, d their width, e the width of the values. scale and sink are float64.
#pragma once

#include "recollect/core/shapes.hpp"
#include "recollect/core/type_list.hpp"

namespace recollect::attention {

/// The inputs; of gradients, the same fields with the operands' own shapes. All but query, key, value and scale may be left out.
template <class Array>
struct basic_operands {
  Array query, key, value, scale, mask, bias, sink;
};
using operands = basic_operands<ConstArray>;
using gradients = basic_operands<Array>;

inline constexpr ShapeRow operand_shapes[] = {
    {"query", "... n d"},      {"key", "... m d"},        {"value", "... m e"}, {"scale", "..."},
    {"mask", "... n m", true}, {"bias", "... n m", true}, {"sink", "..."},
};

/// The operands and then their gradients, d_x of the shape of x.
inline constexpr ShapeRow gradient_shapes[] = {
    operand_shapes[0],  operand_shapes[1],           operand_shapes[2],      operand_shapes[3],    operand_shapes[4],
    operand_shapes[5],  operand_shapes[6],           {"d_query", "... n d"}, {"d_key", "... m d"}, {"d_value", "... m e"},
    {"d_scale", "..."}, {"d_bias", "... n m", true}, {"d_sink", "..."},
};

enum class causal { none, bottom_right, top_left };

struct parameters {
  attention::causal causal = causal::none;
  choice separation = "softmax";
};

/// What a gradient needs again; see hopfield::saved.
template <class Array>
struct basic_saved {
  Array largest, log_sum;  // (..., n)
};
using saved = basic_saved<ConstArray>;

struct results {
  Array out;  // (..., n, e)
  Array lse;  // (..., n)
  basic_saved<Array> saved;
};

}  // namespace recollect::attention
