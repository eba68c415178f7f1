// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of retrieve and energy. Two independent witnesses: the derivative along a direction by the plain equations (for all sizes,
/// <d_out, J u> = <J^T d_out, u>), and central differences of the library's own forward pass (small, in double).
#include <algorithm>

#include "hopfield_oracle.hpp"
#include "recollect/core/parallel.hpp"
#include "recollect/ops/hopfield.hpp"

using namespace oracle;

namespace {

struct Setting {
  Index state_batch{}, patterns_batch{}, values_batch{}, beta_batch{}, batch{};
  index_t n, N, d, e = 0;
  double masked = 0;
  Index mask_shape{};
  layout how = layout::dense;
};

Index joined(Index a, std::initializer_list<index_t> b) {
  a.insert(a.end(), b);
  return a;
}

enum op { retrieve, energy };

template <class T, class Stored = T>
struct Problem {
  Setting s;
  op which;
  Tensor operand[4], mask, out, energy_out, largest, log_sum, d_out;  // operands: state, patterns, values, beta
  Tensor gradient[4], direction[4];
  hopfield::operands in;

  Problem(const Setting& setting, op which_) : s(setting), which(which_) {
    const Index shape[] = {joined(s.state_batch, {s.n, s.d}), joined(s.patterns_batch, {s.N, s.d}),
                           joined(s.values_batch, {s.N, s.e}), s.beta_batch};
    operand[0] = Tensor::make<T>(shape[0], s.how), operand[3] = Tensor::make<double>(shape[3], s.how);
    for (int i : {1, 2}) operand[i] = Tensor::make<Stored>(shape[i], s.how);
    for (int i = 0; i < 4; ++i) {
      gradient[i] = i < 3 ? Tensor::make<T>(shape[i], s.how) : Tensor::make<double>(shape[i], s.how);
      direction[i] = Tensor::make<double>(shape[i]);
      fill(operand[i], 10 + i, i == 1 && std::is_same_v<T, Stored> ? 2 / std::sqrt(static_cast<double>(s.d)) : 1);
      fill(direction[i], 20 + i, 1);
    }
    operand[3].each([&](const Index&, unsigned char* place) { put(place, dtype::float64, 1.5 + 0.5 * number(place, dtype::float64)); });
    mask = Tensor::make<bool>(s.mask_shape.empty() ? Index{s.n, s.N} : s.mask_shape, s.how);
    fill_mask(mask, 5, 1 - s.masked);
    in = {operand[0].array, operand[1].array, s.e ? operand[2].array : Array{}, operand[3].array, s.masked > 0 ? mask.array : Array{}};
    out = Tensor::make<T>(joined(s.batch, {s.n, s.e ? s.e : s.d}), s.how);
    for (Tensor* t : {&energy_out, &largest, &log_sum}) *t = Tensor::make<T>(joined(s.batch, {s.n}), s.how);
    d_out = which == retrieve ? out : energy_out;
    d_out.array.data = d_out.bytes.data() + (static_cast<unsigned char*>((which == retrieve ? out : energy_out).array.data) -
                                             (which == retrieve ? out : energy_out).bytes.data());
    fill(d_out, 6, 1);
  }

  void forward() {
    if (which == retrieve) hopfield::retrieve(in, {}, {out.array, {}, {}, {}, {}, {largest.array, log_sum.array}});
    else hopfield::energy(in, "softmax", {{}, energy_out.array, {}, {}, {}, {largest.array, log_sum.array}});
  }

  bool has(int i) const { return i != 2 || (s.e > 0 && which == retrieve); }

  /// The gradients that `wanted` has a bit for, into poisoned memory.
  void backward(int wanted = 15) {
    for (Tensor& t : gradient) std::fill(t.bytes.begin(), t.bytes.end(), poison);
    const auto to = [&](int i) { return wanted >> i & 1 && has(i) ? gradient[i].array : Array{}; };
    const hopfield::gradients d_in{to(0), to(1), to(2), to(3), {}};
    const hopfield::saved saved{largest.array, log_sum.array};
    if (which == retrieve) hopfield::retrieve_backward(in, "softmax", saved, out.array, d_out.array, d_in);
    else hopfield::energy_backward(in, "softmax", saved, d_out.array, d_in);
  }

