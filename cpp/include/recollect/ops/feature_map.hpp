// SPDX-License-Identifier: BSD-3-Clause
/// `feature_map::forward` and `backward`: phi(x) of rows, by name.
///
///     out = phi(x)            (..., d) -> (..., K)
#pragma once

#include "recollect/core/parallel.hpp"
#include "recollect/ops/feature_rows.hpp"
#include "recollect/ops/recall_checks.hpp"

namespace recollect::feature_map {

/// A map by name, with what some of them need.
struct choice {
  std::string_view name = "identity";
  row_norm norm = row_norm::none;
  index_t nu = 1;     // dpfp
  ConstArray matrix;  // favor: (m, d), float64, contiguous
};

namespace detail {

using namespace recollect::detail;

template <class Map>
Map make(std::string_view op, const choice& wanted, index_t d) {
  if constexpr (std::is_same_v<Map, dpfp>) {
    if (wanted.nu < 1 || wanted.nu > std::max<index_t>(2 * d - 1, 1))
      fail(status::value, op, ": nu is ", wanted.nu, "; expected a number from 1 to 2d - 1 = ", 2 * d - 1);
    return {.nu = wanted.nu};
  } else if constexpr (std::is_same_v<Map, favor>) {
    const ConstArray& m = wanted.matrix;
    if (!m.given()) fail(status::value, op, ": feature_map is 'favor'; expected a FeatureMap with a matrix, as favor.draw makes one");
    if (m.rank != 2 || m.extents[1] != d || m.type != dtype::float64)
      fail(status::value, op, ": the matrix of favor has shape ", m.shape_text(), "; expected (m, d=", d, ")");
    return {.matrix = static_cast<const double*>(m.data), .features = m.extents[0]};
  } else {
    (void)op, (void)wanted, (void)d;
    return {};
  }
}

}  // namespace detail

/// Calls run(map) with the map that is wanted, for rows of d numbers.
template <class Run>
void with_map(std::string_view op, const choice& wanted, index_t d, Run&& run) {
  visit_by_name(feature_maps{}, op, "feature_map", wanted.name, [&]<class Map>() { run(detail::make<Map>(op, wanted, d)); });
}

namespace detail {

/// All but the last axis as one.
struct RowWalk {
  Axes axes;
  Strides strides{};

  explicit RowWalk(const ConstArray& array) {
    for (int axis = 0; axis + 1 < array.rank; ++axis) {
      axes.add(array.extents[axis]);
      strides[axis] = array.strides[axis];
    }
  }
};

inline void check_rows(std::string_view op, const char* argument, const ConstArray& array, const ConstArray& like, index_t width) {
  ConstArray wanted = like;
  wanted.extents[like.rank - 1] = width;
  if (!array.given() || array.rank != like.rank ||
      !std::equal(array.extents.begin(), array.extents.begin() + like.rank, wanted.extents.begin()))
    fail(status::value, op, ": ", argument, " has shape ", array.shape_text(), "; expected ", wanted.shape_text());
  if (array.type != like.type) fail(status::type, op, ": ", argument, " has dtype ", name(array.type), "; expected ", name(like.type));
}

/// row(map, i, x) for every row, with x padded.
template <class T, class Row>
void each_row(const ConstArray& x, Row&& row) {
  const RowWalk walk(x);
  const index_t count = walk.axes.count(), d = x.extents[x.rank - 1], tasks = std::min<index_t>(count, 256);
  parallel_for(tasks, [&](index_t task) {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T* padded_row = scratch.take<T>(padded<T>(d));
    for (index_t i = count * task / tasks; i < count * (task + 1) / tasks; ++i) {
      const T* from = static_cast<const T*>(x.data) + walk.axes.offset(i, walk.strides);
      load_row(Rows<const T>{from, 0, x.strides[x.rank - 1]}, 0, d, padded_row);
      row(i, padded_row, scratch);
    }
  });
}

inline void check_x(std::string_view op, const ConstArray& x) {
  check_given(op, "x", x);
  if (x.type != dtype::float32 && x.type != dtype::float64)
    fail(status::type, op, ": x has dtype ", name(x.type), "; expected float32 or float64");
  if (x.rank < 1 || x.extents[x.rank - 1] < 1)
    fail(status::value, op, ": x has shape ", x.shape_text(), "; expected (..., d), d of 1 or more");
}

}  // namespace detail

inline index_t width(std::string_view op, const choice& wanted, index_t d) {
  index_t found = 0;
  with_map(op, wanted, d, [&](const auto& map) { found = map.width(d); });
  return found;
}

inline void forward(std::string_view op, const ConstArray& x, const choice& wanted, const Array& out) {
  using namespace detail;
  check_x(op, x);
  const index_t d = x.extents[x.rank - 1];
  with_map(op, wanted, d, [&](const auto& map) {
    check_rows(op, "out", out, x, map.width(d));
    visit_arithmetic(x.type, [&]<class T>() {
      const RowMap<T> rows(map, d, wanted.norm);
      const RowWalk to(out);
      each_row<T>(x, [&](index_t i, const T* row, Scratch& scratch) {
        const Scratch::Frame frame(scratch);
        T* phi = scratch.take<T>(padded<T>(rows.width()));
        rows.values(row, phi);
        store_row(phi, rows.width(), Rows<T>{static_cast<T*>(out.data) + to.axes.offset(i, to.strides), 0, out.strides[out.rank - 1]}, 0);
      });
    });
  });
}

/// d_x = J^T d_out
inline void backward(std::string_view op, const ConstArray& x, const choice& wanted, const ConstArray& d_out, const Array& d_x) {
  using namespace detail;
  check_x(op, x);
  const index_t d = x.extents[x.rank - 1];
  with_map(op, wanted, d, [&](const auto& map) {
    check_rows(op, "d_out", d_out, x, map.width(d));
    check_rows(op, "d_x", d_x, x, d);
    visit_arithmetic(x.type, [&]<class T>() {
      const RowMap<T> rows(map, d, wanted.norm);
      const RowWalk from(d_out), to(d_x);
      each_row<T>(x, [&](index_t i, const T* row, Scratch& scratch) {
        const Scratch::Frame frame(scratch);
        T *d_phi = scratch.take<T>(padded<T>(rows.width())), *gradient = scratch.take<T>(padded<T>(d));
        load_row(Rows<const T>{static_cast<const T*>(d_out.data) + from.axes.offset(i, from.strides), 0, d_out.strides[x.rank - 1]}, 0,
                 rows.width(), d_phi);
        rows.pullback(row, d_phi, gradient);
        store_row(gradient, d, Rows<T>{static_cast<T*>(d_x.data) + to.axes.offset(i, to.strides), 0, d_x.strides[x.rank - 1]}, 0);
      });
    });
  });
}

}  // namespace recollect::feature_map
