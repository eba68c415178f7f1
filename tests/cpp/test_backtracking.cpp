// SPDX-License-Identifier: BSD-3-Clause
/// Sparse attentive backtracking: the packets and products it is made of, the recurrence against plain loops, its gradient against
/// differences, what no gradient may reach, and the same bits for any number of threads.
#include "check.hpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "recollect/ops/backtracking.hpp"

using namespace recollect;

namespace {

std::mt19937_64 random_bits(7);

template <class T>
std::vector<T> normal(index_t count, double size = 1) {
  std::normal_distribution<double> draw(0, size);
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& x : numbers) x = static_cast<T>(draw(random_bits));
  return numbers;
}

template <class T>
double ulps(T got, long double exact) {
  const T near = static_cast<T>(exact);
  const long double ulp = std::nextafter(std::abs(near), std::numeric_limits<T>::infinity()) - std::abs(near);
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) / ulp);
}

template <class T>
void functions() {
  using P = Packet<T>;
  double worst_tanh = 0, worst_sigmoid = 0;
  T lanes[P::width];
  for (int i = -40000; i <= 40000; ++i) {
    const T x = static_cast<T>(i < 0 ? -1 : 1) * std::pow(T(2), static_cast<T>(std::abs(i) / 2000.0 - 14)) * (i == 0 ? T(0) : T(1));
    math::tanh<T>(P(x)).store(lanes);
    worst_tanh = std::max(worst_tanh, ulps(lanes[0], std::tanh(static_cast<long double>(x))));
    math::sigmoid<T>(P(x)).store(lanes);
    const long double exact = 1 / (1 + std::exp(-static_cast<long double>(x)));
    if (exact > std::numeric_limits<T>::min() * 2) worst_sigmoid = std::max(worst_sigmoid, ulps(lanes[0], exact));
  }
  CHECK_NEAR(worst_tanh, 0, 4);
  // The argument of the exponential is rounded to within x eps.
  CHECK(worst_sigmoid < 200);
  const T infinity = std::numeric_limits<T>::infinity();
  for (T x : {infinity, -infinity, T(1000), T(-1000), T(0)}) {
    math::tanh<T>(P(x)).store(lanes);
    CHECK_EQUAL(lanes[0], std::tanh(x));
    math::sigmoid<T>(P(x)).store(lanes);
    CHECK_NEAR(lanes[0], x > 0 ? 1 : x < 0 ? 0 : 0.5, 1e-30);
  }
  math::tanh<T>(P(std::numeric_limits<T>::quiet_NaN())).store(lanes);
  CHECK(std::isnan(lanes[0]));
  math::sigmoid<T>(P(std::numeric_limits<T>::quiet_NaN())).store(lanes);
  CHECK(std::isnan(lanes[0]));
}

template <class T>
void products() {
  const double eps = std::numeric_limits<T>::epsilon();
  for (index_t depth : {1, 7, 33})
    for (index_t columns : {1, 5, 16, 47, 48, 50, 97})
      for (index_t rows : {1, 3, 8, 19}) {
        const auto a = normal<T>(rows * depth), b = normal<T>(columns * depth);
        std::vector<T> turned(b.size()), c(rows * columns, T(1)), d = c;
        for (index_t k = 0; k < depth; ++k)
          for (index_t j = 0; j < columns; ++j) turned[k * columns + j] = b[j * depth + k];
        detail::PackedMatrix<T>(b.data(), depth, columns, true).multiply(rows, {a.data(), depth, 1}, c.data(), columns);
        detail::PackedMatrix<T>(turned.data(), depth, columns, false).multiply(rows, {a.data(), depth, 1}, d.data(), columns);
        CHECK(c == d);
        for (index_t r = 0; r < rows; ++r)
          for (index_t j = 0; j < columns; ++j) {
            double sum = 1;
            for (index_t k = 0; k < depth; ++k) sum += static_cast<double>(a[r * depth + k]) * b[j * depth + k];
            CHECK_NEAR(c[r * columns + j], sum, 40 * eps * static_cast<double>(depth));
          }
      }
  for (index_t depth : {0, 3, 5000}) {
    const index_t m = 300, n = 3;
    const auto a = normal<T>(depth * m), b = normal<T>(depth * n);
    std::vector<T> c(m * n, T(9));
    detail::parallel_gradient_product(depth, a.data(), m, b.data(), n, c.data());
    for (index_t i = 0; i < m; i += 37) {
      double product = 0;
      for (index_t k = 0; k < depth; ++k) product += static_cast<double>(a[k * m + i]) * b[k * n + 1];
      CHECK_NEAR(c[i * n + 1], product, 1e4 * eps);
    }
  }
}

