// SPDX-License-Identifier: BSD-3-Clause
/// A feature map as the kernels call it: rows in, rows out, whatever map it is and however its values are normalised.
#pragma once

#include <limits>

#include "recollect/core/prefetch.hpp"
#include "recollect/math/feature_map.hpp"
#include "recollect/ops/stored.hpp"

namespace recollect {

namespace detail {

/// A map that gives log phi instead of phi.
template <class Map>
concept logarithmic_map =
    requires(const Map& map, const double* x, double* y) { map.template logarithms<Packet<double>>(x, index_t{}, y); };

/// phi_k = e^(log phi_k - shift); what is beyond the width is 0.
template <class T>
void exponentials(const double* log_phi, index_t width, double shift, T* phi) {
  using P = Packet<T>;
  for (index_t k = 0; k < width; ++k) phi[k] = static_cast<T>(log_phi[k] - shift);
  for (index_t k = width; k < padded<T>(width); ++k) phi[k] = -std::numeric_limits<T>::infinity();
  for (index_t k = 0; k < width; k += P::width) math::exp_negative<T>(P::load(phi + k)).store(phi + k);
}

/// The largest number; NaN if the first one is.
inline double largest_of(const double* numbers, index_t count) {
  double top = numbers[0];
  for (index_t k = 1; k < count; ++k) top = numbers[k] > top ? numbers[k] : top;
  return top;
}

/// Rows are padded with zeros: x to padded(d), phi to padded(width).
template <class T>
class RowMap {
  using P = Packet<T>;

 public:
  template <class Map>
  RowMap(const Map& map, index_t d, row_norm norm)
      : map_(&map), d_(d), width_(map.width(d)), norm_(norm), plain_(std::is_same_v<Map, identity>) {
    if constexpr (logarithmic_map<Map>) {
      using D = Packet<double>;
      logarithms_ = [](const void* m, const double* x, index_t n, double* y) {
        static_cast<const Map*>(m)->template logarithms<D>(x, n, y);
      };
      pull_logarithms_ = [](const void* m, const double* x, index_t n, const double* d_y, double* d_x) {
        static_cast<const Map*>(m)->template pull_logarithms<D>(x, n, d_y, d_x);
      };
    } else {
      values_ = [](const void* m, const T* x, index_t n, T* phi) { static_cast<const Map*>(m)->template values<P>(x, n, phi); };
      pullback_ = [](const void* m, const T* x, index_t n, const T* d_phi, T* d_x) {
        static_cast<const Map*>(m)->template pullback<P>(x, n, d_phi, d_x);
      };
    }
  }

  index_t width() const { return width_; }
  index_t d() const { return d_; }
  /// phi(x) = x: nothing needs to be kept for the pullback.
  bool plain() const { return plain_ && norm_ == row_norm::none; }
  /// Whether there are logarithms of phi.
  bool logarithmic() const { return logarithms_ && norm_ == row_norm::none; }

  void values(const T* x, T* phi) const {
    if (plain()) return void(std::copy_n(x, padded<T>(width_), phi));
    raw_values(x, phi);
    if (norm_ == row_norm::l2) l2{}.values<P>(phi, width_, phi);
    if (norm_ == row_norm::sum) scale_by_sum(phi);
  }

  void pullback(const T* x, const T* d_phi, T* d_x) const {
    if (plain()) return void(std::copy_n(d_phi, padded<T>(d_), d_x));
    if (norm_ == row_norm::none && !logarithms_) return pullback_(map_, x, d_, d_phi, d_x);
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *phi = scratch.take<T>(padded<T>(width_)), *d_raw = scratch.take<T>(padded<T>(width_));
    raw_values(x, phi);
    if (norm_ == row_norm::none)
      std::copy_n(d_phi, width_, d_raw);
    else if (norm_ == row_norm::l2)
      l2{}.pullback<P>(phi, width_, d_phi, d_raw);
    else
      sum_pullback(phi, d_phi, d_raw);
    if (!logarithms_) return pullback_(map_, x, d_, d_raw, d_x);
    for (index_t k = 0; k < width_; ++k) d_raw[k] *= phi[k];
    pull_logarithms(x, d_raw, d_x);
  }

  /// log phi(x)
  void logarithms(const T* x, double* log_phi) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    logarithms_(map_, widened(x, scratch), d_, log_phi);
  }

  /// From the gradient of log phi to that of x.
  void pull_logarithms(const T* x, const T* d_log, T* d_x) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    double *wide_log = scratch.take<double>(width_), *wide_x = scratch.take<double>(padded<double>(d_));
    std::copy_n(d_log, width_, wide_log);
    pull_logarithms_(map_, widened(x, scratch), d_, wide_log, wide_x);
    for (index_t k = 0; k < d_; ++k) d_x[k] = static_cast<T>(wide_x[k]);
  }

