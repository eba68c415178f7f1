// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of attention beyond those of its three arrays, of retrieval in steps and of energies, and energies themselves, against their
/// definitions in float64, on the emulator. The gradients of steps and energies are told apart from the library's way of taking them: by
/// differences of the definition.
#include "check.hpp"
#include "emulator.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/energy.hpp"
#include "recollect/cuda/recall_gradients.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Shape;
using test::Tensor;

void close(const Tensor& got, const Tensor& wanted, double bound, const std::string& what) {
  check::near(test::difference(got, wanted), 0, bound * test::largest(wanted), __FILE__, __LINE__, what.c_str());
}

double bound_of(dtype type) { return type == dtype::float32 ? 1e-5 : type == dtype::float16 ? 2e-3 : 2e-2; }

Tensor like(const Tensor& operand) { return operand.given() ? Tensor(operand.shape, operand.type) : Tensor(); }

// ---------------------------------------------------------------------------------------------------------------- attention

attention::operands operands(const Attention& a) {
  return {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), a.bias.in(), {}};
}

attention::parameters parameters(const Attention& a) {
  using attention::causal;
  return {a.causal == 0 ? causal::none : a.causal == 1 ? causal::bottom_right : causal::top_left};
}

test::Gradients attend_gradient(const Attention& a, const Tensor& d_out, std::uint64_t seed) {
  Tensor out(a.shape({a.n(), a.e()}), a.query.type), largest(a.shape({a.n()})), log_sum(a.shape({a.n()}));
  emulator::Device device(seed);
  cuda::attend(device, operands(a), a.scale_number, parameters(a), {out.out(), {}, {largest.out(), log_sum.out()}});
  test::Gradients d{like(a.query), like(a.key), like(a.value), Tensor(a.scale.shape), like(a.bias)};
  cuda::attend_backward(device, operands(a), a.scale_number, parameters(a), {largest.in(), log_sum.in()}, out.in(), d_out.in(),
                        {d.query.out(), d.key.out(), d.value.out(), d.scale.out(), {}, d.bias.out(), {}});
  return d;
}

void check_attend(const Attention& a, std::mt19937_64& random, const std::string& what) {
  const Tensor d_out = test::random(a.shape({a.n(), a.e()}), random, a.query.type);
  const test::Gradients d = attend_gradient(a, d_out, 1), again = attend_gradient(a, d_out, 2), wanted = test::attend_gradient(a, d_out);
  close(d.query, wanted.query, bound_of(d.query.type), what + ", d_query");
  close(d.key, wanted.key, bound_of(d.key.type), what + ", d_key");
  close(d.value, wanted.value, bound_of(d.value.type), what + ", d_value");
  close(d.scale, wanted.scale, bound_of(a.query.type), what + ", d_scale");
  if (a.bias.given()) close(d.bias, wanted.bias, bound_of(a.query.type), what + ", d_bias");
  CHECK(test::same(d.query, again.query) && test::same(d.key, again.key) && test::same(d.value, again.value));
  CHECK(test::same(d.scale, again.scale) && test::same(d.bias, again.bias));
}

/// Every operand broadcast in its own way: what was broadcast is summed.
void test_broadcasts(std::mt19937_64& random) {
  Attention a;
  a.leading = {2, 3};
  a.query = test::random({3, 5, 6}, random);  // of all batches
  a.key = test::random({2, 1, 40, 6}, random);
  a.value = test::random({3, 40, 7}, random);
  a.scale = test::random({2, 1}, random);
  check_attend(a, random, "broadcast");
  a.query = test::random({1, 1, 5, 6}, random, dtype::float16);
  a.key = test::random({2, 3, 40, 6}, random, dtype::float16);
  a.value = test::random({40, 7}, random, dtype::bfloat16);
  a.scale = {};
  a.scale_number = 0.4;
  check_attend(a, random, "halves, broadcast");
  a.query = test::random({2, 3, 0, 6}, random);
  a.value = test::random({40, 7}, random);
  check_attend(a, random, "no queries");
}

