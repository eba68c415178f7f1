// SPDX-License-Identifier: BSD-3-Clause
/// Recurrent cells: what one step makes of one row, once the products with the weights are done. A new cell is a struct like these and one
/// entry of `cells`; the recurrence, its gradient, checks and dispatch follow from it. Equations: spec/backtracking.hpp.
///
///     gates           how many rows of weight_ih there are for each unit; at most 4
///     splits          whether the gradients of W_ih x and of W_hh h differ
///     forward(cell_row)             kept holds the input at first and what backward needs at last
///     backward(cell_row_gradient)   d_carry comes in as the gradient of new_carry and goes out as that of carry
#pragma once

#include <string_view>

#include "recollect/core/type_list.hpp"
#include "recollect/math/tanh.hpp"
#include "recollect/ops/packet.hpp"

namespace recollect::backtracking {

/// The rows of one step; H long unless said otherwise.
template <class T>
struct cell_row {
  index_t units;
  const T* recurrent;  // gates H: W_hh h + b_hh
  const T* carry;
  T* kept;  // 4 H; before, its first gates H are W_ih x + b_ih
  T* hhat;
  T* new_carry;
};

template <class T>
struct cell_row_gradient {
  index_t units;
  const T* kept;
  const T* carry;
  const T* new_carry;
  const T* d_hhat;
  T* d_carry;      // in place
  T* d_input;      // gates H
  T* d_recurrent;  // gates H; the same memory as d_input where the cell does not split
};

struct lstm {
  static constexpr std::string_view name = "lstm";
  static constexpr index_t gates = 4;
  static constexpr bool splits = false;

  template <class T>
  static void forward(const cell_row<T>& row) {
    using P = Packet<T>;
    const index_t H = row.units;
    for (index_t u = 0; u < H; u += P::width) {
      const index_t some = H - u;
      const auto sum = [&](index_t gate) {
        return P::load_some(row.kept + gate * H + u, some) + P::load_some(row.recurrent + gate * H + u, some);
      };
      const P i = math::sigmoid<T>(sum(0)), f = math::sigmoid<T>(sum(1)), g = math::tanh<T>(sum(2)), o = math::sigmoid<T>(sum(3));
      const P carry = fma(f, P::load_some(row.carry + u, some), i * g);
      i.store_some(row.kept + u, some);
      f.store_some(row.kept + H + u, some);
      g.store_some(row.kept + 2 * H + u, some);
      o.store_some(row.kept + 3 * H + u, some);
      carry.store_some(row.new_carry + u, some);
      (o * math::tanh<T>(carry)).store_some(row.hhat + u, some);
    }
  }

  template <class T>
  static void backward(const cell_row_gradient<T>& row) {
    using P = Packet<T>;
    const index_t H = row.units;
    const P one(T(1));
    for (index_t u = 0; u < H; u += P::width) {
      const index_t some = H - u;
      const auto gate = [&](index_t which) { return P::load_some(row.kept + which * H + u, some); };
      const P i = gate(0), f = gate(1), g = gate(2), o = gate(3), d_hhat = P::load_some(row.d_hhat + u, some);
      const P squashed = math::tanh<T>(P::load_some(row.new_carry + u, some));
      const P d_carry = fma(d_hhat * o, one - squashed * squashed, P::load_some(row.d_carry + u, some));
      (d_carry * g * (i * (one - i))).store_some(row.d_input + u, some);
      (d_carry * P::load_some(row.carry + u, some) * (f * (one - f))).store_some(row.d_input + H + u, some);
      (d_carry * i * (one - g * g)).store_some(row.d_input + 2 * H + u, some);
      (d_hhat * squashed * (o * (one - o))).store_some(row.d_input + 3 * H + u, some);
      (d_carry * f).store_some(row.d_carry + u, some);
    }
  }
};

/// Keeps r, z, n and W_hn h + b_hn.
struct gru {
  static constexpr std::string_view name = "gru";
  static constexpr index_t gates = 3;
  static constexpr bool splits = true;

  template <class T>
  static void forward(const cell_row<T>& row) {
    using P = Packet<T>;
    const index_t H = row.units;
    for (index_t u = 0; u < H; u += P::width) {
      const index_t some = H - u;
      const auto in = [&](index_t gate) { return P::load_some(row.kept + gate * H + u, some); };
      const auto back = [&](index_t gate) { return P::load_some(row.recurrent + gate * H + u, some); };
      const P r = math::sigmoid<T>(in(0) + back(0)), z = math::sigmoid<T>(in(1) + back(1)), inner = back(2);
      const P n = math::tanh<T>(fma(r, inner, in(2)));
      r.store_some(row.kept + u, some);
      z.store_some(row.kept + H + u, some);
      n.store_some(row.kept + 2 * H + u, some);
      inner.store_some(row.kept + 3 * H + u, some);
      const P hhat = fma(z, P::load_some(row.carry + u, some) - n, n);
      hhat.store_some(row.hhat + u, some);
      hhat.store_some(row.new_carry + u, some);
    }
  }

  template <class T>
  static void backward(const cell_row_gradient<T>& row) {
    using P = Packet<T>;
    const index_t H = row.units;
    const P one(T(1));
    for (index_t u = 0; u < H; u += P::width) {
      const index_t some = H - u;
      const auto gate = [&](index_t which) { return P::load_some(row.kept + which * H + u, some); };
      const P r = gate(0), z = gate(1), n = gate(2), inner = gate(3);
      const P d_hhat = P::load_some(row.d_hhat + u, some) + P::load_some(row.d_carry + u, some);
      const P d_n = d_hhat * (one - z) * (one - n * n);
      const P d_r = d_n * inner * (r * (one - r));
      const P d_z = d_hhat * (P::load_some(row.carry + u, some) - n) * (z * (one - z));
      for (T* to : {row.d_input, row.d_recurrent}) {
        d_r.store_some(to + u, some);
        d_z.store_some(to + H + u, some);
      }
      d_n.store_some(row.d_input + 2 * H + u, some);
      (d_n * r).store_some(row.d_recurrent + 2 * H + u, some);
      (d_hhat * z).store_some(row.d_carry + u, some);
    }
  }
};

using cells = type_list<lstm, gru>;

}  // namespace recollect::backtracking
