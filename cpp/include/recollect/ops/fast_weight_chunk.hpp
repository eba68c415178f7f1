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

#include "recollect/ops/fast_weight_group.hpp"

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
    c.coefficients = take_rows<T>(scratch, groups * 2 * group * group);
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
    d.coefficients = take_rows<T>(scratch, c.groups * 2 * group * group);
    if (form_.gated) d.decay = take_rows<T>(scratch, count * wide_keys_), d.small = scratch.take<bool>(count);
    return d;
  }

  /// From the rows to what fades of them and to the coefficients.
  void prepare(const ChunkRows<T>& c) const {
    with_form(form_, [&]<bool Query, bool Remove, bool Gated>() {
      for (index_t g = 0; g < c.groups; ++g)
        for (int w = 0; w < form_.writers(); ++w) couple_group<Query, Remove, Gated>(c, wide_keys_, g, w);
    });
  }

  /// S before the chunk to S after it. Of y and u only what the next group needs is kept. `ahead(g, column)` is called between the groups
  /// of a strip: it can ask for memory that a later chunk will need.
  template <class Ahead>
  void forward(const ChunkRows<T>& c, T* state, Ahead&& ahead) const {
    Scan<T> s = natural(c);
    s.writing = form_.writers();
    s.reading = form_.readers();
    for (int w = 0; w < form_.writers(); ++w)
      s.writers[w] = {faded_writer(c, w).rows, faded_writer(c, w).stride, c.value[w], wide_values_, two_groups};
    if (form_.write && !form_.remove && !c.strength)
      s.writers[0] = {faded_writer(c, 0).rows, faded_writer(c, 0).stride, c.given.rows, c.given.stride};
    for (int r = 0; r < form_.readers(); ++r) s.readers[r] = {faded_reader(c, r).rows, faded_reader(c, r).stride, c.read[r], one_group};
    const Complete complete = completion();
    scan_state(s, state, [&](index_t g, index_t column, int packets) {
      ahead(g, column);
      for (int j = 0; j < packets; ++j) complete(c, wide_values_, g, column + j * P::width);
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
    with_form(form_, [&]<bool Query, bool Remove, bool Gated>() {
      for (index_t g = 0; g < c.groups; ++g) {
        for (int w = 0; w < form_.writers(); ++w) products<Query, Remove>(c, d, g, w);
        pull<Query, Remove, Gated>(c, d, g);
      }
    });
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

  using Complete = void (*)(const ChunkRows<T>&, index_t, index_t, index_t);

  Complete completion() const {
    Complete chosen = nullptr;
    with_form(form_, [&]<bool Query, bool Remove, bool>() {
      if (!form_.write)
        chosen = complete_group<Query, false, false, false, T>;
      else if constexpr (Remove)
        chosen = form_.erase ? complete_group<Query, true, true, true, T> : complete_group<Query, true, true, false, T>;
      else
        chosen = complete_group<Query, true, false, false, T>;
    });
    return chosen;
  }

  /// The adjoint of `complete_group`: gradients of v and u from those of what was written and of what q read.
  void complete_adjoint(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t g, index_t column) const {
    if (!form_.write) return;
    const index_t first = g * group;
    P d_out[group], d_value[2][group];
    if (form_.query) load_group(Lying<const T>{d.d_out, wide_values_}, first, column, d_out);
    for (int w = 0; w < form_.writers(); ++w) {
      load_group(Lying<const T>{d.value[w], wide_values_}, first, column, d_value[w]);
      if (form_.query) add_later<reader::query>(c.square(g, w), d_out, d_value[w]);
    }
    if (form_.remove) {
      solve_later(c.square(g, form_.solved_slot()), d_value[form_.solved_slot()]);
      if (form_.erase) add_later<reader::removal>(c.square(g, 0), d_value[1], d_value[0]);
    }
    for (int w = 0; w < form_.writers(); ++w) store_group(d_value[w], Lying<T>{d.value[w], wide_values_}, first, column);
  }

  /// Gradients of the coefficients: scalar products of what a reader was asked for with what a writer wrote.
  template <bool Query, bool Remove>
  void products(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t g, int w) const {
    P sums[group * group];
#pragma GCC unroll 16
    for (int i = 0; i < group * group; ++i) sums[i] = P(T(0));
    const index_t first = g * group;
    for (index_t k = 0; k < wide_values_; k += P::width) {
      P written[group], by_query[group], by_removal[group];
      load_group(Lying<const T>{c.value[w], wide_values_}, first, k, written);
      if constexpr (Query) load_group(Lying<const T>{d.d_out, wide_values_}, first, k, by_query);
      if constexpr (Remove) load_group(Lying<const T>{d.value[form_.solved_slot()], wide_values_}, first, k, by_removal);
#pragma GCC unroll 4
      for (index_t t = 0; t < group; ++t)
#pragma GCC unroll 4
        for (index_t s = 0; s <= t; ++s) {
          if (Query) sums[t * group + s] = fma(by_query[t], written[s], sums[t * group + s]);
          if (Remove && s < t) sums[s * group + t] = fma(by_removal[t], written[s], sums[s * group + t]);
        }
    }
    lane_sums(sums, d.square(g, w));
  }

  /// From the gradients of faded rows and of the coefficients to those of the rows.
  template <bool Query, bool Remove, bool Gated>
  void pull(const ChunkRows<T>& c, const ChunkGradients<T>& d, index_t g) const {
    constexpr int q = Remove ? 1 : 0;
    const index_t first = g * group;
    const auto rows = [&](auto* data) { return Lying<std::remove_pointer_t<decltype(data)>>{data, wide_keys_}; };
    for (index_t k = 0; k < wide_keys_; k += P::width) {
      P decay[group], b[group], query[group], d_b[group], d_query[group], fade(T(1));
      if constexpr (Remove) load_group(c.reader[0], first, k, b), load_group(rows(static_cast<const T*>(d.reader[0])), first, k, d_b);
      if constexpr (Query)
        load_group(c.reader[q], first, k, query), load_group(rows(static_cast<const T*>(d.reader[q])), first, k, d_query);
      if constexpr (Gated) {
        load_group(rows(static_cast<const T*>(c.decay)), first, k, decay);
#pragma GCC unroll 4
        for (index_t t = 0; t < group; ++t) {
          if (Remove) d_b[t] = d_b[t] * fade;
          fade = fade * decay[t];
          if (Query) d_query[t] = d_query[t] * fade;
        }
      }
      for (int w = 0; w < form_.writers(); ++w) {
        const T* d_square = d.square(g, w);
        P d_writer[group];
        load_group(rows(static_cast<const T*>(d.writer[w])), first, k, d_writer);
#pragma GCC unroll 4
        for (index_t s = 0; s < group; ++s) {
          P now = P::load(c.writer[w].rows + (first + s) * c.writer[w].stride + k), d_now = d_writer[s];
#pragma GCC unroll 4
          for (index_t t = s; t < group; ++t) {
            if (Remove && t > s) d_b[t] = fma(coefficient<reader::removal>(d_square, t, s), now, d_b[t]);
            if (Gated && t > s) now = now * decay[t];
            if (Query) d_query[t] = fma(coefficient<reader::query>(d_square, t, s), now, d_query[t]);
          }
#pragma GCC unroll 4
          for (index_t t = group - 1; t >= s; --t) {
            if (Query) d_now = fma(coefficient<reader::query>(d_square, t, s), query[t], d_now);
            if (Gated && t > s) d_now = d_now * decay[t];
            if (Remove && t > s) d_now = fma(coefficient<reader::removal>(d_square, t, s), b[t], d_now);
          }
          d_writer[s] = d_now;
        }
        store_group(d_writer, rows(d.writer[w]), first, k);
      }
      if constexpr (Remove) store_group(d_b, rows(d.reader[0]), first, k);
      if constexpr (Query) store_group(d_query, rows(d.reader[q]), first, k);
    }
  }

  const ChunkForm form_;
  const index_t keys_, values_, wide_keys_, wide_values_;
};

}  // namespace recollect::detail
