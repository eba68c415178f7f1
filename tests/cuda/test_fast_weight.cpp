// SPDX-License-Identifier: BSD-3-Clause
/// The portable fast weight kernel against the recurrence of spec/fast_weight.hpp in float64, on the emulator.
#include "check.hpp"
#include "emulator.hpp"
#include "fast_weight_oracle.hpp"

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

Answer run(const Problem& p, std::uint64_t seed, bool in_place = false) {
  Answer got{Tensor(p.shape({p.T, p.V}), p.query.given() ? p.query.type : dtype::float32, test::nan, 2),
             in_place ? p.state : Tensor(p.shape({p.K, p.V + p.normalised()}))};
  fast_weight::operands in = operands(p);
  if (in_place) in.state = got.state.in();
  emulator::Device device(seed);
  cuda::fast_weight_forward("fastweight.test", device, in, p.scale_number, p.map, p.norm, p.how,
                            {p.query.given() ? got.out.out() : Array{}, got.state.out(), {}});
  return got;
}

void check(const Problem& p, const std::string& what) {
  const Answer wanted = answer(p), got = run(p, 1), again = run(p, 2);
  const double unit = got.out.type == dtype::float32 ? 2e-5 : 1e-2;
  if (p.query.given())
    check::near(test::difference(got.out, wanted.out), 0, unit * test::largest(wanted.out), __FILE__, __LINE__, what.c_str());
  check::near(test::difference(got.state, wanted.state), 0, 2e-5 * test::largest(wanted.state), __FILE__, __LINE__, what.c_str());
  check::that(test::same(got.out, again.out) && test::same(got.state, again.state), __FILE__, __LINE__,
              what + ": another order, another result");
  if (!p.state.given() || p.state.shape != wanted.state.shape) return;
  const Answer placed = run(p, 3, true);
  check::near(test::difference(placed.state, got.state), 0, 0, __FILE__, __LINE__, (what + ", in place").c_str());
}

void with_options(std::mt19937_64& random, rule r, normalisation n) {
  for (int gate = 0; gate < 4; ++gate) {
    Problem p = plain(random, {2, 3}, 21, 13, 18);
    p.how.rule = r;
    p.how.normalise = n;
    p.scale_number = 0.5;
    if (n != normalisation::none) p.map = "elu1";
    if (gate == 1) p.decay = between({3, 21}, 0.5, 1, random);
    if (gate == 2) p.channel_decay = between({2, 1, 21, 13}, 0.5, 1, random);
    if (gate == 3) p.decay = between({2, 3, 21}, -0.5, 0, random), p.how.log_decay = true;
    if (r != rule::sum) p.beta = between({2, 3, 21}, 0, 1, random);
    if (r == rule::general) p.b = test::random({3, 21, 13}, random, dtype::float32, 0.2);
    if (gate > 1 && r == rule::general) p.a = test::random({2, 3, 21, 13}, random, dtype::float32, 0.2);
    if (gate % 2) p.state = test::random({2, 3, 13, 18 + p.normalised()}, random);
    if (gate % 2 && p.normalised()) p.state = between(p.state.shape, 0.5, 1, random);
    check(p, "rule " + check::shown(static_cast<int>(r)) + ", normalise " + check::shown(static_cast<int>(n)) + ", gate " +
                 check::shown(gate));
  }
}

void test_sizes(std::mt19937_64& random) {
  const index_t sizes[][3] = {{1, 1, 1}, {1, 64, 64}, {8, 65, 15}, {17, 128, 17}, {9, 129, 33}, {10, 256, 20}, {0, 5, 6}};
  for (const auto& s : sizes)
    for (const bool normalised : {false, true}) {
      Problem p = plain(random, {2}, s[0], s[1], s[2]);
      p.how.rule = rule::delta;
      p.beta = between({2, s[0]}, 0, 1, random);
      p.norm = normalised ? row_norm::sum : row_norm::l2;
      p.map = normalised ? "relu" : "identity";
      if (normalised) p.how.normalise = normalisation::outputs_and_removals;
      p.state = between({2, s[1], s[2] + normalised}, 0, 1, random);
      check(p, "T, K, V = " + check::shown(s[0]) + ", " + check::shown(s[1]) + ", " + check::shown(s[2]));
    }
}

void test_parts(std::mt19937_64& random) {
  for (const char* map : {"identity", "relu", "elu1", "squared_relu"}) {
    Problem p = plain(random, {}, 12, 6, 5);
    p.map = map;
    check(p, map);
  }
  for (dtype type : {dtype::float16, dtype::bfloat16}) {
    Problem p = plain(random, {2}, 12, 32, 16, type);
    p.how.rule = rule::delta;
    p.beta = between({2, 12}, 0, 1, random, type);
    p.scale = test::random({2}, random);
    check(p, "halves");
  }
  Problem writes = plain(random, {2}, 12, 6, 5);
  writes.query = {};
  check(writes, "writing alone");
  Problem reads = plain(random, {2}, 12, 6, 5);
  reads.key = reads.value = {};
  reads.state = test::random({6, 5}, random);
  check(reads, "reading alone");
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  Problem p = plain(random, {}, 4, 6, 5);
  Tensor out({4, 5});
  const auto call = [&] {
    cuda::fast_weight_forward("fastweight.test", device, operands(p), p.scale_number, p.map, p.norm, p.how, {out.out(), {}, {}});
  };
  p.map = "dpfp";
  CHECK_FAILS(value,
              "fastweight.test: feature_map is 'dpfp'; expected one of 'identity', 'relu', 'elu1', 'squared_relu' on a device so far",
              call());
  p.map = "identity";
  p.key = test::random({4, 7}, random);
  CHECK_FAILS(value, "fastweight.test: key has shape (4, 7); expected (..., T=4, d=6)", call());
  p.key = test::random({4, 6}, random, dtype::float64);
  CHECK_FAILS(type, "fastweight.test: key has dtype float64; expected float32, float16 or bfloat16 on a device", call());
  p.key = test::random({4, 6}, random, dtype::float16);
  CHECK_FAILS(type, "fastweight.test: key has dtype float16; expected float32 on a device", call());
  p.key = test::random({4, 6}, random);
  p.state = test::random({6, 4}, random);
  CHECK_FAILS(value, "fastweight.test: state has shape (6, 4); expected (..., K=6, 5)", call());
}

}  // namespace

int main() {
  std::mt19937_64 random(21);
  for (const rule r : {rule::sum, rule::delta, rule::general})
    for (const normalisation n : {normalisation::none, normalisation::outputs, normalisation::outputs_and_removals})
      with_options(random, r, n);
  test_sizes(random);
  test_parts(random);
  test_errors(random);
  return check::report();
}
