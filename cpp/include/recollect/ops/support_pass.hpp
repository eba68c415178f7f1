// SPDX-License-Identifier: BSD-3-Clause
/// One pass of a block of rows over the stored patterns that leaves each row with its support, and what is done with a support: reading
/// values through it.
#pragma once

#include "recollect/core/parallel.hpp"
#include "recollect/ops/support.hpp"

namespace recollect::detail {

template <class T>
class SupportPass {
 public:
  SupportPass(const RecallProblem<T>& problem, const SupportRule<T>& rule, bool wants_potential)
      : problem_(problem), rule_(rule), scores_(problem, false, false), supports_(problem, rule, wants_potential) {}

  /// use(a, support) for every row a of those that still move. Rows whose candidates are so many that they would fill memory come last, a
  /// few at a time. The patterns are cut into `runs` that are looked through side by side.
  template <class Use>
  void for_each(const RecallBlock<T>& block, index_t runs, Use&& use) const {
    std::vector<index_t> rows(static_cast<std::size_t>(block.moving));
    for (index_t a = 0; a < block.moving; ++a) rows[a] = a;
    const Cues<T> cues = block.prepare(1.0);
    const index_t room = candidates_at_once / std::max<index_t>(block.moving, 1);
    const std::vector<index_t> wide = some(block, cues, rows, runs, room, use);
    const index_t at_once = std::max<index_t>(candidates_at_once / std::max<index_t>(problem_.patterns, 1), 1);
    for (std::size_t first = 0; first < wide.size(); first += at_once) {
      const auto begin = wide.begin() + first;
      some(block, cues, {begin, begin + std::min<index_t>(at_once, wide.size() - first)}, runs, problem_.patterns, use);
    }
  }

 private:
  static constexpr index_t candidates_at_once = index_t{1} << 22;

  /// What one run of patterns leaves of every row.
  struct Run {
    std::vector<Candidates<T>> rows;
    std::vector<index_t> admissible;
    std::vector<bool> full;
  };

  /// Collects candidates of the rows until one has more than `room`.
  struct Collect {
    Run& run;
    index_t first, room;

    void row(index_t r, index_t count, const T* scores) const {
      if (run.full[r]) return;
      run.rows[r].offer(scores, count, first);
      if (run.rows[r].size() <= room) return;
      run.rows[r].shrink();
      run.full[r] = run.rows[r].size() > room;
    }
    void rows(index_t, index_t, index_t, const T*, const Tile<T>&) const {}
  };

  /// use(a, support) for some of the rows; returns those that had no room.
  template <class Use>
  std::vector<index_t> some(const RecallBlock<T>& block, const Cues<T>& all, const std::vector<index_t>& chosen, index_t runs, index_t room,
                            Use& use) const {
    const auto count = static_cast<index_t>(chosen.size());
    const Chosen picked(all, padded<T>(problem_.width), chosen);
    const index_t tiles = (problem_.patterns + scores_.tile() - 1) / scores_.tile(), run = (tiles + runs - 1) / runs * scores_.tile();
    std::vector<Run> parts(static_cast<std::size_t>(runs));
    parallel_for(runs, [&](index_t i) { collect(block.outer, picked.cues, i * run, (i + 1) * run, room, parts[i]); });
    std::vector<char> full(static_cast<std::size_t>(count), 0);
    constexpr index_t grain = 16;
    parallel_for((count + grain - 1) / grain, [&](index_t task) {
      for (index_t c = task * grain; c < std::min((task + 1) * grain, count); ++c) {
        Candidates<T>& merged = parts[0].rows[c];
        index_t admissible = 0;
        for (const Run& part : parts) {
          admissible += part.admissible[c];
          full[c] |= part.full[c];
        }
        if (full[c]) continue;
        for (std::size_t i = 1; i < parts.size(); ++i) merged.merge(parts[i].rows[c]);
        use(chosen[c], supports_.of(block, block.active[chosen[c]], merged, admissible));
      }
    });
    std::vector<index_t> wide;
    for (index_t c = 0; c < count; ++c)
      if (full[c]) wide.push_back(chosen[c]);
    return wide;
  }