/// Keys of every size side by side, prepared, score as they do by the definition, each with the same bits as if it were alone; and w3
/// may be of any size.
template <class T>
void scores() {
  const double eps = std::numeric_limits<T>::epsilon();
  const double sizes[] = {1e-3, 0.2, 1.5, 3.0, 30.0};
  const index_t rows = 23;
  for (index_t width : {1, 15, 64, 70, 130})
    for (double q_size : sizes)
      for (double w_size : {1e-12, 1.0, 1e12}) {
        std::vector<T> keys;
        for (index_t i = 0; i < rows; ++i) {
          const auto key = i < 3 ? std::vector<T>(width, static_cast<T>(5 * i)) : normal<T>(width, sizes[i * i % 5]);
          keys.insert(keys.end(), key.begin(), key.end());
        }
        const auto q = q_size == 3.0 ? std::vector<T>(width, T(5)) : normal<T>(width, q_size), w = normal<T>(width, w_size);
        const backtracking::EasedScores<T> eased(w.data(), width, rows);
        for (index_t i = 0; i < rows; ++i) eased.prepare(i, keys.data() + i * width);
        std::vector<T> all(rows);
        eased.score(0, rows, keys.data(), q.data(), all.data());
        for (index_t i = 0; i < rows; ++i) {
          const T* p = keys.data() + i * width;
          double exact = 0, size = 0;
          for (index_t a = 0; a < width; ++a) {
            const double t = std::tanh(static_cast<double>(p[a]) + q[a]);
            exact += w[a] * t;
            size += std::abs(w[a]) *
                    std::min(1.0, std::abs(t) + 0.1 * (std::abs(static_cast<double>(p[a])) + std::abs(static_cast<double>(q[a]))));
          }
          T alone = 0;
          eased.score(i, 1, p, q.data(), &alone);
          CHECK_EQUAL(all[i], alone);
          CHECK_NEAR(all[i], exact, 60 * eps * (size + 1e-30));
          CHECK_NEAR(backtracking::additive_score::of(p, q.data(), w.data(), width), exact, 60 * eps * (size + 1e-30));
        }
      }
}

/// A whole problem with its memory; `forward` and `backward` run it.
template <class T>
struct Network {
  index_t B, S, D, H, A, G, C, k;
  const char* cell;
  backtracking::options how;
  std::vector<T> x, weight_ih, weight_hh, bias_ih, bias_hh, w1, w2, w3, zeros, states, keys, gates, hhat, h, carry, weights, total, outputs;
  std::vector<index_t> indices;
  std::vector<T> d_x, d_by[7];

  Network(const char* name, index_t B, index_t S, index_t D, index_t H, index_t A, backtracking::options options)
      : B(B), S(S), D(D), H(H), A(A), G(std::strcmp(name, "gru") ? 4 : 3), cell(name), how(options) {
    const bool released = how.form == backtracking::rule::released;
    if (released) this->A = A = 1;
    C = (released ? 1 : 0) + S / how.k_att;
    k = how.k_top < 0 ? C : how.k_top;
    x = normal<T>(B * S * D), weight_ih = normal<T>(G * H * D, 0.4), weight_hh = normal<T>(G * H * H, 1 / std::sqrt(double(H)));
    bias_ih = normal<T>(G * H, 0.2), bias_hh = normal<T>(G * H, 0.2), zeros.assign(B * H, T(0));
    w1 = normal<T>(released ? 0 : A * H, 0.4), w2 = normal<T>(released ? 0 : A * H, 0.4), w3 = normal<T>(released ? 2 * H : A);
    states.assign(B * C * H, T(0)), keys.assign(B * C * A, T(0)), gates.resize(B * S * 4 * H), hhat.resize(B * S * H);
    h = hhat, carry = hhat, weights.resize(B * S * k), indices.resize(B * S * (k + 1)), total.resize(B * S), outputs.resize(B * S * 2 * H);
  }

