// SPDX-License-Identifier: BSD-3-Clause
/// One exception for every wrong call. The status says which family the mistake belongs to, so that each language can raise its own
/// kind; the sentence names the op, the argument, what came and what was expected.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace recollect {

enum class status { ok = 0, value = 1, type = 2, memory = 3, runtime = 4 };

class error : public std::runtime_error {
 public:
  error(status code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}
  status code() const noexcept { return code_; }

 private:
  status code_;
};

namespace detail {

inline std::string text(std::string_view part) { return std::string(part); }
inline std::string text(const char* part) { return part; }

/// The shortest decimal that reads back as the same double, as in Python: 0.1 and not 0.10000000000000001, 100.0 and not 1e+02.
inline std::string text(double number) {
  char buffer[64];
  int digits = 1;
  for (; digits < 17; ++digits) {
    std::snprintf(buffer, sizeof buffer, "%.*g", digits, number);
    if (std::strtod(buffer, nullptr) == number) break;
  }
  std::snprintf(buffer, sizeof buffer, "%.*g", digits, number);
  const double size = number < 0 ? -number : number;
  if (size >= 1e-4 && size < 1e16) {
    int before = 1;  // digits before the point
    for (double power = 10; power <= size; power *= 10) ++before;
    for (double power = 1; power > size; power /= 10) --before;
    std::snprintf(buffer, sizeof buffer, "%.*f", digits > before ? digits - before : 1, number);
  }
  if (number == 0) return std::signbit(number) ? "-0.0" : "0.0";
  return buffer;
}

template <class Integer>
  requires std::is_integral_v<Integer>
std::string text(Integer number) {
  return std::to_string(number);
}

}  // namespace detail

/// Throws `error` with the parts joined to one sentence.
template <class... Parts>
[[noreturn]] void fail(status code, const Parts&... parts) {
  throw error(code, (detail::text(parts) + ...));
}

}  // namespace recollect
