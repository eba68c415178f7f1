// SPDX-License-Identifier: BSD-3-Clause
/// Fast weights against the recurrence as it is written down: every rule, with and without decays, at any chunk and any strides, the same
/// bits for any number of threads; gradients against finite differences; what a wrong call is told.
#include "hopfield_oracle.hpp"

#include "recollect/core/parallel.hpp"
#include "recollect/ops/fast_weight.hpp"
#include "recollect/ops/feature_map.hpp"

using namespace oracle;
using fast_weight::rule;

namespace {

constexpr std::string_view op = "fastweight.test";

/// A map of one's own, in no list.
struct doubled {
  index_t width(index_t d) const { return 2 * d; }
  template <class V, class T>
  void values(const T* x, index_t d, T* phi) const {
    for (index_t k = 0; k < d; ++k) phi[k] = x[k], phi[d + k] = T(0.5) * x[k];
  }
  template <class V, class T>
  void pullback(const T*, index_t d, const T* d_phi, T* d_x) const {
    for (index_t k = 0; k < d; ++k) d_x[k] = d_phi[k] + T(0.5) * d_phi[d + k];
  }
};

/// One that gives its logarithms: phi(x) = e^(1000 x), a number of no type.
struct steep {
  index_t width(index_t d) const { return d; }
  template <class V>
  void logarithms(const double* x, index_t d, double* log_phi) const {
    for (index_t k = 0; k < d; ++k) log_phi[k] = 1000 * x[k];
  }
  template <class V>
  void pull_logarithms(const double*, index_t d, const double* d_log, double* d_x) const {
    for (index_t k = 0; k < d; ++k) d_x[k] = 1000 * d_log[k];
  }
};

struct Setup {
  fast_weight::rule rule = rule::delta;
  bool erase = false, by_token = false, by_channel = false, with_state = true;
  index_t heads = 2, tokens = 11, keys = 5, values = 7, chunk = 64;
  layout how = layout::dense;
};

template <class T>
struct Problem {
  Setup s;
  Tensor query, key, value, beta, a, b, decay, channel_decay, scale, state, out, end, written, checkpoints;
  fast_weight::operands in{};
  fast_weight::parameters p{};

  explicit Problem(const Setup& setup) : s(setup) {
    const index_t H = s.heads, n = s.tokens, K = s.keys, V = s.values;
    const auto make = [&](Tensor& t, const Index& shape, unsigned seed, double size) {
      t = Tensor::make<T>(shape, s.how);
      fill(t, seed, size);
    };
    make(query, {H, n, K}, 1, 0.5);
    const double size = 0.8 / std::sqrt(static_cast<double>(K));  // so that the state does not grow
    make(key, {H, n, K}, 2, size);
    make(value, {H, n, V}, 3, 1);
    make(beta, {H, n}, 4, 0.5);
    make(a, {H, n, K}, 5, size);
    make(b, {H, n, K}, 6, size);
    make(decay, {H, n}, 7, 1);
    make(channel_decay, {H, n, K}, 8, 1);
    make(state, {H, K, V}, 9, 1);
    for (Tensor* t : {&decay, &channel_decay})  // into (0, 1]
      t->each([&](const Index&, unsigned char* place) {
        T x;
        std::memcpy(&x, place, sizeof x);
        x = static_cast<T>(1 / (1 + x * x));
        std::memcpy(place, &x, sizeof x);
      });
    scale = Tensor::make<double>({});
    put(scale.array.data, dtype::float64, 0.7);
    p.rule = s.rule;
    p.chunk = s.chunk;
    in = {query.array, key.array, value.array, {}, {}, {}, {}, {}, scale.array, {}};
    if (s.rule == rule::delta) in.beta = beta.array;
    if (s.rule == rule::general) in.b = b.array;
    if (s.erase) in.a = a.array;
    if (s.by_token) in.decay = decay.array;
    if (s.by_channel) in.channel_decay = channel_decay.array;
    if (s.with_state) in.state = state.array;
    out = Tensor::make<T>({H, n, V}, s.how);
    end = Tensor::make<T>({H, K, V}, s.how);
    written = Tensor::make<T>({H, n, V});
    checkpoints = Tensor::make<T>({H, fast_weight::chunks_of(n, s.chunk), K, V});
  }

