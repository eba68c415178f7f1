// SPDX-License-Identifier: BSD-3-Clause
/// Separations: how scores z become weights p. Each is p = argmax p.z - Omega(p) over its own set of weights, with the conjugate
/// Omega*(z) = p.z - Omega(p) as (minus) its energy (Santos et al. 2024, arXiv 2411.08590). One struct and one entry in `separations`
/// make a new one known everywhere.
///
/// softmax sees every score. Of the others, a pattern has weight only if its score lies within `window()` of the `kept()`-th largest, so
/// they are asked for the weights of a row's few candidates alone:
///
///     weigh        weights p of scores z relative to the largest, padded with -inf to whole packets; V is a packet of T
///     potential    Omega*(z)
///     pullback     d_z from the weights and d_p, in place
///     margin       a pattern is all that is read, exactly, once its score leads by so much (infinite: never)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string_view>

#include "recollect/core/type_list.hpp"
#include "recollect/math/exp2.hpp"
#include "recollect/math/threshold.hpp"

namespace recollect {

/// What a row of candidates is besides their scores.
template <class W>
struct CandidateRow {
  std::int64_t count;
  W largest;  // what scores are relative to
  W sink = -std::numeric_limits<W>::infinity();
};

/// What a parameter may be.
struct above_one {
  static constexpr const char* expected = "a finite number above 1";
  static bool allows(double number) { return number > 1 && std::isfinite(number); }
};
struct how_many {
  static constexpr const char* expected = "a whole number of at least 1";
  static bool allows(double number) { return number >= 1 && number < 0x1p53 && number == std::floor(number); }
};

inline constexpr double never_exact = std::numeric_limits<double>::infinity();

/// p_i = exp(z_i) / sum_j exp(z_j); Omega* = log sum_j exp(z_j). Scores arrive in units of log 2 and relative to a reference that the sum
/// is later divided by, so that no exponential overflows.
struct softmax {
  static constexpr std::string_view name = "softmax", parameter = "";
  explicit softmax(double = 0) {}
  double margin() const { return never_exact; }

  template <class T, class V>
  static V weight(V relative_score) {
    return math::exp2<T>(relative_score);
  }
};

/// What sparsemax, entmax and normmax share: p_i ~ relu(c z_i - tau)^power with sum_i relu(c z_i - tau)^norm = 1.
struct thresholded {
  double c, power, norm;

  std::int64_t kept() const { return 1; }
  double window() const { return 1 / c; }
  double margin() const { return window(); }

  template <class T, class V, class W>
  void weigh(const T* z, T* p, const CandidateRow<W>& row) const {
    if (power < 1) return weigh_steep(z, p, row);
    const T tau = math::threshold<T, V>(z, row.count, static_cast<T>(c), static_cast<T>(norm));
    for (std::int64_t i = 0; i < row.count; i += V::width)
      math::power<T>(max(fma(V(static_cast<T>(c)), V::load(z + i), V(-tau)), V(T(0))), static_cast<T>(power)).store(p + i);
    normalise(p, row);
  }

 protected:
  template <class T, class W>
  static void normalise(T* p, const CandidateRow<W>& row) {
    W total = 0;
    for (std::int64_t i = 0; i < row.count; ++i) total += static_cast<W>(p[i]);
    for (std::int64_t i = 0; i < row.count; ++i) p[i] = static_cast<T>(static_cast<W>(p[i]) / total);
  }

  /// Weights that are roots of what is above the threshold magnify its rounding: in W, for it is rarely asked for.
  template <class T, class W>
  void weigh_steep(const T* z, T* p, const CandidateRow<W>& row) const {
    const W scale = static_cast<W>(c), exponent = static_cast<W>(norm);
    const auto excess = [&](W tau) {
      math::ValueAndSlope<W> total{-1, 0};
      for (std::int64_t i = 0; i < row.count; ++i) {
        const W y = scale * static_cast<W>(z[i]) - tau;
        if (!(y > 0)) continue;
        const W own = std::pow(y, exponent);
        total.value += own;
        total.slope += exponent * own / y;
      }
      return total;
    };
    const W high = -std::pow(W(1) / static_cast<W>(row.count), 1 / exponent);
    const W tau = math::falling_root<W>(excess, -1, high, std::numeric_limits<W>::epsilon());
    for (std::int64_t i = 0; i < row.count; ++i) {
      const W y = scale * static_cast<W>(z[i]) - tau;
      p[i] = y > 0 ? static_cast<T>(std::pow(y, static_cast<W>(power))) : T(0);
    }
    normalise(p, row);
  }

