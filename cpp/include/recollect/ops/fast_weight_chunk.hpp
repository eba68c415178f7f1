// SPDX-License-Identifier: BSD-3-Clause
/// The fast weight recurrence over a chunk of tokens, in groups. b and q are readers, w and a are writers of a state:
///
///     u_t = b_t^T S_{t-1},     S_t = D_t S_{t-1} + w_t y_t^T (+ a_t u_t^T),     o_t = q_t^T S_t
///
/// and y_t = v_t, or v_t + u_t where w itself is what erases. What a reader finds in a group is what it reads from the state before the
/// group, faded on the way, and what the writers before it have left, faded since (the coefficients):
///
///     read_t = (reader_t . D..)^T S + sum_s (reader_t . D_{s..t} writer_s) value_s
///
/// Decays are only ever multiplied, never divided by: a product that underflows is a memory that is gone.
///
/// The gradient is made of the same scans. The state's gradient G runs backwards, written to by the readers and read by the writers;
/// what multiplies the rows themselves is read from G and from S turned over their diagonals.
#pragma once

#include "recollect/ops/fast_weight_rows.hpp"

namespace recollect::detail {

template <class T>
class Chunk {
  using P = Packet<T>;

 public:
  Chunk(ChunkForm form, index_t keys, index_t values)
      : form_(form), keys_(keys), values_(values), wide_keys_(padded<T>(keys)), wide_values_(padded<T>(values)) {}

  ChunkRows<T> make(Scratch& scratch, index_t tokens) const {
    ChunkRows<T> c;
    const index_t groups = (tokens + group - 1) / group, count = groups * group;
    for (int r = 0; r < form_.readers(); ++r) {
      if (form_.gated) c.faded_reader[r] = take_rows<T>(scratch, count * wide_keys_);
      c.read[r] = take_rows<T>(scratch, count * wide_values_);
    }
    for (int w = 0; w < form_.writers(); ++w) {
      if (form_.gated) c.faded_writer[w] = take_rows<T>(scratch, count * wide_keys_);
      c.value[w] = take_rows<T>(scratch, count * wide_values_);
    }
    if (form_.gated) {
      c.decay = take_rows<T>(scratch, count * wide_keys_);
      c.end = take_rows<T>(scratch, groups * wide_keys_);
    }
    c.coefficients = take_rows<T>(scratch, groups * 4 * group * group);
    return c;
  }

  ChunkGradients<T> make_gradients(Scratch& scratch, const ChunkRows<T>& c) const {
    ChunkGradients<T> d;
    const index_t count = c.groups * group;
    for (int r = 0; r < form_.readers(); ++r) d.reader[r] = take_rows<T>(scratch, count * wide_keys_);
    for (int w = 0; w < form_.writers(); ++w) {
      d.writer[w] = take_rows<T>(scratch, count * wide_keys_);
      d.value[w] = take_rows<T>(scratch, count * wide_values_);
    }
    d.coefficients = take_rows<T>(scratch, c.groups * 4 * group * group);
    if (form_.gated) d.decay = take_rows<T>(scratch, count * wide_keys_), d.small = scratch.take<bool>(count);
    return d;
  }

  /// From the rows to what fades of them and to the coefficients.
  void prepare(const ChunkRows<T>& c) const {
    for (index_t g = 0; g < c.groups; ++g)
      for (int w = 0; w < form_.writers(); ++w) form_.gated ? couple<true>(c, g, w) : couple<false>(c, g, w);
  }

  /// S before the chunk to S after it. Of y and u only what the next group needs is kept. `ahead(g, column)` is called between the groups
  /// of a strip: it can ask for memory that a later chunk will need.
  template <class Place, class Ahead>
  void forward(const ChunkRows<T>& c, Place&& place, Ahead&& ahead) const {
    Scan<T> s = natural(c);
    s.writing = form_.writers();
    s.reading = form_.readers();
    for (int w = 0; w < form_.writers(); ++w)
      s.writers[w] = {faded_writer(c, w).rows, faded_writer(c, w).stride, c.value[w], wide_values_, two_groups};
    if (form_.write && !form_.remove && !c.strength)
      s.writers[0] = {faded_writer(c, 0).rows, faded_writer(c, 0).stride, c.given.rows, c.given.stride};
    for (int r = 0; r < form_.readers(); ++r) s.readers[r] = {faded_reader(c, r).rows, faded_reader(c, r).stride, c.read[r], one_group};
    scan_states(s, place, [&](index_t g, index_t column, int packets) {
      ahead(g, column);
      for (int j = 0; j < packets; ++j) complete(c, g, column + j * P::width);
    });
  }

