// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of small decays. That of a decay near 1 comes of what the rows and their gradients add up to (Tokens::pull_balance); what
/// is left of these sums is the gradient of the decay's logarithm, so that rounding errors are divided by the decay. Where a token has a
/// small decay its gradient is formed as it is written down instead,
///
///     d_D_t = rowsum(G_t * S_{t-1}),
///
/// by a walk through the chunk token by token: forwards with S, of which what such tokens meet is kept, and backwards with G. Chunks
/// without small decays are not walked through.
#pragma once

#include "recollect/ops/fast_weight_rows.hpp"

namespace recollect::detail {

template <class T>
class SmallDecays {
  using P = Packet<T>;

 public:
  static constexpr T limit = T(0.03125);  // balances lose at most log2(1 / limit) bits

  SmallDecays(ChunkForm form, index_t keys, index_t values)
      : form_(form), values_(values), wide_keys_(padded<T>(keys)), wide_values_(padded<T>(values)) {}

  /// `d.small` of the first `count` tokens; whether there are any.
  bool find(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t count) const {
    bool found = false;
    for (index_t t = 0; t < count; ++t) {
      bool small = false;
      for (index_t k = 0; k < wide_keys_; ++k) small |= c.decay[t * wide_keys_ + k] < limit;
      d.small[t] = small;
      found |= small;
    }
    return found;
  }

  /// `d.decay` of these tokens, of S before the chunk and of G after it, both turned.
  void weigh(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t count, const T* state, const T* gradient) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    index_t first = count, last = 0, many = 0;
    for (index_t t = 0; t < count; ++t)
      if (d.small[t]) first = std::min(first, t), last = t, ++many;
    T *met = scratch.take<T>(many * values_ * P::width), *now = scratch.take<T>(values_ * P::width);
    for (index_t k = 0; k < wide_keys_; k += P::width) {
      load(state, k, now);
      T* kept = met;
      for (index_t t = 0; t <= last; ++t) {
        if (d.small[t]) kept = std::copy_n(now, values_ * P::width, kept);
        write(c, t, k, now);
      }
      load(gradient, k, now);
      for (index_t t = count - 1; t >= first; --t) {
        const P found = gather(c, d, t, k, d.small[t] ? kept -= values_ * P::width : nullptr, now);
        if (d.small[t]) found.store(d.decay + t * wide_keys_ + k);
      }
    }
  }

 private:
  /// A row of a token at the columns k .. k + P::width - 1, and what it is multiplied with.
  struct Side {
    P row = P(T(0));
    const T* values = nullptr;
  };
  Side side(const Lying<const T>& rows, const T* values, index_t t, index_t k) const {
    return {P::load(rows.rows + t * rows.stride + k), values + t * wide_values_};
  }

  /// S_t = D_t S_{t-1} + sum of w y^T over the writers.
  void write(const ChunkRows<T>& c, index_t t, index_t k, T* state) const {
    const P decay = P::load(c.decay + t * wide_keys_ + k);
    Side w[2];
    for (int i = 0; i < form_.writers(); ++i) w[i] = side(c.writer[i], c.value[i], t, k);
    for (index_t v = 0; v < values_; ++v) {
      P now = decay * P::load(state + v * P::width);
      if (w[0].values) now = fma(w[0].row, P(w[0].values[v]), now);
      if (w[1].values) now = fma(w[1].row, P(w[1].values[v]), now);
      now.store(state + v * P::width);
    }
  }

  /// G_t = what comes from later + q g^T, whose scalar products with the rows that were met are returned; then D_t G_t + b du^T.
  P gather(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t t, index_t k, const T* met, T* gradient) const {
    const P decay = P::load(c.decay + t * wide_keys_ + k);
    Side q, b;
    if (form_.query) q = side(c.reader[form_.query_slot()], d.d_out, t, k);
    if (form_.remove) b = side(c.reader[0], d.value[form_.solved_slot()], t, k);
    P total(T(0));
    for (index_t v = 0; v < values_; ++v) {
      P now = P::load(gradient + v * P::width);
      if (q.values) now = fma(q.row, P(q.values[v]), now);
      if (met) total = fma(now, P::load(met + v * P::width), total);
      now = decay * now;
      if (b.values) now = fma(b.row, P(b.values[v]), now);
      now.store(gradient + v * P::width);
    }
    return total;
  }

  /// Of a turned state the columns k .. k + P::width - 1.
  void load(const T* state, index_t k, T* to) const {
    for (index_t v = 0; v < values_; ++v) P::load(state_at(state, values_, v, k, wide_keys_)).store(to + v * P::width);
  }

  const ChunkForm form_;
  const index_t values_, wide_keys_, wide_values_;
};

}  // namespace recollect::detail
