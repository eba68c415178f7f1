// SPDX-License-Identifier: BSD-3-Clause
/// Feature maps phi: what keys and queries become before they meet a fast weight matrix. A map has a name, a width, its values and its
/// pullback, on rows that are padded with zeros to whole packets V of numbers T. A map of positive values may give their logarithms
/// and the pullback of these instead, in float64: they are then as large and as small as they like. One struct and one entry in
/// `feature_maps` make a new one known everywhere; a map of one's own works without the entry.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "recollect/core/scratch.hpp"
#include "recollect/core/type_list.hpp"
#include "recollect/math/exp2.hpp"

namespace recollect {

/// What is done to phi(x) before it is used: nothing, divided by its sum (Schlag et al. 2021, eq. 23) or by its length. A divisor of 0
/// makes zeros.
enum class row_norm { none, sum, l2 };

namespace math {

/// e^x for x <= 0, with x log2(e) in two parts: a rounded product would cost a relative error of |x| eps.
template <class T, class V>
constexpr V exp_negative(V x) {
  constexpr T log2_e = static_cast<T>(1.442695040888963407359924681001892137L);
  constexpr T rest = static_cast<T>(1.442695040888963407359924681001892137L - static_cast<long double>(log2_e));
  constexpr T ln_2 = static_cast<T>(0.693147180559945309417232121458176568L);
  x = max(x, V(T(-1000)));  // 2^x is 0 long before, and an infinity would make NaN below
  const V product = x * V(log2_e);
  const V error = fma(x, V(rest), fma(x, V(log2_e), V(T(0)) - product));
  const V power = exp2<T>(product);
  return fma(power * V(ln_2), error, power);
}

}  // namespace math

/// Maps that act on each number alone: Derived has `value(x)` and `slope(x)`, both for packets.
template <class Derived>
struct elementwise_map {
  index_t width(index_t d) const { return d; }

  template <class V, class T>
  void values(const T* x, index_t d, T* phi) const {
    for (index_t k = 0; k < d; k += V::width) Derived::template value<T>(V::load(x + k)).store(phi + k);
  }
  template <class V, class T>
  void pullback(const T* x, index_t d, const T* d_phi, T* d_x) const {
    for (index_t k = 0; k < d; k += V::width) {
      const V slope = Derived::template slope<T>(V::load(x + k));
      (slope * V::load(d_phi + k)).store(d_x + k);
    }
  }
};

/// phi(x) = x
struct identity : elementwise_map<identity> {
  static constexpr std::string_view name = "identity";
  template <class T, class V>
  static constexpr V value(V x) {
    return x;
  }
  template <class T, class V>
  static constexpr V slope(V) {
    return V(T(1));
  }
};

/// phi(x) = max(x, 0); slope 0 at 0.
struct relu : elementwise_map<relu> {
  static constexpr std::string_view name = "relu";
  template <class T, class V>
  static constexpr V value(V x) {
    return max(x, V(T(0)));
  }
  template <class T, class V>
  static constexpr V slope(V x) {
    return where_positive(x, V(T(1)));
  }
};

/// phi(x) = max(x, 0)^2
struct squared_relu : elementwise_map<squared_relu> {
  static constexpr std::string_view name = "squared_relu";
  template <class T, class V>
  static constexpr V value(V x) {
    const V r = max(x, V(T(0)));
    return r * r;
  }
  template <class T, class V>
  static constexpr V slope(V x) {
    const V r = max(x, V(T(0)));
    return r + r;
  }
};

/// phi(x) = x + 1 where x > 0 and e^x elsewhere (Katharopoulos et al. 2020, eq. 7), never as elu(x) + 1, which cancels.
struct elu1 : elementwise_map<elu1> {
  static constexpr std::string_view name = "elu1";
  template <class T, class V>
  static constexpr V below(V x) {
    const V zero(T(0));
    return math::exp_negative<T>(zero - max(zero - x, zero));
  }
  template <class T, class V>
  static constexpr V value(V x) {
    return max(x, V(T(0))) + below<T>(x);
  }
  template <class T, class V>
  static constexpr V slope(V x) {
    return below<T>(x);
  }
};

/// phi(x) = x / |x|, and 0 for x = 0.
struct l2 {
  static constexpr std::string_view name = "l2";
  index_t width(index_t d) const { return d; }

