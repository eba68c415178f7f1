// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "recollect/spec/hopfield.hpp"

namespace recollect::cuda {

/// What the gradient of several steps of `retrieve` needs of each: the state that came out of it (not of the last) and what was saved.
struct RetrievalStep {
  Array state;  // (..., n, d), of the state's type
  hopfield::basic_saved<Array> saved;
};

}  // namespace recollect::cuda
