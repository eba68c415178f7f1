// SPDX-License-Identifier: BSD-3-Clause
/// The chunked kernel of fast weights against the recurrence in float64, on the emulator.
#include "check.hpp"
#include "emulator_sm80.hpp"
#include "fast_weight_oracle.hpp"

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

Answer run(const Problem& p, std::uint64_t seed, bool in_place = false) {
  Answer got{Tensor(p.shape({p.T, p.V}), p.query.type, test::nan, 8), in_place ? p.state : Tensor(p.shape({p.K, p.V}))};
  emulator::Ampere device(seed);
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
        const Answer one = run(p, 2), other = run(p, 3, true);
        CHECK(test::same(one.out, other.out) && test::same(one.state, other.state) && one.launches == 1);
      }
}

/// Updates that are just stable: the same key again and again with beta |k|^2 = 2, of length 1 and of others.
void test_longest_keys(std::mt19937_64& random) {
  for (const dtype type : {dtype::bfloat16, dtype::float16})
    for (const double length : {1.0, 16.0, 1 / 16.0}) {
      Problem p = plain(random, rule::delta, type, {}, {96, 64, 16}, length);
      for (index_t t = 0; t < p.T; ++t)
        for (index_t k = 0; k < p.K; ++k) p.key.put(p.key.place({t, k}), (k % 2 ? -1 : 1) * length / 8);
      p.beta = Tensor({p.T}, type, 2 / (length * length));
      check_near(p, std::string(name(type)) + ", the same key, of length " + check::shown(length), 2);
    }
}

/// Products and states that are no halves, and decays that leave nothing.
void test_range(std::mt19937_64& random) {
  for (const rule r : {rule::sum, rule::delta}) {
    Problem p = plain(random, r, dtype::float16, {}, {64, 64, 16}, 100);
    p.query.each([&](index_t place) { p.query.put(place, p.query.get(place) * (r == rule::sum ? 1e-3 : 1e3)); });
    p.value.each([&](index_t place) { p.value.put(place, p.value.get(place) * (r == rule::sum ? 1e4 : 20)); });
    check_near(p, r == rule::sum ? "a large state" : "large products");
    p = plain(random, r, dtype::bfloat16, {}, {64, 64, 16});
    p.decay = between(p.shape({p.T}), 0.9, 1, random, p.query.type);
    for (index_t t : {5, 20, 21, 40}) p.decay.put(t, t == 21 ? 1e-30 : 0);
    p.state = test::random(p.shape({p.K, p.V}), random);
    check_near(p, "nothing is left");
  }
}

/// What the kernel does not do goes to the one that goes token by token, whose states have no rounded part.
void test_others(std::mt19937_64& random) {
  const auto exact = [&](const Problem& p, bool wanted, const char* what) {
    check::that((error(run(p, 1).state, answer(p).state) < 1e-5) == wanted, __FILE__, __LINE__, what);
  };
  const auto type = dtype::bfloat16;
  exact(plain(random, rule::delta, type, {}, {16, 64, 8}), false, "a chunk");
  exact(plain(random, rule::delta, type, {}, {15, 64, 8}), true, "few tokens");
  exact(plain(random, rule::delta, type, {}, {16, 64, 12}), true, "ragged values");
  exact(plain(random, rule::delta, type, {}, {16, 48, 8}), true, "narrow keys");
  Problem p = plain(random, rule::delta, type, {}, {16, 64, 8});
  p.key = test::random({16, 64}, random, type, 0.1, 1);
  exact(p, true, "rows that are not aligned");
}

