// SPDX-License-Identifier: BSD-3-Clause
/// The kernel for tensor cores since compute capability 8.0 against the definition in float64, on the emulator.
#include "check.hpp"
#include "emulator_sm80.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/attention.hpp"
#include "recollect/cuda/retrieval.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Tensor;

struct Kept {
  Tensor out, lse, largest, log_sum;
  int launches = 0;
};

template <class Device>
Kept attend(const Attention& a, std::uint64_t seed = 1) {
  using attention::causal;
  Kept kept{Tensor(a.shape({a.n(), a.e()}), a.query.type, test::nan, 3), Tensor(a.shape({a.n()})), Tensor(a.shape({a.n()})),
            Tensor(a.shape({a.n()}))};
  Device device(seed);
  cuda::attend(device, {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), {}, {}}, a.scale_number,
               {a.causal == 0   ? causal::none
                : a.causal == 1 ? causal::bottom_right
                                : causal::top_left},
               {kept.out.out(), kept.lse.out(), {kept.largest.out(), kept.log_sum.out()}});
  kept.launches = device.launches;
  return kept;
}

/// The length of the difference over that of what is wanted.
double error(const Tensor& got, const Tensor& wanted) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return size == 0 ? apart : std::sqrt(apart / size);
}

/// 16-bit results within their roundings; those of float32 as good as the portable kernel's, nearly.
Kept check_near(const Attention& a, const std::string& what) {
  const Kept kept = attend<emulator::Ampere>(a);
  const test::Answer answer = test::attend(a);
  double out = a.query.type == dtype::bfloat16 ? 6e-3 : 8e-4, lse = 1e-5;
  if (a.query.type == dtype::float32) {
    const Kept portable = attend<emulator::Device>(a);
    out = std::max(2e-6, 3 * error(portable.out, answer.out));
    lse = std::max(2e-6 * test::largest(answer.lse), 3 * test::difference(portable.lse, answer.lse));
  }
  check::near(error(kept.out, answer.out), 0, out, __FILE__, __LINE__, what.c_str());
  check::near(test::difference(kept.lse, answer.lse), 0, lse, __FILE__, __LINE__, what.c_str());
  kept.lse.each([&](index_t place) {
    const double sum = kept.largest.get(place) + kept.log_sum.get(place), told = kept.lse.get(place) * cuda::log2_e;
    if (kept.largest.get(place) != -test::inf) CHECK_NEAR(sum - told, 0, 1e-5 * std::max(1.0, std::abs(told)));
  });
  return kept;
}

Attention plain(std::mt19937_64& random, dtype type, index_t n, index_t m, index_t d, index_t e) {
  Attention a;
  a.query = test::random({n, d}, random, type, 1, 3);
  a.key = test::random({m, d}, random, type, 1, d % 8 == 0 ? 8 : 5);
  a.value = test::random({m, e}, random, type);
  a.scale_number = 1 / std::sqrt(static_cast<double>(d));
  return a;
}

/// Ragged and whole, more tiles than there are slots, tiles that are shared out, narrow rows, values of another width.
void test_sizes(std::mt19937_64& random) {
  const index_t sizes[][4] = {{130, 150, 64, 64}, {33, 64, 128, 128}, {5, 1, 8, 70}, {40, 70, 100, 20}, {6, 530, 64, 64}};
  for (const dtype type : {dtype::float32, dtype::bfloat16, dtype::float16})
    for (const auto& [n, m, d, e] : sizes) {
      if (type == dtype::float16 && n != 33 && n != 6) continue;
      const Attention a = plain(random, type, n, m, d, e);
      const std::string what = std::string(name(type)) + ", n, m, d, e = " + check::shown(n) + ", " + check::shown(m) + ", " +
                               check::shown(d) + ", " + check::shown(e);
      const Kept kept = check_near(a, what);
      CHECK_EQUAL(kept.launches, m == 530 ? 6 : 4);  // both packed, attended to and what is doubtful again; both merged
      check::that(test::same(kept.out, attend<emulator::Ampere>(a, 2).out), __FILE__, __LINE__, what + ": another order, another result");
    }
  Attention a = plain(random, dtype::float32, 9, 90, 20, 30);
  a.key = test::random({90, 20}, random, dtype::bfloat16);
  a.value = test::random({90, 30}, random, dtype::float16);
  check_near(a, "three types");
}

