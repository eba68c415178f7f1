// SPDX-License-Identifier: BSD-3-Clause
/// What the kernels of a recall (attention, Hopfield retrieval) are given, and the arithmetic of where things are. Rows are queries of all
/// leading axes along which the memory stays the same; outer entries each have a memory of their own (core/placement.hpp).
#pragma once

#include "recollect/core/placement.hpp"
#include "recollect/cuda/number.hpp"

namespace recollect::cuda {

/// visit(axis, place along it) for every axis of a flat number, the last first. Divisions are slow on a device: whoever needs several
/// offsets takes them in one walk.
template <class Visit>
constexpr void walk(const Axes& axes, index_t flat, Visit&& visit) {
  for (int axis = axes.rank - 1; axis >= 0; --axis) {
    const index_t rest = flat / axes.extents[axis];
    visit(axis, flat - rest * axes.extents[axis]);
    flat = rest;
  }
}

/// An operand or output with its element type.
template <class P>
struct Operand {
  detail::Placed<P> at;
  dtype type = dtype::none;

  constexpr bool given() const { return type != dtype::none; }
};

/// A memory, or its gradient: a row for every pattern.
template <class P>
struct PatternRows {
  P* data = nullptr;
  dtype type = dtype::none;
  detail::Strides outer{};
  index_t row = 0, inner = 0;

  constexpr bool given() const { return type != dtype::none; }
};

using Memory = PatternRows<const void>;
using MemoryGradient = PatternRows<void>;

struct RecallArguments {
  Axes outer_axes, row_axes;
  index_t outer = 0, rows = 0, patterns = 0, splits = 1;
  int width = 0, value_width = 0;
  float scale_number = 1;       // where no scale is given
  bool lse_over_scale = false;  // as energies have it
  detail::Causal causal;
  Operand<const void> query, mask, bias, scale;
  Memory key, value;  // no value: the keys are read
  Operand<void> out, lse, largest, log_sum;
  /// Of every split, outer entry and row: the sums before they are divided, and (largest, sum).
  float *partial_sums = nullptr, *partial_states = nullptr;
  /// (outer, rows): rows that have come to rest. Blocks of such rows leave; what a row gets among others is taken back (recall_moved.hpp).
  const bool* resting = nullptr;
  /// Of every part, outer entry and row: whether a kernel for tensor cores leaves the row to the portable one, which then serves no other.
  bool* doubts = nullptr;
  index_t doubt_parts = 0;
  bool only_doubtful = false;

  constexpr bool shared() const { return !value.given(); }

  constexpr bool rests(index_t o, index_t r) const { return resting && resting[o * rows + r]; }

  /// Whether none of `count` rows from `first` on has anything left to do. Asked by all threads of a block, which are no fewer.
  template <class Thread>
  constexpr bool all_rest(const Thread& thread, index_t o, index_t first, int count) const {
    if (!resting) return false;
    const index_t own = first + thread.index();
    return !thread.any(thread.index() < count && own < rows && !rests(o, own));
  }

  /// Whether there is a row r that a kernel is to write the results of.
  constexpr bool wants(index_t o, index_t r) const {
    if (r >= rows || doubt_parts == 0) return r < rows;
    bool doubtful = false;
    for (index_t part = 0; part < doubt_parts; ++part) doubtful |= doubts[(part * outer + o) * rows + r];
    return doubtful == only_doubtful;
  }

  constexpr float scale_at(index_t place) const { return scale.given() ? read(scale.at.data, scale.type, place) : scale_number; }

  constexpr index_t place_of(index_t r) const { return r % row_axes.extents[row_axes.rank - 1]; }

  /// How many patterns, from the first on, some row of first ... last may see by its place.
  constexpr index_t limit(index_t first, index_t last) const {
    if (!causal.on) return patterns;
    const index_t n = row_axes.extents[row_axes.rank - 1];
    const index_t highest = first / n == last / n ? last % n : n - 1, seen = highest + 1 + causal.shift;
    return seen < 0 ? 0 : seen < patterns ? seen : patterns;
  }

