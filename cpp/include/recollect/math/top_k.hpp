// SPDX-License-Identifier: BSD-3-Clause
/// The k largest scores and where they were, kept while scores stream by. The order is total: a larger score first, among equals the
/// lower index, so that a selection never depends on how the scores were cut into pieces.
#pragma once

#include <cstdint>
#include <limits>

namespace recollect::math {

/// Places for k scores in falling order; index -1 marks one that was never filled. The memory belongs to the caller.
template <class T>
struct TopK {
  T* score = nullptr;
  std::int64_t* index = nullptr;
  std::int64_t k = 0;

  void reset() const {
    for (std::int64_t i = 0; i < k; ++i) {
      score[i] = -std::numeric_limits<T>::infinity();
      index[i] = -1;
    }
  }

  /// A score must be larger than this to enter.
  T threshold() const { return score[k - 1]; }

  /// For scores that come in rising order of index: equal ones go behind.
  void offer(T new_score, std::int64_t new_index) const {
    if (!(new_score > threshold())) return;
    std::int64_t place = k - 1;
    for (; place > 0 && new_score > score[place - 1]; --place) {
      score[place] = score[place - 1];
      index[place] = index[place - 1];
    }
    score[place] = new_score;
    index[place] = new_index;
  }

  /// Takes in what was selected from higher indices.
  void merge(const TopK& later) const {
    for (std::int64_t i = 0; i < later.k && later.index[i] >= 0; ++i) offer(later.score[i], later.index[i]);
  }
};

}  // namespace recollect::math
