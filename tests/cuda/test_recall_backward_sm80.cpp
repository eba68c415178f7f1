// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of attention, retrieval and energies on tensor cores against their definitions in float64, on the emulator.
#include "check.hpp"
#include "emulator_sm80.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/energy.hpp"
#include "recollect/cuda/recall_gradients.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Shape;
using test::Tensor;

/// The length of the difference over that of what is wanted.
double error(const Tensor& got, const Tensor& wanted) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(apart / size);
}

void close(const Tensor& got, const Tensor& wanted, dtype type, const std::string& what) {
  if (std::getenv("SHOW")) std::printf("%s: %.2e\n", what.c_str(), error(got, wanted));
  check::near(error(got, wanted), 0, type == dtype::bfloat16 ? 6e-3 : 2e-3, __FILE__, __LINE__, what.c_str());
}

attention::operands operands(const Attention& a) {
  return {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), a.bias.in(), {}};
}

attention::parameters parameters(const Attention& a) {
  using attention::causal;
  return {a.causal == 0 ? causal::none : a.causal == 1 ? causal::bottom_right : causal::top_left};
}

/// What the portable kernels leave of the forward pass.
struct Kept {
  Tensor out, largest, log_sum;
};

Kept forward(const Attention& a) {
  Kept kept{Tensor(a.shape({a.n(), a.e()}), a.query.type), Tensor(a.shape({a.n()})), Tensor(a.shape({a.n()}))};
  emulator::Device device;
  cuda::attend(device, operands(a), a.scale_number, parameters(a), {kept.out.out(), {}, {kept.largest.out(), kept.log_sum.out()}});
  return kept;
}

test::Gradients backward(const Attention& a, const Kept& kept, const Tensor& d_out, auto&& device) {
  const auto like = [](const Tensor& operand) { return Tensor(operand.shape, operand.type); };
  test::Gradients d{like(a.query), like(a.key), like(a.value), Tensor(a.scale.shape), {}};
  cuda::attend_backward(device, operands(a), a.scale_number, parameters(a), {kept.largest.in(), kept.log_sum.in()}, kept.out.in(),
                        d_out.in(), {d.query.out(), d.key.out(), d.value.out(), d.scale.out(), {}, {}, {}});
  return d;
}

/// `size`: of the cotangents.
void check_attend(const Attention& a, std::mt19937_64& random, const std::string& what, double size = 1) {
  const Tensor d_out = test::random(a.shape({a.n(), a.e()}), random, a.query.type, size, 8);
  const Kept kept = forward(a);
  const test::Gradients got = backward(a, kept, d_out, emulator::Ampere(1));
  const test::Gradients wanted = test::attend_gradient(a, d_out);
  close(got.query, wanted.query, a.query.type, what + ", d_query");
  close(got.key, wanted.key, a.query.type, what + ", d_key");
  close(got.value, wanted.value, a.query.type, what + ", d_value");
  if (a.n() > 200) return;
  // What is rounded on the way to a scale's gradient is `out`, in both.
  const test::Gradients portable = backward(a, kept, d_out, emulator::Device(2));
  check::near(test::difference(got.scale, portable.scale), 0, 1e-3 * test::largest(wanted.scale), __FILE__, __LINE__, what.c_str());
}

Attention plain(std::mt19937_64& random, dtype type, Shape leading, index_t n, index_t m, index_t width) {
  Attention a;
  a.leading = leading;
  a.query = test::random(a.shape({n, width}), random, type, 1, 8);
  a.key = test::random(a.shape({m, width}), random, type, 1, 16);
  a.value = test::random(a.shape({m, width}), random, type);
  a.scale_number = 1 / std::sqrt(static_cast<double>(width));
  return a;
}

/// Whole and ragged tiles, one block and several, both orders of a causal mask. What nobody sees, and who sees nothing, may hold anything.
void test_sizes(std::mt19937_64& random) {
  for (const dtype type : {dtype::bfloat16, dtype::float16}) {
    const std::string name = type == dtype::float16 ? "float16" : "bfloat16";
    Attention a = plain(random, type, {}, 32, 128, 64);
    check_attend(a, random, name + ", whole tiles");
    const Tensor d_out = test::random({32, 64}, random, type);
    const Kept kept = forward(a);
    const test::Gradients d = backward(a, kept, d_out, emulator::Ampere(1)), again = backward(a, kept, d_out, emulator::Ampere(2));
    CHECK(test::same(d.query, again.query) && test::same(d.key, again.key) && test::same(d.value, again.value));
    CHECK(test::same(d.scale, again.scale));
    check_attend(plain(random, type, {}, 37, 70, 128), random, name + ", ragged tiles");
  }
  Attention a = plain(random, dtype::bfloat16, {}, 140, 100, 64);
  a.causal = 1;
  for (index_t place = 0; place < 40 * 72; ++place) a.query.put(place, test::nan);
  check_attend(a, random, "causal, bottom right");
  a = plain(random, dtype::float16, {}, 40, 200, 64);
  a.causal = 2;
  for (index_t place = 64 * 80; place < 200 * 80; ++place) a.key.put(place, test::nan);
  check_attend(a, random, "causal, top left");
  a = plain(random, dtype::float16, {}, 3, 1030, 64);
  a.causal = 1;
  check_attend(a, random, "patterns in parts");
  check_attend(plain(random, dtype::float16, {}, 1030, 3, 64), random, "rows in parts");
  a = plain(random, dtype::float16, {}, 1030, 40, 64);
  a.causal = 1;
  check_attend(a, random, "rows in parts, one of which sees nothing");
}

