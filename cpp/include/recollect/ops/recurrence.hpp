// SPDX-License-Identifier: BSD-3-Clause
/// The recurrence of sparse attentive backtracking, forward. Equations: spec/backtracking.hpp.
///
/// Rows of the batch do not depend on each other, so a block of them goes through all steps by itself, without waiting for anybody. Where
/// the recurrent weights are larger than a cache of one core, all blocks go step by step together instead, and a step's product with
/// these weights is split among threads by columns: each then reads its own part of them only. Both give the same bits.
#pragma once

#include "recollect/ops/cells.hpp"
#include "recollect/ops/eased_scores.hpp"
#include "recollect/ops/matrix_product.hpp"
#include "recollect/ops/sparse_choice.hpp"

namespace recollect::backtracking::detail {

using recollect::detail::Factor;
using recollect::detail::PackedMatrix;
using recollect::detail::parallel_gradient_product;
using recollect::detail::parallel_product;

/// Sizes and places, after the checks. Arrays are contiguous.
template <class T>
struct RecurrenceProblem {
  index_t B, S, D, H, A, C, k;  // S steps; A is what is stored with a microstate, C how many there is room for, k the places of a read
  index_t out_width;            // 2 H, or H without s
  options how;
  index_t count;  // microstates before the first step
  index_t room;   // rows from the microstates of one batch entry to the next, C or more
  const T *x, *hidden, *carry;
  const T *weight_ih, *weight_hh, *bias_ih, *bias_hh, *w1, *w2, *w3;
  T *states, *keys;
  T *gates, *hhat, *h, *carries, *weights, *total;
  index_t* indices;

  bool reads() const { return how.k_top != 0; }
  bool released() const { return how.form == rule::released; }
  /// Microstates stored before step s (from 0) of this call, and the first of them that can be read.
  index_t stored_before(index_t s) const { return count + (how.time + s) / how.k_att - how.time / how.k_att; }
  index_t first_of(index_t stored) const { return how.max_memories > 0 ? std::max<index_t>(0, stored - how.max_memories) : 0; }
  bool stores(index_t s) const { return reads() && (how.time + s + 1) % how.k_att == 0; }
  /// Whether no gradient goes from step s to the one before.
  bool starts_window(index_t s) const {
    if (s == 0) return true;  // what a call starts from is a constant
    if (how.k_trunc == 0) return false;
    return (released() ? how.time + s + 1 : how.time + s) % how.k_trunc == 0;
  }
  const T* h_before(index_t b, index_t s) const { return s > 0 ? h + (b * S + s - 1) * H : hidden + b * H; }
  const T* carry_before(index_t b, index_t s) const { return s > 0 ? carries + (b * S + s - 1) * H : carry + b * H; }
  /// The distance from the row of one batch entry to the next, for h_before.
  index_t h_stride(index_t s) const { return s > 0 ? S * H : H; }
  Choice<T> choice(index_t b, index_t s) const {
    const index_t at = b * S + s;
    return {k, indices + at * (k + 1), weights + at * k, indices[at * (k + 1) + k], total[at]};
  }
};

/// How many rows of the batch make a block: enough of them to share what is read of the weights, and blocks enough for many threads.
inline index_t rows_of_block(index_t B) { return std::clamp<index_t>((B + 3) / 4, 1, 8); }

/// Whether a matrix of the recurrence is too large for each thread to read all of it in every step.
template <class T>
bool goes_by_columns(index_t rows, index_t columns) {
  return rows * columns * static_cast<index_t>(sizeof(T)) > (index_t{1} << 20);
}

template <class T, class Cell>
class RecurrenceForward {
 public:
  RecurrenceForward(const RecurrenceProblem<T>& p, T* outputs)
      : p_(p),
        outputs_(outputs),
        weight_hh_(p.weight_hh, p.H, Cell::gates * p.H, true),
        w1_(p.w1, p.H, scores_by_mlp() ? p.A : 0, true),
        w2_(p.w2, p.H, scores_by_mlp() ? p.A : 0, true),
        recurrent_(p.B * Cell::gates * p.H),
        eased_(p.w3, scores_by_mlp() ? p.A : 0, scores_by_mlp() ? p.B * p.C : 0) {
    if (scores_by_mlp())
      parallel_for(p.B, [&](index_t b) {
        for (index_t i = p.first_of(p.count); i < p.count; ++i) ease_key(b, i);
      });
  }

  void run() {
    {
      const PackedMatrix<T> weight_ih(p_.weight_ih, p_.D, Cell::gates * p_.H, true);
      parallel_product(p_.B * p_.S, p_.x, p_.D, weight_ih, p_.bias_ih, p_.gates, 4 * p_.H);
    }
    const index_t rows = rows_of_block(p_.B), blocks = (p_.B + rows - 1) / rows;
    const auto last = [&](index_t block) { return std::min(p_.B, (block + 1) * rows); };
    if (!goes_by_columns<T>(p_.H, Cell::gates * p_.H)) {
      parallel_for(blocks, [&](index_t block) {
        for (index_t s = 0; s < p_.S; ++s) {
          products(block * rows, last(block), s, 0, weight_hh_.strips());
          step(block * rows, last(block), s);
        }
      });
      return;
    }
    const index_t strips = weight_hh_.strips(), part = std::max<index_t>(1, (strips + 31) / 32);
    for (index_t s = 0; s < p_.S; ++s) {
      parallel_for((strips + part - 1) / part,
                   [&](index_t task) { products(0, p_.B, s, task * part, std::min(strips, (task + 1) * part)); });
      parallel_for(blocks, [&](index_t block) { step(block * rows, last(block), s); });
    }
  }

 private:
  bool scores_by_mlp() const { return p_.reads() && !p_.released(); }

