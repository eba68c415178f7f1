// SPDX-License-Identifier: BSD-3-Clause
/// One row of a recall by its definition, in the next wider arithmetic: for the rare rows whose scores or sums leave the range of T
/// although every input is finite. Slow, short and never wrong by overflow.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "recollect/ops/stored.hpp"

namespace recollect::detail {

template <class T>
using wider = std::conditional_t<std::is_same_v<T, float>, double, long double>;

template <class W>
W stored_number(const StoredRows& rows, index_t i, index_t k) {
  const index_t place = i * rows.row + k * rows.column;
  switch (rows.type) {
    case dtype::float64: return static_cast<W>(static_cast<const double*>(rows.data)[place]);
    case dtype::float16: return static_cast<W>(widen<float>(static_cast<const float16*>(rows.data)[place]));
    case dtype::bfloat16: return static_cast<W>(widen<float>(static_cast<const bfloat16*>(rows.data)[place]));
    default: return static_cast<W>(static_cast<const float*>(rows.data)[place]);
  }
}

/// Writes the read to `out` (unless null) and returns log sum_i exp(beta x_i.q) over the admissible patterns.
template <class T>
wider<T> plain_recall(const T* state, double beta, const StoredRows& stored, const StoredRows& values, index_t patterns,
                      const bool* mask, index_t mask_stride, T* out) {
  using W = wider<T>;
  std::vector<W> score(static_cast<std::size_t>(patterns), -std::numeric_limits<W>::infinity());
  W largest = -std::numeric_limits<W>::infinity(), sum = 0;
  for (index_t i = 0; i < patterns; ++i) {
    if (mask && !mask[i * mask_stride]) continue;
    W product = 0;
    for (index_t k = 0; k < stored.width; ++k) product += static_cast<W>(state[k]) * stored_number<W>(stored, i, k);
    score[i] = static_cast<W>(beta) * product;
    if (!(score[i] <= largest)) largest = score[i];  // NaN is taken over, not passed over
  }
  std::vector<W> read(out ? static_cast<std::size_t>(values.width) : 0, W(0));
  for (index_t i = 0; i < patterns; ++i) {
    if (mask && !mask[i * mask_stride]) continue;
    const W weight = std::exp(score[i] - largest);
    sum += weight;
    if (weight == 0) continue;
    for (std::size_t k = 0; k < read.size(); ++k) read[k] += weight * stored_number<W>(values, i, static_cast<index_t>(k));
  }
  for (std::size_t k = 0; k < read.size(); ++k) out[k] = static_cast<T>(read[k] / sum);
  return largest + std::log(sum);
}

}  // namespace recollect::detail
