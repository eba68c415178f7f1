// SPDX-License-Identifier: BSD-3-Clause
/// A feature map as the kernels call it: rows in, rows out, whatever map it is and however its values are normalised.
#pragma once

#include "recollect/math/feature_map.hpp"
#include "recollect/ops/stored.hpp"

namespace recollect {

namespace detail {

/// Rows are padded with zeros: x to padded(d), phi to padded(width).
template <class T>
class RowMap {
  using P = Packet<T>;

 public:
  template <class Map>
  RowMap(const Map& map, index_t d, row_norm norm)
      : map_(&map),
        d_(d),
        width_(map.width(d)),
        norm_(norm),
        plain_(std::is_same_v<Map, identity>),
        values_([](const void* m, const T* x, index_t n, T* phi) { static_cast<const Map*>(m)->template values<P>(x, n, phi); }),
        pullback_([](const void* m, const T* x, index_t n, const T* d_phi, T* d_x) {
          static_cast<const Map*>(m)->template pullback<P>(x, n, d_phi, d_x);
        }) {}

  index_t width() const { return width_; }
  index_t d() const { return d_; }
  /// phi(x) = x: nothing needs to be kept for the pullback.
  bool plain() const { return plain_ && norm_ == row_norm::none; }

  void values(const T* x, T* phi) const {
    if (plain()) return void(std::copy_n(x, padded<T>(width_), phi));
    values_(map_, x, d_, phi);
    std::fill(phi + width_, phi + padded<T>(width_), T(0));
    if (norm_ == row_norm::l2) l2{}.values<P>(phi, width_, phi);
    if (norm_ == row_norm::sum) scale_by_sum(phi);
  }

  void pullback(const T* x, const T* d_phi, T* d_x) const {
    if (plain()) return void(std::copy_n(d_phi, padded<T>(d_), d_x));
    if (norm_ == row_norm::none) return pullback_(map_, x, d_, d_phi, d_x);
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *phi = scratch.take<T>(padded<T>(width_)), *d_raw = scratch.take<T>(padded<T>(width_));
    values_(map_, x, d_, phi);
    std::fill(phi + width_, phi + padded<T>(width_), T(0));
    if (norm_ == row_norm::l2)
      l2{}.pullback<P>(phi, width_, d_phi, d_raw);
    else
      sum_pullback(phi, d_phi, d_raw);
    pullback_(map_, x, d_, d_raw, d_x);
  }

 private:
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
  void (*values_)(const void*, const T*, index_t, T*);
  void (*pullback_)(const void*, const T*, index_t, const T*, T*);
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
    __builtin_prefetch(row + byte, std::is_const_v<P> ? 0 : 1, 2);
}

}  // namespace detail
}  // namespace recollect
