// SPDX-License-Identifier: BSD-3-Clause
/// The sparse read against its definition in float64 (spec/backtracking.hpp), on the emulator.
#include "check.hpp"
#include "emulator.hpp"
#include "tensor.hpp"
#include <numeric>

#include "recollect/cuda/sparse_read.hpp"

namespace {

using namespace recollect;
using test::Shape;
using test::Tensor;

struct Problem {
  Tensor query, keys, memory, w3, lengths;
  Shape leading;
  index_t k = 1;

  index_t n() const { return query.shape[query.shape.size() - 2]; }
  index_t N() const { return memory.shape[memory.shape.size() - 2]; }
  Shape shape(std::initializer_list<index_t> inner) const {
    Shape s = leading;
    s.insert(s.end(), inner);
    return s;
  }
  backtracking::read_operands operands() const { return {query.in(), keys.in(), memory.in(), w3.in(), lengths.in()}; }
};

/// Lengths are whole numbers of 64 bits, which a Tensor does not hold.
struct Read {
  Tensor value, weights, total;
  std::vector<index_t> indices, threshold;
};

Read blank(const Problem& p, dtype value, dtype weight, double fill) {
  const std::size_t rows = Tensor(p.shape({p.n()})).numbers().size();
  return {Tensor(p.shape({p.n(), p.memory.shape.back()}), value, fill), Tensor(p.shape({p.n(), p.k}), weight, fill),
          Tensor(p.shape({p.n()}), weight, fill), std::vector<index_t>(rows * static_cast<std::size_t>(p.k), -7),
          std::vector<index_t>(rows, -7)};
}

double score(const Problem& p, const Shape& l, index_t i, index_t j) {
  double sum = 0;
  for (index_t c = 0; c < p.query.shape.back(); ++c) {
    const double q = p.query.at(l, {i, c}), key = p.keys.at(l, {j, c});
    sum += p.w3.given() ? p.w3.at({}, {c}) * std::tanh(q + key) : q * key;
  }
  return sum;
}

/// What a row reads: the first `read` of `order`, then the one that gives the threshold.
struct Choice {
  Shape l;
  index_t i = 0, row = 0, count = 0, read = 0;
  std::vector<index_t> order;
  std::vector<double> weights;
  double total = 0;  // 0 for a softmax, too
  bool all = true;
};

template <class Row>
void each_row(const Problem& p, const std::vector<index_t>& lengths, Row&& visit) {
  const Tensor rows(p.shape({p.n()}));
  Choice c;
  rows.each([&](index_t) {
    c.l = Tensor::unravel(c.row, rows.shape);
    c.i = c.l.back();
    c.l.pop_back();
    c.count = lengths.empty() ? p.N() : lengths[lengths.size() == 1 ? 0 : static_cast<std::size_t>(c.l.back())];
    std::vector<double> a;
    for (index_t j = 0; j < c.count; ++j) a.push_back(score(p, c.l, c.i, j));
    c.order.resize(a.size());
    std::iota(c.order.begin(), c.order.end(), index_t(0));
    c.all = c.count <= p.k;
    c.read = std::min(c.count, p.k);
    if (!c.all) std::stable_sort(c.order.begin(), c.order.end(), [&](index_t x, index_t y) { return a[x] > a[y]; });
    const double reference = !c.all ? a[c.order[p.k]] : a.empty() ? 0.0 : *std::max_element(a.begin(), a.end());
    c.weights.clear();
    for (index_t s = 0; s < c.read; ++s) c.weights.push_back(c.all ? std::exp(a[c.order[s]] - reference) : a[c.order[s]] - reference);
    c.total = std::accumulate(c.weights.begin(), c.weights.end(), 0.0);
    for (double& w : c.weights) w = c.total > 0 ? w / c.total : 1.0 / static_cast<double>(p.k);
    if (c.all) c.total = 0;
    visit(c);
    ++c.row;
  });
}

Read expected(const Problem& p, const std::vector<index_t>& lengths) {
  Read read = blank(p, dtype::float64, dtype::float64, 0);
  each_row(p, lengths, [&](const Choice& c) {
    read.total.add(c.l, {c.i}, c.total);
    read.threshold[c.row] = c.all ? -1 : c.order[p.k];
    for (index_t s = 0; s < p.k; ++s) {
      read.indices[c.row * p.k + s] = s < c.read ? c.order[s] : -1;
      if (s >= c.read) continue;
      read.weights.add(c.l, {c.i, s}, c.weights[s]);
      for (index_t e = 0; e < p.memory.shape.back(); ++e) read.value.add(c.l, {c.i, e}, c.weights[s] * p.memory.at(c.l, {c.order[s], e}));
    }
  });
  return read;
}

struct Gradients {
  Tensor query, keys, memory;
};

Gradients expected_gradients(const Problem& p, const std::vector<index_t>& lengths, const Tensor& d_value) {
  Gradients d{Tensor(p.query.shape, dtype::float64, 0), Tensor(p.keys.shape, dtype::float64, 0), Tensor(p.memory.shape, dtype::float64, 0)};
  each_row(p, lengths, [&](const Choice& c) {
    std::vector<double> g(c.weights.size()), d_a(c.weights.size() + 1);
    double mean = 0;
    for (index_t s = 0; s < c.read; ++s) {
      for (index_t e = 0; e < p.memory.shape.back(); ++e) {
        g[s] += d_value.at(c.l, {c.i, e}) * p.memory.at(c.l, {c.order[s], e});
        d.memory.add(c.l, {c.order[s], e}, c.weights[s] * d_value.at(c.l, {c.i, e}));
      }
      mean += c.weights[s] * g[s];
    }
    for (index_t s = 0; s < c.read; ++s) {
      if (c.all) d_a[s] = c.weights[s] * (g[s] - mean);
      if (c.total > 0 && c.weights[s] > 0) d_a[s] = (g[s] - mean) / c.total;
      if (!c.all) d_a[c.read] -= d_a[s];
    }
    for (index_t s = 0; s < c.read + !c.all; ++s)
      for (index_t a = 0; a < p.query.shape.back(); ++a) {
        d.query.add(c.l, {c.i, a}, d_a[s] * p.keys.at(c.l, {c.order[s], a}));
        d.keys.add(c.l, {c.order[s], a}, d_a[s] * p.query.at(c.l, {c.i, a}));
      }
  });
  return d;
}

template <class T>
Array numbers(std::vector<T>& data, const Shape& shape) {
  Array a;
  a.data = data.data();
  a.type = dtype_of<T>;
  a.rank = static_cast<int>(shape.size());
  index_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) a.extents[i] = shape[i], a.strides[i] = stride;
  return a;
}