  /// Where row r of entry o begins in each of some operands and outputs.
  template <class... Operands>
  constexpr std::array<index_t, sizeof...(Operands)> offsets(index_t o, index_t r, const Operands&... operand) const {
    std::array<index_t, sizeof...(Operands)> places{};
    const auto add = [&](index_t i, auto... strides) {
      int k = 0;
      ((places[k++] += i * strides), ...);
    };
    walk(outer_axes, o, [&](int axis, index_t i) { add(i, operand.at.outer[axis]...); });
    walk(row_axes, r, [&](int axis, index_t i) { add(i, operand.at.row[axis]...); });
    return places;
  }
};

/// What gradients take beside the operands. Those of query and memory are float32 or of the operand's type; all may be left out.
struct RecallBackwardArguments {
  RecallArguments recall;
  Operand<const void> d_out;
  float* dots = nullptr;  // (outer, rows): d_out . out
  Operand<void> d_query;
  MemoryGradient d_key, d_value;
  float* d_scales = nullptr;  // (outer, rows): what each row adds to the gradient of its scale
  bool adds = false;          // d_key is added to what is there, which is float32
  bool energy = false;        // of an energy; see recall_energy.hpp
};

/// Split `split` of `splits` equal parts of `tiles`: the first of its tiles; the part ends where the next begins.
constexpr index_t first_tile(index_t tiles, index_t split, index_t splits) { return tiles * split / splits; }

/// How many parts the patterns are cut into, so that few rows keep many blocks busy: a matter of the problem alone, never of the card.
constexpr index_t splits_of(index_t blocks, index_t pattern_tiles, index_t busy = 264, index_t most = 64) {
  constexpr index_t fewest_tiles = 4;
  if (blocks <= 0 || pattern_tiles <= 0) return 1;
  index_t splits = busy / blocks;
  if (splits > pattern_tiles / fewest_tiles) splits = pattern_tiles / fewest_tiles;
  return splits < 1 ? 1 : splits > most ? most : splits;
}

constexpr index_t tiles_of(index_t count, index_t rows) { return (count + rows - 1) / rows; }

/// Whether row r may see pattern c, and with what bias (in units of log 2): places of their rows in mask and bias, negative if absent.
struct Sight {
  index_t mask_row = -1, bias_row = -1;
  index_t limit = 0;  // of the row; 0 for one beyond the last
};

/// What is known of a row before any pattern is met. The threads of a block make a table of its rows in shared memory: the divisions
/// in it are done once for each row.
struct Row {
  Sight sight;
  index_t out = -1;                // where its result begins, set when there is one
  index_t query = -1, d_out = -1;  // where it begins; negative beyond the last row
  float factor = 0;                // from scalar products to scores
  float shift = 0, dot = 0;        // of gradients: a weight is exp2(score - shift); d_out . out
};

constexpr Row row_of(const RecallArguments& a, index_t o, index_t r) {
  Row row;
  if (r >= a.rows) return row;
  const auto [query, mask, bias, scale] = a.offsets(o, r, a.query, a.mask, a.bias, a.scale);
  row.sight = {a.mask.given() ? mask : -1, a.bias.given() ? bias : -1, a.limit(r, r)};
  row.query = query;
  row.factor = a.scale_at(scale) * log2_e;
  return row;
}

/// The score in units of log 2, -inf where the row may not look.
template <class T = float>
constexpr T score_of(const RecallArguments& a, const Sight& sight, float factor, float product, index_t c) {
  if (c >= sight.limit) return -infinity;
  if (sight.mask_row >= 0 && !static_cast<const bool*>(a.mask.at.data)[sight.mask_row + c * a.mask.at.inner]) return -infinity;
  if (sight.bias_row < 0) return factor * product;
  const float bias = read(a.bias.at.data, a.bias.type, sight.bias_row + c * a.bias.at.inner);
  return bias == -infinity ? -infinity : std::fma(factor, product, bias * log2_e);
}

}  // namespace recollect::cuda
