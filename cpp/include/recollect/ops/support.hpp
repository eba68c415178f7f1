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

/// Those of a row, in the order of the patterns. Only scores above `limit` are taken in, and it rises with what has come.
template <class T>
class Candidates {
 public:
  /// As many as there are patterns may be kept, of every row: numbers of patterns are as small as scores.
  using Number = std::conditional_t<sizeof(T) == 4, std::uint32_t, index_t>;

  explicit Candidates(const SupportRule<T>& rule) : rule_(&rule) { reserve(rule.kept == 1 ? 256 : 2 * rule.kept + 64); }

  index_t size() const { return size_; }
  const T* scores() const { return scores_.data(); }
  const Number* numbers() const { return numbers_.data(); }
  bool strange() const { return strange_; }  // a score was NaN

  /// The scores of the patterns from `first` on, padded with -inf to whole packets.
  void offer(const T* scores, index_t count, index_t first) {
    if (rule_->kept == 1) {
      P most = P::load(scores);
      for (index_t i = P::width; i < count; i += P::width) most = max(P::load(scores + i), most);
      rise(largest(most));
    }
    for (index_t i = 0; i < count; i += P::width)
      if (any_above(P::load(scores + i), P(limit_))) take(scores + i, std::min<index_t>(P::width, count - i), first + i);
  }

  /// Candidates from later patterns.
  void merge(const Candidates& later) {
    reserve(size_ + later.size_);
    std::copy_n(later.scores(), later.size_, scores_.data() + size_);
    std::copy_n(later.numbers(), later.size_, numbers_.data() + size_);
    size_ += later.size_;
    strange_ |= later.strange_;
    if (rule_->kept == 1) rise(later.largest_);
  }

  /// Leaves exactly what lies within the window of the kept-th largest; of scores equal to that one, the first.
  void shrink() {
    const index_t kept = std::min(rule_->kept, size_);
    if (kept == 0 || strange_) return;
    if (rule_->kept > 1) thin();
    const T last = rule_->kept == 1 ? largest_ : nth_largest(kept);
    if (size_ >= rule_->kept) limit_ = std::max(limit_, last - rule_->window);
    index_t ties = kept;
    for (index_t i = 0; rule_->kept > 1 && i < size_; ++i) ties -= scores_[i] > last;
    // A window that is lost in the rounding of large scores still spans all that are equal.
    keep([&](T score) { return score > last || (score == last && (rule_->window > T(0) || ties-- > 0)) || score > limit_; });
  }

 private:
  using P = Packet<T>;

  void reserve(index_t room) {
    if (room + P::width <= static_cast<index_t>(scores_.size())) return;
    scores_.resize(static_cast<std::size_t>(room + P::width));
    numbers_.resize(scores_.size());
  }

  void rise(T score) {
    largest_ = std::max(largest_, score);
    limit_ = std::max(limit_, largest_ - rule_->window);
    // A window that is lost in the rounding of large scores, or of width 0, still has room for the largest.
    if (!(limit_ < largest_)) limit_ = std::nextafter(largest_, -std::numeric_limits<T>::infinity());
  }

  /// Without branches on the scores: nothing foretells which of them are above the limit.
  void take(const T* scores, index_t count, index_t first) {
    if (size_ + 2 * P::width > static_cast<index_t>(scores_.size())) {
      if (rule_->kept > 1) thin();
      if (2 * size_ > static_cast<index_t>(scores_.size())) shrink();
      if (2 * size_ > static_cast<index_t>(scores_.size())) reserve(4 * size_);
    }
    index_t size = size_;
    for (index_t j = 0; j < count; ++j) {
      scores_[size] = scores[j];
      numbers_[size] = static_cast<Number>(first + j);
      size += !(scores[j] <= limit_);
      strange_ |= scores[j] != scores[j];
    }
    size_ = size;
  }

  template <class Stays>
  void keep(Stays&& stays) {
    index_t left = 0;
    for (index_t i = 0; i < size_; ++i) {
      const T score = scores_[i];
      scores_[left] = score;
      numbers_[left] = numbers_[i];
      left += stays(score);
    }
    size_ = left;
  }

  /// Raises the limit to where hardly more than `kept` scores are above it, found by counting: a fraction of the time that an exact
  /// selection takes, which is left for the end.
  void thin() {
    if (size_ <= rule_->kept || strange_) return;
    const auto [least, most] = std::minmax_element(scores_.data(), scores_.data() + size_);
    T low = *least, high = *most;
    bool found = false;
    for (int i = 0; i < 24; ++i) {
      const T middle = low + (high - low) / 2;
      if (!(middle > low && middle < high)) break;
      const index_t above = count_above(middle);
      (above >= rule_->kept ? low : high) = middle;
      found |= above >= rule_->kept;
      if (above >= rule_->kept && above <= rule_->kept + rule_->kept / 4 + 4) break;
    }
    if (!found) return;
    limit_ = std::max(limit_, low - rule_->window);
    keep([this](T score) { return score > limit_; });
  }