  /// <d_out, J u> for u in operand i alone, by the equations; and the sum of what it is made of without signs.
  std::pair<double, double> along(int i) const {
    double total = 0, size = 0;
    each_row(s.batch, s.n, [&](const Index& b, index_t r) {
      const Row row(in, b, r);
      if (row.count == 0) return;
      const auto u = [&](int of, index_t a, index_t k) { return i == of ? at(direction[of].array, b, {a, k}) : 0.0; };
      const double d_beta = i == 3 ? at(direction[3].array, b, {}) : 0.0;
      const int values = s.e ? 2 : 1;
      std::vector<double> d_score(static_cast<std::size_t>(row.N), 0);
      double mean = 0;
      for (index_t j = 0; j < row.N; ++j) {
        if (!row.admitted[j]) continue;
        for (index_t k = 0; k < row.d; ++k)
          d_score[j] += d_beta * row.x[j * row.d + k] * row.q[k] + row.beta * (u(1, j, k) * row.q[k] + row.x[j * row.d + k] * u(0, r, k));
        mean += row.weight[j] * d_score[j];
      }
      const auto add = [&](double term) { total += term, size += std::abs(term); };
      if (which == energy) {
        const double g = at(d_out.array, b, {r}), log_count = std::log(static_cast<double>(row.count));
        add(-g * mean / row.beta), add(g * row.lse * d_beta / row.beta), add(-g * log_count * d_beta / (row.beta * row.beta));
        for (index_t k = 0; k < row.d; ++k) add(g * row.q[k] * u(0, r, k));
        return;
      }
      for (index_t j = 0; j < row.N; ++j)
        for (index_t k = 0; row.admitted[j] && k < row.e; ++k)
          add(at(d_out.array, b, {r, k}) * row.weight[j] * ((d_score[j] - mean) * row.v[j * row.e + k] + u(values, j, k)));
    });
    return {total, size};
  }

