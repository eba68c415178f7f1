// SPDX-License-Identifier: BSD-3-Clause
/// Between operands and chunks: every token's operands become the rows that a chunk is made of, and the gradients of those rows those of
/// the operands. Feature maps, write strengths, decays and normalisers are all here, and the scans know of none of them.
#pragma once

#include "recollect/ops/fast_weight_chunk.hpp"
#include "recollect/ops/feature_rows.hpp"
#include "recollect/spec/fast_weight.hpp"

namespace recollect::detail {

/// The operands (T const) or the gradients of one sequence.
template <class T>
struct Sequence {
  Rows<T> query, key, value, beta, a, b, decay, channel_decay, state;
};

/// What the rows of a chunk are made of, and where they lie if they do not lie in the operands.
template <class T>
struct TokenRows {
  index_t count = 0;
  T *key = nullptr, *query = nullptr;  // phi(key), phi(query)
  std::array<T*, 2> writer{}, reader{};
  T *value = nullptr, *out = nullptr, *written = nullptr;
  T* removal = nullptr;                                  // b, where it is a key of its own
  T *normaliser = nullptr, *faded_normaliser = nullptr;  // z_t and D_t z_{t-1}
  T *of_output = nullptr, *of_removal = nullptr;         // what is divided by, inverted
  T* late_divisor = nullptr;  // of the finished output instead of the query, where its inverse is more than the type holds
  T* strength = nullptr;
};

template <class T>
class Tokens {
 public:
  Tokens(const fast_weight::parameters& p, const RowMap<T>& map, const Sequence<const T>& from, double scale, index_t values)
      : p_(p), map_(map), from_(from), scale_(static_cast<T>(scale)), values_(values), wide_(padded<T>(map.width())) {
    form_.query = static_cast<bool>(from.query);
    form_.write = static_cast<bool>(from.key);
    form_.remove = form_.write && p.rule != fast_weight::rule::sum;
    form_.erase = form_.write && static_cast<bool>(from.a);
    form_.gated = from.decay || from.channel_decay;
  }

  ChunkForm form() const { return form_; }
  bool normalised() const { return p_.normalise != fast_weight::normalisation::none; }

  TokenRows<T> make(Scratch& scratch, index_t tokens) const {
    tokens = (tokens + group - 1) / group * group;
    const auto keys = [&] { return take_rows<T>(scratch, tokens * wide_); };
    TokenRows<T> rows;
    rows.key = keys(), rows.query = keys(), rows.removal = keys();
    for (int i = 0; i < 2; ++i) rows.writer[i] = keys(), rows.reader[i] = keys();
    rows.value = take_rows<T>(scratch, tokens * padded<T>(values_));
    rows.out = take_rows<T>(scratch, tokens * padded<T>(values_));
    rows.written = take_rows<T>(scratch, tokens * padded<T>(values_));
    rows.strength = scratch.take<T>(tokens);
    if (normalised()) {
      rows.normaliser = keys(), rows.faded_normaliser = keys();
      rows.of_output = scratch.take<T>(tokens);
      rows.of_removal = scratch.take<T>(tokens);
      rows.late_divisor = scratch.take<T>(tokens);
    }
    return rows;
  }

  /// Tokens first .. first + count - 1; `normaliser` is z before them and becomes z after them. Without `plainly`, keys that remove what
  /// they write, write strengths and scales are left to the chunk, and rows that can be used where they lie are; with it every row is
  /// what the recurrence says, as gradients need it.
  void load(index_t first, index_t count, bool plainly, ChunkRows<T>& c, TokenRows<T>& rows, T* normaliser) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T* x = scratch.take<T>(padded<T>(map_.d()));
    const bool whole = !plainly && count % group == 0;
    const bool key_lies = whole && map_.plain() && !normalised() && ready(from_.key, map_.width());
    const bool query_lies = whole && map_.plain() && !normalised() && ready(from_.query, map_.width());
    const bool value_lies = whole && ready(from_.value, values_);
    rows.count = count;
    c.removes_key = !plainly && delta() && !from_.b && !normalised();
    c.strength = !plainly && from_.beta ? rows.strength : nullptr;
    c.scale = query_lies ? scale_ : T(1);
    place(first, key_lies, query_lies, value_lies, c, rows);
    for (index_t t = 0; t < count; ++t) {
      const index_t here = t * wide_;
      if (form_.gated) load_decay(first + t, c.decay + here);
      if (form_.write) {
        if (!key_lies) mapped(from_.key, first + t, x, rows.key + here);
        if (c.strength)
          rows.strength[t] = from_.beta.at(first + t);
        else if (from_.beta)
          scale_row(rows.key + here, from_.beta.at(first + t), rows.writer[0] + here);
        if (!value_lies) load_row(from_.value, first + t, values_, rows.value + t * padded<T>(values_));
        if (form_.erase) load_row(from_.a, first + t, map_.width(), rows.writer[1] + here);
      }
      if (form_.query && !query_lies) mapped(from_.query, first + t, x, rows.query + here);
      if (normalised()) normalise(t, plainly, c, rows, normaliser);
      if (form_.remove && !c.removes_key) load_removal(first + t, t, c, rows);
      if (form_.query && scaled() && !query_lies)
        scale_row(rows.query + here, normalised() ? scale_ * rows.of_output[t] : scale_, rows.reader[form_.query_slot()] + here);
    }
    for (index_t t = count; t < (count + group - 1) / group * group; ++t) clear_token(t, c, rows);
  }

