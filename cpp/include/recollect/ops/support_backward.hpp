// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of a recall through a separation that gives weight to few patterns. The supports are found again; then forward and
/// backward touch what was read and nothing else:
///
///     d_p_i = g.v_i,   d_z = J^T d_p on the support,   d_q = beta sum_i d_z_i x_i,   d_x_i = sum_q d_z_i beta q,   d_v_i = sum_q p_i g
///
/// of an energy |q|^2/2 - Omega*(z)/beta with cotangent g, since grad Omega* = p: d_z = -g p / beta.
///
/// Rows are differentiated side by side, some thousands at a time; then tasks that own ranges of patterns add what those rows give to them,
/// in the order of the rows.
#pragma once

#include "recollect/ops/recall_gradients.hpp"
#include "recollect/ops/support_recall.hpp"

namespace recollect::detail {

template <class T>
class SupportBackward {
 public:
  SupportBackward(const RecallProblem<T>& problem, const SupportRule<T>& rule, const RecallCotangents<T>& cotangents,
                  const RecallGradients<T>& gradients)
      : p_(problem),
        rule_(rule),
        in_(cotangents),
        to_(gradients),
        reads_(static_cast<bool>(cotangents.d_out)),
        pass_(problem, rule, static_cast<bool>(cotangents.d_energy)) {}

  void run() const {
    if (to_.d_stored) std::fill_n(to_.d_stored, p_.outer * p_.patterns * p_.width, T(0));
    if (to_.d_values) std::fill_n(to_.d_values, p_.outer * p_.patterns * p_.value_width, T(0));
    const index_t most = rows_of_a_block(p_);
    index_t together = std::clamp<index_t>(numbers_at_once / std::max<index_t>(p_.patterns, 1), 16, most);
    for (index_t row = 0; row < p_.outer * p_.rows;) {
      std::vector<Piece> pieces;
      index_t rows = 0, size = 0;
      for (; rows < together && row < p_.outer * p_.rows; row += pieces.back().count, rows += pieces.back().count) {
        const index_t first = row % p_.rows;
        pieces.push_back({row / p_.rows, first, std::min({most, p_.rows - first, together - rows}), {}});
      }
      differentiate_all(pieces);
      add_all(pieces);
      for (const Piece& piece : pieces)
        for (const Row& own : piece.rows) size += own.support.size();
      // As many rows next time as fit by this measure.
      together = std::clamp<index_t>(numbers_at_once / (size / rows + 1), 16, std::min<index_t>(4 * together, 8192));
    }
  }

 private:
  static constexpr index_t numbers_at_once = index_t{1} << 22;

  struct Row {
    Support<T> support;
    std::vector<T> d_score;
  };

  struct Piece {
    index_t outer, first, count;
    std::vector<Row> rows;
  };

  void differentiate_all(std::vector<Piece>& pieces) const {
    const index_t runs = runs_for(static_cast<index_t>(pieces.size()), p_.patterns);
    const auto one = [&](index_t i) {
      Scratch& scratch = Scratch::local();
      const Scratch::Frame frame(scratch);
      Piece& piece = pieces[i];
      piece.rows.resize(static_cast<std::size_t>(piece.count));
      const RecallBlock<T> block(p_, piece.outer, piece.first, piece.count, [&]<class U>(index_t n) { return scratch.take<U>(n); });
      pass_.for_each(block, runs, [&](index_t r, Support<T> support) {
        piece.rows[r].support = std::move(support);
        differentiate(block, r, piece.rows[r]);
      });
    };
    const auto count = static_cast<index_t>(pieces.size());
    if (runs == 1) return parallel_for(count, one);
    for (index_t i = 0; i < count; ++i) one(i);
  }

  /// The gradients of a row's scores, and all that has but one row.
  void differentiate(const RecallBlock<T>& block, index_t r, Row& row) const {
    const Scratch::Frame frame(Scratch::local());
    const Support<T>& support = row.support;
    const index_t place = block.first + r, o = block.outer;
    const double beta = block.beta[r];
    const T* q = block.state + r * p_.width;
    row.d_score.resize(support.index.size());
    double mean = 0, kept = 0, direct = 0;
    if (reads_) {
      score_cotangents(o, place, support, row.d_score.data());
      for (index_t i = 0; i < support.size(); ++i) {
        mean += static_cast<double>(row.d_score[i]) * static_cast<double>(support.weight[i]);
        kept += static_cast<double>(support.weight[i]);
      }
      rule_.pullback(support.weight.data(), row.d_score.data(), support.size());
    } else if (support.size() > 0) {
      direct = static_cast<double>(*p_.at(in_.d_energy, o, place));
      for (index_t i = 0; i < support.size(); ++i) row.d_score[i] = static_cast<T>(-direct / beta * static_cast<double>(support.weight[i]));
    }
    StoredReader<T> stored(p_.stored_at(o));
    T* total = Scratch::local().take<T>(stored.stride());
    read_support(support.index.data(), row.d_score.data(), support.size(), stored, total);
    double along = 0;
    for (index_t k = 0; k < p_.width; ++k) {
      const double own = static_cast<double>(q[k]), through = static_cast<double>(total[k]);
      along += own * through;
      if (to_.d_state) p_.at(to_.d_state, o, place)[k * to_.d_state.inner] = static_cast<T>(beta * through + direct * own);
    }
    if (direct != 0) along += direct * static_cast<double>(support.potential) / (beta * beta);
    if (to_.d_beta) to_.d_beta[o * p_.rows + place] = along;
    if (to_.d_sink) to_.d_sink[o * p_.rows + place] = (kept - 1) * mean;  // what the support does not weigh is the sink's
  }

