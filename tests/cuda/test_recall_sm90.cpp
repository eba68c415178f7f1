// SPDX-License-Identifier: BSD-3-Clause
/// The kernel for Hopper's tensor cores against the definition in float64, on the emulator.
#include "check.hpp"
#include "emulator_sm90.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/attention.hpp"
#include "recollect/cuda/retrieval.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Tensor;

struct Kept {
  Tensor out, lse;
  int launches = 0;
};

template <class Device>
Kept retrieve(const Attention& a, std::uint64_t seed, index_t steps) {
  Kept kept{Tensor(a.shape({a.n(), a.d()}), a.query.type, test::nan, 3), Tensor(a.shape({a.n()}))};
  Device device(seed);
  hopfield::results to;
  to.state = kept.out.out();
  to.lse = kept.lse.out();
  cuda::retrieve(device, {a.query.in(), a.key.in(), {}, a.scale.in(), {}}, a.scale_number, {"softmax", steps}, to);
  kept.lse.each([&](index_t place) { kept.lse.put(place, kept.lse.get(place) * a.scale_number); });  // from over beta to attention's
  kept.launches = device.launches;
  return kept;
}

Kept attend(const Attention& a, std::uint64_t seed) {
  Kept kept{Tensor(a.shape({a.n(), a.e()}), a.query.type, test::nan, 3), Tensor(a.shape({a.n()}))};
  emulator::Hopper device(seed);
  cuda::attend(device, {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), {}, {}}, a.scale_number, {},
               {kept.out.out(), kept.lse.out(), {}});
  kept.launches = device.launches;
  return kept;
}

/// The length of the difference over that of what is wanted.
double error(const Tensor& got, const Tensor& wanted) {
  const std::vector<double> x = got.numbers(), y = wanted.numbers();
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) apart += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
  return std::sqrt(apart / size);
}

void check_near(const Kept& kept, const Attention& a, const std::string& what) {
  const test::Answer answer = test::attend(a);
  const double bound = a.query.type == dtype::bfloat16 ? 6e-3 : 8e-4;
  check::near(error(kept.out, answer.out), 0, bound, __FILE__, __LINE__, what.c_str());
  check::near(test::difference(kept.lse, answer.lse), 0, 1e-4, __FILE__, __LINE__, what.c_str());
}

Attention retrieval(std::mt19937_64& random, dtype type, index_t n, index_t N, index_t d, double scale) {
  Attention a;
  a.query = test::random({n, d}, random, type, 1, 3);
  a.key = test::random({N, d}, random, type, 1, 5);
  a.value = a.key;
  a.scale_number = scale;
  return a;
}

/// Ragged and whole, more tiles than there are stages, tiles that are shared out; scores large enough to be raised in every tile.
void test_retrieve(std::mt19937_64& random) {
  for (const dtype type : {dtype::bfloat16, dtype::float16}) {
    const index_t sizes[][3] = {{128, 256, 64}, {130, 300, 128}, {1, 1, 64}, {5, 890, 64}, {3, 890, 128}, {20, 1100, 64}};
    for (const auto& s : sizes) {
      const Attention a = retrieval(random, type, s[0], s[1], s[2], 0.3);
      const std::string what =
          std::string(name(type)) + ", n, N, d = " + check::shown(s[0]) + ", " + check::shown(s[1]) + ", " + check::shown(s[2]);
      const Kept kept = retrieve<emulator::Hopper>(a, 1, 1);
      check_near(kept, a, what);
      CHECK_EQUAL(kept.launches, s[1] == 1100 ? 3 : 2);  // packed, retrieved and, of several splits, merged
      check::that(test::same(kept.out, retrieve<emulator::Hopper>(a, 2, 1).out), __FILE__, __LINE__,
                  what + ": another order, another result");
    }
  }
}

void test_steps(std::mt19937_64& random) {
  const index_t sizes[][4] = {{5, 200, 64, 3}, {131, 500, 64, 2}, {70, 300, 128, 4}, {3, 1100, 64, 2}};
  for (const auto& [n, N, d, steps] : sizes) {
    Attention a = retrieval(random, dtype::bfloat16, n, N, d, 0.2);
    const Kept kept = retrieve<emulator::Hopper>(a, 1, steps);
    CHECK_EQUAL(kept.launches, N == 1100 ? 1 + 2 * steps : 2);  // packed once; where patterns are shared out, steps are launches
    std::vector<index_t> told(n);
    Tensor same(a.shape({n, d}), dtype::bfloat16);
    emulator::Hopper device(2);
    hopfield::results to;
    to.state = same.out();
    to.steps = {told.data(), {n}};
    cuda::retrieve(device, {a.query.in(), a.key.in(), {}, a.scale.in(), {}}, a.scale_number, {"softmax", steps}, to);
    Tensor state = a.query;
    for (index_t step = 0; step < steps; ++step) {
      a.query = state;
      const Tensor next = test::attend(a).out;
      state = Tensor({n, d}, dtype::bfloat16, 0);
      for (index_t i = 0; i < n * d; ++i) state.put(i, next.get(i));
    }
    CHECK_NEAR(error(kept.out, state), 0, 1e-2);
    CHECK(kept.out.numbers() == same.numbers());  // one launch or several: the same bits
  }
}

