// SPDX-License-Identifier: BSD-3-Clause
/// What comes after a softmax on a device, on the emulator. Rows that come to rest: to the last bit the rule of spec/hopfield.hpp applied
/// to single steps of the same device. Sinks of attention: against a softmax in float64 over one more score, of a key whose value is 0.
#include "check.hpp"
#include "emulator_sm90.hpp"
#include "recall_oracle.hpp"

#include "recollect/cuda/recall_gradients.hpp"
#include "recollect/cuda/top_k.hpp"

namespace {

using namespace recollect;
using test::Attention;
using test::Shape;
using test::Tensor;

struct Network {
  Tensor state, patterns, values, mask;
  double beta = 1, tol = 1e-2;
  Shape leading;

  hopfield::operands in(const Tensor& at, bool reads) const {
    return {at.in(), patterns.in(), reads ? values.in() : ConstArray{}, {}, mask.in()};
  }
  Shape shape(std::initializer_list<index_t> inner = {}) const {
    Shape s = leading;
    s.push_back(state.shape[state.shape.size() - 2]);
    s.insert(s.end(), inner);
    return s;
  }
  index_t rows() const {
    index_t count = 1;
    for (index_t extent : shape()) count *= extent;
    return count;
  }
  index_t width(bool reads) const { return (reads ? values : patterns).shape.back(); }
};

struct Told {
  Tensor out, energy, lse, steps, converged;

