// SPDX-License-Identifier: BSD-3-Clause
/// Working memory of a task: one aligned block per thread, grown when a task asks for more than any before it and then kept, so
/// that the inner loops never allocate. `Scratch::Frame` gives what was taken in its scope back at its end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

#include "recollect/core/dtype.hpp"

namespace recollect {

class Scratch {
 public:
  static constexpr std::size_t alignment = 64;

  /// The calling thread's own.
  static Scratch& local() {
    thread_local Scratch scratch;
    return scratch;
  }

  template <class T>
  T* take(index_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
    if (chunk_ == chunks_.size() || used_ + bytes > chunks_[chunk_].size) next_chunk(bytes);
    std::byte* place = chunks_[chunk_].memory.get() + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(place);
  }

  class Frame {
   public:
    explicit Frame(Scratch& scratch) : scratch_(scratch), chunk_(scratch.chunk_), used_(scratch.used_) {}
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    ~Frame() {
      scratch_.chunk_ = chunk_;
      scratch_.used_ = used_;
    }

   private:
    Scratch& scratch_;
    std::size_t chunk_, used_;
  };

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{alignment}); }
  };
  struct Chunk {
    std::unique_ptr<std::byte[], Free> memory;
    std::size_t size;
  };

  /// Places stay valid when a task asks for more: a new chunk is opened and the old ones are not moved.
  void next_chunk(std::size_t bytes) {
    std::size_t next = chunk_ == chunks_.size() ? chunk_ : chunk_ + 1;
    while (next < chunks_.size() && chunks_[next].size < bytes) ++next;
    if (next == chunks_.size()) {
      const std::size_t size = bytes > smallest ? bytes : smallest;
      auto* memory = static_cast<std::byte*>(::operator new[](size, std::align_val_t{alignment}));
      chunks_.push_back({std::unique_ptr<std::byte[], Free>(memory), size});
    }
    chunk_ = next;
    used_ = 0;
  }

  static constexpr std::size_t smallest = std::size_t{1} << 20;
  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0, used_ = 0;
};

/// Memory for `count` objects, aligned like scratch and not initialised. A large one asks the system for large pages: with small ones,
/// being given memory costs as much as going through it once or twice.
template <class U>
struct Buffer {
  struct Free {
    std::align_val_t alignment{};
    void operator()(U* p) const { ::operator delete[](p, alignment); }
  };
  std::unique_ptr<U[], Free> memory;

  explicit Buffer(index_t count) {
    const std::size_t bytes = static_cast<std::size_t>(std::max<index_t>(count, 1)) * sizeof(U);
    const std::size_t unit = bytes >= page ? page : Scratch::alignment, whole = (bytes + unit - 1) / unit * unit;
    const std::align_val_t alignment{unit};
    memory = {static_cast<U*>(::operator new[](whole, alignment)), Free{alignment}};
#ifdef MADV_HUGEPAGE
    if (bytes >= page) madvise(memory.get(), whole, MADV_HUGEPAGE);  // a wish: nothing depends on the answer
#endif
  }
  U* data() const { return memory.get(); }

 private:
  static constexpr std::size_t page = std::size_t{1} << 21;
};

}  // namespace recollect
