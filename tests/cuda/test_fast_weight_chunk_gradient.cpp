// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of fast weights in chunks against that of the recurrence in float64, on the emulator.
#include "check.hpp"
#include "emulator_sm80.hpp"
#include "fast_weight_oracle.hpp"

#include "recollect/cuda/fast_weight_backward.hpp"

namespace {

using namespace recollect;
using fast_weight::rule;
using test::between;
using test::Problem;
using test::Shape;
using test::Tensor;

enum { query, key, value, beta, decay, scale, state, count };
constexpr const char* names[] = {"query", "key", "value", "beta", "decay", "scale", "state"};
using Gradients = std::array<Tensor, count>;

std::array<const Tensor*, count> listed(const Problem& p) { return {&p.query, &p.key, &p.value, &p.beta, &p.decay, &p.scale, &p.state}; }

struct Cotangents {
  Tensor out, state;
};

/// One sequence, token by token there and back: S_t = D S_{t-1} + k w^T with w = beta (v - (D S_{t-1})^T k), or beta v; o = scale S_t^T q.
struct Walk {
  const Problem& p;
  const Cotangents& d;
  const Shape& l;
  Gradients& to;
  const bool delta = p.how.rule == rule::delta;
  const double scale_number = p.scale.given() ? p.scale.at(l, {}) : p.scale_number;
  std::vector<std::vector<double>> states{std::vector<double>(p.K * p.V)};  // before the first token and after each
  std::vector<double> G = std::vector<double>(p.K * p.V);

  double gate(const Tensor& of, index_t t) const { return of.given() ? of.at(l, {t}) : 1; }
  double fading(index_t t) const {
    const double number = gate(p.decay, t);
    return p.decay.given() && p.how.log_decay ? std::exp(number) : number;
  }
  double residual(index_t t, index_t v) const {
    double held = 0;
    for (index_t k = 0; k < p.K; ++k) held += fading(t) * states[t][k * p.V + v] * p.key.at(l, {t, k});
    return p.value.at(l, {t, v}) - (delta ? held : 0);
  }

  void there() {
    for (index_t i = 0; p.state.given() && i < p.K * p.V; ++i) states[0][i] = p.state.at(l, {i / p.V, i % p.V});
    for (index_t t = 0; t < p.T; ++t) {
      std::vector<double> next = states[t];
      for (index_t v = 0; v < p.V; ++v) {
        const double written = gate(p.beta, t) * residual(t, v);
        for (index_t k = 0; k < p.K; ++k) next[k * p.V + v] = fading(t) * states[t][k * p.V + v] + p.key.at(l, {t, k}) * written;
      }
      states.push_back(next);
    }
  }

  void back() {
    for (index_t i = 0; d.state.given() && i < p.K * p.V; ++i) G[i] = d.state.at(l, {i / p.V, i % p.V});
    for (index_t t = p.T; t-- > 0;)
      for (index_t v = 0; v < p.V; ++v) column(t, v);
    for (index_t i = 0; p.state.given() && i < p.K * p.V; ++i) to[state].add(l, {i / p.V, i % p.V}, G[i]);
  }

