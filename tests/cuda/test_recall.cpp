// SPDX-License-Identifier: BSD-3-Clause
/// The portable kernels of attention and retrieval against their definition in float64, on the emulator.
#include "check.hpp"
#include "emulator.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/recall_gradients.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Shape;
using test::Tensor;

attention::operands operands(const Attention& a) {
  return {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), a.bias.in(), {}};
}

attention::parameters parameters(const Attention& a) {
  using attention::causal;
  return {a.causal == 0 ? causal::none : a.causal == 1 ? causal::bottom_right : causal::top_left};
}

struct Kept {
  Tensor out, lse, largest, log_sum;
  int launches = 0;
};

Kept attend(const Attention& a, std::uint64_t seed) {
  Kept kept{Tensor(a.shape({a.n(), a.e()}), a.query.type, test::nan, 3), Tensor(a.shape({a.n()})), Tensor(a.shape({a.n()})),
            Tensor(a.shape({a.n()}))};
  emulator::Device device(seed);
  cuda::attend(device, operands(a), a.scale_number, parameters(a),
               {kept.out.out(), kept.lse.out(), {kept.largest.out(), kept.log_sum.out()}});
  kept.launches = device.launches;
  return kept;
}

double tolerance(dtype type) { return type == dtype::float32 ? 4e-6 : type == dtype::float16 ? 2e-3 : 2e-2; }

void check_forward(const Attention& a, const char* what) {
  const Kept kept = attend(a, 1);
  const test::Answer answer = test::attend(a);
  check::near(test::difference(kept.out, answer.out), 0, tolerance(a.query.type), __FILE__, __LINE__, what);
  check::near(test::difference(kept.lse, answer.lse), 0, 2e-5, __FILE__, __LINE__, what);
  // Neither the order of threads nor that of blocks changes a bit.
  check::that(test::same(kept.out, attend(a, 2).out), __FILE__, __LINE__, std::string(what) + ": another order, another result");
}

void check_backward(const Attention& a, std::mt19937_64& random, const char* what) {
  const Kept kept = attend(a, 3);
  const Tensor d_out = test::random(kept.out.shape, random, a.query.type, 1, 1);
  const auto run = [&](std::uint64_t seed) {
    test::Gradients d{Tensor(a.query.shape, a.query.type, test::nan, 1), Tensor(a.key.shape, a.key.type, test::nan, 2),
                      Tensor(a.value.shape, a.value.type)};
    emulator::Device device(seed);
    cuda::attend_backward(device, operands(a), a.scale_number, parameters(a), {kept.largest.in(), kept.log_sum.in()}, kept.out.in(),
                          d_out.in(), {d.query.out(), d.key.out(), d.value.out(), {}, {}, {}, {}});
    return d;
  };
  const test::Gradients d = run(4), again = run(5), wanted = test::attend_gradient(a, d_out);
  const auto close = [&](const Tensor& got, const Tensor& expected) {
    check::near(test::difference(got, expected), 0, tolerance(got.type) * test::largest(expected) + 1e-5, __FILE__, __LINE__, what);
  };
  close(d.query, wanted.query);
  close(d.key, wanted.key);
  close(d.value, wanted.value);
  check::that(test::same(d.query, again.query) && test::same(d.key, again.key) && test::same(d.value, again.value), __FILE__, __LINE__,
              std::string(what) + ": another order, another result");
}

Attention plain(std::mt19937_64& random, index_t n, index_t m, index_t d, index_t e, dtype query = dtype::float32,
                dtype memory = dtype::float32) {
  Attention a;
  a.query = test::random({n, d}, random, query);
  a.key = test::random({m, d}, random, memory, 1, 2);
  a.value = test::random({m, e}, random, memory);
  a.scale_number = 1 / std::sqrt(static_cast<double>(d));
  return a;
}

