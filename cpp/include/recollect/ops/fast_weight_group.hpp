// SPDX-License-Identifier: BSD-3-Clause
/// What happens within a group of tokens: the coefficients that couple them, and what a token reads and writes once the coefficients and
/// what the state holds are known. Straight-line code over packets: every branch is decided when it is compiled.
///
/// A group has one square of coefficients for each writer. At (t, s), s <= t, stands what q of token t finds of what token s wrote; at
/// (s, t), s < t, what b of token t does. b reads before its token writes, so the two share a square.
#pragma once

#include "recollect/core/prefetch.hpp"
#include "recollect/ops/fast_weight_rows.hpp"

namespace recollect::detail {

enum class reader { removal, query };

template <reader R, class T>
Packet<T> coefficient(const T* square, index_t t, index_t s) {
  return Packet<T>(square[R == reader::query ? t * group + s : s * group + t]);
}

/// The first s that a reader of token t does not find: its own for b, the next one for q.
template <reader R>
constexpr index_t found_by(index_t t) {
  return R == reader::query ? t + 1 : t;
}

/// to_t += sum_s m(t, s) from_s
template <reader R, class T>
[[gnu::always_inline]] inline void add_earlier(const T* square, const Packet<T> (&from)[group], Packet<T> (&to)[group]) {
#pragma GCC unroll 4
  for (index_t t = 0; t < group; ++t)
#pragma GCC unroll 4
    for (index_t s = 0; s < group; ++s)
      if (s < found_by<R>(t)) to[t] = fma(coefficient<R>(square, t, s), from[s], to[t]);
}

/// Its adjoint: to_s += sum_t m(t, s) from_t
template <reader R, class T>
[[gnu::always_inline]] inline void add_later(const T* square, const Packet<T> (&from)[group], Packet<T> (&to)[group]) {
#pragma GCC unroll 4
  for (index_t t = 0; t < group; ++t)
#pragma GCC unroll 4
    for (index_t s = 0; s < group; ++s)
      if (s < found_by<R>(t)) to[s] = fma(coefficient<R>(square, t, s), from[t], to[s]);
}

/// x_s += sum_{t > s} m(t, s) x_t, from the last one on.
template <class T>
[[gnu::always_inline]] inline void solve_later(const T* square, Packet<T> (&x)[group]) {
#pragma GCC unroll 4
  for (index_t t = group - 1; t > 0; --t)
#pragma GCC unroll 4
    for (index_t s = 0; s < group; ++s)
      if (s < t) x[s] = fma(coefficient<reader::removal>(square, t, s), x[t], x[s]);
}

template <class T>
[[gnu::always_inline]] inline void load_group(Lying<const T> from, index_t first, index_t column, Packet<T> (&to)[group]) {
#pragma GCC unroll 4
  for (index_t t = 0; t < group; ++t) to[t] = Packet<T>::load(from.rows + (first + t) * from.stride + column);
}
template <class T>
[[gnu::always_inline]] inline void store_group(const Packet<T> (&from)[group], Lying<T> to, index_t first, index_t column) {
#pragma GCC unroll 4
  for (index_t t = 0; t < group; ++t) from[t].store(to.rows + (first + t) * to.stride + column);
}

/// Calls f with what is known of a form as constants.
template <class F>
void with_form(ChunkForm form, F&& f) {
  const auto choose = [](bool known, auto&& next) { known ? next(std::true_type{}) : next(std::false_type{}); };
  choose(form.query, [&](auto query) {
    choose(form.remove,
           [&](auto remove) { choose(form.gated, [&](auto gated) { f.template operator()<query.value, remove.value, gated.value>(); }); });
  });
}

/// The coefficients of one group and one writer; where something decays the faded rows too and, with the first writer, what fades of
/// the readers and of the state over the group. `wide` is the width of the rows.
template <bool Query, bool Remove, bool Gated, class T>
void couple_group(const ChunkRows<T>& c, index_t wide, index_t g, int w) {
  using P = Packet<T>;
  constexpr int q = Remove ? 1 : 0;
  const index_t start = g * group * wide;
  const bool late = c.removes_key;
  P sums[group * group];
#pragma GCC unroll 16
  for (int i = 0; i < group * group; ++i) sums[i] = P(T(0));
  for (index_t k = 0; k < wide; k += P::width) {
    P decay[group], removal[group], query[group];
    if constexpr (Gated) load_group(Lying<const T>{c.decay, wide}, g * group, k, decay);
    if constexpr (Remove) load_group(c.reader[0], g * group, k, removal);
    if constexpr (Query) load_group(c.reader[q], g * group, k, query);
    if constexpr (Gated)
      if (w == 0) {
        P fade(T(1));
#pragma GCC unroll 4
        for (index_t t = 0; t < group; ++t) {
          const P before = fade;
          fade = fade * decay[t];
          if constexpr (Remove) (removal[t] * (late ? fade : before)).store(c.faded_reader[0] + start + t * wide + k);
          if constexpr (Query) (query[t] * fade).store(c.faded_reader[q] + start + t * wide + k);
        }
        fade.store(c.end + g * wide + k);
      }
#pragma GCC unroll 4
    for (index_t s = 0; s < group; ++s) {
      P now = P::load(c.writer[w].rows + (g * group + s) * c.writer[w].stride + k);
#pragma GCC unroll 4
      for (index_t t = s; t < group; ++t) {
        const P before = now;
        if (Gated && t > s) now = now * decay[t];
        if (Remove && t > s) sums[s * group + t] = fma(removal[t], Gated && !late ? before : now, sums[s * group + t]);
        if (Query) sums[t * group + s] = fma(query[t], now, sums[t * group + s]);
      }
      if (Gated) now.store(c.faded_writer[w] + start + s * wide + k);
    }
  }
  lane_sums(sums, c.square(g, w));
}

/// Where a erases: v is written, of its strength, and u comes of v and of the u before it.
template <class T>
[[gnu::always_inline]] inline void erase_in_group(const ChunkRows<T>& c, index_t g, const Packet<T> (&strength)[group],
                                                  Packet<T> (&value)[group], Packet<T> (&u)[group]) {
#pragma GCC unroll 4
  for (index_t t = 0; t < group; ++t) value[t] = strength[t] * value[t];
  add_earlier<reader::removal>(c.square(g, 0), value, u);
#pragma GCC unroll 4
  for (index_t s = 0; s < group; ++s)
#pragma GCC unroll 4
    for (index_t t = s + 1; t < group; ++t) u[t] = fma(coefficient<reader::removal>(c.square(g, 1), t, s), u[s], u[t]);
}

/// Where w itself erases: y_t = strength_t (v_t + u_t), u_t of the y before it. `kept` becomes v + u.
template <class T>
[[gnu::always_inline]] inline void replace_in_group(const ChunkRows<T>& c, index_t g, const Packet<T> (&strength)[group],
                                                    const Packet<T> (&u)[group], Packet<T> (&value)[group], Packet<T> (&kept)[group]) {
  using P = Packet<T>;
  const P sign(c.removes_key ? T(-1) : T(1));
#pragma GCC unroll 4
  for (index_t t = 0; t < group; ++t) value[t] = fma(sign, u[t], value[t]);
#pragma GCC unroll 4
  for (index_t s = 0; s < group; ++s) {
    kept[s] = value[s];
    value[s] = strength[s] * value[s];
    const P written = sign * value[s];
#pragma GCC unroll 4
    for (index_t t = s + 1; t < group; ++t) value[t] = fma(coefficient<reader::removal>(c.square(g, 0), t, s), written, value[t]);
  }
}

/// u, y and what q reads of one group, for one packet of columns; `wide` is the width of value rows.
template <bool Query, bool Write, bool Remove, bool Erase, class T>
void complete_group(const ChunkRows<T>& c, index_t wide, index_t g, index_t column) {
  using P = Packet<T>;
  const index_t first = g * group, turn = (g & two_groups) * group;
  P value[group], u[group], strength[group];
  if constexpr (Write) {
    load_group(c.given, first, column, value);
#pragma GCC unroll 4
    for (index_t t = 0; t < group; ++t) strength[t] = P(c.strength ? c.strength[first + t] : T(1));
    const index_t next = std::min(g + 1, c.groups - 1) * group;  // whose rows are to come into the nearest cache
#pragma GCC unroll 4
    for (index_t t = 0; t < group; ++t) prefetch(c.given.rows + (next + t) * c.given.stride + column);
  }
  if constexpr (Remove) load_group(Lying<const T>{c.read[0], wide}, 0, column, u);
  if constexpr (Erase) {
    erase_in_group(c, g, strength, value, u);
    store_group(value, Lying<T>{c.value[0], wide}, turn, column);
    store_group(u, Lying<T>{c.value[1], wide}, turn, column);
    if (c.written.rows) store_group(u, c.written, first, column);
  } else if constexpr (Remove) {
    P kept[group];
    replace_in_group(c, g, strength, u, value, kept);
    store_group(value, Lying<T>{c.value[0], wide}, turn, column);
    if (c.written.rows) store_group(kept, c.written, first, column);
  } else if constexpr (Write) {
#pragma GCC unroll 4
    for (index_t t = 0; t < group; ++t) value[t] = strength[t] * value[t];
    if (c.strength) store_group(value, Lying<T>{c.value[0], wide}, turn, column);
  }
  if constexpr (Query) {
    P out[group];
    load_group(Lying<const T>{c.read[Remove ? 1 : 0], wide}, 0, column, out);
    if constexpr (Write) add_earlier<reader::query>(c.square(g, 0), value, out);
    if constexpr (Erase) add_earlier<reader::query>(c.square(g, 1), u, out);
#pragma GCC unroll 4
    for (index_t t = 0; t < group; ++t) out[t] = P(c.scale) * out[t];
    store_group(out, c.out, first, column);
  }
}

}  // namespace recollect::detail
