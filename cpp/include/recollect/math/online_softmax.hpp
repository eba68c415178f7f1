// SPDX-License-Identifier: BSD-3-Clause
/// The state of a softmax over scores that arrive in pieces: the largest score so far and the sum of 2^(score - largest). Two states
/// merge into the state of both pieces; a piece without any admissible score, (-inf, 0), is the neutral one.
#pragma once

#include <cmath>
#include <limits>

namespace recollect::math {

template <class T>
struct OnlineSoftmax {
  T largest = -std::numeric_limits<T>::infinity();
  T sum = 0;

  /// What scores are taken relative to: finite even when nothing was admissible, so that -inf - (-inf) never arises.
  constexpr T reference() const { return largest == -std::numeric_limits<T>::infinity() ? T(0) : largest; }

  /// Raises `largest` to at least `score` and returns the factor that earlier sums, and whatever was weighted by them, shrink by.
  constexpr T raise(T score) {
    if (!(score > largest)) return T(1);
    const T factor = std::exp2(largest - score);
    largest = score;
    sum *= factor;
    return factor;
  }

  /// The logarithm, to the base 2, of the sum of 2^score.
  constexpr double log_sum() const { return static_cast<double>(largest) + std::log2(static_cast<double>(sum)); }
};

}  // namespace recollect::math