/// Rows that see nothing, heads that share memories, scales of both signs and none by head, another order of numbers in memory.
void test_causal(std::mt19937_64& random) {
  for (const dtype type : {dtype::float32, dtype::bfloat16})
    for (const int causal : {1, 2}) {
      Attention a = plain(random, type, 150, 90, 40, 64);
      a.causal = causal;
      check_near(a, "causal, fewer keys");
      a = plain(random, type, 20, 90, 64, 64);
      a.causal = causal;
      a.scale_number = -0.2;
      check_near(a, "causal, a negative scale");
    }
  Attention a;
  a.query = test::random({2, 3, 9, 64}, random);
  a.key = test::random({2, 1, 64, 70}, random);
  std::swap(a.key.shape[2], a.key.shape[3]);
  std::swap(a.key.strides[2], a.key.strides[3]);
  a.value = test::random({2, 1, 70, 64}, random);
  a.leading = {2, 3};
  a.scale = test::random({3}, random);
  a.scale.put(1, 0);
  a.causal = 1;
  check_near(a, "heads");
}

/// What float16 has no room for as it comes: sizes, and differences between rows and tiles; scores that decide.
void test_ranges(std::mt19937_64& random) {
  for (const double size : {1e15, 1e-15, 1e30}) {
    Attention a = plain(random, dtype::float32, 9, 100, 64, 64);
    a.scale_number /= size;
    a.key.each([&](index_t place) { a.key.put(place, a.key.get(place) * size); });
    a.value.each([&](index_t place) { a.value.put(place, a.value.get(place) / size); });
    a.query.each([&](index_t place) { a.query.put(place, a.query.get(place) * (place % 2 ? 1 : 8)); });
    check_near(a, "size " + check::shown(size));
  }
  Attention a = plain(random, dtype::float32, 20, 100, 64, 64);
  a.scale_number = 1;
  check_near(a, "scores of 30");
  for (index_t j = 32; j < 64; ++j)
    for (index_t k = 0; k < 64; ++k) a.value.put(64 * j + k, 1e25 * a.value.get(64 * j + k)), a.key.put(72 * j + k, k == 0 ? -60 : 0);
  for (index_t i = 0; i < 20; ++i) a.query.put(67 * i, 1);
  check_near(a, "a tile of small weights and large values");
}

/// Where parts of 16 bits are too coarse, and what is not finite: bits of the portable kernel, in the rows that are concerned and beside.
void test_doubtful(std::mt19937_64& random) {
  const auto same = [](const Attention& a, const char* what) {
    const Kept kept = attend<emulator::Ampere>(a), portable = attend<emulator::Device>(a);
    check::that(test::same(kept.out, portable.out) && test::same(kept.lse, portable.lse), __FILE__, __LINE__, what);
  };
  Attention a = plain(random, dtype::float32, 9, 40, 24, 24);
  for (index_t i = 0; i < 9; ++i) a.query.put(27 * i, 1e-6 * a.query.get(27 * i)), a.query.put(27 * i + 1, 1e6);
  for (index_t j = 0; j < 40; ++j) a.key.put(32 * j, 1e6 * a.key.get(32 * j)), a.key.put(32 * j + 1, 1e-6 * a.key.get(32 * j + 1));
  same(a, "columns of different sizes");
  a = plain(random, dtype::float32, 9, 40, 24, 24);
  for (index_t j = 0; j < 40; ++j) a.value.put(24 * j + 3, 1e-9 * a.value.get(24 * j + 3));
  same(a, "values in columns of different sizes");
  a = plain(random, dtype::float32, 9, 40, 24, 24);
  a.value.put(24 * 7 + 2, 1e30);
  same(a, "one value is large");
  for (const dtype type : {dtype::float32, dtype::bfloat16})
    for (const double odd : {test::nan, test::inf}) {
      a = plain(random, type, 9, 40, 24, 24);
      a.causal = 1;
      a.key.put(32 * 35 + 3, odd), a.value.put(24 * 36 + 3, -odd);
      same(a, "not finite, and hidden from some");
    }
  a = plain(random, dtype::float32, 9, 40, 24, 24);
  const Kept before = attend<emulator::Ampere>(a);
  a.query.put(27 * 2 + 5, test::inf);
  Kept kept = attend<emulator::Ampere>(a);
  CHECK(std::isnan(kept.lse.get(2)) && std::isnan(kept.out.get(27 * 2)));
  for (index_t k = 0; k < 24; ++k) kept.out.put(27 * 2 + k, before.out.get(27 * 2 + k));
  CHECK(test::same(kept.out, before.out));  // no other row is concerned
}

