// SPDX-License-Identifier: BSD-3-Clause
// expect: abstract
#include "recollect/core/parallel.hpp"

struct Inline : recollect::Executor {
#ifndef MISTAKE
  void run(recollect::index_t tasks, Task task, void* context) override {
    for (recollect::index_t i = 0; i < tasks; ++i) task(context, i);
  }
#endif
};

void use() {
  Inline executor;
  recollect::set_executor(&executor);
}
