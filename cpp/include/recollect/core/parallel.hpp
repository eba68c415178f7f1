// SPDX-License-Identifier: BSD-3-Clause
/// `parallel_for(tasks, body)` runs body(0) ... body(tasks - 1) on the current executor. How a problem is cut into tasks never
/// depends on the number of threads, so results do not either.
///
/// The default executor is a small pool of std::thread that wakes by atomic wait: no OpenMP (it hangs a forked child), no condition
/// variable (it raises the oldest C library a wheel can run on). A program with a pool of its own injects it with `set_executor`.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <system_error>
#include <thread>
#include <type_traits>
#include <unistd.h>

#include "recollect/core/dtype.hpp"
#include "recollect/core/error.hpp"

namespace recollect {

class Executor {
 public:
  using Task = void (*)(void* context, index_t task);
  virtual ~Executor() = default;
  /// Calls task(context, i) once for every i in [0, tasks) and returns when all are done. A task may throw: the first exception is
  /// rethrown here.
  virtual void run(index_t tasks, Task task, void* context) = 0;
};

namespace detail {

inline int default_threads() {
  if (const char* wanted = std::getenv("RECOLLECT_NUM_THREADS")) {
    const long count = std::strtol(wanted, nullptr, 10);
    if (count >= 1 && count <= 1024) return static_cast<int>(count);
  }
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}

/// One parallel region: tasks are handed out by a counter, so that a late or slow thread holds up nobody else.
struct Region {
  index_t tasks = 0;
  Executor::Task task = nullptr;
  void* context = nullptr;
  std::atomic<index_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr exception;

  void work() noexcept {
    for (index_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) {
      try {
        if (!failed.load(std::memory_order_relaxed)) task(context, i);
      } catch (...) {
        if (!failed.exchange(true)) exception = std::current_exception();
      }
    }
  }
};

class ThreadPool final : public Executor {
 public:
  /// Where the system gives fewer threads than wanted, the pool works with those it has.
  explicit ThreadPool(int wanted) : wanted_(wanted) {
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  int wanted() const { return wanted_; }

  /// A second caller at the same time, or a task that itself calls parallel_for, runs its tasks on its own thread.
  void run(index_t tasks, Task task, void* context) override {
    Region region;
    region.tasks = tasks;
    region.task = task;
    region.context = context;
    if (tasks <= 1 || threads_ <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
      region.work();
    } else {
      region_ = &region;
      gate_.store(open, std::memory_order_release);
      generation_.fetch_add(1, std::memory_order_release);
      generation_.notify_all();
      region.work();
      gate_.fetch_and(~open, std::memory_order_acq_rel);
      for (int inside = gate_.load(std::memory_order_acquire); inside != 0; inside = gate_.load(std::memory_order_acquire))
        gate_.wait(inside, std::memory_order_acquire);
      busy_.store(false, std::memory_order_release);
    }
    if (region.exception) std::rethrow_exception(region.exception);
  }

  /// Workers leave; the object itself must outlive them and is therefore never freed (see `Pools`).
  void retire() {
    stop_.store(true, std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }

 private:
  // The gate counts the workers inside a region in steps of `one`; the lowest bit says whether more may enter.
  static constexpr int open = 1, one = 2;
  static constexpr int spins = 20000;  // some 20 us: calls one after the other find workers awake, who take as long to wake up

  bool enter() {
    int gate = gate_.load(std::memory_order_acquire);
    while (gate & open)
      if (gate_.compare_exchange_weak(gate, gate + one, std::memory_order_acq_rel)) return true;
    return false;
  }

  void serve() noexcept {
    int seen = 0;
    while (true) {
      for (int spin = 0; spin < spins && generation_.load(std::memory_order_acquire) == seen; ++spin) {
      }
      generation_.wait(seen, std::memory_order_acquire);
      seen = generation_.load(std::memory_order_acquire);
      if (stop_.load(std::memory_order_acquire)) return;
      if (!enter()) continue;
      region_->work();
      if (gate_.fetch_sub(one, std::memory_order_acq_rel) == one) gate_.notify_all();
    }
  }

  friend class Pools;
  const int wanted_;
  int threads_ = 1;  // the caller of a region is one of them
  ThreadPool* retired_before_ = nullptr;
  Region* region_ = nullptr;
  std::atomic<bool> busy_{false}, stop_{false};
  std::atomic<int> gate_{0}, generation_{0};
};

/// The current pool of this process. Pools are made when first used and never freed, only kept in a list: a worker may still be waking
/// up in one, and a forked child inherits the memory of its parent's pool but none of its threads, so it starts its own.
class Pools {
 public:
  static Pools& instance() {
    static Pools* pools = new Pools;
    return *pools;
  }

  int threads() const { return threads_.load(); }

  void set_threads(int count) {
    threads_.store(count);
    put_away(pool_.exchange(nullptr));
  }

  ThreadPool& pool() {
    while (true) {
      ThreadPool* current = pool_.load(std::memory_order_acquire);
      if (current && process_.load() == getpid() && current->wanted() == threads_.load()) return *current;
      if (current && process_.load() != getpid()) current->stop_.store(true);  // its workers stayed in the parent
      auto* fresh = new ThreadPool(threads_.load());
      process_.store(getpid());
      if (pool_.compare_exchange_strong(current, fresh))
        put_away(current);
      else
        put_away(fresh);
    }
  }

  std::atomic<Executor*> injected{nullptr};

 private:
  void put_away(ThreadPool* pool) {
    if (!pool) return;
    pool->retire();
    ThreadPool* before = retired_.load();
    do pool->retired_before_ = before;
    while (!retired_.compare_exchange_weak(before, pool));
  }

  std::atomic<int> threads_{default_threads()};
  std::atomic<ThreadPool*> pool_{nullptr}, retired_{nullptr};
  std::atomic<pid_t> process_{0};
};

}  // namespace detail

inline int get_num_threads() { return detail::Pools::instance().threads(); }

inline void set_num_threads(int count) {
  if (count < 1 || count > 1024) fail(status::value, "set_num_threads: n is ", count, "; expected a number from 1 to 1024");
  detail::Pools::instance().set_threads(count);
}

/// Runs all later regions on `executor` (nullptr: on the library's own pool again). The caller keeps it alive.
inline void set_executor(Executor* executor) { detail::Pools::instance().injected.store(executor); }

template <class Body>
void parallel_for(index_t tasks, Body&& body) {
  if (tasks <= 0) return;
  using Callable = std::remove_reference_t<Body>;
  auto call = [](void* context, index_t task) { (*static_cast<Callable*>(context))(task); };
  auto& pools = detail::Pools::instance();
  Executor* executor = pools.injected.load();
  if (tasks == 1)
    body(index_t{0});
  else
    (executor ? *executor : pools.pool()).run(tasks, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace recollect
