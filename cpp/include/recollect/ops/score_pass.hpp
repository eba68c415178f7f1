// SPDX-License-Identifier: BSD-3-Clause
/// The scores of a block of rows over a range of stored patterns, tile by tile: what every recall begins with, whatever becomes of the
/// scores. A tile is brought into cache once and compared with all rows; what a row may not see scores -inf.
#pragma once

#include <algorithm>

#include "recollect/ops/recall_problem.hpp"

namespace recollect::detail {

inline constexpr double log2_e = 1.4426950408889634074, ln_2 = 0.69314718055994530942;

/// The rows of a pass: their scaled cues, packed, and what each of them may see.
template <class T>
struct Cues {
  const T* data = nullptr;  // (rows, padded width), times beta and the unit
  index_t rows = 0;
  const index_t* limit = nullptr;     // only so many patterns, from the first on
  const bool* const* mask = nullptr;  // a row's mask, or null
  const T* const* bias = nullptr;     // what is added to a row's scores, or null
  index_t mask_stride = 0, bias_stride = 0;
  bool shared_mask = false, shared_bias = false;  // the same for every row
  T unit = 1;                                     // what scores are multiplied by: log2(e) for those that 2^x is taken of

  index_t most(index_t first, index_t count) const { return *std::max_element(limit + first, limit + first + count); }
};

/// What is known of every row beside its scores: how many patterns it could see, and the largest |x_i|^2 among them.
template <class T>
struct Sight {
  index_t* admissible = nullptr;
  T* norm = nullptr;
};

template <class T>
class ScorePass {
 public:
  /// `values`: whether tiles of values are loaded beside those of the patterns.
  ScorePass(const RecallProblem<T>& problem, bool values, bool wants_norm)
      : problem_(problem), wants_norm_(wants_norm), values_(values && problem.has_values()) {
    tile_ = tile_rows<T>(values_ ? std::max(problem.width, problem.value_width) : problem.width);
  }

  index_t tile() const { return tile_; }

  struct Workspace {
    mutable Tile<T> stored, values;
    T *scores, *norms, *bias;
    bool* seen;
    mutable bool hides = false;  // whether `bias` leaves out a pattern of the tile

    Workspace(const ScorePass& pass, Scratch& scratch) {
      const index_t width = padded<T>(pass.problem_.width);
      stored.buffer = scratch.take<T>(pass.tile_ * width);
      stored.panels = scratch.take<T>(pass.tile_ * width);
      if (pass.values_) values.buffer = scratch.take<T>(pass.tile_ * padded<T>(pass.problem_.value_width));
      scores = scratch.take<T>(sub_rows * pass.tile_);
      norms = scratch.take<T>(pass.tile_);
      bias = scratch.take<T>(pass.tile_);
      seen = scratch.take<bool>(pass.tile_);
    }
  };

  static constexpr index_t sub_rows = 24;  // so many rows of scores stay in the first-level cache, and 6 and 8 divide it

  /// Scores the patterns [first, first + count), at most a tile of them. For every row, take.row(r, visible, scores) with its scores of
  /// the first `visible` patterns, padded with -inf to whole packets; after some rows, take.rows(r0, rows, visible, scores, values)
  /// with all their scores and the tile that their values are in.
  template <class Take>
  void absorb(index_t outer, const Cues<T>& cues, index_t first, index_t count, const Sight<T>& sight, const Workspace& work,
              Take&& take) const {
    const index_t admissible = share_bias(cues, first, count, work);
    if (admissible == 0) return;
    const bool some_masked = work.hides = admissible < count, few = cues.rows <= sub_rows;
    const copying copy = some_masked ? copying::always : few ? copying::avoided : copying::unaligned;
    load_rows(problem_.stored_at(outer), first, count, work.stored, copy);
    if (values_) load_rows(problem_.values_at(outer), first, count, work.values, copy);
    if (some_masked) clear_masked(count, work);
    if (!few) turn_rows(count, work.stored);
    if (wants_norm_) square_norms(work.stored, count, work.norms);
    for (index_t r0 = 0; r0 < cues.rows; r0 += sub_rows) {
      const index_t rows = std::min(sub_rows, cues.rows - r0), width = padded<T>(problem_.width);
      const index_t visible = std::min(count, cues.most(r0, rows) - first);
      if (visible <= 0) continue;
      const Factor<T> part{cues.data + r0 * width, width, 1};
      if (few)
        score_at_once(part, rows, visible, work);
      else
        score(rows, part, problem_.width, work.stored, visible, work.scores, tile_);
      for (index_t r = 0; r < rows; ++r) {
        T* scores = work.scores + r * tile_;
        admit(cues, r0 + r, first, visible, scores, sight, work);
        take.row(r0 + r, visible, scores);
      }
      take.rows(r0, rows, visible, work.scores, values_ ? work.values : work.stored);
    }
  }

