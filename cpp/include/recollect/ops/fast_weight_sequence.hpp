// SPDX-License-Identifier: BSD-3-Clause
/// One sequence through the recurrence and back, chunk by chunk: forwards with the state in strips, backwards from checkpoint to
/// checkpoint, so that a state is never inverted and memory is that of one chunk.
#pragma once

#include "recollect/ops/fast_weight_chunk.hpp"
#include "recollect/ops/fast_weight_decay.hpp"
#include "recollect/ops/fast_weight_step.hpp"
#include "recollect/ops/fast_weight_token_gradients.hpp"
#include "recollect/ops/fast_weight_tokens.hpp"

namespace recollect::detail {

/// Where the results of one sequence go. Checkpoints are dense (chunks, K, W).
template <class T>
struct SequenceResults {
  Rows<T> out, state, written;
  T* checkpoints = nullptr;
};

/// What the backward pass of one sequence is given.
template <class T>
struct SequenceTape {
  Rows<const T> d_out, d_state, written;
  const T* checkpoints = nullptr;
};

template <class T>
class SequenceScan {
 public:
  SequenceScan(const fast_weight::parameters& p, const RowMap<T>& map, index_t tokens, index_t values)
      : p_(p),
        map_(map),
        count_(tokens),
        keys_(map.width()),
        values_(values),
        columns_(values + columns_behind(p, map)),
        wide_keys_(padded<T>(keys_)),
        wide_values_(padded<T>(values)) {}

  void forward(const Sequence<const T>& from, double scale, const SequenceResults<T>& to) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const TokenSetting<T> setting(p_, map_, from, scale, values_);
    const Tokens<T> tokens(setting);
    const Chunk<T> chunk(setting.form, keys_, values_);
    const ChunkRows<T> room = chunk.make(scratch, std::min(p_.chunk, count_));
    TokenRows<T> rows = tokens.make(scratch, std::min(p_.chunk, count_));
    const Normaliser<T> normaliser = make_normaliser(scratch);
    load_normaliser(from.state, normaliser);
    const bool single = count_ == 1 && !to.checkpoints && from.state && from.state.inner == 1 && (!to.state || to.state.inner == 1);
    T* state = single ? nullptr : scratch.take<T>(keys_ * wide_values_);
    if (!single) load_state(from.state, state);
    for (index_t first = 0; first < count_; first += p_.chunk) {
      const index_t count = std::min(p_.chunk, count_ - first);
      ChunkRows<T> c = in_groups(room, count);
      if (to.checkpoints) save(state, normaliser, to.checkpoints + first / p_.chunk * keys_ * columns_);
      tokens.load(first, count, false, c, rows, normaliser);
      const bool out_lies = lies(to.out, count), written_lies = lies(to.written, count);
      c.out = out_lies ? Lying<T>{&to.out.at(first), to.out.time} : Lying<T>{rows.out, wide_values_};
      if (to.written) c.written = written_lies ? Lying<T>{&to.written.at(first), to.written.time} : Lying<T>{rows.written, wide_values_};
      if (single) {
        TokenStep<T>(setting.form, c, keys_, values_, from.state, to.state, scratch).run();
      } else {
        tokens.fill_group(count, c, rows);
        chunk.prepare(c);
        chunk.forward(c, state, spread(first + p_.chunk, [&](index_t t) {
                        tokens.fetch(t);
                        fetch_row(to.out, t, values_);
                        fetch_row(to.written, t, values_);
                      }));
      }
      for (index_t t = 0; tokens.normalised() && to.out && t < count; ++t) {
        const T divisor = rows.late_divisor[t];
        for (index_t v = 0; divisor != 1 && v < values_; ++v) c.out.rows[t * c.out.stride + v] /= divisor;
      }
      for (index_t t = 0; to.out && !out_lies && t < count; ++t) store_row(rows.out + t * wide_values_, values_, to.out, first + t);
      for (index_t t = 0; to.written && !written_lies && t < count; ++t)
        store_row(rows.written + t * wide_values_, values_, to.written, first + t);
    }
    if (!to.state) return;
    if (!single) store_state(state, to.state);
    store_normaliser(normaliser, to.state);
  }

