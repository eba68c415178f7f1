// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of one recall. With z_i = beta x_i.q, p = softmax(z), out = sum_i p_i v_i and a cotangent g of out (mathematically the
/// same tiles as forward, computed again rather than kept):
///
///     D = g.out,   ds_i = p_i (g.v_i - D),   d_q = beta sum_i ds_i x_i,   d_x_i = sum_q ds_i beta q,   d_v_i = sum_q p_i g
///
/// of an energy with cotangent g, through lse alone: ds_i = -p_i g / beta. The gradient of beta costs nothing: the scores depend on
/// beta only through beta q, hence d_beta = q.d_q / beta for each row.
///
/// A task owns a range of patterns and walks over all rows, so a pattern's gradient has one writer; those of states are summed over ranges
/// in order. Rows are taken in groups, so that partial sums stay small.
#pragma once

#include <vector>

#include "recollect/core/parallel.hpp"
#include "recollect/ops/recall.hpp"
#include "recollect/ops/recall_range.hpp"

namespace recollect::detail {

/// What the gradient needs beside the operands, for every row.
template <class T>
struct RecallCotangents {
  Placed<const T> d_out, out;        // of a read
  Placed<const T> d_energy;          // of an energy
  Placed<const T> largest, log_sum;  // of either
};

/// Where gradients go. Memories are dense over (outer, N, width); a pointer that is null is not wanted.
template <class T>
struct RecallGradients {
  Placed<T> d_state;
  T *d_stored = nullptr, *d_values = nullptr;
  // (outer, rows): the sum over what these were broadcast to is the caller's
  double *d_beta = nullptr, *d_sink = nullptr;
  Placed<T> d_bias;  // zeros to begin with, and added to
};

template <class T, class Separation>
class RecallBackward {
 public:
  RecallBackward(const RecallProblem<T>& problem, const RecallCotangents<T>& cotangents, const RecallGradients<T>& gradients)
      : p_(problem),
        in_(cotangents),
        to_(gradients),
        reads_(static_cast<bool>(cotangents.d_out)),
        separate_(reads_ && problem.has_values()),
        width_(padded<T>(problem.width)),
        value_width_(reads_ ? padded<T>(problem.value_width) : 0),
        range_of_(problem, separate_) {
    constexpr index_t step = Registers<T>::panel_columns;
    tile_ = std::max(tile_rows<T>(std::max(problem.width, separate_ ? problem.value_width : 0)) / 2 / step * step, step);
    group_ = std::clamp<index_t>((128 << 10) / static_cast<index_t>(sizeof(T)) / std::max(width_, index_t(1)) / sub_rows * sub_rows,
                                 sub_rows, 5 * sub_rows);
    group_ = std::min(group_, std::max(p_.rows, index_t(1)));
    const index_t tiles = (p_.patterns + tile_ - 1) / tile_;
    const index_t wanted = (wanted_tasks + p_.outer - 1) / std::max(p_.outer, index_t(1));
    range_ = (tiles + wanted - 1) / std::max(wanted, index_t(1)) * tile_;
    ranges_ = range_ ? (p_.patterns + range_ - 1) / range_ : 0;
  }

  void run() {
    clear_memories();
    for (index_t first = 0; first < p_.outer; first += wanted_tasks) {
      const index_t outers = std::min(wanted_tasks, p_.outer - first);
      const Buffer<T> cues(outers * group_ * width_), states(outers * group_ * width_), cotangents(outers * group_ * value_width_),
          rows(outers * group_ * 3), partial(outers * ranges_ * group_ * width_);
      const Buffer<bool> extreme(outers * group_);
      for (index_t row = 0; row < p_.rows; row += group_) {
        const index_t count = std::min(group_, p_.rows - row);
        const auto group_at = [&](index_t o) {
          return Group{first + o,
                       row,
                       count,
                       cues.data() + o * group_ * width_,
                       states.data() + o * group_ * width_,
                       cotangents.data() + o * group_ * value_width_,
                       rows.data() + o * group_ * 3,
                       partial.data() + o * ranges_ * group_ * width_,
                       extreme.data() + o * group_};
        };
        parallel_for(outers, [&](index_t o) { prepare(group_at(o)); });
        work_all(outers, group_at);
        parallel_for(outers, [&](index_t o) { finish(group_at(o)); });
        for (index_t o = 0; o < outers; ++o) finish_extreme(group_at(o));
      }
    }
  }

 private:
  static constexpr index_t wanted_tasks = 64, sub_rows = 96;

