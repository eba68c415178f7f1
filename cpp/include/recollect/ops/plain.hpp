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
    case dtype::float64:
      return static_cast<W>(static_cast<const double*>(rows.data)[place]);
    case dtype::float16:
      return static_cast<W>(widen<float>(static_cast<const float16*>(rows.data)[place]));
    case dtype::bfloat16:
      return static_cast<W>(widen<float>(static_cast<const bfloat16*>(rows.data)[place]));
    default:
      return static_cast<W>(static_cast<const float*>(rows.data)[place]);
  }
}

/// The memory as one row sees it, for the plain definitions.
template <class T>
struct PlainMemory {
  StoredRows stored, values;
  index_t patterns = 0;
  const bool* mask = nullptr;
  index_t mask_stride = 0;
  index_t limit = 0;
  const T* bias = nullptr;
  index_t bias_stride = 0;
  const double* sink = nullptr;

  bool admits(index_t i) const {
    return i < limit && (!mask || mask[i * mask_stride]) && (!bias || bias[i * bias_stride] != -std::numeric_limits<T>::infinity());
  }
};

/// beta x_i.q + bias_i
template <class T>
wider<T> plain_score(const T* state, double beta, const PlainMemory<T>& memory, index_t i) {
  using W = wider<T>;
  W product = 0;
  for (index_t k = 0; k < memory.stored.width; ++k) product += static_cast<W>(state[k]) * stored_number<W>(memory.stored, i, k);
  return static_cast<W>(beta) * product + (memory.bias ? static_cast<W>(memory.bias[i * memory.bias_stride]) : W(0));
}

template <class T>
struct PlainRow {
  using W = wider<T>;
  std::vector<W> weight;  // softmax, 0 where not admissible
  W log_sum;              // log sum_i exp(beta x_i.q)
  W norm;                 // the largest |x_i|^2

  PlainRow(const T* state, double beta, const PlainMemory<T>& memory) : weight(static_cast<std::size_t>(memory.patterns), W(0)) {
    W largest = -std::numeric_limits<W>::infinity(), sum = 0;
    norm = 0;
    for (index_t i = 0; i < memory.patterns; ++i) {
      if (!memory.admits(i)) continue;
      W square = 0;
      for (index_t k = 0; k < memory.stored.width; ++k) {
        const W x = stored_number<W>(memory.stored, i, k);
        square += x * x;
      }
      weight[i] = plain_score<T>(state, beta, memory, i);
      if (!(weight[i] <= largest)) largest = weight[i];  // NaN is taken over, not passed over
      norm = std::max(norm, square);
    }
    if (memory.sink) largest = std::max(largest, static_cast<W>(*memory.sink));
    if (memory.sink) sum = std::exp(static_cast<W>(*memory.sink) - largest);
    for (index_t i = 0; i < memory.patterns; ++i) {
      weight[i] = memory.admits(i) ? std::exp(weight[i] - largest) : W(0);
      sum += weight[i];
    }
    for (W& w : weight) w /= sum;
    log_sum = largest + std::log(sum);
  }

  /// out = sum_i p_i v_i. A weight of 0 leaves a pattern out, whatever it holds.
  void read(const PlainMemory<T>& memory, T* out) const {
    for (index_t k = 0; k < memory.values.width; ++k) {
      W total = 0;
      for (index_t i = 0; i < memory.patterns; ++i)
        if (weight[i] != 0) total += weight[i] * stored_number<W>(memory.values, i, k);
      out[k] = static_cast<T>(total);
    }
  }

  /// Gradients of one row; see RecallBackward. `cotangent` is that of the read, or null and `d_lse` that of lse. Adds to those of the
  /// memory, writes d_state and returns d_beta; any of them may be null.
  W backward(const PlainMemory<T>& memory, const T* state, double beta, const T* cotangent, W d_lse, T* d_state, T* d_stored, T* d_values,
             T* d_bias, index_t d_bias_stride, double* d_sink) const {
    std::vector<W> d_weight(weight.size(), W(0)), total(static_cast<std::size_t>(memory.stored.width), W(0));
    W mean = 0, d_beta = 0;
    for (index_t i = 0; cotangent && i < memory.patterns; ++i) {
      if (weight[i] == 0) continue;
      for (index_t k = 0; k < memory.values.width; ++k) d_weight[i] += static_cast<W>(cotangent[k]) * stored_number<W>(memory.values, i, k);
      mean += weight[i] * d_weight[i];
    }
    for (index_t i = 0; i < memory.patterns; ++i) {
      if (weight[i] == 0) continue;
      const W d_score = weight[i] * (cotangent ? d_weight[i] - mean : d_lse / static_cast<W>(beta));
      for (index_t k = 0; k < memory.stored.width; ++k) {
        const W x = stored_number<W>(memory.stored, i, k), q = static_cast<W>(state[k]);
        total[k] += d_score * x;
        d_beta += d_score * x * q;
        if (d_stored) d_stored[i * memory.stored.width + k] += static_cast<T>(d_score * static_cast<W>(beta) * q);
      }
      if (d_bias) d_bias[i * d_bias_stride] += static_cast<T>(d_score);
      for (index_t k = 0; cotangent && d_values && k < memory.values.width; ++k)
        d_values[i * memory.values.width + k] += static_cast<T>(weight[i] * static_cast<W>(cotangent[k]));
    }
    for (index_t k = 0; d_state && k < memory.stored.width; ++k) d_state[k] = static_cast<T>(static_cast<W>(beta) * total[k]);
    if (d_sink) *d_sink = static_cast<double>(-std::exp(static_cast<W>(*memory.sink) - log_sum) * mean);
    return d_beta;
  }
};

}  // namespace recollect::detail