  void run() { fast_weight::forward(op, in, identity{}, row_norm::none, p, {out.array, end.array, {written.array, checkpoints.array}}); }

  double at(const Tensor& t, const Index& index) const {
    index_t offset = 0;
    for (std::size_t i = 0; i < index.size(); ++i) offset += index[i] * t.array.strides[i];
    return static_cast<double>(static_cast<const T*>(t.array.data)[offset]);
  }

  /// The recurrence, token by token: (outputs, last state) of one head.
  std::pair<std::vector<double>, std::vector<double>> naive(index_t h) const {
    const index_t K = s.keys, V = s.values;
    std::vector<double> S(K * V), all;
    for (index_t k = 0; k < K; ++k)
      for (index_t v = 0; v < V; ++v) S[k * V + v] = s.with_state ? at(state, {h, k, v}) : 0;
    for (index_t t = 0; t < s.tokens; ++t) {
      const auto D = [&](index_t k) { return s.by_token ? at(decay, {h, t}) : s.by_channel ? at(channel_decay, {h, t, k}) : 1.0; };
      std::vector<double> u(V, 0);
      for (index_t k = 0; k < K; ++k)
        for (index_t v = 0; v < V; ++v)
          u[v] += (s.rule == rule::delta ? -D(k) * at(key, {h, t, k}) : s.rule == rule::general ? at(b, {h, t, k}) : 0) * S[k * V + v];
      for (index_t k = 0; k < K; ++k) {
        const double writes = at(key, {h, t, k}) * (s.rule == rule::delta ? at(beta, {h, t}) : 1);
        const double erases = s.rule == rule::sum ? 0 : s.erase ? at(a, {h, t, k}) : writes;
        for (index_t v = 0; v < V; ++v) S[k * V + v] = D(k) * S[k * V + v] + erases * u[v] + writes * at(value, {h, t, v});
      }
      for (index_t v = 0; v < V; ++v) {
        double read = 0;
        for (index_t k = 0; k < K; ++k) read += at(query, {h, t, k}) * S[k * V + v];
        all.push_back(0.7 * read);
      }
    }
    return {all, S};
  }

