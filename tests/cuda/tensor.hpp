// SPDX-License-Identifier: BSD-3-Clause
/// Arrays of tests: owned, of any element type, read and written as doubles. Outputs begin as NaN.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "recollect/core/view.hpp"
#include "recollect/cuda/number.hpp"

namespace test {

using recollect::dtype;
using recollect::index_t;
using Shape = std::vector<index_t>;

inline constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

struct Tensor {
  dtype type = dtype::none;
  Shape shape, strides;
  std::vector<unsigned char> bytes;

  Tensor() = default;
  /// `gap` more numbers than needed lie between rows.
  Tensor(Shape extents, dtype element = dtype::float32, double value = nan, index_t gap = 0) : type(element), shape(std::move(extents)) {
    strides.resize(shape.size());
    index_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i], stride += i + 1 == shape.size() ? gap : 0) strides[i] = stride;
    bytes.resize(static_cast<std::size_t>((stride + gap + 1) * recollect::bytes_of(type)));
    for (index_t i = 0; i * recollect::bytes_of(type) < static_cast<index_t>(bytes.size()); ++i) put(i, nan);
    each([&](index_t place) { put(place, value); });
  }

  bool given() const { return type != dtype::none; }

  template <class Pointer>
  recollect::BasicArray<Pointer> array(Pointer data) const {
    recollect::BasicArray<Pointer> a;
    if (!given()) return a;
    a.data = data;
    a.type = type;
    a.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), a.extents.begin());
    std::copy(strides.begin(), strides.end(), a.strides.begin());
    return a;
  }
  recollect::ConstArray in() const { return array<const void*>(bytes.data()); }
  recollect::Array out() { return array<void*>(bytes.data()); }

  double get(index_t place) const {
    if (type == dtype::boolean) return bytes[place];
    if (type == dtype::float64) return reinterpret_cast<const double*>(bytes.data())[place];
    return recollect::cuda::read(bytes.data(), type, place);
  }
  void put(index_t place, double value) {
    if (type == dtype::boolean)
      bytes[place] = value == 1;
    else if (type == dtype::float64)
      reinterpret_cast<double*>(bytes.data())[place] = value;
    else
      recollect::cuda::write(bytes.data(), type, place, static_cast<float>(value));
  }

  /// f(place) for every number, in order.
  template <class F>
  void each(F&& f) const {
    index_t count = 1;
    for (index_t extent : shape) count *= extent;
    for (index_t flat = 0; flat < count; ++flat) f(place(unravel(flat, shape)));
  }

  static Shape unravel(index_t flat, const Shape& extents) {
    Shape index(extents.size());
    for (std::size_t i = extents.size(); i-- > 0; flat /= extents[i]) index[i] = flat % extents[i];
    return index;
  }

  /// The place of an index whose axes, from the right, are this tensor's; an axis of 1 is broadcast, and so are missing ones.
  index_t place(const Shape& index) const {
    index_t at = 0;
    for (std::size_t i = 0; i < shape.size() && i < index.size(); ++i) {
      const std::size_t own = shape.size() - 1 - i;
      if (shape[own] != 1) at += index[index.size() - 1 - i] * strides[own];
    }
    return at;
  }
  double at(Shape leading, std::initializer_list<index_t> inner) const {
    leading.insert(leading.end(), inner);
    return get(place(leading));
  }
  void add(Shape leading, std::initializer_list<index_t> inner, double value) {
    leading.insert(leading.end(), inner);
    const index_t where = place(leading);
    put(where, get(where) + value);
  }

  std::vector<double> numbers() const {
    std::vector<double> all;
    each([&](index_t place) { all.push_back(get(place)); });
    return all;
  }
};

inline Tensor random(Shape shape, std::mt19937_64& generator, dtype type = dtype::float32, double scale = 1, index_t gap = 0) {
  Tensor t(std::move(shape), type, 0, gap);
  std::normal_distribution<double> normal(0, scale);
  t.each([&](index_t place) { t.put(place, normal(generator)); });
  return t;
}

/// The largest difference; what is infinite or NaN must be so in both.
inline double difference(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.numbers(), y = b.numbers();
  if (x.size() != y.size()) return inf;
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    const double d = std::abs(x[i] - y[i]);
    largest = d <= largest ? largest : std::isnan(d) ? inf : d;
  }
  return largest;
}

/// The largest number, 1 at least.
inline double largest(const Tensor& a) {
  double size = 1;
  for (double x : a.numbers()) size = std::max(size, std::abs(x));
  return size;
}

/// All bytes, those between rows too.
inline bool same(const Tensor& a, const Tensor& b) { return a.bytes == b.bytes; }

}  // namespace test
