// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of the recurrence: one sweep back over the steps. Which edges carry gradient: spec/backtracking.hpp.
///
/// A state is stored before it is read, so all that reads it has been passed when the sweep comes to it: what reached its microstate and
/// the key that is stored with it is added there, once. Gradients of weights come out of all steps together, at the end.
#pragma once

#include "recollect/core/prefetch.hpp"
#include "recollect/ops/recurrence.hpp"

namespace recollect::backtracking::detail {

/// Where gradients go; contiguous.
template <class T>
struct RecurrenceGradients {
  T *x, *weight_ih, *weight_hh, *bias_ih, *bias_hh, *w1, *w2, *w3;
};

template <class T, class Cell>
class RecurrenceBackward {
 public:
  RecurrenceBackward(const RecurrenceProblem<T>& p, const T* d_outputs, const RecurrenceGradients<T>& to)
      : p_(p),
        d_outputs_(d_outputs),
        to_(to),
        weight_hh_(p.weight_hh, G * p.H, p.H, false),
        w1_(p.w1, scores_by_mlp() ? p.A : 0, p.H, false),
        w2_(p.w2, scores_by_mlp() ? p.A : 0, p.H, false),
        d_input_(p.B * p.S * G * p.H),
        d_recurrent_(Cell::splits ? p.B * p.S * G * p.H : 0),
        d_h_(p.B * p.H),
        d_carry_(p.B * p.H),
        queries_(scores_by_mlp() ? p.B * p.S * p.A : 0),
        d_queries_(p.reads() ? p.B * p.S * p.A : 0),
        d_states_(p.reads() ? p.B * p.C * p.H : 0),
        d_keys_(p.reads() ? p.B * p.C * p.A : 0),
        d_w3_(p.reads() ? blocks() * w3_size() : 0) {
    std::fill_n(d_h_.data(), p.B * p.H, T(0));
    std::fill_n(d_carry_.data(), p.B * p.H, T(0));
    if (!p.reads()) return;
    if (scores_by_mlp()) parallel_product<T>(p.B * p.S, p.hhat, p.H, PackedMatrix<T>(p.w2, p.H, p.A, true), nullptr, queries_.data(), p.A);
    parallel_for(p.B, [&](index_t b) {
      std::fill_n(d_queries_.data() + b * p.S * p.A, p.S * p.A, T(0));
      std::fill_n(d_states_.data() + b * p.C * p.H, p.C * p.H, T(0));
      std::fill_n(d_keys_.data() + b * p.C * p.A, p.C * p.A, T(0));
    });
    std::fill_n(d_w3_.data(), blocks() * w3_size(), T(0));
  }

  void run() {
    const index_t rows = rows_of_block(p_.B);
    const auto last = [&](index_t block) { return std::min(p_.B, (block + 1) * rows); };
    if (!goes_by_columns<T>(p_.H, G * p_.H)) {
      parallel_for(blocks(), [&](index_t block) {
        for (index_t s = p_.S - 1; s >= 0; --s) {
          step(block, block * rows, last(block), s);
          if (!p_.starts_window(s)) products(block * rows, last(block), s, 0, weight_hh_.strips());
        }
      });
    } else {
      const index_t strips = weight_hh_.strips(), part = std::max<index_t>(1, (strips + 31) / 32);
      for (index_t s = p_.S - 1; s >= 0; --s) {
        parallel_for(blocks(), [&](index_t block) { step(block, block * rows, last(block), s); });
        if (!p_.starts_window(s))
          parallel_for((strips + part - 1) / part,
                       [&](index_t task) { products(0, p_.B, s, task * part, std::min(strips, (task + 1) * part)); });
      }
    }
    weights();
  }

 private:
  static constexpr index_t G = Cell::gates;
  static constexpr index_t prefetched = 8;  // places of a read; more of them come in time by themselves, or are all memories in order

  bool scores_by_mlp() const { return p_.reads() && !p_.released(); }
  index_t blocks() const { return (p_.B + rows_of_block(p_.B) - 1) / rows_of_block(p_.B); }
  index_t w3_size() const { return p_.released() ? 2 * p_.H : p_.A; }
  T* d_recurrent() const { return Cell::splits ? d_recurrent_.data() : d_input_.data(); }

  /// d_h of the step before += d_gates W_hh, in some columns.
  void products(index_t first, index_t last, index_t s, index_t first_strip, index_t last_strip) const {
    const index_t width = G * p_.H;
    weight_hh_.multiply(last - first, {d_recurrent() + (first * p_.S + s) * width, p_.S * width, 1}, d_h_.data() + first * p_.H, p_.H,
                        first_strip, last_strip);
  }

