// SPDX-License-Identifier: BSD-3-Clause
/// One pass of a block of rows over the stored patterns: scores, weights and the weighted sum of values, tile by tile, with nothing of
/// size N kept. The result over any range of patterns is a `Partial`, and partials merge.
///
/// The patterns are cut into segments of fixed length, each is summed on its own, and segments are merged in a fixed binary tree. The
/// tree is a property of N alone: which task computes which part of it, and what other rows there are, never shows in the result.
#pragma once

#include <bit>

#include "recollect/math/online_softmax.hpp"
#include "recollect/math/separation.hpp"
#include "recollect/math/top_k.hpp"
#include "recollect/ops/score_pass.hpp"

namespace recollect::detail {

/// What some rows have gathered over a range of patterns.
template <class T>
struct Partial {
  math::OnlineSoftmax<T>* softmax = nullptr;
  T* read = nullptr;  // (rows, padded value width), relative to the softmax's reference
  Sight<T> sight;
  T* best_score = nullptr;  // (rows, top)
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
    p.sight.admissible = take.template operator()<index_t>(rows);
    p.sight.norm = take.template operator()<T>(rows);
    return p;
  }

  void reset(index_t rows) const {
    std::fill(softmax, softmax + rows, math::OnlineSoftmax<T>{});
    std::fill(read, read + rows * width, T(0));
    std::fill(sight.admissible, sight.admissible + rows, index_t(0));
    std::fill(sight.norm, sight.norm + rows, T(0));
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
      sight.admissible[r] += other.sight.admissible[r];
      sight.norm[r] = std::max(sight.norm[r], other.sight.norm[r]);
      best(r).merge(other.best(r));
    }
  }
};

template <class T, class Separation>
class RecallPass {
 public:
  RecallPass(const RecallProblem<T>& problem, bool reads, bool wants_norm, index_t top)
      : problem_(problem), reads_(reads), top_(top), scores_(problem, reads, wants_norm) {
    segment_ = (1023 / scores_.tile() + 1) * scores_.tile();
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
    const typename ScorePass<T>::Workspace work(scores_, scratch);
    T* shrink = scratch.take<T>(ScorePass<T>::sub_rows);
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
      for (index_t i = begin; i < std::min(end, most); i += scores_.tile())
        scores_.absorb(outer, cues, i, std::min(scores_.tile(), end - i), stack[top].sight, work,
                       Weigh{stack[top], into, i, scores_.tile(), shrink, reads_});
      ++top;
      for (index_t done = s - first + 1; done % 2 == 0; done /= 2, --top) stack[top - 2].merge(stack[top - 1], cues.rows);
    }
    for (; top > 1; --top) stack[top - 2].merge(stack[top - 1], cues.rows);
  }

 private:
  /// Adds the patterns of a tile, from `first` on, to what the rows have gathered. A selection needs no tree, for it is exact: there is
  /// one for all segments, and what cannot enter it any more costs a comparison.
  struct Weigh {
    const Partial<T>&into, &selection;
    index_t first, stride;
    T* shrink;  // of some rows: by how much earlier reads shrink
    bool reads;

    void row(index_t r, index_t count, T* scores) const {
      shrink[r % ScorePass<T>::sub_rows] = weigh(scores, first, count, into.softmax[r], selection.best(r));
    }
    void rows(index_t r0, index_t count, index_t visible, const T* weights, const Tile<T>& values) const {
      if (!reads) return;
      read<T, start::scaled>(count, Factor<T>{weights, stride, 1}, values.rows, values.row_stride, into.width, visible,
                             into.read + r0 * into.width, into.width, shrink);
    }
  };

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
  const bool reads_;
  const index_t top_;
  const ScorePass<T> scores_;
  index_t segment_;
};

}  // namespace recollect::detail
