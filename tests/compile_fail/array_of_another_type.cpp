// SPDX-License-Identifier: BSD-3-Clause
// expect: recollect::ConstArray
#include "recollect/core/view.hpp"

recollect::ConstArray whole(const recollect::index_t* numbers) { return {numbers, {4}}; }
#ifdef MISTAKE
recollect::ConstArray letters(const char* numbers) { return {numbers, {4}}; }
#endif