  template <class V, class T>
  static T inverse_norm(const T* x, index_t d) {
    V largest(T(0)), total(T(0));
    for (index_t k = 0; k < d; k += V::width) largest = max(largest, max(V::load(x + k), V(T(0)) - V::load(x + k)));
    const T size = largest_of(largest);
    if (!(size > 0)) return 0;
    for (index_t k = 0; k < d; k += V::width) {
      const V part = V::load(x + k) / V(size);
      total = fma(part, part, total);
    }
    return 1 / (size * std::sqrt(sum(total)));
  }

  template <class V, class T>
  void values(const T* x, index_t d, T* phi) const {
    const V factor(inverse_norm<V>(x, d));
    for (index_t k = 0; k < d; k += V::width) (V::load(x + k) * factor).store(phi + k);
  }
  /// (g - phi (g . phi)) / |x|
  template <class V, class T>
  void pullback(const T* x, index_t d, const T* d_phi, T* d_x) const {
    const V factor(inverse_norm<V>(x, d));
    V along(T(0));
    for (index_t k = 0; k < d; k += V::width) along = fma(V::load(x + k) * factor, V::load(d_phi + k), along);
    const V part(sum(along));
    for (index_t k = 0; k < d; k += V::width) (factor * (V::load(d_phi + k) - V::load(x + k) * factor * part)).store(d_x + k);
  }

 private:
  template <class V>
  static auto largest_of(V x) {
    return largest(x);
  }
};

/// phi(x) = e^x / sum e^x
struct softmax_map {
  static constexpr std::string_view name = "softmax";
  index_t width(index_t d) const { return d; }

  template <class V, class T>
  void values(const T* x, index_t d, T* phi) const {
    T top = x[0], total = 0;
    for (index_t k = 1; k < d; ++k) top = x[k] > top ? x[k] : top;
    for (index_t k = 0; k < d; k += V::width) math::exp_negative<T>(V::load(x + k) - max(V(top), V::load(x + k))).store(phi + k);
    for (index_t k = 0; k < d; ++k) total += phi[k];
    for (index_t k = 0; k < d; ++k) phi[k] = (x[k] == x[k] ? phi[k] : x[k]) / total;
  }
  /// phi (g - g . phi)
  template <class V, class T>
  void pullback(const T* x, index_t d, const T* d_phi, T* d_x) const {
    values<V>(x, d, d_x);
    T mean = 0;
    for (index_t k = 0; k < d; ++k) mean += d_x[k] * d_phi[k];
    for (index_t k = 0; k < d; ++k) d_x[k] *= d_phi[k] - mean;
  }
};

/// Deterministic parameter-free projection (Schlag et al. 2021, eq. 37): with r = [max(x, 0); max(-x, 0)] of length 2d,
/// phi_{(j - 1) 2d + i} = r_i r_{(i + j) mod 2d} for j = 1 .. nu.
struct dpfp {
  static constexpr std::string_view name = "dpfp";
  index_t nu = 1;
  index_t width(index_t d) const { return 2 * d * nu; }

  template <class V, class T>
  void values(const T* x, index_t d, T* phi) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const T* r = twice(x, d, scratch);
    for (index_t j = 1; j <= nu; ++j)
      for (index_t i = 0; i < 2 * d; ++i) phi[(j - 1) * 2 * d + i] = r[i] * r[i + j % (2 * d)];
  }
  template <class V, class T>
  void pullback(const T* x, index_t d, const T* d_phi, T* d_x) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const T* r = twice(x, d, scratch);
    T* d_r = scratch.take<T>(4 * d);
    std::fill(d_r, d_r + 4 * d, T(0));
    for (index_t j = 1; j <= nu; ++j) {
      const T* g = d_phi + (j - 1) * 2 * d;
      const index_t step = j % (2 * d);
      for (index_t i = 0; i < 2 * d; ++i) d_r[i] += g[i] * r[i + step];
      for (index_t i = 0; i < 2 * d; ++i) d_r[i + step] += g[i] * r[i];
    }
    for (index_t k = 0; k < d; ++k) d_x[k] = (x[k] > 0 ? d_r[k] + d_r[2 * d + k] : T(0)) - (x[k] < 0 ? d_r[d + k] + d_r[3 * d + k] : T(0));
  }

 private:
  /// r and once more r, so that a shift needs no modulus.
  template <class T>
  static const T* twice(const T* x, index_t d, Scratch& scratch) {
    T* r = scratch.take<T>(4 * d);
    for (index_t k = 0; k < d; ++k) {
      r[k] = r[2 * d + k] = x[k] <= 0 ? T(0) : x[k];
      r[d + k] = r[3 * d + k] = x[k] >= 0 ? T(0) : -x[k];
    }
    return r;
  }
};