  /// Three scans: G backwards, from which come the gradients of the values; the same turned, which gives those of the writers; and S
  /// turned, forwards again, which gives those of the readers. `state` is S before the chunk and `gradient` that of S after it, turned.
  template <class Ahead>
  void backward(const ChunkRows<T>& c, const ChunkGradients<T>& d, T* gradient, T* turned_gradient, T* turned_state, Ahead&& ahead) const {
    Scan<T> s = natural(c);
    s.backwards = true;
    s.writing = form_.readers();
    s.reading = form_.writers();
    for (int r = 0; r < form_.readers(); ++r)
      s.writers[r] = {faded_reader(c, r).rows, faded_reader(c, r).stride, cotangent(d, r), wide_values_};
    for (int w = 0; w < form_.writers(); ++w) s.readers[w] = {faded_writer(c, w).rows, faded_writer(c, w).stride, d.value[w]};
    scan_state(s, gradient, [&](index_t g, index_t column, int packets) {
      ahead(g, column);
      for (int j = 0; j < packets; ++j) complete_adjoint(c, d, g, column + j * P::width);
    });
    const auto nothing = [](index_t, index_t, int) {};
    s = turned(c);
    s.backwards = true;
    s.writing = form_.readers();
    s.reading = form_.writers();
    for (int r = 0; r < form_.readers(); ++r)
      s.writers[r] = {cotangent(d, r), wide_values_, faded_reader(c, r).rows, faded_reader(c, r).stride};
    for (int w = 0; w < form_.writers(); ++w) s.readers[w] = {c.value[w], wide_values_, d.writer[w]};
    scan_state(s, turned_gradient, nothing);
    s = turned(c);
    s.writing = form_.writers();
    s.reading = form_.readers();
    for (int w = 0; w < form_.writers(); ++w) s.writers[w] = {c.value[w], wide_values_, faded_writer(c, w).rows, faded_writer(c, w).stride};
    for (int r = 0; r < form_.readers(); ++r) s.readers[r] = {cotangent(d, r), wide_values_, d.reader[r]};
    scan_state(s, turned_state, nothing);
    for (index_t g = 0; g < c.groups; ++g) {
      for (int r = 0; r < form_.readers(); ++r)
        for (int w = 0; w < form_.writers(); ++w) products(cotangent(d, r), c.value[w], d, g, r, w);
      form_.gated ? pull<true>(c, d, g) : pull<false>(c, d, g);
    }
  }

 private:
  Lying<const T> faded_reader(const ChunkRows<T>& c, int r) const {
    return form_.gated ? Lying<const T>{c.faded_reader[r], wide_keys_} : c.reader[r];
  }
  Lying<const T> faded_writer(const ChunkRows<T>& c, int w) const {
    return form_.gated ? Lying<const T>{c.faded_writer[w], wide_keys_} : c.writer[w];
  }

  bool strict(int reader) const { return form_.remove && reader == 0; }  // b reads before its token writes, q after

  Scan<T> natural(const ChunkRows<T>& c) const {
    Scan<T> s;
    s.rows = keys_;
    s.columns = wide_values_;
    s.groups = c.groups;
    s.fade = form_.gated ? fading::rows : fading::none;
    s.fades = c.end;
    s.fade_stride = wide_keys_;
    return s;
  }

  Scan<T> turned(const ChunkRows<T>& c) const {
    Scan<T> s = natural(c);
    s.rows = values_;
    s.columns = wide_keys_;
    if (form_.gated) s.fade = fading::columns;
    return s;
  }