  backtracking::inputs in() const { return {{x.data(), {B, S, D}}, {zeros.data(), {B, H}}, {zeros.data(), {B, H}}}; }
  backtracking::parameters by() const {
    backtracking::parameters p{{weight_ih.data(), {G * H, D}},
                               {weight_hh.data(), {G * H, H}},
                               {bias_ih.data(), {G * H}},
                               {bias_hh.data(), {G * H}},
                               {},
                               {},
                               {w3.data(), {static_cast<index_t>(w3.size())}}};
    if (!w1.empty()) p.w1 = {w1.data(), {A, H}}, p.w2 = {w2.data(), {A, H}};
    return p;
  }
  backtracking::memory kept() { return {{states.data(), {B, C, H}}, {keys.data(), {B, C, A}}, how.form == backtracking::rule::released}; }
  backtracking::tape tape() {
    return {{gates.data(), {B, S, 4 * H}},   {hhat.data(), {B, S, H}},    {h.data(), {B, S, H}}, {carry.data(), {B, S, H}},
            {indices.data(), {B, S, k + 1}}, {weights.data(), {B, S, k}}, {total.data(), {B, S}}};
  }

  void forward() { backtracking::forward(cell, in(), by(), kept(), how, {outputs.data(), {B, S, 2 * H}}, tape()); }

  void backward(const std::vector<T>& d_outputs) {
    const std::vector<T>* operands[] = {&weight_ih, &weight_hh, &bias_ih, &bias_hh, &w1, &w2, &w3};
    for (int i = 0; i < 7; ++i) d_by[i].assign(operands[i]->size(), T(77));
    d_x.assign(x.size(), T(77));
    backtracking::parameter_gradients to{{d_by[0].data(), {G * H, D}},
                                         {d_by[1].data(), {G * H, H}},
                                         {d_by[2].data(), {G * H}},
                                         {d_by[3].data(), {G * H}},
                                         {},
                                         {},
                                         {d_by[6].data(), {static_cast<index_t>(w3.size())}}};
    if (!w1.empty()) to.w1 = {d_by[4].data(), {A, H}}, to.w2 = {d_by[5].data(), {A, H}};
    const backtracking::tape on = tape();
    backtracking::backward(cell, in(), by(), kept(), how, {on.gates, on.hhat, on.h, on.carry, on.indices, on.weights, on.total},
                           {d_outputs.data(), {B, S, 2 * H}}, {d_x.data(), {B, S, D}}, to);
  }