  void compare(double bound) {
    run();
    for (index_t h = 0; h < s.heads; ++h) {
      const auto [outputs, S] = naive(h);
      for (index_t t = 0; t < s.tokens; ++t)
        for (index_t v = 0; v < s.values; ++v) CHECK_NEAR(at(out, {h, t, v}), outputs[t * s.values + v], bound);
      for (index_t k = 0; k < s.keys; ++k)
        for (index_t v = 0; v < s.values; ++v) CHECK_NEAR(at(end, {h, k, v}), S[k * s.values + v], bound);
    }
    CHECK(out.gaps_intact() && end.gaps_intact());
  }
};

template <class F>
void each_setup(F&& f) {
  for (const auto& [which, erase] : {std::pair{rule::sum, false}, {rule::delta, false}, {rule::general, false}, {rule::general, true}})
    for (int decays = 0; decays < 3; ++decays) f(Setup{.rule = which, .erase = erase, .by_token = decays == 1, .by_channel = decays == 2});
}

void values_are_those_of_the_recurrence() {
  each_setup([](Setup s) {
    for (const layout how : {layout::dense, layout::gaps, layout::reversed, layout::turned}) {
      s.how = how;
      Problem<double>(s).compare(1e-12);
      Problem<float>(s).compare(2e-5);
    }
    s.how = layout::dense;
    for (const index_t chunk : {1, 3, 4, 8}) {
      s.chunk = chunk;
      Problem<double>(s).compare(1e-12);
    }
    for (const auto& [tokens, keys, values] : {std::array<index_t, 3>{1, 16, 16}, {4, 3, 32}, {70, 33, 40}, {5, 1, 1}, {0, 4, 4}}) {
      s.chunk = 64;
      s.tokens = tokens, s.keys = keys, s.values = values;
      s.with_state = tokens % 2 == 0;
      Problem<double>(s).compare(1e-10);
    }
  });
}

/// Few tokens on a dense state are read and written where they lie; the state may be changed in place.
void a_state_can_be_changed_in_place() {
  for (const index_t tokens : {1, 3, 9}) {
    Problem<double> fresh({.tokens = tokens, .keys = 6, .values = 16}), same({.tokens = tokens, .keys = 6, .values = 16});
    fresh.run();
    fast_weight::forward(op, same.in, identity{}, row_norm::none, same.p, {same.out.array, same.state.array, {}});
    CHECK(fresh.out.bytes == same.out.bytes);
    CHECK(fresh.end.bytes == same.state.bytes);
  }
}

template <class T>
std::vector<unsigned char> everything(Problem<T>& problem) {
  problem.run();
  std::vector<unsigned char> all = problem.out.bytes;
  all.insert(all.end(), problem.end.bytes.begin(), problem.end.bytes.end());
  Tensor d_query = Tensor::make<T>({problem.s.heads, problem.s.tokens, problem.s.keys}), d_key = d_query, d_state = problem.end;
  d_query.array.data = d_query.bytes.data();
  d_key.array.data = d_key.bytes.data();
  d_state.array.data = d_state.bytes.data();
  fast_weight::gradients to{};
  to.query = d_query.array;
  to.key = d_key.array;
  to.state = d_state.array;
  fast_weight::backward(op, problem.in, identity{}, row_norm::none, problem.p, {problem.written.array, problem.checkpoints.array},
                        problem.out.array, {}, to);
  for (const Tensor* t : {&d_query, &d_key, &d_state}) all.insert(all.end(), t->bytes.begin(), t->bytes.end());
  return all;
}

void bits_do_not_depend_on_threads() {
  each_setup([](Setup s) {
    s.heads = 5, s.tokens = 40, s.keys = 17, s.values = 48, s.chunk = 16;
    Problem<float> problem(s);
    set_num_threads(1);
    const auto one = everything(problem);
    for (const int threads : {2, 3, 7}) {
      set_num_threads(threads);
      CHECK(everything(problem) == one);
    }
    set_num_threads(2);
  });
}

/// sum(out * weights) for fixed weights, and its gradient by an operand.
void gradients_are_differences() {
  each_setup([](Setup s) {
    s.heads = 1, s.tokens = 6, s.keys = 3, s.values = 2, s.chunk = 4;
    Problem<double> problem(s);
    Tensor weights = Tensor::make<double>({1, 6, 2}), state_weights = Tensor::make<double>({1, 3, 2});
    fill(weights, 20, 1);
    fill(state_weights, 21, 1);
    const auto loss = [&] {
      problem.run();
      double total = 0;
      const auto add = [&](const Tensor& x, const Tensor& w) {
        for (index_t i = 0; i < w.array.size(); ++i)
          total += static_cast<const double*>(x.array.data)[i] * static_cast<const double*>(w.array.data)[i];
      };
      add(problem.out, weights);
      add(problem.end, state_weights);
      return total;
    };
    std::vector<std::pair<Tensor*, Array fast_weight::gradients::*>> operands = {{&problem.query, &fast_weight::gradients::query},
                                                                                 {&problem.key, &fast_weight::gradients::key},
                                                                                 {&problem.value, &fast_weight::gradients::value},
                                                                                 {&problem.scale, &fast_weight::gradients::scale},
                                                                                 {&problem.state, &fast_weight::gradients::state}};
    if (s.rule == rule::delta) operands.push_back({&problem.beta, &fast_weight::gradients::beta});
    if (s.rule == rule::general) operands.push_back({&problem.b, &fast_weight::gradients::b});
    if (s.erase) operands.push_back({&problem.a, &fast_weight::gradients::a});
    if (s.by_token) operands.push_back({&problem.decay, &fast_weight::gradients::decay});
    if (s.by_channel) operands.push_back({&problem.channel_decay, &fast_weight::gradients::channel_decay});
    loss();
    for (const auto& [operand, field] : operands) {
      Tensor gradient = *operand;
      gradient.array.data = gradient.bytes.data();
      fast_weight::gradients to{};
      to.*field = gradient.array;
      loss();
      fast_weight::backward(op, problem.in, identity{}, row_norm::none, problem.p, {problem.written.array, problem.checkpoints.array},
                            weights.array, state_weights.array, to);
      double* x = static_cast<double*>(operand->array.data);
      for (index_t i = 0; i < operand->array.size(); ++i) {
        const double kept = x[i], step = 1e-6;
        x[i] = kept + step;
        const double above = (x[i] > 1 && (operand == &problem.decay || operand == &problem.channel_decay)) ? NAN : loss();
        x[i] = kept - step;
        const double below = loss();
        x[i] = kept;
        if (above == above) CHECK_NEAR(static_cast<double*>(gradient.array.data)[i], (above - below) / (2 * step), 1e-6);
      }
    }
  });
}

void a_map_of_ones_own_works() {
  Problem<double> problem({.rule = rule::sum, .with_state = false, .tokens = 3, .keys = 2});
  Tensor out = Tensor::make<double>({2, 3, 7});
  fast_weight::forward(op, problem.in, doubled{}, row_norm::none, problem.p, {out.array, {}, {}});
  problem.run();  // phi(q) . phi(k) = 1.25 q . k
  for (index_t i = 0; i < out.array.size(); ++i)
    CHECK_NEAR(static_cast<double*>(out.array.data)[i], 1.25 * static_cast<double*>(problem.out.array.data)[i], 1e-12);
}

/// Normalised, only the factors are seen that keys have beside each other: the output is that of the largest phi(q) . phi(k).
void features_may_be_numbers_of_no_type() {
  Problem<float> problem({.rule = rule::sum, .with_state = false, .keys = 4});
  problem.p.normalise = fast_weight::normalisation::outputs;
  CHECK(fast_weight::columns_behind(steep{}, 4, row_norm::none, problem.p) == 2);
  CHECK(fast_weight::columns_behind(steep{}, 4, row_norm::sum, problem.p) == 1);
  CHECK(fast_weight::columns_behind(doubled{}, 4, row_norm::none, problem.p) == 1);
  Tensor end = Tensor::make<float>({2, 4, 9});
  fast_weight::forward(op, problem.in, steep{}, row_norm::none, problem.p, {problem.out.array, end.array, {}});
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t < problem.s.tokens; ++t)
      for (index_t v = 0; v < problem.s.values; ++v) {
        double top = -1e300, total = 0, sum = 0;
        const auto each = [&](auto&& f) {
          for (index_t s = 0; s <= t; ++s)
            for (index_t k = 0; k < 4; ++k) f(s, 1000 * (problem.at(problem.query, {h, t, k}) + problem.at(problem.key, {h, s, k})));
        };
        each([&](index_t, double x) { top = std::max(top, x); });
        each([&](index_t s, double x) {
          total += std::exp(x - top);
          sum += std::exp(x - top) * problem.at(problem.value, {h, s, v});
        });
        CHECK_NEAR(problem.at(problem.out, {h, t, v}), 0.7 * sum / total, 1e-5);
      }
}