  /// A token that a later chunk will load.
  void fetch(index_t t) const {
    fetch_row(from_.query, t, map_.d());
    fetch_row(from_.key, t, map_.d());
    fetch_row(from_.value, t, values_);
    fetch_row(from_.a, t, map_.width());
    fetch_row(from_.b, t, map_.width());
    fetch_row(from_.channel_decay, t, map_.width());
  }

  /// Gradients of the operands of a chunk. `balance` is rowsum(G * S) after the chunk, `d_normaliser` the gradient of z after it, which
  /// becomes that of z before it; returns what is to be added to the gradient of scale.
  double pull(index_t first, const ChunkRows<T>& c, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* balance, T* d_normaliser,
              const Sequence<T>& to) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T *d_key = scratch.take<T>(wide_), *d_query = scratch.take<T>(wide_), *d_decay = scratch.take<T>(wide_);
    T *x = scratch.take<T>(padded<T>(map_.d())), *d_x = scratch.take<T>(padded<T>(map_.d()));
    double d_scale = 0;
    for (index_t t = rows.count - 1; t >= 0; --t) {
      const index_t here = t * wide_;
      std::fill(d_decay, d_decay + wide_, T(0));
      if (form_.gated) pull_balance(here, c, d, balance, d_decay);
      if (form_.query) d_scale += pull_query(t, d, rows, d_query, d_normaliser);
      if (form_.write) {
        pull_key(t, first + t, d, rows, d_key, to);
        T d_divisor = 0;
        if (form_.remove) d_divisor = pull_removal(t, first + t, c, d, rows, d_key, d_decay, to);
        if (normalised()) pull_normaliser(t, c, rows, d_divisor, d_normaliser, d_key, d_decay);
        if (to.value) store_row(d.value[0] + t * padded<T>(values_), values_, to.value, first + t);
        if (to.key) unmapped(from_.key, first + t, x, d_key, d_x, to.key);
      }
      if (form_.query && to.query) unmapped(from_.query, first + t, x, d_query, d_x, to.query);
      if (form_.gated) store_decay(first + t, c.decay + here, d_decay, to);
    }
    return d_scale;
  }

 private:
  bool delta() const { return form_.remove && p_.rule == fast_weight::rule::delta; }
  bool scaled() const { return normalised() || scale_ != T(1); }
  static bool ready(const Rows<const T>& rows, index_t width) { return rows && rows.inner == 1 && width % Packet<T>::width == 0; }

  /// Where the rows of a chunk are to be found.
  void place(index_t first, bool key_lies, bool query_lies, bool value_lies, ChunkRows<T>& c, const TokenRows<T>& rows) const {
    const Lying<const T> key = key_lies ? Lying<const T>{&from_.key.at(first), from_.key.time} : Lying<const T>{rows.key, wide_};
    const int q = form_.query_slot();
    if (form_.write) c.writer[0] = from_.beta && !c.strength ? Lying<const T>{rows.writer[0], wide_} : key;
    if (form_.erase) c.writer[1] = {rows.writer[1], wide_};
    if (form_.remove) c.reader[0] = c.removes_key ? key : Lying<const T>{rows.reader[0], wide_};
    if (form_.query) c.reader[q] = {scaled() ? rows.reader[q] : rows.query, wide_};
    if (query_lies) c.reader[q] = {&from_.query.at(first), from_.query.time};
    c.given = {rows.value, padded<T>(values_)};
    if (value_lies) c.given = {&from_.value.at(first), from_.value.time};
  }

  void mapped(const Rows<const T>& from, index_t t, T* x, T* phi) const {
    if (map_.plain()) return load_row(from, t, map_.d(), phi);
    load_row(from, t, map_.d(), x);
    map_.values(x, phi);
  }

  void unmapped(const Rows<const T>& from, index_t t, T* x, const T* d_phi, T* d_x, const Rows<T>& to) const {
    if (map_.plain()) return store_row(d_phi, map_.d(), to, t);
    load_row(from, t, map_.d(), x);
    map_.pullback(x, d_phi, d_x);
    store_row(d_x, map_.d(), to, t);
  }

  void scale_row(const T* from, T factor, T* to) const {
    using P = Packet<T>;
    for (index_t k = 0; k < wide_; k += P::width) (P(factor) * P::load(from + k)).store(to + k);
  }

  T product(const T* x, const T* y) const {
    using P = Packet<T>;
    P total(T(0));
    for (index_t k = 0; k < wide_; k += P::width) total = fma(P::load(x + k), P::load(y + k), total);
    return sum(total);
  }

  static T inverse(T divisor) { return divisor == 0 ? T(0) : 1 / divisor; }

  void load_decay(index_t t, T* decay) const {
    using P = Packet<T>;
    if (from_.channel_decay) {
      load_row(from_.channel_decay, t, map_.width(), decay, p_.log_decay ? T(0) : T(1));
      if (p_.log_decay)
        for (index_t k = 0; k < wide_; k += P::width) math::exp_negative<T>(P::load(decay + k)).store(decay + k);
    } else {
      const T number = from_.decay.at(t);
      std::fill(decay, decay + wide_, p_.log_decay ? std::exp(number) : number);
    }
  }

  /// z_t and what outputs and removals are divided by.
  void normalise(index_t t, bool plainly, const ChunkRows<T>& c, const TokenRows<T>& rows, T* z) const {
    const index_t here = t * wide_;
    T *faded = rows.faded_normaliser + here, *now = rows.normaliser + here;
    for (index_t k = 0; k < wide_; ++k) faded[k] = form_.gated ? c.decay[here + k] * z[k] : z[k];
    for (index_t k = 0; k < wide_; ++k) now[k] = form_.write ? faded[k] + rows.key[here + k] : faded[k];
    std::copy_n(now, wide_, z);
    rows.late_divisor[t] = 1;
    if (form_.query) {
      const T divisor = product(now, rows.query + here);
      rows.of_output[t] = inverse(divisor);
      if (!plainly && std::isinf(rows.of_output[t])) rows.of_output[t] = 1, rows.late_divisor[t] = divisor;
    }
    const bool divides = delta() && p_.normalise == fast_weight::normalisation::outputs_and_removals;
    rows.of_removal[t] = divides ? inverse(product(faded, rows.key + here)) : T(1);
  }

  void load_removal(index_t at, index_t t, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    const index_t here = t * wide_;
    T* b = rows.reader[0] + here;
    if (!delta()) return load_row(from_.b, at, map_.width(), b);
    if (from_.b) load_row(from_.b, at, map_.width(), rows.removal + here);
    const T* removal = (from_.b ? rows.removal : rows.key) + here;
    const T factor = normalised() ? -rows.of_removal[t] : T(-1);
    scale_row(removal, factor, b);
    if (form_.gated)
      for (index_t k = 0; k < wide_; ++k) b[k] *= c.decay[here + k];
  }

  void clear_token(index_t t, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    for (T* keys : {rows.key, rows.query, rows.writer[0], rows.writer[1], rows.reader[0], rows.reader[1]})
      std::fill_n(keys + t * wide_, wide_, T(0));
    std::fill_n(rows.value + t * padded<T>(values_), padded<T>(values_), T(0));
    rows.strength[t] = 0;
    if (form_.gated) std::fill_n(c.decay + t * wide_, wide_, T(1));
  }

  /// d log D_t = B_t + q dq - sum of w dw over what is written, B_{t-1} = d log D_t + b db, with B = rowsum(G * S): elementwise in the
  /// channel.
  void pull_balance(index_t here, const ChunkRows<T>& c, const ChunkGradients<T>& d, T* balance, T* d_decay) const {
    const auto add = [&](Lying<const T> x, const T* d_x, T sign) {
      for (index_t k = 0; k < wide_; ++k) balance[k] += sign * x.rows[here + k] * d_x[here + k];
    };
    if (form_.query) add(c.reader[form_.query_slot()], d.reader[form_.query_slot()], T(1));
    for (int w = 0; w < form_.writers(); ++w) add(c.writer[w], d.writer[w], T(-1));
    std::copy_n(balance, wide_, d_decay);
    if (form_.remove) add(c.reader[0], d.reader[0], T(1));
  }

  double pull_query(index_t t, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* d_query, T* d_normaliser) const {
    const index_t here = t * wide_;
    const T* d_row = d.reader[form_.query_slot()] + here;
    const T divisor = normalised() ? rows.of_output[t] : T(1), along = product(d_row, rows.query + here) * divisor;
    scale_row(d_row, scale_ * divisor, d_query);
    if (normalised()) {
      const T d_product = -scale_ * divisor * along;
      for (index_t k = 0; k < wide_; ++k) {
        d_query[k] += d_product * rows.normaliser[here + k];
        d_normaliser[k] += d_product * rows.query[here + k];
      }
    }
    return static_cast<double>(along);
  }

  void pull_key(index_t t, index_t at, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* d_key, const Sequence<T>& to) const {
    const index_t here = t * wide_;
    const T* d_row = d.writer[0] + here;
    scale_row(d_row, from_.beta ? from_.beta.at(at) : T(1), d_key);
    if (to.beta) to.beta.at(at) = product(d_row, rows.key + here);
    if (form_.erase && to.a) store_row(d.writer[1] + here, map_.width(), to.a, at);
  }

  /// Returns the gradient of the product that a removal is divided by.
  T pull_removal(index_t t, index_t at, const ChunkRows<T>& c, const ChunkGradients<T>& d, const TokenRows<T>& rows, T* d_key, T* d_decay,
                 const Sequence<T>& to) const {
    const index_t here = t * wide_;
    const T *b = c.reader[0].rows + here, *d_b = d.reader[0] + here;
    if (!delta()) {
      if (to.b) store_row(d_b, map_.width(), to.b, at);
      return 0;
    }
    const T divisor = normalised() ? rows.of_removal[t] : T(1);
    T* d_removal = from_.b ? d.writer[0] + here : d_key;  // the writer's row is not needed any more
    if (from_.b) std::fill(d_removal, d_removal + wide_, T(0));
    for (index_t k = 0; k < wide_; ++k) d_removal[k] -= divisor * (form_.gated ? c.decay[here + k] * d_b[k] : d_b[k]);
    for (index_t k = 0; k < wide_; ++k) d_decay[k] += b[k] * d_b[k];
    if (from_.b && to.b) store_row(d_removal, map_.width(), to.b, at);
    return p_.normalise == fast_weight::normalisation::outputs_and_removals ? -product(b, d_b) * divisor : T(0);
  }

  void pull_normaliser(index_t t, const ChunkRows<T>& c, const TokenRows<T>& rows, T d_divisor, T* d_normaliser, T* d_key,
                       T* d_decay) const {
    const index_t here = t * wide_;
    const T *faded = rows.faded_normaliser + here, *key = rows.key + here;
    for (index_t k = 0; k < wide_; ++k) {
      d_key[k] += d_normaliser[k] + d_divisor * faded[k];
      const T d_faded = d_normaliser[k] + d_divisor * key[k];
      d_decay[k] += d_faded * faded[k];
      d_normaliser[k] = form_.gated ? c.decay[here + k] * d_faded : d_faded;
    }
  }

  void store_decay(index_t t, const T* decay, T* d_decay, const Sequence<T>& to) const {
    if (!p_.log_decay)
      for (index_t k = 0; k < wide_; ++k) d_decay[k] /= decay[k];
    if (to.channel_decay) store_row(d_decay, map_.width(), to.channel_decay, t);
    if (!to.decay) return;
    T total = 0;
    for (index_t k = 0; k < map_.width(); ++k) total += d_decay[k];
    to.decay.at(t) = total;
  }

  const fast_weight::parameters p_;
  const RowMap<T> map_;
  const Sequence<const T> from_;
  const T scale_;
  const index_t values_, wide_;
  ChunkForm form_;
};

}  // namespace recollect::detail
