// SPDX-License-Identifier: BSD-3-Clause
/// A device that is emulated on the CPU, so that kernels run in tests where no GPU is. Every thread of a block is a fiber; barriers and
/// shuffles are where fibers change. What this finds: results that depend on the order of threads or blocks, barriers that are missing or
/// not met by all, shared memory, scratch or stack that is read before it is written (all of it holds NaN), writes beyond shared memory.
/// What it cannot find: what only hardware does, such as the order of memory accesses between barriers, and time.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <ucontext.h>
#include <vector>

#include "recollect/cuda/device.hpp"

namespace emulator {

using recollect::index_t;
using recollect::cuda::warp_size;
using Location = std::source_location;

inline std::string text(const Location& at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

/// The threads of one block, run to their ends in an order that the seed decides. In some blocks all warps are about as fast; in others
/// some are much faster, as far as they need not wait.
class Block {
 public:
  using Body = std::function<void(Block&, int)>;

  Block(int threads, index_t shared_bytes, index_t number)
      : shared_bytes_(shared_bytes),
        number_(number),
        fibers_(static_cast<std::size_t>(threads)),
        memory_(shared_bytes + guard + alignment) {
    shared_ = memory_.data() + (alignment - reinterpret_cast<std::uintptr_t>(memory_.data()) % alignment) % alignment;
  }
  virtual ~Block() = default;

  void run(const Body& body, std::mt19937_64& random) {
    std::memset(shared_, 0xff, static_cast<std::size_t>(shared_bytes_));
    std::memset(shared_ + shared_bytes_, 0x5a, guard);
    begin();
    body_ = &body;
    arrived_ = ended_ = 0;
    warps_.assign(fibers_.size() / warp_size, 0);
    ready_.resize(fibers_.size());
    std::iota(ready_.begin(), ready_.end(), 0);
    ranks_.resize(warps_.size());
    std::iota(ranks_.begin(), ranks_.end(), 0);
    std::shuffle(ranks_.begin(), ranks_.end(), random);
    tries_ = random() % 2 ? 1 : 12;
    for (Fiber& fiber : fibers_) start(fiber);
    while (work(random, ready_.empty()) || !ready_.empty()) {
      if (ready_.empty()) continue;
      std::swap(ready_[next(random)], ready_.back());
      current_ = ready_.back();
      ready_.pop_back();
      swapcontext(&scheduler_, &fibers_[current_].context);
      if (problem_) std::rethrow_exception(problem_);
    }
    if (ended_ < size()) throw std::runtime_error(standstill());
    for (index_t i = 0; i < guard; ++i)
      if (shared_[shared_bytes_ + i] != 0x5a) fail("something was written beyond the shared memory of the block");
  }

  void barrier(int thread, Location at) { any(thread, false, at); }

  bool any(int thread, bool condition, Location at) {
    Fiber& fiber = fibers_[thread];
    for (const Fiber& other : fibers_)
      if (other.state == State::at_barrier && other.at.line() != at.line())
        fail("thread " + std::to_string(thread) + " is at the barrier of " + text(at) + ", another at that of " + text(other.at));
    votes_ |= condition;
    if (++arrived_ == size()) {
      vote_ = votes_;
      votes_ = false;
      arrived_ = 0;
      for (int i = 0; i < size(); ++i)
        if (i != thread) wake(i);
      return vote_;
    }
    wait(fiber, State::at_barrier, at);
    return vote_;
  }

  float shuffle_xor(int thread, float x, int mask, Location at) { return shuffle(thread, x, thread % warp_size ^ mask, mask, at); }

  /// The x of a lane; `mask` is the same for all lanes that meet. Who gave another number than 0 is left in `votes`.
  float shuffle(int thread, float x, int source, int mask, Location at) {
    Fiber& fiber = fibers_[thread];
    const int warp = thread / warp_size, first = warp * warp_size;
    fiber.value = x;
    fiber.source = source;
    fiber.mask = mask;
    if (++warps_[warp] < warp_size) {
      wait(fiber, State::at_shuffle, at);
      return fiber.value;
    }
    warps_[warp] = 0;
    float results[warp_size];
    std::uint32_t votes = 0;
    for (int lane = 0; lane < warp_size; ++lane) {
      const Fiber& other = fibers_[first + lane];
      if (other.mask != mask || (first + lane != thread && other.at.line() != at.line()))
        fail("the lanes of warp " + std::to_string(warp) + " are at different shuffles, one of them in " + text(at));
      results[lane] = fibers_[first + other.source].value;
      votes |= static_cast<std::uint32_t>(other.value != 0) << lane;
    }
    for (int lane = 0; lane < warp_size; ++lane) {
      fibers_[first + lane].value = results[lane];
      fibers_[first + lane].votes = votes;
      if (first + lane != thread) wake(first + lane);
    }
    return fiber.value;
  }

  std::uint32_t ballot(int thread, bool condition, Location at) {
    shuffle(thread, condition ? 1.0f : 0.0f, thread % warp_size, ballot_mask, at);
    return fibers_[thread].votes;
  }

  char* shared() { return reinterpret_cast<char*>(shared_); }
  index_t number() const { return number_; }
  void become(index_t number) { number_ = number; }

 protected:
  enum class State { running, at_barrier, at_shuffle, elsewhere, ended };
  static constexpr std::size_t stack_bytes = 32768;
  static constexpr index_t guard = 256, alignment = 1024;
  static constexpr int ballot_mask = -2;

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    State state = State::running;
    Location at;
    float value = 0;
    int mask = 0, source = 0;
    std::uint32_t votes = 0;
  };

  /// What a card does beside its threads: made ready when a block begins, and a piece of it done, or not, between any two steps of
  /// threads. Returns whether something was done; when `idle`, something has to be done if there is anything.
  virtual void begin() {}
  virtual bool work(std::mt19937_64&, [[maybe_unused]] bool idle) { return false; }

  int size() const { return static_cast<int>(fibers_.size()); }

  void wait(int thread, Location at) { wait(fibers_[thread], State::elsewhere, at); }
  void wake(int thread) {
    fibers_[thread].state = State::running;
    ready_.push_back(thread);
  }
  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error("block " + std::to_string(number_) + ": " + what); }

