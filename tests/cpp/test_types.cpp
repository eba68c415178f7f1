// SPDX-License-Identifier: BSD-3-Clause
/// Element types, stored halves, names in lists, and numbers in sentences.
#include "check.hpp"
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "recollect/core/dtype.hpp"
#include "recollect/core/type_list.hpp"
#include "recollect/math/separation.hpp"

using namespace recollect;

namespace {

/// By the definition of a binary format with so many bits of exponent and of fraction.
double plain_value(unsigned bits, int exponent_bits, int fraction_bits) {
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double fraction = std::ldexp(static_cast<double>(bits & ((1u << fraction_bits) - 1)), -fraction_bits);
  double value = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  if (exponent == (1 << exponent_bits) - 1) value = fraction == 0 ? INFINITY : NAN;
  return bits >> 15 ? -value : value;
}

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

void halves() {
  bool good16 = true, good_brain = true, good_double = true;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float16 half{static_cast<std::uint16_t>(bits)};
    const bfloat16 brain{static_cast<std::uint16_t>(bits)};
    good16 &= same(widen<float>(half), plain_value(bits, 5, 10));
    good_brain &= same(widen<float>(brain), plain_value(bits, 8, 7));
    good_double &= same(widen<double>(half), plain_value(bits, 5, 10)) && same(widen<double>(brain), plain_value(bits, 8, 7));
  }
  CHECK(good16);
  CHECK(good_brain);
  CHECK(good_double);
  static_assert(widen<float>(float16{0x3c00}) == 1.0f && widen<float>(bfloat16{0x3f80}) == 1.0f);
  static_assert(widen<double>(0.5) == 0.5);
  static_assert(sizeof(float16) == 2 && sizeof(bfloat16) == 2);
}

void names_of_types() {
  CHECK_EQUAL(name(dtype_of<float>), std::string("float32"));
  CHECK_EQUAL(name(dtype_of<double>), std::string("float64"));
  CHECK_EQUAL(name(dtype_of<float16>), std::string("float16"));
  CHECK_EQUAL(name(dtype_of<bfloat16>), std::string("bfloat16"));
  CHECK_EQUAL(name(dtype_of<bool>), std::string("bool"));
  CHECK_EQUAL(name(dtype_of<index_t>), std::string("int64"));
  CHECK_EQUAL(name(dtype_of<char>), std::string("none"));
  visit_arithmetic(dtype::float64, []<class T>() { CHECK((std::is_same_v<T, double>)); });
  visit_arithmetic(dtype::float32, []<class T>() { CHECK((std::is_same_v<T, float>)); });
}

struct one {
  static constexpr std::string_view name = "one";
};
struct two {
  static constexpr std::string_view name = "two";
};
struct three {
  static constexpr std::string_view name = "three";
};

void lists() {
  CHECK_EQUAL(names(type_list<one>{}), "'one'");
  CHECK_EQUAL(names(type_list<one, two>{}), "'one' or 'two'");
  CHECK_EQUAL(names(type_list<one, two, three>{}), "'one', 'two' or 'three'");
  std::string seen;
  for_each(type_list<one, two, three>{}, [&]<class T>() { seen += T::name; });
  CHECK_EQUAL(seen, "onetwothree");
  int calls = 0;
  visit_by_name(type_list<one, two, three>{}, "op", "kind", "two", [&]<class T>() {
    ++calls;
    CHECK((std::is_same_v<T, two>));
  });
  CHECK_EQUAL(calls, 1);
  CHECK_FAILS(value, "op: kind is 'tw'; expected 'one' or 'two'",
              visit_by_name(type_list<one, two>{}, "op", "kind", "tw", [&]<class T>() { CHECK(false); }));
  CHECK_FAILS(value, "op: kind is ''; expected 'one'", visit_by_name(type_list<one>{}, "op", "kind", "", [&]<class T>() { CHECK(false); }));
  for_each(separations{}, []<class T>() { CHECK(!T::name.empty()); });
}

/// As Python writes them, since the same sentence reaches Python.
void numbers_in_sentences() {
  const std::pair<double, const char*> cases[] = {
      {0.1, "0.1"},        {1, "1.0"},
      {-0.0, "-0.0"},      {-10, "-10.0"},
      {100, "100.0"},      {1234567, "1234567.0"},
      {0.25, "0.25"},      {1.0 / 3, "0.3333333333333333"},
      {NAN, "nan"},        {INFINITY, "inf"},
      {-INFINITY, "-inf"}, {1e300, "1e+300"},
      {5e-324, "5e-324"},  {-std::numeric_limits<double>::max(), "-1.7976931348623157e+308"},
  };
  for (const auto& [number, text] : cases) {
    try {
      CHECK_EQUAL(detail::text(number), text);
    } catch (const std::exception& thrown) {
      check::that(false, __FILE__, __LINE__, std::string(text) + " throws " + thrown.what());
    }
  }
  CHECK_EQUAL(detail::text(-3), "-3");
  CHECK_FAILS(type, "a, 1 and 2.0", fail(status::type, "a", ", ", 1, " and ", 2.0));
}

}  // namespace

int main() {
  halves();
  names_of_types();
  lists();
  numbers_in_sentences();
  return check::report();
}