  /// Some rows of one outer entry, packed for products.
  struct Group {
    index_t outer, first, count;
    T *cues, *states;  // (count, padded width): beta log2(e) q, as in the forward pass, and beta q
    T* cotangents;     // (count, padded value width): g
    T* constants;      // (count, 3): the largest score, log2 of the sum relative to it, D
    T* partial;        // (ranges, group, padded width): sums of ds x
    bool* extreme;     // (count): left to the plain definition
  };

  void clear_memories() {
    if (to_.d_stored) std::fill_n(to_.d_stored, p_.outer * p_.patterns * p_.width, T(0));
    if (to_.d_values) std::fill_n(to_.d_values, p_.outer * p_.patterns * p_.value_width, T(0));
  }

  /// Whether scores, cotangents of weights or their sums could overflow. Ordinary rows are far from it.
  bool extreme(const Group& g, index_t r) const {
    const double cue = sum_of_sizes(g.cues + r * width_, p_.width);
    const double cotangent = reads_ ? sum_of_sizes(g.cotangents + r * value_width_, p_.value_width) * range_of_.value(g.outer)
                                    : std::abs(static_cast<double>(g.constants[3 * r + 2]));
    const double stored = range_of_.stored(g.outer), room = static_cast<double>(std::numeric_limits<T>::max()) / 16;
    const double sums = static_cast<double>(p_.patterns) * cotangent;
    return !(cue * stored < room && sums < room && sums * stored < room && cotangent * cue < room);
  }

  void prepare(const Group& g) const {
    const Scratch::Frame frame(Scratch::local());
    T* dense = Scratch::local().take<T>(p_.value_width);
    for (index_t r = 0; r < g.count; ++r) {
      const index_t row = g.first + r;
      const double beta = *p_.at(p_.beta, g.outer, row);
      const T* state = p_.at(p_.state, g.outer, row);
      const T scale = static_cast<T>(beta * log2_e);
      T *cue = g.cues + r * width_, *scaled = g.states + r * width_, *constants = g.constants + 3 * r;
      for (index_t k = 0; k < p_.width; ++k) {
        cue[k] = scale * state[k * p_.state.inner];
        scaled[k] = static_cast<T>(beta * static_cast<double>(state[k * p_.state.inner]));
      }
      std::fill(cue + p_.width, cue + width_, T(0));
      std::fill(scaled + p_.width, scaled + width_, T(0));
      double mean = 0;
      if (reads_) {
        const T* d_out = p_.at(in_.d_out, g.outer, row);
        const T* out = p_.at(in_.out, g.outer, row);
        T* cotangent = g.cotangents + r * value_width_;
        for (index_t k = 0; k < p_.value_width; ++k) {
          cotangent[k] = d_out[k * in_.d_out.inner];
          dense[k] = out[k * in_.out.inner];
        }
        std::fill(cotangent + p_.value_width, cotangent + value_width_, T(0));
        mean = dot(cotangent, dense, p_.value_width);
      } else {
        mean = static_cast<double>(*p_.at(in_.d_energy, g.outer, row)) / beta;
      }
      constants[0] = *p_.at(in_.largest, g.outer, row);
      constants[1] = *p_.at(in_.log_sum, g.outer, row);
      constants[2] = static_cast<T>(mean);
      g.extreme[r] = extreme(g, r);
      if (g.extreme[r]) {
        std::fill_n(cue, width_, T(0));
        std::fill_n(scaled, width_, T(0));
        if (reads_) std::fill_n(g.cotangents + r * value_width_, value_width_, T(0));
      }
      if (g.extreme[r] || sees_nothing(g.outer, row)) {  // then every weight is 2^(-inf) = 0
        constants[0] = std::numeric_limits<T>::infinity();
        constants[1] = constants[2] = T(0);
      }
    }
  }

  /// Every (outer entry, range) is a task, unless tasks would meet in one place of a bias's gradient.
  template <class GroupAt>
  void work_all(index_t outers, const GroupAt& group_at) const {
    const bool ranges_meet = to_.d_bias && to_.d_bias.inner == 0 && p_.patterns > 1;
    const bool outers_meet = to_.d_bias && !covers(p_.fold.outer, to_.d_bias.outer);
    if (!ranges_meet && !outers_meet)
      return parallel_for(outers * ranges_, [&](index_t task) { work(group_at(task % outers), task / outers); });
    const auto whole_range = [&](index_t range) {
      for (index_t o = 0; o < outers; ++o) work(group_at(o), range);
    };
    if (!ranges_meet) return parallel_for(ranges_, whole_range);
    for (index_t range = 0; range < ranges_; ++range) whole_range(range);
  }