void test_sizes(std::mt19937_64& random) {
  const index_t sizes[][4] = {{1, 1, 1, 1},      {1, 70, 64, 64},    {65, 63, 5, 3},    {3, 130, 33, 64}, {64, 64, 128, 65},
                              {70, 65, 100, 20}, {33, 31, 256, 256}, {5, 40, 200, 130}, {2, 600, 16, 16}};
  for (const auto& s : sizes) {
    const Attention a = plain(random, s[0], s[1], s[2], s[3]);
    const std::string what =
        "n, m, d, e = " + check::shown(s[0]) + ", " + check::shown(s[1]) + ", " + check::shown(s[2]) + ", " + check::shown(s[3]);
    check_forward(a, what.c_str());
    check_backward(a, random, what.c_str());
  }
  check_forward(plain(random, 2, 2600, 16, 20), "so many splits that a block merges a row");
  CHECK_EQUAL(attend(plain(random, 2, 600, 16, 16), 0).launches, 2);  // split and merged
  CHECK_EQUAL(attend(plain(random, 70, 65, 16, 16), 0).launches, 1);
}

void test_nothing(std::mt19937_64& random) {
  Attention a = plain(random, 3, 4, 5, 6);
  a.key = Tensor({0, 5});
  a.value = Tensor({0, 6});
  check_forward(a, "no keys");
  a = plain(random, 3, 4, 5, 6);
  a.query = Tensor({0, 5});
  check_forward(a, "no queries");
  check_backward(a, random, "no queries");
}

void test_masks(std::mt19937_64& random) {
  Attention a = plain(random, 37, 300, 20, 24);
  a.mask = Tensor({37, 300}, dtype::boolean, 0);
  a.mask.each([&](index_t place) { a.mask.put(place, random() % 3 == 0); });
  for (index_t j = 0; j < 300; ++j) a.mask.put(5 * 300 + j, 0);  // a row that may attend to nothing
  for (index_t i = 0; i < 37; ++i)
    for (index_t j : {7, 250}) a.mask.put(i * 300 + j, 0);  // keys that nobody may attend to, of anything
  for (index_t k = 0; k < 20; ++k) a.key.put(a.key.strides[0] * 7 + k, test::nan), a.key.put(a.key.strides[0] * 250 + k, test::inf);
  for (index_t k = 0; k < 24; ++k) a.value.put(24 * 7 + k, test::inf), a.value.put(24 * 250 + k, test::nan);
  check_forward(a, "mask");
  check_backward(a, random, "mask");
  a.mask = Tensor({300}, dtype::boolean, 1);
  for (index_t j : {7, 250}) a.mask.put(j, 0);
  a.bias = test::random({37, 1}, random);
  check_forward(a, "mask for each key");
  for (int causal : {1, 2}) {
    Attention c = plain(random, 70, 90, 20, 24);
    c.causal = causal;
    check_forward(c, "causal");
    check_backward(c, random, "causal");
    std::swap(c.key, c.query);  // more queries than keys: the first see nothing
    c.value = test::random({70, 9}, random);
    check_forward(c, "causal, fewer keys");
    check_backward(c, random, "causal, fewer keys");
    c = plain(random, 150, 30, 20, 24);  // whole tiles of rows see nothing
    c.causal = causal;
    check_forward(c, "causal, far fewer keys");
    check_backward(c, random, "causal, far fewer keys");
  }
  Attention b = plain(random, 20, 80, 20, 24);
  b.bias = test::random({20, 80}, random);
  for (index_t j = 0; j < 80; j += 3) b.bias.put(4 * 80 + j, -test::inf);
  check_forward(b, "bias");
  check_backward(b, random, "bias");
}