  void column(index_t t, index_t v) {
    const auto q = [&](index_t k) { return p.query.at(l, {t, k}); };
    const auto x = [&](index_t k) { return p.key.at(l, {t, k}); };
    const double D = fading(t), g = d.out.at(l, {t, v}), b = gate(p.beta, t), r = residual(t, v);
    double read = 0, d_written = 0, d_decay = 0;
    for (index_t k = 0; k < p.K; ++k) {
      const double S = states[t + 1][k * p.V + v];
      to[query].add(l, {t, k}, scale_number * g * S);
      read += q(k) * S;
      d_written += x(k) * (G[k * p.V + v] += scale_number * g * q(k));
    }
    if (p.scale.given()) to[scale].add(l, {}, g * read);
    if (p.beta.given()) to[beta].add(l, {t}, d_written * r);
    to[value].add(l, {t, v}, b * d_written);
    const double d_held = delta ? -b * d_written : 0;
    for (index_t k = 0; k < p.K; ++k) {
      const double S = states[t][k * p.V + v];
      to[key].add(l, {t, k}, b * r * G[k * p.V + v] + d_held * D * S);
      G[k * p.V + v] += d_held * x(k);
      d_decay += G[k * p.V + v] * S;
      G[k * p.V + v] *= D;
    }
    if (p.decay.given()) to[decay].add(l, {t}, p.how.log_decay ? D * d_decay : d_decay);
  }
};

Gradients expected(const Problem& p, const Cotangents& d) {
  Gradients to;
  for (int i = 0; i < count; ++i)
    if (listed(p)[i]->given()) to[i] = Tensor(listed(p)[i]->shape, dtype::float64, 0);
  index_t sequences = 1;
  for (index_t extent : p.leading) sequences *= extent;
  for (index_t h = 0; h < sequences; ++h) {
    const Shape l = Tensor::unravel(h, p.leading);
    Walk walk{p, d, l, to};
    walk.there();
    walk.back();
  }
  return to;
}

/// Gradients begin as NaN. Returns the launches too.
std::pair<Gradients, int> run(const Problem& p, const Cotangents& d, std::uint64_t seed) {
  Gradients got;
  fast_weight::gradients to;
  Array* const places[] = {&to.query, &to.key, &to.value, &to.beta, &to.decay, &to.scale, &to.state};
  for (int i = 0; i < count; ++i) {
    const Tensor& operand = *listed(p)[i];
    if (!operand.given()) continue;
    got[i] = Tensor(operand.shape, operand.type, test::nan, i < beta ? 8 : i % 3);
    *places[i] = got[i].out();
  }
  emulator::Ampere device(seed);
  cuda::fast_weight_backward("fastweight.test", device, test::operands(p), p.scale_number, "identity", row_norm::none, p.how, d.out.in(),
                             d.state.in(), to);
  return {got, device.launches};
}

/// The length of the difference over that of what is wanted.
double error(const Tensor& got, const Tensor& wanted) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(apart / size);
}

/// `size`: so that gradients are halves.
Cotangents cotangents(const Problem& p, std::mt19937_64& random, bool of_state = true, double size = 1) {
  Cotangents d{test::random(p.shape({p.T, p.V}), random, p.query.type, size, 8), {}};
  if (of_state) d.state = test::random(p.shape({p.K, p.V}), random, dtype::float32, size, 1);
  return d;
}

void check_near(const Problem& p, const Cotangents& d, const std::string& what, double times = 1) {
  const Gradients wanted = expected(p, d), got = run(p, d, 1).first;
  const double bound = times * (p.query.type == dtype::bfloat16 ? 1e-2 : 1.6e-3);
  for (int i = 0; i < count; ++i) {
    if (!got[i].given()) continue;
    if (std::getenv("SHOW")) std::printf("%s: d_%s %.2e\n", what.c_str(), names[i], error(got[i], wanted[i]));
    check::near(error(got[i], wanted[i]), 0, bound, __FILE__, __LINE__, (what + ": d_" + names[i]).c_str());
  }
}

/// Keys of about the length `length`.
Problem plain(std::mt19937_64& random, rule r, dtype type, Shape leading, Shape sizes, double length = 1) {
  Problem p;
  p.leading = leading;
  p.T = sizes[0], p.K = sizes[1], p.V = sizes[2];
  p.how.rule = r;
  p.scale_number = 0.5;
  p.query = test::random(p.shape({p.T, p.K}), random, type, 1, 8);
  p.key = test::random(p.shape({p.T, p.K}), random, type, length / std::sqrt(static_cast<double>(p.K)), 16);
  p.value = test::random(p.shape({p.T, p.V}), random, type, 1, 8);
  if (r == rule::delta) p.beta = between(p.shape({p.T}), 0, 1 / (length * length), random, type);
  return p;
}