  /// W_hh h + b_hh for some rows and strips of columns.
  void products(index_t first, index_t last, index_t s, index_t first_strip, index_t last_strip) const {
    const index_t width = Cell::gates * p_.H, from = first_strip * PackedMatrix<T>::strip;
    const index_t to = std::min(width, last_strip * PackedMatrix<T>::strip);
    for (index_t b = first; b < last; ++b) std::copy(p_.bias_hh + from, p_.bias_hh + to, recurrent_.data() + b * width + from);
    weight_hh_.multiply(last - first, {p_.h_before(first, s), p_.h_stride(s), 1}, recurrent_.data() + first * width, width, first_strip,
                        last_strip);
  }

  void step(index_t first, index_t last, index_t s) const {
    const index_t H = p_.H;
    for (index_t b = first; b < last; ++b) {
      const index_t at = b * p_.S + s;
      Cell::template forward<T>({H, recurrent_.data() + b * Cell::gates * H, p_.carry_before(b, s), p_.gates + at * 4 * H, p_.hhat + at * H,
                                 p_.carries + at * H});
    }
    if (p_.reads()) {
      read(first, last, s);
      if (p_.stores(s)) store(first, last, s);
    } else {
      for (index_t b = first; b < last; ++b) {
        const index_t at = b * p_.S + s;
        std::copy_n(p_.hhat + at * H, H, p_.h + at * H);
        std::copy_n(p_.hhat + at * H, H, outputs_ + at * p_.out_width);
        if (p_.out_width > H) std::fill_n(outputs_ + at * p_.out_width + H, H, T(0));
      }
    }
  }

  /// h = hhat + s for some rows.
  void read(index_t first, index_t last, index_t s) const {
    using P = Packet<T>;
    const index_t H = p_.H, A = p_.A, stored = p_.stored_before(s), from = p_.first_of(stored);
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *const queries = scratch.take<T>((last - first) * A), *const value = scratch.take<T>(H),
             *const scores = scratch.take<T>(stored - from);
    const math::TopK<T> best{scratch.take<T>(p_.k + 1), scratch.take<index_t>(p_.k + 1), p_.k + 1};
    if (stored > from) project(queries, p_.hhat + (first * p_.S + s) * H, p_.S * H, last - first, w2_, p_.w3);
    for (index_t b = first; b < last; ++b) {
      const index_t at = b * p_.S + s;
      const T* query = queries + (b - first) * A;
      const T* keys = p_.keys + (b * p_.room + from) * A;
      if (p_.released())
        for (index_t i = 0; i < stored - from; ++i) scores[i] = sum_score::of<T>(keys + i, query, nullptr, 1);
      else
        eased_.score(b * p_.C + from, stored - from, keys, query, scores);
      choose(b, s, from, stored - from, scores, best);
      read_value(p_.choice(b, s), p_.states + b * p_.room * H, H, H, value);
      for (index_t u = 0; u < H; u += P::width) {
        const P v = P::load_some(value + u, H - u), sum = P::load_some(p_.hhat + at * H + u, H - u) + v;
        sum.store_some(p_.h + at * H + u, H - u);
        sum.store_some(outputs_ + at * p_.out_width + u, H - u);
        v.store_some(outputs_ + at * p_.out_width + H + u, H - u);
      }
    }
  }

  /// The read of `count` microstates from `from` on, of these scores.
  void choose(index_t b, index_t s, index_t from, index_t count, const T* scores, const math::TopK<T>& best) const {
    const index_t at = b * p_.S + s;
    Choice<T> choice = p_.choice(b, s);
    if (count <= p_.k) {
      std::copy_n(scores, count, choice.weights);
      choose_all(p_.how.form, from, count, choice);
    } else {
      best.reset();
      for (index_t i = 0; i < count; ++i)
        if (scores[i] > best.threshold()) best.offer(scores[i], from + i);
      choose_best(p_.how.form, best, choice);
    }
    p_.indices[at * (p_.k + 1) + p_.k] = choice.threshold;
    p_.total[at] = choice.total;
  }

  void ease_key(index_t b, index_t i) const { eased_.prepare(b * p_.C + i, p_.keys + (b * p_.room + i) * p_.A); }

  void store(index_t first, index_t last, index_t s) const {
    const index_t H = p_.H, j = p_.stored_before(s);
    for (index_t b = first; b < last; ++b) std::copy_n(p_.h + (b * p_.S + s) * H, H, p_.states + (b * p_.room + j) * H);
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T* const keys = scratch.take<T>((last - first) * p_.A);
    project(keys, p_.h + (first * p_.S + s) * H, p_.S * H, last - first, w1_, p_.w3 + (p_.released() ? H : 0));
    for (index_t b = first; b < last; ++b) {
      std::copy_n(keys + (b - first) * p_.A, p_.A, p_.keys + (b * p_.room + j) * p_.A);
      if (!p_.released()) ease_key(b, j);
    }
  }

  /// What a score is made of: W state, or of rule::released the number w . tanh(state).
  void project(T* to, const T* states, index_t stride, index_t rows, const PackedMatrix<T>& weight, const T* w) const {
    if (!p_.released()) {
      std::fill_n(to, rows * p_.A, T(0));
      return weight.multiply(rows, {states, stride, 1}, to, p_.A);
    }
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T* const zeros = scratch.take<T>(p_.H);
    std::fill_n(zeros, p_.H, T(0));
    for (index_t r = 0; r < rows; ++r) to[r] = additive_score::of<T>(states + r * stride, zeros, w, p_.H);
  }

  const RecurrenceProblem<T>& p_;
  T* outputs_;
  PackedMatrix<T> weight_hh_, w1_, w2_;
  Buffer<T> recurrent_;
  EasedScores<T> eased_;
};

}  // namespace recollect::backtracking::detail
