// SPDX-License-Identifier: BSD-3-Clause
// expect: View<float
#include "recollect/core/view.hpp"

recollect::View<const float, 1> readable(const recollect::View<float, 1>& view) { return view; }
#ifdef MISTAKE
recollect::View<float, 1> writable(const recollect::View<const float, 1>& view) { return view; }
#endif
