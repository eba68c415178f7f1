// SPDX-License-Identifier: BSD-3-Clause
/// Ranked lists, and attention to the keys with the largest scores alone, against their definitions, on the emulator.
#include "check.hpp"
#include "emulator.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/top_k.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Shape;
using test::Tensor;

void test_ranks() {
  const float scores[] = {-cuda::infinity, -3e38f, -1.5f, -1e-40f, -0.0f, 0.0f, 1e-40f, 2.0f, 3e38f, cuda::infinity};
  for (const float a : scores) {
    const cuda::Rank rank = cuda::rank_of(a, 7);
    CHECK_EQUAL(cuda::score_of_rank(rank), a);
    CHECK_EQUAL(cuda::index_of_rank(rank), a > -test::inf ? 7 : -1);
    for (const float b : scores) {
      CHECK_EQUAL(cuda::rank_of(a, 5) > cuda::rank_of(b, 5), a > b);
      if (a > -test::inf) CHECK_EQUAL(cuda::rank_of(a, 5) > cuda::rank_of(b, 6), a >= b);
    }
  }
  CHECK_EQUAL(cuda::rank_of(static_cast<float>(test::nan), 3), cuda::no_rank);
  CHECK_EQUAL(cuda::index_of_rank(cuda::rank_of(1, cuda::most_ranked - 1)), cuda::most_ranked - 1);
}

attention::operands operands(const Attention& a) {
  return {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), a.bias.in(), {}};
}

attention::parameters parameters(const Attention& a) {
  using attention::causal;
  const choice separation(std::string_view("top_k_softmax"), static_cast<double>(a.top_k));
  return {a.causal == 0 ? causal::none : a.causal == 1 ? causal::bottom_right : causal::top_left, separation};
}

test::Answer attend(const Attention& a, std::uint64_t seed, int launches = 2) {
  test::Answer kept{Tensor(a.shape({a.n(), a.e()}), a.query.type, test::nan, 3), Tensor(a.shape({a.n()}))};
  emulator::Device device(seed);
  cuda::attend_top_k(device, operands(a), a.scale_number, parameters(a), {kept.out.out(), kept.lse.out(), {}});
  CHECK_EQUAL(device.launches, launches);
  return kept;
}

double tolerance(dtype type) { return type == dtype::float32 ? 4e-6 : type == dtype::float16 ? 2e-3 : 2e-2; }

void check_forward(const Attention& a, const char* what) {
  const test::Answer kept = attend(a, 1), answer = test::attend(a);
  check::near(test::difference(kept.out, answer.out), 0, tolerance(a.query.type), __FILE__, __LINE__, what);
  check::near(test::difference(kept.lse, answer.lse), 0, 2e-5, __FILE__, __LINE__, what);
  // Neither the order of threads nor that of blocks changes a bit.
  check::that(test::same(kept.out, attend(a, 2).out), __FILE__, __LINE__, std::string(what) + ": another order, another result");
}

