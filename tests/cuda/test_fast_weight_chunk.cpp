// SPDX-License-Identifier: BSD-3-Clause
/// The chunked kernel of fast weights against the recurrence in float64, on the emulator.
#include "check.hpp"
#include "emulator_sm90.hpp"
#include "tensor.hpp"

#include "recollect/cuda/fast_weight.hpp"

namespace {

using namespace recollect;
using fast_weight::rule;
using test::Shape;
using test::Tensor;

struct Problem {
  Tensor query, key, value, beta, decay, scale, state;
  Shape leading;
  index_t T = 0, K = 0, V = 0;
  fast_weight::parameters how;

  Shape shape(std::initializer_list<index_t> inner) const {
    Shape s = leading;
    s.insert(s.end(), inner);
    return s;
  }
};

struct Answer {
  Tensor out, state;
  int launches = 0;
};

/// S <- D S, S <- S + beta k (v - k^T S)^T, or without what is removed; o = scale S^T q.
Answer answer(const Problem& p) {
  Answer a{Tensor(p.shape({p.T, p.V}), dtype::float64, 0), Tensor(p.shape({p.K, p.V}), dtype::float64, 0)};
  index_t sequences = 1;
  for (index_t extent : p.leading) sequences *= extent;
  for (index_t h = 0; h < sequences; ++h) {
    const Shape l = Tensor::unravel(h, p.leading);
    std::vector<double> S(p.K * p.V);
    for (index_t i = 0; i < p.K * p.V && p.state.given(); ++i) S[i] = p.state.at(l, {i / p.V, i % p.V});
    for (index_t t = 0; t < p.T; ++t) {
      const double number = p.decay.given() ? p.decay.at(l, {t}) : 1, decay = p.how.log_decay ? std::exp(number) : number;
      for (index_t v = 0; v < p.V; ++v) {
        double held = 0, out = 0;
        for (index_t k = 0; k < p.K; ++k) held += p.key.at(l, {t, k}) * (S[k * p.V + v] *= decay);
        const double beta = p.beta.given() ? p.beta.at(l, {t}) : 1;
        const double write = beta * (p.value.at(l, {t, v}) - (p.how.rule == rule::delta ? held : 0));
        for (index_t k = 0; k < p.K; ++k) out += p.query.at(l, {t, k}) * (S[k * p.V + v] += p.key.at(l, {t, k}) * write);
        a.out.add(l, {t, v}, (p.scale.given() ? p.scale.at(l, {}) : 0.5) * out);
      }
    }
    for (index_t i = 0; i < p.K * p.V; ++i) a.state.add(l, {i / p.V, i % p.V}, S[i]);
  }
  return a;
}

template <class Device = emulator::Ampere>
Answer run(const Problem& p, std::uint64_t seed, bool in_place = false) {
  Answer got{Tensor(p.shape({p.T, p.V}), p.query.type, test::nan, 8), in_place ? p.state : Tensor(p.shape({p.K, p.V}))};
  Device device(seed);
  const fast_weight::operands in{p.query.in(), p.key.in(),   p.value.in(), p.beta.in(),  {},
                                 {},           p.decay.in(), {},           p.scale.in(), in_place ? got.state.in() : p.state.in()};
  cuda::fast_weight_forward("fastweight.test", device, in, 0.5, "identity", row_norm::none, p.how, {got.out.out(), got.state.out(), {}});
  got.launches = device.launches;
  return got;
}

/// The length of the difference over that of what is wanted.
double error(const Tensor& got, const Tensor& wanted) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(apart / size);
}

void check_near(const Problem& p, const std::string& what, double times = 1) {
  const Answer wanted = answer(p), got = run(p, 1);
  const double bound = times * (p.query.type == dtype::bfloat16 ? 5e-3 : 8e-4);
  if (std::getenv("SHOW")) std::printf("%s: %.2e %.2e\n", what.c_str(), error(got.out, wanted.out), error(got.state, wanted.state));
  check::near(error(got.out, wanted.out), 0, bound, __FILE__, __LINE__, what.c_str());
  check::near(error(got.state, wanted.state), 0, bound, __FILE__, __LINE__, what.c_str());
}

Tensor between(Shape shape, double low, double high, std::mt19937_64& random, dtype type) {
  Tensor t(std::move(shape), type, 0);
  std::uniform_real_distribution<double> uniform(low, high);
  t.each([&](index_t place) { t.put(place, uniform(random)); });
  return t;
}

/// Keys of about the length `length`.
Problem plain(std::mt19937_64& random, rule r, dtype type, Shape leading, Shape sizes, double length = 1) {
  Problem p;
  p.leading = leading;
  p.T = sizes[0], p.K = sizes[1], p.V = sizes[2];
  p.how.rule = r;
  p.query = test::random(p.shape({p.T, p.K}), random, type, 1, 8);
  p.key = test::random(p.shape({p.T, p.K}), random, type, length / std::sqrt(static_cast<double>(p.K)), 16);
  p.value = test::random(p.shape({p.T, p.V}), random, type);
  if (r == rule::delta) p.beta = between(p.shape({p.T}), 0, 1 / (length * length), random, type);
  return p;
}

/// Whole and ragged chunks, columns that fill a block and that do not, decays of both kinds, states given and in place.
void test_sizes(std::mt19937_64& random) {
  const Shape sizes[] = {{64, 64, 64}, {70, 64, 40}, {100, 128, 136}, {17, 128, 8}};
  for (const dtype type : {dtype::bfloat16, dtype::float16})
    for (const rule r : {rule::sum, rule::delta})
      for (int i = 0; i < 4; ++i) {
        Problem p = plain(random, r, type, i % 2 ? Shape{2} : Shape{}, sizes[i]);
        if (i == 1) p.decay = between(p.shape({p.T}), 0.6, 1, random, type);
        if (i == 2) p.decay = between(p.shape({p.T}), -0.3, 0, random, type), p.how.log_decay = true;
        if (i != 3) p.state = test::random(p.shape({p.K, p.V}), random);
        if (i == 3) p.scale = test::random({2}, random);
        check_near(p, std::string(name(type)) + (r == rule::sum ? ", sum, " : ", delta, ") + check::shown(i));
        if (i != 1) continue;
        const Answer one = run(p, 2), other = run(p, 3, true), hopper = run<emulator::Hopper>(p, 4);
        CHECK(test::same(one.out, other.out) && test::same(one.state, other.state));
        CHECK(test::same(one.out, hopper.out) && hopper.launches == 1);
      }
}

}  // namespace

int main() {
  std::mt19937_64 random(80);
  test_sizes(random);
  return check::report();
}
