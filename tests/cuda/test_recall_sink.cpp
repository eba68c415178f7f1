// SPDX-License-Identifier: BSD-3-Clause
/// Sinks of attention on the emulator: against the definition in float64 of a softmax over one more score, of a key whose value is 0.
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

Kept attend(const Attention& a, const Sink& sink) {
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
void check_forward(const Attention& a, const Sink& sink, const std::string& what) {
  const Kept kept = attend(a, sink);
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

void check_backward(const Attention& a, const Sink& sink, std::mt19937_64& random, const std::string& what) {
  const Kept kept = attend(a, sink);
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

Attention plain(std::mt19937_64& random, index_t n, index_t m, index_t d, dtype type = dtype::float32) {
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
  Attention a = plain(random, 5, 20, 12);
  check_forward(a, {{}, 1.5}, "a number");
  check_backward(a, {{}, 1.5}, random, "a number");
  for (const auto& [first, second] : {std::pair{0.5, 2.0}, std::pair{-test::inf, 60.0}, std::pair{-60.0, -200.0}}) {
    const std::string what = "sinks " + check::shown(first) + " and " + check::shown(second);
    check_forward(a, of_entries(first, second), what);
    check_backward(a, of_entries(first, second), random, what);
  }
  a.mask = Tensor({5, 20}, dtype::boolean, 1);
  for (index_t j = 0; j < 20; ++j) a.mask.put(20 + j, 0), a.mask.put(40 + j, j % 3 == 0);
  check_forward(a, of_entries(1, -test::inf), "a mask");  // a row sees nothing: of lse 1, and of -inf
  check_backward(a, of_entries(1, -test::inf), random, "a mask");
  check_forward(plain(random, 2, 600, 12), of_entries(1, 3), "parts of patterns");
  for (const dtype type : {dtype::float16, dtype::bfloat16}) {
    a = plain(random, 3, 70, 64, type);
    check_forward(a, of_entries(1, 3), "tensor cores");
    check_backward(a, of_entries(1, 3), random, "tensor cores");
  }
  a = plain(random, 3, 40, 12);
  a.top_k = 5;
  check_forward(a, of_entries(1, 3), "beside top_k");
}

void test_errors(std::mt19937_64& random) {
  emulator::Device device;
  const Attention a = plain(random, 3, 4, 5);
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
  std::mt19937_64 random(50);
  test_sinks(random);
  test_errors(random);
  return check::report();
}
