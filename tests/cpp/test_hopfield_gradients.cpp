// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of retrieve and energy along a direction, for all sizes and layouts: <d_out, J u> = <J^T d_out, u>, the left side by the
/// plain equations. Gradients lie in poisoned memory with gaps.
#include "hopfield_gradient_problem.hpp"

using namespace oracle;

namespace {

template <class T, class Stored = T>
void adjoint(const Setting& s) {
  const int before = check::failed;
  for (Op which : {retrieve, energy}) {
    Problem<T, Stored> p(s, which);
    p.forward();
    p.backward();
    for (int i = 0; i < 4; ++i) {
      if (!p.has(i)) continue;
      CHECK(p.gradient[i].overwritten() && p.gradient[i].gaps_intact());
      const auto [exact, size] = p.along(i);
      CHECK_NEAR(p.inner(i), exact, (std::is_same_v<T, float> ? 2e-6 : 4e-15) * (size + 1e-3));
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

}  // namespace

int main() {
  sizes<float>();
  sizes<double>();
  leading_axes_and_layouts<float>();
  leading_axes_and_layouts<double>();
  adjoint<float, float16>({{}, {}, {}, {}, {}, 25, 49, 7, 5, 0.3});
  adjoint<float, bfloat16>({{2}, {}, {}, {}, {2}, 5, 193, 16, 0, 0.3, {5, 193}, layout::gaps});
  return check::report();
}
