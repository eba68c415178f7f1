// SPDX-License-Identifier: BSD-3-Clause
/// How large numbers are: whether the sums of a row can leave the range of its type is known before any sum is formed.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "recollect/core/parallel.hpp"
#include "recollect/ops/recall_problem.hpp"

namespace recollect::detail {

/// The largest size of a number in the memory of each outer entry. What is not a finite number may be hidden, and does not count.
template <class T>
class MemoryRange {
 public:
  MemoryRange(const RecallProblem<T>& p, bool separate) {
    stored_ = of_memories(p, [&](index_t o) { return p.stored_at(o); });
    value_ = separate ? of_memories(p, [&](index_t o) { return p.values_at(o); }) : stored_;
  }

  double stored(index_t outer) const { return stored_[outer]; }
  double value(index_t outer) const { return value_[outer]; }

 private:
  static constexpr index_t block = 1024;

  template <class MemoryAt>
  static std::vector<double> of_memories(const RecallProblem<T>& p, const MemoryAt& memory_at) {
    const index_t blocks = (p.patterns + block - 1) / block;
    std::vector<double> of_block(static_cast<std::size_t>(p.outer * blocks)), of_outer(static_cast<std::size_t>(p.outer), 0.0);
    parallel_for(p.outer * blocks, [&](index_t task) {
      const index_t first = task % blocks * block;
      of_block[task] = static_cast<double>(of_rows(memory_at(task / blocks), first, std::min(block, p.patterns - first)));
    });
    for (index_t task = 0; task < p.outer * blocks; ++task) of_outer[task / blocks] = std::max(of_outer[task / blocks], of_block[task]);
    return of_outer;
  }

  static T of_rows(const StoredRows& memory, index_t first, index_t count) {
    using P = Packet<T>;
    const Scratch::Frame frame(Scratch::local());
    Tile<T> tile;
    tile.buffer = Scratch::local().take<T>(count * padded<T>(memory.width));
    load_rows(memory, first, count, tile, copying::avoided);
    P most(T(0));
    for (index_t i = 0; i < count * tile.row_stride; i += P::width) {
      const P x = P::load(tile.rows + i);
      most = max(max(most, x), P(T(0)) - x);  // NaN is passed over
    }
    if (largest(most) <= std::numeric_limits<T>::max()) return largest(most);
    T finite = 0;
    for (index_t i = 0; i < count * tile.row_stride; ++i)
      if (const T size = std::abs(tile.rows[i]); size <= std::numeric_limits<T>::max()) finite = std::max(finite, size);
    return finite;
  }

  std::vector<double> stored_, value_;
};

template <class T>
double sum_of_sizes(const T* numbers, index_t count) {
  double sum = 0;
  for (index_t k = 0; k < count; ++k) sum += std::abs(static_cast<double>(numbers[k]));
  return sum;
}

}  // namespace recollect::detail