  void collect(index_t outer, const Cues<T>& cues, index_t first, index_t last, index_t room, Run& into) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const typename ScorePass<T>::Workspace work(scores_, scratch);
    into.rows.resize(static_cast<std::size_t>(cues.rows), Candidates<T>(rule_));
    into.admissible.resize(static_cast<std::size_t>(cues.rows), 0);
    into.full.resize(static_cast<std::size_t>(cues.rows), false);
    last = std::min({last, problem_.patterns, cues.rows ? cues.most(0, cues.rows) : 0});
    for (index_t i = first; i < last; i += scores_.tile()) {
      const index_t count = std::min(scores_.tile(), problem_.patterns - i);
      scores_.absorb(outer, cues, i, count, Sight<T>{into.admissible.data(), nullptr}, work, Collect{into, i, room});
    }
  }

  /// The cues of some of the rows alone.
  struct Chosen {
    std::vector<T> data;
    std::vector<index_t> limit;
    std::vector<const bool*> mask;
    std::vector<const T*> bias;
    Cues<T> cues;

    Chosen(const Cues<T>& all, index_t stride, const std::vector<index_t>& rows) : cues(all) {
      cues.rows = static_cast<index_t>(rows.size());
      if (cues.rows == all.rows) return;
      for (index_t a : rows) {
        data.insert(data.end(), all.data + a * stride, all.data + (a + 1) * stride);
        limit.push_back(all.limit[a]);
        if (all.mask) mask.push_back(all.mask[a]);
        if (all.bias) bias.push_back(all.bias[a]);
      }
      cues.data = data.data();
      cues.limit = limit.data();
      if (all.mask) cues.mask = mask.data();
      if (all.bias) cues.bias = bias.data();
    }
  };

  const RecallProblem<T>& problem_;
  const SupportRule<T>& rule_;
  const ScorePass<T> scores_;
  const Supports<T> supports_;
};

/// Rows of a memory as packets read them, whatever they are stored as: some at a time, where they lie or copied.
template <class T>
class StoredReader {
 public:
  static constexpr index_t at_once = 32;

  explicit StoredReader(const StoredRows& rows) : rows_(rows), stride_(padded<T>(rows.width)) {
    direct_ = rows.type == dtype_of<T> && rows.column == 1 && rows.width == stride_;
    if (!direct_) copies_ = Scratch::local().take<T>(at_once * stride_);
  }

  index_t stride() const { return stride_; }

  /// Calls f(place, row) for each of `count` rows; a row is padded with zeros to whole packets.
  template <class F>
  void visit(const index_t* index, index_t count, F&& f) {
    const T* rows[at_once];
    for (index_t first = 0; first < count; first += at_once) {
      const index_t here = std::min(at_once, count - first);
      for (index_t i = 0; i < here; ++i) rows[i] = row(index[first + i], i);
      f(first, here, rows);
    }
  }

 private:
  const T* row(index_t i, index_t place) {
    if (direct_) return rows_.template at<T>(i);
    T* to = copies_ + place * stride_;
    switch (rows_.type) {
      case dtype::float16:
        copy_rows<float16>(rows_, i, 1, to);
        break;
      case dtype::bfloat16:
        copy_rows<bfloat16>(rows_, i, 1, to);
        break;
      default:
        copy_rows<T>(rows_, i, 1, to);
    }
    return to;
  }

  const StoredRows rows_;
  const index_t stride_;
  bool direct_;
  T* copies_ = nullptr;
};

/// to = sum_i w_i v_i, padded to whole packets, summed in the order of the patterns.
template <class T>
void read_support(const index_t* index, const T* weight, index_t count, StoredReader<T>& values, T* to) {
  using P = Packet<T>;
  std::fill(to, to + values.stride(), T(0));
  values.visit(index, count, [&](index_t first, index_t here, const T* const* rows) {
    index_t k = 0;
    const auto strip = [&]<int Packets>() {
      P total[Packets];
      for (int j = 0; j < Packets; ++j) total[j] = P::load(to + k + j * P::width);
      for (index_t i = 0; i < here; ++i) {
        const P w(weight[first + i]);
        for (int j = 0; j < Packets; ++j) total[j] = fma(w, P::load(rows[i] + k + j * P::width), total[j]);
      }
      for (int j = 0; j < Packets; ++j) total[j].store(to + k + j * P::width);
      k += Packets * P::width;
    };
    while (k + 4 * P::width <= values.stride()) strip.template operator()<4>();
    while (k < values.stride()) strip.template operator()<1>();
  });
}

}  // namespace recollect::detail
