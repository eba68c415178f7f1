// SPDX-License-Identifier: BSD-3-Clause
/// What must not change a single bit: the number of threads, the rows beside a row, and how arrays are laid out. Then rows that come to
/// rest, and the k nearest patterns.
#include "hopfield_oracle.hpp"
#include <algorithm>
#include <numeric>

#include "recollect/core/parallel.hpp"
#include "recollect/ops/hopfield.hpp"

using namespace oracle;

namespace {

template <class A>
A rows_of(A array, std::size_t item, index_t first, index_t count) {
  if (!array.given()) return array;
  array.extents[0] = count;
  using Byte = std::conditional_t<std::is_same_v<A, Array>, char, const char>;
  array.data = static_cast<Byte*>(array.data) + first * array.strides[0] * static_cast<index_t>(item);
  return array;
}

template <class T>
struct Problem {
  index_t n, N, d, e, k;
  bool masked;
  hopfield::parameters p;
  layout how = layout::dense;
  Tensor state{}, patterns{}, values{}, beta{}, mask{};
  Tensor out{}, energy{}, lse{}, largest{}, log_sum{}, steps{}, converged{}, nearest{}, weights{};
  hopfield::operands in{};

  void prepare() {
    state = Tensor::make<T>({n, d}, how);
    patterns = Tensor::make<T>({N, d}, how);
    values = Tensor::make<T>({N, e}, how);
    beta = Tensor::make<double>({});
    mask = Tensor::make<bool>({n, N}, how);
    fill(state, 1, 1);
    fill(patterns, 2, 2 / std::sqrt(static_cast<double>(d)));
    fill(values, 3, 1);
    fill_mask(mask, 4, 0.7);
    put(beta.array.data, dtype::float64, 3);
    in = {state.array, patterns.array, e ? values.array : Array{}, beta.array, masked ? mask.array : Array{}};
    out = Tensor::make<T>({n, e ? e : d});
    for (Tensor* t : {&energy, &lse, &largest, &log_sum}) *t = Tensor::make<T>({n});
    steps = Tensor::make<index_t>({n});
    converged = Tensor::make<bool>({n});
    nearest = Tensor::make<index_t>({n, k});
    weights = Tensor::make<T>({n, k});
  }

  std::vector<Tensor*> outputs() { return {&out, &energy, &lse, &largest, &log_sum, &steps, &converged, &nearest, &weights}; }

  void run(index_t first, index_t count) {
    for (Tensor* t : outputs()) std::fill(t->bytes.begin(), t->bytes.end(), poison);
    const auto rows = [&](const Tensor& t) { return rows_of(t.array, t.item, first, count); };
    hopfield::operands some = in;
    some.state = rows(state);
    if (masked) some.mask = rows(mask);
    hopfield::retrieve(some, p, {rows(out), rows(energy), rows(lse), rows(steps), rows(converged), {rows(largest), rows(log_sum)}});
    if (k > 0) hopfield::nearest(some, p.separation, rows(nearest), rows(weights));
  }

  /// All that was said about a row, as bytes.
  std::vector<unsigned char> row(index_t r) {
    std::vector<unsigned char> all;
    for (const Tensor* t : outputs()) {
      const auto size = t->array.strides[0] * static_cast<index_t>(t->item);
      all.insert(all.end(), t->bytes.begin() + r * size, t->bytes.begin() + (r + 1) * size);
    }
    return all;
  }