  const T* cotangent(const ChunkGradients<T>& d, int reader) const { return strict(reader) ? d.value[form_.solved_slot()] : d.d_out; }

  template <bool Gated>
  void couple(const ChunkRows<T>& c, index_t g, int w) const {
    if (form_.query && form_.remove)
      couple<Gated, 2>(c, g, w);
    else
      couple<Gated, 1>(c, g, w);
  }

  /// Coefficients of one group and one set of writers; with the first set, the readers and the decay over the group too.
  template <bool Gated, int Readers>
  void couple(const ChunkRows<T>& c, index_t g, int w) const {
    P sums[Readers][group * group];
    for (auto& square : sums)
#pragma GCC unroll 16
      for (P& sum : square) sum = P(T(0));
    const index_t start = g * group * wide_keys_;
    const bool with_readers = form_.readers() > 0, first_strict = strict(0), late = c.removes_key;
    for (index_t k = 0; k < wide_keys_; k += P::width) {
      const auto at = [&](const T* rows, index_t t) { return P::load(rows + start + t * wide_keys_ + k); };
      P decay[group], reader[Readers][group];
      std::fill(decay, decay + group, P(T(0)));
      for (auto& row : reader) std::fill(row, row + group, P(T(0)));
      if constexpr (Gated)
        for (index_t t = 0; t < group; ++t) decay[t] = at(c.decay, t);
      for (int r = 0; r < Readers && with_readers; ++r)
        for (index_t t = 0; t < group; ++t) reader[r][t] = P::load(c.reader[r].rows + (g * group + t) * c.reader[r].stride + k);
      if constexpr (Gated)
        if (w == 0) {
          P fade(T(1));
          for (index_t t = 0; t < group; ++t) {
            const P before = fade;
            fade = fade * decay[t];
            for (int r = 0; r < Readers && with_readers; ++r)
              (reader[r][t] * (strict(r) && !late ? before : fade)).store(c.faded_reader[r] + start + t * wide_keys_ + k);
          }
          fade.store(c.end + g * wide_keys_ + k);
        }
#pragma GCC unroll 4
      for (index_t s = 0; s < group; ++s) {
        P now = P::load(c.writer[w].rows + (g * group + s) * c.writer[w].stride + k);
#pragma GCC unroll 4
        for (index_t t = s; t < group; ++t) {
          const P before = now;
          if (Gated && t > s) now = now * decay[t];
          // Of two readers the first is b; one alone may be either.
          const P found = Gated && !late ? before : now;
          if (Readers == 2 && t > s) sums[0][t * group + s] = fma(reader[0][t], found, sums[0][t * group + s]);
          if (Readers == 1 && first_strict && t > s) sums[0][t * group + s] = fma(reader[0][t], found, sums[0][t * group + s]);
          constexpr int last = Readers - 1;
          if (Readers == 2 || (!first_strict && with_readers))
            sums[last][t * group + s] = fma(reader[last][t], now, sums[last][t * group + s]);
        }
        if (Gated) now.store(c.faded_writer[w] + start + s * wide_keys_ + k);
      }
    }
    for (int r = 0; r < Readers; ++r) lane_sums(sums[r], c.square(g, r, w));
  }

  /// u, y and what q reads, for one packet of columns.
  void complete(const ChunkRows<T>& c, index_t g, index_t column) const {
    const index_t first = g * group, turn = (g & two_groups) * group;
    P value[group], u[group];
    for (index_t t = 0; t < group; ++t) value[t] = u[t] = P(T(0));
    if (form_.write) load(c.given, first, column, value);
    if (form_.remove) {
      load(Lying<const T>{c.read[0], wide_values_}, 0, column, u);
      if (form_.erase)
        erase(c, g, value, u);
      else
        replace(c, g, column, u, value);
    } else if (form_.write && c.strength) {
      for (index_t t = 0; t < group; ++t) value[t] = P(c.strength[first + t]) * value[t];
      store(value, Lying<T>{c.value[0], wide_values_}, turn, column);
    }
    if (form_.erase) {
      store(value, Lying<T>{c.value[0], wide_values_}, turn, column);
      store(u, Lying<T>{c.value[1], wide_values_}, turn, column);
      if (c.written.rows) store(u, c.written, first, column);
    }
    if (!form_.query) return;
    P out[group];
    const int q = form_.query_slot();
    load(Lying<const T>{c.read[q], wide_values_}, 0, column, out);
    if (form_.write) add_earlier<0>(c.square(g, q, 0), value, out);
    if (form_.erase) add_earlier<0>(c.square(g, q, 1), u, out);
    if (c.scale != T(1))
      for (P& row : out) row = P(c.scale) * row;
    store(out, c.out, first, column);
  }

