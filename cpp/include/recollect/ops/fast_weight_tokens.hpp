// SPDX-License-Identifier: BSD-3-Clause
/// From operands to chunks: every token's operands become the rows that a chunk is made of. Feature maps, write strengths, decays and
/// normalisers are all here and in fast_weight_token_gradients.hpp, and the scans know of none of them.
#pragma once

#include <limits>

#include "recollect/ops/fast_weight_logarithms.hpp"

namespace recollect::detail {

template <class T>
class Tokens : TokenSetting<T> {
  using Base = TokenSetting<T>;
  using Base::delta, Base::form, Base::from, Base::logarithmic, Base::map, Base::p, Base::product, Base::scale, Base::scale_row,
      Base::scaled, Base::values, Base::wide, Base::divides_removals;

 public:
  explicit Tokens(const TokenSetting<T>& setting) : Base(setting), logarithmic_rows_(setting) {}
  using Base::normalised;

  TokenRows<T> make(Scratch& scratch, index_t tokens) const {
    tokens = (tokens + group - 1) / group * group;
    const auto keys = [&] { return take_rows<T>(scratch, tokens * wide); };
    TokenRows<T> rows;
    rows.key = keys(), rows.query = keys(), rows.removal = keys();
    for (int i = 0; i < 2; ++i) rows.writer[i] = keys(), rows.reader[i] = keys();
    rows.value = take_rows<T>(scratch, tokens * padded<T>(values));
    rows.out = take_rows<T>(scratch, tokens * padded<T>(values));
    rows.written = take_rows<T>(scratch, tokens * padded<T>(values));
    rows.strength = scratch.take<T>(tokens);
    if (normalised()) {
      rows.normaliser = take_rows<T>(scratch, (tokens + 1) * wide) + wide;
      rows.of_output = scratch.take<T>(tokens);
      rows.of_removal = scratch.take<T>(tokens);
      rows.late_divisor = scratch.take<T>(tokens);
    }
    return rows;
  }

  /// Tokens first .. first + count - 1; `normaliser` is that before them and becomes that after them. Without `plainly`, keys that remove
  /// what they write, write strengths and scales are left to the chunk, and rows that can be used where they lie are; with it every row is
  /// what the recurrence says, as gradients need it.
  void load(index_t first, index_t count, bool plainly, ChunkRows<T>& c, TokenRows<T>& rows, Normaliser<T> normaliser) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    T* x = scratch.take<T>(padded<T>(map.d()));
    const bool whole = !plainly && count % group == 0;
    const bool key_lies = whole && map.plain() && !normalised() && ready(from.key, map.width());
    const bool query_lies = whole && map.plain() && !normalised() && ready(from.query, map.width());
    const bool value_lies = whole && ready(from.value, values);
    rows.count = count;
    c.removes_key = !plainly && delta() && !from.b && !normalised();
    c.strength = !plainly && from.beta ? rows.strength : nullptr;
    c.scale = query_lies ? scale : T(1);
    place(first, key_lies, query_lies, value_lies, c, rows);
    if (normalised()) std::copy_n(normaliser.z, wide, rows.normaliser - wide);
    for (index_t t = 0; t < count; ++t) {
      const index_t here = t * wide;
      if (logarithmic())
        logarithmic_rows_.load(first + t, normaliser.c, rows.key + here, c.decay + here, rows.query + here);
      else if (form.gated)
        load_decay(first + t, c.decay + here);
      if (form.write) {
        if (!key_lies && !logarithmic()) mapped(from.key, first + t, x, rows.key + here);
        if (c.strength)
          rows.strength[t] = from.beta.at(first + t);
        else if (from.beta)
          scale_row(rows.key + here, from.beta.at(first + t), rows.writer[0] + here);
        if (!value_lies) load_row(from.value, first + t, values, rows.value + t * padded<T>(values));
        if (form.erase) load_row(from.a, first + t, map.width(), rows.writer[1] + here);
      }
      if (form.query && !query_lies && !logarithmic()) mapped(from.query, first + t, x, rows.query + here);
      if (form.remove && !c.removes_key) load_removal(first + t, t, plainly, c, rows);
      if (normalised()) normalise(t, plainly, c, rows);
      if (form.query && scaled() && !query_lies)
        scale_row(rows.query + here, normalised() ? scale * rows.of_output[t] : scale, rows.reader[form.query_slot()] + here);
    }
    if (normalised() && count > 0) std::copy_n(rows.normaliser + (count - 1) * wide, wide, normaliser.z);
  }

  /// Tokens that change nothing, up to a whole group.
  void fill_group(index_t count, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    for (index_t t = count; t < (count + group - 1) / group * group; ++t) clear_token(t, c, rows);
  }

  /// A token that a later chunk will load.
  void fetch(index_t t) const {
    fetch_row(from.query, t, map.d());
    fetch_row(from.key, t, map.d());
    fetch_row(from.value, t, values);
    fetch_row(from.a, t, map.width());
    fetch_row(from.b, t, map.width());
    fetch_row(from.channel_decay, t, map.width());
  }

