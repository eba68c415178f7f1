// SPDX-License-Identifier: BSD-3-Clause
/// The support of a row: the few stored patterns that a separation gives weight to. While scores stream by, a row keeps the candidates that
/// could still belong to it; what is left at the end depends on the scores alone, not on the order or the pieces they came in.
#pragma once

#include <functional>
#include <vector>

#include "recollect/math/separation.hpp"
#include "recollect/ops/recall_block.hpp"

namespace recollect::detail {

/// A separation behind functions of rows: reading a support costs the same code whichever it came from.
template <class T>
struct SupportRule {
  using W = wider<T>;
  index_t kept;
  T window;
  std::function<void(const T* z, T* p, const CandidateRow<W>&)> weigh;
  std::function<W(const T* z, const T* p, const CandidateRow<W>&)> potential;
  std::function<void(const T* p, T* g, index_t count)> pullback;

  template <class Separation>
  static SupportRule of(const Separation& s) {
    return {static_cast<index_t>(s.kept()), static_cast<T>(s.window()),
            [s](const T* z, T* p, const CandidateRow<W>& row) { s.template weigh<T, Packet<T>>(z, p, row); },
            [s](const T* z, const T* p, const CandidateRow<W>& row) { return s.potential(z, p, row); },
            [s](const T* p, T* g, index_t count) { s.pullback(p, g, count); }};
  }
};

template <class T>
struct Candidate {
  T score;
  index_t index;
};

/// Those of a row. Only scores above `limit` are taken in; it rises with what has come.
template <class T>
struct Candidates {
  std::vector<Candidate<T>> list;
  T limit = -std::numeric_limits<T>::infinity();
  std::size_t room = 256;
  bool strange = false;  // a score was NaN

  void offer(const T* scores, index_t count, index_t first, const SupportRule<T>& rule) {
    using P = Packet<T>;
    for (index_t i = 0; i < count; i += P::width) {
      if (!any_above(P::load(scores + i), P(limit))) continue;
      for (index_t j = i; j < std::min<index_t>(i + P::width, count); ++j)
        if (!(scores[j] <= limit)) take(scores[j], first + j, rule);
    }
  }

  void take(T score, index_t index, const SupportRule<T>& rule) {
    strange |= score != score;
    list.push_back({score, index});
    if (rule.kept == 1) limit = std::max(limit, score - rule.window);
    if (list.size() < room) return;
    shrink(rule);
    room = std::max<std::size_t>({room, 2 * list.size(), static_cast<std::size_t>(4 * rule.kept)});
  }

  /// Leaves what lies within the window of the kept-th largest; of scores equal to that one, the first.
  void shrink(const SupportRule<T>& rule) {
    const index_t kept = std::min(rule.kept, static_cast<index_t>(list.size()));
    if (kept == 0 || strange) return;
    const T last = nth_largest(kept);
    if (static_cast<index_t>(list.size()) >= rule.kept) limit = std::max(limit, last - rule.window);
    index_t ties = kept - std::count_if(list.begin(), list.end(), [&](const auto& c) { return c.score > last; });
    std::erase_if(list, [&](const Candidate<T>& c) { return !(c.score > last || (c.score == last && ties-- > 0) || c.score > limit); });
  }

 private:
  T nth_largest(index_t n) const {
    if (n == 1) return std::max_element(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.score < b.score; })->score;
    std::vector<T> scores;
    for (const Candidate<T>& c : list) scores.push_back(c.score);
    std::nth_element(scores.begin(), scores.begin() + (n - 1), scores.end(), std::greater<T>());
    return scores[n - 1];
  }
};

/// What a row reads: patterns in rising order and their weights; empty if it may look at nothing.
template <class T>
struct Support {
  std::vector<index_t> index;
  std::vector<T> weight;
  wider<T> potential = -std::numeric_limits<wider<T>>::infinity();

  index_t size() const { return static_cast<index_t>(index.size()); }
};

/// From the candidates of a row to its support. Where scores have left the range of T they are computed again in wider arithmetic: only
/// differences to the largest enter the weights.
template <class T>
class Supports {
 public:
  using W = wider<T>;
  Supports(const RecallProblem<T>& problem, const SupportRule<T>& rule, bool wants_potential)
      : problem_(problem), rule_(rule), wants_potential_(wants_potential) {}

  Support<T> of(const RecallBlock<T>& block, index_t r, Candidates<T>& from, index_t admissible) const {
    if (admissible == 0) return nothing(block, r);
    from.shrink(rule_);
    const auto found = static_cast<index_t>(from.list.size());
    const bool everything = rule_.window == std::numeric_limits<T>::infinity();
    T largest = -std::numeric_limits<T>::infinity();
    for (const Candidate<T>& c : from.list) largest = std::max(largest, c.score);
    if (from.strange || !std::isfinite(largest) || found < (everything ? admissible : std::min(rule_.kept, admissible)))
      return weighed(block, r, plain_scores(block, r));
    return weighed(block, r, from.list);
  }

 private:
  W sink(const RecallBlock<T>& block, index_t r) const { return static_cast<W>(*problem_.at(problem_.sink, block.outer, block.first + r)); }

  Support<T> nothing(const RecallBlock<T>& block, index_t r) const {
    Support<T> support;
    if (problem_.sink) support.potential = sink(block, r);
    return support;
  }

  /// Scores in wider arithmetic, of all that the row may see.
  std::vector<Candidate<W>> plain_scores(const RecallBlock<T>& block, index_t r) const {
    const PlainMemory<T> memory = block.plain_memory(r, {});
    std::vector<Candidate<W>> scores;
    for (index_t i = 0; i < problem_.patterns; ++i)
      if (memory.admits(i)) scores.push_back({plain_score<T>(block.state + r * problem_.width, block.beta[r], memory, i), i});
    return scores;
  }

  template <class S>
  Support<T> weighed(const RecallBlock<T>& block, index_t r, const std::vector<Candidate<S>>& candidates) const {
    if (candidates.empty()) return nothing(block, r);
    Support<T> support;
    S largest = candidates.front().score;
    for (const Candidate<S>& c : candidates) largest = c.score > largest || c.score != c.score ? c.score : largest;
    Candidates<T> near;  // relative to the largest, once more cut to the window
    near.room = candidates.size() + 1;
    for (const Candidate<S>& c : candidates) near.take(static_cast<T>(c.score - largest), c.index, rule_);
    near.shrink(rule_);
    const index_t count = static_cast<index_t>(near.list.size()), room = padded<T>(count);
    const Scratch::Frame frame(Scratch::local());
    T *z = Scratch::local().take<T>(room), *p = Scratch::local().take<T>(room);
    for (index_t i = 0; i < count; ++i) z[i] = near.list[i].score;
    std::fill(z + count, z + room, -std::numeric_limits<T>::infinity());
    CandidateRow<W> row{count, static_cast<W>(largest)};
    if (problem_.sink) row.sink = sink(block, r);
    if (near.strange)
      std::fill_n(p, count, std::numeric_limits<T>::quiet_NaN());
    else
      rule_.weigh(z, p, row);
    if (wants_potential_) support.potential = near.strange ? std::numeric_limits<W>::quiet_NaN() : rule_.potential(z, p, row);
    for (index_t i = 0; i < count; ++i) {
      if (p[i] == T(0)) continue;
      support.index.push_back(near.list[i].index);
      support.weight.push_back(p[i]);
    }
    return support;
  }

  const RecallProblem<T>& problem_;
  const SupportRule<T>& rule_;
  const bool wants_potential_;
};

}  // namespace recollect::detail