  struct Workspace {
    Tile<T> stored, values;
    T *weights, *d_scores, *d_stored, *d_values;
    bool* keep;
  };

  void work(const Group& g, index_t range) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    Workspace w{};
    w.stored.buffer = scratch.take<T>(tile_ * width_);
    w.stored.panels = scratch.take<T>(tile_ * width_);
    if (separate_) w.values.buffer = scratch.take<T>(tile_ * value_width_);
    if (separate_) w.values.panels = scratch.take<T>(tile_ * value_width_);
    w.weights = scratch.take<T>(sub_rows * tile_);
    w.d_scores = scratch.take<T>(sub_rows * tile_);
    w.d_stored = scratch.take<T>(tile_ * width_);
    w.d_values = scratch.take<T>(tile_ * value_width_);
    w.keep = scratch.take<bool>(tile_);
    T* partial = g.partial + range * group_ * width_;
    std::fill_n(partial, g.count * width_, T(0));
    const index_t end = std::min((range + 1) * range_, p_.patterns);
    for (index_t i = range * range_; i < end; i += tile_) absorb(g, i, std::min(tile_, end - i), partial, w);
  }

  /// One tile of patterns against all rows of the group.
  void absorb(const Group& g, index_t first, index_t count, T* partial, Workspace& w) const {
    if (most(g, 0, g.count) <= first) return;
    const bool some_hidden = (p_.mask || p_.bias) && hides(g, first, count, w.keep);
    const copying copy = some_hidden ? copying::always : copying::unaligned;
    load_rows(p_.stored_at(g.outer), first, count, w.stored, copy);
    if (separate_) load_rows(p_.values_at(g.outer), first, count, w.values, copy);
    if (some_hidden) clear_masked(count, w);
    turn_rows(count, w.stored);
    if (separate_) turn_rows(count, w.values);
    const Tile<T>& values = separate_ ? w.values : w.stored;
    T* d_values = separate_ ? w.d_values : w.d_stored;
    std::fill_n(w.d_stored, count * width_, T(0));
    if (separate_) std::fill_n(w.d_values, count * value_width_, T(0));
    for (index_t r = 0; r < g.count; r += sub_rows) {
      const index_t rows = std::min(sub_rows, g.count - r), visible = std::min(count, most(g, r, rows) - first);
      if (visible <= 0) continue;
      const T *cues = g.cues + r * width_, *cotangents = g.cotangents + r * value_width_;
      score(rows, Factor<T>{cues, width_, 1}, p_.width, w.stored, visible, w.weights, tile_);
      if (reads_) score(rows, Factor<T>{cotangents, value_width_, 1}, p_.value_width, values, visible, w.d_scores, tile_);
      for (index_t s = 0; s < rows; ++s) weigh(g, r + s, first, visible, w.weights + s * tile_, w.d_scores + s * tile_);
      if (to_.d_state || to_.d_beta)
        read<T, start::keep>(rows, Factor<T>{w.d_scores, tile_, 1}, w.stored.rows, w.stored.row_stride, width_, visible,
                             partial + r * width_, width_, nullptr);
      if (to_.d_stored)
        read<T, start::keep>(visible, Factor<T>{w.d_scores, 1, tile_}, g.states + r * width_, width_, width_, rows, w.d_stored, width_,
                             nullptr);
      if (reads_ && (separate_ ? to_.d_values : to_.d_stored))
        read<T, start::keep>(visible, Factor<T>{w.weights, 1, tile_}, cotangents, value_width_, value_width_, rows, d_values, value_width_,
                             nullptr);
    }
    if (to_.d_stored) add_rows(w.d_stored, width_, count, to_.d_stored + (g.outer * p_.patterns + first) * p_.width, p_.width);
    if (separate_ && to_.d_values)
      add_rows(w.d_values, value_width_, count, to_.d_values + (g.outer * p_.patterns + first) * p_.value_width, p_.value_width);
  }

