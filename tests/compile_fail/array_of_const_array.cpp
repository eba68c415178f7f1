// SPDX-License-Identifier: BSD-3-Clause
// expect: BasicArray<void*>
#include "recollect/core/view.hpp"

recollect::ConstArray readable(const recollect::Array& array) { return array; }
#ifdef MISTAKE
recollect::Array writable(const recollect::ConstArray& array) { return array; }
#endif
