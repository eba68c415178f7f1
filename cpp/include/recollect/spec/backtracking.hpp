// SPDX-License-Identifier: BSD-3-Clause
/// Sparse attentive backtracking: a recurrent memory that keeps some of its past states and assigns credit through those it is reminded of
/// (Ke et al. 2018, arXiv 1809.03702, algorithms 1 and 2). The contract, shared by every language and device.
///
/// THE SPARSE READ of N memories m_i with scores a_i, by k_top:
///     N = 0 or k_top = 0     nothing is read: value 0, no gradient
///     N <= k_top, or all     w = softmax(a) over all of them, in the order of their index
///     N >  k_top             memories in falling order of score, among equals the lower index first; the first k_top are kept, tau is the
///                            score of the next one;  u_i = max(0, a_i - tau) for those kept,  R = sum u_i,  w_i = u_i / R;
///                            R = 0 (all kept tie with tau): w_i = 1 / k_top
///     value = sum_i w_i m_i
/// Gradient, with g_i = d_value . m_i:  d_m_i += w_i d_value  for those kept;  the scores get
///     softmax      d_a_i = w_i (g_i - sum_j w_j g_j)
///     R > 0        d_a_i = (g_i - sum_j w_j g_j) / R  where u_i > 0, else 0;   d_tau = -sum_i d_a_i, to the one memory that gave tau
///     R = 0        0
/// Scores:  additive  a_i = w3 . tanh(p_i + W2 q),  p_i = W1 m_i computed once, when m_i is stored
///          dot       a_i = q . m_i          bilinear  a_i = q . W m_i
/// A score that is NaN or -inf, or R beyond the range of the type, gives NaN or nothing useful: scores are expected to be finite.
///
/// THE RECURRENCE, for each row of a batch, t = 1, 2, ... counted from the start of the stream; h_0 = carry_0 = 0 unless a state is given:
///     hhat_t, carry_t = cell(x_t, h_{t-1}, carry_{t-1})
///     s_t = the sparse read, additive score, of all microstates stored before t, with the query hhat_t    (0 if there are none)
///     h_t = hhat_t + s_t                              outputs [h_t, s_t]
///     if t mod k_att = 0: h_t becomes a microstate, the next in the memory; p = W1 h_t is stored with it
/// Microstate j (from 0) is h of time t_j = (j + 1) k_att. With max_memories, only that many, the latest stored, can be read.
///
/// WHICH EDGES CARRY GRADIENT. Backward is the exact gradient of these equations, with the following edges taken as constants:
///   - the recurrent edges into step t, both h_{t-1} and carry_{t-1}, if t is the first step of a window. With k_trunc, windows are
///     {j k_trunc + 1, ..., (j + 1) k_trunc}, so t is first where (t - 1) mod k_trunc = 0. Without k_trunc there is one window;
///   - the state that a call started from: h, carry, its microstates and their p;
///   - without reminders: every microstate, as value and in p = W1 m (W1, W2, w3 and hhat keep their gradients from the scores).
/// Nothing else is cut: a memory edge carries gradient into h^(t_j) over any distance, there it joins the others, and goes on into hhat and
/// into the reminders of t_j itself, and back through the cell to the first step of the window of t_j. The memory that gives tau counts.
///
/// CELLS, with the gates of torch.nn.LSTMCell and GRUCell, rows of weight_ih (G H, D), weight_hh (G H, H), bias_ih, bias_hh (G H):
///     lstm, G = 4   i, f, o = sigmoid, g = tanh of (W_ih x + b_ih) + (W_hh h + b_hh), in the order i f g o
///                   carry_t = f carry_{t-1} + i g,   hhat_t = o tanh(carry_t)
///     gru, G = 3    in the order r z n:  r, z = sigmoid of the same sums,  n = tanh(W_in x + b_in + r (W_hn h + b_hn)),
///                   hhat_t = (1 - z) n + z carry_{t-1},   carry_t = hhat_t
/// Here h is the h_{t-1} of the recurrence, reminders included. What a gru interpolates is its own state without them: a reminder would
/// otherwise stay in the state and be added to by the next one, and states would grow without bound. Without reminders carry = h, and this
/// is the usual gru. The edge from carry_{t-1} is a recurrent edge like the others.
///
/// rule::released repeats the public code of the paper (github.com/nke001/sparse_attentive_backtracking_release) for comparison:
///   - a_i = w3[:H] . tanh(hhat_t) + w3[H:] . tanh(m_i), w3 (2 H); no W1, W2. What is stored with m is the number w3[H:] . tanh(m);
///   - microstate 0 is a zero vector that is there from the start; the stored ones follow, so microstate j > 0 is h of time j k_att;
///   - N <= k_top: w = a, raw; N > k_top: tau = the k_top-th largest + 1e-7, w_i = u_i / (R + 1e-7), R = 0 included. The k_top-th is
///     still listed, with weight 0; the gradient of tau goes to it. No other gradient differs;
///   - t is the first step of a window where t mod k_trunc = 0.
///
/// Letters: B rows of the batch, T steps, D width of x, H of the state, G gates, A of the attention (1 for what rule::released stores),
/// C microstates there is room for, k places of a read (k_top, or C for all of them), n queries, N memories, d their width.
#pragma once