/// Feature maps, norms and normalised outputs: rows are mapped into 16 bits first. What these would spoil goes token by token.
void test_maps(std::mt19937_64& random) {
  using fast_weight::normalisation;
  const auto check_map = [&](rule r, dtype type, const char* map, row_norm norm, normalisation normalise, bool chunked) {
    test::Problem p = test::plain(random, {2}, 70, 64, 16, type);
    p.value = test::random(p.shape({70, 16}), random, type);
    p.map = map;
    p.norm = norm;
    p.how.rule = r;
    p.how.normalise = normalise;
    p.state = test::between(p.shape({64, 16 + p.normalised()}), 0, 1, random);
    p.decay = test::between(p.shape({70}), 0.8, 1, random, type);
    if (r == rule::delta) p.beta = test::between(p.shape({70}), 0, 1.0 / (norm == row_norm::l2 ? 1 : 64), random, type);
    const test::Answer wanted = test::answer(p);
    Tensor out(p.shape({70, 16}), type, test::nan, 8), state = p.state;
    p.state = {};  // in place
    fast_weight::operands in = test::operands(p);
    in.state = state.in();
    emulator::Ampere device(4);
    cuda::fast_weight_forward("fastweight.test", device, in, p.scale_number, map, norm, p.how, {out.out(), state.out(), {}});
    const std::string what = std::string(name(type)) + ", " + map + ", norm " + check::shown(static_cast<int>(norm)) + ", " +
                             check::shown(static_cast<int>(normalise)) + (r == rule::sum ? ", sum" : ", delta");
    const double bound = type == dtype::bfloat16 ? 1e-2 : 2e-3, apart = error(state, wanted.state);
    if (std::getenv("SHOW")) std::printf("%s: %.2e %.2e\n", what.c_str(), error(out, wanted.out), apart);
    check::near(error(out, wanted.out), 0, bound, __FILE__, __LINE__, what.c_str());
    check::near(apart, 0, bound, __FILE__, __LINE__, what.c_str());
    check::that((apart > 1e-6) == chunked, __FILE__, __LINE__, what + ": another kernel");
  };
  constexpr auto none = normalisation::none, outputs = normalisation::outputs;
  check_map(rule::delta, dtype::bfloat16, "identity", row_norm::l2, none, true);
  check_map(rule::delta, dtype::float16, "relu", row_norm::l2, none, true);
  check_map(rule::delta, dtype::float16, "elu1", row_norm::sum, none, true);
  check_map(rule::sum, dtype::bfloat16, "squared_relu", row_norm::none, none, true);
  check_map(rule::sum, dtype::float16, "squared_relu", row_norm::none, none, false);
  check_map(rule::sum, dtype::bfloat16, "elu1", row_norm::none, outputs, true);
  check_map(rule::delta, dtype::bfloat16, "elu1", row_norm::sum, outputs, true);
  check_map(rule::sum, dtype::float16, "elu1", row_norm::none, outputs, false);
  check_map(rule::sum, dtype::bfloat16, "identity", row_norm::none, outputs, false);
  check_map(rule::delta, dtype::bfloat16, "elu1", row_norm::sum, normalisation::outputs_and_removals, false);
}

/// Every number has a place of its own, moves are by whole rows and columns, and the rows that are read at once are in different banks.
template <int Width>
void test_tile() {
  using Tile = cuda::HalfTile<Width>;
  std::vector<int> seen(32 * Width);
  for (int row = 0; row < 32; ++row)
    for (int column = 0; column < Width; ++column) {
      ++seen[Tile::offset(row, column) / 2];
      CHECK(Tile::moved(512 + Tile::offset(row % 8, column % 16), row / 8 * 8, column / 16 * 16) == 512 + Tile::offset(row, column));
    }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  for (int lane = 0; lane < 32; lane += 8)
    for (const auto& place : {Tile::down, Tile::across}) {
      std::vector<bool> bank(8);  // of 16 bytes
      for (int i = 0; i < 8; ++i) bank[place(lane + i) / 16 % 8] = true;
      CHECK(std::all_of(bank.begin(), bank.end(), [](bool met) { return met; }));
    }
}

/// What the emulator is to find.
enum class Slip { none, no_wait, apart, beyond, not_aligned };

template <Slip slip>
struct Copier {
  struct Arguments {
    const float* from;
    float* to;
  };
  static constexpr int threads = 32, architecture = 80;
  static constexpr const char* name = "copier";

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const int i = thread.index();
    const std::uint32_t at = thread.address(thread.shared()) + 16 * static_cast<std::uint32_t>(i);
    thread.copy16(at + (slip == Slip::beyond ? 16 : slip == Slip::not_aligned ? 8 : 0), a.from + 4 * i, i > 0);
    thread.commit_copies();
    if (slip != Slip::no_wait) thread.template wait_copies<0>();
    if (slip == Slip::apart && i == 3) return;
    thread.warp_barrier();
    a.to[i] = reinterpret_cast<const float*>(thread.shared())[(4 * i + 4) % 128];
  }
};

template <Slip slip>
std::string copied() {
  alignas(16) float from[128], to[32];
  std::iota(from, from + 128, 0.0f);
  try {
    emulator::Ampere().launch<Copier<slip>>(1, 512, {from, to});
  } catch (const std::runtime_error& problem) {
    return problem.what();
  }
  for (int i = 0; i < 32; ++i)
    if (to[i] != (4 * i + 4) % 128) return "something else";
  return "copied";
}

void test_emulator() {
  CHECK_EQUAL(copied<Slip::none>(), "copied");
  CHECK_EQUAL(copied<Slip::no_wait>(), "something else");
  CHECK(copied<Slip::apart>().find("stands still") != std::string::npos);
  CHECK(copied<Slip::beyond>().find("beyond") != std::string::npos);
  CHECK(copied<Slip::not_aligned>().find("not aligned") != std::string::npos);
}

}  // namespace

int main() {
  std::mt19937_64 random(80);
  test_emulator();
  test_tile<32>();
  test_tile<64>();
  test_tile<128>();
  test_sizes(random);
  test_longest_keys(random);
  test_range(random);
  test_others(random);
  test_maps(random);
  return check::report();
}