  /// diag(s) - s s^T / sum s.
  template <class T, class Slope>
  static void centred(const T* p, T* g, std::int64_t count, Slope&& slope) {
    double sum = 0, mean = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const double s = slope(p[i]);
      sum += s;
      mean += s * static_cast<double>(g[i]);
    }
    mean = sum > 0 ? mean / sum : 0;
    for (std::int64_t i = 0; i < count; ++i) g[i] = static_cast<T>(slope(p[i]) * (static_cast<double>(g[i]) - mean));
  }

  /// Thousands of equal numbers are off in the same direction: W is wider than they are.
  template <class W, class T>
  static W power_sum(const T* p, std::int64_t count, double exponent) {
    W total = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const W own = static_cast<W>(p[i]);
      total += exponent == 2 ? own * own : std::pow(own, static_cast<W>(exponent));
    }
    return total;
  }

  template <class W, class T>
  static W expected_score(const T* z, const T* p, const CandidateRow<W>& row) {
    W total = 0;
    for (std::int64_t i = 0; i < row.count; ++i)
      if (p[i] != T(0)) total += static_cast<W>(p[i]) * static_cast<W>(z[i]);
    return total + row.largest;
  }
};

/// Omega(p) = (sum_i p_i^alpha - 1) / (alpha (alpha - 1)), alpha > 1: Tsallis entropy (Peters et al. 2019, arXiv 1905.05702, eq. 5 to 11).
struct entmax : thresholded {
  static constexpr std::string_view name = "entmax", parameter = "alpha";
  using parameter_rule = above_one;
  double alpha;
  explicit entmax(double a) : thresholded{a - 1, 1 / (a - 1), 1 / (a - 1)}, alpha(a) {}

  template <class T, class W>
  W potential(const T* z, const T* p, const CandidateRow<W>& row) const {
    return expected_score(z, p, row) - (power_sum<W>(p, row.count, alpha) - 1) / static_cast<W>(alpha * (alpha - 1));
  }

  template <class T>
  void pullback(const T* p, T* g, std::int64_t count) const {
    centred(p, g, count, [this](T own) {
      if (!(own > T(0))) return 0.0;
      return alpha == 2 ? 1.0 : alpha == 1.5 ? std::sqrt(static_cast<double>(own)) : std::pow(static_cast<double>(own), 2 - alpha);
    });
  }
};

/// entmax with alpha = 2: the projection of z onto the simplex (Martins and Astudillo 2016, arXiv 1602.02068).
struct sparsemax : entmax {
  static constexpr std::string_view name = "sparsemax", parameter = "";
  explicit sparsemax(double = 0) : entmax(2) {}
};

/// entmax with alpha = 1.5.
struct entmax15 : entmax {
  static constexpr std::string_view name = "entmax15", parameter = "";
  explicit entmax15(double = 0) : entmax(1.5) {}
};

/// Omega(p) = |p|_alpha - 1, alpha > 1 (Blondel et al. 2020, arXiv 1901.02324, section 4.3).
struct normmax : thresholded {
  static constexpr std::string_view name = "normmax", parameter = "alpha";
  using parameter_rule = above_one;
  double alpha;
  explicit normmax(double a) : thresholded{1, 1 / (a - 1), a / (a - 1)}, alpha(a) {}

  template <class T, class W>
  W potential(const T* z, const T* p, const CandidateRow<W>& row) const {
    return expected_score(z, p, row) - (std::pow(power_sum<W>(p, row.count, alpha), static_cast<W>(1 / alpha)) - 1);
  }

