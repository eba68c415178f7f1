// SPDX-License-Identifier: BSD-3-Clause
/// Products of tiles in shared memory. 256 threads are a square of 16 x 16: thread (y, x) works on rows y, y + 16, ... of one operand and
/// rows x, x + 16, ... of the other. The 16 threads of one y are neighbours in a warp.
#pragma once

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/number.hpp"

namespace recollect::cuda {

inline constexpr int square = 16;

/// Four numbers that are moved at once.
struct alignas(16) Four {
  float at[4];
};

template <class Float>
constexpr Four four(const Float* from) {
  return *reinterpret_cast<const Four*>(from);
}

/// Tiles of 16 Rows rows, D numbers wide. The numbers of a row in shared memory are followed by four unused ones, so that neighbouring
/// rows begin four banks apart and eight of them can be read at once.
template <int D, int Rows>
struct Tile {
  static_assert(D % 64 == 0);
  static constexpr int threads = square * square;
  static constexpr int width = D, rows = square * Rows, per_thread = Rows;
  static constexpr int pitch = D + 4, weight_pitch = rows + 4;
  static constexpr int floats = rows * pitch, weight_floats = rows * weight_pitch;
  static constexpr int quads = D / 64;  // of the columns 4 x + 64 m, m < quads, a thread holds four each

  using Scores = float[Rows][Rows];
  using Sums = float[Rows][4 * quads];
};

struct Place {
  int y, x;
};

template <class Thread>
constexpr Place place_of(const Thread& thread) {
  return {thread.index() / square, thread.index() % square};
}

/// Rows of memory into a tile: row r begins at element offset_of(r), or is not there if that is negative. What is not there is zero.
/// Returns whether this thread met a number that is not finite.
template <class T, class Thread, class OffsetOf>
constexpr bool load_tile(const Thread& thread, const void* data, dtype type, index_t inner, int width, float* tile, OffsetOf&& offset_of) {
  bool odd = false;
  visit_stored(type, [&]<class Stored>() {
    for (int i = thread.index(); i < T::rows * T::width; i += T::threads) {
      const int r = i / T::width, k = i % T::width;
      const index_t offset = offset_of(r);
      const float number = offset >= 0 && k < width ? read<Stored>(data, offset + k * inner) : 0.0f;
      odd |= !is_finite(number);
      tile[r * T::pitch + k] = number;
    }
  });
  return odd;
}

/// scores[i][j] = row y + 16 i of a . row x + 16 j of b, over `depth` numbers.
template <class T>
constexpr void products(Place at, const float* a, const float* b, int depth, typename T::Scores& scores) {
  for (int i = 0; i < T::per_thread; ++i)
    for (int j = 0; j < T::per_thread; ++j) scores[i][j] = 0;
  for (int k = 0; k < depth; k += 4) {
    Four left[T::per_thread], right[T::per_thread];
    for (int i = 0; i < T::per_thread; ++i) left[i] = four(a + (at.y + square * i) * T::pitch + k);
    for (int j = 0; j < T::per_thread; ++j) right[j] = four(b + (at.x + square * j) * T::pitch + k);
    for (int i = 0; i < T::per_thread; ++i)
      for (int j = 0; j < T::per_thread; ++j)
        for (int c = 0; c < 4; ++c) scores[i][j] = std::fma(left[i].at[c], right[j].at[c], scores[i][j]);
  }
}

/// weights[y + 16 i][x + 16 j] = scores[i][j]
template <class T>
constexpr void put_weights(Place at, const typename T::Scores& scores, float* weights) {
  for (int i = 0; i < T::per_thread; ++i)
    for (int j = 0; j < T::per_thread; ++j) weights[(at.y + square * i) * T::weight_pitch + at.x + square * j] = scores[i][j];
}

template <class T>
constexpr void clear(typename T::Sums& sums) {
  for (int i = 0; i < T::per_thread; ++i)
    for (int m = 0; m < 4 * T::quads; ++m) sums[i][m] = 0;
}

/// sums[i] += sum_c weights[y + 16 i][c] rows[c], in the columns of this thread. Guarded, a weight of 0 leaves a row out, whatever it
/// holds.
template <class T, bool guarded>
constexpr void add_weighted(Place at, const float* weights, const float* rows, typename T::Sums& sums) {
  for (int c = 0; c < T::rows; c += 4) {
    Four weight[T::per_thread];
    for (int i = 0; i < T::per_thread; ++i) weight[i] = four(weights + (at.y + square * i) * T::weight_pitch + c);
    for (int u = 0; u < 4; ++u)
      for (int m = 0; m < T::quads; ++m) {
        const Four row = four(rows + (c + u) * T::pitch + 4 * at.x + 64 * m);
        for (int i = 0; i < T::per_thread; ++i)
          for (int n = 0; n < 4; ++n)
            if (!guarded || weight[i].at[u] != 0) sums[i][4 * m + n] = std::fma(weight[i].at[u], row.at[n], sums[i][4 * m + n]);
      }
  }
}

template <class T>
constexpr void add_weighted(Place at, bool guarded, const float* weights, const float* rows, typename T::Sums& sums) {
  if (guarded)
    add_weighted<T, true>(at, weights, rows, sums);
  else
    add_weighted<T, false>(at, weights, rows, sums);
}

/// Sums into a tile, from which they are stored.
template <class T>
constexpr void put_sums(Place at, const typename T::Sums& sums, float* tile) {
  for (int i = 0; i < T::per_thread; ++i)
    for (int m = 0; m < T::quads; ++m)
      for (int n = 0; n < 4; ++n) tile[(at.y + square * i) * T::pitch + 4 * at.x + 64 * m + n] = sums[i][4 * m + n];
}

/// A tile into rows of memory, or added to them; see load_tile.
template <class T, class Thread, class OffsetOf>
constexpr void store_tile(const Thread& thread, const float* tile, void* data, dtype type, index_t inner, int width, OffsetOf&& offset_of,
                          bool adds = false) {
  visit_stored(type, [&]<class Stored>() {
    for (int i = thread.index(); i < T::rows * T::width; i += T::threads) {
      const int r = i / T::width, k = i % T::width;
      const index_t offset = offset_of(r);
      if (offset < 0 || k >= width) continue;
      const float before = adds ? read<Stored>(data, offset + k * inner) : 0.0f;
      write<Stored>(data, offset + k * inner, before + tile[r * T::pitch + k]);
    }
  });
}

}  // namespace recollect::cuda
