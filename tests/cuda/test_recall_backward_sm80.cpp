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
  check::near(error(got, wanted), 0, type == dtype::bfloat16 ? 8e-3 : 1.5e-3, __FILE__, __LINE__, what.c_str());
}

/// `shared`: keys that are the values, as the library has it inside; a.value is the same as a.key.
struct Given {
  Tensor out, largest, log_sum;
  test::Gradients d;
  int launches = 0;
};

Given run(const Attention& a, const Tensor& d_out, std::uint64_t seed) {
  const attention::operands in{a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), a.bias.in(), {}};
  const attention::parameters how{a.causal == 0   ? attention::causal::none
                                  : a.causal == 1 ? attention::causal::bottom_right
                                                  : attention::causal::top_left};
  Given g{Tensor(a.shape({a.n(), a.e()}), a.query.type), Tensor(a.shape({a.n()})), Tensor(a.shape({a.n()})), {}};
  emulator::Device portable(seed);
  cuda::attend(portable, in, a.scale_number, how, {g.out.out(), {}, {g.largest.out(), g.log_sum.out()}});
  const auto like = [](const Tensor& operand) { return Tensor(operand.shape, operand.type); };
  g.d = {like(a.query), like(a.key), like(a.value), Tensor(a.scale.shape), {}};
  emulator::Ampere device(seed);
  cuda::attend_backward(device, in, a.scale_number, how, {g.largest.in(), g.log_sum.in()}, g.out.in(), d_out.in(),
                        {g.d.query.out(), g.d.key.out(), g.d.value.out(), g.d.scale.out(), {}, {}, {}});
  g.launches = device.launches;
  return g;
}

Given check_attend(const Attention& a, std::mt19937_64& random, const std::string& what, double size = 1) {
  const Tensor d_out = test::random(a.shape({a.n(), a.e()}), random, a.query.type, size);
  const Given got = run(a, d_out, 1);
  const test::Gradients wanted = test::attend_gradient(a, d_out);
  close(got.d.query, wanted.query, a.query.type, what + ", d_query");
  close(got.d.key, wanted.key, a.query.type, what + ", d_key");
  close(got.d.value, wanted.value, a.query.type, what + ", d_value");
  close(got.d.scale, wanted.scale, a.query.type, what + ", d_scale");
  return got;
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

/// Whole and ragged tiles, one block and several, both orders of a causal mask, some rows of which see nothing.
void test_sizes(std::mt19937_64& random) {
  for (const dtype type : {dtype::bfloat16, dtype::float16}) {
    const std::string name = type == dtype::float16 ? "float16" : "bfloat16";
    check_attend(plain(random, type, {}, 32, 128, 64), random, name + ", whole tiles");
    check_attend(plain(random, type, {}, 37, 70, 128), random, name + ", ragged tiles");
    Attention a = plain(random, type, {}, 140, 100, 64);
    a.causal = 1;
    a.query.each([&](index_t place) { if (place < 72) a.query.put(place, test::nan); });  // a row that sees nothing
    check_attend(a, random, name + ", causal, bottom right");
  }
  Attention a = plain(random, dtype::bfloat16, {}, 40, 200, 64);
  a.causal = 2;
  for (index_t place = 160 * 80; place < 200 * 80; ++place) a.key.put(place, test::nan);  // patterns that nobody sees
  check_attend(a, random, "causal, top left");
}

}  // namespace

int main() {
  std::mt19937_64 random(81);
  test_sizes(random);
  return check::report();
}
