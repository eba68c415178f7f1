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

using Numbers = std::vector<double>;

/// One sequence, token by token there and back: S_t = D S_{t-1} + k w^T with w = beta (v - (D S_{t-1})^T k), or beta v; o = scale S_t^T q.
struct Walk {
  const Problem& p;
  const Cotangents& d;
  const Shape& l;
  const bool delta = p.how.rule == rule::delta;
  Numbers q = rows(p.query, p.K), x = rows(p.key, p.K), v = rows(p.value, p.V), b = rows(p.beta, 1), D = rows(p.decay, 1);
  Numbers g = rows(d.out, p.V), G = rows(d.state, p.V);
  double scale_number = p.scale.given() ? p.scale.at(l, {}) : p.scale_number;
  std::vector<Numbers> states{rows(p.state, p.V)};  // before the first token and after each
  std::array<Numbers, count> to = zeros();
  double of_scale = 0;  // the squares of what its gradient is a sum of

  /// Numbers of the sequence; of a state K rows, of a gate one without and zeros where a state is not given.
  Numbers rows(const Tensor& from, index_t width) const {
    const index_t size = (&from == &p.state || &from == &d.state ? p.K : p.T) * width;
    Numbers all(size, width == 1 ? 1 : 0);
    for (index_t i = 0; from.given() && i < size; ++i) all[i] = width == 1 ? from.at(l, {i}) : from.at(l, {i / width, i % width});
    return all;
  }
  std::array<Numbers, count> zeros() const {
    return {Numbers(q.size()), Numbers(x.size()), Numbers(v.size()), Numbers(p.T), Numbers(p.T), Numbers(1), Numbers(p.K * p.V)};
  }

  double residual(index_t t, index_t c) const {
    double held = 0;
    for (index_t k = 0; k < p.K; ++k) held += D[t] * states[t][k * p.V + c] * x[t * p.K + k];
    return v[t * p.V + c] - (delta ? held : 0);
  }

  void there() {
    for (double& decay : D) decay = p.decay.given() && p.how.log_decay ? std::exp(decay) : decay;
    for (index_t t = 0; t < p.T; ++t) {
      Numbers next = states[t];
      for (index_t c = 0; c < p.V; ++c) {
        const double written = b[t] * residual(t, c);
        for (index_t k = 0; k < p.K; ++k) next[k * p.V + c] = D[t] * states[t][k * p.V + c] + x[t * p.K + k] * written;
      }
      states.push_back(next);
    }
  }

  void back() {
    for (index_t t = p.T; t-- > 0;)
      for (index_t c = 0; c < p.V; ++c) column(t, c);
    to[state] = G;
  }

  void column(index_t t, index_t c) {
    const double r = residual(t, c), d_read = scale_number * g[t * p.V + c];
    double read = 0, d_written = 0, d_decay = 0;
    for (index_t k = 0; k < p.K; ++k) {
      const double S = states[t + 1][k * p.V + c];
      to[query][t * p.K + k] += d_read * S;
      read += q[t * p.K + k] * S;
      d_written += x[t * p.K + k] * (G[k * p.V + c] += d_read * q[t * p.K + k]);
    }
    to[scale][0] += g[t * p.V + c] * read;
    of_scale += std::pow(g[t * p.V + c] * read, 2);
    to[beta][t] += d_written * r;
    to[value][t * p.V + c] = b[t] * d_written;
    const double d_held = delta ? -b[t] * d_written : 0;
    for (index_t k = 0; k < p.K; ++k) {
      const double S = states[t][k * p.V + c];
      to[key][t * p.K + k] += b[t] * r * G[k * p.V + c] + d_held * D[t] * S;
      G[k * p.V + c] += d_held * x[t * p.K + k];
      d_decay += G[k * p.V + c] * S;
      G[k * p.V + c] *= D[t];
    }
    to[decay][t] += p.how.log_decay ? D[t] * d_decay : d_decay;
  }

