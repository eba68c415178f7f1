// SPDX-License-Identifier: BSD-3-Clause
/// What the Hopfield tests share: arrays that own memory, with gaps and in any layout, and the equations of spec/hopfield.hpp as
/// plain double loops over one row.
#pragma once

#include "check.hpp"
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

#include "recollect/spec/hopfield.hpp"

namespace oracle {

using namespace recollect;
using Index = std::vector<index_t>;

enum class layout { dense, gaps, reversed, turned };  // turned: the last axis is the slowest

/// Bytes that are NaN in every floating type, false in none, and not an index: what an op must overwrite, or never touch.
inline constexpr unsigned char poison = 0xff;

struct Tensor {
  std::vector<unsigned char> bytes;
  std::size_t item = 0;
  Array array;

  template <class T>
  static Tensor make(const Index& shape, layout how = layout::dense) {
    Tensor t;
    t.item = sizeof(T);
    t.array.type = dtype_of<T>;
    t.array.rank = static_cast<int>(shape.size());
    const index_t gap = how == layout::dense ? 1 : 2;
    index_t stride = gap, start = 0;
    for (int i = 0; i < t.array.rank; ++i) {
      const int axis = how == layout::turned ? i : t.array.rank - 1 - i;
      t.array.extents[axis] = shape[axis];
      t.array.strides[axis] = how == layout::reversed ? -stride : stride;
      if (how == layout::reversed && shape[axis] > 0) start += stride * (shape[axis] - 1);
      stride = stride * shape[axis] + (how == layout::dense ? 0 : 3);
    }
    t.bytes.assign(static_cast<std::size_t>(stride + gap) * sizeof(T), poison);
    t.array.data = t.bytes.data() + static_cast<std::size_t>(start) * sizeof(T);
    return t;
  }

  /// Every index of the array in turn, and the place of its element.
  template <class F>
  void each(F&& f) const {
    Index index(static_cast<std::size_t>(array.rank), 0);
    for (index_t left = array.size(); left > 0; --left) {
      index_t offset = 0;
      for (int axis = 0; axis < array.rank; ++axis) offset += index[axis] * array.strides[axis];
      f(index, static_cast<unsigned char*>(array.data) + offset * static_cast<index_t>(item));
      for (int axis = array.rank - 1; axis >= 0 && ++index[axis] == array.extents[axis]; --axis) index[axis] = 0;
    }
  }

  /// Bytes between the elements are as they were made.
  bool gaps_intact() const {
    std::vector<unsigned char> copy = bytes;
    each([&](const Index&, unsigned char* place) { std::memset(copy.data() + (place - bytes.data()), poison, item); });
    return std::all_of(copy.begin(), copy.end(), [](unsigned char byte) { return byte == poison; });
  }
  /// No element is as it was made; infinities and numbers are not, NaN is.
  bool overwritten() const;
};

inline double number(const void* place, dtype type) {
  switch (type) {
    case dtype::float32:
      return *static_cast<const float*>(place);
    case dtype::float64:
      return *static_cast<const double*>(place);
    case dtype::float16:
      return widen<double>(*static_cast<const float16*>(place));
    case dtype::bfloat16:
      return widen<double>(*static_cast<const bfloat16*>(place));
    case dtype::boolean:
      return *static_cast<const unsigned char*>(place);
    default:
      return static_cast<double>(*static_cast<const index_t*>(place));
  }
}

inline void put(void* place, dtype type, double value) {
  const auto upper = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16);
  switch (type) {
    case dtype::float32:
      *static_cast<float*>(place) = static_cast<float>(value);
      return;
    case dtype::float64:
      *static_cast<double*>(place) = value;
      return;
    case dtype::bfloat16:
      static_cast<bfloat16*>(place)->bits = upper;
      return;
    case dtype::float16: {  // every quarter up to 15.75 is a half; enough for tests
      const int exponent = value == 0 ? -15 : std::ilogb(value);
      const double fraction = value == 0 ? 0 : std::ldexp(std::abs(value), 10 - exponent) - 1024;
      static_cast<float16*>(place)->bits =
          static_cast<std::uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | static_cast<int>(fraction));
      return;
    }
    case dtype::boolean:
      *static_cast<bool*>(place) = value != 0;
      return;
    default:
      *static_cast<index_t*>(place) = static_cast<index_t>(value);
  }
}

inline bool Tensor::overwritten() const {
  bool all = true;
  each([&](const Index&, unsigned char* place) {
    if (array.type == dtype::boolean)
      all &= *place <= 1;
    else
      all &= array.type == dtype::int64 ? number(place, array.type) != -1 : !std::isnan(number(place, array.type));
  });
  return all;
}

