// SPDX-License-Identifier: BSD-3-Clause
/// A warp's 16 columns of S, or of its gradient, transposed and in registers, and what the chunked kernels of both directions
/// (fast_weight_chunk.hpp, fast_weight_chunk_reverse.hpp) do with them and with the columns of a chunk's tokens.
#pragma once

#include "recollect/cuda/fast_weight_tokens.hpp"

namespace recollect::cuda {

template <class T, int Width, bool Delta>
struct FastWeightColumns : FastWeightTokens<T, Width, Delta> {
  using Made = FastWeightTokens<T, Width, Delta>;
  using Arguments = FastWeightArguments;
  using Made::chunk, Made::parts, Made::narrow_range;
  using typename Made::Products, typename Made::Rows, typename Made::Sequence, typename Made::Square, typename Made::State,
      typename Made::Tokens;

  /// S in 16 bits as left operands are in registers: for every 16 columns and 16 channels four matrices of 8 x 8, each of them 128 bytes.
  static constexpr index_t state_words = Width * Width / 2;
  static constexpr int operand_words = 128;
  static constexpr int operand_at(int columns, int channels) { return (columns / 16 * (Width / 16) + channels / 16) * operand_words; }

 protected:
  /// visit(number, its place in a state's rows or -1) for all numbers of a lane.
  template <class Thread, class From, class Numbers, class Visit>
  static constexpr void for_state(const Thread& thread, const Arguments& a, const Sequence& s, const From& rows, index_t begin,
                                  Numbers& state, Visit&& visit) {
    const int lane = lane_of(thread), column = s.column + Made::first_column(thread) + Made::column_at(lane, 0);
    index_t place = begin + Made::token_at(lane, 0, 0) * rows.time + column * rows.inner;
#pragma unroll
    for (int n = 0; n < Width / 8; ++n, place += 8 * rows.time)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        visit(state[n][i], column + i / 2 * 8 < a.values ? place + i % 2 * rows.time + i / 2 * 8 * rows.inner : -1);
  }

  static constexpr void clear(Tokens& sums) {
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0;
  }

  /// f(number, its token, n, i) for all numbers of a lane.
  template <class Thread, class F>
  static constexpr void each(const Thread& thread, Tokens& numbers, F&& f) {
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(numbers[n][i], Made::token_at(lane_of(thread), n, i), n, i);
  }

  /// Puts a warp's columns of S, divided by a power of two, where a kernel finds them again.
  template <class Thread>
  static constexpr void put_state(const Thread& thread, const State& state, float down, std::uint32_t* to) {
#pragma unroll
    for (int k = 0; k < Width; k += 16) {
      Words words;
      round<T>(thread, state[k / 8], state[k / 8 + 1], down, words);
#pragma unroll
      for (int w = 0; w < 4; ++w) to[operand_at(Made::first_column(thread), k) + w * warp_size + lane_of(thread)] = words[w];
    }
  }

  /// The warp's columns of a tile, turned; they are an operand at the same time.
  template <class Thread>
  static constexpr void get_columns(const Thread& thread, std::uint32_t tile, Tokens& numbers) {
#pragma unroll
    for (int p = 0; p < parts; ++p) {
      Words words;
      thread.template matrices<true>(words, Rows::moved(tile + Rows::across(lane_of(thread)), 16 * p, Made::first_column(thread)));
#pragma unroll
      for (int w = 0; w < 4; ++w)
#pragma unroll
        for (int i = 0; i < 2; ++i) numbers[2 * p + w / 2][w % 2 * 2 + i] = half_of<T>(words[w], i);
    }
  }
  template <class Thread>
  static constexpr void put_columns(const Thread& thread, const Tokens& numbers, char* tile) {
    const int lane = lane_of(thread), first = Made::first_column(thread);
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t word = thread.flipped(thread.template rounded<T>(numbers[n][2 * half], numbers[n][2 * half + 1]));
        const std::uint32_t place = Rows::offset(8 * n + lane / 4, first + 8 * half + lane % 4 * 2);
        *reinterpret_cast<std::uint32_t*>(tile + place) = word;
      }
  }

