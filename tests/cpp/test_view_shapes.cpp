// SPDX-License-Identifier: BSD-3-Clause
/// Views, run-time arrays, shape tables and the sentences they refuse with.
#include "check.hpp"
#include <type_traits>
#include <vector>

#include "recollect/core/shapes.hpp"

using namespace recollect;

namespace {

void views() {
  int numbers[] = {0, 1, 2, 3, 4, 5};
  const View<int, 2> rows{numbers, {2, 3}, {3, 1}};
  CHECK_EQUAL(rows(1, 2), 5);
  rows(0, 1) = 7;
  CHECK_EQUAL(numbers[1], 7);
  const View<int, 2> turned{numbers, {3, 2}, {1, 3}};
  CHECK_EQUAL(turned(2, 1), rows(1, 2));
  const View<int, 1> backwards{numbers + 5, {6}, {-1}};
  CHECK_EQUAL(backwards(5), 0);
  const View<const int, 2> same = rows;
  CHECK_EQUAL(&same(1, 1), &rows(1, 1));
  const View<int, 0> one{numbers, {}, {}};
  CHECK_EQUAL(one(), 0);
  CHECK(static_cast<bool>(rows));
  CHECK(!static_cast<bool>(View<int, 3>{}));
  static_assert(!std::is_convertible_v<View<const int, 2>, View<int, 2>>);
  static_assert(!std::is_convertible_v<View<int, 2>, bool>);
}

void arrays() {
  std::vector<double> numbers(24);
  const Array array(numbers.data(), {2, 3, 4});
  CHECK(array.type == dtype::float64 && array.rank == 3 && array.size() == 24);
  CHECK(array.strides[0] == 12 && array.strides[1] == 4 && array.strides[2] == 1);
  CHECK_EQUAL(array.shape_text(), "(2, 3, 4)");
  CHECK_EQUAL(ConstArray(numbers.data(), {7}).shape_text(), "(7,)");
  const ConstArray scalar(numbers.data(), {});
  CHECK_EQUAL(scalar.shape_text(), "()");
  CHECK_EQUAL(scalar.size(), 1);
  CHECK(!Array{}.given());
  const double* nowhere = nullptr;
  const ConstArray empty(nowhere, {0, 4});
  CHECK(empty.given() && empty.size() == 0);
  const ConstArray readable = array;
  CHECK(readable.data == array.data && readable.extents == array.extents && readable.strides == array.strides);
  static_assert(!std::is_constructible_v<Array, const double*, std::initializer_list<index_t>>);
  static_assert(!std::is_constructible_v<Array, char*, std::initializer_list<index_t>>);
  static_assert(!std::is_convertible_v<ConstArray, Array>);
  static_assert(std::is_constructible_v<ConstArray, const float16*, std::initializer_list<index_t>>);
  CHECK_EQUAL(Array(numbers.data(), {1, 1, 1, 1, 1, 1, 1, 1}).rank, max_rank);
  CHECK_FAILS(value, "an array has 9 axes; at most 8 are supported", Array(numbers.data(), {1, 1, 1, 1, 1, 1, 1, 1, 1}));
}

constexpr ShapeRow table[] = {{"state", "... n d"}, {"patterns", "... N d"}, {"beta", "..."}, {"mask", "... n N", true}};

double memory[1];
bool flags[1];

ConstArray shaped(std::initializer_list<index_t> shape) { return ConstArray(memory, shape); }
ConstArray mask_shaped(std::initializer_list<index_t> shape) { return ConstArray(flags, shape); }

Shapes bind(const ConstArray& state, const ConstArray& patterns, const ConstArray& beta = shaped({}), const ConstArray& mask = {}) {
  const ConstArray list[] = {state, patterns, beta, mask};
  return Shapes("op", table, list);
}

void binding() {
  const Shapes s = bind(shaped({5, 1, 3, 4}), shaped({2, 6, 4}), shaped({5, 2}), mask_shaped({6}));
  CHECK(s.extent('n') == 3 && s.extent('N') == 6 && s.extent('d') == 4);
  CHECK(s.batch_rank() == 2 && s.batch_extent(0) == 5 && s.batch_extent(1) == 2);
  CHECK(s[0].batch[0] == 12 && s[0].batch[1] == 0 && s[0].inner[0] == 4 && s[0].inner[1] == 1);
  CHECK(s[1].batch[0] == 0 && s[1].batch[1] == 24);
  CHECK(s[2].batch[0] == 2 && s[2].batch[1] == 1);
  CHECK(s[3].given && s[3].inner[0] == 0 && s[3].inner[1] == 1);
  CHECK(!bind(shaped({3, 4}), shaped({6, 4}))[3].given);
  // A letter's own axis of extent one is no broadcast unless the row says so.
  CHECK_EQUAL(bind(shaped({1, 4}), shaped({6, 4}))[0].inner[0], 4);
  CHECK_EQUAL(bind(shaped({3, 4}), shaped({6, 4}), shaped({}), mask_shaped({3, 1}))[3].inner[1], 0);
  const Shapes wider = bind(shaped({3, 4}), shaped({7, 2, 6, 4}));  // leading axes that come later go in front
  CHECK(wider.batch_rank() == 2 && wider.batch_extent(0) == 7 && wider[0].batch[0] == 0 && wider[1].batch[0] == 48);
  CHECK_EQUAL(bind(shaped({0, 3, 4}), shaped({1, 6, 4})).batch_extent(0), 0);
  CHECK_EQUAL(bind(shaped({0, 4}), shaped({0, 4})).extent('N'), 0);
}

void refusals() {
  CHECK_FAILS(value, "op: state has shape (3,); expected (..., n, d)", bind(shaped({3}), shaped({6, 4})));
  CHECK_FAILS(value, "op: state has shape (); expected (..., n, d)", bind(shaped({}), shaped({6, 4})));
  CHECK_FAILS(value, "op: patterns has shape (6, 5); expected (..., N, d=4)", bind(shaped({3, 4}), shaped({6, 5})));
  // One is a width like any other.
  CHECK_FAILS(value, "op: patterns has shape (6, 1); expected (..., N, d=4)", bind(shaped({3, 4}), shaped({6, 1})));
  CHECK_FAILS(value, "op: mask has shape (3, 5); expected (..., n=3, N=6) or a shape that broadcasts to it",
              bind(shaped({3, 4}), shaped({6, 4}), shaped({}), mask_shaped({3, 5})));
  CHECK_FAILS(value,
              "op: patterns has shape (3, 6, 4); its leading axes do not broadcast with (2,) of the arguments before it; "
              "expected (..., N=6, d=4)",
              bind(shaped({2, 3, 4}), shaped({3, 6, 4})));
  CHECK_FAILS(value, "op: beta has shape (0,); its leading axes do not broadcast with (2,) of the arguments before it; expected (...)",
              bind(shaped({2, 3, 4}), shaped({6, 4}), shaped({0})));
}

void axes() {
  Axes a;
  CHECK_EQUAL(a.count(), 1);
  a.add(2);
  a.add(3);
  a.add(4);
  CHECK_EQUAL(a.count(), 24);
  index_t flat = 0;
  for (index_t i = 0; i < 2; ++i)
    for (index_t j = 0; j < 3; ++j)
      for (index_t k = 0; k < 4; ++k, ++flat) CHECK_EQUAL(a.offset(flat, {100, -10, 0}), 100 * i - 10 * j);
  a.add(0);
  CHECK_EQUAL(a.count(), 0);
}

}  // namespace

int main() {
  views();
  arrays();
  binding();
  refusals();
  axes();
  return check::report();
}