void wrong_calls_are_told() {
  Problem<double> problem({.by_token = true});
  auto in = problem.in;
  const auto run = [&] { fast_weight::forward(op, in, identity{}, row_norm::none, problem.p, {problem.out.array, {}, {}}); };
  in.state = problem.query.array;
  CHECK_FAILS(value, "fastweight.test: state has shape (2, 11, 5); expected (..., K=5, 7)", run());
  in = problem.in;
  in.value = {};
  CHECK_FAILS(value, "fastweight.test: value is missing", run());
  in = problem.in;
  static_cast<double*>(problem.decay.array.data)[3] = 1.5;
  CHECK_FAILS(value, "fastweight.test: decay is 1.5; expected a number above 0 and at most 1", run());
  static_cast<double*>(problem.decay.array.data)[3] = 0;
  CHECK_FAILS(value, "fastweight.test: decay is 0.0; expected a number above 0 and at most 1", run());
  static_cast<double*>(problem.decay.array.data)[3] = 0.5;
  problem.p.chunk = 0;
  CHECK_FAILS(value, "fastweight.test: chunk is 0; expected a number of 1 or more", run());
}

}  // namespace

int main() {
  values_are_those_of_the_recurrence();
  a_state_can_be_changed_in_place();
  bits_do_not_depend_on_threads();
  gradients_are_differences();
  a_map_of_ones_own_works();
  features_may_be_numbers_of_no_type();
  wrong_calls_are_told();
  return check::report();
}
