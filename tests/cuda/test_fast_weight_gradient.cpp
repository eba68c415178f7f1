// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of fast weights on the emulator, every operand's against differences of the float64 recurrence along random directions.
#include "check.hpp"
#include "emulator.hpp"
#include "fast_weight_oracle.hpp"

#include "recollect/cuda/fast_weight_backward.hpp"

namespace {

using namespace recollect;
using fast_weight::normalisation;
using fast_weight::rule;
using test::Answer;
using test::between;
using test::plain;
using test::Problem;
using test::Shape;
using test::Tensor;

constexpr const char* names[] = {"query", "key", "value", "beta", "a", "b", "decay", "channel_decay", "scale", "state"};
constexpr int operand_count = 10;

std::array<Tensor*, operand_count> listed(Problem& p) {
  return {&p.query, &p.key, &p.value, &p.beta, &p.a, &p.b, &p.decay, &p.channel_decay, &p.scale, &p.state};
}

struct Cotangents {
  Tensor out, state;
};

double product(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.numbers(), y = b.numbers();
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

Tensor moved(const Tensor& t, const std::vector<double>& direction, double step) {
  Tensor wide(t.shape, dtype::float64, 0);
  const std::vector<double> numbers = t.numbers();
  std::size_t i = 0;
  wide.each([&](index_t place) { wide.put(place, numbers[i] + step * direction[i]), ++i; });
  return wide;
}

double loss(const Problem& p, const Cotangents& d) {
  const Answer a = test::answer(p);
  return (d.out.given() ? product(a.out, d.out) : 0) + (d.state.given() ? product(a.state, d.state) : 0);
}

/// Gradients begin as NaN, and those of operands that are not given stay away. That of a scale that is a number is one.
std::array<Tensor, operand_count> run(Problem& p, const Cotangents& d, std::uint64_t seed) {
  std::array<Tensor, operand_count> got;
  fast_weight::gradients to;
  Array* const places[] = {&to.query, &to.key, &to.value, &to.beta, &to.a, &to.b, &to.decay, &to.channel_decay, &to.scale, &to.state};
  for (int i = 0; i < operand_count; ++i) {
    const Tensor& operand = *listed(p)[i];
    if (operand.given()) got[i] = Tensor(operand.shape, operand.type, test::nan, i % 3);
    if (!operand.given() && std::string(names[i]) == "scale") got[i] = Tensor(Shape{});
    if (got[i].given()) *places[i] = got[i].out();
  }
  emulator::Device device(seed);
  cuda::fast_weight_backward("fastweight.test", device, test::operands(p), p.scale_number, p.map, p.norm, p.how, d.out.in(), d.state.in(),
                             to);
  return got;
}

/// Each gradient along some directions. The bound is on what a rounded gradient would make of them.
void compare(Problem p, const Cotangents& d, const std::array<Tensor, operand_count>& got, std::mt19937_64& random, double unit,
             const std::string& what) {
  if (!p.scale.given()) p.scale = Tensor({}, dtype::float64, p.scale_number);
  std::normal_distribution<double> normal;
  for (int i = 0; i < operand_count; ++i) {
    if (!got[i].given()) continue;
    Tensor& operand = *listed(p)[i];
    const Tensor given = operand;
    const std::vector<double> gradient = got[i].numbers();
    for (int pass = 0; pass < 3; ++pass) {
      std::vector<double> direction(gradient.size());
      for (double& x : direction) x = pass == 0 || random() % 4 == 0 ? normal(random) : 0;
      double along = 0, size = 1;
      for (std::size_t j = 0; j < gradient.size(); ++j) {
        along += gradient[j] * direction[j];
        size += gradient[j] * gradient[j] * direction[j] * direction[j];
      }
      constexpr double step = 1e-6;
      operand = moved(given, direction, step);
      const double above = loss(p, d);
      operand = moved(given, direction, -step);
      const double below = loss(p, d);
      operand = given;
      check::near(along, (above - below) / (2 * step), unit * std::sqrt(size), __FILE__, __LINE__, (what + ": d_" + names[i]).c_str());
    }
  }
}

void check(Problem p, std::mt19937_64& random, const std::string& what, bool of_state = true, bool twice = false) {
  const double unit = p.how.normalise == normalisation::none ? 2e-5 : 1e-4;
  Cotangents d;
  const dtype type = p.query.given() ? p.query.type : p.key.type;
  if (p.query.given()) d.out = test::random(p.shape({p.T, p.V}), random, type, 1, 1);
  if (of_state) d.state = test::random(p.shape({p.K, p.V + p.normalised()}), random);
  const auto got = run(p, d, 1), again = twice ? run(p, d, 2) : got;
  for (int i = 0; i < operand_count; ++i)
    check::that(test::same(got[i], again[i]), __FILE__, __LINE__, what + ": another order, another d_" + names[i]);
  compare(p, d, got, random, type == dtype::float32 ? unit : 1e-2, what);
}

void with_options(std::mt19937_64& random, rule r, normalisation n) {
  for (int gate = 0; gate < 4; ++gate) {
    const index_t T = gate == 1 ? 10 : 5, K = 5, V = gate == 1 ? 18 : 3;
    Problem p = plain(random, {1, 2}, T, K, V);
    p.how.rule = r;
    p.how.normalise = n;
    p.how.chunk = gate == 0 ? 64 : gate == 1 ? 9 : 2;
    p.scale_number = 0.5;
    if (n != normalisation::none) p.map = "elu1";
    if (gate == 1) p.decay = between({2, T}, 0.5, 1, random);
    if (gate == 2) p.channel_decay = between({1, 1, T, K}, 0.5, 1, random);  // for both sequences
    if (gate == 3) p.decay = between({1, 2, T}, -0.5, 0, random), p.how.log_decay = true;
    if (r != rule::sum) p.beta = between({1, 2, T}, 0, 1, random);
    if (r == rule::general || (r == rule::delta && gate == 2)) p.b = test::random({2, T, K}, random, dtype::float32, 0.2);
    if (gate > 1 && r == rule::general) p.a = test::random({1, 2, T, K}, random, dtype::float32, 0.2);
    if (gate % 2) p.state = between({1, 1, K, V + p.normalised()}, 0.5, 1, random);  // for both
    if (gate > 1) p.scale = test::random({2}, random);
    check(p, random,
          "rule " + check::shown(static_cast<int>(r)) + ", normalise " + check::shown(static_cast<int>(n)) + ", gate " + check::shown(gate),
          gate > 0, gate == 1 && r == rule::delta);
  }
}

void test_sizes(std::mt19937_64& random) {
  const index_t sizes[][3] = {{1, 1, 1}, {3, 64, 17}, {2, 65, 3}, {2, 129, 2}, {0, 5, 6}, {2, 3, 0}};
  for (const auto& s : sizes) {
    Problem p = plain(random, {}, s[0], s[1], s[2]);
    p.how.rule = rule::delta;
    p.how.normalise = normalisation::outputs_and_removals;
    p.map = "elu1";
    p.beta = between({s[0]}, 0, 1, random);
    p.state = between({s[1], s[2] + 1}, 0, 1, random);
    check(p, random, "T, K, V = " + check::shown(s[0]) + ", " + check::shown(s[1]) + ", " + check::shown(s[2]));
  }
}

void test_maps(std::mt19937_64& random) {
  for (const char* map : {"identity", "relu", "elu1", "squared_relu"})
    for (const row_norm norm : {row_norm::none, row_norm::sum, row_norm::l2}) {
      if (norm == row_norm::sum && std::string(map) == "identity") continue;  // divided by what may be all but 0
      Problem p = plain(random, {}, 5, 6, 3);
      p.how.rule = rule::delta;
      p.beta = between({5}, 0, 1, random);
      p.map = map;
      p.norm = norm;
      check(p, random, std::string(map) + ", norm " + check::shown(static_cast<int>(norm)));
    }
}

void test_parts(std::mt19937_64& random) {
  for (dtype type : {dtype::float16, dtype::bfloat16}) {
    Problem p = plain(random, {2}, 5, 8, 4, type);
    p.how.rule = rule::delta;
    p.beta = between({5}, 0, 1, random, type);
    check(p, random, "halves");
  }
  for (const normalisation n : {normalisation::none, normalisation::outputs}) {
    Problem writes = plain(random, {2}, 6, 6, 5);
    writes.how.normalise = n;
    writes.map = "elu1";
    writes.query = {};
    check(writes, random, "writing alone");
    Problem reads = plain(random, {2}, 6, 6, 5);
    reads.how.normalise = n;
    reads.map = "elu1";
    reads.key = reads.value = {};
    reads.decay = between({6}, 0.5, 1, random);
    reads.state = between({6, 5 + reads.normalised()}, 0.5, 1, random);
    check(reads, random, "reading alone", false);
  }
}

/// Keys and queries of zeros: divisors of 0 make zeros and have no gradient; without sequences, what they would share has zeros.
void test_nothing(std::mt19937_64& random) {
  Problem p = plain(random, {}, 3, 4, 2);
  p.how.rule = rule::delta;
  p.how.normalise = normalisation::outputs_and_removals;
  p.map = "relu";
  p.key = p.query = Tensor({3, 4}, dtype::float32, 0);
  p.beta = between({3}, 0, 1, random);
  const Cotangents d{test::random({3, 2}, random), {}};
  const auto got = run(p, d, 1);
  for (int i = 0; i < operand_count; ++i)
    for (double x : got[i].given() ? got[i].numbers() : std::vector<double>()) check::near(x, 0, 0, __FILE__, __LINE__, names[i]);
  Problem none = plain(random, {0}, 3, 4, 2);
  none.how.rule = rule::delta;
  none.beta = between({3}, 0, 1, random);
  const auto zeros = run(none, {test::random({0, 3, 2}, random), {}}, 1);
  for (double x : zeros[3].numbers()) check::near(x, 0, 0, __FILE__, __LINE__, "d_beta without sequences");
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  Problem p = plain(random, {}, 4, 6, 5);
  Tensor d_out({4, 5}, dtype::float32, 1), d_query({4, 6}), d_scale(Shape{});
  const auto call = [&] {
    fast_weight::gradients to;
    to.query = d_query.out(), to.scale = d_scale.out();
    cuda::fast_weight_backward("fastweight.test", device, test::operands(p), 1, p.map, p.norm, p.how, d_out.in(), {}, to);
  };
  d_out = Tensor({4, 6}, dtype::float32, 1);
  CHECK_FAILS(value, "fastweight.test: d_out has shape (4, 6); expected (4, 5)", call());
  d_out = Tensor({4, 5}, dtype::float16, 1);
  CHECK_FAILS(type, "fastweight.test: d_out has dtype float16; expected float32", call());
  d_out = Tensor({4, 5}, dtype::float32, 1);
  d_query = Tensor({4, 5});
  CHECK_FAILS(value, "fastweight.test: d_query has shape (4, 5); expected (4, 6)", call());
  d_query = Tensor({4, 6});
  d_scale = Tensor({1});
  CHECK_FAILS(value, "fastweight.test: d_scale has shape (1,); expected ()", call());
  d_scale = Tensor(Shape{});
  p.how.chunk = 0;
  CHECK_FAILS(value, "fastweight.test: chunk is 0; expected a number of 1 or more", call());
}

}  // namespace

int main() {
  std::mt19937_64 random(22);
  for (const rule r : {rule::sum, rule::delta, rule::general})
    for (const normalisation n : {normalisation::none, normalisation::outputs, normalisation::outputs_and_removals})
      with_options(random, r, n);
  test_sizes(random);
  test_maps(random);
  test_parts(random);
  test_nothing(random);
  test_errors(random);
  return check::report();
}