  /// g.v_i for the patterns of a support.
  void score_cotangents(index_t o, index_t row, const Support<T>& support, T* to) const {
    const Scratch::Frame frame(Scratch::local());
    StoredReader<T> values(p_.values_at(o));
    T* g = Scratch::local().take<T>(values.stride());
    const T* d_out = p_.at(in_.d_out, o, row);
    for (index_t k = 0; k < p_.value_width; ++k) g[k] = d_out[k * in_.d_out.inner];
    std::fill(g + p_.value_width, g + values.stride(), T(0));
    values.visit(support.index.data(), support.size(), [&](index_t first, index_t here, const T* const* rows) {
      for (index_t i = 0; i < here; ++i) {
        Packet<T> total(T(0));
        for (index_t k = 0; k < values.stride(); k += Packet<T>::width)
          total = fma(Packet<T>::load(g + k), Packet<T>::load(rows[i] + k), total);
        to[first + i] = sum(total);
      }
    });
  }

  /// Every (outer entry, range of patterns) is a task, unless tasks would meet in one place of a bias's gradient.
  void add_all(const std::vector<Piece>& pieces) const {
    const T* const memories[] = {to_.d_stored, to_.d_values};
    if (!memories[0] && !memories[1] && !to_.d_bias) return;
    const bool meet = to_.d_bias && (!covers(p_.fold.outer, to_.d_bias.outer) || (to_.d_bias.inner == 0 && p_.patterns > 1));
    const index_t first_outer = pieces.front().outer, outers = pieces.back().outer - first_outer + 1;
    const index_t ranges = meet ? 1 : std::clamp<index_t>(64 / outers, 1, std::max<index_t>(p_.patterns / 16, 1));
    const index_t range = (p_.patterns + ranges - 1) / ranges;
    const auto task = [&](index_t t) {
      for (const Piece& piece : pieces)
        if (piece.outer - first_outer == t / ranges) add(piece, t % ranges * range, (t % ranges + 1) * range);
    };
    if (!meet) return parallel_for(outers * ranges, task);
    for (index_t t = 0; t < outers; ++t) task(t);
  }

  void add(const Piece& piece, index_t first, index_t last) const {
    const Scratch::Frame frame(Scratch::local());
    T* q = Scratch::local().take<T>(p_.width);
    T* g = Scratch::local().take<T>(p_.value_width);
    T* d_stored = to_.d_stored ? to_.d_stored + piece.outer * p_.patterns * p_.width : nullptr;
    T* d_values = to_.d_values ? to_.d_values + piece.outer * p_.patterns * p_.value_width : nullptr;
    if (!p_.has_values()) d_values = d_stored;
    for (index_t r = 0; r < piece.count; ++r) {
      const Row& row = piece.rows[r];
      const auto& index = row.support.index;
      auto i = static_cast<std::size_t>(std::lower_bound(index.begin(), index.end(), first) - index.begin());
      if (i == index.size() || index[i] >= last) continue;
      const index_t place = piece.first + r;
      const T beta = static_cast<T>(*p_.at(p_.beta, piece.outer, place));
      for (index_t k = 0; k < p_.width; ++k) q[k] = beta * p_.at(p_.state, piece.outer, place)[k * p_.state.inner];
      for (index_t k = 0; reads_ && k < p_.value_width; ++k) g[k] = p_.at(in_.d_out, piece.outer, place)[k * in_.d_out.inner];
      T* d_bias = to_.d_bias ? p_.at(to_.d_bias, piece.outer, place) : nullptr;
      for (; i < index.size() && index[i] < last; ++i) {
        const T d_score = row.d_score[i], weight = row.support.weight[i];
        if (d_stored) add_scaled(d_score, q, p_.width, d_stored + index[i] * p_.width);
        if (d_values && reads_) add_scaled(weight, g, p_.value_width, d_values + index[i] * p_.value_width);
        if (d_bias) d_bias[index[i] * to_.d_bias.inner] += d_score;
      }
    }
  }

  static void add_scaled(T scale, const T* from, index_t count, T* to) {
    for (index_t k = 0; k < count; ++k) to[k] += scale * from[k];
  }

  const RecallProblem<T>& p_;
  const SupportRule<T>& rule_;
  const RecallCotangents<T>& in_;
  const RecallGradients<T>& to_;
  const bool reads_;
  const SupportPass<T> pass_;
};

/// The recall and its gradient for any separation: fused for softmax, through supports for all others.
template <class T, class Separation>
void run_recall(const RecallProblem<T>& p, const Separation& separation, const RecallSteps& steps, const RecallResults<T>& results,
                bool only_scores) {
  if constexpr (std::is_same_v<Separation, softmax>) {
    Recall<T, softmax>(p, steps, results, only_scores).run();
  } else {
    const auto rule = SupportRule<T>::of(separation);
    SupportRecall<T>(p, rule, steps, results, only_scores).run();
  }
}

template <class T, class Separation>
void run_recall_backward(const RecallProblem<T>& p, const Separation& separation, const RecallCotangents<T>& cotangents,
                         const WantedGradients& wanted) {
  with_gradients<T>(p, wanted, [&](const RecallGradients<T>& to) {
    if constexpr (std::is_same_v<Separation, softmax>) {
      RecallBackward<T, softmax>(p, cotangents, to).run();
    } else {
      const auto rule = SupportRule<T>::of(separation);
      SupportBackward<T>(p, rule, cotangents, to).run();
    }
  });
}

}  // namespace recollect::detail