  index_t count_above(T value) {
    std::fill(scores_.data() + size_, scores_.data() + padded<T>(size_), -std::numeric_limits<T>::infinity());
    P total(T(0));
    for (index_t i = 0; i < size_; i += P::width) total = total + where_positive(P::load(scores_.data() + i) - P(value), P(T(1)));
    return static_cast<index_t>(sum(total));
  }

  T nth_largest(index_t n) const {
    const Scratch::Frame frame(Scratch::local());
    T* scores = Scratch::local().take<T>(size_);
    std::copy_n(scores_.data(), size_, scores);
    std::nth_element(scores, scores + (n - 1), scores + size_, std::greater<T>());
    return scores[n - 1];
  }

  const SupportRule<T>* rule_;
  std::vector<T> scores_;        // of which size_ count, with room for a packet after them
  std::vector<Number> numbers_;  // of their patterns
  index_t size_ = 0;
  T largest_ = -std::numeric_limits<T>::infinity(), limit_ = largest_;
  bool strange_ = false;
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
    from.shrink();
    const bool everything = sees_all();
    const T largest = from.size() ? *std::max_element(from.scores(), from.scores() + from.size()) : -std::numeric_limits<T>::infinity();
    if (from.strange() || !std::isfinite(largest) || from.size() < (everything ? admissible : std::min(rule_.kept, admissible)))
      return plain(block, r);
    return everything ? weighed(block, r, from, W(0), T(0)) : weighed(block, r, from, static_cast<W>(largest), largest);
  }

 private:
  bool sees_all() const { return rule_.window == std::numeric_limits<T>::infinity(); }

  W sink(const RecallBlock<T>& block, index_t r) const { return static_cast<W>(*problem_.at(problem_.sink, block.outer, block.first + r)); }

  Support<T> nothing(const RecallBlock<T>& block, index_t r) const {
    Support<T> support;
    if (problem_.sink) support.potential = sink(block, r);
    return support;
  }

  /// With scores in wider arithmetic, of all that the row may see.
  Support<T> plain(const RecallBlock<T>& block, index_t r) const {
    const PlainMemory<T> memory = block.plain_memory(r, {});
    std::vector<W> scores;
    std::vector<index_t> index;
    for (index_t i = 0; i < problem_.patterns; ++i) {
      if (!memory.admits(i)) continue;
      scores.push_back(plain_score<T>(block.state + r * problem_.width, block.beta[r], memory, i));
      index.push_back(i);
    }
    if (scores.empty()) return nothing(block, r);
    W largest = scores[0];
    for (W score : scores) largest = score > largest || score != score ? score : largest;
    if (sees_all() && largest == largest) largest = 0;
    Candidates<T> near(rule_);  // relative to the largest, a packet at a time
    alignas(64) T relative[Packet<T>::width];
    for (std::size_t i = 0; i < scores.size(); ++i) {
      std::fill_n(relative, Packet<T>::width, -std::numeric_limits<T>::infinity());
      relative[0] = static_cast<T>(scores[i] - largest);
      near.offer(relative, 1, index[i]);
    }
    near.shrink();
    return weighed(block, r, near, largest, T(0));
  }

  /// Scores become relative to the largest, which is `offset` as the candidates have it.
  Support<T> weighed(const RecallBlock<T>& block, index_t r, const Candidates<T>& candidates, W largest, T offset) const {
    const Scratch::Frame frame(Scratch::local());
    const index_t count = candidates.size(), room = padded<T>(count);
    T *z = Scratch::local().take<T>(room), *p = Scratch::local().take<T>(room);
    for (index_t i = 0; i < count; ++i) z[i] = candidates.scores()[i] - offset;
    std::fill(z + count, z + room, -std::numeric_limits<T>::infinity());
    CandidateRow<W> row{count, largest};
    if (problem_.sink) row.sink = sink(block, r);
    Support<T> support;
    if (largest != largest) {
      std::fill_n(p, count, std::numeric_limits<T>::quiet_NaN());
      support.potential = largest;
    } else {
      rule_.weigh(z, p, row);
      if (wants_potential_) support.potential = rule_.potential(z, p, row);
    }
    const index_t some = sees_all() ? count : count - std::count(p, p + count, T(0));
    support.index.reserve(static_cast<std::size_t>(some));
    support.weight.reserve(static_cast<std::size_t>(some));
    for (index_t i = 0; i < count; ++i) {
      if (p[i] == T(0) && !sees_all()) continue;  // where all scores are weights, one that is 0 has a gradient too
      support.index.push_back(static_cast<index_t>(candidates.numbers()[i]));
      support.weight.push_back(p[i]);
    }
    return support;
  }

  const RecallProblem<T>& problem_;
  const SupportRule<T>& rule_;
  const bool wants_potential_;
};

}  // namespace recollect::detail