 private:
  static bool ready(const Rows<const T>& rows, index_t width) { return rows && rows.inner == 1 && width % Packet<T>::width == 0; }

  /// Where the rows of a chunk are to be found.
  void place(index_t first, bool key_lies, bool query_lies, bool value_lies, ChunkRows<T>& c, const TokenRows<T>& rows) const {
    const Lying<const T> key = key_lies ? Lying<const T>{&from.key.at(first), from.key.time} : Lying<const T>{rows.key, wide};
    const int q = form.query_slot();
    if (form.write) c.writer[0] = from.beta && !c.strength ? Lying<const T>{rows.writer[0], wide} : key;
    if (form.erase) c.writer[1] = {rows.writer[1], wide};
    if (form.remove) c.reader[0] = c.removes_key ? key : Lying<const T>{rows.reader[0], wide};
    if (form.query) c.reader[q] = {scaled() ? rows.reader[q] : rows.query, wide};
    if (query_lies) c.reader[q] = {&from.query.at(first), from.query.time};
    c.given = {rows.value, padded<T>(values)};
    if (value_lies) c.given = {&from.value.at(first), from.value.time};
  }

  void mapped(const Rows<const T>& given, index_t t, T* x, T* phi) const {
    if (map.plain()) return load_row(given, t, map.d(), phi);
    load_row(given, t, map.d(), x);
    map.values(x, phi);
  }

  void load_decay(index_t t, T* decay) const {
    using P = Packet<T>;
    if (from.channel_decay) {
      load_row(from.channel_decay, t, map.width(), decay, p.log_decay ? T(0) : T(1));
      if (p.log_decay)
        for (index_t k = 0; k < wide; k += P::width) math::exp_negative<T>(P::load(decay + k)).store(decay + k);
    } else {
      const T number = from.decay.at(t);
      std::fill(decay, decay + wide, p.log_decay ? std::exp(number) : number);
    }
  }

  /// z_t and what outputs are divided by.
  void normalise(index_t t, bool plainly, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    const index_t here = t * wide;
    T* now = rows.normaliser + here;
    fade_normaliser(t, c, rows);
    for (index_t k = 0; form.write && k < wide; ++k) now[k] += rows.key[here + k];
    if (!form.query) return;
    const T divisor = product(now, rows.query + here);
    const bool whole = invertible(divisor);
    rows.of_output[t] = whole ? 1 / divisor : T(divisor != 0 && !plainly);
    rows.late_divisor[t] = whole || divisor == 0 ? T(1) : divisor;
  }

  /// D_t z_{t-1}, in the place of z_t.
  void fade_normaliser(index_t t, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    const index_t here = t * wide;
    T* now = rows.normaliser + here;
    for (index_t k = 0; k < wide; ++k) now[k] = form.gated ? c.decay[here + k] * now[k - wide] : now[k - wide];
  }

  /// Whether a row may be multiplied by the inverse: with less, an output is divided when all else is done, and a gradient, which would
  /// be multiplied on its way by what is no number, is 0.
  static bool invertible(T divisor) {
    constexpr T smallest = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
    return !(std::abs(divisor) < smallest);
  }

  /// b_t = -D_t key, divided by (D_t z_{t-1}) . key where removals are.
  void load_removal(index_t at, index_t t, bool plainly, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    const index_t here = t * wide;
    T* b = rows.reader[0] + here;
    if (!delta()) return load_row(from.b, at, map.width(), b);
    if (from.b) load_row(from.b, at, map.width(), rows.removal + here);
    scale_row((from.b ? rows.removal : rows.key) + here, T(-1), b);
    if (form.gated)
      for (index_t k = 0; k < wide; ++k) b[k] *= c.decay[here + k];
    if (normalised()) rows.of_removal[t] = 1;
    if (!divides_removals()) return;
    fade_normaliser(t, c, rows);
    const T divisor = product(rows.normaliser + here, rows.key + here);
    const bool whole = invertible(divisor), none = divisor == 0 || (plainly && !whole);
    rows.of_removal[t] = whole ? 1 / divisor : T(0);
    constexpr T most = std::numeric_limits<T>::max();  // a number beyond it is multiplied with a row of S that is all but 0
    for (index_t k = 0; k < wide; ++k) b[k] = none ? T(0) : std::clamp(b[k] / divisor, -most, most);
  }

  void clear_token(index_t t, const ChunkRows<T>& c, const TokenRows<T>& rows) const {
    for (T* keys : {rows.key, rows.query, rows.writer[0], rows.writer[1], rows.reader[0], rows.reader[1]})
      std::fill_n(keys + t * wide, wide, T(0));
    std::fill_n(rows.value + t * padded<T>(values), padded<T>(values), T(0));
    rows.strength[t] = 0;
    if (form.gated) std::fill_n(c.decay + t * wide, wide, T(1));
  }

  const LogarithmicRows<T> logarithmic_rows_;
};

}  // namespace recollect::detail