 private:
  const double* widened(const T* x, Scratch& scratch) const {
    double* wide = scratch.take<double>(padded<double>(d_));
    for (index_t k = 0; k < padded<double>(d_); ++k) wide[k] = k < d_ ? static_cast<double>(x[k]) : 0;
    return wide;
  }

  /// phi(x) before it is normalised, or e^c phi(x) with the c that makes the largest one 1 where a norm takes the factor out again.
  void raw_values(const T* x, T* phi) const {
    if (!logarithms_) {
      values_(map_, x, d_, phi);
      return void(std::fill(phi + width_, phi + padded<T>(width_), T(0)));
    }
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    double* log_phi = scratch.take<double>(width_);
    logarithms(x, log_phi);
    const double peak = largest_of(log_phi, width_), shift = norm_ == row_norm::none ? std::max(0.0, peak) : peak;
    exponentials(log_phi, width_, shift, phi);
    if (norm_ != row_norm::none || shift == 0) return;
    const T half = static_cast<T>(std::exp(shift / 2));  // in two steps: e^shift alone may be more than the type holds
    for (index_t k = 0; k < width_; ++k) phi[k] = phi[k] * half * half;
  }

  T row_sum(const T* phi) const {
    P total(T(0));
    for (index_t k = 0; k < width_; k += P::width) total = total + P::load(phi + k);
    return sum(total);
  }

  void scale_by_sum(T* phi) const {
    const T total = row_sum(phi);
    for (index_t k = 0; k < width_; ++k) phi[k] = total == 0 ? T(0) : phi[k] / total;
  }

  /// (g - g . phi') / sum phi
  void sum_pullback(const T* phi, const T* d_phi, T* d_raw) const {
    const T total = row_sum(phi);
    P along(T(0));
    for (index_t k = 0; k < width_; k += P::width) along = fma(P::load(phi + k), P::load(d_phi + k), along);
    const T mean = total == 0 ? T(0) : sum(along) / total;
    for (index_t k = 0; k < width_; ++k) d_raw[k] = total == 0 ? T(0) : (d_phi[k] - mean) / total;
    std::fill(d_raw + width_, d_raw + padded<T>(width_), T(0));
  }

  const void* map_;
  index_t d_, width_;
  row_norm norm_;
  bool plain_;
  void (*values_)(const void*, const T*, index_t, T*) = nullptr;
  void (*pullback_)(const void*, const T*, index_t, const T*, T*) = nullptr;
  void (*logarithms_)(const void*, const double*, index_t, double*) = nullptr;
  void (*pull_logarithms_)(const void*, const double*, index_t, const double*, double*) = nullptr;
};

/// Rows of an array at any strides, one for each token.
template <class P>
struct Rows {
  P* data = nullptr;
  index_t time = 0, inner = 0;

  explicit operator bool() const { return data != nullptr; }
  P& at(index_t t, index_t k = 0) const { return data[t * time + k * inner]; }
};

/// A call of the C library for every row would cost as much as the row.
template <class T>
inline void copy_row(const T* from, index_t width, T* to) {
  using P = Packet<T>;
  index_t k = 0;
  for (; k + P::width <= width; k += P::width) P::load(from + k).store(to + k);
  for (; k < width; ++k) to[k] = from[k];
}

template <class T>
inline void load_row(const Rows<const T>& from, index_t t, index_t width, T* to, T beyond = 0) {
  if (from.inner == 1)
    copy_row(&from.at(t), width, to);
  else
    for (index_t k = 0; k < width; ++k) to[k] = from.at(t, k);
  for (index_t k = width; k < padded<T>(width); ++k) to[k] = beyond;
}

template <class T>
inline void store_row(const T* from, index_t width, const Rows<T>& to, index_t t) {
  if (to.inner == 1)
    copy_row(from, width, &to.at(t));
  else
    for (index_t k = 0; k < width; ++k) to.at(t, k) = from[k];
}

/// Asks for a row early, so that it is near when its chunk begins: memory is read while the chunk before is computed.
template <class P>
inline void fetch_row(const Rows<P>& rows, index_t t, index_t width) {
  if (!rows || rows.inner != 1) return;
  const char* row = reinterpret_cast<const char*>(&rows.at(t));
  for (index_t byte = 0; byte < width * static_cast<index_t>(sizeof(P)); byte += 64)
    prefetch<cache::second, !std::is_const_v<P>>(row + byte);
}

}  // namespace detail
}  // namespace recollect
