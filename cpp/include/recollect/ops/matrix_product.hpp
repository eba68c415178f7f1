// SPDX-License-Identifier: BSD-3-Clause
/// Products with a matrix that is used many times, as the weights of a recurrence are in each of its steps: it is packed once into strips
/// as the register tile reads them. A number of the result is summed over the depth in order, whatever rows are beside it.
#pragma once

#include <algorithm>

#include "recollect/core/parallel.hpp"
#include "recollect/core/scratch.hpp"
#include "recollect/ops/tile_product.hpp"

namespace recollect::detail {

template <class T>
class PackedMatrix {
 public:
  using P = Packet<T>;
  static constexpr int rows_at_once = P::registers >= 32 ? 8 : 4;
  static constexpr int packets = 3;
  static constexpr index_t strip = packets * P::width;

  PackedMatrix() : memory_(0) {}

  /// The matrix (depth, columns) = weight, or its transpose if weight is (columns, depth); weight is contiguous.
  PackedMatrix(const T* weight, index_t depth, index_t columns, bool transposed)
      : depth_(depth), columns_(columns), memory_(depth * ((columns + P::width - 1) / P::width) * P::width) {
    parallel_for(strips(), [&](index_t s) { transposed ? pack_transposed(weight, s) : pack(weight, s); });
  }

  index_t strips() const { return (columns_ + strip - 1) / strip; }
  index_t columns() const { return columns_; }

  /// C += A B in the columns of strips [first, last); C's rows are c_stride apart. `a` is as of Factor.
  void multiply(index_t rows, Factor<T> a, T* c, index_t c_stride, index_t first, index_t last) const {
    for (index_t s = first; s < last; ++s) {
      const index_t column = s * strip, left = columns_ - column;
      if (left >= strip)
        strip_product<T, rows_at_once, packets, start::keep>(rows, a, strip_at(s), strip, c + column, c_stride, depth_, nullptr);
      else if (left > 2 * P::width)
        tail<3>(rows, a, s, c + column, c_stride, left);
      else if (left > P::width)
        tail<2>(rows, a, s, c + column, c_stride, left);
      else
        tail<1>(rows, a, s, c + column, c_stride, left);
    }
  }

  void multiply(index_t rows, Factor<T> a, T* c, index_t c_stride) const { multiply(rows, a, c, c_stride, 0, strips()); }

 private:
  T* strip_at(index_t s) const { return memory_.data() + s * strip * depth_; }
  /// How many columns the strip takes in memory: whole packets.
  index_t width_of(index_t s) const { return std::min(strip, (columns_ - s * strip + P::width - 1) / P::width * P::width); }

  void pack(const T* weight, index_t s) const {
    const index_t width = width_of(s), real = std::min(width, columns_ - s * strip);
    T* to = strip_at(s);
    for (index_t k = 0; k < depth_; ++k, to += width) {
      std::copy_n(weight + k * columns_ + s * strip, real, to);
      std::fill(to + real, to + width, T(0));
    }
  }

  void pack_transposed(const T* weight, index_t s) const {
    constexpr index_t w = P::width;
    const index_t width = width_of(s);
    for (index_t j = 0; j < width; j += w) {
      const index_t column = s * strip + j, real = std::min(w, columns_ - column);
      for (index_t k = 0; k < depth_; k += w) {
        const index_t deep = std::min(w, depth_ - k);
        P square[w];
        for (index_t i = 0; i < w; ++i) square[i] = i < real ? P::load_some(weight + (column + i) * depth_ + k, deep) : P(T(0));
        transpose<T>(square);
        for (index_t i = 0; i < deep; ++i) square[i].store(strip_at(s) + (k + i) * width + j);
      }
    }
  }

  /// The last strip, whose columns may end within a packet: the tile works on a copy of C.
  template <int Packets>
  void tail(index_t rows, Factor<T> a, index_t s, T* c, index_t c_stride, index_t left) const {
    constexpr index_t width = Packets * P::width;
    if (left == width)
      return strip_product<T, rows_at_once, Packets, start::keep>(rows, a, strip_at(s), width, c, c_stride, depth_, nullptr);
    alignas(Scratch::alignment) T copy[rows_at_once * width] = {};
    for (index_t r = 0; r < rows; r += rows_at_once) {
      const index_t now = std::min<index_t>(rows_at_once, rows - r);
      for (index_t i = 0; i < now; ++i) std::copy_n(c + (r + i) * c_stride, left, copy + i * width);
      const Factor<T> part{a.data + r * a.row, a.row, a.depth};
      strip_product<T, rows_at_once, Packets, start::keep>(now, part, strip_at(s), width, copy, width, depth_, nullptr);
      for (index_t i = 0; i < now; ++i) std::copy_n(copy + i * width, left, c + (r + i) * c_stride);
    }
  }

  index_t depth_ = 0, columns_ = 0;
  Buffer<T> memory_;
};

/// C (rows, columns) = bias + A B for many contiguous rows of A; bias (columns), or null for zeros. Rows of C are c_stride apart.
template <class T>
void parallel_product(index_t rows, const T* a, index_t depth, const PackedMatrix<T>& b, const T* bias, T* c, index_t c_stride) {
  constexpr index_t block = 16 * PackedMatrix<T>::rows_at_once;
  parallel_for((rows + block - 1) / block, [&](index_t task) {
    const index_t first = task * block, count = std::min(block, rows - first);
    for (index_t r = first; r < first + count; ++r) {
      if (bias)
        std::copy_n(bias, b.columns(), c + r * c_stride);
      else
        std::fill_n(c + r * c_stride, b.columns(), T(0));
    }
    b.multiply(count, {a + first * depth, depth, 1}, c + first * c_stride, c_stride);
  });
}

/// C (m, n) = sum over `depth` of A(k, :)^T B(k, :), rows of A and B contiguous: how the gradient of a weight comes out of all steps. Long
/// sums are made in parts, which are added in order. What is made is the transpose of C: of the two, Eigen packs B at the higher cost,
/// which is the narrower one.
template <class T>
void parallel_gradient_product(index_t depth, const T* a, index_t m, const T* b, index_t n, T* c) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Strided = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
  constexpr index_t block = 256, deep = 2048;
  const index_t blocks = (m + block - 1) / block, parts = std::max<index_t>(1, depth / deep);
  const Buffer<T> sums(parts * m * n);
  parallel_for(blocks * parts, [&](index_t task) {
    const index_t first = task / parts * block, count = std::min(block, m - first);
    const index_t part = task % parts, from = part * depth / parts, now = (part + 1) * depth / parts - from;
    Eigen::Map<Matrix> to(sums.data() + part * m * n + first * n, n, count);
    to.noalias() =
        Eigen::Map<const Matrix>(b + from * n, now, n).transpose() * Strided(a + from * m + first, now, count, Eigen::OuterStride<>(m));
  });
  parallel_for(blocks, [&](index_t task) {
    const index_t first = task * block, count = std::min(block, m - first);
    Eigen::Map<Matrix> to(c + first * n, count, n);
    const auto made = [&](index_t part) { return Eigen::Map<const Matrix>(sums.data() + part * m * n + first * n, n, count).transpose(); };
    to = made(0);
    for (index_t part = 1; part < parts; ++part) to += made(part);
  });
}

}  // namespace recollect::detail