  std::vector<T>* parameter(int i) {
    std::vector<T>* all[] = {&weight_ih, &weight_hh, &bias_ih, &bias_hh, &w1, &w2, &w3, &x};
    return all[i];
  }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// One row of the batch by the equations, in double.
template <class T>
std::vector<double> by_definition(const Network<T>& n, index_t b) {
  const bool released = n.how.form == backtracking::rule::released, lstm = n.G == 4;
  const index_t H = n.H;
  std::vector<std::vector<double>> memory;
  if (released) memory.emplace_back(H, 0.0);
  std::vector<double> h(H, 0.0), carry(H, 0.0), out, hhat(H), s(H);
  for (index_t t = 1; t <= n.S; ++t) {
    std::vector<double> in(n.G * H), back(n.G * H);
    for (index_t g = 0; g < n.G * H; ++g) {
      in[g] = n.bias_ih[g], back[g] = n.bias_hh[g];
      for (index_t d = 0; d < n.D; ++d) in[g] += double(n.weight_ih[g * n.D + d]) * n.x[(b * n.S + t - 1) * n.D + d];
      for (index_t u = 0; u < H; ++u) back[g] += double(n.weight_hh[g * H + u]) * h[u];
    }
    for (index_t u = 0; u < H; ++u) {
      const auto sum = [&](index_t g) { return in[g * H + u] + back[g * H + u]; };
      if (lstm) {
        carry[u] = sigmoid(sum(1)) * carry[u] + sigmoid(sum(0)) * std::tanh(sum(2));
        hhat[u] = sigmoid(sum(3)) * std::tanh(carry[u]);
      } else {
        const double z = sigmoid(sum(1)), fresh = std::tanh(in[2 * H + u] + sigmoid(sum(0)) * back[2 * H + u]);
        carry[u] = hhat[u] = (1 - z) * fresh + z * carry[u];
      }
    }
    const index_t last = static_cast<index_t>(memory.size());
    const index_t first = n.how.max_memories ? std::max<index_t>(0, last - n.how.max_memories) : 0, N = last - first;
    std::vector<double> a(N), w(N, 0.0);
    for (index_t i = 0; i < N; ++i)
      for (index_t j = 0; j < (released ? 2 * H : n.A); ++j) {
        double inner = 0;
        if (released) inner = j < H ? hhat[j] : memory[first + i][j - H];
        for (index_t u = 0; !released && u < H; ++u) inner += n.w1[j * H + u] * memory[first + i][u] + n.w2[j * H + u] * hhat[u];
        a[i] += n.w3[j] * std::tanh(inner);
      }
    const index_t k = n.how.k_top < 0 ? std::max<index_t>(N, 1) : n.how.k_top;
    std::vector<index_t> order(N);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) { return a[i] > a[j]; });
    double total = 0;
    if (k > 0 && N <= k) {
      for (index_t i = 0; i < N; ++i) total += w[i] = released ? a[i] : std::exp(a[i]);
      for (index_t i = 0; i < N && !released; ++i) w[i] /= total;
    } else if (k > 0) {
      const double tau = released ? a[order[k - 1]] + 1e-7 : a[order[k]];
      for (index_t i = 0; i < k; ++i) total += w[order[i]] = std::max(0.0, a[order[i]] - tau);
      for (double& each : w) each /= total + (released ? 1e-7 : 0);
    }
    std::fill(s.begin(), s.end(), 0.0);
    for (index_t i = 0; i < N; ++i)
      for (index_t u = 0; u < H; ++u) s[u] += w[i] * memory[first + i][u];
    for (index_t u = 0; u < H; ++u) h[u] = hhat[u] + s[u];
    if (t % n.how.k_att == 0) memory.push_back(h);
    out.insert(out.end(), h.begin(), h.end());
    out.insert(out.end(), s.begin(), s.end());
  }
  return out;
}

backtracking::options options(index_t k_top, index_t k_att, index_t k_trunc, index_t most = 0, bool reminders = true,
                              bool released = false) {
  return {k_top, k_att, k_trunc, 0, most, reminders, released ? backtracking::rule::released : backtracking::rule::paper};
}

void recurrences() {
  for (const char* cell : {"lstm", "gru"})
    for (index_t H : {3, 17, 200})  // the last one is split by columns
      for (const backtracking::options& how : {options(2, 1, 3), options(3, 2, 0), options(-1, 1, 0), options(0, 1, 4), options(2, 1, 3, 4),
                                               options(3, 2, 3, 0, true, true), options(40, 1, 0)}) {
        Network<double> n(cell, H > 100 ? 3 : 5, 14, 4, H, 6, how);
        n.forward();
        for (index_t b = 0; b < n.B; ++b) {
          const std::vector<double> exact = by_definition(n, b);
          for (index_t i = 0; i < n.S * 2 * H; ++i) CHECK_NEAR(n.outputs[b * n.S * 2 * H + i], exact[i], 1e-9 * (1 + std::abs(exact[i])));
        }
      }
}