  Told(const Network& h, bool reads)
      : out(h.shape({h.width(reads)}), h.state.type),
        energy(h.shape()),
        lse(h.shape()),
        steps(h.shape(), dtype::float64),
        converged(h.shape(), dtype::boolean, 1) {}
  index_t& taken(index_t row) { return reinterpret_cast<index_t*>(steps.bytes.data())[row]; }
  hopfield::results places() {
    hopfield::results to{out.out(), energy.out(), lse.out(), steps.out(), converged.out(), {}};
    to.steps.type = dtype::int64;
    return to;
  }
};

/// Copies row `row` of dense tensors of the same type.
void take_row(Tensor& to, const Tensor& from, index_t row, index_t width) {
  const std::size_t bytes = static_cast<std::size_t>(width * bytes_of(to.type)), at = static_cast<std::size_t>(row) * bytes;
  std::copy_n(from.bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes, to.bytes.begin() + static_cast<std::ptrdiff_t>(at));
}

/// One step of the device after another, each row for as long as the rule says.
Told expected(const Network& h, index_t steps) {
  const bool valued = h.values.given();
  const index_t width = h.width(false), updates = steps - valued;
  Told told(h, valued);
  Tensor state(h.shape({width}), h.state.type);
  Shape flat = state.shape;
  state.each([&](index_t place) { state.put(place, h.state.get(h.state.place(Tensor::unravel(place, flat)))); });
  std::vector<bool> moving(static_cast<std::size_t>(h.rows()), true);
  const auto tell = [&](const Told& one, index_t row) {
    for (auto part : {&Told::energy, &Told::lse}) take_row(told.*part, one.*part, row, 1);
  };
  for (index_t row = 0; row < h.rows(); ++row) told.taken(row) = 0, told.converged.put(row, 0);
  for (index_t step = 0; step < updates; ++step) {
    Told one(h, false);
    emulator::Hopper device(11);
    cuda::retrieve(device, h.in(state, false), h.beta, {"softmax", 1}, one.places());
    for (index_t row = 0; row < h.rows(); ++row) {
      if (!moving[static_cast<std::size_t>(row)]) continue;
      double moved = 0;
      for (index_t k = 0; k < width; ++k) moved += std::pow(one.out.get(row * width + k) - state.get(row * width + k), 2);
      ++told.taken(row);
      told.converged.put(row, std::sqrt(moved) <= h.tol);
      moving[static_cast<std::size_t>(row)] = std::sqrt(moved) > h.tol;
      take_row(state, one.out, row, width);
      tell(one, row);
    }
  }
  if (!valued) {
    told.out = state;
    return told;
  }
  Told one(h, true);
  emulator::Hopper device(12);
  cuda::retrieve(device, h.in(state, true), h.beta, {"softmax", 1}, one.places());
  told.out = one.out;
  for (index_t row = 0; row < h.rows(); ++row) tell(one, row), ++told.taken(row);
  return told;
}

/// The gradient by its definition in float64, of as many steps of each row as it took.
void check_gradient(const Network& h, index_t steps, Told& told, std::mt19937_64& random, const std::string& what) {
  const bool valued = h.values.given();
  const index_t width = h.width(false), updates = steps - valued;
  const Tensor d_out = test::random(told.out.shape, random, h.state.type);
  std::vector<std::array<Tensor, 3>> room;
  for (index_t s = 0; s < steps; ++s) room.push_back({Tensor(h.shape({width}), h.state.type), Tensor(h.shape()), Tensor(h.shape())});
  std::vector<cuda::RetrievalStep> kept;
  for (auto& [state, largest, log_sum] : room) kept.push_back({state.out(), {largest.out(), log_sum.out()}});
  kept.back().state = {};
  Tensor out(told.out.shape, told.out.type);
  hopfield::results to;
  to.state = out.out();
  const hopfield::parameters how{"softmax", steps, h.tol};
  emulator::Hopper device(13);
  cuda::retrieve(device, h.in(h.state, valued), h.beta, how, to, kept);
  CHECK(test::same(out, told.out));
  Tensor d_state(h.state.shape, h.state.type), d_patterns(h.patterns.shape, h.state.type), d_beta(Shape{}),
      d_values = valued ? Tensor(h.values.shape, h.state.type) : Tensor();
  cuda::retrieve_backward(device, h.in(h.state, valued), h.beta, how, kept, out.in(), d_out.in(),
                          {d_state.out(), d_patterns.out(), d_values.out(), d_beta.out(), {}});
  const auto at = [&](index_t step, const Tensor& values) {
    return Attention{
        step == 0 ? h.state : room[static_cast<std::size_t>(step - 1)][0], h.patterns, values, {}, h.mask, {}, h.beta, 0, h.leading};
  };
  Tensor d = d_out, patterns(h.patterns.shape, dtype::float64, 0), values(h.values.shape, dtype::float64, 0);
  double beta = 0;
  const auto add = [](Tensor& sum, const Tensor& more) {
    sum.each([&](index_t place) { sum.put(place, sum.get(place) + more.get(place)); });
  };
  const auto back = [&](Attention a, const Tensor& g) {
    a.scale = Tensor({}, dtype::float64, h.beta);
    test::Gradients found = test::attend_gradient(a, g);
    add(patterns, found.key);
    beta += found.scale.get(0);
    return found;
  };
  if (valued) {
    test::Gradients found = back(at(steps - 1, h.values), d);
    values = found.value;
    d = found.query;
  }
  for (index_t step = updates - 1; step >= 0; --step) {
    Tensor moved(d.shape, dtype::float64, 0), rested = moved;
    for (index_t i = 0; i < h.rows() * width; ++i) (told.taken(i / width) - valued > step ? moved : rested).put(i, d.get(i));
    Attention a = at(step, h.patterns);
    test::Gradients found = back(a, moved);
    add(patterns, found.value);
    if (step > 0) add(found.query, rested);
    d = found.query;
  }
  const double bound = h.state.type == dtype::float32 ? 5e-5 : h.state.type == dtype::float16 ? 6e-3 : 5e-2;
  const auto close = [&](const Tensor& got, const Tensor& wanted, const char* name) {
    check::near(test::difference(got, wanted) / test::largest(wanted), 0, bound, __FILE__, __LINE__, (what + ", " + name).c_str());
  };
  close(d_state, d, "d_state");
  close(d_patterns, patterns, "d_patterns");
  if (valued) close(d_values, values, "d_values");
  close(d_beta, Tensor({}, dtype::float64, beta), "d_beta");
}

void check_rest(const Network& h, index_t steps, std::mt19937_64& random, const std::string& what, bool differ = true) {
  const bool valued = h.values.given();
  Told wanted = expected(h, steps);
  index_t least = steps, most = 0;
  for (index_t row = 0; row < h.rows(); ++row) least = std::min(least, wanted.taken(row)), most = std::max(most, wanted.taken(row));
  if (differ) check::that(least < most, __FILE__, __LINE__, what + ": all rows take as many steps");
  Told got(h, valued);
  emulator::Hopper device(14);
  cuda::retrieve(device, h.in(h.state, valued), h.beta, {"softmax", steps, h.tol}, got.places());
  for (const auto& [part, name] : {std::pair{&Told::out, "out"}, std::pair{&Told::energy, "energy"}, std::pair{&Told::lse, "lse"},
                                   std::pair{&Told::steps, "steps"}, std::pair{&Told::converged, "converged"}})
    check::that(test::same(got.*part, wanted.*part), __FILE__, __LINE__, what + ", " + name);
  if (h.rows() <= 12) check_gradient(h, steps, wanted, random, what);  // nothing in it knows of blocks
}

Network network(std::mt19937_64& random, index_t n, index_t N, index_t d, dtype type = dtype::float32) {
  Network h;
  h.leading = {2};
  h.state = test::random({2, n, d}, random, type);
  h.patterns = test::random({N, d}, random, type);
  h.beta = 4 / std::sqrt(static_cast<double>(d));
  return h;
}

void test_portable(std::mt19937_64& random) {
  Network h = network(random, 70, 20, 5);
  check_rest(h, 3, random, "blocks of rows");
  h = network(random, 4, 20, 5);
  check_rest(h, 1, random, "one step", false);
  h.values = test::random({2, 20, 7}, random);
  h.mask = Tensor({20}, dtype::boolean, 1);
  h.mask.put(3, 0);
  check_rest(h, 5, random, "values, a mask");
  check_rest(h, 1, random, "values in one step", false);
  h = network(random, 2, 600, 6);
  check_rest(h, 5, random, "parts of patterns");
  h = network(random, 3, 9, 5);
  h.tol = 100;
  check_rest(h, 3, random, "at rest at once", false);
  h.tol = 0;
  check_rest(h, 7, random, "not to the last bit", false);
  h = network(random, 3, 9, 5);
  h.mask = Tensor({3, 9}, dtype::boolean, 1);
  for (index_t j = 0; j < 9; ++j) h.mask.put(9 + j, 0);  // a row that sees nothing, and another number of steps than all others
  check_rest(h, 5, random, "nothing seen");
}

/// A state of NaN does not move on; others do.
void test_not_a_number(std::mt19937_64& random) {
  Network h = network(random, 3, 9, 5);
  for (index_t k = 0; k < 5; ++k) h.state.put(5 + k, test::nan);
  Told got(h, false), wanted = expected(h, 4);
  emulator::Hopper device(15);
  cuda::retrieve(device, h.in(h.state, false), h.beta, {"softmax", 4, h.tol}, got.places());
  CHECK_EQUAL(got.taken(1), 1);
  CHECK(got.converged.get(1) == 0);
  CHECK(test::same(got.steps, wanted.steps) && test::same(got.converged, wanted.converged));
}

void test_tensor_cores(std::mt19937_64& random) {
  check_rest(network(random, 65, 70, 64, dtype::float16), 4, random, "tensor cores");
  check_rest(network(random, 2, 600, 64, dtype::bfloat16), 4, random, "tensor cores, parts of patterns");
}

// ---------------------------------------------------------------------------------------------------- sinks

struct Sink {
  Tensor array;
  double number = -test::inf;

