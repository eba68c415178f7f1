// SPDX-License-Identifier: BSD-3-Clause
/// What a chunk of tokens is made of: which readers and writers a rule has, where their rows lie, and room for what comes of them.
#pragma once

#include "recollect/ops/state_scan.hpp"

namespace recollect::detail {

struct ChunkForm {
  bool query = true, write = true, remove = false, erase = false, gated = false;
  int readers() const { return int{query} + int{remove}; }
  int writers() const { return int{write} + int{erase}; }
  int query_slot() const { return remove ? 1 : 0; }
  int solved_slot() const { return erase ? 1 : 0; }  // the writer whose values come of u
};

/// Rows that may be a caller's own: read where they lie, `stride` apart.
template <class P>
struct Lying {
  P* rows = nullptr;
  index_t stride = 0;
};

/// All rows of a chunk, padded to whole groups and packets with tokens that do nothing. Slots: b before q, w before a.
template <class T>
struct ChunkRows {
  index_t groups = 0;
  std::array<Lying<const T>, 2> reader{}, writer{};  // (tokens, K)
  std::array<T*, 2> faded_reader{}, faded_writer{};  // (tokens, K), where something decays
  Lying<const T> given;                              // (tokens, V): v
  std::array<T*, 2> value{}, read{};                 // (tokens, V): y and u; what b and q read
  Lying<T> out, written;                             // (tokens, V): what q reads in the end; v + u, if it is to be kept
  T *decay = nullptr, *end = nullptr;                // (tokens, K); (groups, K): the product over a group
  T* coefficients = nullptr;                         // (groups, writer, group, group)

  // What keys that are used as they are leave to be done here: y = strength (v + u) instead of a writer of that strength, a reader b
  // that is a key and therefore reads with the other sign and after the decay, and a scale of what q reads.
  const T* strength = nullptr;
  bool removes_key = false;
  T scale = 1;

  T* square(index_t g, int w) const { return coefficients + (g * 2 + w) * group * group; }
};

/// What the backward pass makes of them. d_reader and d_writer first hold the gradients of the faded rows.
template <class T>
struct ChunkGradients {
  std::array<T*, 2> reader{}, writer{}, value{};
  const T* d_out = nullptr;
  T* coefficients = nullptr;
  T* decay = nullptr;     // (tokens, K), of tokens with a small decay
  bool* small = nullptr;  // (tokens): whether they have one

  T* square(index_t g, int w) const { return coefficients + (g * 2 + w) * group * group; }
};

/// Rows of arrays whose sizes are powers of two would all begin at the same place of a page and wait for each other in the first-level
/// cache: some lines between them keep them apart.
template <class T>
T* take_rows(Scratch& scratch, index_t count) {
  return scratch.take<T>(count + 5 * 64 / static_cast<index_t>(sizeof(T)));
}

}  // namespace recollect::detail