void test_biases(std::mt19937_64& random) {
  const auto check = [&](const Shape& shape, bool grouped) {
    Attention a;
    a.leading = {2, 3};
    a.query = test::random({2, 3, 35, 6}, random);
    a.key = test::random({2, grouped ? 1 : 3, 40, 6}, random);
    a.value = test::random({2, grouped ? 1 : 3, 40, 4}, random);
    a.scale_number = 0.4;
    a.causal = static_cast<int>(shape.size() % 3);
    a.bias = test::random(shape, random);
    if (a.m() == shape.back()) a.bias.put(a.bias.place({7}), -test::inf);
    check_attend(a, random, "bias with " + check::shown(shape.size()) + " axes" + (grouped ? ", groups" : ""));
  };
  for (const Shape& shape : {Shape{2, 3, 35, 40}, Shape{3, 1, 40}, Shape{40}, Shape{2, 3, 35, 1}}) check(shape, false);
  for (const Shape& shape : {Shape{3, 35, 40}, Shape{2, 1, 1, 40}, Shape{35, 40}, Shape{1}}) check(shape, true);
  for (const index_t width : {100, 200}) {
    Attention a;
    a.query = test::random({3, width}, random, dtype::float16);
    a.key = test::random({20, width}, random, dtype::float16);
    a.value = test::random({20, 5}, random, dtype::float16);
    a.scale_number = 0.1;
    a.bias = test::random({20}, random, dtype::float16);
    check_attend(a, random, "bias of halves");
  }
}

// ---------------------------------------------------------------------------------------------------- retrieval and energies

struct Network {
  Tensor state, patterns, values, beta, mask;
  double beta_number = 1;
  Shape leading;

  hopfield::operands in() const { return {state.in(), patterns.in(), values.in(), beta.in(), mask.in()}; }
  Shape shape(std::initializer_list<index_t> inner) const {
    Shape s = leading;
    s.insert(s.end(), inner);
    return s;
  }
  index_t n() const { return state.shape[state.shape.size() - 2]; }
};

Attention step_of(const Network& h, const Tensor& state, bool reads_values) {
  return {state, h.patterns, reads_values ? h.values : h.patterns, h.beta, h.mask, {}, h.beta_number, 0, h.leading};
}

/// A sum over all outputs with weights d_out.
double dot(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.numbers(), y = b.numbers();
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] == 0 || y[i] == 0 ? 0 : x[i] * y[i];
  return sum;
}

Tensor retrieved(const Network& h, index_t steps) {
  Tensor state = h.state;
  for (index_t s = 0; s < steps; ++s) state = test::attend(step_of(h, state, h.values.given() && s + 1 == steps)).out;
  return state;
}

/// E by its definition; +inf where nothing is seen. `constant`: the largest pattern, which has no gradient.
Tensor energies(const Network& h, const Network* constant = nullptr) {
  const Tensor lse = test::attend(step_of(h, h.state, false)).lse;
  Tensor energy(lse.shape, dtype::float64, 0);
  const index_t n = h.n(), N = h.patterns.shape[h.patterns.shape.size() - 2], d = h.patterns.shape.back();
  lse.each([&](index_t flat) {
    Shape l = Tensor::unravel(flat, lse.shape);
    const index_t i = l.back();
    l.pop_back();
    double count = 0, largest = 0, own = 0;
    for (index_t j = 0; j < N; ++j) {
      if (h.mask.given() && h.mask.at(l, {i, j}) == 0) continue;
      double square = 0;
      for (index_t k = 0; k < d; ++k) square += std::pow((constant ? *constant : h).patterns.at(l, {j, k}), 2);
      ++count;
      largest = std::max(largest, square);
    }
    for (index_t k = 0; k < d; ++k) own += std::pow(h.state.at(l, {i, k}), 2);
    const double beta = h.beta.given() ? h.beta.at(l, {}) : h.beta_number;
    energy.put(flat, count == 0 ? test::inf : (std::log(count) - lse.get(flat)) / beta + (own + largest) / 2);
  });
  static_cast<void>(n);
  return energy;
}

/// The gradient of f(network) by central differences in float64, one number of an operand after the other.
template <class F>
Tensor by_differences(const Network& at, Tensor Network::*operand, F&& f) {
  Tensor gradient((at.*operand).shape, dtype::float64, 0);
  Network h = at;
  Tensor exact((at.*operand).shape, dtype::float64, 0);
  const std::vector<double> numbers = (at.*operand).numbers();
  std::size_t i = 0;
  exact.each([&](index_t place) { exact.put(place, numbers[i++]); });
  h.*operand = exact;
  constexpr double step = 1e-5;
  exact.each([&](index_t place) {
    const double x = exact.get(place);
    (h.*operand).put(place, x + step);
    const double above = f(h);
    (h.*operand).put(place, x - step);
    gradient.put(place, (above - f(h)) / (2 * step));
    (h.*operand).put(place, x);
  });
  return gradient;
}