  /// The sequence's share of gradients that several may have.
  void add(Gradients& all) const {
    for (int i = 0; i < count; ++i) {
      if (!all[i].given()) continue;
      const index_t width = i == query || i == key ? p.K : p.V;
      for (index_t n = 0; n < static_cast<index_t>(to[i].size()); ++n)
        if (i == scale)
          all[i].add(l, {}, to[i][n]);
        else if (i == beta || i == decay)
          all[i].add(l, {n}, to[i][n]);
        else
          all[i].add(l, {n / width, n % width}, to[i][n]);
    }
  }
};

/// Also the length of what scale's gradient, which may be next to nothing, is a sum of.
std::pair<Gradients, double> expected(const Problem& p, const Cotangents& d) {
  Gradients to;
  double of_scale = 0;
  for (int i = 0; i < count; ++i)
    if (listed(p)[i]->given() || i == scale) to[i] = Tensor(listed(p)[i]->shape, dtype::float64, 0);
  index_t sequences = 1;
  for (index_t extent : p.leading) sequences *= extent;
  for (index_t h = 0; h < sequences; ++h) {
    const Shape l = Tensor::unravel(h, p.leading);
    Walk walk{p, d, l};
    walk.there();
    walk.back();
    walk.add(to);
    of_scale += walk.of_scale;
  }
  return {to, std::sqrt(of_scale)};
}

/// Gradients begin as NaN; that of a scale that is a number is one. Returns the launches too.
std::pair<Gradients, int> run(const Problem& p, const Cotangents& d, std::uint64_t seed) {
  Gradients got;
  fast_weight::gradients to;
  Array* const places[] = {&to.query, &to.key, &to.value, &to.beta, &to.decay, &to.scale, &to.state};
  for (int i = 0; i < count; ++i) {
    const Tensor& operand = *listed(p)[i];
    if (!operand.given() && i != scale) continue;
    got[i] = Tensor(operand.shape, i == scale ? dtype::float32 : operand.type, test::nan, i < beta ? 8 : i % 3);
    *places[i] = got[i].out();
  }
  emulator::Ampere device(seed);
  cuda::fast_weight_backward("fastweight.test", device, test::operands(p), p.scale_number, "identity", row_norm::none, p.how, d.out.in(),
                             d.state.in(), to);
  return {got, device.launches};
}

/// The length of the difference over that of what is wanted, or over `size`.
double error(const Tensor& got, const Tensor& wanted, double size = 0) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, square = size * size;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), square += size > 0 ? 0 : y[i] * y[i];
  return std::sqrt(apart / square);
}

/// `size`: so that gradients are halves.
Cotangents cotangents(const Problem& p, std::mt19937_64& random, bool of_state = true, double size = 1) {
  Cotangents d{test::random(p.shape({p.T, p.V}), random, p.query.type, size, 8), {}};
  if (of_state) d.state = test::random(p.shape({p.K, p.V}), random, dtype::float32, size, 1);
  return d;
}

void check_near(const Problem& p, const Cotangents& d, const std::string& what, double times = 1) {
  const auto [wanted, of_scale] = expected(p, d);
  const Gradients got = run(p, d, 1).first;
  const double bound = times * (p.query.type == dtype::bfloat16 ? 1e-2 : 1.6e-3);
  for (int i = 0; i < count; ++i) {
    if (!got[i].given()) continue;
    const double apart = error(got[i], wanted[i], i == scale ? of_scale : 0);
    if (std::getenv("SHOW")) std::printf("%s: d_%s %.2e\n", what.c_str(), names[i], apart);
    check::near(apart, 0, bound, __FILE__, __LINE__, (what + ": d_" + names[i]).c_str());
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
        if (i != 1 || r == rule::sum) continue;
        const auto one = run(p, d, 2), other = run(p, d, 3);
        for (int k = 0; k < count; ++k) CHECK(test::same(one.first[k], other.first[k]));
        CHECK_EQUAL(one.second, 3);  // with a sum over both sequences
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
  CHECK_EQUAL(launches(plain(random, rule::delta, type, {}, {15, 64, 8})), 4);
  CHECK_EQUAL(launches(plain(random, rule::delta, type, {}, {16, 64, 12})), 4);
  Problem p = plain(random, rule::delta, type, {}, {16, 64, 8});
  p.key = test::random({16, 64}, random, type, 0.1, 1);
  CHECK_EQUAL(launches(p), 4);
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