/// Steps of float32 on a state of its own type, values in the last; few rows are the portable kernel's, and so is a mask.
void test_retrieve(std::mt19937_64& random) {
  const Tensor state = test::random({2, 5, 24}, random), patterns = test::random({70, 24}, random);
  const Tensor values = test::random({70, 90}, random, dtype::float16);
  for (const bool valued : {false, true}) {
    Tensor wanted = state, out({2, 5, valued ? 90 : 24});
    for (index_t step = 0; step < 3; ++step)
      wanted = test::attend({wanted, patterns, valued && step == 2 ? values : patterns, {}, {}, {}, 0.7, 0, {2}}).out;
    emulator::Ampere device(7);
    hopfield::results to;
    to.state = out.out();
    cuda::retrieve(device, {state.in(), patterns.in(), valued ? values.in() : ConstArray{}, {}, {}}, 0.7, {"softmax", 3}, to);
    CHECK_NEAR(test::difference(out, wanted), 0, 1e-5);
    CHECK_EQUAL(device.launches, (valued ? 2 : 1) + 3 * 2);  // packed once; every step, and what is doubtful again
  }
  CHECK_EQUAL(attend<emulator::Ampere>(plain(random, dtype::float32, 4, 40, 64, 64)).launches, 1);
  Attention a = plain(random, dtype::float32, 9, 40, 64, 64);
  a.mask = Tensor({40}, dtype::boolean, 1);
  CHECK_EQUAL(attend<emulator::Ampere>(a).launches, 1);
}

/// Heads and rests hold 22 bits, and what was lifted comes back.
void test_splits(std::mt19937_64& random) {
  std::normal_distribution<float> normal(0, 1);
  for (int i = 0; i < 2000; ++i) {
    const float x = std::ldexp(normal(random), static_cast<int>(random() % 200) - 100);
    const cuda::Fit size = cuda::lift(std::fabs(x));
    CHECK(size.up * size.down == 1 && std::fabs(x) * size.down >= 0x1p14f && std::fabs(x) * size.down < 0x1p15f);
    const float y = x * size.down, head = widen<float>(cuda::narrow<float16>(cuda::head(y)));
    CHECK_EQUAL(head, cuda::head(y));
    const float rest = widen<float>(cuda::narrow<float16>(y - head));
    CHECK(std::fabs(y - head - rest) <= 0x1p-22f * std::fabs(y));
  }
  CHECK(cuda::lift(0).up == 1 && cuda::lift(cuda::infinity).up == cuda::infinity && cuda::lift(3e38f).up < cuda::infinity);
  CHECK(cuda::lift(1e-45f).down < cuda::infinity && cuda::lift(1e-45f).up > 0);
}

}  // namespace

int main() {
  std::mt19937_64 random(80);
  test_splits(random);
  test_sizes(random);
  test_causal(random);
  test_ranges(random);
  test_doubtful(random);
  test_retrieve(random);
  return check::report();
}
