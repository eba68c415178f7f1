// SPDX-License-Identifier: BSD-3-Clause
/// A scan of groups of tokens over one strip of a state matrix that stays in cache: what the last group wrote is added and what the next
/// one asks for is read in one walk, so that each number of the state is loaded and stored once for both. Lanes run over the columns.
///
///     reads_g(r, :) = sum_i reader_g(r, i) S(i, :),    then    S(i, :) = fade_g S(i, :) + sum_s writer_g(s, i) value_g(s, :)
///
/// Columns do not depend on each other, and each number is summed in the same order wherever its column falls.
#pragma once

#include "recollect/ops/stored.hpp"

namespace recollect::detail {

inline constexpr index_t group = 4;  // tokens: with more the sums leave the registers, with fewer the state is loaded more often

/// How the state fades when it is written to: not at all, by a number of each row, or by a number of each column.
enum class fading { none, rows, columns };

/// Of which groups rows are kept apart: of all of them, of the last two, or of one at a time. Group g lies at place g & ring.
inline constexpr index_t all_groups = -1, two_groups = 1, one_group = 0;

/// Rows as long as the state is high, one for each token, `stride` apart, and beside each a row as long as the state is wide. Rows may
/// be a caller's own.
template <class T>
struct Writers {
  const T* rows = nullptr;
  index_t stride = 0;
  const T* values = nullptr;
  index_t value_stride = 0, ring = all_groups;
};
template <class T>
struct Readers {
  const T* rows = nullptr;
  index_t stride = 0;
  T* reads = nullptr;  // padded rows of the scan's columns
  index_t ring = all_groups;
};

/// Everything about a scan but the state.
template <class T>
struct Scan {
  int writing = 0, reading = 0;
  std::array<Writers<T>, 2> writers{};
  std::array<Readers<T>, 2> readers{};
  fading fade = fading::none;
  const T* fades = nullptr;  // one row for each group, `fade_stride` apart
  index_t fade_stride = 0;
  index_t rows = 0, columns = 0;  // of the state
  index_t groups = 0;
  bool backwards = false;  // from the last group to the first
};

/// A state lies in strips of `strip_columns`, each of them contiguous, so that one fits the first-level cache and has no holes.
template <class T>
inline constexpr index_t strip_columns = (Packet<T>::registers >= 32 ? 2 : 1) * Packet<T>::width;

template <class T>
T* state_at(T* state, index_t rows, index_t row, index_t column, index_t columns) {
  constexpr index_t width = strip_columns<std::remove_const_t<T>>;
  const index_t first = column / width * width, wide = std::min(width, columns - first);
  return state + first * rows + row * wide + column - first;
}

/// Two strips of so many rows and fewer are walked in turns: more would not stay in the first-level cache.
inline constexpr index_t rows_of_pairs = 128;

/// A set of values of one group, in registers.
template <class T, int Packets>
inline void load_values(const Writers<T>& w, index_t g, index_t column, Packet<T> (&value)[group][Packets]) {
#pragma GCC unroll 4
  for (int i = 0; i < group; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Packets; ++j)
      value[i][j] = Packet<T>::load(w.values + ((g & w.ring) * group + i) * w.value_stride + column + j * Packet<T>::width);
}

template <class T, int Packets>
inline void store_reads(const Readers<T>& r, index_t g, index_t column, index_t columns, const Packet<T> (&sum)[group][Packets]) {
#pragma GCC unroll 4
  for (int i = 0; i < group; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Packets; ++j) sum[i][j].store(r.reads + ((g & r.ring) * group + i) * columns + column + j * Packet<T>::width);
}

/// One walk over a strip: group `written` writes, group `asked` reads.
template <class T, int Writing, int Reading, fading Fade, int Packets>
inline void pass(T* strip, const Scan<T>& s, index_t column, index_t written, index_t asked) {
  using P = Packet<T>;
  P value[2][group][Packets], sum[2][group][Packets], shade[Packets];
  const T *writer[2] = {}, *reader[2] = {};
  const index_t writer_stride[2] = {s.writers[0].stride, s.writers[1].stride};
  const index_t reader_stride[2] = {s.readers[0].stride, s.readers[1].stride};
#pragma GCC unroll 2
  for (int w = 0; w < Writing; ++w) {
    writer[w] = s.writers[w].rows + written * group * writer_stride[w];
    load_values(s.writers[w], written, column, value[w]);
  }
#pragma GCC unroll 2
  for (int r = 0; r < Reading; ++r) {
    reader[r] = s.readers[r].rows + asked * group * reader_stride[r];
#pragma GCC unroll 8
    for (int i = 0; i < group * Packets; ++i) sum[r][i / Packets][i % Packets] = P(T(0));
  }
  const T* fade = Fade == fading::none ? nullptr : s.fades + written * s.fade_stride;
  if constexpr (Fade == fading::columns)
#pragma GCC unroll 2
    for (int j = 0; j < Packets; ++j) shade[j] = P::load(fade + column + j * P::width);
  const index_t rows = s.rows;
  for (index_t k = 0; k < rows; ++k) {
    P now[Packets];
#pragma GCC unroll 2
    for (int j = 0; j < Packets; ++j) {
      now[j] = P::load(strip + j * P::width);
      if constexpr (Fade == fading::rows) now[j] = now[j] * P(fade[k]);
      if constexpr (Fade == fading::columns) now[j] = now[j] * shade[j];
    }
#pragma GCC unroll 2
    for (int w = 0; w < Writing; ++w)
#pragma GCC unroll 4
      for (int i = 0; i < group; ++i) {
        const P number(writer[w][i * writer_stride[w] + k]);
#pragma GCC unroll 2
        for (int j = 0; j < Packets; ++j) now[j] = fma(number, value[w][i][j], now[j]);
      }
    if constexpr (Writing > 0 || Fade != fading::none) {
#pragma GCC unroll 2
      for (int j = 0; j < Packets; ++j) now[j].store(strip + j * P::width);
    }
    strip += Packets * P::width;
#pragma GCC unroll 2
    for (int r = 0; r < Reading; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < group; ++i) {
        const P number(reader[r][i * reader_stride[r] + k]);
#pragma GCC unroll 2
        for (int j = 0; j < Packets; ++j) sum[r][i][j] = fma(number, now[j], sum[r][i][j]);
      }
  }
#pragma GCC unroll 2
  for (int r = 0; r < Reading; ++r) store_reads(s.readers[r], asked, column, s.columns, sum[r]);
}

/// Step i of a strip: what group i asks for is read while what the group before it wrote is added; the last step adds alone.
/// `finish(group, column, packets)` is called when the reads of a group are there and before it writes.
template <class T, int Writing, int Reading, fading Fade, int Packets, class Finish>
inline void scan_step(T* strip, const Scan<T>& s, index_t column, index_t i, Finish&& finish) {
  const index_t here = s.backwards ? s.groups - 1 - i : i, before = s.backwards ? here + 1 : here - 1;
  constexpr bool changes = Writing > 0 || Fade != fading::none;
  if (i == s.groups) {
    if constexpr (changes) pass<T, Writing, 0, Fade, Packets>(strip, s, column, before, before);
    return;
  }
  if (i > 0 && changes)
    pass<T, Writing, Reading, Fade, Packets>(strip, s, column, before, here);
  else if constexpr (Reading > 0)
    pass<T, 0, Reading, fading::none, Packets>(strip, s, column, here, here);
  finish(here, column, Packets);
}

template <class T, int Writing, int Reading, fading Fade, class Finish>
void scan_strips(const Scan<T>& s, T* state, Finish&& finish) {
  constexpr int packets = static_cast<int>(strip_columns<T> / Packet<T>::width);
  constexpr index_t width = strip_columns<T>;
  index_t column = 0;
  // Two strips take turns: while a group is finished in one, which is a chain of few operations, the walk over the other goes on.
  for (; s.rows <= rows_of_pairs && column + 2 * width <= s.columns; column += 2 * width) {
    T *left = state + column * s.rows, *right = left + width * s.rows;
    for (index_t i = 0; i <= s.groups; ++i) {
      scan_step<T, Writing, Reading, Fade, packets>(left, s, column, i, finish);
      scan_step<T, Writing, Reading, Fade, packets>(right, s, column + width, i, finish);
    }
  }
  for (; column + width <= s.columns; column += width) {
    for (index_t i = 0; i <= s.groups; ++i) scan_step<T, Writing, Reading, Fade, packets>(state + column * s.rows, s, column, i, finish);
  }
  if (column < s.columns) {
    for (index_t i = 0; i <= s.groups; ++i) scan_step<T, Writing, Reading, Fade, 1>(state + column * s.rows, s, column, i, finish);
  }
}

template <class T, class Finish>
void scan_state(const Scan<T>& s, T* state, Finish&& finish) {
  const auto with_fade = [&]<int Writing, int Reading>() {
    if (s.fade == fading::none)
      scan_strips<T, Writing, Reading, fading::none>(s, state, finish);
    else if (s.fade == fading::rows)
      scan_strips<T, Writing, Reading, fading::rows>(s, state, finish);
    else
      scan_strips<T, Writing, Reading, fading::columns>(s, state, finish);
  };
  const auto with_readers = [&]<int Writing>() {
    if (s.reading == 2)
      with_fade.template operator()<Writing, 2>();
    else if (s.reading == 1)
      with_fade.template operator()<Writing, 1>();
    else if constexpr (Writing > 0)
      with_fade.template operator()<Writing, 0>();
  };
  if (s.groups == 0) return;
  if (s.writing == 2)
    with_readers.template operator()<2>();
  else if (s.writing == 1)
    with_readers.template operator()<1>();
  else
    with_readers.template operator()<0>();
}

}  // namespace recollect::detail
