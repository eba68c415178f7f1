// SPDX-License-Identifier: BSD-3-Clause
/// What a recall works on, once shapes are checked: where every row, memory and mask lies.
///
/// Leading axes along which the memory (patterns and values) does not change are nothing but more rows: they are folded into the
/// rows, so that a stored pattern is fetched once for all of them. The other leading axes are called outer.
#pragma once

#include <limits>

#include "recollect/core/placement.hpp"
#include "recollect/ops/stored.hpp"

namespace recollect::detail {

/// seen[i]: whether any of some rows may look at pattern i by its mask and bias; either may be null for all rows. Returns how many are.
template <class T, class MaskOf, class BiasOf>
index_t look(index_t rows, MaskOf&& mask_of, index_t mask_stride, BiasOf&& bias_of, index_t bias_stride, index_t count, bool* seen) {
  std::fill(seen, seen + count, false);
  for (index_t r = 0; r < rows; ++r) {
    const bool* mask = mask_of(r);
    const T* bias = bias_of(r);
    for (index_t i = 0; mask && !bias && i < count; ++i) seen[i] |= mask[i * mask_stride];
    for (index_t i = 0; bias && i < count; ++i)
      seen[i] |= bias[i * bias_stride] != -std::numeric_limits<T>::infinity() && (!mask || mask[i * mask_stride]);
  }
  return std::count(seen, seen + count, true);
}

template <class T>
struct RecallProblem {
  Fold fold;
  index_t rows = 0, outer = 0, patterns = 0, width = 0, value_width = 0;
  Placed<const T> state;
  Placed<const double> beta;
  Placed<const bool> mask;
  Placed<const T> bias;       // added to the scores; -inf leaves a pattern out
  Placed<const double> sink;  // one more score, of a pattern that reads zeros
  Causal causal;
  Placed<const char> stored, values;  // untyped: any element type, strides in elements
  StoredRows stored_rows, value_rows;

  bool has_values() const { return value_rows.type != dtype::none; }

  StoredRows stored_at(index_t o) const { return shifted(stored_rows, stored, o); }
  StoredRows values_at(index_t o) const { return has_values() ? shifted(value_rows, values, o) : stored_at(o); }

  /// How many of the patterns, from the first on, row r may see at most.
  index_t limit(index_t r) const {
    if (!causal.on) return patterns;
    const index_t place = r % fold.rows.extents[fold.rows.rank - 1];
    return std::clamp<index_t>(place + 1 + causal.shift, 0, patterns);
  }

  /// Whether all rows share what an operand holds.
  template <class P>
  bool shared_by_rows(const Placed<P>& operand) const {
    for (int axis = 0; axis < fold.rows.rank; ++axis)
      if (operand.row[axis] != 0 && fold.rows.extents[axis] != 1) return false;
    return true;
  }

  /// The place of row r of outer entry o in an operand or output.
  template <class P>
  P* at(const Placed<P>& operand, index_t o, index_t r) const {
    return operand.data + fold.outer.offset(o, operand.outer) + fold.rows.offset(r, operand.row);
  }

 private:
  StoredRows shifted(StoredRows rows_of_first, const Placed<const char>& placed, index_t o) const {
    rows_of_first.data = placed.data + fold.outer.offset(o, placed.outer) * bytes_of(rows_of_first.type);
    return rows_of_first;
  }
};

/// The first operands of `shapes` are state, patterns, values, scale (beta) and mask; their row letter is n, the memory's is given.
template <class T>
RecallProblem<T> make_problem(const Shapes& shapes, const ConstArray* arrays, char memory_letter) {
  enum { state, patterns, values, beta, mask };
  RecallProblem<T> p;
  p.fold = Fold(shapes, 'n', {patterns, values});
  p.rows = p.fold.rows.count();
  p.outer = p.fold.outer.count();
  p.patterns = shapes.extent(memory_letter);
  p.width = shapes.extent('d');
  p.value_width = arrays[values].given() ? shapes.extent('e') : p.width;
  p.state = p.fold.place(shapes[state], static_cast<const T*>(arrays[state].data), true, 1);
  p.beta = p.fold.place(shapes[beta], static_cast<const double*>(arrays[beta].data), false, -1);
  p.mask = p.fold.place(shapes[mask], static_cast<const bool*>(arrays[mask].data), true, 1);
  p.stored = p.fold.place(shapes[patterns], static_cast<const char*>(arrays[patterns].data), false, 1);
  p.stored_rows = {nullptr, arrays[patterns].type, p.width, shapes[patterns].inner[0], shapes[patterns].inner[1]};
  p.values = p.fold.place(shapes[values], static_cast<const char*>(arrays[values].data), false, 1);
  if (arrays[values].given())
    p.value_rows = {nullptr, arrays[values].type, p.value_width, shapes[values].inner[0], shapes[values].inner[1]};
  return p;
}

}  // namespace recollect::detail
