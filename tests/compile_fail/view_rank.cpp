// SPDX-License-Identifier: BSD-3-Clause
// expect: static assertion
#include "recollect/core/view.hpp"

float first(const recollect::View<float, 2>& rows) {
#ifdef MISTAKE
  return rows(0);
#else
  return rows(0, 0);
#endif
}