#include "recollect/core/shapes.hpp"

namespace recollect::backtracking {

enum class rule { paper, released };

/// The sparse read alone. `keys` are compared with `query`: p of the additive score (w3 is given), or whatever is multiplied by the dot
/// score (w3 is not given). Only the first `lengths` memories of a batch entry are read, all if not given.
template <class Array>
struct basic_read_operands {
  Array query, keys, memory, w3, lengths;
};
using read_operands = basic_read_operands<ConstArray>;

inline constexpr ShapeRow read_shapes[] = {
    {"query", "... n a"}, {"keys", "... N a"}, {"memory", "... N d"}, {"w3", "a"}, {"lengths", "..."},
};

/// Places beyond the memories there are hold index -1 and weight 0; `threshold` is the index that gave tau, or -1.
struct read_results {
  Array value;      // (..., n, d)
  Array indices;    // (..., n, k) int64
  Array weights;    // (..., n, k)
  Array threshold;  // (..., n) int64
  Array total;      // (..., n): R, or 0 where the weights are uniform or a softmax
};

/// Gradients of what was read alone: of query, w3, and of the rows of keys (indices, then threshold: k + 1) and memory (k) of each query.
struct read_gradients {
  Array d_query;   // (..., n, a)
  Array d_keys;    // (..., n, k + 1, a)
  Array d_memory;  // (..., n, k, d)
  Array d_w3;      // (a)
};

/// The parameters of the recurrence, and of gradients the same fields.
template <class Array>
struct basic_parameters {
  Array weight_ih, weight_hh, bias_ih, bias_hh, w1, w2, w3;
};
using parameters = basic_parameters<ConstArray>;
using parameter_gradients = basic_parameters<Array>;

/// Contiguous arrays of one floating type; x, hidden and carry are inputs, the rest of the structs below is written.
struct inputs {
  ConstArray x;              // (B, T, D)
  ConstArray hidden, carry;  // (B, H): h_0 and carry_0; zeros if not given
};

/// The microstates (B, C, H) and what is stored with them (B, C, A). The first `count` are there before the first step; a call appends.
struct memory {
  Array states, keys;
  index_t count = 0;
};

struct options {
  index_t k_top = 0;         // all: -1
  index_t k_att = 1;         // a microstate every k_att steps
  index_t k_trunc = 0;       // 0: one window
  index_t time = 0;          // steps before the first one of this call
  index_t max_memories = 0;  // 0: all that were stored
  bool reminders = true;     // gradient through them
  rule form = rule::paper;
};

/// What backward needs again. `indices` (B, T, k + 1) holds the threshold's in its last place, -1 where there is none.
template <class Array>
struct basic_tape {
  Array gates;             // (B, T, 4 H) what the cell keeps
  Array hhat, h, carry;    // (B, T, H); carry of a gru may be the memory of hhat
  Array indices, weights;  // (B, T, k + 1) int64, (B, T, k)
  Array total;             // (B, T): R, or 0 where the weights are uniform or a softmax
};
using tape = basic_tape<Array>;
using const_tape = basic_tape<ConstArray>;

}  // namespace recollect::backtracking
