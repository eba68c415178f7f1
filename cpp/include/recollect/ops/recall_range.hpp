// SPDX-License-Identifier: BSD-3-Clause
/// How large numbers are: whether the sums of a row can leave the range of its type is known before any sum is formed.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "recollect/core/parallel.hpp"
#include "recollect/ops/plain.hpp"
#include "recollect/ops/recall_problem.hpp"

namespace recollect::detail {

/// The largest size of a number in the memory of each outer entry. What is not a finite number may be hidden, and does not count.
template <class T>
class MemoryRange {
 public:
  MemoryRange(const RecallProblem<T>& p, bool separate) : stored_(static_cast<std::size_t>(p.outer)), value_(stored_.size()) {
    parallel_for(p.outer, [&](index_t o) {
      stored_[o] = largest(p.stored_at(o), p.patterns);
      value_[o] = separate ? largest(p.values_at(o), p.patterns) : stored_[o];
    });
  }

  double stored(index_t outer) const { return stored_[outer]; }
  double value(index_t outer) const { return value_[outer]; }

 private:
  static double largest(const StoredRows& rows, index_t count) {
    T most = 0;
    for (index_t i = 0; i < count; ++i)
      for (index_t k = 0; k < rows.width; ++k) {
        const T size = std::abs(stored_number<T>(rows, i, k));
        if (size <= std::numeric_limits<T>::max()) most = std::max(most, size);
      }
    return static_cast<double>(most);
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
