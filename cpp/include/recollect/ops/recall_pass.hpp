// SPDX-License-Identifier: BSD-3-Clause
/// One pass of a block of rows over the stored patterns: scores, weights and the weighted sum of values, tile by tile, with nothing of
/// size N kept. The result over any range of patterns is a `Partial`, and partials merge.
///
/// The patterns are cut into segments of fixed length, each is summed on its own, and segments are merged in a fixed binary tree. The
/// tree is a property of N alone: which task computes which part of it, and what other rows there are, never shows in the result.
#pragma once

#include <algorithm>
#include <bit>

#include "recollect/math/online_softmax.hpp"
#include "recollect/math/separation.hpp"
#include "recollect/math/top_k.hpp"
#include "recollect/ops/recall_problem.hpp"

namespace recollect::detail {

inline constexpr double log2_e = 1.4426950408889634074, ln_2 = 0.69314718055994530942;

/// What some rows have gathered over a range of patterns.
template <class T>
struct Partial {
  math::OnlineSoftmax<T>* softmax = nullptr;
  T* read = nullptr;              // (rows, padded value width), relative to the softmax's reference
  index_t* admissible = nullptr;  // how many patterns each row could see
  T* norm = nullptr;              // the largest |x_i|^2 among them
  T* best_score = nullptr;        // (rows, top)
  index_t* best_index = nullptr;
  index_t width = 0, top = 0;

  template <class Take>
  static Partial make(index_t rows, index_t value_width, index_t top, Take&& take) {
    Partial p;
    p.top = top;
    p.best_score = take.template operator()<T>(rows * top);
    p.best_index = take.template operator()<index_t>(rows * top);
    p.width = padded<T>(value_width);
    p.softmax = take.template operator()<math::OnlineSoftmax<T>>(rows);
    p.read = take.template operator()<T>(rows * p.width);
    p.admissible = take.template operator()<index_t>(rows);
    p.norm = take.template operator()<T>(rows);
    return p;
  }

  void reset(index_t rows) const {
    std::fill(softmax, softmax + rows, math::OnlineSoftmax<T>{});
    std::fill(read, read + rows * width, T(0));
    std::fill(admissible, admissible + rows, index_t(0));
    std::fill(norm, norm + rows, T(0));
    for (index_t r = 0; r < rows; ++r) best(r).reset();
  }

  math::TopK<T> best(index_t r) const { return {best_score + r * top, best_index + r * top, top}; }

  void merge(const Partial& other, index_t rows) const {
    for (index_t r = 0; r < rows; ++r) {
      math::OnlineSoftmax<T>& mine = softmax[r];
      math::OnlineSoftmax<T> theirs = other.softmax[r];
      const T shrink = mine.raise(theirs.largest), shrink_theirs = theirs.raise(mine.largest);
      mine.sum += theirs.sum;
      T* to = read + r * width;
      const T* from = other.read + r * width;
      for (index_t k = 0; k < width; ++k) to[k] = to[k] * shrink + from[k] * shrink_theirs;
      admissible[r] += other.admissible[r];
      norm[r] = std::max(norm[r], other.norm[r]);
      best(r).merge(other.best(r));
    }
  }
};

/// The rows of a pass: their scaled cues, packed, and what each of them may see.
template <class T>
struct Cues {
  const T* data = nullptr;  // (rows, padded width), times beta log2(e)
  index_t rows = 0;
  const index_t* limit = nullptr;     // only so many patterns, from the first on
  const bool* const* mask = nullptr;  // a row's mask, or null
  const T* const* bias = nullptr;     // what is added to a row's scores, or null
  index_t mask_stride = 0, bias_stride = 0;
  bool shared_mask = false, shared_bias = false;  // the same for every row

