// SPDX-License-Identifier: BSD-3-Clause
/// The whole registry mechanism: a list of types that each carry a `name`. A new separation or feature map is a struct and one entry
/// in such a list; names, error texts and dispatch follow from it.
#pragma once

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>

#include "recollect/core/error.hpp"

namespace recollect {

template <class... Ts>
struct type_list {
  static constexpr int size = sizeof...(Ts);
};

/// One of a list, by name, and the number that it may be made with: "softmax" or {"entmax", 1.3}.
struct choice {
  std::string_view name;
  double parameter = std::numeric_limits<double>::quiet_NaN();

  choice(const char* wanted) : name(wanted) {}
  choice(std::string_view wanted, double number = std::numeric_limits<double>::quiet_NaN()) : name(wanted), parameter(number) {}
  bool has_parameter() const { return !std::isnan(parameter); }

  /// "'softmax'" or "('entmax', 1.3)"
  std::string text() const {
    const std::string quoted = "'" + std::string(name) + "'";
    if (!has_parameter()) return quoted;
    std::ostringstream number;
    number.precision(15);
    number << parameter;
    return "(" + quoted + ", " + number.str() + ")";
  }
};

template <class... Ts, class F>
void for_each(type_list<Ts...>, F&& f) {
  (f.template operator()<Ts>(), ...);
}

/// "softmax, sparsemax or hard"
template <class... Ts>
std::string names(type_list<Ts...>) {
  std::string text;
  int left = sizeof...(Ts);
  ((text += std::string(text.empty() ? "" : left == 1 ? " or " : ", ") + "'" + std::string(Ts::name) + "'", --left), ...);
  return text;
}

/// Calls f.template operator()<T>() for the T whose name is `wanted`; otherwise fails and lists the names there are.
template <class... Ts, class F>
void visit_by_name(type_list<Ts...> list, std::string_view op, std::string_view argument, const choice& wanted, F&& f) {
  const bool found = ((Ts::name == wanted.name && (f.template operator()<Ts>(), true)) || ...);
  if (!found) fail(status::value, op, ": ", argument, " is ", wanted.text(), "; expected ", names(list));
}

}  // namespace recollect