  double inner(int i) const {
    double total = 0;
    gradient[i].each([&](const Index& index, unsigned char* place) {
      total += number(place, gradient[i].array.type) * at(direction[i].array, index, {});
    });
    return total;
  }
};

template <class T, class Stored = T>
void adjoint(const Setting& s) {
  const int before = check::failed;
  for (op which : {retrieve, energy}) {
    Problem<T, Stored> p(s, which);
    p.forward();
    p.backward();
    for (int i = 0; i < 4; ++i) {
      if (!p.has(i)) continue;
      CHECK(p.gradient[i].overwritten() && p.gradient[i].gaps_intact());
      const auto [exact, size] = p.along(i);
      CHECK_NEAR(p.inner(i), exact, (std::is_same_v<T, float> ? 2e-6 : 3e-15) * (size + 1e-3));
    }
    if (check::failed > before)
      std::printf("  %s n=%d N=%d d=%d e=%d masked=%.1f, %d bytes\n", which == retrieve ? "retrieve" : "energy", int(s.n), int(s.N),
                  int(s.d), int(s.e), s.masked, int(sizeof(T)));
  }
}

template <class T>
void sizes() {
  for (index_t N : {0, 1, 49})
    for (index_t n : {0, 1, 25})
      for (index_t d : {1, 7, 16}) adjoint<T>({{}, {}, {}, {}, {}, n, N, d}), adjoint<T>({{}, {}, {}, {}, {}, n, N, d, 5, 0.5});
  for (index_t n : {97, 193}) adjoint<T>({{}, {}, {}, {}, {}, n, 193, 33}), adjoint<T>({{}, {}, {}, {}, {}, n, 48, 7, 33, 0.3});
  adjoint<T>({{}, {}, {}, {}, {}, 5, 2305, 16}), adjoint<T>({{}, {}, {}, {}, {}, 2, 5000, 7, 16, 0.3});
  adjoint<T>({{}, {}, {}, {}, {}, 3, 47, 100, 64}), adjoint<T>({{}, {}, {}, {}, {}, 25, 9, 7, 5, 1.1});
  adjoint<T>({{0}, {}, {}, {}, {0}, 3, 5, 4, 2});  // no entry at all: zeros for what is shared
}

template <class T>
void leading_axes_and_layouts() {
  for (layout how : {layout::dense, layout::gaps, layout::reversed, layout::turned})
    for (index_t e : {0, 16}) {
      adjoint<T>({{2, 1}, {3}, {2, 1}, {3}, {2, 3}, 5, 9, 7, e, 0.4, {2, 1, 1, 9}, how});
      adjoint<T>({{2, 3}, {}, {}, {2, 1}, {2, 3}, 5, 9, 16, e, 0.4, {5, 1}, how});
      adjoint<T>({{}, {3}, {3}, {}, {3}, 5, 49, 16, e, 0.95, {3, 5, 49}, how});
      adjoint<T>({{}, {2, 3}, {2, 1}, {2, 3}, {2, 3}, 1, 9, 4, e, 0, {}, how});
      adjoint<T>({{66}, {66}, {1}, {66}, {66}, 3, 5, 4, e, 0, {}, how});
    }
}

/// Every derivative by central differences of the forward pass; rows that see nothing take no part.
void differences(const Setting& s) {
  for (op which : {retrieve, energy}) {
    Problem<double> p(s, which);
    p.forward();
    p.backward();
    const Tensor& result = which == retrieve ? p.out : p.energy_out;
    const auto loss = [&] {
      p.forward();
      double total = 0;
      result.each([&](const Index& index, unsigned char* place) {
        const double value = number(place, dtype::float64);
        if (std::isfinite(value)) total += value * at(p.d_out.array, index, {});
      });
      return total;
    };
    for (int i = 0; i < 4; ++i) {
      if (!p.has(i)) continue;
      p.operand[i].each([&](const Index& index, unsigned char* place) {
        const double value = number(place, dtype::float64), h = 1e-5;
        put(place, dtype::float64, value + h);
        const double above = loss();
        put(place, dtype::float64, value - h);
        const double below = loss();
        put(place, dtype::float64, value);
        // M^2 / 2 is a constant in the gradient, by the contract.
        if (which == energy && i == 1) return;
        CHECK_NEAR(at(p.gradient[i].array, index, {}), (above - below) / (2 * h), 2e-8);
      });
    }
  }
}

template <class T>
void the_same_bits() {
  const Setting settings[] = {{{}, {}, {}, {}, {}, 193, 193, 33, 7, 0.3}, {{}, {}, {}, {}, {}, 3, 2305, 16}, {{2, 3}, {3}, {}, {}, {2, 3}, 5, 49, 7, 5}};
  for (const Setting& s : settings)
    for (op which : {retrieve, energy}) {
      Problem<T> p(s, which);
      set_num_threads(1);
      p.forward();
      p.backward();
      std::vector<std::vector<unsigned char>> expected;
      for (const Tensor& t : p.gradient) expected.push_back(t.bytes);
      for (int threads : {2, 3, 7, 64}) {
        set_num_threads(threads);
        p.backward();
        for (int i = 0; i < 4; ++i) CHECK(p.gradient[i].bytes == expected[i]);
      }
      for (int wanted = 0; wanted < 16; ++wanted) {  // what else is wanted makes no difference
        p.backward(wanted);
        for (int i = 0; i < 4; ++i) CHECK((wanted >> i & 1 && p.has(i) ? p.gradient[i].bytes == expected[i] : !p.gradient[i].overwritten()));
      }
    }
}

}  // namespace

int main() {
  sizes<float>();
  sizes<double>();
  leading_axes_and_layouts<float>();
  leading_axes_and_layouts<double>();
  adjoint<float, float16>({{}, {}, {}, {}, {}, 25, 49, 7, 5, 0.3});
  adjoint<float, bfloat16>({{2}, {}, {}, {}, {2}, 5, 193, 16, 0, 0.3, {5, 193}, layout::gaps});
  differences({{2, 1}, {3}, {2, 1}, {3}, {2, 3}, 3, 5, 4, 2, 0.6});
  differences({{2}, {}, {}, {2}, {2}, 3, 5, 4, 0, 0.6, {2, 3, 5}});
  the_same_bits<float>();
  the_same_bits<double>();
  return check::report();
}
