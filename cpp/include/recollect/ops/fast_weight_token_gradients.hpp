// SPDX-License-Identifier: BSD-3-Clause
/// From chunks back to operands: the gradients of a chunk's rows become those of every token's operands.
#pragma once

#include "recollect/ops/fast_weight_setting.hpp"

namespace recollect::detail {

template <class T>
class TokenGradients : TokenSetting<T> {
  using Base = TokenSetting<T>;
  using Base::delta, Base::divides_removals, Base::form, Base::from, Base::logarithmic, Base::map, Base::normalised, Base::p, Base::product,
      Base::scale, Base::scale_row, Base::values, Base::wide;

 public:
  TokenGradients(const TokenSetting<T>& setting, const Sequence<T>& to) : Base(setting), to_(to) {}

  /// Whether a decay has a gradient.
  bool of_decay() const { return to_.decay || to_.channel_decay; }

  /// Gradients of the operands of a chunk. `balance` is rowsum(G * S) after the chunk, `d_normaliser` the gradient of z after it, which
  /// becomes that of z before it; returns what is to be added to the gradient of scale.
  double pull(index_t first, const ChunkRows<T>& c, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* balance,
              T* d_normaliser) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *d_key = scratch.take<T>(wide), *d_query = scratch.take<T>(wide), *d_decay = scratch.take<T>(wide);
    T *x = scratch.take<T>(padded<T>(map.d())), *d_x = scratch.take<T>(padded<T>(map.d()));
    double d_scale = 0;
    for (index_t t = rows.count - 1; t >= 0; --t) {
      if (of_decay()) pull_balance(t, c, d, balance, d_decay);
      if (form.query) d_scale += pull_query(t, d, rows, d_query, d_normaliser);
      if (form.write) {
        pull_key(t, first + t, d, rows, d_key);
        T d_divisor = 0;
        if (form.remove) d_divisor = pull_removal(t, first + t, c, d, rows, d_key, d_decay);
        if (normalised()) pull_normaliser(t, c, rows, d_divisor, d_normaliser, d_key, d_decay);
        if (to_.value) store_row(d.value[0] + t * padded<T>(values), values, to_.value, first + t);
        if (to_.key) unmapped(from.key, first + t, rows.key + t * wide, d_key, x, d_x, to_.key);
      }
      if (form.query && to_.query) unmapped(from.query, first + t, rows.query + t * wide, d_query, x, d_x, to_.query);
      if (of_decay()) store_decay(first + t, c.decay + t * wide, d_decay);
    }
    return d_scale;
  }

 private:
  void unmapped(const Rows<const T>& given, index_t t, const T* phi, T* d_phi, T* x, T* d_x, const Rows<T>& to) const {
    if (map.plain()) return store_row(d_phi, map.d(), to, t);
    load_row(given, t, map.d(), x);
    if (logarithmic()) {
      for (index_t k = 0; k < wide; ++k) d_phi[k] *= phi[k];
      map.pull_logarithms(x, d_phi, d_x);
    } else {
      map.pullback(x, d_phi, d_x);
    }
    store_row(d_x, map.d(), to, t);
  }

  /// d log D_t = B_t + q dq - sum of w dw over what is written, B_{t-1} = d log D_t + b db, with B = rowsum(G * S): elementwise in the
  /// channel. Small decays have their gradient already.
  void pull_balance(index_t t, const ChunkRows<T>& c, const ChunkGradients<T>& d, T* balance, T* d_decay) const {
    const index_t here = t * wide;
    const T* decay = c.decay + here;
    const auto add = [&](Lying<const T> x, const T* d_x, T sign) {
      for (index_t k = 0; k < wide; ++k) balance[k] += sign * x.rows[here + k] * d_x[here + k];
    };
    if (d.small[t]) {
      std::copy_n(d.decay + here, wide, d_decay);
      for (index_t k = 0; k < wide; ++k) balance[k] = decay[k] * d_decay[k];
    } else {
      if (form.query) add(c.reader[form.query_slot()], d.reader[form.query_slot()], T(1));
      for (int w = 0; w < form.writers(); ++w) add(c.writer[w], d.writer[w], T(-1));
      for (index_t k = 0; k < wide; ++k) d_decay[k] = balance[k] / decay[k];
    }
    if (form.remove) add(c.reader[0], d.reader[0], T(1));
  }

