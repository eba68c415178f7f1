// SPDX-License-Identifier: BSD-3-Clause
/// The root of a decreasing function, and the threshold of a row of scores: tau with sum_i relu(c z_i - tau)^m = 1, which is what
/// sparsemax, entmax and normmax have in common (Peters et al. 2019, arXiv 1905.05702; Blondel et al. 2020, arXiv 1901.02324).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "recollect/math/exp2.hpp"

namespace recollect::math {

template <class W>
struct ValueAndSlope {
  W value, slope;  // the slope's size: the function falls
};

/// Newton's method from `low`, where f >= 0, to `high`, where f <= 0; it bisects wherever a step would leave what is left of the interval.
template <class W, class F>
W falling_root(F&& f, W low, W high, W precision) {
  W x = low;
  for (int i = 0; i < 100 && low < high; ++i) {
    const ValueAndSlope<W> at = f(x);
    if (at.value >= 0) low = x;
    if (at.value <= 0) high = x;
    const W step = at.value / at.slope;
    if (std::abs(step) <= precision * std::abs(x)) return x + step;
    x += step;
    if (!(x > low && x < high)) x = low + (high - low) / 2;
  }
  return x;
}

/// y^m for 0 <= y <= 1 and m > 0.
template <class T, class V>
V power(V y, T m) {
  if (m == T(1)) return y;
  if (m == T(2)) return y * y;
  return exp2<T>(V(m) * log2(y));
}

/// sum_i relu(c z_i - tau)^m - 1. Sums run in packets and every few packets in double: thousands of small weights are added.
template <class T, class V>
ValueAndSlope<double> excess(const T* z, std::int64_t count, T c, T m, T tau) {
  constexpr std::int64_t stretch = 32 * V::width;
  ValueAndSlope<double> total{-1.0, 0.0};
  for (std::int64_t first = 0; first < count; first += stretch) {
    V value(T(0)), slope(T(0));
    for (std::int64_t i = first; i < std::min(first + stretch, count); i += V::width) {
      const V y = max(fma(V(c), V::load(z + i), V(-tau)), V(T(0)));
      const V p = power<T>(y, m);
      value = value + p;
      if (m == T(1))
        slope = slope + where_positive(y, V(T(1)));
      else if (m == T(2))
        slope = slope + y;
      else
        slope = slope + p / max(y, V(std::numeric_limits<T>::min()));
    }
    total.value += static_cast<double>(sum(value));
    total.slope += static_cast<double>(m) * static_cast<double>(sum(slope));
  }
  return total;
}

/// Scores are relative to the largest, which is 0, and padded with -inf to whole packets.
template <class T, class V>
T threshold(const T* z, std::int64_t count, T c, T m) {
  // One weight alone is (-tau)^m; of count weights the largest is at least 1 / count.
  const double high = -std::pow(1.0 / static_cast<double>(count), 1.0 / static_cast<double>(m));
  const auto f = [&](double tau) { return excess<T, V>(z, count, c, m, static_cast<T>(tau)); };
  return static_cast<T>(falling_root<double>(f, -1.0, high, std::numeric_limits<T>::epsilon()));
}

}  // namespace recollect::math