template <class F>
void check_gradients(const Network& h, const Network& d, F&& f, const std::string& what) {
  close(d.state, by_differences(h, &Network::state, f), 2 * bound_of(h.state.type), what + ", d_state");
  close(d.patterns, by_differences(h, &Network::patterns, f), 2 * bound_of(h.state.type), what + ", d_patterns");
  if (d.values.given()) close(d.values, by_differences(h, &Network::values, f), 2 * bound_of(h.state.type), what + ", d_values");
  Network with = h;  // a number as an array of no axes
  if (!h.beta.given()) with.beta = Tensor({}, dtype::float64, h.beta_number);
  close(d.beta, by_differences(with, &Network::beta, f), 2 * bound_of(h.state.type), what + ", d_beta");
}

hopfield::gradients places(Network& d) { return {d.state.out(), d.patterns.out(), d.values.out(), d.beta.out(), {}}; }

Network room(const Network& h) { return {like(h.state), like(h.patterns), like(h.values), Tensor(h.beta.shape), {}, 1, {}}; }

void check_retrieval(const Network& h, index_t steps, std::mt19937_64& random, const std::string& what) {
  const index_t width = (h.values.given() ? h.values : h.patterns).shape.back();
  Tensor out(h.shape({h.n(), width}), h.state.type), plain(out.shape, out.type);
  const Tensor d_out = test::random(out.shape, random, h.state.type);
  struct Step {
    Tensor state, largest, log_sum;
  };
  std::vector<Step> steps_kept;
  std::vector<cuda::RetrievalStep> kept;
  for (index_t s = 0; s < steps; ++s)
    steps_kept.push_back(
        {Tensor(h.shape({h.n(), h.state.shape.back()}), h.state.type), Tensor(h.shape({h.n()})), Tensor(h.shape({h.n()}))});
  for (Step& s : steps_kept) kept.push_back({s.state.out(), {s.largest.out(), s.log_sum.out()}});
  kept.back().state = {};
  hopfield::results to, alone;
  to.state = out.out();
  alone.state = plain.out();
  const hopfield::parameters how{"softmax", steps};
  emulator::Device device(3), other(4);
  cuda::retrieve(device, h.in(), h.beta_number, how, to, kept);
  cuda::retrieve(other, h.in(), h.beta_number, how, alone);
  CHECK(test::same(out, plain));  // what is kept changes nothing
  Network d = room(h), again = room(h);
  cuda::retrieve_backward(device, h.in(), h.beta_number, how, kept, out.in(), d_out.in(), places(d));
  cuda::retrieve_backward(other, h.in(), h.beta_number, how, kept, out.in(), d_out.in(), places(again));
  CHECK(test::same(d.state, again.state) && test::same(d.patterns, again.patterns) && test::same(d.beta, again.beta));
  check_gradients(h, d, [&](const Network& at) { return dot(retrieved(at, steps), d_out); }, what);
}

Network network(std::mt19937_64& random, dtype type = dtype::float32) {
  Network h;
  h.leading = {2};
  h.state = test::random({2, 3, 5}, random, type);
  h.patterns = test::random({9, 5}, random, type);
  h.beta_number = 0.6;
  return h;
}

void test_retrievals(std::mt19937_64& random) {
  for (const index_t steps : {1, 2, 3}) {
    const std::string what = check::shown(steps) + " steps";
    Network h = network(random);
    check_retrieval(h, steps, random, what);
    h.values = test::random({2, 9, 4}, random);
    h.beta = Tensor({2}, dtype::float32, 0.5);
    h.mask = Tensor({3, 9}, dtype::boolean, 1);
    for (index_t j = 0; j < 9; ++j) h.mask.put(j, j % 2), h.mask.put(9 + j, 0);
    check_retrieval(h, steps, random, what + ", values, a mask");
  }
  check_retrieval(network(random, dtype::float16), 2, random, "halves");
}

void check_energy(const Network& h, std::mt19937_64& random, const std::string& what) {
  Tensor out(h.shape({h.n()})), lse(out.shape), largest(out.shape), log_sum(out.shape);
  const Tensor d_out = test::random(out.shape, random);
  hopfield::results to;
  to.energy = out.out();
  to.lse = lse.out();
  to.saved = {largest.out(), log_sum.out()};
  emulator::Device device(5);
  cuda::energy(device, h.in(), h.beta_number, "softmax", to);
  close(out, energies(h), 1e-5, what);
  Tensor over_beta = test::attend(step_of(h, h.state, false)).lse;
  over_beta.each([&](index_t flat) {
    Shape l = Tensor::unravel(flat, over_beta.shape);
    l.pop_back();
    over_beta.put(flat, over_beta.get(flat) / (h.beta.given() ? h.beta.at(l, {}) : h.beta_number));
  });
  close(lse, over_beta, 1e-5, what + ", lse");
  Network d = room(h);
  cuda::energy_backward(device, h.in(), h.beta_number, "softmax", {largest.in(), log_sum.in()}, d_out.in(), places(d));
  const auto sum = [&](const Network& at) {
    Tensor e = energies(at, &h);
    e.each([&](index_t place) { e.put(place, std::isfinite(e.get(place)) ? e.get(place) : 0); });
    return dot(e, d_out);
  };
  check_gradients(h, d, sum, what);
}