  /// With y = p / |p|_alpha and s = y^(2 - alpha) / (alpha - 1): h = |p|_alpha (g - g.p), d_z = s h - p sum(s h).
  template <class T>
  void pullback(const T* p, T* g, std::int64_t count) const {
    const double norm_of_p = std::pow(power_sum<double>(p, count, alpha), 1 / alpha);
    double mean = 0, sum = 0;
    for (std::int64_t i = 0; i < count; ++i) mean += static_cast<double>(g[i]) * static_cast<double>(p[i]);
    const auto through = [&](std::int64_t i) {
      if (!(p[i] > T(0))) return 0.0;
      const double s = alpha == 2 ? 1.0 : std::pow(static_cast<double>(p[i]) / norm_of_p, 2 - alpha) / (alpha - 1);
      return s * norm_of_p * (static_cast<double>(g[i]) - mean);
    };
    for (std::int64_t i = 0; i < count; ++i) sum += through(i);
    for (std::int64_t i = 0; i < count; ++i) g[i] = static_cast<T>(through(i) - static_cast<double>(p[i]) * sum);
  }
};

/// p_i = clip(z_i - tau, 0, 1) with sum p = k, Omega(p) = (|p|^2 - k) / 2: k patterns are read, not one (Santos et al. 2024, section 5.1).
struct k_subset {
  static constexpr std::string_view name = "k_subset", parameter = "k";
  using parameter_rule = how_many;
  double k;
  explicit k_subset(double size) : k(size) {}
  std::int64_t kept() const { return static_cast<std::int64_t>(k); }
  double window() const { return 1; }
  double margin() const { return k == 1 ? 1.0 : never_exact; }

  template <class T, class V, class W>
  void weigh(const T* z, T* p, const CandidateRow<W>& row) const {
    if (row.count <= kept()) return static_cast<void>(std::fill_n(p, row.count, T(1)));
    // Relative to the k-th largest, which tau is at most 1 below: the largest may be far above it.
    std::copy_n(z, row.count, p);
    std::nth_element(p, p + (kept() - 1), p + row.count, std::greater<T>());
    const T last = p[kept() - 1];
    const V zero(T(0)), one(T(1));
    const auto excess = [&](double tau) {
      V value = zero, between = zero;
      for (std::int64_t i = 0; i < row.count; i += V::width) {
        const V y = max(V::load(z + i) - V(last) - V(static_cast<T>(tau)), zero), short_of_one = max(one - y, zero);
        value = value + (one - short_of_one);
        between = between + where_positive(y, where_positive(short_of_one, one));
      }
      return math::ValueAndSlope<double>{static_cast<double>(sum(value)) - k, static_cast<double>(sum(between))};
    };
    const T tau = static_cast<T>(math::falling_root<double>(excess, -1.0, 0.0, std::numeric_limits<T>::epsilon()));
    for (std::int64_t i = 0; i < row.count; ++i) p[i] = std::clamp(z[i] - last - tau, T(0), T(1));
  }

  template <class T, class W>
  W potential(const T* z, const T* p, const CandidateRow<W>& row) const {
    W total = 0;
    double size = 0;
    for (std::int64_t i = 0; i < row.count; ++i) {
      const W own = static_cast<W>(p[i]);
      if (p[i] != T(0)) total += own * (static_cast<W>(z[i]) + row.largest) - own * own / 2;
      size += static_cast<double>(p[i]);
    }
    return total + static_cast<W>(std::min(k, std::round(size)) / 2);
  }

  template <class T>
  void pullback(const T* p, T* g, std::int64_t count) const {
    const auto moves = [&](std::int64_t i) { return p[i] > T(0) && p[i] < T(1); };
    double sum = 0, mean = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      sum += moves(i);
      mean += moves(i) ? static_cast<double>(g[i]) : 0.0;
    }
    mean = sum > 0 ? mean / sum : 0;
    for (std::int64_t i = 0; i < count; ++i) g[i] = moves(i) ? static_cast<T>(static_cast<double>(g[i]) - mean) : T(0);
  }
};