  index_t most(index_t first, index_t count) const { return *std::max_element(limit + first, limit + first + count); }
};

template <class T, class Separation>
class RecallPass {
 public:
  RecallPass(const RecallProblem<T>& problem, bool reads, bool wants_norm, index_t top)
      : problem_(problem), reads_(reads), wants_norm_(wants_norm), top_(top), separate_(reads && problem.has_values()) {
    tile_ = tile_rows<T>(separate_ ? std::max(problem.width, problem.value_width) : problem.width);
    segment_ = (1023 / tile_ + 1) * tile_;
  }

  index_t segments() const { return (problem_.patterns + segment_ - 1) / segment_; }
  index_t partial_width() const { return reads_ ? problem_.value_width : 0; }

  /// The same memory, laid out for this pass.
  Partial<T> fit(Partial<T> partial) const {
    partial.width = padded<T>(partial_width());
    partial.top = top_;
    return partial;
  }

  /// Gathers segments [first, last) into `into`. For the tree to come out right, `first` is a multiple of the power of two that
  /// last - first is at most.
  void gather(index_t outer, const Cues<T>& cues, index_t first, index_t last, const Partial<T>& into) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const Workspace work(*this, scratch);
    const auto take = [&]<class U>(index_t count) { return scratch.take<U>(count); };
    const int levels = std::bit_width(static_cast<std::uint64_t>(last - first));
    Partial<T> stack[64];
    stack[0] = into;
    for (int level = 1; level <= levels; ++level) stack[level] = Partial<T>::make(cues.rows, partial_width(), 0, take);
    int top = 0;
    const index_t most = cues.rows ? cues.most(0, cues.rows) : 0;
    if (first >= last) into.reset(cues.rows);
    for (index_t s = first; s < last; ++s) {
      stack[top].reset(cues.rows);
      const index_t begin = s * segment_, end = std::min(begin + segment_, problem_.patterns);
      for (index_t i = begin; i < std::min(end, most); i += tile_) absorb(outer, cues, i, std::min(tile_, end - i), stack[top], into, work);
      ++top;
      for (index_t done = s - first + 1; done % 2 == 0; done /= 2, --top) stack[top - 2].merge(stack[top - 1], cues.rows);
    }
    for (; top > 1; --top) stack[top - 2].merge(stack[top - 1], cues.rows);
  }

 private:
  static constexpr index_t sub_rows = 24;  // so many rows of scores stay in the first-level cache, and 6 and 8 divide it

  struct Workspace {
    mutable Tile<T> stored, values;
    T *scores, *norms, *bias, *shrink;
    bool* seen;
    mutable bool hides = false;  // whether `bias` leaves out a pattern of the tile

    Workspace(const RecallPass& pass, Scratch& scratch) {
      const index_t width = padded<T>(pass.problem_.width);
      stored.buffer = scratch.take<T>(pass.tile_ * width);
      stored.panels = scratch.take<T>(pass.tile_ * width);
      if (pass.separate_) values.buffer = scratch.take<T>(pass.tile_ * padded<T>(pass.problem_.value_width));
      scores = scratch.take<T>(sub_rows * pass.tile_);
      norms = scratch.take<T>(pass.tile_);
      bias = scratch.take<T>(pass.tile_);
      seen = scratch.take<bool>(pass.tile_);
      shrink = scratch.take<T>(sub_rows);
    }
  };