void check_backward(const Attention& a, std::mt19937_64& random, const char* what) {
  const Tensor d_out = test::random(a.shape({a.n(), a.e()}), random, a.query.type, 1, 1);
  const auto run = [&](std::uint64_t seed) {
    test::Gradients d{Tensor(a.query.shape, a.query.type, test::nan, 1), Tensor(a.key.shape, a.key.type, test::nan, 2),
                      Tensor(a.value.shape, a.value.type)};
    emulator::Device device(seed);
    cuda::attend_top_k_backward(device, operands(a), a.scale_number, parameters(a), d_out.in(),
                                {d.query.out(), d.key.out(), d.value.out(), {}, {}, {}, {}});
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

Attention plain(std::mt19937_64& random, index_t k, index_t n, index_t m, index_t d, index_t e, dtype query = dtype::float32,
                dtype memory = dtype::float32) {
  Attention a;
  a.query = test::random({n, d}, random, query);
  a.key = test::random({m, d}, random, memory, 1, 2);
  a.value = test::random({m, e}, random, memory);
  a.scale_number = 1 / std::sqrt(static_cast<double>(d));
  a.top_k = k;
  return a;
}

void test_sizes(std::mt19937_64& random) {
  const index_t sizes[][5] = {{1, 1, 1, 1, 1},       {1, 3, 70, 20, 64},    {5, 17, 63, 5, 3},      {32, 3, 130, 33, 40},
                              {33, 9, 100, 128, 65}, {128, 2, 600, 16, 16}, {32, 34, 40, 200, 256}, {7, 2, 1100, 4, 4}};
  for (const auto& s : sizes) {
    const Attention a = plain(random, s[0], s[1], s[2], s[3], s[4]);
    const std::string what = "k, n, m = " + check::shown(s[0]) + ", " + check::shown(s[1]) + ", " + check::shown(s[2]);
    check_forward(a, what.c_str());
    check_backward(a, random, what.c_str());
  }
  Attention a = plain(random, 3, 3, 4, 5, 6);
  a.key = Tensor({0, 5});
  a.value = Tensor({0, 6});
  check_forward(a, "no keys");
  check_backward(a, random, "no keys");
}

/// Scores that are whole numbers, so that equal ones are equal; of these the first are taken, in all splits.
void test_ties(std::mt19937_64& random) {
  for (const index_t k : {1, 4, 40}) {
    Attention a = plain(random, k, 5, 600, 3, 6);
    for (Tensor* t : {&a.query, &a.key}) t->each([&](index_t place) { t->put(place, static_cast<double>(random() % 3) - 1); });
    a.scale_number = 0.5;
    check_forward(a, "ties");
    check_backward(a, random, "ties");
  }
}

void test_masks(std::mt19937_64& random) {
  Attention a = plain(random, 6, 20, 300, 20, 24);
  a.mask = Tensor({20, 300}, dtype::boolean, 0);
  a.mask.each([&](index_t place) { a.mask.put(place, random() % 3 == 0); });
  for (index_t j = 0; j < 300; ++j) a.mask.put(5 * 300 + j, 0), a.mask.put(6 * 300 + j, j % 100 == 8);  // nothing, fewer than k
  for (index_t i = 0; i < 20; ++i)
    for (index_t j : {7, 250}) a.mask.put(i * 300 + j, 0);  // keys that nobody may attend to, of anything
  for (index_t k = 0; k < 20; ++k) a.key.put(a.key.strides[0] * 7 + k, test::nan), a.key.put(a.key.strides[0] * 250 + k, test::inf);
  for (index_t k = 0; k < 24; ++k) a.value.put(24 * 7 + k, test::inf), a.value.put(24 * 250 + k, test::nan);
  a.bias = test::random({20, 1}, random);
  check_forward(a, "mask");
  check_backward(a, random, "mask");
  for (const int causal : {1, 2}) {
    Attention c = plain(random, 3, 40, 90, 8, 12);
    c.causal = causal;
    check_forward(c, "causal");
    std::swap(c.key, c.query);  // more queries than keys: the first see nothing
    c.value = test::random({40, 9}, random);
    check_forward(c, "causal, fewer keys");
    check_backward(c, random, "causal, fewer keys");
  }
}

void test_leading_axes(std::mt19937_64& random) {
  for (const dtype memory : {dtype::float16, dtype::bfloat16}) {
    Attention a;
    a.query = test::random({2, 2, 3, 3, 18}, random, memory);
    a.key = test::random({2, 2, 1, 40, 18}, random, memory);
    a.value = test::random({2, 2, 1, 40, 10}, random, memory);
    a.leading = {2, 2, 3};
    a.scale = test::random({2, 3}, random);
    a.causal = 1;
    a.top_k = 4;
    check_forward(a, "groups of heads");
    check_backward(a, random, "groups of heads");
  }
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  Attention a = plain(random, 129, 3, 200, 5, 6);
  Tensor out({3, 6});
  const auto call = [&] { cuda::attend_top_k(device, operands(a), 1, parameters(a), {out.out(), {}, {}}); };
  CHECK_FAILS(value, "attention.attend: top_k is 129; expected at most 128 on a device", call());
  a.top_k = 0;
  CHECK_FAILS(value, "attention.attend: separation is ('top_k_softmax', 0); expected ('top_k_softmax', a whole number of at least 1)",
              call());
}

}  // namespace

int main() {
  std::mt19937_64 random(30);
  test_ranks();
  test_sizes(random);
  test_ties(random);
  test_masks(random);
  test_leading_axes(random);
  test_errors(random);
  return check::report();
}