  /// From d_h, what later steps gave to h of this one, to d_h of the step before, but for the product with W_hh.
  void step(index_t block, index_t first, index_t last, index_t s) const {
    const index_t H = p_.H;
    if (p_.reads() && !p_.released() && p_.k <= prefetched && s > 0) prefetch_read(first, last, s - 1);
    for (index_t b = first; b < last; ++b) {
      const T* d_out = d_outputs_ + (b * p_.S + s) * p_.out_width;
      T* const d_h = d_h_.data() + b * H;
      for (index_t u = 0; u < H; ++u) d_h[u] += d_out[u];
    }
    if (p_.stores(s)) from_microstate(block, first, last, s);
    if (p_.reads() && p_.stored_before(s) > 0) {
      for (index_t b = first; b < last; ++b) read_backward(block, b, s);
      from_queries(block, first, last, s);
    }
    for (index_t b = first; b < last; ++b) {
      const index_t at = b * p_.S + s;
      T* const d_h = d_h_.data() + b * H;
      T* const d_carry = d_carry_.data() + b * H;
      Cell::template backward<T>({H, p_.gates + at * 4 * H, p_.carry_before(b, s), p_.carries + at * H, d_h, d_carry,
                                  d_input_.data() + at * G * H, d_recurrent() + at * G * H});
      std::fill_n(d_h, H, T(0));
      if (p_.starts_window(s)) std::fill_n(d_carry, H, T(0));
    }
  }

  /// What reached the microstate that h of this step became, and what is stored with it.
  void from_microstate(index_t block, index_t first, index_t last, index_t s) const {
    const index_t H = p_.H, j = p_.stored_before(s);
    for (index_t b = first; b < last; ++b) {
      const index_t at = b * p_.C + j;
      T* const d_h = p_.how.reminders ? d_h_.data() + b * H : nullptr;
      for (index_t u = 0; d_h && u < H; ++u) d_h[u] += d_states_.data()[at * H + u];
      if (p_.released()) squashed_backward(d_keys_.data()[at], p_.states + at * H, p_.w3 + H, d_h, d_w3_.data() + block * 2 * H + H);
    }
    if (!p_.released() && p_.how.reminders)
      w1_.multiply(last - first, {d_keys_.data() + (first * p_.C + j) * p_.A, p_.C * p_.A, 1}, d_h_.data() + first * H, H);
  }

  /// Asks for the rows that the read of a step will touch, which lie anywhere in memory, while there is other work to do.
  void prefetch_read(index_t first, index_t last, index_t s) const {
    const auto rows = [](const T* row, const T* d_row, index_t width) {
      for (index_t u = 0; u < width; u += 64 / static_cast<index_t>(sizeof(T))) {
        recollect::detail::prefetch<recollect::detail::cache::second>(row + u);
        recollect::detail::prefetch<recollect::detail::cache::second, true>(d_row + u);
      }
    };
    for (index_t b = first; b < last; ++b) {
      const Choice<T> choice = p_.choice(b, s);
      for (index_t i = 0; i <= p_.k; ++i) {
        const index_t j = i < p_.k ? choice.indices[i] : choice.threshold;
        if (j < 0) continue;
        const index_t at = b * p_.C + j;
        if (i < p_.k) rows(p_.states + at * p_.H, d_states_.data() + at * p_.H, p_.H);
        rows(p_.keys + at * p_.A, d_keys_.data() + at * p_.A, p_.A);
      }
    }
  }

  /// d_h stays for hhat; the read adds to what its memories, keys and query get.
  void read_backward(index_t block, index_t b, index_t s) const {
    using P = Packet<T>;
    const index_t H = p_.H, A = p_.A, at = b * p_.S + s, stored = p_.stored_before(s);
    const Choice<T> choice = p_.choice(b, s);
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *const d_value = scratch.take<T>(H), *const g = scratch.take<T>(p_.k), *const d_score = scratch.take<T>(p_.k + 1);
    for (index_t u = 0; u < H; ++u) d_value[u] = d_h_.data()[b * H + u] + d_outputs_[at * p_.out_width + H + u];
    const index_t count = stored - p_.first_of(stored);
    for (index_t i = 0; i < p_.k; ++i) {
      g[i] = T(0);
      const index_t j = choice.indices[i];
      // A memory without weight has no gradient, unless weights are raw scores.
      if (j < 0 || (choice.weights[i] == 0 && (count > p_.k || !p_.released()))) continue;
      const T* m = p_.states + (b * p_.C + j) * H;
      T* const d_m = d_states_.data() + (b * p_.C + j) * H;
      const P weight(choice.weights[i]);
      P total(T(0));
      for (index_t u = 0; u < H; u += P::width) {
        const P d = P::load_some(d_value + u, H - u);
        total = fma(d, P::load_some(m + u, H - u), total);
        fma(weight, d, P::load_some(d_m + u, H - u)).store_some(d_m + u, H - u);
      }
      g[i] = sum(total);
    }
    score_gradients(p_.how.form, count, choice, g, d_score);
    T* const d_query = d_queries_.data() + at * A;
    if (p_.released()) {
      for (index_t i = 0; i <= p_.k; ++i)
        if (const index_t j = i < p_.k ? choice.indices[i] : choice.threshold; j >= 0)
          sum_score::backward<T>(d_score[i], nullptr, nullptr, nullptr, 1, d_keys_.data() + b * p_.C + j, d_query, nullptr);
      return;
    }
    const T* query = queries_.data() + at * A;
    for (index_t i = 0; i <= p_.k; ++i) {
      const index_t j = i < p_.k ? choice.indices[i] : choice.threshold;
      if (j < 0 || d_score[i] == 0) continue;
      const index_t key = (b * p_.C + j) * A;
      additive_score::backward(d_score[i], p_.keys + key, query, p_.w3, A, d_keys_.data() + key, d_query, d_w3_.data() + block * A);
    }
  }