void test_energies(std::mt19937_64& random) {
  Network h = network(random);
  check_energy(h, random, "energy");
  h.mask = Tensor({3, 9}, dtype::boolean, 1);
  for (index_t j = 0; j < 9; ++j) h.mask.put(j, j % 2), h.mask.put(9 + j, 0);
  h.beta = Tensor({2}, dtype::float32, 0.5);
  h.patterns = test::random({2, 9, 5}, random);
  h.state = test::random({3, 5}, random);
  check_energy(h, random, "energy, masked, broadcast");
  h = network(random, dtype::bfloat16);
  check_energy(h, random, "energy of halves");
  h = network(random);
  h.patterns = test::random({700, 5}, random);  // in several parts, that are merged
  Tensor out(h.shape({h.n()}));
  hopfield::results to;
  to.energy = out.out();
  emulator::Device device(6);
  cuda::energy(device, h.in(), h.beta_number, "softmax", to);
  close(out, energies(h), 1e-5, "energy, many patterns");
}

/// Energies belong to the state that the last softmax compared; without values, `converged` to the result.
void test_told(std::mt19937_64& random) {
  for (const bool valued : {false, true})
    for (const index_t steps : {1, 2, 8}) {
      Network h = network(random);
      h.beta_number = 2;
      h.patterns.each([&](index_t place) { h.patterns.put(place, 2 * h.patterns.get(place)); });
      if (valued) h.values = test::random({2, 9, 4}, random);
      Tensor out(h.shape({3, valued ? 4 : 5})), energy(h.shape({3})), lse(h.shape({3})), taken(h.shape({3}), dtype::float64),
          converged(h.shape({3}), dtype::boolean, 1);
      hopfield::results to{out.out(), energy.out(), lse.out(), taken.out(), converged.out(), {}};
      to.steps.type = dtype::int64;
      emulator::Device device(8);
      cuda::retrieve(device, h.in(), h.beta_number, {"softmax", steps}, to);
      Network plain = h;
      plain.values = {};
      Network at = plain;
      at.state = retrieved(plain, steps - 1);
      close(energy, energies(at), 1e-5, "energies of a retrieval");
      Tensor wanted = test::attend(step_of(at, at.state, false)).lse;
      wanted.each([&](index_t place) { wanted.put(place, wanted.get(place) / h.beta_number); });
      close(lse, wanted, 1e-5, "lse of a retrieval");
      const index_t updates = steps - valued;
      const Tensor from = retrieved(plain, updates - 1), now = retrieved(plain, updates);
      for (index_t row = 0; row < 6; ++row) {
        double moved = 0;
        for (index_t k = 0; k < 5; ++k) moved += std::pow(now.get(5 * row + k) - from.get(5 * row + k), 2);
        CHECK_EQUAL(converged.get(row), updates > 0 && std::sqrt(moved) <= 1e-4 ? 1 : 0);
        CHECK_EQUAL(reinterpret_cast<const index_t*>(taken.bytes.data())[row], steps);
      }
    }
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  Network h = network(random);
  Tensor out(h.shape({3, 5})), d_beta({2}), short_sum({2, 2});
  hopfield::results to;
  to.state = out.out();
  CHECK_FAILS(value, "hopfield.retrieve: 1 steps are kept; expected 2",
              cuda::retrieve(device, h.in(), 1, {"softmax", 2}, to, std::vector<cuda::RetrievalStep>(1)));
  CHECK_FAILS(value, "hopfield.retrieve: d_beta has shape (2,); expected ()",
              cuda::retrieve_backward(device, h.in(), 1, {}, {}, out.in(), out.in(), {{}, {}, {}, d_beta.out(), {}}));
  CHECK_FAILS(value, "hopfield.energy: d_out has shape (2, 2); expected (2, 3)",
              cuda::energy_backward(device, h.in(), 1, "softmax", {short_sum.in(), short_sum.in()}, short_sum.in(), {}));
  CHECK_FAILS(value, "hopfield.energy: separation is 'linear'; expected 'softmax', the only one on a device so far",
              cuda::energy(device, h.in(), 1, "linear", {}));
}

}  // namespace

int main() {
  std::mt19937_64 random(30);
  test_broadcasts(random);
  test_biases(random);
  test_retrievals(random);
  test_energies(random);
  test_told(random);
  test_errors(random);
  return check::report();
}