  /// Scores become weights, and g.v_i becomes ds_i, in place.
  void weigh(const Group& g, index_t r, index_t first, index_t count, T* weights, T* d_scores) const {
    using P = Packet<T>;
    constexpr T never = -std::numeric_limits<T>::infinity();
    const index_t row = g.first + r, own = std::clamp<index_t>(p_.limit(row) - first, 0, count);
    if (p_.bias) {
      const T* bias = p_.at(p_.bias, g.outer, row) + first * p_.bias.inner;
      for (index_t i = 0; i < own; ++i) weights[i] += bias[i * p_.bias.inner] * static_cast<T>(log2_e);
    }
    if (p_.mask) {
      const bool* mask = p_.at(p_.mask, g.outer, row) + first * p_.mask.inner;
      for (index_t i = 0; i < own; ++i) weights[i] = mask[i * p_.mask.inner] ? weights[i] : never;
    }
    std::fill(weights + own, weights + padded<T>(count), never);
    if (p_.mask || p_.bias || own < count)
      for (index_t i = 0; i < padded<T>(count); ++i) d_scores[i] = weights[i] == never ? T(0) : d_scores[i];
    const P reference(g.constants[3 * r]), log_sum(g.constants[3 * r + 1]), mean(g.constants[3 * r + 2]);
    for (index_t i = 0; i < count; i += P::width) {
      const P weight = Separation::template weight<T>(P::load(weights + i) - reference - log_sum);
      weight.store(weights + i);
      (weight * ((reads_ ? P::load(d_scores + i) : P(T(0))) - mean)).store(d_scores + i);
    }
    if (!to_.d_bias) return;
    T* d_bias = p_.at(to_.d_bias, g.outer, row) + first * to_.d_bias.inner;
    for (index_t i = 0; i < own; ++i) d_bias[i * to_.d_bias.inner] += d_scores[i];
  }

  /// How many patterns any of these rows may see.
  index_t most(const Group& g, index_t first, index_t count) const {
    index_t limit = 0;
    for (index_t r = first; r < first + count; ++r) limit = std::max(limit, p_.limit(g.first + r));
    return limit;
  }

  /// Whether no row of the group looks at some pattern of this tile; then `keep` says which are left.
  bool hides(const Group& g, index_t first, index_t count, bool* keep) const {
    const bool alike = p_.shared_by_rows(p_.mask) && p_.shared_by_rows(p_.bias);
    const auto at = [&](const auto& operand) {
      return [&](index_t r) { return operand ? p_.at(operand, g.outer, g.first + r) + first * operand.inner : nullptr; };
    };
    return look<T>(alike ? 1 : g.count, at(p_.mask), p_.mask.inner, at(p_.bias), p_.bias.inner, count, keep) < count;
  }

  void clear_masked(index_t count, const Workspace& w) const {
    for (index_t i = 0; i < count; ++i) {
      if (w.keep[i]) continue;
      std::fill_n(w.stored.buffer + i * width_, width_, T(0));
      if (separate_) std::fill_n(w.values.buffer + i * value_width_, value_width_, T(0));
    }
  }

  /// Over dense rows only: a compiler may round a strided loop in another way, and results must not depend on strides.
  static double dot(const T* a, const T* b, index_t count) {
    double total = 0;
    for (index_t k = 0; k < count; ++k) total += static_cast<double>(a[k]) * static_cast<double>(b[k]);
    return total;
  }

  /// Sums the ranges and scales to the gradients of states and beta.
  void finish(const Group& g) const {
    for (index_t r = 0; r < g.count; ++r) {
      T* total = g.partial + r * width_;
      if (ranges_ == 0) break;
      for (index_t range = 1; range < ranges_; ++range)
        for (index_t k = 0; k < width_; ++k) total[k] += g.partial[(range * group_ + r) * width_ + k];
    }
    for (index_t r = 0; r < g.count; ++r) finish_row(g, r, ranges_ ? g.partial + r * width_ : nullptr);
  }

