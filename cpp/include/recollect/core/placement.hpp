// SPDX-License-Identifier: BSD-3-Clause
/// Where the operands of a recall lie. Leading axes along which the memory does not change are nothing but more rows and are folded into
/// them; the other leading axes are called outer.
#pragma once

#include <array>
#include <initializer_list>

#include "recollect/core/shapes.hpp"

namespace recollect::detail {

using Strides = std::array<index_t, max_rank + 1>;

/// Where an operand lies: a stride for each outer axis, for each row axis, and along its last letter.
template <class P>
struct Placed {
  P* data = nullptr;
  Strides outer{}, row{};
  index_t inner = 0;

  constexpr explicit operator bool() const { return data != nullptr; }
};

/// Which leading axes are outer and which are rows.
struct Fold {
  Axes outer, rows;
  std::array<int, max_rank> outer_axis{}, row_axis{};
  int outer_rank = 0, row_rank = 0;

  Fold() = default;
  Fold(const Shapes& shapes, char row_letter, std::initializer_list<int> memory_operands) {
    for (int axis = 0; axis < shapes.batch_rank(); ++axis) {
      bool changes = false;
      for (int operand : memory_operands) changes |= shapes[operand].given && shapes[operand].batch[axis] != 0;
      if (changes) {
        outer_axis[outer_rank++] = axis;
        outer.add(shapes.batch_extent(axis));
      } else {
        row_axis[row_rank++] = axis;
        rows.add(shapes.batch_extent(axis));
      }
    }
    rows.add(shapes.extent(row_letter));
  }

  /// An input. `has_rows` says whether its first letter is the row letter.
  template <class P>
  Placed<P> place(const BoundOperand& operand, P* data, bool has_rows, int inner_letter) const {
    Placed<P> placed;
    if (!operand.given) return placed;
    placed.data = data;
    for (int i = 0; i < outer_rank; ++i) placed.outer[i] = operand.batch[outer_axis[i]];
    for (int i = 0; i < row_rank; ++i) placed.row[i] = operand.batch[row_axis[i]];
    if (has_rows) placed.row[row_rank] = operand.inner[0];
    if (inner_letter >= 0) placed.inner = operand.inner[inner_letter];
    return placed;
  }

  /// An output of shape (leading axes..., n) or (leading axes..., n, width).
  template <class P>
  Placed<P> place_output(const Array& array, int batch_rank) const {
    Placed<P> placed;
    if (!array.given()) return placed;
    placed.data = static_cast<P*>(array.data);
    for (int i = 0; i < outer_rank; ++i) placed.outer[i] = array.strides[outer_axis[i]];
    for (int i = 0; i < row_rank; ++i) placed.row[i] = array.strides[row_axis[i]];
    placed.row[row_rank] = array.strides[batch_rank];
    placed.inner = array.rank > batch_rank + 1 ? array.strides[batch_rank + 1] : 0;
    return placed;
  }
};

/// Which patterns a row may see by its place: row i of n the first i + 1 + shift of them.
struct Causal {
  bool on = false;
  index_t shift = 0;
};

/// Whether two different places among the axes are always two different numbers of an operand.
inline bool covers(const Axes& axes, const Strides& strides) {
  for (int axis = 0; axis < axes.rank; ++axis)
    if (strides[axis] == 0 && axes.extents[axis] > 1) return false;
  return true;
}

}  // namespace recollect::detail