  double at(const Shape& leading) const { return array.given() ? array.at(leading, {}) : number; }
};

attention::operands operands(const Attention& a, const Sink& sink) {
  return {a.query.in(), a.key.in(), a.value.in(), a.scale.in(), a.mask.in(), a.bias.in(), sink.array.in()};
}

struct Kept {
  Tensor out, lse, largest, log_sum;
};

Kept attend_with(const Attention& a, const Sink& sink) {
  Kept kept{Tensor(a.shape({a.n(), a.e()}), a.query.type, test::nan, 3), Tensor(a.shape({a.n()})), Tensor(a.shape({a.n()})),
            Tensor(a.shape({a.n()}))};
  emulator::Hopper device(1);
  const cuda::AttentionNumbers numbers{a.scale_number, sink.number};
  if (a.top_k > 0)
    cuda::attend_top_k(device, operands(a, sink), numbers, {{}, {"top_k_softmax", static_cast<double>(a.top_k)}},
                       {kept.out.out(), kept.lse.out(), {}});
  else
    cuda::attend(device, operands(a, sink), numbers, {}, {kept.out.out(), kept.lse.out(), {kept.largest.out(), kept.log_sum.out()}});
  return kept;
}

/// exp(c) more in the sum.
void check_sink(const Attention& a, const Sink& sink, const std::string& what) {
  const Kept kept = attend_with(a, sink);
  test::Answer wanted = test::attend(a);
  wanted.lse.each([&](index_t flat) {
    Shape l = Tensor::unravel(flat, wanted.lse.shape);
    l.pop_back();
    const double lse = wanted.lse.get(flat), c = sink.at(l), top = std::max(lse, c);
    const double all = top == -test::inf ? top : top + std::log(std::exp(lse - top) + std::exp(c - top));
    for (index_t e = 0; e < a.e() && all > -test::inf; ++e)
      wanted.out.put(flat * a.e() + e, wanted.out.get(flat * a.e() + e) * std::exp(lse - all));
    wanted.lse.put(flat, all);
  });
  const double bound = a.query.type == dtype::float32 ? 4e-6 : a.query.type == dtype::float16 ? 2e-3 : 2e-2;
  check::near(test::difference(kept.out, wanted.out), 0, bound, __FILE__, __LINE__, (what + ", out").c_str());
  check::near(test::difference(kept.lse, wanted.lse), 0, 2e-5, __FILE__, __LINE__, (what + ", lse").c_str());
}

/// The same with one more key, a score of c by its bias.
Attention with_key(const Attention& a, const Sink& sink) {
  Attention more = a;
  const auto longer = [&](const Tensor& from) {
    Shape shape = from.shape;
    ++shape[shape.size() - 2];
    Tensor to(shape, dtype::float64, 0);
    const std::vector<double> numbers = from.numbers();
    const index_t own = a.m() * shape.back(), count = static_cast<index_t>(numbers.size());
    for (index_t i = 0; i < count; ++i) to.put(i + i / own * shape.back(), numbers[static_cast<std::size_t>(i)]);
    return to;
  };
  more.key = longer(a.key);
  more.value = longer(a.value);
  more.bias = Tensor(a.shape({a.n(), a.m() + 1}), dtype::float64, 0);
  more.bias.each([&](index_t flat) {
    Shape l = Tensor::unravel(flat, more.bias.shape);
    const index_t j = l.back(), i = l[l.size() - 2];
    l.resize(l.size() - 2);
    more.bias.put(flat, j == a.m() ? sink.at(l) : a.mask.given() && a.mask.at(l, {i, j}) == 0 ? -test::inf : 0);
  });
  more.mask = {};
  return more;
}

void check_sink_gradient(const Attention& a, const Sink& sink, std::mt19937_64& random, const std::string& what) {
  const Kept kept = attend_with(a, sink);
  const Tensor d_out = test::random(kept.out.shape, random, a.query.type, 1, 1);
  Tensor d_query(a.query.shape, a.query.type), d_key(a.key.shape, a.key.type), d_value(a.value.shape, a.value.type),
      d_sink(sink.array.shape);
  emulator::Hopper device(2);
  cuda::attend_backward(device, operands(a, sink), {a.scale_number, sink.number}, {}, {kept.largest.in(), kept.log_sum.in()}, kept.out.in(),
                        d_out.in(), {d_query.out(), d_key.out(), d_value.out(), {}, {}, {}, d_sink.out()});
  const test::Gradients wanted = test::attend_gradient(with_key(a, sink), d_out);
  Tensor sinks(sink.array.shape, dtype::float64, 0);
  wanted.bias.each([&](index_t flat) {
    Shape l = Tensor::unravel(flat, wanted.bias.shape);
    if (l.back() != a.m()) return;
    l.resize(l.size() - 2);
    sinks.add(l, {}, wanted.bias.get(flat));
  });
  const double bound = a.query.type == dtype::float32 ? 1e-5 : a.query.type == dtype::float16 ? 4e-3 : 2e-2;
  check::near(test::difference(d_query, wanted.query) / test::largest(wanted.query), 0, bound, __FILE__, __LINE__,
              (what + ", d_query").c_str());
  check::near(test::difference(d_sink, sinks) / test::largest(sinks), 0, bound, __FILE__, __LINE__, (what + ", d_sink").c_str());
  const auto without_last = [&](const Tensor& all, const Tensor& like) {
    Tensor t(like.shape, dtype::float64, 0);
    t.each([&](index_t flat) { t.put(flat, all.get(flat + flat / (a.m() * like.shape.back()) * like.shape.back())); });
    return t;
  };
  const Tensor keys = without_last(wanted.key, a.key), values = without_last(wanted.value, a.value);
  check::near(test::difference(d_key, keys) / test::largest(keys), 0, bound, __FILE__, __LINE__, (what + ", d_key").c_str());
  check::near(test::difference(d_value, values) / test::largest(values), 0, bound, __FILE__, __LINE__, (what + ", d_value").c_str());
}

Attention attention_of(std::mt19937_64& random, index_t n, index_t m, index_t d, dtype type = dtype::float32) {
  Attention a;
  a.leading = {2};
  a.query = test::random({2, n, d}, random, type);
  a.key = test::random({m, d}, random, type);
  a.value = test::random({2, m, d}, random, type);
  a.scale_number = 0.3;
  return a;
}

Sink of_entries(double first, double second) {
  Sink sink{Tensor({2}), 0};
  sink.array.put(0, first), sink.array.put(1, second);
  return sink;
}

void test_sinks(std::mt19937_64& random) {
  Attention a = attention_of(random, 5, 20, 12);
  check_sink(a, {{}, 1.5}, "a number");
  check_sink_gradient(a, {{}, 1.5}, random, "a number");
  for (const auto& [first, second] : {std::pair{0.5, 2.0}, std::pair{-test::inf, 60.0}, std::pair{-60.0, -200.0}}) {
    const std::string what = "sinks " + check::shown(first) + " and " + check::shown(second);
    check_sink(a, of_entries(first, second), what);
    check_sink_gradient(a, of_entries(first, second), random, what);
  }
  a.mask = Tensor({5, 20}, dtype::boolean, 1);
  for (index_t j = 0; j < 20; ++j) a.mask.put(20 + j, 0), a.mask.put(40 + j, j % 3 == 0);
  check_sink(a, of_entries(1, -test::inf), "a mask");  // a row sees nothing: of lse 1, and of -inf
  check_sink_gradient(a, of_entries(1, -test::inf), random, "a mask");
  check_sink(attention_of(random, 2, 600, 12), of_entries(1, 3), "parts of patterns");
  for (const dtype type : {dtype::float16, dtype::bfloat16}) {
    a = attention_of(random, 3, 70, 64, type);
    check_sink(a, of_entries(1, 3), "tensor cores");
    check_sink_gradient(a, of_entries(1, 3), random, "tensor cores");
  }
  a = attention_of(random, 3, 40, 12);
  a.top_k = 5;
  check_sink(a, of_entries(1, 3), "beside top_k");
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  const Attention a = attention_of(random, 3, 4, 5);
  Tensor out({2, 3, 5}), wrong({2}, dtype::float64, 1), large({3}, dtype::float32, 1);
  const auto call = [&](const Sink& sink) { cuda::attend(device, operands(a, sink), {1, sink.number}, {}, {out.out(), {}, {}}); };
  CHECK_FAILS(type, "attention.attend: sink has dtype float64; expected float32 on a device", call({wrong, 0}));
  CHECK_FAILS(
      value,
      "attention.attend: sink has shape (3,); its leading axes do not broadcast with (2,) of the arguments before it; expected (...)",
      call({large, 0}));
  CHECK_FAILS(value, "attention.attend: sink is inf; expected a number below +inf", call({{}, test::inf}));
  CHECK_FAILS(value, "attention.attend: sink is nan; expected a number below +inf", call({{}, test::nan}));
  CHECK_FAILS(value, "attention.attend: sink is given beside top_k; expected none in the gradient on a device so far",
              cuda::attend_top_k_backward(device, operands(a, {}), {1, 0}, {{}, {"top_k_softmax", 2}}, out.in(), {}));
}

}  // namespace

int main() {
  std::mt19937_64 random(40);
  test_portable(random);
  test_not_a_number(random);
  test_tensor_cores(random);
  test_sinks(random);
  test_errors(random);
  return check::report();
}