  std::vector<std::vector<unsigned char>> all_rows() {
    run(0, n);
    std::vector<std::vector<unsigned char>> all;
    for (index_t r = 0; r < n; ++r) all.push_back(row(r));
    return all;
  }
};

template <class T>
void the_same_bits() {
  const Problem<T> problems[] = {{25, 49, 7, 0, 5, true, {"softmax", 4, 1e-3}},    {3, 5000, 16, 0, 1, false, {"softmax", 3, 1e-2}},
                                 {30, 2305, 33, 7, 5, true, {"softmax", 1, -1}},   {193, 193, 64, 0, 7, false, {"softmax", 2, -1}},
                                 {5, 4500, 100, 33, 3, false, {"softmax", 2, -1}}, {1, 3, 5, 2, 0, true, {"softmax", 5, 1e-9}}};
  for (Problem<T> problem : problems) {
    problem.prepare();
    set_num_threads(1);
    const auto expected = problem.all_rows();
    for (int threads : {2, 3, 7, 64}) {
      set_num_threads(threads);
      CHECK(problem.all_rows() == expected);
    }
    for (int threads : {1, 3}) {
      set_num_threads(threads);
      for (index_t r : {index_t(0), problem.n / 2, problem.n - 1}) {
        problem.run(r, 1);
        CHECK(problem.row(r) == expected[r]);
      }
      for (index_t count : {problem.n / 2, problem.n - 1}) {  // other blocks, the same rows
        problem.run(1, std::min(count, problem.n - 1));
        for (index_t r = 1; r < std::min(count + 1, problem.n); ++r) CHECK(problem.row(r) == expected[r]);
      }
    }
    if (problem.e == 0) {  // the state may be updated where it lies
      Problem<T> in_place = problem;
      in_place.prepare();
      in_place.out = in_place.state;
      in_place.out.array.data = in_place.out.bytes.data();
      in_place.in.state = in_place.out.array;
      hopfield::retrieve(in_place.in, in_place.p, {in_place.out.array, {}, {}, {}, {}, {}});
      problem.run(0, problem.n);
      for (index_t r = 0; r < problem.n; ++r)
        for (index_t c = 0; c < problem.d; ++c) CHECK_EQUAL(at(in_place.out.array, {}, {r, c}), at(problem.out.array, {}, {r, c}));
    }
    for (layout how : {layout::gaps, layout::reversed, layout::turned}) {
      Problem<T> other = problem;
      other.how = how;
      other.prepare();
      CHECK(other.all_rows() == expected);
    }
  }
}

/// So many blocks of rows and segments of patterns that a task takes several segments: its part must be a subtree of the fixed tree.
void tasks_of_several_segments() {
  Problem<float> problem{7 * 192, 40000, 1, 0, 0, false, {}};
  problem.prepare();
  put(problem.beta.array.data, dtype::float64, 0.1);  // every segment weighs
  set_num_threads(3);
  const auto expected = problem.all_rows();
  for (index_t r : {0, 300, 500, 700, 900, 1343}) {
    problem.run(r, 1);
    CHECK(problem.row(r) == expected[r]);
  }
}

template <class T>
void rows_come_to_rest(double tol) {
  set_num_threads(3);
  for (index_t N : {49, 4700}) {
    Problem<T> problem{30, N, 16, 0, 0, false, {"softmax", 200, tol}};
    problem.prepare();
    problem.run(0, problem.n);
    for (index_t r = 0; r < problem.n; ++r) {
      Row exact(problem.in, {}, r);
      index_t steps = 0;
      for (double moved = INFINITY; moved > tol && steps < 200; ++steps) {
        const auto before = exact.q;
        exact.update();
        moved = 0;
        for (index_t k = 0; k < exact.d; ++k) moved += (exact.q[k] - before[k]) * (exact.q[k] - before[k]);
        moved = std::sqrt(moved);
      }
      CHECK_NEAR(at(problem.steps.array, {}, {r}), static_cast<double>(steps), 1);  // rounding may decide the last
      CHECK_EQUAL(at(problem.converged.array, {}, {r}), at(problem.steps.array, {}, {r}) < 200);
      for (index_t k = 0; k < exact.d; ++k) CHECK_NEAR(at(problem.out.array, {}, {r, k}), exact.q[k], 20 * tol);
    }
    // A read of values comes on top of the updates and is one of the steps.
    Problem<T> reading{30, N, 16, 7, 0, true, {"softmax", 200, tol}};
    reading.prepare();
    reading.run(0, reading.n);
    Problem<T> updating = reading;
    updating.e = 0;
    updating.p.steps = 199;
    updating.prepare();
    updating.run(0, updating.n);
    for (index_t r = 0; r < reading.n; ++r) {
      CHECK_EQUAL(at(reading.steps.array, {}, {r}), at(updating.steps.array, {}, {r}) + 1);
      CHECK_EQUAL(at(reading.converged.array, {}, {r}), at(updating.converged.array, {}, {r}));
    }
  }
}

template <class T>
void nearest_patterns() {
  for (index_t N : {1, 7, 49, 2305})
    for (index_t n : {1, 25})
      for (double share : {1.0, 0.4, 0.0}) {
        const index_t k = std::min<index_t>(N, 7);
        Problem<T> problem{n, N, 3, 0, k, true, {}};
        problem.prepare();
        for (const Tensor* t : {&problem.state, &problem.patterns})  // small whole numbers: exact scores and many ties
          t->each([&](const Index&, unsigned char* place) { put(place, dtype_of<T>, std::round(number(place, dtype_of<T>))); });
        put(problem.beta.array.data, dtype::float64, 0.6931471805599453);  // log 2: scores in its units are whole
        fill_mask(problem.mask, 9, share);
        problem.run(0, n);
        for (index_t r = 0; r < n; ++r) {
          const Row exact(problem.in, {}, r);
          std::vector<double> score(static_cast<std::size_t>(N), 0);
          for (index_t i = 0; i < N; ++i)
            for (index_t c = 0; c < 3; ++c) score[i] += exact.x[i * 3 + c] * exact.q[c];
          std::vector<index_t> order;
          for (index_t i = 0; i < N; ++i)
            if (exact.admitted[i]) order.push_back(i);
          std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score[a] > score[b]; });
          for (index_t j = 0; j < k; ++j) {
            const bool any = j < exact.count;
            CHECK_EQUAL(at(problem.nearest.array, {}, {r, j}), any ? static_cast<double>(order[j]) : -1.0);
            CHECK_NEAR(at(problem.weights.array, {}, {r, j}), any ? exact.weight[order[j]] : 0.0, 1e-5);
          }
        }
      }
}

}  // namespace

int main() {
  the_same_bits<float>();
  the_same_bits<double>();
  tasks_of_several_segments();
  rows_come_to_rest<float>(1e-3);
  rows_come_to_rest<double>(1e-7);
  nearest_patterns<float>();
  nearest_patterns<double>();
  return check::report();
}