/// Positive random features (Choromanski et al. 2021): with x' = d^(-1/4) x, phi = [exp(R x' - |x'|^2/2); exp(-R x' - |x'|^2/2)] /
/// sqrt(2m), whose products estimate exp(q . k / sqrt(d)). R has m rows; the caller draws it. For long rows these are numbers of no
/// type, which is why the map gives their logarithms.
struct favor {
  static constexpr std::string_view name = "favor";
  const double* matrix = nullptr;  // (m, d), contiguous
  index_t features = 0;            // m
  index_t width(index_t) const { return 2 * features; }

  template <class V>
  void logarithms(const double* x, index_t d, double* log_phi) const {
    const double scale = temper(d);
    double square = 0;
    for (index_t k = 0; k < d; ++k) square += x[k] * x[k];
    const double below = (square * scale * scale + std::log(2.0 * static_cast<double>(features))) / 2;
    for (index_t j = 0; j < features; j += block) {
      V sums[block] = {V(0.0), V(0.0), V(0.0), V(0.0)};
      double scores[block];
      const double* rows[block];
      for (index_t i = 0; i < block; ++i) rows[i] = matrix + std::min(j + i, features - 1) * d;
      index_t k = 0;
      for (; k + V::width <= d; k += V::width)
        for (index_t i = 0; i < block; ++i) sums[i] = fma(V::load(rows[i] + k), V::load(x + k), sums[i]);
      for (index_t i = 0; i < block && k < d; ++i) sums[i] = fma(V::load_some(rows[i] + k, d - k), V::load(x + k), sums[i]);
      lane_sums(sums, scores);
      for (index_t i = 0; i < block && j + i < features; ++i) {
        log_phi[j + i] = scores[i] * scale - below;
        log_phi[features + j + i] = -scores[i] * scale - below;
      }
    }
  }

  /// sum_j l+_j (r_j - x') + l-_j (-r_j - x'), times d^(-1/4), for the gradients l of log phi
  template <class V>
  void pull_logarithms(const double* x, index_t d, const double* d_log, double* d_x) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    double* weights = scratch.take<double>(features + block);
    std::fill_n(weights + features, block, 0.0);
    const double scale = temper(d);
    double total = 0;
    for (index_t j = 0; j < features; ++j) {
      weights[j] = d_log[j] - d_log[features + j];
      total += d_log[j] + d_log[features + j];
    }
    for (index_t k = 0; k < d; k += V::width) {
      V sums[block] = {V(0.0), V(0.0), V(0.0), V(0.0)};
      for (index_t j = 0; j < features; j += block)
        for (index_t i = 0; i < block; ++i) {
          const double* row = matrix + std::min(j + i, features - 1) * d + k;
          sums[i] = fma(V(weights[j + i]), k + V::width <= d ? V::load(row) : V::load_some(row, d - k), sums[i]);
        }
      const V all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      (V(scale) * (all - V(total * scale) * V::load(x + k))).store(d_x + k);
    }
  }

 private:
  static constexpr index_t block = 4;  // sums at a time
  static double temper(index_t d) { return std::pow(static_cast<double>(d), -0.25); }
};

using feature_maps = type_list<identity, relu, elu1, squared_relu, softmax_map, l2, dpfp, favor>;

}  // namespace recollect
