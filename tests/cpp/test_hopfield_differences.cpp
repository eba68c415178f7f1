// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of retrieve and energy against central differences of the library's own forward pass, entry by entry; and what must not
/// change a bit of them: the number of threads, and which of them are wanted.
#include "hopfield_gradient_problem.hpp"

#include "recollect/core/parallel.hpp"

using namespace oracle;

namespace {

/// Every derivative by central differences of the forward pass; rows that see nothing take no part.
void differences(const Setting& s) {
  for (Op which : {retrieve, energy}) {
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
      if (!p.has(i) || (which == energy && i == 1)) continue;  // M^2 / 2 is a constant in the gradient, by the contract
      p.operand[i].each([&](const Index& index, unsigned char* place) {
        const double value = number(place, dtype::float64), h = 1e-5;
        put(place, dtype::float64, value + h);
        const double above = loss();
        put(place, dtype::float64, value - h);
        const double below = loss();
        put(place, dtype::float64, value);
        CHECK_NEAR(at(p.gradient[i].array, index, {}), (above - below) / (2 * h), 2e-8);
      });
    }
  }
}

std::vector<unsigned char> untouched(const Tensor& t) { return std::vector<unsigned char>(t.bytes.size(), poison); }

template <class T>
void the_same_bits() {
  const Setting settings[] = {
      {{}, {}, {}, {}, {}, 193, 193, 33, 7, 0.3}, {{}, {}, {}, {}, {}, 3, 2305, 16}, {{2, 3}, {3}, {}, {}, {2, 3}, 5, 49, 7, 5}};
  for (const Setting& s : settings)
    for (Op which : {retrieve, energy}) {
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
        for (int i = 0; i < 4; ++i) CHECK(p.gradient[i].bytes == (wanted >> i & 1 && p.has(i) ? expected[i] : untouched(p.gradient[i])));
      }
    }
}

}  // namespace

int main() {
  differences({{2, 1}, {3}, {2, 1}, {3}, {2, 3}, 3, 5, 4, 2, 0.6});
  differences({{2}, {}, {}, {2}, {2}, 3, 5, 4, 0, 0.6, {2, 3, 5}});
  the_same_bits<float>();
  the_same_bits<double>();
  return check::report();
}
