// SPDX-License-Identifier: BSD-3-Clause
/// Tiles of stored rows, brought into cache in the two forms that products need: the rows themselves, padded to whole packets, and
/// panels with the rows as columns. Half-width storage is widened on the way, so nothing after this knows of it.
#pragma once

#include <algorithm>
#include <cstring>

#include "recollect/core/prefetch.hpp"
#include "recollect/core/scratch.hpp"
#include "recollect/core/view.hpp"
#include "recollect/ops/packet.hpp"
#include "recollect/ops/tile_product.hpp"

namespace recollect::detail {

/// N rows of some width, in any element type and at any strides.
struct StoredRows {
  const void* data = nullptr;
  dtype type = dtype::none;
  index_t width = 0, row = 0, column = 0;

  template <class S>
  const S* at(index_t i) const {
    return static_cast<const S*>(data) + i * row;
  }
};

template <class T>
struct Tile {
  const T* rows = nullptr;  // (count, padded width)
  index_t row_stride = 0;
  T* buffer = nullptr;         // the rows, unless they can be used where they lie
  T* panels = nullptr;         // strips of `panel_columns` rows, turned: (strip, padded width, panel_columns)
  const char* next = nullptr;  // where the rows behind these are stored, one after the other in numbers of so many bytes; null if not
  index_t next_size = 0;
};

/// The shape of register tiles: as many sums as fit the registers beside one strip of columns and one number.
template <class T>
struct Registers {
  static constexpr bool many = Packet<T>::registers >= 32;
  static constexpr int score_rows = many ? 8 : 4, score_packets = 3;
  static constexpr int read_rows = many ? 6 : 4, read_packets = many ? 4 : 3;
  static constexpr index_t panel_columns = score_packets * Packet<T>::width;
};

template <class T>
constexpr index_t padded(index_t width) {
  constexpr index_t packet = Packet<T>::width;
  return (width + packet - 1) / packet * packet;
}

/// How many stored rows make a tile: rows and panels together stay well inside the second-level cache.
template <class T>
index_t tile_rows(index_t width) {
  constexpr index_t bytes = 96 << 10, step = Registers<T>::panel_columns;
  const index_t fitting = bytes / static_cast<index_t>(sizeof(T)) / std::max<index_t>(padded<T>(width), 1) / step * step;
  return std::clamp<index_t>(fitting, step, 8 * step);
}

template <class S, class T>
void copy_rows(const StoredRows& stored, index_t first, index_t count, T* to) {
  const index_t stride = padded<T>(stored.width);
  const bool dense = stored.column == 1;
  if constexpr (std::is_same_v<S, T>)
    if (dense && stored.row == stride && stored.width == stride) {
      std::memcpy(to, stored.at<S>(first), static_cast<std::size_t>(count * stride) * sizeof(T));
      return;
    }
  for (index_t i = 0; i < count; ++i) {
    const S* from = stored.at<S>(first + i);
    T* row = to + i * stride;
    if (dense)
      for (index_t k = 0; k < stored.width; ++k) row[k] = widen<T>(from[k]);
    else
      for (index_t k = 0; k < stored.width; ++k) row[k] = widen<T>(from[k * stored.column]);
    std::fill(row + stored.width, row + stride, T(0));
  }
}

/// Whether rows are copied into the tile although they could be used where they lie.
enum class copying {
  avoided,    // they are used too few times to be worth it
  unaligned,  // a packet that crosses two cache lines costs two loads: only if one does
  always,     // they will be changed
};

template <class T>
void load_rows(const StoredRows& stored, index_t first, index_t count, Tile<T>& tile, copying copy) {
  tile.rows = tile.buffer;
  tile.row_stride = padded<T>(stored.width);
  tile.next_size = bytes_of(stored.type);
  const bool dense = stored.column == 1 && stored.row == stored.width;
  tile.next = dense ? static_cast<const char*>(stored.data) + (first + count) * stored.row * tile.next_size : nullptr;
  switch (stored.type) {
    case dtype::float16:
      return copy_rows<float16>(stored, first, count, tile.buffer);
    case dtype::bfloat16:
      return copy_rows<bfloat16>(stored, first, count, tile.buffer);
    case dtype_of<T>:
      break;
    default:
      return copy_rows<float>(stored, first, count, tile.buffer);
  }
  const T* rows = stored.at<T>(first);
  const bool aligned = reinterpret_cast<std::uintptr_t>(rows) % (Packet<T>::width * sizeof(T)) == 0;
  const bool usable = dense && stored.width % Packet<T>::width == 0;
  if (usable && (copy == copying::avoided || (copy == copying::unaligned && aligned)))
    tile.rows = rows;
  else
    copy_rows<T>(stored, first, count, tile.buffer);
}

/// Asks for as much memory as is in a square that is turned meanwhile, in the order of memory: no hardware sees the pattern in rows that
/// are read side by side. Of the next tile for the second-level cache, more of whose misses can be under way, and of the next square for
/// the first.
template <class T>
void fetch_ahead(const Tile<T>& tile, const T* square) {
  constexpr index_t packet = Packet<T>::width, numbers = packet * packet, line = 64, most = (16 << 10) / sizeof(T);
  if (tile.next) {
    const char* next = tile.next + (square - tile.rows) * tile.next_size;
    for (index_t i = 0; i < numbers * tile.next_size; i += line) prefetch<cache::second>(next + i);
  }
  const index_t after = packet * tile.row_stride;
  if (after <= most)
    for (index_t i = 0; i < numbers; i += line / static_cast<index_t>(sizeof(T))) prefetch(square + after + i);
}

/// Turns one strip of rows, from `first` on, into a panel; columns beyond `count` are zero.
template <class T, bool Fetch = false>
void turn_strip(const Tile<T>& tile, index_t first, index_t count, T* panel) {
  using P = Packet<T>;
  constexpr index_t columns = Registers<T>::panel_columns;
  const index_t width = tile.row_stride;
  for (index_t j = 0; j < columns; j += P::width) {
    const T* rows = tile.rows + (first + j) * width;
    const index_t there = std::min<index_t>(count - first - j, P::width);
    for (index_t k = 0; k < width; k += P::width) {
      if constexpr (Fetch) fetch_ahead(tile, rows + k * P::width);  // as far on as in the order of memory
      P square[P::width];
      if (there == P::width) {
#pragma GCC unroll 16
        for (index_t i = 0; i < P::width; ++i) square[i] = P::load(rows + i * width + k);
      } else {
        for (index_t i = 0; i < P::width; ++i) square[i] = i < there ? P::load(rows + i * width + k) : P(T(0));
      }
      transpose(square);
#pragma GCC unroll 16
      for (index_t i = 0; i < P::width; ++i) square[i].store(panel + (k + i) * columns + j);
    }
  }
}

template <class T>
void turn_rows(index_t count, Tile<T>& tile) {
  for (index_t first = 0; first < count; first += Registers<T>::panel_columns)
    turn_strip(tile, first, count, tile.panels + first * tile.row_stride);
}

/// scores(r, i) = sum_k cues(r, k) x_i(k) for the rows of a panel.
template <class T>
void score_strip(index_t rows, Factor<T> cues, index_t width, const T* panel, T* scores, index_t stride) {
  using R = Registers<T>;
  strip_product<T, R::score_rows, R::score_packets, start::zero>(rows, cues, panel, R::panel_columns, scores, stride, width, nullptr);
}

/// The same for all rows of a tile in panel form.
template <class T>
void score(index_t rows, Factor<T> cues, index_t width, const Tile<T>& tile, index_t count, T* scores, index_t stride) {
  for (index_t first = 0; first < count; first += Registers<T>::panel_columns)
    score_strip(rows, cues, width, tile.panels + first * tile.row_stride, scores + first, stride);
}

/// c(r, :) = start + sum_i weights(r, i) b(i, :), in strips of as many packets as the registers hold, then what is left.
template <class T, start Start, int Packets = Registers<T>::read_packets>
void read(index_t rows, Factor<T> weights, const T* b, index_t b_stride, index_t columns, index_t depth, T* c, index_t c_stride,
          const T* row_scale) {
  constexpr index_t strip = Packets * Packet<T>::width;
  index_t first = 0;
  for (; first + strip <= columns; first += strip)
    strip_product<T, Registers<T>::read_rows, Packets, Start>(rows, weights, b + first, b_stride, c + first, c_stride, depth, row_scale);
  if constexpr (Packets > 1)
    if (first < columns)
      read<T, Start, Packets - 1>(rows, weights, b + first, b_stride, columns - first, depth, c + first, c_stride, row_scale);
}

/// to(i, :) += from(i, :), from padded rows to dense ones.
template <class T>
void add_rows(const T* from, index_t stride, index_t count, T* to, index_t width) {
  for (index_t i = 0; i < count; ++i)
    for (index_t k = 0; k < width; ++k) to[i * width + k] += from[i * stride + k];
}

}  // namespace recollect::detail
