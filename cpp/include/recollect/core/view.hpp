// SPDX-License-Identifier: BSD-3-Clause
/// Views, not containers: a pointer, extents and strides (in elements). `ConstArray` and `Array` are what callers of every language
/// hand over, their element type and rank known at run time; `View<T, Rank>` is what kernels walk over. Nothing is ever owned.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "recollect/core/dtype.hpp"
#include "recollect/core/error.hpp"

namespace recollect {

inline constexpr int max_rank = 8;

template <class T, int Rank>
struct View {
  T* data = nullptr;
  std::array<index_t, Rank> extents{};
  std::array<index_t, Rank> strides{};

  explicit operator bool() const { return data != nullptr; }

  template <class... Indices>
  T& operator()(Indices... indices) const {
    static_assert(sizeof...(Indices) == Rank, "a view takes one index for each of its axes");
    index_t offset = 0;
    int axis = 0;
    ((offset += static_cast<index_t>(indices) * strides[axis++]), ...);
    return data[offset];
  }

  operator View<const T, Rank>() const
    requires(!std::is_const_v<T>)
  {
    return {data, extents, strides};
  }
};

/// An array of run-time type and rank; Pointer is `void*` or `const void*`. A default-constructed one means "not given".
template <class Pointer>
struct BasicArray {
  Pointer data = nullptr;
  dtype type = dtype::none;
  int rank = 0;
  std::array<index_t, max_rank> extents{};
  std::array<index_t, max_rank> strides{};

  BasicArray() = default;

  /// Row-major and contiguous: BasicArray(pointer, {N, d}).
  template <class T>
    requires(dtype_of<std::remove_const_t<T>> != dtype::none && std::is_convertible_v<T*, Pointer>)
  BasicArray(T* pointer, std::initializer_list<index_t> shape)
      : data(pointer), type(dtype_of<std::remove_const_t<T>>), rank(static_cast<int>(shape.size())) {
    if (rank > max_rank) fail(status::value, "an array has ", rank, " axes; at most ", max_rank, " are supported");
    std::copy(shape.begin(), shape.end(), extents.begin());
    index_t stride = 1;
    for (int axis = rank - 1; axis >= 0; --axis) {
      strides[axis] = stride;
      stride *= extents[axis];
    }
  }

  /// A writable array is also a readable one.
  template <class Other>
    requires(!std::is_same_v<Other, Pointer> && std::is_convertible_v<Other, Pointer>)
  BasicArray(const BasicArray<Other>& other)
      : data(other.data), type(other.type), rank(other.rank), extents(other.extents), strides(other.strides) {}

  /// An array without elements may have no memory, so "given" is told by its type.
  bool given() const { return type != dtype::none; }

  index_t size() const {
    index_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= extents[axis];
    return count;
  }

  std::string shape_text() const {
    std::string text = "(";
    for (int axis = 0; axis < rank; ++axis) text += (axis ? ", " : "") + std::to_string(extents[axis]);
    return text + (rank == 1 ? ",)" : ")");
  }
};

using Array = BasicArray<void*>;
using ConstArray = BasicArray<const void*>;

}  // namespace recollect