  /// d_h += the gradient of hhat from the query made of it.
  void from_queries(index_t block, index_t first, index_t last, index_t s) const {
    const index_t H = p_.H, A = p_.A;
    if (!p_.released())
      return w2_.multiply(last - first, {d_queries_.data() + (first * p_.S + s) * A, p_.S * A, 1}, d_h_.data() + first * H, H);
    for (index_t b = first; b < last; ++b) {
      const index_t at = b * p_.S + s;
      squashed_backward(d_queries_.data()[at], p_.hhat + at * H, p_.w3, d_h_.data() + b * H, d_w3_.data() + block * 2 * H);
    }
  }

  /// Adds the gradients of d w . tanh(state); d_state may be null.
  void squashed_backward(T d, const T* state, const T* w, T* d_state, T* d_w) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *const zeros = scratch.take<T>(p_.H), *const unused = scratch.take<T>(p_.H);
    std::fill_n(zeros, p_.H, T(0));
    std::fill_n(unused, p_.H, T(0));
    if (d != 0) additive_score::backward<T>(d, state, zeros, w, p_.H, nullptr, d_state ? d_state : unused, d_w);
  }

  void weights() const {
    const index_t H = p_.H, steps = p_.B * p_.S;
    {
      const PackedMatrix<T> weight_ih(p_.weight_ih, G * H, p_.D, false);
      parallel_product<T>(steps, d_input_.data(), G * H, weight_ih, nullptr, to_.x, p_.D);
    }
    if constexpr (Cell::splits) {
      weight_gradients(d_input_.data(), true, false);
      weight_gradients(d_recurrent_.data(), false, true);
    } else {
      weight_gradients(d_input_.data(), true, true);
    }
    if (to_.w3) weights_of_score();
  }

  /// Those of W_ih and of W_hh from the gates of all steps, each with its bias, which is the weight of an input that is always 1.
  void weight_gradients(const T* d_gates, bool of_input, bool of_h) const {
    const index_t H = p_.H, D = of_input ? p_.D : 0, columns = D + (of_h ? H : 0) + 1;
    const Buffer<T> seen(p_.B * p_.S * columns), made(G * H * columns);
    parallel_for(p_.B, [&](index_t b) {
      for (index_t s = 0; s < p_.S; ++s) {
        T* const row = seen.data() + (b * p_.S + s) * columns;
        std::copy_n(p_.x + (b * p_.S + s) * p_.D, D, row);
        if (of_h) std::copy_n(p_.h_before(b, s), H, row + D);
        row[columns - 1] = T(1);
      }
    });
    parallel_gradient_product<T>(p_.B * p_.S, d_gates, G * H, seen.data(), columns, made.data());
    for (index_t g = 0; g < G * H; ++g) {
      const T* row = made.data() + g * columns;
      std::copy_n(row, D, to_.weight_ih + g * D);
      if (of_h) std::copy_n(row + D, H, to_.weight_hh + g * H);
      if (of_input) to_.bias_ih[g] = row[columns - 1];
      if (of_h) to_.bias_hh[g] = row[columns - 1];
    }
  }

  void weights_of_score() const {
    const index_t H = p_.H, A = p_.A;
    if (to_.w1) std::fill_n(to_.w1, A * H, T(0));
    if (to_.w2) std::fill_n(to_.w2, A * H, T(0));
    std::fill_n(to_.w3, w3_size(), T(0));
    if (!p_.reads()) return;
    for (index_t block = 0; block < blocks(); ++block)
      for (index_t a = 0; a < w3_size(); ++a) to_.w3[a] += d_w3_.data()[block * w3_size() + a];
    if (p_.released()) return;
    parallel_gradient_product<T>(p_.B * p_.S, d_queries_.data(), A, p_.hhat, H, to_.w2);
    // Keys that were there before the call are constants.
    for (index_t b = 0; b < p_.B; ++b) std::fill_n(d_keys_.data() + b * p_.C * A, p_.count * A, T(0));
    parallel_gradient_product<T>(p_.B * p_.C, d_keys_.data(), A, p_.states, H, to_.w1);
  }

  const RecurrenceProblem<T>& p_;
  const T* d_outputs_;
  RecurrenceGradients<T> to_;
  PackedMatrix<T> weight_hh_, w1_, w2_;
  Buffer<T> d_input_, d_recurrent_, d_h_, d_carry_, queries_, d_queries_, d_states_, d_keys_, d_w3_;
};

}  // namespace recollect::backtracking::detail