  /// Adds the patterns [first, first + count) to what the rows have gathered. A selection needs no tree, for it is exact: there is one
  /// for all segments, and what cannot enter it any more costs a comparison.
  void absorb(index_t outer, const Cues<T>& cues, index_t first, index_t count, const Partial<T>& into, const Partial<T>& selection,
              const Workspace& work) const {
    const index_t admissible = share_bias(cues, first, count, work);
    if (admissible == 0) return;
    const bool some_masked = work.hides = admissible < count, few = cues.rows <= sub_rows;
    const copying copy = some_masked ? copying::always : few ? copying::avoided : copying::unaligned;
    load_rows(problem_.stored_at(outer), first, count, work.stored, copy);
    if (separate_) load_rows(problem_.values_at(outer), first, count, work.values, copy);
    if (some_masked) clear_masked(count, work);
    if (!few) turn_rows(count, work.stored);
    if (wants_norm_) square_norms(work.stored, count, work.norms);
    const Tile<T>& values = separate_ ? work.values : work.stored;
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
        admit(cues, r0 + r, first, visible, scores, into, work);
        work.shrink[r] = weigh(scores, first, visible, into.softmax[r0 + r], selection.best(r0 + r));
      }
      if (reads_)
        read<T, start::scaled>(rows, Factor<T>{work.scores, tile_, 1}, values.rows, values.row_stride, into.width, visible,
                               into.read + r0 * into.width, into.width, work.shrink);
    }
  }

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
      if (separate_) std::fill_n(work.values.buffer + i * work.values.row_stride, work.values.row_stride, T(0));
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
  void admit(const Cues<T>& cues, index_t row, index_t first, index_t count, T* scores, const Partial<T>& into,
             const Workspace& work) const {
    constexpr T never = -std::numeric_limits<T>::infinity();
    const index_t own = std::clamp<index_t>(cues.limit[row] - first, 0, count);
    const bool shared = (cues.mask && cues.shared_mask) || (cues.bias && cues.shared_bias);
    const bool* mask = cues.mask && !cues.shared_mask ? cues.mask[row] + first * cues.mask_stride : nullptr;
    const T* bias = cues.bias && !cues.shared_bias ? cues.bias[row] + first * cues.bias_stride : nullptr;
    if (shared)
      for (index_t i = 0; i < padded<T>(count); i += Packet<T>::width)
        fma(Packet<T>::load(work.bias + i), Packet<T>(static_cast<T>(log2_e)), Packet<T>::load(scores + i)).store(scores + i);
    if (bias)
      for (index_t i = 0; i < own; ++i) scores[i] += bias[i * cues.bias_stride] * static_cast<T>(log2_e);
    if (mask)
      for (index_t i = 0; i < own; ++i) scores[i] = mask[i * cues.mask_stride] ? scores[i] : never;
    std::fill(scores + own, scores + padded<T>(count), never);
    const auto sees = [&](index_t i) { return (!mask || mask[i * cues.mask_stride]) && (!shared || work.bias[i] != never); };
    if (mask || work.hides)
      for (index_t i = 0; i < own; ++i) into.admissible[row] += sees(i);
    else
      into.admissible[row] += own;
    if (wants_norm_)
      for (index_t i = 0; i < own; ++i)
        if (sees(i)) into.norm[row] = std::max(into.norm[row], work.norms[i]);
  }

  /// Selects from a row of scores, turns them into weights and adds those to its softmax; returns by how much earlier reads shrink.
  static T weigh(T* scores, index_t first, index_t count, math::OnlineSoftmax<T>& softmax, const math::TopK<T>& best) {
    using P = Packet<T>;
    P most = P::load(scores);
    for (index_t i = P::width; i < count; i += P::width) most = max(P::load(scores + i), most);
    const T tile_largest = largest(most), shrink = softmax.raise(tile_largest);
    if (best.k > 0 && tile_largest > best.threshold())
      for (index_t i = 0; i < count; i += P::width)
        if (largest(P::load(scores + i)) > best.threshold())
          for (index_t j = i; j < std::min(i + P::width, count); ++j) best.offer(scores[j], first + j);
    const P reference(softmax.reference());
    P total(T(0));
    for (index_t i = 0; i < count; i += P::width) {
      const P weight = Separation::template weight<T>(P::load(scores + i) - reference);
      weight.store(scores + i);
      total = total + weight;
    }
    softmax.sum += sum(total);
    return shrink;
  }

  const RecallProblem<T>& problem_;
  const bool reads_, wants_norm_;
  const index_t top_;
  const bool separate_;
  index_t tile_, segment_;
};

}  // namespace recollect::detail