  /// sums from the right side times the inverse of I + A, or of its transpose; first they are multiplied by `down`. A product of two
  /// numbers in two parts each has three products of parts.
  template <bool transposed, class Thread>
  static constexpr void solve(const Thread& thread, const Products& from, float down, Tokens& sums) {
    Words words[parts], rest[parts];
    const int lane = lane_of(thread);
    const std::uint32_t whole = thread.address(from.solve[0]) + (transposed ? Square::down(lane) : Square::across(lane));
    const auto add_three = [&](int p, int q, Sums& left, Sums& right) {
      const std::uint32_t place = transposed ? Square::moved(whole, 16 * q, 16 * p) : Square::moved(whole, 16 * p, 16 * q);
      add<T, transposed>(thread, words[q], place, left, right);
      add<T, transposed>(thread, rest[q], place, left, right);
      add<T, transposed>(thread, words[q], place + sizeof from.solve[0], left, right);
    };
#pragma unroll
    for (int n = 0; n < parts; ++n) {
      const int p = transposed ? parts - 1 - n : n;
      Sums &left = sums[2 * p], &right = sums[2 * p + 1];
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] *= down, right[i] *= down;
#pragma unroll
      for (int m = 0; m < n; ++m) add_three(p, transposed ? parts - 1 - m : m, left, right);
      split<T>(thread, left, right, words[p], rest[p]);
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = right[i] = 0;
      add_three(p, p, left, right);
      split<T>(thread, left, right, words[p], rest[p]);
    }
  }

  /// S <- fade S + (a tile's rows)^T (numbers times size.up), the numbers in two parts if strict.
  template <class Thread>
  static constexpr void fold(const Thread& thread, std::uint32_t rows, float fade, const Fit& size, bool strict, const Tokens& numbers,
                             State& state) {
    const int lane = lane_of(thread);
    fade *= size.down;
#pragma unroll
    for (int n = 0; n < Width / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] *= fade;
#pragma unroll
    for (int p = 0; p < parts; ++p) {
      const auto add_rows = [&](const Words& left) {
#pragma unroll
        for (int k = 0; k < Width; k += 16)
          add<T, true>(thread, left, Rows::moved(rows + Rows::down(lane), 16 * p, k), state[k / 8], state[k / 8 + 1]);
      };
      Words words;
      if (strict) {
        Words rest;
        split<T>(thread, numbers[2 * p], numbers[2 * p + 1], words, rest);
        add_rows(rest);
      }
      round<T>(thread, numbers[2 * p], numbers[2 * p + 1], 1, words);
      add_rows(words);
    }
    if constexpr (narrow_range)
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) state[n][i] *= size.up;
  }

  /// Where a sequence's rows go, from a warp's first column on: `columns` of it are there.
  template <class P>
  struct Target {
    const TokenRows<P>& rows;
    index_t begin, tokens;
    int columns;
  };

  /// Numbers of 16 bits go out by way of the warp's own columns of a tile, which are not needed any more; float32 goes straight.
  template <class Thread>
  static constexpr void store(const Thread& thread, const Target<void>& to, char* tile, index_t c, Tokens& numbers) {
    const int lane = lane_of(thread), first = Made::first_column(thread);
    if (to.rows.type == dtype::float32) {
      each(thread, numbers, [&](float number, int t, int, int i) {
        const index_t token = c * chunk + t, column = first + Made::column_at(lane, i);
        if (token < to.tokens && column < to.columns)
          cuda::write<float>(to.rows.data, to.begin + token * to.rows.time + column * to.rows.inner, number);
      });
      return;
    }
    put_columns(thread, numbers, tile);
    thread.warp_barrier();
#pragma unroll
    for (int i = 0; i < chunk / 16; ++i) {
      const int row = 16 * i + lane / 2, column = first + lane % 2 * 8;
      const index_t token = c * chunk + row;
      if (token >= to.tokens || column >= to.columns) continue;
      T* const place = static_cast<T*>(to.rows.data) + to.begin + token * to.rows.time + column;
      *reinterpret_cast<Four*>(place) = *reinterpret_cast<const Four*>(tile + Rows::offset(row, column));
    }
  }
};

}  // namespace recollect::cuda
