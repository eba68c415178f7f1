// SPDX-License-Identifier: BSD-3-Clause
/// Weights of rows of scores, and their gradient, on the CPU; the contract is in spec/weights.hpp.
#pragma once

#include "recollect/core/parallel.hpp"
#include "recollect/ops/recall_checks.hpp"
#include "recollect/ops/support.hpp"
#include "recollect/spec/weights.hpp"

namespace recollect::weights {

namespace detail {

using namespace recollect::detail;

inline constexpr index_t grain = 32;

/// f(row of each array) for all rows, some at a time.
template <std::size_t Count, class F>
void for_rows(const Shapes& shapes, const std::array<Array, Count>& arrays, F&& f) {
  Axes axes;
  for (int axis = 0; axis < shapes.batch_rank(); ++axis) axes.add(shapes.batch_extent(axis));
  axes.add(shapes.extent('n'));
  const index_t rows = axes.count();
  parallel_for((rows + grain - 1) / grain, [&](index_t task) {
    for (index_t r = task * grain; r < std::min((task + 1) * grain, rows); ++r) {
      std::array<index_t, Count> offsets;
      for (std::size_t i = 0; i < Count; ++i) {
        Strides strides{};
        std::copy_n(arrays[i].strides.begin(), axes.rank, strides.begin());
        offsets[i] = axes.offset(r, strides);
      }
      f(offsets);
    }
  });
}

/// 2^x of packets, relative to the largest.
template <class T>
void softmax_row(const T* z, index_t count, T largest, T* p) {
  using P = Packet<T>;
  constexpr T unit = T(1.44269504088896340735992468100189214L);
  P total(T(0));
  for (index_t i = 0; i < padded<T>(count); i += P::width) {
    const P weight = math::exp2<T>((P::load(z + i) - P(largest)) * P(unit));
    weight.store(p + i);
    total = total + weight;
  }
  const T whole = sum(total);
  for (index_t i = 0; i < count; ++i) p[i] /= whole;
}

/// The weights of one row, padded with -inf; its scores become relative to the largest. Candidates are found as in a recall.
template <class T, class Separation>
void weigh_row(const Separation& separation, T* z, index_t count, T* p) {
  constexpr T never = -std::numeric_limits<T>::infinity();
  T largest = never;
  bool strange = false;
  for (index_t i = 0; i < count; ++i) {
    largest = std::max(largest, z[i]);
    strange |= z[i] != z[i];
  }
  std::fill_n(p, padded<T>(count), T(0));
  if (strange || largest == std::numeric_limits<T>::infinity()) {
    for (index_t i = 0; i < count; ++i) p[i] = z[i] == never ? T(0) : std::numeric_limits<T>::quiet_NaN();
    return;
  }
  if (largest == never) return;
  if constexpr (std::is_same_v<Separation, softmax>) {
    softmax_row(z, count, largest, p);
  } else {
    const auto rule = SupportRule<T>::of(separation);
    Candidates<T> near(rule);
    for (index_t i = 0; i < count; ++i) z[i] -= largest;
    near.offer(z, count, 0);
    near.shrink();
    const index_t found = near.size(), room = padded<T>(found);
    const Scratch::Frame frame(Scratch::local());
    T *own = Scratch::local().take<T>(room), *weight = Scratch::local().take<T>(room);
    for (index_t i = 0; i < found; ++i) own[i] = near.scores()[i];
    std::fill(own + found, own + room, never);
    rule.weigh(own, weight, CandidateRow<wider<T>>{found, static_cast<wider<T>>(largest)});
    for (index_t i = 0; i < found; ++i) p[near.numbers()[i]] = weight[i];
  }
}

/// d_p becomes d_z in place.
template <class T, class Separation>
void pull_row(const Separation& separation, const T* p, T* g, index_t count) {
  if constexpr (std::is_same_v<Separation, softmax>) {
    double mean = 0;
    for (index_t i = 0; i < count; ++i)
      if (p[i] != T(0)) mean += static_cast<double>(p[i]) * static_cast<double>(g[i]);
    for (index_t i = 0; i < count; ++i)
      g[i] = p[i] == T(0) ? T(0) : static_cast<T>(static_cast<double>(p[i]) * (static_cast<double>(g[i]) - mean));
  } else if constexpr (std::is_same_v<Separation, linear>) {
    separation.pullback(p, g, count);
  } else {
    const Scratch::Frame frame(Scratch::local());
    T *weight = Scratch::local().take<T>(count), *own = Scratch::local().take<T>(count);
    index_t found = 0;
    for (index_t i = 0; i < count; ++i) {
      if (p[i] == T(0)) continue;
      weight[found] = p[i];
      own[found++] = g[i];
    }
    separation.pullback(weight, own, found);
    for (index_t i = 0, next = 0; i < count; ++i) g[i] = p[i] == T(0) ? T(0) : own[next++];
  }
}

}  // namespace detail

/// weights (..., n, m) from scores of the same shape.
inline void forward(std::string_view op, const ConstArray& scores, const choice& separation, const Array& out) {
  using namespace detail;
  check_given(op, "scores", scores);
  const ConstArray list[] = {scores};
  const Shapes shapes(op, recollect::weights::shapes, list);
  const index_t m = shapes.extent('m');
  check_output(op, "out", out, scores.type, shapes, {shapes.extent('n'), m});
  const Array from = as_output(scores);
  visit_separation(op, separation, 'm', m, [&](const auto& chosen) {
    visit_arithmetic(scores.type, [&]<class T>() {
      for_rows(shapes, std::array{from, out}, [&](const std::array<index_t, 2>& at) {
        const Scratch::Frame frame(Scratch::local());
        T *z = Scratch::local().take<T>(padded<T>(m)), *p = Scratch::local().take<T>(padded<T>(m));
        const T* row = static_cast<const T*>(scores.data) + at[0];
        T* to = static_cast<T*>(out.data) + at[1];
        for (index_t i = 0; i < padded<T>(m); ++i)
          z[i] = i < m ? row[i * from.strides[from.rank - 1]] : -std::numeric_limits<T>::infinity();
        weigh_row(chosen, z, m, p);
        for (index_t i = 0; i < m; ++i) to[i * out.strides[out.rank - 1]] = p[i];
      });
    });
  });
}

/// d_scores from the weights and their cotangent: on the support alone, but for linear.
inline void backward(std::string_view op, const ConstArray& weights, const choice& separation, const ConstArray& d_weights,
                     const Array& d_scores) {
  using namespace detail;
  check_given(op, "weights", weights);
  check_given(op, "d_weights", d_weights);
  const ConstArray list[] = {weights, d_weights};
  const Shapes shapes(op, gradient_shapes, list);
  const index_t m = shapes.extent('m');
  const std::array arrays{as_output(weights), as_output(d_weights), d_scores};
  for (const Array& array : arrays) check_output(op, "an array", array, weights.type, shapes, {shapes.extent('n'), m});
  visit_separation(op, separation, 'm', m, [&](const auto& chosen) {
    visit_arithmetic(weights.type, [&]<class T>() {
      for_rows(shapes, arrays, [&](const std::array<index_t, 3>& at) {
        const Scratch::Frame frame(Scratch::local());
        T *p = Scratch::local().take<T>(m), *g = Scratch::local().take<T>(m);
        const auto read = [&](int array, T* to) {
          const index_t step = arrays[array].strides[arrays[array].rank - 1];
          for (index_t i = 0; i < m; ++i) to[i] = (static_cast<const T*>(arrays[array].data) + at[array])[i * step];
        };
        read(0, p);
        read(1, g);
        pull_row(chosen, p, g, m);
        for (index_t i = 0; i < m; ++i) (static_cast<T*>(d_scores.data) + at[2])[i * d_scores.strides[d_scores.rank - 1]] = g[i];
      });
    });
  });
}

}  // namespace recollect::weights