/// The softmax of the k largest scores, among equals the lower index first; a sink is one more score of a pattern that reads zeros.
struct top_k_softmax {
  static constexpr std::string_view name = "top_k_softmax", parameter = "k";
  using parameter_rule = how_many;
  double k;
  explicit top_k_softmax(double size) : k(size) {}
  std::int64_t kept() const { return static_cast<std::int64_t>(k); }
  double window() const { return 0; }
  double margin() const { return k == 1 ? 0.0 : never_exact; }

  template <class T, class V, class W>
  void weigh(const T* z, T* p, const CandidateRow<W>& row) const {
    const W sink = row.sink - row.largest, reference = std::max(sink, W(0));
    V total(T(0));
    for (std::int64_t i = 0; i < row.count; i += V::width) {
      const V weight = math::exp2<T>((V::load(z + i) - V(static_cast<T>(reference))) * V(T(1.4426950408889634074)));
      weight.store(p + i);
      total = total + weight;
    }
    const T all = sum(total) + static_cast<T>(std::exp(sink - reference));
    for (std::int64_t i = 0; i < row.count; ++i) p[i] /= all;
  }

  template <class T, class W>
  W potential(const T* z, const T*, const CandidateRow<W>& row) const {
    const W sink = row.sink - row.largest, reference = std::max(sink, W(0));
    W total = std::exp(sink - reference);
    for (std::int64_t i = 0; i < row.count; ++i) total += std::exp(static_cast<W>(z[i]) - reference);
    return row.largest + reference + std::log(total);
  }

  template <class T>
  void pullback(const T* p, T* g, std::int64_t count) const {
    double mean = 0;
    for (std::int64_t i = 0; i < count; ++i) mean += static_cast<double>(g[i]) * static_cast<double>(p[i]);
    for (std::int64_t i = 0; i < count; ++i) g[i] = static_cast<T>(static_cast<double>(p[i]) * (static_cast<double>(g[i]) - mean));
  }
};

/// All weight on the largest score, among equals the lowest index; Omega* = max z. Scores have no gradient.
struct hard {
  static constexpr std::string_view name = "hard", parameter = "";
  explicit hard(double = 0) {}
  std::int64_t kept() const { return 1; }
  double window() const { return 0; }
  double margin() const { return 0; }

  template <class T, class V, class W>
  void weigh(const T*, T* p, const CandidateRow<W>& row) const {
    std::fill_n(p, row.count, T(1));
  }
  template <class T, class W>
  W potential(const T*, const T*, const CandidateRow<W>& row) const {
    return row.largest;
  }
  template <class T>
  void pullback(const T*, T* g, std::int64_t count) const {
    std::fill_n(g, count, T(0));
  }
};

/// p = z, not normalised: the classical, linear associative memory; Omega(p) = |p|^2 / 2.
struct linear {
  static constexpr std::string_view name = "linear", parameter = "";
  explicit linear(double = 0) {}
  std::int64_t kept() const { return 1; }
  double window() const { return std::numeric_limits<double>::infinity(); }
  double margin() const { return never_exact; }

  template <class T, class V, class W>
  void weigh(const T* z, T* p, const CandidateRow<W>& row) const {
    for (std::int64_t i = 0; i < row.count; ++i) p[i] = static_cast<T>(static_cast<W>(z[i]) + row.largest);
  }
  template <class T, class W>
  W potential(const T*, const T* p, const CandidateRow<W>& row) const {
    W total = 0;
    for (std::int64_t i = 0; i < row.count; ++i) total += static_cast<W>(p[i]) * static_cast<W>(p[i]) / 2;
    return total;
  }
  template <class T>
  void pullback(const T*, T*, std::int64_t) const {}
};

using separations = type_list<softmax, sparsemax, entmax15, entmax, normmax, k_subset, top_k_softmax, hard, linear>;

}  // namespace recollect