/// Grouped heads with a scale each, keys of all batches, results that are summed.
void test_broadcasts(std::mt19937_64& random) {
  Attention a = plain(random, dtype::bfloat16, {2, 3}, 20, 40, 64);
  a.key = test::random({2, 1, 40, 64}, random, dtype::bfloat16);
  a.value = test::random({2, 1, 40, 64}, random, dtype::bfloat16);
  a.scale = Tensor({3}, dtype::float32, 0.1);
  a.scale.put(1, -0.2), a.scale.put(2, 0);
  a.causal = 1;
  check_attend(a, random, "groups");
  a.query = test::random({3, 20, 64}, random, dtype::bfloat16);
  a.key = test::random({3, 40, 64}, random, dtype::bfloat16);
  a.causal = 0;
  check_attend(a, random, "broadcast");
}

/// Numbers that float16 has hardly any room for.
void test_range(std::mt19937_64& random) {
  const auto type = dtype::float16;
  for (const double size : {1e-4, 1e3}) check_attend(plain(random, type, {}, 33, 70, 64), random, "cotangents of a size", size);
  Attention a = plain(random, type, {}, 40, 70, 64);
  a.scale_number = 3;  // nearly one pattern for each row
  check_attend(a, random, "one pattern for each");
  a = plain(random, type, {}, 40, 70, 64);
  a.value.each([&](index_t place) { a.value.put(place, 500 * a.value.get(place)); });
  check_attend(a, random, "large values");
}

// ---------------------------------------------------------------------------------------------------- retrieval and energies

/// Where keys are values: the sum of what attention has for both.
void check_retrieve(std::mt19937_64& random, dtype type, index_t n, index_t N, index_t d, index_t steps, bool valued) {
  const std::string what = std::to_string(steps) + " steps of " + std::to_string(d) + (valued ? ", values" : "");
  const double beta = 1 / std::sqrt(static_cast<double>(d));
  const Tensor patterns = test::random({N, d}, random, type), values = valued ? test::random({N, d}, random, type) : Tensor();
  Tensor d_out = test::random({n, d}, random, type);
  std::vector<Tensor> states{test::random({n, d}, random, type)}, saved;
  std::vector<cuda::RetrievalStep> kept(static_cast<std::size_t>(steps));
  for (index_t step = 0; step < steps; ++step) {
    states.emplace_back(Shape{n, d}, type);
    saved.emplace_back(Shape{n}), saved.emplace_back(Shape{n});
  }
  for (std::size_t step = 0; step < kept.size(); ++step)
    kept[step] = {step + 1 < kept.size() ? states[step + 1].out() : Array{}, {saved[2 * step].out(), saved[2 * step + 1].out()}};
  hopfield::results to;
  to.state = states.back().out();
  const hopfield::operands in{states[0].in(), patterns.in(), values.in(), {}, {}};
  emulator::Device portable(3);
  cuda::retrieve(portable, in, beta, {"softmax", steps}, to, kept);
  test::Gradients wanted{{}, test::zeros(patterns), valued ? test::zeros(values) : Tensor(), Tensor({}, dtype::float64, 0)};
  Tensor back = d_out;
  for (index_t step = steps; step-- > 0;) {
    const bool reads = valued && step + 1 == steps;
    const test::Gradients d = test::attend_gradient({states[step], patterns, reads ? values : patterns, {}, {}, {}, beta, 0, {}}, back);
    wanted.key.each(
        [&](index_t place) { wanted.key.put(place, wanted.key.get(place) + d.key.get(place) + (reads ? 0 : d.value.get(place))); });
    if (reads) wanted.value = d.value;
    wanted.scale.put(0, wanted.scale.get(0) + d.scale.get(0));
    back = d.query;
  }
  test::Gradients got{Tensor({n, d}, type), Tensor({N, d}, type), valued ? Tensor({N, d}, type) : Tensor(), Tensor(Shape{})};
  emulator::Ampere device(4);
  cuda::retrieve_backward(device, in, beta, {"softmax", steps}, kept, states.back().in(), d_out.in(),
                          {got.query.out(), got.key.out(), got.value.out(), got.scale.out(), {}});
  close(got.query, back, type, what + ", d_state");
  close(got.key, wanted.key, type, what + ", d_patterns");
  if (valued) close(got.value, wanted.value, type, what + ", d_values");
  check::near(test::difference(got.scale, wanted.scale), 0, 2e-2 * test::largest(wanted.scale), __FILE__, __LINE__, what.c_str());
}

