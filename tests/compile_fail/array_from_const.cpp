// SPDX-License-Identifier: BSD-3-Clause
// expect: recollect::Array
#include "recollect/core/view.hpp"

recollect::ConstArray readable(const float* numbers) { return {numbers, {2, 3}}; }
#ifdef MISTAKE
recollect::Array writable(const float* numbers) { return {numbers, {2, 3}}; }
#endif
