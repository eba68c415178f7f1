// SPDX-License-Identifier: BSD-3-Clause
/// All the test framework there is: a failed check prints where and what, the rest goes on, and `report` is what main returns.
#pragma once

#include <cmath>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>

#include "recollect/core/error.hpp"

namespace check {

inline int done = 0, failed = 0;

inline bool that(bool good, const char* file, int line, const std::string& what) {
  ++done;
  if (good) return true;
  // A broken kernel breaks every number; the first few say which.
  if (++failed <= 40) std::printf("%s:%d: %s\n", file, line, what.c_str());
  return false;
}

template <class T>
std::string shown(const T& value) {
  std::ostringstream text;
  text.precision(17);
  text << value;
  return text.str();
}

template <class A, class B>
bool equal(const A& a, const B& b, const char* file, int line, const char* what) {
  return that(a == b, file, line, std::string(what) + ": " + shown(a) + " and " + shown(b));
}

/// |a - b| <= bound, which NaN never is.
inline bool near(double a, double b, double bound, const char* file, int line, const char* what) {
  return that(std::abs(a - b) <= bound || a == b, file, line,
              std::string(what) + ": " + shown(a) + " and " + shown(b) + ", allowed " + shown(bound));
}

template <class Call>
void fails(recollect::status code, const std::string& sentence, const char* file, int line, Call&& call) {
  try {
    call();
  } catch (const recollect::error& error) {
    that(error.code() == code && error.what() == sentence, file, line,
         "status " + shown(static_cast<int>(error.code())) + ", \"" + error.what() + "\" and not \"" + sentence + "\"");
    return;
  } catch (const std::exception& error) {
    that(false, file, line, std::string("another exception: ") + error.what());
    return;
  }
  that(false, file, line, "nothing thrown; expected \"" + sentence + "\"");
}

inline int report() {
  std::printf("%d checks, %d failed\n", done, failed);
  return failed ? 1 : 0;
}

}  // namespace check

#define CHECK(condition) ::check::that(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
#define CHECK_EQUAL(a, b) ::check::equal(a, b, __FILE__, __LINE__, #a " == " #b)
#define CHECK_NEAR(a, b, bound) ::check::near(a, b, bound, __FILE__, __LINE__, #a " ~ " #b)
#define CHECK_FAILS(code, sentence, ...) ::check::fails(::recollect::status::code, sentence, __FILE__, __LINE__, [&] { __VA_ARGS__; })
