// SPDX-License-Identifier: BSD-3-Clause
/// Energies of state patterns (spec/hopfield.hpp), and what their gradients take beside those of a recall:
///
///     E = -L / beta + |q|^2 / 2 + log(N) / beta + M^2 / 2,    L = log sum exp(beta X q)
///     d_state = g (q - X^T p),   d_patterns = -p^T (g q),   d_beta = sum of g (L - log N - beta p . (X q)) / beta^2
///
/// This is a recall that reads nothing, with -g / beta in the place of d_p - g . out. N and M are of the patterns that a row may see.
#pragma once

#include "recollect/cuda/warp_rows.hpp"

namespace recollect::cuda {

struct EnergyArguments {
  RecallArguments recall;    // its largest and log_sum are read
  float* squares = nullptr;  // (outer, patterns): |x|^2
  Operand<void> energy;
  Operand<const void> d_energy;
  float *dots = nullptr, *d_scales = nullptr;  // as in RecallBackwardArguments; d_scales has the part that is not through the scores
};

/// |x|^2 of a row, of a warp.
template <class Thread>
constexpr float square_of(const Thread& thread, const void* data, dtype type, index_t begin, index_t inner, int width, int lane) {
  float sum = 0;
  for (int k = lane; k < width; k += warp_size) {
    const float x = read(data, type, begin + k * inner);
    sum = std::fma(x, x, sum);
  }
  return sum_of_lanes<warp_size>(thread, sum);
}

/// |x|^2 of every pattern.
struct RecallSquares : WarpRows {
  using Arguments = EnergyArguments;
  static constexpr const char* name = "recall_squares";

  static constexpr index_t blocks(const Arguments& a) { return blocks_for(a.recall.outer * a.recall.patterns); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [pattern, o, c, lane] = place(thread, a.outer, a.patterns);
    if (pattern < 0) return;
    const index_t begin = a.outer_axes.offset(o, a.key.outer) + c * a.key.row;
    const float sum = square_of(thread, a.key.data, a.key.type, begin, a.key.inner, a.width, lane);
    if (lane == 0) arguments.squares[pattern] = sum;
  }
};

/// What the last two kernels know of a row.
struct Seen {
  float count = 0, square = 0;  // how many patterns, and the largest |x|^2
  double log_sum = 0, beta = 0;
};

template <class Thread>
constexpr Seen seen_by(const Thread& thread, const EnergyArguments& arguments, index_t o, index_t r, int lane) {
  const RecallArguments& a = arguments.recall;
  const Row row = row_of(a, o, r);
  int count = 0;
  float square = 0;
  for (index_t c = lane; c < a.patterns; c += warp_size) {
    if (score_of(a, row.sight, 1.0f, 0.0f, c) == -infinity) continue;
    ++count;
    const float here = arguments.squares ? arguments.squares[o * a.patterns + c] : 0.0f;
    square = here > square ? here : square;
  }
  const auto [largest, log_sum, scale] = a.offsets(o, r, a.largest, a.log_sum, a.scale);
  Seen seen;
  seen.count = sum_of_lanes<warp_size>(thread, static_cast<float>(count));
  seen.square = largest_of_lanes<warp_size>(thread, square);
  seen.log_sum = ln_2 * (static_cast<double>(read(a.largest.at.data, a.largest.type, largest)) +
                         static_cast<double>(read(a.log_sum.at.data, a.log_sum.type, log_sum)));
  seen.beta = a.scale_at(scale);
  return seen;
}

struct RecallEnergy : WarpRows {
  using Arguments = EnergyArguments;
  static constexpr const char* name = "recall_energy";

  static constexpr index_t blocks(const Arguments& a) { return blocks_for(a.recall.outer * a.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0 || a.rests(o, r)) return;
    const auto [query, energy] = a.offsets(o, r, a.query, arguments.energy);
    const Seen seen = seen_by(thread, arguments, o, r, lane);
    const float own = square_of(thread, a.query.at.data, a.query.type, query, a.query.at.inner, a.width, lane);
    if (lane != 0) return;
    const double free = (std::log(static_cast<double>(seen.count)) - seen.log_sum) / seen.beta;
    const double sum = seen.count == 0 ? infinity : free + (static_cast<double>(own) + static_cast<double>(seen.square)) / 2;
    write(arguments.energy.at.data, arguments.energy.type, energy, static_cast<float>(sum));
  }
};

/// Before the gradient: g / beta, and what beta gets beside the scores.
struct RecallEnergyDots : WarpRows {
  using Arguments = EnergyArguments;
  static constexpr const char* name = "recall_energy_dots";

  static constexpr index_t blocks(const Arguments& a) { return RecallEnergy::blocks(a); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const index_t at = a.offsets(o, r, arguments.d_energy)[0];
    const Seen seen = seen_by(thread, arguments, o, r, lane);
    if (lane != 0) return;
    const double dot = static_cast<double>(read(arguments.d_energy.at.data, arguments.d_energy.type, at)) / seen.beta;
    arguments.dots[row] = seen.count == 0 ? 0.0f : static_cast<float>(dot);
    if (!arguments.d_scales) return;
    const double direct = dot * (seen.log_sum - std::log(static_cast<double>(seen.count))) / seen.beta;
    arguments.d_scales[row] = seen.count == 0 ? 0.0f : static_cast<float>(direct);
  }
};

}  // namespace recollect::cuda