void check_read(const Problem& p, const char* what, std::vector<index_t> lengths = {}) {
  const auto run = [&](std::uint64_t seed) {
    Read read = blank(p, p.query.type, dtype::float32, test::nan);
    emulator::Device device(seed);
    backtracking::read_operands in = p.operands();
    if (!lengths.empty()) in.lengths = numbers(lengths, {static_cast<index_t>(lengths.size())});
    cuda::sparse_read(device, in,
                      {read.value.out(), numbers(read.indices, read.weights.shape), read.weights.out(),
                       numbers(read.threshold, read.total.shape), read.total.out()});
    return read;
  };
  const Read got = run(1), again = run(2), wanted = expected(p, lengths);
  const double bound = p.query.type == dtype::float32 ? 1e-5 : p.query.type == dtype::float16 ? 3e-3 : 3e-2;
  check::near(test::difference(got.weights, wanted.weights), 0, 2e-5, __FILE__, __LINE__, what);
  check::near(test::difference(got.total, wanted.total), 0, 1e-5 * test::largest(wanted.total), __FILE__, __LINE__, what);
  check::near(test::difference(got.value, wanted.value), 0, bound * test::largest(wanted.value), __FILE__, __LINE__, what);
  check::that(got.indices == wanted.indices && got.threshold == wanted.threshold, __FILE__, __LINE__, std::string(what) + ": indices");
  check::that(test::same(got.value, again.value) && test::same(got.weights, again.weights), __FILE__, __LINE__,
              std::string(what) + ": another order, another result");
}

/// Joined: keys are the memory, and one gradient is of both.
void check_backward(const Problem& p, std::mt19937_64& random, bool joined, const char* what, std::vector<index_t> lengths = {}) {
  const Tensor d_value = test::random(p.shape({p.n(), p.memory.shape.back()}), random, p.query.type);
  const auto run = [&](std::uint64_t seed) {
    Gradients d{Tensor(p.query.shape, p.query.type), Tensor(p.keys.shape, p.keys.type),
                Tensor(p.memory.shape, p.memory.type, test::nan, 2)};
    emulator::Device device(seed);
    backtracking::read_operands in = p.operands();
    if (!lengths.empty()) in.lengths = numbers(lengths, {static_cast<index_t>(lengths.size())});
    if (joined) in.keys = in.memory;
    cuda::sparse_read_backward(device, in, p.k, d_value.in(), d.query.out(), joined ? Array{} : d.keys.out(), d.memory.out());
    return d;
  };
  const Gradients got = run(3), again = run(4);
  Gradients wanted = expected_gradients(p, lengths, d_value);
  if (joined) {
    index_t place = 0;
    wanted.keys.each([&](index_t from) { wanted.memory.put(place, wanted.memory.get(place) + wanted.keys.get(from)), ++place; });
  }
  const auto close = [&](const Tensor& a, const Tensor& b) {
    check::near(test::difference(a, b), 0, 2e-5 * test::largest(b), __FILE__, __LINE__, what);
  };
  close(got.query, wanted.query);
  close(got.memory, wanted.memory);
  if (!joined) close(got.keys, wanted.keys);
  check::that(test::same(got.query, again.query) && test::same(got.memory, again.memory), __FILE__, __LINE__,
              std::string(what) + ": another order, another result");
}

