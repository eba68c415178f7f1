// SPDX-License-Identifier: BSD-3-Clause
/// The one matrix product of the library: C = start + A B for tiles that lie in cache. Every fused kernel is made of it: scores,
/// values read, and the products of their gradients differ only in what stands for A and B.
///
/// Lanes run over the columns of B and C. A is read one number at a time, at any strides, so it is never transposed. Each number of C is
/// summed over the depth in order, whatever tile it falls into: a row's result does not depend on the rows beside it.
#pragma once

#include "recollect/ops/packet.hpp"

namespace recollect::detail {

/// What C holds before the sum: nothing, its own value, or its own value times a number of its row.
enum class start { zero, keep, scaled };

template <class T>
struct Factor {  // A(r, k) = data[r * row + k * depth]
  const T* data;
  index_t row, depth;
};

template <class T, int Rows, int Columns, start Start>
inline void register_tile(Factor<T> a, const T* b, index_t b_stride, T* c, index_t c_stride, index_t depth, const T* row_scale) {
  using P = Packet<T>;
  P sum[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      if constexpr (Start == start::zero)
        sum[r][j] = P(T(0));
      else if constexpr (Start == start::keep)
        sum[r][j] = P::load(c + r * c_stride + j * P::width);
      else
        sum[r][j] = P::load(c + r * c_stride + j * P::width) * P(row_scale[r]);
    }
  for (index_t k = 0; k < depth; ++k) {
    P column[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) column[j] = P::load(b + j * P::width);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const P number(a.data[r * a.row]);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sum[r][j] = fma(number, column[j], sum[r][j]);
    }
    a.data += a.depth;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[r][j].store(c + r * c_stride + j * P::width);
}

/// All rows of one strip of `Columns` packets: full register tiles first, then one for the rest.
template <class T, int Rows, int Columns, start Start>
inline void strip_product(index_t rows, Factor<T> a, const T* b, index_t b_stride, T* c, index_t c_stride, index_t depth,
                          const T* row_scale) {
  while (rows >= Rows) {
    register_tile<T, Rows, Columns, Start>(a, b, b_stride, c, c_stride, depth, row_scale);
    rows -= Rows;
    a.data += Rows * a.row;
    c += Rows * c_stride;
    if (Start == start::scaled) row_scale += Rows;
  }
  if constexpr (Rows > 1)
    if (rows > 0) strip_product<T, Rows - 1, Columns, Start>(rows, a, b, b_stride, c, c_stride, depth, row_scale);
}

}  // namespace recollect::detail