void test_retrievals(std::mt19937_64& random) {
  check_retrieve(random, dtype::float16, 35, 140, 128, 1, false);
  check_retrieve(random, dtype::bfloat16, 35, 70, 64, 1, false);
  check_retrieve(random, dtype::bfloat16, 20, 70, 128, 3, true);
  check_retrieve(random, dtype::float16, 20, 70, 64, 3, false);
}

/// E = (log N - L) / beta + |q|^2 / 2 + M^2 / 2, with the gradients of recall_energy.hpp.
void test_energy(std::mt19937_64& random) {
  const index_t n = 35, N = 70, d = 64;
  const double beta = 0.2;
  const auto type = dtype::float16;
  const Tensor state = test::random({n, d}, random, type), patterns = test::random({N, d}, random, type), d_out = test::random({n}, random);
  Tensor largest({n}), log_sum({n}), lse({n}), d_state({n, d}, type), d_patterns({N, d}, type), d_beta(Shape{});
  const hopfield::operands in{state.in(), patterns.in(), {}, {}, {}};
  hopfield::results to;
  to.saved = {largest.out(), log_sum.out()};
  emulator::Ampere device(5);
  cuda::energy(device, in, beta, "softmax", to);
  cuda::energy_backward(device, in, beta, "softmax", {largest.in(), log_sum.in()}, d_out.in(),
                        {d_state.out(), d_patterns.out(), {}, d_beta.out(), {}});
  Tensor wanted_state({n, d}, dtype::float64, 0), wanted_patterns({N, d}, dtype::float64, 0), wanted_beta({}, dtype::float64, 0);
  test::each_row({state, patterns, patterns, {}, {}, {}, beta, 0, {}},
                 [&](const Shape&, index_t i, const std::vector<double>& p, double l) {
                   const double g = d_out.get(i);
                   double mean = 0;  // of the scores
                   for (index_t k = 0; k < d; ++k) wanted_state.add({}, {i, k}, g * state.at({}, {i, k}));
                   for (index_t j = 0; j < N; ++j)
                     for (index_t k = 0; k < d; ++k) {
                       wanted_state.add({}, {i, k}, -g * p[j] * patterns.at({}, {j, k}));
                       wanted_patterns.add({}, {j, k}, -g * p[j] * state.at({}, {i, k}));
                       mean += p[j] * beta * state.at({}, {i, k}) * patterns.at({}, {j, k});
                     }
                   wanted_beta.put(0, wanted_beta.get(0) + g * (l - std::log(static_cast<double>(N)) - mean) / (beta * beta));
                 });
  close(d_state, wanted_state, type, "energy, d_state");
  close(d_patterns, wanted_patterns, type, "energy, d_patterns");
  close(d_beta, wanted_beta, type, "energy, d_beta");
}

/// What these kernels do not take goes to the portable ones, whose results differ by less.
void test_others(std::mt19937_64& random) {
  const auto rounded = [&](const Attention& a, bool wanted, const char* what) {
    const Tensor d_out = test::random(a.shape({a.n(), a.e()}), random, a.query.type);
    emulator::Ampere device;
    backward(a, forward(a), d_out, device);
    check::that((device.launches > 4) == wanted, __FILE__, __LINE__, what);  // one more: the table of rows
  };
  const auto type = dtype::bfloat16;
  const Attention a = plain(random, type, {2}, 5, 9, 64);
  rounded(a, true, "tensor cores");
  Attention b = a;
  b.mask = Tensor({9}, dtype::boolean, 1);
  rounded(b, false, "a mask");
  b = a;
  b.bias = test::random({9}, random);
  rounded(b, false, "a bias");
  b = a;
  b.value = test::random({2, 9, 40}, random, type);
  rounded(b, false, "narrow values");
  b = a;
  b.key = test::random({2, 9, 64}, random, type, 1, 1);
  rounded(b, false, "rows that are not aligned");
  rounded(plain(random, type, {2}, 5, 9, 72), false, "another width");
  rounded(plain(random, dtype::float32, {2}, 5, 9, 64), false, "float32");
}

}  // namespace

int main() {
  std::mt19937_64 random(81);
  test_sizes(random);
  test_broadcasts(random);
  test_range(random);
  test_retrievals(random);
  test_energy(random);
  test_others(random);
  return check::report();
}