Problem dot(std::mt19937_64& random, index_t k, index_t n, index_t N, index_t d, dtype type = dtype::float32) {
  Problem p;
  p.query = test::random({n, d}, random, type);
  p.keys = p.memory = test::random({N, d}, random, type, 1, 2);
  p.k = k;
  return p;
}

void test_reads(std::mt19937_64& random) {
  check_read(dot(random, 1, 1, 2, 1), "one of two");
  check_read(dot(random, 5, 9, 40, 20), "a few");
  check_read(dot(random, 40, 5, 40, 20), "all");
  check_read(dot(random, 127, 2, 300, 12), "many");
  check_read(dot(random, 3, 2, 600, 70, dtype::float16), "halves");
  check_read(dot(random, 3, 4, 50, 140, dtype::bfloat16), "brain halves");
  Problem p = dot(random, 4, 6, 30, 10);
  p.keys = test::random({30, 7}, random);
  p.query = test::random({6, 7}, random);
  p.w3 = test::random({7}, random);
  check_read(p, "additive");
  p.leading = {3};
  p.query = test::random({3, 6, 7}, random);
  check_read(p, "lengths with one memory", {30, 3, 5});
  p.memory = test::random({3, 30, 10}, random);
  check_read(p, "lengths with a memory each", {0, 4, 17});
  p = dot(random, 4, 3, 5, 6);
  p.leading = {1};
  check_read(p, "a length for all", {3});
}

void test_gradients(std::mt19937_64& random) {
  Problem p = dot(random, 5, 9, 40, 20);
  check_backward(p, random, true, "gradients of a few");
  check_backward(dot(random, 40, 5, 40, 20), random, true, "gradients of all");
  p.query = test::random({9, 12}, random);
  p.keys = test::random({40, 12}, random);
  check_backward(p, random, false, "gradients of keys of their own");
  p.leading = {3};
  for (Tensor* t : {&p.query, &p.keys, &p.memory}) *t = test::random({3, t->shape[0], t->shape[1]}, random);
  check_backward(p, random, false, "gradients with lengths", {40, 3, 0});
  p.query = test::random({1, 4, 12}, random);
  check_backward(p, random, false, "gradients of a query for all", {40, 3, 7});
}

/// Equal scores: the first; all that are kept tie with the threshold: uniform.
void test_ties(std::mt19937_64& random) {
  Problem p = dot(random, 6, 5, 300, 2);
  for (Tensor* t : {&p.query, &p.keys}) t->each([&](index_t place) { t->put(place, static_cast<double>(random() % 3) - 1); });
  p.memory = test::random({300, 9}, random);
  check_read(p, "ties");
  check_backward(p, random, false, "gradients at ties");
}

void test_nothing_to_choose(std::mt19937_64& random) {
  Problem p = dot(random, 2, 2, 5, 3);
  for (index_t j = 1; j < 4; ++j) p.keys.put(j * p.keys.strides[0], test::nan);
  Read read = blank(p, dtype::float32, dtype::float32, 0);
  emulator::Device device;
  cuda::sparse_read(device, p.operands(), {read.value.out(), numbers(read.indices, {2, 2}), read.weights.out(), {}, {}});
  CHECK(std::isnan(read.weights.numbers()[0]) && std::isnan(read.value.numbers()[0]));
  p = dot(random, 0, 2, 0, 3);
  read = blank(p, dtype::float32, dtype::float32, test::nan);
  cuda::sparse_read(device, p.operands(), {read.value.out(), numbers(read.indices, {2, 0}), read.weights.out(), {}, {}});
  for (const double x : read.value.numbers()) CHECK_EQUAL(x, 0.0);
}

void test_errors(std::mt19937_64& random) {
  Problem p = dot(random, 128, 2, 300, 3);
  const auto call = [&] {
    Read read = blank(p, dtype::float32, dtype::float32, 0);
    emulator::Device device;
    cuda::sparse_read(device, p.operands(), {read.value.out(), numbers(read.indices, read.weights.shape), read.weights.out(), {}, {}});
  };
  CHECK_FAILS(value, "backtracking.sparse_read: k_top is 128, or None beside as many memories; expected at most 127 on a device", call());
  p = dot(random, 6, 2, 5, 3);
  CHECK_FAILS(value, "backtracking.sparse_read: k_top is 6; expected at most N=5", call());
  p = dot(random, 2, 2, 5, 3);
  p.w3 = Tensor({4});
  CHECK_FAILS(value, "backtracking.sparse_read: w3 has shape (4,); expected (..., a=3)", call());
}

}  // namespace

int main() {
  std::mt19937_64 random(40);
  test_reads(random);
  test_gradients(random);
  test_ties(random);
  test_nothing_to_choose(random);
  test_errors(random);
  return check::report();
}
