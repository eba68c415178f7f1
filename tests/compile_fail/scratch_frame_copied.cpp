// SPDX-License-Identifier: BSD-3-Clause
// expect: deleted
#include "recollect/core/scratch.hpp"

void work() {
  const recollect::Scratch::Frame frame(recollect::Scratch::local());
#ifdef MISTAKE
  const recollect::Scratch::Frame second(frame);
#endif
}
