// SPDX-License-Identifier: BSD-3-Clause
/// The recurrence of spec/fast_weight.hpp in float64, and problems for it.
#pragma once

#include "tensor.hpp"
#include <string>

#include "recollect/cuda/fast_weight.hpp"

namespace test {

using namespace recollect;
using fast_weight::normalisation;
using fast_weight::rule;

struct Problem {
  Tensor query, key, value, beta, a, b, decay, channel_decay, scale, state;
  double scale_number = 1;
  const char* map = "identity";
  row_norm norm = row_norm::none;
  fast_weight::parameters how;
  Shape leading;
  index_t T = 0, K = 0, V = 0;

  bool normalised() const { return how.normalise != normalisation::none; }
  Shape shape(std::initializer_list<index_t> inner) const {
    Shape s = leading;
    s.insert(s.end(), inner);
    return s;
  }
};

struct Answer {
  Tensor out, state;
};

inline std::vector<double> mapped(const Problem& p, const Tensor& rows, const Shape& l, index_t t) {
  std::vector<double> phi(p.K);
  double sum = 0, square = 0;
  const std::string name = p.map;
  for (index_t k = 0; k < p.K; ++k) {
    const double x = rows.at(l, {t, k}), r = x > 0 ? x : 0;
    phi[k] = name == "relu" ? r : name == "squared_relu" ? r * r : name == "elu1" ? (x > 0 ? x + 1 : std::exp(x)) : x;
    sum += phi[k];
    square += phi[k] * phi[k];
  }
  const double divisor = p.norm == row_norm::none ? 1 : p.norm == row_norm::sum ? sum : std::sqrt(square);
  for (double& x : phi) x = divisor == 0 ? 0 : x / divisor;
  return phi;
}

/// One sequence, token by token, as the spec says it.
inline void scan(const Problem& p, const Shape& l, Answer& answer) {
  const index_t K = p.K, V = p.V;
  std::vector<double> S(K * V), z(K), u(V), D(K);
  for (index_t k = 0; k < K && p.state.given(); ++k) {
    for (index_t v = 0; v < V; ++v) S[k * V + v] = p.state.at(l, {k, v});
    if (p.normalised()) z[k] = p.state.at(l, {k, V});
  }
  const double scale = p.scale.given() ? p.scale.at(l, {}) : p.scale_number;
  for (index_t t = 0; t < p.T; ++t) {
    for (index_t k = 0; k < K; ++k) {
      const double number = p.channel_decay.given() ? p.channel_decay.at(l, {t, k}) : p.decay.given() ? p.decay.at(l, {t}) : 1;
      const bool given = p.channel_decay.given() || p.decay.given();
      D[k] = given && p.how.log_decay ? std::exp(number) : number;
    }
    std::vector<double> phi(K);
    if (p.key.given()) phi = mapped(p, p.key, l, t);
    const double beta = p.beta.given() ? p.beta.at(l, {t}) : 1;
    std::fill(u.begin(), u.end(), 0);
    if (p.key.given() && p.how.rule != rule::sum) {
      double divisor = 0;
      for (index_t k = 0; k < K; ++k) divisor += D[k] * z[k] * phi[k];
      for (index_t k = 0; k < K; ++k) {
        const double removal = p.b.given() ? p.b.at(l, {t, k}) : phi[k];
        double b = p.how.rule == rule::delta ? -D[k] * removal : removal;
        if (p.how.rule == rule::delta && p.how.normalise == normalisation::outputs_and_removals) b = divisor == 0 ? 0 : b / divisor;
        for (index_t v = 0; v < V; ++v) u[v] += b * S[k * V + v];
      }
    }
    for (index_t k = 0; k < K; ++k) {
      const double write = beta * phi[k], erase = p.a.given() ? p.a.at(l, {t, k}) : write;
      for (index_t v = 0; v < V; ++v) {
        S[k * V + v] *= D[k];
        if (p.key.given()) S[k * V + v] += erase * u[v] + write * p.value.at(l, {t, v});
      }
      z[k] = D[k] * z[k] + phi[k];
    }
    if (!p.query.given()) continue;
    const std::vector<double> q = mapped(p, p.query, l, t);
    double divisor = 0;
    for (index_t k = 0; k < K; ++k) divisor += z[k] * q[k];
    for (index_t v = 0; v < V; ++v) {
      double o = 0;
      for (index_t k = 0; k < K; ++k) o += scale * S[k * V + v] * q[k];
      answer.out.add(l, {t, v}, !p.normalised() ? o : divisor == 0 ? 0 : o / divisor);
    }
  }
  for (index_t k = 0; k < K; ++k) {
    for (index_t v = 0; v < V; ++v) answer.state.add(l, {k, v}, S[k * V + v]);
    if (p.normalised()) answer.state.add(l, {k, V}, z[k]);
  }
}

inline Answer answer(const Problem& p) {
  Answer a{Tensor(p.shape({p.T, p.V}), dtype::float64, 0), Tensor(p.shape({p.K, p.V + p.normalised()}), dtype::float64, 0)};
  index_t sequences = 1;
  for (index_t extent : p.leading) sequences *= extent;
  for (index_t h = 0; h < sequences; ++h) scan(p, Tensor::unravel(h, p.leading), a);
  return a;
}

inline fast_weight::operands operands(const Problem& p) {
  return {p.query.in(), p.key.in(),   p.value.in(),         p.beta.in(),  p.a.in(),
          p.b.in(),     p.decay.in(), p.channel_decay.in(), p.scale.in(), p.state.in()};
}

inline Problem plain(std::mt19937_64& random, Shape leading, index_t T, index_t K, index_t V, dtype type = dtype::float32) {
  Problem p;
  p.leading = leading;
  p.T = T, p.K = K, p.V = V;
  const double width = 1 / std::sqrt(static_cast<double>(K));
  p.query = test::random(p.shape({T, K}), random, type);
  p.key = test::random(p.shape({T, K}), random, type, width);
  p.value = test::random(p.shape({T, V}), random, type, 1, 1);
  return p;
}

inline Tensor between(Shape shape, double low, double high, std::mt19937_64& random, dtype type = dtype::float32) {
  Tensor t(std::move(shape), type, 0);
  std::uniform_real_distribution<double> uniform(low, high);
  t.each([&](index_t place) { t.put(place, uniform(random)); });
  return t;
}

}  // namespace test