  double pull_query(index_t t, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* d_query, T* d_normaliser) const {
    const index_t here = t * wide;
    const T* d_row = d.reader[form.query_slot()] + here;
    const T divisor = normalised() ? rows.of_output[t] : T(1), along = product(d_row, rows.query + here) * divisor;
    scale_row(d_row, scale * divisor, d_query);
    if (normalised()) {
      const T d_product = -scale * divisor * along;
      for (index_t k = 0; k < wide; ++k) {
        d_query[k] += d_product * rows.normaliser[here + k];
        d_normaliser[k] += d_product * rows.query[here + k];
      }
    }
    return static_cast<double>(along);
  }

  void pull_key(index_t t, index_t at, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* d_key) const {
    const index_t here = t * wide;
    const T* d_row = d.writer[0] + here;
    scale_row(d_row, from.beta ? from.beta.at(at) : T(1), d_key);
    if (to_.beta) to_.beta.at(at) = product(d_row, rows.key + here);
    if (form.erase && to_.a) store_row(d.writer[1] + here, map.width(), to_.a, at);
  }

  /// Returns the gradient of the product that a removal is divided by.
  T pull_removal(index_t t, index_t at, const ChunkRows<T>& c, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* d_key,
                 T* d_decay) const {
    const index_t here = t * wide;
    const T* d_b = d.reader[0] + here;
    if (!delta()) {
      if (to_.b) store_row(d_b, map.width(), to_.b, at);
      return 0;
    }
    const T divisor = normalised() ? rows.of_removal[t] : T(1);
    const T* removal = (from.b ? rows.removal : rows.key) + here;
    if (of_decay())
      for (index_t k = 0; k < wide; ++k) d_decay[k] -= divisor * removal[k] * d_b[k];
    T* d_removal = from.b ? d.writer[0] + here : d_key;  // the writer's row is not needed any more
    if (from.b) std::fill(d_removal, d_removal + wide, T(0));
    for (index_t k = 0; k < wide; ++k) d_removal[k] -= divisor * (form.gated ? c.decay[here + k] * d_b[k] : d_b[k]);
    if (from.b && to_.b) store_row(d_removal, map.width(), to_.b, at);
    return divides_removals() ? -product(c.reader[0].rows + here, d_b) * divisor : T(0);
  }

  void pull_normaliser(index_t t, const ChunkRows<T>& c, const TokenRows<T>& rows, T d_divisor, T* d_normaliser, T* d_key,
                       T* d_decay) const {
    const index_t here = t * wide;
    const T *before = rows.normaliser + here - wide, *key = rows.key + here;
    for (index_t k = 0; k < wide; ++k) {
      const T decay = form.gated ? c.decay[here + k] : T(1), d_faded = d_normaliser[k] + d_divisor * key[k];
      d_key[k] += d_normaliser[k] + d_divisor * decay * before[k];
      if (of_decay()) d_decay[k] += d_faded * before[k];
      d_normaliser[k] = decay * d_faded;
    }
  }

  void store_decay(index_t t, const T* decay, T* d_decay) const {
    if (p.log_decay || logarithmic())
      for (index_t k = 0; k < wide; ++k) d_decay[k] *= decay[k];
    if (!p.log_decay && logarithmic())  // the operand's decay is not that of the rows, but moves it by the same factor
      for (index_t k = 0; k < map.width(); ++k) d_decay[k] /= from.decay ? from.decay.at(t) : from.channel_decay.at(t, k);
    if (to_.channel_decay) store_row(d_decay, map.width(), to_.channel_decay, t);
    if (!to_.decay) return;
    T total = 0;
    for (index_t k = 0; k < map.width(); ++k) total += d_decay[k];
    to_.decay.at(t) = total;
  }

  const Sequence<T> to_;
};

}  // namespace recollect::detail