  /// Rows that the fast sums cannot hold, one after the other: they add to the same memories.
  void finish_extreme(const Group& g) const {
    for (index_t r = 0; r < g.count; ++r) {
      const index_t row = g.first + r;
      if (!g.extreme[r] || sees_nothing(g.outer, row)) continue;
      using W = wider<T>;
      std::vector<T> state(static_cast<std::size_t>(p_.width)), d_state(state), cotangent(static_cast<std::size_t>(p_.value_width));
      for (index_t k = 0; k < p_.width; ++k) state[k] = p_.at(p_.state, g.outer, row)[k * p_.state.inner];
      for (index_t k = 0; reads_ && k < p_.value_width; ++k) cotangent[k] = p_.at(in_.d_out, g.outer, row)[k * in_.d_out.inner];
      const double beta = *p_.at(p_.beta, g.outer, row);
      const W d_energy = reads_ ? W(0) : static_cast<W>(*p_.at(in_.d_energy, g.outer, row));
      const PlainMemory<T> memory{p_.stored_at(g.outer),
                                  p_.values_at(g.outer),
                                  p_.patterns,
                                  p_.mask ? p_.at(p_.mask, g.outer, row) : nullptr,
                                  p_.mask.inner,
                                  p_.limit(row),
                                  p_.bias ? p_.at(p_.bias, g.outer, row) : nullptr,
                                  p_.bias.inner,
                                  p_.sink ? p_.at(p_.sink, g.outer, row) : nullptr};
      const PlainRow<T> plain(state.data(), beta, memory);
      T* d_stored = to_.d_stored ? to_.d_stored + g.outer * p_.patterns * p_.width : nullptr;
      T* d_values = to_.d_values ? to_.d_values + g.outer * p_.patterns * p_.value_width : nullptr;
      const W d_beta = plain.backward(memory, state.data(), beta, reads_ ? cotangent.data() : nullptr, -d_energy, d_state.data(), d_stored,
                                      separate_ ? d_values : d_stored, to_.d_bias ? p_.at(to_.d_bias, g.outer, row) : nullptr,
                                      to_.d_bias.inner, to_.d_sink ? to_.d_sink + g.outer * p_.rows + row : nullptr);
      for (index_t k = 0; to_.d_state && k < p_.width; ++k)
        p_.at(to_.d_state, g.outer, row)[k * to_.d_state.inner] = d_state[k] + static_cast<T>(d_energy) * state[k];
      const W through_lse = (plain.log_sum - std::log(static_cast<W>(admissible(g.outer, row)))) / static_cast<W>(beta * beta);
      if (to_.d_beta) to_.d_beta[g.outer * p_.rows + row] = static_cast<double>(d_beta + d_energy * through_lse);
    }
  }

  void finish_row(const Group& g, index_t r, const T* total) const {
    const index_t row = g.first + r;
    const double beta = *p_.at(p_.beta, g.outer, row), lse = log_sum(g.outer, row) * ln_2 / beta;
    const T* state = p_.at(p_.state, g.outer, row);
    const bool none = sees_nothing(g.outer, row);
    const double direct = reads_ || none ? 0.0 : static_cast<double>(*p_.at(in_.d_energy, g.outer, row));
    T* d_state = to_.d_state ? p_.at(to_.d_state, g.outer, row) : nullptr;
    const Scratch::Frame frame(Scratch::local());
    T* dense = Scratch::local().take<T>(p_.width);
    for (index_t k = 0; k < p_.width; ++k) {
      dense[k] = state[k * p_.state.inner];
      const double through = total && !none ? beta * static_cast<double>(total[k]) : 0.0;
      if (d_state) d_state[k * to_.d_state.inner] = static_cast<T>(through + direct * static_cast<double>(dense[k]));
    }
    if (to_.d_sink && !g.extreme[r]) {
      const double sink = *p_.at(p_.sink, g.outer, row) * log2_e - log_sum(g.outer, row);
      to_.d_sink[g.outer * p_.rows + row] = -std::exp2(sink) * static_cast<double>(g.constants[3 * r + 2]);
    }
    if (!to_.d_beta) return;
    // q . (the part of d_q that goes through the scores) / beta
    double d_beta = total && !none ? dot(dense, total, p_.width) : 0.0;
    if (direct != 0) d_beta += direct * lse / beta - direct * std::log(static_cast<double>(admissible(g.outer, row))) / (beta * beta);
    to_.d_beta[g.outer * p_.rows + row] = d_beta;
  }

  bool sees_nothing(index_t outer, index_t row) const {
    return *p_.at(in_.largest, outer, row) == -std::numeric_limits<T>::infinity() && (p_.bias || admissible(outer, row) == 0);
  }

  /// log2 of the sum of 2^score.
  double log_sum(index_t outer, index_t row) const {
    return static_cast<double>(*p_.at(in_.largest, outer, row)) + static_cast<double>(*p_.at(in_.log_sum, outer, row));
  }

  index_t admissible(index_t outer, index_t row) const {
    if (!p_.mask) return p_.limit(row);
    const bool* mask = p_.at(p_.mask, outer, row);
    index_t count = 0;
    for (index_t i = 0; i < p_.limit(row); ++i) count += mask[i * p_.mask.inner];
    return count;
  }

  const RecallProblem<T>& p_;
  const RecallCotangents<T>& in_;
  const RecallGradients<T>& to_;
  const bool reads_, separate_;
  const index_t width_, value_width_;
  index_t tile_, group_, range_ = 0, ranges_ = 0;
  const MemoryRange<T> range_of_;
};

}  // namespace recollect::detail
