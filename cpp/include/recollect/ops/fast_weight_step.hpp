// SPDX-License-Identifier: BSD-3-Clause
/// One token: two walks over the state, a block of columns at a time, where it lies. The first reads for b and q, the second fades and
/// writes; in between the block waits in the nearest cache, so that memory sees the state come once and go once.
#pragma once

#include <algorithm>

#include "recollect/ops/fast_weight_group.hpp"
#include "recollect/ops/feature_rows.hpp"

namespace recollect::detail {

template <class T>
class TokenStep {
  using P = Packet<T>;

 public:
  /// The first token of `c`; its state is read at `from` and written at `to`, which may be the same.
  TokenStep(ChunkForm form, const ChunkRows<T>& c, index_t keys, index_t values, const Rows<const T>& from, const Rows<T>& to,
            Scratch& scratch)
      : form_(form), c_(c), keys_(keys), values_(values), from_(from), to_(to) {
    const T* query = form.query ? c.reader[form.query_slot()].rows : nullptr;
    const T* removal = form.remove ? c.reader[0].rows : nullptr;
    query_ = faded(query, true, scratch);
    removal_ = faded(removal, c.removes_key, scratch);
    for (int w = 0; w < form.writers() && query; ++w) own_[w] = product(query, c.writer[w].rows);
  }

  void run() const {
    constexpr index_t block = 4 * P::width;
    index_t column = 0;
    for (; column + block <= values_; column += block) columns<4, true>(column);
    for (; column + P::width <= values_; column += P::width) columns<1, true>(column);
    if (column < values_) columns<1, false>(column);
  }

 private:
  /// A reader of the state before it fades.
  const T* faded(const T* row, bool after, Scratch& scratch) const {
    if (!row || !form_.gated || !after) return row;
    T* product = scratch.take<T>(padded<T>(keys_));
    for (index_t k = 0; k < keys_; ++k) product[k] = row[k] * c_.decay[k];
    return product;
  }

  T product(const T* x, const T* y) const {
    P total(T(0));
    for (index_t k = 0; k < keys_; k += P::width) total = fma(P::load(x + k), P::load(y + k), total);
    return sum(total);
  }

  /// `Whole`: no packet reaches beyond the last column.
  template <int Packets, bool Whole>
  void columns(index_t column) const {
    P u[Packets], out[Packets], value[Packets];
    for (int j = 0; j < Packets; ++j) value[j] = P(T(0));
    with_form(form_, [&]<bool Query, bool Remove, bool Gated>() {
      read<Query, Remove, Whole>(column, u, out);
      finish<Query, Remove>(column, u, out, value);
      if (!to_) return;
      if (!form_.write)
        pass_on<Packets, Whole>(column);
      else
        form_.erase ? write<Gated, true, Whole>(column, u, value) : write<Gated, false, Whole>(column, u, value);
    });
  }

  /// Sums and rows are the function's own, so that they stay in registers whatever the state may lie beside.
  template <bool Query, bool Remove, bool Whole, int Packets>
  void read(index_t column, P (&u)[Packets], P (&out)[Packets]) const {
    P removed[Packets], found[Packets];
    for (int j = 0; j < Packets; ++j) removed[j] = found[j] = P(T(0));
    const T *row = &from_.at(0, column), *const removal = removal_, *const query = query_;
    const index_t keys = keys_, stride = from_.time;
    for (index_t k = 0; k < keys; ++k, row += stride)
#pragma GCC unroll 4
      for (int j = 0; j < Packets; ++j) {
        const P now = load<Whole>(row, column, j);
        if constexpr (Remove) removed[j] = fma(P(removal[k]), now, removed[j]);
        if constexpr (Query) found[j] = fma(P(query[k]), now, found[j]);
      }
    std::copy_n(removed, Packets, u);
    std::copy_n(found, Packets, out);
  }

  /// What is written, and what q reads once it is.
  template <bool Query, bool Remove, int Packets>
  void finish(index_t column, P (&u)[Packets], P (&out)[Packets], P (&value)[Packets]) const {
    const P strength(c_.strength ? c_.strength[0] : T(1)), sign(c_.removes_key ? T(-1) : T(1));
#pragma GCC unroll 4
    for (int j = 0; j < Packets; ++j) {
      const index_t at = column + j * P::width;
      P kept = u[j];
      if (form_.write) {
        value[j] = P::load(c_.given.rows + at);
        if (Remove && !form_.erase) kept = value[j] = fma(sign, u[j], value[j]);
        value[j] = strength * value[j];
        if (Remove && c_.written.rows) kept.store(c_.written.rows + at);
      }
      if constexpr (Query) {
        if (form_.write) out[j] = fma(P(own_[0]), value[j], out[j]);
        if (form_.erase) out[j] = fma(P(own_[1]), u[j], out[j]);
        (P(c_.scale) * out[j]).store(c_.out.rows + at);
      }
    }
  }

  template <bool Gated, bool Erase, bool Whole, int Packets>
  void write(index_t column, const P (&u)[Packets], const P (&value)[Packets]) const {
    P added[Packets], removed[Packets];
    std::copy_n(value, Packets, added);
    std::copy_n(u, Packets, removed);
    const T *row = &from_.at(0, column), *const decay = c_.decay, *const key = c_.writer[0].rows, *const a = c_.writer[1].rows;
    T* to = &to_.at(0, column);
    const index_t keys = keys_, stride = from_.time, to_stride = to_.time;
    for (index_t k = 0; k < keys; ++k, row += stride, to += to_stride)
#pragma GCC unroll 4
      for (int j = 0; j < Packets; ++j) {
        P now = load<Whole>(row, column, j);
        if constexpr (Gated) now = P(decay[k]) * now;
        now = fma(P(key[k]), added[j], now);
        if constexpr (Erase) now = fma(P(a[k]), removed[j], now);
        store<Whole>(now, to, column, j);
      }
  }

  template <int Packets, bool Whole>
  void pass_on(index_t column) const {
    for (index_t k = 0; k < keys_; ++k)
      for (int j = 0; j < Packets; ++j) {
        const P faded = P(form_.gated ? c_.decay[k] : T(1)) * load<Whole>(&from_.at(k, column), column, j);
        store<Whole>(faded, &to_.at(k, column), column, j);
      }
  }

  template <bool Whole>
  P load(const T* row, index_t column, int j) const {
    return Whole ? P::load(row + j * P::width) : P::load_some(row, values_ - column);
  }
  template <bool Whole>
  void store(P packet, T* row, index_t column, int j) const {
    Whole ? packet.store(row + j * P::width) : packet.store_some(row, values_ - column);
  }

  const ChunkForm form_;
  const ChunkRows<T>& c_;
  const index_t keys_, values_;
  const Rows<const T> from_;
  const Rows<T> to_;
  const T *query_ = nullptr, *removal_ = nullptr;
  T own_[2] = {};
};

}  // namespace recollect::detail