/// Heads that share keys, batches, scales by head, halves, transposed memory.
void test_leading_axes(std::mt19937_64& random) {
  for (dtype memory : {dtype::float32, dtype::float16, dtype::bfloat16}) {
    const dtype query = memory == dtype::bfloat16 ? memory : dtype::float32;
    Attention a;
    a.query = test::random({2, 2, 3, 11, 18}, random, query);
    a.key = test::random({2, 2, 1, 40, 18}, random, memory);
    a.value = test::random({2, 2, 1, 40, 10}, random, memory);
    a.leading = {2, 2, 3};
    a.scale = test::random({2, 3}, random);
    a.causal = 1;
    a.mask = Tensor({2, 1, 1, 1, 40}, dtype::boolean, 1);
    for (index_t j = 30; j < 40; ++j) a.mask.put(j, 0);
    check_forward(a, "groups of heads");
    check_backward(a, random, "groups of heads");
  }
  Attention t = plain(random, 9, 33, 12, 12);
  t.key = test::random({12, 33}, random);
  std::swap(t.key.shape[0], t.key.shape[1]);
  std::swap(t.key.strides[0], t.key.strides[1]);
  check_forward(t, "transposed keys");
}

void test_retrieve(std::mt19937_64& random) {
  Tensor state = test::random({2, 5, 24}, random), patterns = test::random({300, 24}, random), values = test::random({2, 300, 7}, random);
  for (index_t steps : {1, 2, 4}) {
    for (const bool valued : {false, true}) {
      Tensor wanted = state;
      Attention a;
      for (index_t s = 0; s < steps; ++s) {
        a = Attention{wanted, patterns, valued && s + 1 == steps ? values : patterns, {}, {}, {}, 0.7, 0, {2}};
        wanted = test::attend(a).out;
      }
      Tensor out({2, 5, valued ? 7 : 24}), lse({2, 5});
      emulator::Device device(7);
      hopfield::results to;
      to.state = out.out();
      to.lse = lse.out();
      cuda::retrieve(device, {state.in(), patterns.in(), valued ? values.in() : ConstArray{}, {}, {}}, 0.7, {"softmax", steps}, to);
      CHECK_NEAR(test::difference(out, wanted), 0, 1e-5);
      Tensor over_beta = test::attend(a).lse;  // spec/hopfield.hpp
      over_beta.each([&](index_t place) { over_beta.put(place, over_beta.get(place) / 0.7); });
      CHECK_NEAR(test::difference(lse, over_beta), 0, 1e-4);
    }
  }
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  Attention a = plain(random, 3, 4, 5, 6);
  Tensor out({3, 6}), wide({3, 300});
  const auto call = [&] { cuda::attend(device, operands(a), a.scale_number, parameters(a), {out.out(), {}, {}}); };
  a.key = test::random({4, 7}, random);
  CHECK_FAILS(value, "attention.attend: key has shape (4, 7); expected (..., m, d=5)", call());
  a = plain(random, 3, 4, 5, 6);
  a.query = test::random({3, 5}, random, dtype::float64);
  CHECK_FAILS(type, "attention.attend: query has dtype float64; expected float32, float16 or bfloat16 on a device", call());
  a = plain(random, 3, 4, 300, 6);
  CHECK_FAILS(value, "attention.attend: key has shape (4, 300); expected rows of at most 256 numbers on a device", call());
  a = plain(random, 3, 4, 5, 6);
  a.scale_number = test::inf;
  CHECK_FAILS(value, "attention.attend: scale is inf; expected a finite number", call());
  a.scale_number = 1;
  CHECK_FAILS(value, "attention.attend: separation is 'sparsemax'; expected 'softmax', the only one on a device so far",
              cuda::attend(device, operands(a), 1, {attention::causal::none, "sparsemax"}, {out.out(), {}, {}}));
  CHECK_FAILS(value, "attention.attend: out has shape (3, 300); expected (3, 6)",
              cuda::attend(device, operands(a), 1, {}, {wide.out(), {}, {}}));
}

}  // namespace

int main() {
  std::mt19937_64 random(20);
  test_sizes(random);
  test_nothing(random);
  test_masks(random);
  test_leading_axes(random);
  test_retrieve(random);
  test_errors(random);
  return check::report();
}