  /// Where a erases: what is written is v, of its strength, and u comes of v and of the u before it.
  void erase(const ChunkRows<T>& c, index_t g, P (&value)[group], P (&u)[group]) const {
    if (c.strength)
      for (index_t t = 0; t < group; ++t) value[t] = P(c.strength[g * group + t]) * value[t];
    add_earlier<1>(c.square(g, 0, 0), value, u);
    const T* m = c.square(g, 0, 1);
#pragma GCC unroll 4
    for (index_t s = 0; s < group; ++s)
#pragma GCC unroll 4
      for (index_t t = s + 1; t < group; ++t) u[t] = fma(P(m[t * group + s]), u[s], u[t]);
  }

  /// Where w itself erases: y_t = strength_t (v_t + u_t), u_t of the y before it.
  void replace(const ChunkRows<T>& c, index_t g, index_t column, const P (&u)[group], P (&value)[group]) const {
    const T *m = c.square(g, 0, 0), *strength = c.strength ? c.strength + g * group : nullptr;
    for (index_t t = 0; t < group; ++t) value[t] = c.removes_key ? value[t] - u[t] : value[t] + u[t];
    P kept[group];
#pragma GCC unroll 4
    for (index_t s = 0; s < group; ++s) {
      kept[s] = value[s];
      if (strength) value[s] = P(strength[s]) * value[s];
      const P written = c.removes_key ? P(T(0)) - value[s] : value[s];
#pragma GCC unroll 4
      for (index_t t = s + 1; t < group; ++t) value[t] = fma(P(m[t * group + s]), written, value[t]);
    }
    if (c.written.rows) store(kept, c.written, g * group, column);
    store(value, Lying<T>{c.value[0], wide_values_}, (g & two_groups) * group, column);
  }

  static void load(Lying<const T> from, index_t first, index_t column, P (&to)[group]) {
#pragma GCC unroll 4
    for (index_t t = 0; t < group; ++t) to[t] = P::load(from.rows + (first + t) * from.stride + column);
  }
  static void store(const P (&from)[group], Lying<T> to, index_t first, index_t column) {
#pragma GCC unroll 4
    for (index_t t = 0; t < group; ++t) from[t].store(to.rows + (first + t) * to.stride + column);
  }

  /// The adjoint of `complete`: gradients of v and u from those of what was written and of what q read.
  void complete_adjoint(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t g, index_t column) const {
    if (!form_.write) return;
    const index_t first = g * group * wide_values_ + column;
    P d_out[group] = {P(T(0)), P(T(0)), P(T(0)), P(T(0))}, d_value[2][group];
    if (form_.query)
      for (index_t t = 0; t < group; ++t) d_out[t] = P::load(d.d_out + first + t * wide_values_);
    for (int w = 0; w < form_.writers(); ++w) {
      for (index_t t = 0; t < group; ++t) d_value[w][t] = P::load(d.value[w] + first + t * wide_values_);
      if (form_.query) add_later<0>(c.square(g, form_.query_slot(), w), d_out, d_value[w]);
    }
    if (form_.remove) {
      solve_later(c.square(g, 0, form_.solved_slot()), d_value[form_.solved_slot()]);
      if (form_.erase) add_later<1>(c.square(g, 0, 0), d_value[1], d_value[0]);
    }
    for (int w = 0; w < form_.writers(); ++w)
      for (index_t t = 0; t < group; ++t) d_value[w][t].store(d.value[w] + first + t * wide_values_);
  }

