// SPDX-License-Identifier: BSD-3-Clause
/// Shape tables: what an op expects of its operands, as data in dimension letters, and the one check that every language goes through.
///
///     constexpr ShapeRow retrieve_shapes[] = {{"state", "... n d"}, {"patterns", "... N d"}, ...};
///
/// Letters are bound in the table's order; "..." are leading axes, which broadcast as in NumPy.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "recollect/core/view.hpp"

namespace recollect {

struct ShapeRow {
  const char* name;
  const char* dims;        // "... n d": leading axes and letters, or "" for none
  bool broadcast = false;  // its letters, too, may be 1 or missing
};

/// An operand after the check: a stride for every leading axis (0 where it is broadcast) and for each of its letters.
struct BoundOperand {
  bool given = false;
  std::array<index_t, max_rank> batch{};
  std::array<index_t, 2> inner{};
};

class Shapes {
 public:
  /// Fails with a sentence when an array does not fit. Arrays and rows are in the same order; arrays not given are passed over.
  Shapes(std::string_view op, std::span<const ShapeRow> table, std::span<const ConstArray> arrays) : op_(op) {
    for (std::size_t i = 0; i < table.size(); ++i)
      if (arrays[i].given()) bind_letters(table[i], arrays[i]);
    for (std::size_t i = 0; i < table.size(); ++i)
      if (arrays[i].given()) broadcast_batch(table[i], arrays[i]);
    for (std::size_t i = 0; i < table.size(); ++i) operands_.push_back(place(table[i], arrays[i]));
  }

  index_t extent(char letter) const { return extents_[static_cast<unsigned char>(letter) % 128]; }
  int batch_rank() const { return batch_rank_; }
  index_t batch_extent(int axis) const { return batch_[axis]; }
  const BoundOperand& operator[](int operand) const { return operands_[operand]; }

 private:
  static std::string letters(const ShapeRow& row) {
    std::string found;
    for (const char* c = row.dims; *c; ++c)
      if (*c != ' ' && *c != '.') found += *c;
    return found;
  }

  using Known = std::array<bool, 128>;

  std::string expected(const ShapeRow& row, const Known& known) const {
    std::string text = "(...";
    for (char letter : letters(row))
      text += std::string(", ") + letter + (known[static_cast<unsigned char>(letter) % 128] ? "=" + std::to_string(extent(letter)) : "");
    return text + ")";
  }

  [[noreturn]] void refuse(const ShapeRow& row, const ConstArray& array, const Known& before) const {
    fail(status::value, op_, ": ", row.name, " has shape ", array.shape_text(), "; expected ", expected(row, before),
         row.broadcast ? " or a shape that broadcasts to it" : "");
  }

  void check_extents(const ShapeRow& row, const ConstArray& array) const {
    for (int axis = 0; axis < array.rank; ++axis)
      if (array.extents[axis] < 0)
        fail(status::value, op_, ": ", row.name, " has shape ", array.shape_text(), "; expected no negative extent");
    if (leading(row, array) > max_rank - 2)
      fail(status::value, op_, ": ", row.name, " has ", leading(row, array), " leading axes; at most ", max_rank - 2, " are supported");
  }

  void bind_letters(const ShapeRow& row, const ConstArray& array) {
    check_extents(row, array);
    const std::string wanted = letters(row);
    const int count = static_cast<int>(wanted.size());
    const Known before = bound_;  // a sentence tells the letters that earlier operands have bound, not this one's own
    if (array.rank < count && !row.broadcast) refuse(row, array, before);
    for (int i = std::max(0, count - array.rank); i < count; ++i) {
      const index_t extent_here = array.extents[array.rank - count + i];
      const std::size_t letter = static_cast<unsigned char>(wanted[i]) % 128;
      if (row.broadcast && extent_here == 1) continue;
      if (bound_[letter] && extents_[letter] != extent_here) refuse(row, array, before);
      if (!bound_[letter]) extents_[letter] = extent_here;
      bound_[letter] = true;
    }
  }

  int leading(const ShapeRow& row, const ConstArray& array) const {
    return std::max(0, array.rank - static_cast<int>(letters(row).size()));
  }

  void broadcast_batch(const ShapeRow& row, const ConstArray& array) {
    const int count = leading(row, array);
    if (count > batch_rank_) {
      std::copy_backward(batch_.begin(), batch_.begin() + batch_rank_, batch_.begin() + count);
      std::fill(batch_.begin(), batch_.begin() + (count - batch_rank_), 1);
      batch_rank_ = count;
    }
    for (int i = 0; i < count; ++i) {
      index_t& common = batch_[batch_rank_ - count + i];
      const index_t here = array.extents[i];
      if (here == common || here == 1) continue;
      if (common != 1)
        fail(status::value, op_, ": ", row.name, " has shape ", array.shape_text(), "; its leading axes do not broadcast with ",
             batch_text(), " of the arguments before it; expected ", expected(row, bound_));
      common = here;
    }
  }

  std::string batch_text() const {
    ConstArray shape;
    shape.rank = batch_rank_;
    shape.extents = batch_;
    return shape.shape_text();
  }

  BoundOperand place(const ShapeRow& row, const ConstArray& array) const {
    BoundOperand operand;
    if (!array.given()) return operand;
    operand.given = true;
    const int count = leading(row, array), inner = static_cast<int>(letters(row).size());
    for (int i = 0; i < count; ++i)
      if (array.extents[i] != 1) operand.batch[batch_rank_ - count + i] = array.strides[i];
    for (int i = std::max(0, inner - array.rank); i < inner; ++i) {
      const int axis = array.rank - inner + i;
      if (array.extents[axis] != 1 || !row.broadcast) operand.inner[i] = array.strides[axis];
    }
    return operand;
  }

  std::string op_;
  std::array<index_t, 128> extents_{};
  Known bound_{};
  std::array<index_t, max_rank> batch_{};
  int batch_rank_ = 0;
  std::vector<BoundOperand> operands_;
};

/// A product of axes walked by one flat number, last axis fastest.
struct Axes {
  int rank = 0;
  std::array<index_t, max_rank + 1> extents{};

  constexpr void add(index_t extent) { extents[rank++] = extent; }

  constexpr index_t count() const {
    index_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= extents[axis];
    return product;
  }

  constexpr index_t offset(index_t flat, const std::array<index_t, max_rank + 1>& strides) const {
    index_t place = 0;
    for (int axis = rank - 1; axis >= 0; --axis) {
      place += flat % extents[axis] * strides[axis];
      flat /= extents[axis];
    }
    return place;
  }
};

}  // namespace recollect
