// SPDX-License-Identifier: BSD-3-Clause
/// parallel_for: every task once, whatever happens around it.
#include "check.hpp"
#include <atomic>
#include <thread>
#include <unistd.h>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>

#include "recollect/core/parallel.hpp"

using namespace recollect;

namespace {

bool each_once(index_t tasks) {
  std::vector<std::atomic<int>> times(static_cast<std::size_t>(tasks));
  parallel_for(tasks, [&](index_t i) { ++times[i]; });
  for (auto& count : times)
    if (count != 1) return false;
  return true;
}

/// What the exception of a region says, or "none".
std::string thrown(index_t tasks, index_t every) {
  try {
    parallel_for(tasks, [&](index_t i) {
      if (i % every == every - 1) fail(status::runtime, "task ", i);
    });
  } catch (const error& e) {
    return e.what();
  }
  return "none";
}

void all_tasks_and_exceptions() {
  for (int threads : {1, 2, 3, 7, 64, 3}) {
    set_num_threads(threads);
    CHECK_EQUAL(get_num_threads(), threads);
    for (index_t tasks : {-1, 0, 1, 2, 5, 64, 1000}) CHECK(each_once(tasks < 0 ? 0 : tasks));
    for (int repeat = 0; repeat < 20; ++repeat) {
      const std::string what = thrown(100, 10);
      CHECK(what.starts_with("task ") && what.back() == '9');
      CHECK(each_once(64));
    }
    CHECK_EQUAL(thrown(100, 100), "task 99");
    CHECK_EQUAL(thrown(1, 1), "task 0");
  }
  set_num_threads(1);
  CHECK_EQUAL(thrown(100, 10), "task 9");  // the first
  parallel_for(-5, [](index_t) { CHECK(false); });
  CHECK_FAILS(value, "set_num_threads: n is 0; expected a number from 1 to 1024", set_num_threads(0));
  CHECK_FAILS(value, "set_num_threads: n is 1025; expected a number from 1 to 1024", set_num_threads(1025));
  CHECK_EQUAL(get_num_threads(), 1);
}

void nested() {
  set_num_threads(4);
  std::atomic<int> count = 0;
  parallel_for(8, [&](index_t) { parallel_for(16, [&](index_t) { parallel_for(3, [&](index_t) { ++count; }); }); });
  CHECK_EQUAL(count.load(), 8 * 16 * 3);
  std::atomic<int> caught = 0;  // an inner exception stays inside
  parallel_for(8, [&](index_t) { caught += thrown(4, 4) == "task 3"; });
  CHECK_EQUAL(caught.load(), 8);
}

void several_callers() {
  set_num_threads(3);
  std::atomic<bool> good = true, stop = false;
  const auto call = [&] {
    for (int i = 0; i < 200; ++i) good = good && each_once(1 + i % 30);
  };
  std::thread changes([&] {  // while regions run
    for (int i = 0; !stop; ++i) set_num_threads(1 + i % 4), std::this_thread::yield();
  });
  std::thread one(call), two(call);
  one.join();
  two.join();
  stop = true;
  changes.join();
  CHECK(good.load());
}

struct Counting final : Executor {
  int regions = 0;
  void run(index_t tasks, Task task, void* context) override {
    ++regions;
    for (index_t i = tasks; i-- > 0;) task(context, i);
  }
};

void injected() {
  Counting executor;
  set_executor(&executor);
  CHECK(each_once(10) && each_once(2));
  CHECK_EQUAL(executor.regions, 2);
  CHECK_EQUAL(thrown(10, 5), "task 9");
  set_executor(nullptr);
  CHECK(each_once(10));
  CHECK_EQUAL(executor.regions, 3);
}

void after_fork() {
#if !defined(__SANITIZE_THREAD__)  // which does not support threads in a child
  for (int threads : {1, 4}) {
    set_num_threads(threads);
    CHECK(each_once(100));
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);  // a child that hangs is a failure and not a wait
      bool good = each_once(100) && thrown(10, 10) == "task 9";
      set_num_threads(3);
      good = good && each_once(100);
      const pid_t grandchild = fork();
      if (grandchild == 0) _exit(each_once(100) ? 0 : 1);
      int result = 1;
      waitpid(grandchild, &result, 0);
      _exit(good && result == 0 ? 0 : 1);
    }
    int result = 1;
    waitpid(child, &result, 0);
    CHECK_EQUAL(result, 0);
    CHECK(each_once(100));
  }
#endif
}

/// Where the system gives fewer threads than were asked for, the work is done by those there are.
void threads_not_to_be_had() {
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)  // whose own memory is beyond any limit
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    const rlimit memory{rlim_t{512} << 20, rlim_t{512} << 20};  // some dozens of stacks
    setrlimit(RLIMIT_AS, &memory);
    set_num_threads(1024);
    bool good = each_once(1000) && thrown(1000, 1000) == "task 999";
    set_num_threads(2);
    good = good && each_once(1000);
    _exit(good ? 0 : 1);
  }
  int result = 1;
  waitpid(child, &result, 0);
  CHECK_EQUAL(result, 0);
#endif
}

}  // namespace

int main() {
  all_tasks_and_exceptions();
  nested();
  several_callers();
  injected();
  after_fork();
  threads_not_to_be_had();
  return check::report();
}