 private:
  /// Few rows: every strip is turned where it stays in the first-level cache, and is compared there.
  void score_at_once(Factor<T> cues, index_t rows, index_t count, const Workspace& work) const {
    for (index_t first = 0; first < count; first += Registers<T>::panel_columns) {
      turn_strip<T, true>(work.stored, first, count, work.stored.panels);
      score_strip(rows, cues, problem_.width, work.stored.panels, work.scores + first, tile_);
    }
  }

  /// What all rows add to the scores of a tile: the bias they share, and -inf where none of them may look. Returns how many patterns
  /// that leaves.
  static index_t share_bias(const Cues<T>& cues, index_t first, index_t count, const Workspace& work) {
    constexpr T never = -std::numeric_limits<T>::infinity();
    if (!cues.mask && !cues.bias) return count;
    const bool alike = (!cues.mask || cues.shared_mask) && (!cues.bias || cues.shared_bias);
    const index_t admissible = look<T>(
        alike ? 1 : cues.rows, [&](index_t r) { return cues.mask ? cues.mask[r] + first * cues.mask_stride : nullptr; }, cues.mask_stride,
        [&](index_t r) { return cues.bias ? cues.bias[r] + first * cues.bias_stride : nullptr; }, cues.bias_stride, count, work.seen);
    const T* shared = cues.bias && cues.shared_bias ? cues.bias[0] + first * cues.bias_stride : nullptr;
    for (index_t i = 0; i < count; ++i) work.bias[i] = !work.seen[i] ? never : shared ? shared[i * cues.bias_stride] : T(0);
    std::fill(work.bias + count, work.bias + padded<T>(count), T(0));
    return admissible;
  }

  /// What no row looks at may hold anything, NaN too: it is made zero, since 0 * NaN would reach the sums.
  void clear_masked(index_t count, const Workspace& work) const {
    for (index_t i = 0; i < count; ++i) {
      if (work.bias[i] != -std::numeric_limits<T>::infinity()) continue;
      std::fill_n(work.stored.buffer + i * work.stored.row_stride, work.stored.row_stride, T(0));
      if (values_) std::fill_n(work.values.buffer + i * work.values.row_stride, work.values.row_stride, T(0));
    }
  }

  static void square_norms(const Tile<T>& tile, index_t count, T* norms) {
    for (index_t i = 0; i < count; ++i) {
      Packet<T> total(T(0));
      for (index_t k = 0; k < tile.row_stride; k += Packet<T>::width) {
        const auto x = Packet<T>::load(tile.rows + i * tile.row_stride + k);
        total = fma(x, x, total);
      }
      norms[i] = sum(total);
    }
  }

  /// Adds the bias to a row's scores, takes inadmissible patterns out and counts the others.
  void admit(const Cues<T>& cues, index_t row, index_t first, index_t count, T* scores, const Sight<T>& sight,
             const Workspace& work) const {
    constexpr T never = -std::numeric_limits<T>::infinity();
    const index_t own = std::clamp<index_t>(cues.limit[row] - first, 0, count);
    const bool shared = (cues.mask && cues.shared_mask) || (cues.bias && cues.shared_bias);
    const bool* mask = cues.mask && !cues.shared_mask ? cues.mask[row] + first * cues.mask_stride : nullptr;
    const T* bias = cues.bias && !cues.shared_bias ? cues.bias[row] + first * cues.bias_stride : nullptr;
    if (shared)
      for (index_t i = 0; i < padded<T>(count); i += Packet<T>::width)
        fma(Packet<T>::load(work.bias + i), Packet<T>(cues.unit), Packet<T>::load(scores + i)).store(scores + i);
    if (bias)
      for (index_t i = 0; i < own; ++i) scores[i] += bias[i * cues.bias_stride] * cues.unit;
    if (mask)
      for (index_t i = 0; i < own; ++i) scores[i] = mask[i * cues.mask_stride] ? scores[i] : never;
    std::fill(scores + own, scores + padded<T>(count), never);
    const auto sees = [&](index_t i) { return (!mask || mask[i * cues.mask_stride]) && (!shared || work.bias[i] != never); };
    if (mask || work.hides)
      for (index_t i = 0; i < own; ++i) sight.admissible[row] += sees(i);
    else
      sight.admissible[row] += own;
    if (wants_norm_)
      for (index_t i = 0; i < own; ++i)
        if (sees(i)) sight.norm[row] = std::max(sight.norm[row], work.norms[i]);
  }

  const RecallProblem<T>& problem_;
  const bool wants_norm_, values_;
  index_t tile_;
};

}  // namespace recollect::detail
