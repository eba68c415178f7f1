// SPDX-License-Identifier: BSD-3-Clause
// expect: nameless
#include "recollect/core/type_list.hpp"

struct named {
  static constexpr std::string_view name = "named";
};
struct nameless {
#ifndef MISTAKE
  static constexpr std::string_view name = "nameless";
#endif
};

std::string all() { return recollect::names(recollect::type_list<named, nameless>{}); }