  /// Gradients of the coefficients: scalar products of what a reader was asked for with what a writer wrote.
  void products(const T* asked, const T* written, const ChunkGradients<T>& d, index_t g, int r, int w) const {
    P sums[group * group];
#pragma GCC unroll 16
    for (P& sum : sums) sum = P(T(0));
    const index_t first = g * group * wide_values_;
    for (index_t k = 0; k < wide_values_; k += P::width) {
      P right[group];
#pragma GCC unroll 4
      for (index_t s = 0; s < group; ++s) right[s] = P::load(written + first + s * wide_values_ + k);
#pragma GCC unroll 4
      for (index_t t = 0; t < group; ++t) {
        const P left = P::load(asked + first + t * wide_values_ + k);
#pragma GCC unroll 4
        for (index_t s = 0; s <= t; ++s) sums[t * group + s] = fma(left, right[s], sums[t * group + s]);
      }
    }
    lane_sums(sums, d.coefficients + ((g * 2 + r) * 2 + w) * group * group);
  }

  /// From the gradients of faded rows and of the coefficients to those of the rows.
  template <bool Gated>
  void pull(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t g) const {
    const index_t start = g * group * wide_keys_;
    const int q = form_.query_slot();
    for (index_t k = 0; k < wide_keys_; k += P::width) {
      const auto at = [&](T* rows, index_t t) { return rows + start + t * wide_keys_ + k; };
      const auto row = [&](Lying<const T> rows, index_t t) { return P::load(rows.rows + (g * group + t) * rows.stride + k); };
      P decay[group], b[group], query[group], d_b[group], d_query[group], fade(T(1));
      for (P* row : {decay, b, query, d_b, d_query}) std::fill(row, row + group, P(T(0)));
#pragma GCC unroll 4
      for (index_t t = 0; t < group; ++t) {
        if (form_.remove) b[t] = row(c.reader[0], t), d_b[t] = P::load(at(d.reader[0], t));
        if (form_.query) query[t] = row(c.reader[q], t), d_query[t] = P::load(at(d.reader[q], t));
        if constexpr (Gated) {
          decay[t] = P::load(at(c.decay, t));
          if (form_.remove) d_b[t] = d_b[t] * fade;
          fade = fade * decay[t];
          if (form_.query) d_query[t] = d_query[t] * fade;
        }
      }
      for (int w = 0; w < form_.writers(); ++w) {
        const T* d_erased = d.coefficients + ((g * 2 + 0) * 2 + w) * group * group;
        const T* d_read = d.coefficients + ((g * 2 + q) * 2 + w) * group * group;
#pragma GCC unroll 4
        for (index_t s = 0; s < group; ++s) {
          P now = row(c.writer[w], s), d_now = P::load(at(d.writer[w], s));
#pragma GCC unroll 4
          for (index_t t = s; t < group; ++t) {
            if (form_.remove && t > s) d_b[t] = fma(P(d_erased[t * group + s]), now, d_b[t]);
            if (Gated && t > s) now = now * decay[t];
            if (form_.query) d_query[t] = fma(P(d_read[t * group + s]), now, d_query[t]);
          }
#pragma GCC unroll 4
          for (index_t t = group - 1; t >= s; --t) {
            if (form_.query) d_now = fma(P(d_read[t * group + s]), query[t], d_now);
            if (Gated && t > s) d_now = d_now * decay[t];
            if (form_.remove && t > s) d_now = fma(P(d_erased[t * group + s]), b[t], d_now);
          }
          d_now.store(at(d.writer[w], s));
        }
      }
#pragma GCC unroll 4
      for (index_t t = 0; t < group; ++t) {
        if (form_.remove) d_b[t].store(at(d.reader[0], t));
        if (form_.query) d_query[t].store(at(d.reader[q], t));
      }
    }
  }

  const ChunkForm form_;
  const index_t keys_, values_, wide_keys_, wide_values_;
};

}  // namespace recollect::detail