  /// Gradients of one sequence; returns that of scale.
  double backward(const Sequence<const T>& from, double scale, const SequenceTape<T>& tape, const Sequence<T>& to) const {
    Scratch& scratch = Scratch::local();
    const Scratch::Frame frame(scratch);
    const TokenSetting<T> setting(p_, map_, from, scale, values_);
    const ChunkForm form = setting.form;
    const Tokens<T> tokens(setting);
    const TokenGradients<T> gradients(setting, to);
    const Chunk<T> chunk(form, keys_, values_);
    const SmallDecays<T> small(form, keys_, values_);
    const index_t longest = std::min(p_.chunk, count_);
    const ChunkRows<T> room = chunk.make(scratch, longest);
    TokenRows<T> rows = tokens.make(scratch, longest);
    ChunkGradients<T> d = chunk.make_gradients(scratch, in_groups(room, longest));
    T* cotangents = scratch.take<T>((longest + group - 1) / group * group * wide_values_);
    d.d_out = cotangents;
    const index_t size = wide_keys_ * wide_values_;
    T *gradient = scratch.take<T>(size), *turned_gradient = scratch.take<T>(size), *turned_state = scratch.take<T>(size);
    T *after = scratch.take<T>(size), *balance = scratch.take<T>(wide_keys_);
    const Normaliser<T> normaliser = make_normaliser(scratch), d_normaliser = make_normaliser(scratch);
    load_state(tape.d_state, gradient);
    load_turned(tape.d_state, turned_gradient);
    load_normaliser(tape.d_state, d_normaliser);
    double d_scale = 0;
    for (index_t i = fast_weight::chunks_of(count_, p_.chunk) - 1; i >= 0; --i) {
      const index_t first = i * p_.chunk, count = std::min(p_.chunk, count_ - first);
      ChunkRows<T> c = in_groups(room, count);
      const Rows<const T> before{tape.checkpoints + i * keys_ * columns_, columns_, 1};
      load_turned(before, turned_state);
      load_normaliser(before, normaliser);
      tokens.load(first, count, true, c, rows, normaliser);
      tokens.fill_group(count, c, rows);
      load_written(first, count, form, tape.written, c);
      load_cotangents(first, count, form, tape.d_out, cotangents);
      chunk.prepare(c);
      if (gradients.of_decay()) std::copy_n(turned_gradient, size, after);
      chunk.backward(c, d, gradient, turned_gradient, turned_state, spread(first - p_.chunk, [&](index_t t) {
                       tokens.fetch(t);
                       fetch_row(tape.d_out, t, values_);
                       fetch_row(tape.written, t, values_);
                       fetch_row(to.query, t, map_.d());
                       fetch_row(to.key, t, map_.d());
                       fetch_row(to.value, t, values_);
                     }));
      if (gradients.of_decay()) {
        weigh(after, turned_state, balance);
        if (small.find(c, d, count)) {
          load_turned(before, turned_state);
          small.weigh(c, d, count, turned_state, after);
        }
      }
      d_scale += gradients.pull(first, c, d, rows, balance, d_normaliser.z);
    }
    if (!to.state) return d_scale;
    store_state(gradient, to.state);
    if (d_normaliser.c) std::fill_n(d_normaliser.c, wide_keys_, T(0));
    store_normaliser(d_normaliser, to.state);
    return d_scale;
  }

 private:
  /// Spreads the tokens of another chunk, which begins at `first`, over the groups and strips of this one, so that memory is read while
  /// the processor computes: all at once, they would wait for each other.
  template <class Fetch>
  auto spread(index_t first, Fetch&& fetch) const {
    return [this, first, fetch](index_t g, index_t column) {
      const index_t strips = std::max<index_t>(wide_values_ / strip_columns<T>, 1), strip = std::min(column / strip_columns<T>, strips - 1);
      const index_t end = std::min({first + p_.chunk, count_, first + g * group + (strip + 1) * group / strips});
      for (index_t t = first + g * group + strip * group / strips; t < end && first >= 0; ++t) fetch(t);
    };
  }

  static ChunkRows<T> in_groups(ChunkRows<T> room, index_t tokens) {
    room.groups = (tokens + group - 1) / group;
    return room;
  }

  /// Whether whole groups of rows can be written where they belong.
  bool lies(const Rows<T>& rows, index_t count) const { return rows && rows.inner == 1 && values_ == wide_values_ && count % group == 0; }

  /// f(row, column, width, place) for every row of every strip; the width is what of the strip is not padding.
  template <class Pointer, class F>
  static void each_strip_row(Pointer state, index_t rows, index_t columns, F&& f) {
    for (index_t column = 0; column < columns; column += strip_columns<T>) {
      const index_t wide = std::min(strip_columns<T>, padded<T>(columns) - column), width = std::min(strip_columns<T>, columns - column);
      for (index_t k = 0; k < rows; ++k) f(k, column, width, state + column * rows + k * wide);
    }
  }

  void load_state(const Rows<const T>& from, T* state) const {
    std::fill_n(state, keys_ * wide_values_, T(0));
    if (!from) return;
    each_strip_row(state, keys_, values_, [&](index_t k, index_t v, index_t width, T* to) {
      if (from.inner == 1)
        copy_row(&from.at(k, v), width, to);
      else
        for (index_t j = 0; j < width; ++j) to[j] = from.at(k, v + j);
    });
  }