/// Numbers around zero with deviation `size`; in quarters for halves, so that storing them loses nothing.
inline void fill(const Tensor& t, unsigned seed, double size) {
  std::mt19937_64 random(seed);
  const bool half = t.array.type == dtype::float16 || t.array.type == dtype::bfloat16;
  t.each([&](const Index&, unsigned char* place) {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<double>(random() >> 11) * 0x1p-53 - 0.5;
    const double value = sum * size * std::sqrt(3.0);
    put(place, t.array.type, half ? std::round(value * 4) / 4 : value);
  });
}

/// true for about `share` of the entries.
inline void fill_mask(const Tensor& t, unsigned seed, double share) {
  std::mt19937_64 random(seed);
  t.each([&](const Index&, unsigned char* place) { put(place, dtype::boolean, static_cast<double>(random() >> 11) * 0x1p-53 < share); });
}

inline index_t item_size(dtype type) {
  constexpr index_t sizes[] = {4, 8, 2, 2, 1, 8};
  return sizes[static_cast<int>(type)];
}

/// The element of an operand for a batch index and its own last axes, both broadcast from the right.
inline double at(const ConstArray& a, const Index& batch, std::initializer_list<index_t> inner) {
  const int leading = static_cast<int>(batch.size()), missing = leading + static_cast<int>(inner.size()) - a.rank;
  index_t offset = 0;
  for (int axis = 0; axis < a.rank; ++axis) {
    const int from = axis + missing;
    if (a.extents[axis] != 1) offset += (from < leading ? batch[from] : inner.begin()[from - leading]) * a.strides[axis];
  }
  return number(static_cast<const unsigned char*>(a.data) + offset * item_size(a.type), a.type);
}

/// One recall in double: the memory as one row sees it, and the equations.
struct Row {
  index_t N = 0, d = 0, e = 0;
  std::vector<double> q, x, v;
  std::vector<bool> admitted;
  double beta = 0;
  index_t count = 0;
  std::vector<double> weight, out;
  double lse = 0, energy = 0, norm = 0;

  Row(const hopfield::operands& in, const Index& batch, index_t r) {
    const auto extent = [](const ConstArray& a, int from_end) { return a.extents[a.rank - from_end]; };
    N = extent(in.patterns, 2);
    d = extent(in.patterns, 1);
    const ConstArray& values = in.values.given() ? in.values : in.patterns;
    e = extent(values, 1);
    for (index_t k = 0; k < d; ++k) q.push_back(at(in.state, batch, {r, k}));
    for (index_t i = 0; i < N; ++i) {
      for (index_t k = 0; k < d; ++k) x.push_back(at(in.patterns, batch, {i, k}));
      for (index_t k = 0; k < e; ++k) v.push_back(at(values, batch, {i, k}));
      admitted.push_back(!in.mask.given() || at(in.mask, batch, {r, i}) != 0);
      count += admitted.back();
    }
    beta = at(in.beta, batch, {});
    compare();
  }

  void compare() {
    std::vector<double> score(N, -INFINITY);
    double most = -INFINITY, sum = 0, square = 0;
    norm = 0;
    for (index_t i = 0; i < N; ++i) {
      if (!admitted[i]) continue;
      double product = 0, length = 0;
      for (index_t k = 0; k < d; ++k) product += x[i * d + k] * q[k], length += x[i * d + k] * x[i * d + k];
      score[i] = beta * product;
      most = std::max(most, score[i]);
      norm = std::max(norm, length);
    }
    weight.assign(N, 0);
    for (index_t i = 0; i < N; ++i) sum += weight[i] = admitted[i] ? std::exp(score[i] - most) : 0;
    out.assign(e, 0);
    for (index_t i = 0; i < N; ++i) {
      if (!admitted[i]) continue;
      weight[i] /= sum;
      for (index_t k = 0; k < e; ++k) out[k] += weight[i] * v[i * e + k];
    }
    for (index_t k = 0; k < d; ++k) square += q[k] * q[k];
    lse = count ? (most + std::log(sum)) / beta : -INFINITY;
    energy = count ? -lse + square / 2 + std::log(static_cast<double>(count)) / beta + norm / 2 : INFINITY;
  }

  /// q <- X^T p, the step without values.
  void update() {
    std::vector<double> next(d, 0);
    for (index_t i = 0; i < N; ++i)
      if (admitted[i])
        for (index_t k = 0; k < d; ++k) next[k] += weight[i] * x[i * d + k];
    q = next;
    compare();
  }
};

inline Index joined(Index a, std::initializer_list<index_t> b) {
  a.insert(a.end(), b);
  return a;
}

/// Calls f(batch index, row) for every row of broadcast leading axes.
template <class F>
void each_row(const Index& batch_shape, index_t n, F&& f) {
  const Tensor counter = Tensor::make<bool>(joined(batch_shape, {n}));
  counter.each([&](const Index& index, unsigned char*) { f(Index(index.begin(), index.end() - 1), index.back()); });
}

}  // namespace oracle
