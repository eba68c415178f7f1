// SPDX-License-Identifier: BSD-3-Clause
/// What the kernels of recall_backward_sm80.hpp are given: a table of rows that is made once, so that blocks that walk over rows need
/// neither divisions nor numbers from four places; and which part of the work a block has.
#pragma once

#include "recollect/cuda/recall_backward.hpp"

namespace recollect::cuda {

/// What the kernels want to know of a row, beside where it is: how a product with its query becomes a weight, and that and a product with
/// its d_out the gradient of its score. It sees the patterns before `limit`.
struct alignas(16) RowTerms {
  float factor = 0, shift = 0, dot = 0;
  int limit = 0;

  constexpr float scale() const { return factor * static_cast<float>(ln_2); }
};
struct alignas(16) RowPlaces {
  index_t query = -1, d_out = -1;
};

struct RecallBackwardSm80Arguments {
  RecallBackwardArguments backward;
  RowTerms* terms = nullptr;  // of all rows of an entry, and of none up to a multiple of `own`; then of the next
  RowPlaces* places = nullptr;

  static constexpr int own = 128, met = 32;  // numbers of rows or patterns (recall_halves.hpp)

  constexpr index_t row_tiles() const { return tiles_of(backward.recall.rows, own); }
  constexpr index_t pattern_tiles() const { return tiles_of(backward.recall.patterns, own); }
  /// Of the walks over `count` rows or patterns: each has 16 tiles at least.
  constexpr index_t splits(index_t own_tiles, index_t count) const {
    return splits_of(backward.recall.outer * own_tiles, count / (4 * met));
  }
  constexpr index_t table_rows() const { return backward.recall.outer * row_tiles() * own; }
};

/// Fills the table of rows.
struct RecallBackwardTable {
  using Arguments = RecallBackwardSm80Arguments;
  static constexpr int threads = Arguments::own;
  static constexpr const char* name = "recall_backward_table";

  static constexpr index_t blocks(const Arguments& a) { return a.backward.recall.outer * a.row_tiles(); }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t o = thread.block() / a.row_tiles(), r = thread.block() % a.row_tiles() * threads + thread.index();
    const Row row = r < a.backward.recall.rows ? row_of(a.backward, o, r) : Row{};
    const bool weighs = row.sight.limit > 0;
    const index_t to = thread.block() * threads + thread.index();
    a.terms[to] = weighs ? RowTerms{row.factor, row.shift, row.dot, static_cast<int>(row.sight.limit)} : RowTerms{};
    a.places[to] = weighs ? RowPlaces{row.query, row.d_out} : RowPlaces{};
  }
};

/// Which part of the work a block has.
struct RecallPart {
  int own, o, split;  // tile of its own, entry, part of the walk
  int begin, end;     // tiles that it walks over
  int limit;          // of patterns that some row of its own sees

  constexpr RecallPart(index_t block, index_t own_tiles, index_t splits)
      : own(static_cast<int>(block % own_tiles)),
        o(static_cast<int>(block / own_tiles / splits)),
        split(static_cast<int>(block / own_tiles % splits)) {}
  constexpr void walk(index_t tiles, index_t splits) {
    begin = static_cast<int>(first_tile(tiles, split, splits));
    end = static_cast<int>(first_tile(tiles, split + 1, splits));
  }
};

}  // namespace recollect::cuda