  void store_state(const T* state, const Rows<T>& to) const {
    each_strip_row(state, keys_, values_, [&](index_t k, index_t v, index_t width, const T* from) {
      if (to.inner == 1)
        copy_row(from, width, &to.at(k, v));
      else
        for (index_t j = 0; j < width; ++j) to.at(k, v + j) = from[j];
    });
  }

  void load_turned(const Rows<const T>& from, T* state) const {
    using P = Packet<T>;
    std::fill_n(state, values_ * wide_keys_, T(0));
    if (!from) return;
    for (index_t k = 0; k < keys_; k += P::width)
      for (index_t v = 0; v < values_; v += P::width) {
        const index_t high = std::min<index_t>(P::width, keys_ - k), wide = std::min<index_t>(P::width, values_ - v);
        P square[P::width];
        if (from.inner == 1 && high == P::width && wide == P::width) {
          for (index_t i = 0; i < P::width; ++i) square[i] = P::load(&from.at(k + i, v));
        } else {
          T edge[P::width] = {};
          for (index_t i = 0; i < P::width; ++i) {
            for (index_t j = 0; j < wide; ++j) edge[j] = i < high ? from.at(k + i, v + j) : T(0);
            square[i] = P::load(edge);
          }
        }
        transpose(square);
        for (index_t j = 0; j < wide; ++j) square[j].store(state_at(state, values_, v + j, k, wide_keys_));
      }
  }

  Normaliser<T> make_normaliser(Scratch& scratch) const {
    Normaliser<T> n;
    if (columns_ > values_) n.z = scratch.take<T>(wide_keys_);
    if (columns_ > values_ + 1) n.c = scratch.take<T>(wide_keys_);
    return n;
  }

  /// Where z is 0 nothing is held, of whatever size.
  void load_normaliser(const Rows<const T>& state, Normaliser<T> to) const {
    if (to.z) std::fill_n(to.z, wide_keys_, T(0));
    for (index_t k = 0; state && to.z && k < keys_; ++k) to.z[k] = state.at(k, values_);
    for (index_t k = 0; to.c && k < wide_keys_; ++k)
      to.c[k] = to.z[k] == 0 ? -std::numeric_limits<T>::infinity() : state.at(k, values_ + 1);
  }

  void store_normaliser(Normaliser<T> from, const Rows<T>& state) const {
    for (index_t k = 0; from.z && k < keys_; ++k) state.at(k, values_) = from.z[k];
    for (index_t k = 0; from.c && k < keys_; ++k) state.at(k, values_ + 1) = from.z[k] == 0 ? T(0) : from.c[k];
  }

  void save(const T* state, Normaliser<T> normaliser, T* to) const {
    const Rows<T> rows{to, columns_, 1};
    store_state(state, rows);
    store_normaliser(normaliser, rows);
  }

  /// y = v + u as the forward pass has kept it, or v and, where a erases, u.
  void load_written(index_t first, index_t count, ChunkForm form, const Rows<const T>& written, const ChunkRows<T>& c) const {
    if (!form.write) return;
    const index_t size = c.groups * group * wide_values_;
    if (!form.remove || form.erase) std::copy_n(c.given.rows, size, c.value[0]);
    if (!form.remove) return;
    T* to = c.value[form.solved_slot()];
    for (index_t t = 0; t < count; ++t) load_row(written, first + t, values_, to + t * wide_values_);
    std::fill(to + count * wide_values_, to + size, T(0));
  }

  void load_cotangents(index_t first, index_t count, ChunkForm form, const Rows<const T>& d_out, T* to) const {
    if (!form.query) return;
    for (index_t t = 0; t < count; ++t)
      if (d_out)
        load_row(d_out, first + t, values_, to + t * wide_values_);
      else
        std::fill_n(to + t * wide_values_, wide_values_, T(0));
    for (index_t t = count; t < (count + group - 1) / group * group; ++t) std::fill_n(to + t * wide_values_, wide_values_, T(0));
  }

  /// balance_k = sum_v G(k, v) S(k, v), of two turned states.
  void weigh(const T* gradient, const T* state, T* balance) const {
    using P = Packet<T>;
    for (index_t k = 0; k < wide_keys_; k += P::width) {
      const T *g = state_at(gradient, values_, 0, k, wide_keys_), *s = state_at(state, values_, 0, k, wide_keys_);
      const index_t stride = values_ > 1 ? state_at(gradient, values_, 1, k, wide_keys_) - g : 0;
      P total(T(0));
      for (index_t v = 0; v < values_; ++v) total = fma(P::load(g + v * stride), P::load(s + v * stride), total);
      total.store(balance + k);
    }
  }

  const fast_weight::parameters p_;
  const RowMap<T> map_;
  const index_t count_, keys_, values_, columns_, wide_keys_, wide_values_;
};

}  // namespace recollect::detail
