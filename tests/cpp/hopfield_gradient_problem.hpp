// SPDX-License-Identifier: BSD-3-Clause
/// A forward and backward pass on arrays with gaps, and the derivative of it along a direction by the plain equations.
#pragma once

#include "hopfield_oracle.hpp"

#include "recollect/ops/hopfield.hpp"

namespace oracle {

struct Setting {
  Index state_batch{}, patterns_batch{}, values_batch{}, beta_batch{}, batch{};
  index_t n, N, d, e = 0;
  double masked = 0;
  Index mask_shape{};
  layout how = layout::dense;
};

enum Op { retrieve, energy };

template <class T, class Stored = T>
struct Problem {
  Setting s;
  Op which;
  Tensor operand[4], mask, out, energy_out, largest, log_sum, d_out;  // operands: state, patterns, values, beta
  Tensor gradient[4], direction[4];
  hopfield::operands in;

  Problem(const Setting& setting, Op which_) : s(setting), which(which_) {
    const Index shape[] = {joined(s.state_batch, {s.n, s.d}), joined(s.patterns_batch, {s.N, s.d}), joined(s.values_batch, {s.N, s.e}),
                           s.beta_batch};
    operand[0] = Tensor::make<T>(shape[0], s.how), operand[3] = Tensor::make<double>(shape[3], s.how);
    for (int i : {1, 2}) operand[i] = Tensor::make<Stored>(shape[i], s.how);
    for (int i = 0; i < 4; ++i) {
      gradient[i] = i < 3 ? Tensor::make<T>(shape[i], s.how) : Tensor::make<double>(shape[i], s.how);
      direction[i] = Tensor::make<double>(shape[i]);
      fill(operand[i], 10 + i, i == 1 && std::is_same_v<T, Stored> ? 2 / std::sqrt(static_cast<double>(s.d)) : 1);
      fill(direction[i], 20 + i, 1);
    }
    operand[3].each([&](const Index&, unsigned char* place) { put(place, dtype::float64, 1.5 + 0.5 * number(place, dtype::float64)); });
    mask = Tensor::make<bool>(s.mask_shape.empty() ? Index{s.n, s.N} : s.mask_shape, s.how);
    fill_mask(mask, 5, 1 - s.masked);
    in = {operand[0].array, operand[1].array, s.e ? operand[2].array : Array{}, operand[3].array, s.masked > 0 ? mask.array : Array{}};
    out = Tensor::make<T>(joined(s.batch, {s.n, s.e ? s.e : s.d}), s.how);
    for (Tensor* t : {&energy_out, &largest, &log_sum}) *t = Tensor::make<T>(joined(s.batch, {s.n}), s.how);
    d_out = Tensor::make<T>(which == retrieve ? joined(s.batch, {s.n, s.e ? s.e : s.d}) : joined(s.batch, {s.n}), s.how);
    fill(d_out, 6, 1);
  }

  void forward() {
    if (which == retrieve)
      hopfield::retrieve(in, {}, {out.array, {}, {}, {}, {}, {largest.array, log_sum.array}});
    else
      hopfield::energy(in, "softmax", {{}, energy_out.array, {}, {}, {}, {largest.array, log_sum.array}});
  }

  bool has(int i) const { return i != 2 || s.e > 0; }

  /// The gradients that `wanted` has a bit for, into poisoned memory.
  void backward(int wanted = 15) {
    for (Tensor& t : gradient) std::fill(t.bytes.begin(), t.bytes.end(), poison);
    const auto to = [&](int i) { return wanted >> i & 1 && has(i) ? gradient[i].array : Array{}; };
    const hopfield::gradients d_in{to(0), to(1), to(2), to(3), {}};
    const hopfield::saved saved{largest.array, log_sum.array};
    if (which == retrieve)
      hopfield::retrieve_backward(in, "softmax", saved, out.array, d_out.array, d_in);
    else
      hopfield::energy_backward(in, "softmax", saved, d_out.array, d_in);
  }

  /// <d_out, J u> for u in operand i alone, by the equations; and the sum of what it is made of without signs.
  std::pair<double, double> along(int i) const {
    double total = 0, size = 0;
    each_row(s.batch, s.n, [&](const Index& b, index_t r) {
      const Row row(in, b, r);
      if (row.count == 0) return;
      const auto u = [&](int of, index_t a, index_t k) { return i == of ? at(direction[of].array, b, {a, k}) : 0.0; };
      const double d_beta = i == 3 ? at(direction[3].array, b, {}) : 0.0;
      const int values = s.e ? 2 : 1;
      std::vector<double> d_score(static_cast<std::size_t>(row.N), 0);
      double mean = 0, spread = 0;
      for (index_t j = 0; j < row.N; ++j) {
        if (!row.admitted[j]) continue;
        for (index_t k = 0; k < row.d; ++k)
          d_score[j] += d_beta * row.x[j * row.d + k] * row.q[k] + row.beta * (u(1, j, k) * row.q[k] + row.x[j * row.d + k] * u(0, r, k));
        mean += row.weight[j] * d_score[j];
        spread += row.weight[j] * std::abs(d_score[j]);
      }
      const auto add = [&](double term) { total += term, size += std::abs(term); };
      if (which == energy) {
        const double g = at(d_out.array, b, {r}), log_count = std::log(static_cast<double>(row.count));
        size += std::abs(g) * spread / row.beta;
        add(-g * mean / row.beta), add(g * row.lse * d_beta / row.beta), add(-g * log_count * d_beta / (row.beta * row.beta));
        for (index_t k = 0; k < row.d; ++k) add(g * row.q[k] * u(0, r, k));
        return;
      }
      for (index_t j = 0; j < row.N; ++j)
        for (index_t k = 0; row.admitted[j] && k < row.e; ++k) {
          const double g = at(d_out.array, b, {r, k}) * row.weight[j], value = row.v[j * row.e + k];
          add(g * ((d_score[j] - mean) * value + u(values, j, k)));
          size += std::abs(g * value) * (std::abs(d_score[j]) + spread);
        }
    });
    return {total, size};
  }

  double inner(int i) const {
    double total = 0;
    gradient[i].each([&](const Index& index, unsigned char* place) {
      total += number(place, gradient[i].array.type) * at(direction[i].array, index, {});
    });
    return total;
  }
};

}  // namespace oracle
