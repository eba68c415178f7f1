// SPDX-License-Identifier: BSD-3-Clause
/// Scores and weights as numbers: additive scores and their gradient, scalar products, a separation by itself.
#include "check.hpp"
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "recollect/ops/additive_score.hpp"
#include "recollect/ops/weights.hpp"

using namespace recollect;

namespace {

constexpr std::string_view op = "test";
constexpr index_t n = 7, m = 75, units = 5;

template <class T>
struct Problem {
  std::vector<T> query, key, vector, bias;
  std::vector<char> mask;
  score::additive_operands in;

  Problem() : query(n * units), key(m * units), vector(units), bias(m), mask(n * m) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    for (auto* array : {&query, &key, &vector, &bias})
      for (T& x : *array) x = static_cast<T>(normal(random));
    for (char& keep : mask) keep = normal(random) < 1;
    for (index_t u = 0; u < units; ++u) key[3 * units + u] = std::numeric_limits<T>::quiet_NaN();
    for (index_t i = 0; i < n; ++i) mask[i * m + 3] = false;
    bias[5] = -std::numeric_limits<T>::infinity();
    in = {{query.data(), {n, units}},
          {key.data(), {m, units}},
          {vector.data(), {units}},
          {reinterpret_cast<const bool*>(mask.data()), {n, m}},
          {bias.data(), {m}}};
  }

  bool sees(index_t i, index_t j, index_t shift) const { return mask[i * m + j] && j != 5 && j <= i + shift; }

  double hidden(index_t i, index_t j, index_t u) const {
    return std::tanh(static_cast<double>(query[i * units + u]) + static_cast<double>(key[j * units + u]));
  }
};

template <class T>
void additive(double tolerance) {
  const Problem<T> p;
  std::vector<T> out(n * m), d_query(n * units), d_key(m * units), d_vector(units), d_scores(n * m);
  score::additive(op, p.in, {true, 60}, {out.data(), {n, m}});
  std::vector<double> of_query(n * units), of_key(m * units), of_vector(units);
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < m; ++j) {
      const bool sees = p.sees(i, j, 60);
      double expected = static_cast<double>(p.bias[j]);
      d_scores[i * m + j] = sees ? static_cast<T>(std::sin(double(i + 3 * j))) : T(0);
      for (index_t u = 0; sees && u < units; ++u) {
        const double t = p.hidden(i, j, u), v = static_cast<double>(p.vector[u]), g = static_cast<double>(d_scores[i * m + j]);
        expected += v * t;
        of_vector[u] += g * t;
        of_query[i * units + u] += g * v * (1 - t * t);
        of_key[j * units + u] += g * v * (1 - t * t);
      }
      if (sees)
        CHECK_NEAR(out[i * m + j], expected, tolerance);
      else
        CHECK_EQUAL(out[i * m + j], -std::numeric_limits<T>::infinity());
    }
  score::additive_backward(op, p.in, {d_scores.data(), {n, m}},
                           {{d_query.data(), {n, units}}, {d_key.data(), {m, units}}, {d_vector.data(), {units}}});
  for (index_t i = 0; i < n * units; ++i) CHECK_NEAR(d_query[i], of_query[i], 20 * tolerance);
  for (index_t i = 0; i < m * units; ++i) CHECK_NEAR(d_key[i], of_key[i], 20 * tolerance);
  for (index_t i = 0; i < units; ++i) CHECK_NEAR(d_vector[i], of_vector[i], 100 * tolerance);
}

template <class T>
void dot(double tolerance) {
  const Problem<T> p;
  const double scale = 0.7;
  std::vector<T> out(n * m);
  score::dot(op, {p.in.query, p.in.key, {&scale, {}}, p.in.mask, p.in.bias}, {true, 60}, {out.data(), {n, m}});
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < m; ++j) {
      if (!p.sees(i, j, 60)) {
        CHECK_EQUAL(out[i * m + j], -std::numeric_limits<T>::infinity());
        continue;
      }
      double product = 0;
      for (index_t u = 0; u < units; ++u)
        product += static_cast<double>(p.query[i * units + u]) * static_cast<double>(p.key[j * units + u]);
      CHECK_NEAR(out[i * m + j], scale * product + static_cast<double>(p.bias[j]), tolerance);
    }
}

template <class T>
void weights_of_rows(double tolerance) {
  const T never = -std::numeric_limits<T>::infinity();
  const std::vector<T> z{T(-2), T(0), T(0.5), never, never, never, never, never};  // the second row may look at nothing
  std::vector<T> p(8), d_z(8);
  const std::vector<T> g{T(1), T(2), T(-1), T(3), T(1), T(1), T(1), T(1)};
  const auto check_row = [&](choice separation, std::vector<double> expected) {
    weights::forward(op, {z.data(), {2, 4}}, separation, {p.data(), {2, 4}});
    for (index_t i = 0; i < 4; ++i) CHECK_NEAR(p[i], expected[i], tolerance);
    for (index_t i = 4; i < 8; ++i) CHECK_EQUAL(p[i], T(0));
    weights::backward(op, {p.data(), {2, 4}}, separation, {g.data(), {2, 4}}, {d_z.data(), {2, 4}});
    CHECK_EQUAL(d_z[3], T(0));
    CHECK_NEAR(double(d_z[0]) + double(d_z[1]) + double(d_z[2]), 0.0, tolerance);  // what all scores add changes nothing
  };
  check_row("softmax", {0.0486, 0.3592, 0.5922, 0});
  check_row("sparsemax", {0, 0.25, 0.75, 0});
  CHECK_NEAR(d_z[1], 1.5, tolerance);
  check_row("entmax15", {0, 0.3260, 0.6740, 0});
  check_row({"normmax", 2}, {0, 0.3110, 0.6890, 0});
  check_row({"k_subset", 2}, {0, 1, 1, 0});
  check_row("hard", {0, 0, 1, 0});
}

template <class F>
void refuses(F&& call, const char* words) {
  try {
    call();
    CHECK(!"refused");
  } catch (const error& refusal) {
    CHECK(std::string(refusal.what()).find(words) != std::string::npos);
  }
}

void wrong_calls() {
  const Problem<float> p;
  std::vector<float> out(n * m);
  const Array to{out.data(), {n, m}};
  score::additive_operands in = p.in;
  in.key = {};
  refuses([&] { score::additive(op, in, {}, to); }, "test: key is missing");
  in.key = {p.key.data(), {units, m}};
  refuses([&] { score::additive(op, in, {}, to); }, "test: key has shape (5, 75); expected (..., m, A=5)");
  refuses([&] { score::additive(op, p.in, {}, {out.data(), {m, n}}); }, "test: out has shape (75, 7); expected (7, 75)");
  refuses([&] { weights::forward(op, {out.data(), {n, m}}, "max", to); }, "test: separation is 'max'");
}

}  // namespace

int main() {
  additive<float>(3e-6);
  additive<double>(1e-14);
  dot<float>(3e-6);
  dot<double>(1e-14);
  weights_of_rows<float>(6e-5);
  weights_of_rows<double>(6e-5);
  wrong_calls();
  return check::report();
}