  index_t shared_bytes_;
  unsigned char* shared_ = nullptr;

 private:
  /// The place among those that are ready of the one to go on: of some of them that of the fastest warp.
  std::size_t next(std::mt19937_64& random) const {
    std::size_t place = random() % ready_.size();
    for (int i = 1; i < tries_; ++i) {
      const std::size_t other = random() % ready_.size();
      if (ranks_[ready_[other] / warp_size] > ranks_[ready_[place] / warp_size]) place = other;
    }
    return place;
  }

  void start(Fiber& fiber) {
    std::memset(fiber.stack.get(), 0xff, stack_bytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    fiber.state = State::running;
    const auto self = reinterpret_cast<std::uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
  }

  static void enter(unsigned high, unsigned low) {
    Block& block = *reinterpret_cast<Block*>(static_cast<std::uintptr_t>(high) << 32 | low);
    const int thread = block.current_;
    try {
      (*block.body_)(block, thread);
    } catch (...) {
      block.problem_ = std::current_exception();
    }
    block.fibers_[thread].state = State::ended;
    ++block.ended_;
    swapcontext(&block.fibers_[thread].context, &block.scheduler_);
  }

  void wait(Fiber& fiber, State state, Location at) {
    fiber.state = state;
    fiber.at = at;
    swapcontext(&fiber.context, &scheduler_);
  }

  static const char* kind(State state) {
    return state == State::at_barrier ? "barrier" : state == State::at_shuffle ? "shuffle" : "asynchronous work";
  }

  std::string standstill() const {
    std::string what = "block " + std::to_string(number_) + " stands still: " + std::to_string(ended_) + " threads have ended";
    for (int i = 0; i < size(); ++i)
      if (fibers_[i].state != State::running && fibers_[i].state != State::ended)
        return what + ", thread " + std::to_string(i) + " waits at the " + kind(fibers_[i].state) + " of " + text(fibers_[i].at);
    return what;
  }

  index_t number_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned char> memory_;
  const Body* body_ = nullptr;
  ucontext_t scheduler_{};
  std::vector<int> ready_, warps_, ranks_;
  int tries_ = 1;
  int current_ = 0, arrived_ = 0, ended_ = 0;
  bool votes_ = false, vote_ = false;
  std::exception_ptr problem_;
};

/// What a kernel calls its thread.
class Thread {
 public:
  static constexpr int architecture = 0;  // portable kernels alone

  Thread(Block& block, int index) : block_(block), index_(index) {}

  int index() const { return index_; }
  index_t block() const { return block_.number(); }
  void barrier(Location at = Location::current()) const { block_.barrier(index_, at); }
  bool any(bool condition, Location at = Location::current()) const { return block_.any(index_, condition, at); }
  float shuffle_xor(float x, int mask, Location at = Location::current()) const { return block_.shuffle_xor(index_, x, mask, at); }
  float shuffle(float x, int lane, Location at = Location::current()) const { return block_.shuffle(index_, x, lane, -1, at); }
  std::uint32_t ballot(bool condition, Location at = Location::current()) const { return block_.ballot(index_, condition, at); }
  char* shared() const { return block_.shared(); }

 protected:
  Block& block_;
  int index_;
};

template <class BlockOf, class ThreadOf>
class DeviceOf {
 public:
  explicit DeviceOf(std::uint64_t seed = 0) : random_(seed) {}

  template <class Kernel>
  void launch(index_t blocks, index_t shared_bytes, [[maybe_unused]] const typename Kernel::Arguments& arguments) {
    ++launches;
    if constexpr (recollect::cuda::architecture_of<Kernel>() > ThreadOf::architecture) {
      throw std::logic_error(std::string(Kernel::name) + " is not for this device");
    } else {
      std::vector<index_t> order(static_cast<std::size_t>(blocks));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random_);
      BlockOf block(Kernel::threads, shared_bytes, 0);
      const Block::Body body = [&](Block& of, int thread) { Kernel::run(ThreadOf(static_cast<BlockOf&>(of), thread), arguments); };
      for (index_t number : order) {
        block.become(number);
        block.run(body, random_);
      }
    }
  }

  void* scratch(index_t bytes) {
    scratch_.emplace_back(static_cast<std::size_t>(bytes), static_cast<unsigned char>(0xff));
    return scratch_.back().data();
  }

  std::size_t taken() const { return scratch_.size(); }
  void give_back(std::size_t before) { scratch_.resize(before); }

  int architecture() const { return ThreadOf::architecture; }

  int launches = 0;

 private:
  std::mt19937_64 random_;
  std::vector<std::vector<unsigned char>> scratch_;
};

using Device = DeviceOf<Block, Thread>;

}  // namespace emulator
