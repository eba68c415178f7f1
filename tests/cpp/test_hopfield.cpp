// SPDX-License-Identifier: BSD-3-Clause
/// hopfield::retrieve and hopfield::energy against the equations as plain double loops: sizes, values, masks, layouts, leading axes,
/// steps and stored halves. Outputs lie in poisoned memory with gaps: every entry is written, and nothing beside them.
#include "hopfield_oracle.hpp"
#include <algorithm>

#include "recollect/ops/hopfield.hpp"

using namespace oracle;

namespace {

struct Setting {
  Index batch;                  // leading axes of all operands together
  index_t n, N, d, e = 0;       // e = 0: no values
  double beta = 2, masked = 0;  // the share of patterns that a row may not see
  layout in = layout::dense, out = layout::dense;
  Index state_batch{}, patterns_batch{}, values_batch{}, beta_batch{}, mask_shape{};
  index_t steps = 1;
};

template <class T, class Stored = T>
struct Recall {
  Tensor state, patterns, values, beta, mask;
  Tensor out, energy, lse, largest, log_sum, steps, converged;
  hopfield::operands in;
  hopfield::results to;

  explicit Recall(const Setting& s) {
    const double size = 1 / std::sqrt(static_cast<double>(std::max<index_t>(s.d, 1)));
    state = Tensor::make<T>(joined(s.state_batch, {s.n, s.d}), s.in);
    patterns = Tensor::make<Stored>(joined(s.patterns_batch, {s.N, s.d}), s.in);
    values = Tensor::make<Stored>(joined(s.values_batch, {s.N, s.e}), s.in);
    beta = Tensor::make<double>(s.beta_batch, s.in);
    mask = Tensor::make<bool>(s.mask_shape.empty() ? Index{s.n, s.N} : s.mask_shape, s.in);
    fill(state, 1, 1);
    fill(patterns, 2, std::is_same_v<T, Stored> ? 3 * size : 1);
    fill(values, 3, 1);
    beta.each([&, k = 0](const Index&, unsigned char* place) mutable { put(place, dtype::float64, s.beta * (1 + 0.5 * k++)); });
    fill_mask(mask, 4, 1 - s.masked);
    in = {state.array, patterns.array, s.e ? values.array : Array{}, beta.array, s.masked > 0 ? mask.array : Array{}};
    const index_t width = s.e ? s.e : s.d;
    out = Tensor::make<T>(joined(s.batch, {s.n, width}), s.out);
    for (Tensor* t : {&energy, &lse, &largest, &log_sum}) *t = Tensor::make<T>(joined(s.batch, {s.n}), s.out);
    steps = Tensor::make<index_t>(joined(s.batch, {s.n}), s.out);
    converged = Tensor::make<bool>(joined(s.batch, {s.n}), s.out);
    to = {out.array, energy.array, lse.array, steps.array, converged.array, {largest.array, log_sum.array}};
  }
};

/// Rounding of a float kernel: sums over d and N of numbers of order one, and beta times scores in an exponential.
template <class T>
double allowed(double beta) {
  return (1 + beta) * (std::is_same_v<T, float> ? 1.5e-6 : 4e-15);
}

template <class T, class Stored = T>
void compare(const Setting& s) {
  const int before = check::failed;
  Recall<T, Stored> r(s);
  hopfield::retrieve(r.in, {"softmax", s.steps, -1}, r.to);
  const double bound = allowed<T>(3 * s.beta) * static_cast<double>(s.steps);
  // The plain loops are slow: of many rows over many patterns some are compared, and all are looked at for poison below.
  const auto looked_at = [&](index_t row) { return s.n * s.N < 20000 || row % 12 == 0 || row == s.n - 1; };
  // What is saved and told belongs to the last compared state; with several steps it is q before the last update.
  each_row(s.batch, s.n, [&](const Index& b, index_t row) {
    if (!looked_at(row)) return;
    Row exact(r.in, b, row);
    for (index_t i = 1; i < s.steps; ++i) exact.update();
    for (index_t k = 0; k < exact.e; ++k) CHECK_NEAR(at(r.to.state, b, {row, k}), exact.out[k], bound * (3 + std::abs(exact.out[k])));
    CHECK_NEAR(at(r.to.lse, b, {row}), exact.lse, bound * (1 + std::abs(exact.lse)));
    CHECK_NEAR(at(r.to.energy, b, {row}), exact.energy, bound * (1 + std::abs(exact.energy)));
    const double log_sum = at(r.to.saved.largest, b, {row}) + at(r.to.saved.log_sum, b, {row});
    CHECK_NEAR(log_sum * std::log(2.0) / exact.beta, exact.lse, bound * (1 + std::abs(exact.lse)));
    CHECK_EQUAL(at(r.to.steps, b, {row}), static_cast<double>(s.steps));
    CHECK(at(r.to.converged, b, {row}) <= 1);
  });
  Recall<T, Stored> only(s);
  hopfield::energy(only.in, "softmax", {{}, only.energy.array, only.lse.array, {}, {}, {only.largest.array, only.log_sum.array}});
  each_row(s.batch, s.n, [&](const Index& b, index_t row) {
    if (!looked_at(row)) return;
    const Row exact(r.in, b, row);
    CHECK_NEAR(at(only.to.energy, b, {row}), exact.energy, bound * (1 + std::abs(exact.energy)));
    CHECK_NEAR(at(only.to.lse, b, {row}), exact.lse, bound * (1 + std::abs(exact.lse)));
  });
  for (const Tensor* t : {&r.out, &r.energy, &r.lse, &r.largest, &r.log_sum, &r.steps, &r.converged, &only.energy, &only.lse})
    CHECK(t->gaps_intact() && t->overwritten());
  if (check::failed > before)
    std::printf("  n=%d N=%d d=%d e=%d masked=%.1f steps=%d, %d bytes\n", int(s.n), int(s.N), int(s.d), int(s.e), s.masked, int(s.steps),
                int(sizeof(T)));
}

template <class T>
void sizes() {
  for (index_t N : {0, 1, 47, 48, 49})
    for (index_t d : {1, 7, 16, 33})
      for (index_t n : {0, 1, 5, 24, 25}) compare<T>({{}, n, N, d});
  for (index_t d : {64, 100}) compare<T>({{}, 25, 49, d});
  for (index_t N : {191, 193}) compare<T>({{}, 193, N, 7}), compare<T>({{}, 5, N, 100, 33});
  for (index_t n : {1, 5, 25}) compare<T>({{}, n, 2305, 7}), compare<T>({{}, n, 2305, 16, 33, 2, 0.3});
  compare<T>({{}, 1, 5000, 33, 0, 8}), compare<T>({{}, 25, 5000, 7, 100, 2, 0.5}), compare<T>({{}, 193, 5000, 1});
  compare<T>({{}, 3, 5, 0});   // no width: all patterns weigh the same
  Setting none{{0}, 3, 5, 4};  // no entry at all
  none.state_batch = {0};
  compare<T>(none);
}

template <class T>
void values_and_masks() {
  for (index_t n : {1, 24, 25})
    for (double masked : {0.0, 0.3, 0.98, 1.1})  // 1.1: nothing admissible at all
      for (index_t e : {0, 1, 33}) compare<T>({{}, n, 49, 7, e, 3, masked});
  for (const Index& mask : {Index{49}, {1, 49}, {25, 1}, {1}, {1, 1}, {2, 1, 25, 49}, {3, 1, 49}, {1, 1, 49}}) {
    Setting s{{2, 3}, 25, 49, 7, 5, 3, 0.5};
    s.state_batch = {2, 3};
    s.mask_shape = mask;
    compare<T>(s);
  }
}

template <class T>
void leading_axes_and_layouts() {
  for (layout in : {layout::dense, layout::gaps, layout::reversed, layout::turned})
    for (layout out : {layout::dense, layout::gaps, layout::reversed, layout::turned})
      for (index_t d : {7, 16}) {
        if (std::is_same_v<T, double> && in != out) continue;  // layouts are the same code for both
        Setting s{{2, 3}, 5, 49, d, 16, 2, 0.3, in, out};
        s.state_batch = {2, 1}, s.patterns_batch = {3}, s.values_batch = {2, 1}, s.beta_batch = {3};
        compare<T>(s);
        s.e = 0, s.steps = 3, s.state_batch = {}, s.beta_batch = {2, 1}, s.patterns_batch = {1, 3};
        compare<T>(s);
        s.steps = 1, s.state_batch = {2, 3}, s.patterns_batch = {}, s.mask_shape = {2, 1, 1, 49};
        compare<T>(s);
      }
  for (layout in : {layout::gaps, layout::reversed}) compare<T>({{}, 5, 2305, 16, 7, 2, 0.3, in, in});
}

template <class Stored>
void stored_halves() {
  for (index_t N : {1, 49, 2305})
    for (index_t n : {5, 25})
      compare<float, Stored>({{}, n, N, 16, 7, 0.5}), compare<float, Stored>({{}, n, N, 7, 0, 0.5, 0.3, layout::gaps});
}

}  // namespace

int main() {
  sizes<float>();
  sizes<double>();
  values_and_masks<float>();
  values_and_masks<double>();
  leading_axes_and_layouts<float>();
  leading_axes_and_layouts<double>();
  stored_halves<float16>();
  stored_halves<bfloat16>();
  return check::report();
}
