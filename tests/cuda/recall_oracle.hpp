// SPDX-License-Identifier: BSD-3-Clause
/// Attention by its definition in float64, one row after another (spec/attention.hpp), and its gradient.
#pragma once

#include "tensor.hpp"
#include <algorithm>
#include <numeric>

namespace test {

struct Attention {
  Tensor query, key, value, scale, mask, bias;
  double scale_number = 1;
  int causal = 0;     // 1: bottom right, 2: top left
  Shape leading;      // of the result
  index_t top_k = 0;  // 0: all

  index_t n() const { return query.shape[query.shape.size() - 2]; }
  index_t m() const { return key.shape[key.shape.size() - 2]; }
  index_t d() const { return key.shape.back(); }
  index_t e() const { return value.shape.back(); }
  Shape shape(std::initializer_list<index_t> inner) const {
    Shape s = leading;
    s.insert(s.end(), inner);
    return s;
  }
};

/// Scores but the `count` largest, among equals the first, become -inf.
inline void keep_largest(std::vector<double>& scores, index_t count) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  for (std::size_t i = static_cast<std::size_t>(count); i < order.size(); ++i) scores[order[i]] = -inf;
}

struct Answer {
  Tensor out, lse;
};

/// Weights and log(sum exp) of one row; row(leading, i, p, lse) is called for each.
template <class Row>
void each_row(const Attention& a, Row&& row) {
  index_t entries = 1;
  for (index_t extent : a.leading) entries *= extent;
  for (index_t entry = 0; entry < entries; ++entry) {
    const Shape l = Tensor::unravel(entry, a.leading);
    const double scale = a.scale.given() ? a.scale.at(l, {}) : a.scale_number;
    for (index_t i = 0; i < a.n(); ++i) {
      std::vector<double> p(static_cast<std::size_t>(a.m()));
      const index_t limit = a.causal == 0 ? a.m() : i + 1 + (a.causal == 1 ? a.m() - a.n() : 0);
      double largest = -inf, sum = 0;
      for (index_t j = 0; j < a.m(); ++j) {
        const double bias = a.bias.given() ? a.bias.at(l, {i, j}) : 0;
        const bool hidden = j >= limit || (a.mask.given() && a.mask.at(l, {i, j}) == 0) || bias == -inf;
        double score = 0;
        for (index_t k = 0; k < a.d() && !hidden; ++k) score += a.query.at(l, {i, k}) * a.key.at(l, {j, k});
        p[j] = hidden ? -inf : scale * score + bias;
        largest = std::max(largest, p[j]);
      }
      if (a.top_k > 0) keep_largest(p, a.top_k);
      for (double& w : p) sum += w = w == -inf ? 0 : std::exp(w - largest);
      for (double& w : p) w = sum > 0 ? w / sum : 0;
      row(l, i, p, sum > 0 ? largest + std::log(sum) : -inf);
    }
  }
}

inline Answer attend(const Attention& a) {
  Answer answer{Tensor(a.shape({a.n(), a.e()}), dtype::float64, 0), Tensor(a.shape({a.n()}), dtype::float64, 0)};
  each_row(a, [&](const Shape& l, index_t i, const std::vector<double>& p, double lse) {
    answer.lse.add(l, {i}, lse);
    for (index_t j = 0; j < a.m(); ++j)
      for (index_t c = 0; c < a.e() && p[j] != 0; ++c) answer.out.add(l, {i, c}, p[j] * a.value.at(l, {j, c}));
  });
  return answer;
}

struct Gradients {
  Tensor query, key, value, scale{}, bias{};
};

/// Room of zeros in the shape of an operand; a scale that is a number has the shape ().
inline Tensor zeros(const Tensor& of) { return Tensor(of.shape, dtype::float64, 0); }

inline Gradients attend_gradient(const Attention& a, const Tensor& d_out) {
  Gradients d{zeros(a.query), zeros(a.key), zeros(a.value), zeros(a.scale), a.bias.given() ? zeros(a.bias) : Tensor()};
  each_row(a, [&](const Shape& l, index_t i, const std::vector<double>& p, double) {
    const double scale = a.scale.given() ? a.scale.at(l, {}) : a.scale_number;
    std::vector<double> d_p(p.size());
    double mean = 0;
    for (index_t j = 0; j < a.m(); ++j) {
      for (index_t c = 0; c < a.e() && p[j] != 0; ++c) d_p[j] += d_out.at(l, {i, c}) * a.value.at(l, {j, c});
      mean += p[j] * d_p[j];
    }
    for (index_t j = 0; j < a.m(); ++j) {
      if (p[j] == 0) continue;
      const double d_bias = p[j] * (d_p[j] - mean), d_score = scale * d_bias;
      double product = 0;
      for (index_t k = 0; k < a.d(); ++k) product += a.query.at(l, {i, k}) * a.key.at(l, {j, k});
      d.scale.add(l, {}, d_bias * product);
      if (a.bias.given()) d.bias.add(l, {i, j}, d_bias);
      for (index_t c = 0; c < a.e(); ++c) d.value.add(l, {j, c}, p[j] * d_out.at(l, {i, c}));
      for (index_t k = 0; k < a.d(); ++k) {
        d.query.add(l, {i, k}, d_score * a.key.at(l, {j, k}));
        d.key.add(l, {j, k}, d_score * a.query.at(l, {i, k}));
      }
    }
  });
  return d;
}

}  // namespace test
