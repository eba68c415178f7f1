// SPDX-License-Identifier: BSD-3-Clause
// expect: hopfield::gradients
#include "recollect/spec/hopfield.hpp"

recollect::hopfield::operands inputs(const recollect::ConstArray& state) { return {state, {}, {}, {}, {}}; }
#ifdef MISTAKE
recollect::hopfield::gradients outputs(const recollect::ConstArray& state) { return {state, {}, {}, {}, {}}; }
#endif