/// Values of their own; heads that share memories, scales of both signs and none by head, another order of numbers in memory.
void test_attend(std::mt19937_64& random) {
  for (const index_t d : {64, 128}) {
    Attention a = retrieval(random, dtype::float16, 40, 700, d, -0.2);
    a.value = test::random({700, d}, random, dtype::float16);
    const Kept kept = attend(a, 4);
    check_near(kept, a, "values");
    CHECK_EQUAL(kept.launches, 3);  // both packed
  }
  Attention a;
  a.query = test::random({2, 3, 9, 64}, random, dtype::bfloat16);
  a.key = test::random({2, 1, 64, 140}, random, dtype::bfloat16);
  std::swap(a.key.shape[2], a.key.shape[3]);
  std::swap(a.key.strides[2], a.key.strides[3]);
  a.value = test::random({2, 1, 140, 64}, random, dtype::bfloat16);
  a.leading = {2, 3};
  a.scale = test::random({3}, random);
  a.scale.put(1, 0);
  check_near(attend(a, 5), a, "heads");
}

/// What the kernel does not do goes to the portable ones, on the same device.
void test_others(std::mt19937_64& random) {
  Attention a = retrieval(random, dtype::bfloat16, 4, 70, 64, 0.3);
  a.value = test::random({70, 20}, random, dtype::bfloat16);
  const Kept kept = attend(a, 4);
  CHECK_EQUAL(kept.launches, 1);
  check_near(kept, a, "narrow values");
  a = retrieval(random, dtype::float32, 4, 70, 64, 0.3);
  CHECK_EQUAL(retrieve<emulator::Hopper>(a, 1, 1).launches, 1);
  a = retrieval(random, dtype::bfloat16, 0, 70, 64, 0.3);
  CHECK_EQUAL(retrieve<emulator::Hopper>(a, 1, 1).launches, 0);
  a = retrieval(random, dtype::bfloat16, 4, 70, 64, 0.3);
  CHECK_EQUAL(retrieve<emulator::Device>(a, 1, 1).launches, 1);
}

/// Patterns in a packed tile are where descriptors say that they are, and neighbours are in different banks.
template <int Width>
void test_tile() {
  using Tile = cuda::TensorTile<cuda::patterns_of_tile, Width>;
  std::vector<int> seen(Tile::bytes / 2);
  for (int pattern = 0; pattern < Tile::patterns; ++pattern)
    for (int column = 0; column < Width; ++column) ++seen[Tile::offset(pattern, column) / 2];
  CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  for (int pattern = 0; pattern < Tile::patterns; pattern += 8)
    for (int column = 0; column < Width; column += 8) {
      std::vector<bool> bank(8);  // of 16 bytes
      for (int i = 0; i < 8; ++i) bank[Tile::offset(pattern + i, column) / 16 % 8] = true;
      CHECK(std::all_of(bank.begin(), bank.end(), [](bool met) { return met; }));
    }
}

/// Every number of a product belongs to one thread, and weights are an operand where they are.
void test_fragments() {
  std::vector<int> seen(64 * 128), operand(64 * 16);
  for (int thread = 0; thread < cuda::warpgroup_size; ++thread) {
    for (int i = 0; i < 64; ++i) ++seen[cuda::accumulator_row(thread, i) * 128 + cuda::accumulator_column(thread, i)];
    for (int word = 0; word < 4; ++word)
      for (int k = 0; k < 2; ++k) {
        ++operand[cuda::operand_row(thread, word) * 16 + cuda::operand_column(thread, word) + k];
        CHECK_EQUAL(cuda::operand_row(thread, word), cuda::accumulator_row(thread, 2 * word + k));
        CHECK_EQUAL(cuda::operand_column(thread, word) + k, cuda::accumulator_column(thread, 2 * word + k));
      }
  }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  CHECK(std::all_of(operand.begin(), operand.end(), [](int count) { return count == 1; }));
}

}  // namespace

int main() {
  std::mt19937_64 random(90);
  test_tile<64>();
  test_tile<128>();
  test_fragments();
  test_retrieve(random);
  test_steps(random);
  test_attend(random);
  test_others(random);
  return check::report();
}