void gradients() {
  for (const char* cell : {"lstm", "gru"})
    for (index_t H : {5, 190})
      for (const backtracking::options& how :
           {options(2, 1, 0), options(3, 2, 0, 4), options(-1, 2, 0), options(0, 1, 0), options(3, 1, 0, 0, true, true)}) {
        Network<double> n(cell, 3, 9, 4, H, 6, how);
        n.forward();
        const std::vector<double> cotangent = normal<double>(n.B * n.S * 2 * H);
        n.backward(cotangent);
        const auto loss = [&] {
          n.forward();
          return std::inner_product(cotangent.begin(), cotangent.end(), n.outputs.begin(), 0.0);
        };
        for (int which = 0; which < 8; ++which) {
          std::vector<double>& numbers = *n.parameter(which);
          for (int trial = 0; trial < (numbers.empty() ? 0 : 3); ++trial) {
            double& number = numbers[random_bits() % numbers.size()];
            const double before = number, step = 1e-6, got = (which < 7 ? n.d_by[which] : n.d_x)[&number - numbers.data()];
            number = before + step;
            const double above = loss();
            number = before - step;
            const double difference = (above - loss()) / (2 * step);
            number = before;
            CHECK_NEAR(got, difference, 2e-4 * (1 + std::abs(difference)));
          }
        }
      }
}

/// Without reminders a gradient stays in its window, exactly.
void locality() {
  for (const char* cell : {"lstm", "gru"}) {
    Network<double> n(cell, 2, 12, 3, 6, 5, options(2, 1, 4, 0, false));
    n.forward();
    std::vector<double> cotangent(n.B * n.S * 2 * n.H, 0.0);
    for (index_t u = 0; u < n.H; ++u) cotangent[6 * 2 * n.H + u] = 1;  // the first row, step 7 of the window 5 to 8
    n.backward(cotangent);
    for (index_t b = 0; b < n.B; ++b)
      for (index_t t = 1; t <= n.S; ++t)
        for (index_t d = 0; d < n.D; ++d) CHECK_EQUAL(n.d_x[(b * n.S + t - 1) * n.D + d] != 0, b == 0 && t >= 5 && t <= 7);
    n.how.reminders = true;
    n.forward();
    n.backward(cotangent);
    CHECK(n.d_x[0] != 0 || n.d_x[2 * n.D] != 0);
  }
}

template <class T>
void threads() {
  for (index_t H : {20, 300}) {
    Network<T> n("lstm", 21, 12, 4, H, 16, options(3, 1, 4));
    const std::vector<T> cotangent = normal<T>(n.B * n.S * 2 * H);
    std::vector<std::vector<T>> first;
    for (int count : {1, 2, 5}) {
      set_num_threads(count);
      n.forward();
      n.backward(cotangent);
      std::vector<std::vector<T>> now{n.outputs, n.d_x};
      for (const auto& d : n.d_by) now.push_back(d);
      if (first.empty()) first = now;
      CHECK(first == now);
    }
  }
  set_num_threads(2);
}

void errors() {
  Network<double> n("lstm", 2, 5, 3, 4, 6, options(2, 1, 3));
  n.cell = "tanh";
  CHECK_FAILS(value, "backtracking: cell is 'tanh'; expected 'lstm' or 'gru'", n.forward());
  n.cell = "gru";
  CHECK_FAILS(value, "backtracking: weight_ih has shape (16, 3); expected (G H=12, D=3)", n.forward());
  n.cell = "lstm";
  n.how.k_att = 0;
  CHECK_FAILS(value, "backtracking: k_att is 0; expected at least 1", n.forward());
  n.how.k_att = 2;
  CHECK_FAILS(value, "backtracking: states has shape (2, 5, 4); expected (B=2, C=2, H=4)", n.forward());
}

}  // namespace

int main() {
  functions<float>(), functions<double>();
  products<float>(), products<double>();
  scores<float>(), scores<double>();
  recurrences();
  gradients();
  locality();
  threads<float>(), threads<double>();
  errors();
  return check::report();
}