/// Whole and ragged chunks, columns that fill a block and that do not, several blocks, decays of both kinds, all that may be shared.
void test_sizes(std::mt19937_64& random) {
  const Shape sizes[] = {{64, 64, 64}, {70, 64, 40}, {40, 128, 136}, {33, 64, 72}};
  for (const dtype type : {dtype::bfloat16, dtype::float16})
    for (const rule r : {rule::sum, rule::delta})
      for (int i = 0; i < 4; ++i) {
        Problem p = plain(random, r, type, i % 2 ? Shape{2} : Shape{}, sizes[i]);
        if (i == 1) p.decay = between(p.shape({p.T}), 0.6, 1, random, type);
        if (i == 2) p.decay = between(p.shape({p.T}), -0.3, 0, random, type), p.how.log_decay = true;
        if (i != 0) p.state = test::random(p.shape({p.K, p.V}), random);
        if (i == 3) {  // for both sequences
          p.scale = test::random({1}, random);
          p.query = test::random({1, p.T, p.K}, random, type, 1, 8), p.decay = between({p.T}, 0.6, 1, random, type);
        }
        const Cotangents d = cotangents(p, random, i != 0);
        check_near(p, d, std::string(name(type)) + (r == rule::sum ? ", sum, " : ", delta, ") + check::shown(i));
        if (i != 1) continue;
        const auto one = run(p, d, 2), other = run(p, d, 3);
        for (int k = 0; k < count; ++k) CHECK(test::same(one.first[k], other.first[k]));
        CHECK_EQUAL(one.second, 2);
      }
}

/// Updates that are just stable: the same key again and again with beta |k|^2 = 2, of length 1 and of others.
void test_longest_keys(std::mt19937_64& random) {
  for (const dtype type : {dtype::bfloat16, dtype::float16})
    for (const double length : {1.0, 16.0, 1 / 16.0}) {
      Problem p = plain(random, rule::delta, type, {}, {96, 64, 16}, length);
      for (index_t t = 0; t < p.T; ++t)
        for (index_t k = 0; k < p.K; ++k) p.key.put(p.key.place({t, k}), (k % 2 ? -1 : 1) * length / 8);
      p.beta = Tensor({p.T}, type, 2 / (length * length));
      check_near(p, cotangents(p, random, true, 1 / 64.0), std::string(name(type)) + ", the same key, of length " + check::shown(length),
                 4);
    }
}

/// Products and states that are no halves, and decays that leave little or nothing.
void test_range(std::mt19937_64& random) {
  for (const rule r : {rule::sum, rule::delta}) {
    Problem p = plain(random, r, dtype::float16, {}, {64, 64, 16}, 100);
    p.query.each([&](index_t place) { p.query.put(place, p.query.get(place) * (r == rule::sum ? 1e-3 : 1e3)); });
    p.value.each([&](index_t place) { p.value.put(place, p.value.get(place) * (r == rule::sum ? 1e4 : 20)); });
    p.scale_number = 1e-2;
    check_near(p, cotangents(p, random, true, 1 / 64.0), r == rule::sum ? "a large state" : "large products");
    for (const dtype type : {dtype::bfloat16, dtype::float16}) {
      p = plain(random, r, type, {}, {64, 64, 16});
      p.decay = between(p.shape({p.T}), 0.9, 1, random, type);
      for (index_t t : {5, 20, 40}) p.decay.put(t, t == 20 ? 1e-4 : 0);
      p.state = test::random(p.shape({p.K, p.V}), random);
      check_near(p, cotangents(p, random), std::string(name(type)) + ", nothing is left");
    }
  }
}

/// What the kernel does not do goes to those that go token by token.
void test_others(std::mt19937_64& random) {
  const auto launches = [&](const Problem& p) { return run(p, cotangents(p, random), 1).second; };
  const auto type = dtype::bfloat16;
  CHECK_EQUAL(launches(plain(random, rule::delta, type, {}, {16, 64, 8})), 2);
  CHECK_EQUAL(launches(plain(random, rule::delta, type, {}, {15, 64, 8})), 3);
  CHECK_EQUAL(launches(plain(random, rule::delta, type, {}, {16, 64, 12})), 3);
  Problem p = plain(random, rule::delta, type, {}, {16, 64, 8});
  p.key = test::random({16, 64}, random, type, 0.1, 1);
  CHECK_EQUAL(launches(p), 3);
}

}  // namespace

int main() {
  std::mt19937_64 random(81);
  test_sizes(random);
  test_longest_keys(random);
  test_range(random);
  test_others(random);
  return check::report();
}
