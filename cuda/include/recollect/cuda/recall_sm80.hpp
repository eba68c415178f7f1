// SPDX-License-Identifier: BSD-3-Clause
/// Attention and Hopfield retrieval for the tensor cores of every card since compute capability 8.0: rows of up to 128 numbers, memories
/// packed by recall_half_pack.hpp; no mask, no bias. A warp owns 16 or 32 rows of queries, as registers allow. Tiles of patterns pass
/// through a ring of slots in shared memory, keys and values in turn where they differ; softmax is taken in registers, and weights are left
/// operands where they are.
///
/// Numbers of float32 are split into two of float16: a product of two numbers has three products of parts, and what is dropped is 2^-22
/// of it. Tensor cores cut sums off instead of rounding them, so that long sums would lose more than float32 does: the small products are
/// summed apart from the large ones, and what a tile is read for is summed by itself before it is added to what was read before it.
/// Powers of two keep float16 in its range: one for a query, one for a tile, one for the weights.
///
/// A row is doubtful if a number that is not finite comes before it, or if its scores can be wrong by more than float32 makes them. What
/// is doubtful is written down and left to RecallForward. Otherwise numbers are those of recall_forward.hpp but that 16-bit memories meet
/// weights that are rounded to 16 bits. What a thread of such a kernel has is told in fast_weight_chunk.hpp.
#pragma once

#include "recollect/cuda/recall_forward.hpp"
#include "recollect/cuda/recall_half_rows.hpp"

namespace recollect::cuda {

struct RecallSm80Arguments {
  RecallArguments recall;
  const char *keys = nullptr, *values = nullptr;  // packed
};

template <class T, int Width>
struct RecallSm80 : RecallHalfRows<T, Width> {
  using Arguments = RecallSm80Arguments;
  static constexpr int architecture = 80;
  static constexpr const char* name = "recall_sm80";
  using Rows = RecallHalfRows<T, Width>;
  using Rows::rows, Rows::split, Rows::threads, Rows::warp_rows;

  static constexpr index_t splits(const RecallArguments& a) {
    return splits_of(a.outer * tiles_of(a.rows, rows), tiles_of(a.patterns, patterns));
  }
  static constexpr index_t blocks(const Arguments& a) { return a.recall.outer * a.recall.splits * tiles_of(a.recall.rows, rows); }
  static constexpr index_t shared_bytes() { return Rows::bytes; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const Part part = part_of(a, thread.block());
    for (int item = 0; item < slots - 1; ++item) fetch(thread, arguments, part, item);
    const int first = part.first_row + warp_begin(thread);  // of the warp
    Rows::load_queries(thread, a, part.outer, first);
    const index_t last = first + warp_rows < a.rows ? first + warp_rows - 1 : a.rows - 1;
    const int seen = first < a.rows ? static_cast<int>(a.limit(first, last)) : 0;
    State state[own_rows];
    Pieces<Width> sums;
    clear(sums);
    Sizes sizes;
    int item = 0;
    for (int tile = part.tile; tile < part.end; ++tile, ++item) {
      const bool looks = tile * patterns < seen;
      Weights weights, rest;
      float shrink[own_rows] = {}, gain[own_rows] = {};
      int slot = arrived(thread, arguments, part, item);
      if (looks) {
        Pieces<patterns> scores;
        Rows::compare(thread, slot, scores);
        weigh(thread, sizes.of_keys(line(thread, slot)), tile * patterns, scores, state, shrink, gain);
        round(thread, scores, weights, rest);
      }
      if (!a.shared()) slot = arrived(thread, arguments, part, ++item);
      if (looks) add_weighted(thread, slot, sizes.of_values(line(thread, slot)), weights, rest, shrink, gain, sums);
    }
    finish(thread, a, part, first, sizes, state, sums);
  }

 private:
  using Rows::at, Rows::clear, Rows::halves, Rows::line, Rows::line_begin, Rows::own_rows, Rows::parts, Rows::patterns, Rows::slot_begin,
      Rows::slots, Rows::table, Rows::visit_query, Rows::warp_begin;
  using typename Rows::Half, typename Rows::Known, typename Rows::Memories, typename Rows::Tile;
  template <int columns>
  using Pieces = typename Rows::template Pieces<columns>;
  using State = math::OnlineSoftmax<float>;  // of a lane's rows; sums are of its own columns until the end
  using Weights = Words[halves][patterns / 16];
  /// Weights are up to 2^lifted: float16 has few numbers near 0.
  static constexpr int lifted = dtype_of<Half> == dtype::float16 ? 14 : 0;
  static constexpr float lift_down = lifted == 0 ? 1.0f : 0x1p-14f;
  /// In the place of queries and ring at the end: sums, and the states of rows.
  static constexpr std::uint32_t ends_begin = rows * Width * sizeof(float);

  /// What a block does: some rows of an outer entry, some tiles of its patterns. No card has room for rows that an int cannot count.
  struct Part {
    int outer = 0, split = 0, first_row = 0, tile = 0, end = 0, tiles = 0;
  };

  /// What the tiles of a warp were brought into range by.
  struct Sizes {
    float largest_key = 0;
    bool lost = false;

    constexpr float of_keys(float up) {
      largest_key = up > largest_key ? up : largest_key;
      return of_values(up);
    }
    constexpr float of_values(float up) {
      lost |= up == infinity;
      return up;
    }
  };

  /// The last rows come first: of causal ones they have the most to do.
  static constexpr Part part_of(const RecallArguments& a, index_t block) {
    const index_t row_tiles = tiles_of(a.rows, rows), rest = block / row_tiles, split = rest % a.splits;
    const index_t first = (row_tiles - 1 - block % row_tiles) * rows, last = first + rows < a.rows ? first + rows - 1 : a.rows - 1;
    const index_t seen = tiles_of(a.limit(first, last), patterns);
    const auto small = [](index_t number) { return static_cast<int>(number); };
    return {small(rest / a.splits),
            small(split),
            small(first),
            small(first_tile(seen, split, a.splits)),
            small(first_tile(seen, split + 1, a.splits)),
            small(tiles_of(a.patterns, patterns))};
  }

  /// Item `item` of all that a block reads is on its way into its slot: a tile, or of different keys and values each in turn.
  template <class Thread>
  static constexpr void fetch(const Thread& thread, const Arguments& arguments, const Part& part, int item) {
    const bool shared = arguments.recall.shared();
    const int tile = part.tile + (shared ? item : item / 2), slot = item % slots;
    if (tile < part.end) {
      const char* const from = (shared || item % 2 == 0 ? arguments.keys : arguments.values) +
                               (static_cast<index_t>(part.outer) * part.tiles + tile) * Memories::pitch;
      const std::uint32_t to = slot_begin(thread, slot);
      for (std::uint32_t at = 16 * thread.index(); at < Memories::bytes; at += 16 * threads) thread.copy16(to + at, from + at, true);
      if (thread.index() == 0) thread.copy16(thread.address(thread.shared()) + line_begin + slot * 16, from + Memories::bytes, true);
    }
    thread.commit_copies();
  }

  /// The slot of an item that is there; the item before it is done with, and another one takes its slot.
  template <class Thread>
  static constexpr int arrived(const Thread& thread, const Arguments& arguments, const Part& part, int item) {
    thread.template wait_copies<slots - 2>();
    thread.barrier();
    fetch(thread, arguments, part, item + slots - 1);
    return item % slots;
  }

  /// Products become weights, relative to the tile's largest score: a tile that has little weight is read as closely as any other. What
  /// was summed before shrinks, and what comes grows, by a factor. `first` is the tile's first pattern.
  template <class Thread>
  static constexpr void weigh(const Thread& thread, float up, int first, Pieces<patterns>& scores, State (&state)[own_rows],
                              float (&shrink)[own_rows], float (&gain)[own_rows]) {
    const Known* const known = table(thread) + warp_begin(thread) + lane_of(thread) / 4;
    const int column = lane_of(thread) % 4 * 2;
#pragma unroll
    for (int h = 0; h < own_rows; ++h) {
      const float factor = std::fmax(split ? known[8 * h].factor * up : known[8 * h].factor, 1e-36f);  // -inf stays what it is
      const int left = known[8 * h].limit - first;
      const auto each = [&](auto&& visit) {
#pragma unroll
        for (int n = 0; n < patterns / 8; ++n)
#pragma unroll
          for (int k = 0; k < 2; ++k) visit(scores[h / 2][n][h % 2 * 2 + k], 8 * n + k);
      };
      if (left < patterns) each([&](float& score, int at) { score = column + at < left ? score : -infinity; });
      State tile;
      each([&](float score, int) { tile.largest = score > tile.largest ? score : tile.largest; });
      tile.largest = factor * largest_of_lanes<4>(thread, tile.largest);
      shrink[h] = state[h].raise(tile.largest);
      gain[h] = thread.exp2(tile.largest - state[h].reference());
      const float reference = tile.reference() - lifted;
      each([&](float& score, int) {
        score = thread.exp2(std::fma(score, factor, -reference));
        tile.sum += score;
      });
      state[h].sum = std::fma(tile.sum, gain[h], state[h].sum);
    }
  }

  template <class Thread>
  static constexpr void round(const Thread& thread, const Pieces<patterns>& scores, Weights& weights, Weights& rest) {
#pragma unroll
    for (int half = 0; half < halves; ++half)
#pragma unroll
      for (int p = 0; p < patterns / 16; ++p) {
        const Sums &left = scores[half][2 * p], &right = scores[half][2 * p + 1];
        if constexpr (split)
          split_heads(thread, left, right, weights[half][p], rest[half][p]);
        else
          cuda::round<Half>(thread, left, right, 1, weights[half][p]);
      }
  }

  /// sums <- shrink sums + gain up weights . the values of a slot
  template <class Thread>
  static constexpr void add_weighted(const Thread& thread, int slot, float up, const Weights& weights, const Weights& rest,
                                     const float (&shrink)[own_rows], const float (&gain)[own_rows], Pieces<Width>& sums) {
    constexpr int steps = patterns / 16;
    const std::uint32_t values = slot_begin(thread, slot) + Tile::down(lane_of(thread));
#pragma unroll
    for (int c = 0; c < Width; c += 16) {
      Words value[parts][steps];
      Pieces<16> piece;
      clear(piece);
#pragma unroll
      for (int i = 0; i < parts * steps; ++i)
        thread.template matrices<true>(value[i / steps][i % steps],
                                       Tile::moved(values, 16 * (i % steps), c) + i / steps * Memories::part_bytes);
      const auto add = [&](const Weights& left, const Words(&right)[steps]) {
#pragma unroll
        for (int i = 0; i < 2 * halves * steps; ++i)
          thread.template multiply<Half>(piece[i / 2 % halves][i % 2], left[i / 2 % halves][i / own_rows], right[i / own_rows][i % 2 * 2],
                                         right[i / own_rows][i % 2 * 2 + 1]);
      };
      if constexpr (split) add(rest, value[0]), add(weights, value[1]);
      add(weights, value[0]);
#pragma unroll
      for (int i = 0; i < 8 * halves; ++i) {
        const int h = i / 8 * 2 + i % 4 / 2;
        float& sum = sums[i / 8][c / 8 + i / 4 % 2][i % 4];
        sum = std::fma(sum, shrink[h], at(piece, i) * (split ? gain[h] * up : gain[h]));
      }
    }
  }

  /// Whether a row's results may be wrong. What is lost of numbers far smaller than the largest of a query or tile, 2^-40 of these at most,
  /// adds up over all columns; a score may be wrong by 2^-21, or as much of the largest one.
  static constexpr bool doubtful(const Known& known, const Sizes& sizes, const State& state) {
    if (sizes.lost || !(known.factor >= 1e-37f)) return true;
    if (!split) return false;
    constexpr float of_products = Width * 0x1p-9f;
    const float wrong = known.factor * sizes.largest_key * of_products, largest = std::fmax(std::fabs(state.reference()), 1.0f);
    return !(wrong <= 0x1p-21f * largest);
  }

  /// Where number `column` of a row is in shared memory on its way out: four neighbouring rows are in different banks.
  static constexpr int place(int row, int column) { return row * Width + (column ^ row % 4 * 8); }

  /// A warp's sums and states go into shared memory; then each lane is concerned with one row, and each row is written by all lanes.
  template <class Thread>
  static constexpr void finish(const Thread& thread, const RecallArguments& a, const Part& part, int first, const Sizes& sizes,
                               const State (&state)[own_rows], const Pieces<Width>& sums) {
    static_assert(ends_begin + rows * sizeof(State) <= line_begin);
    const int lane = lane_of(thread), begin = warp_begin(thread);
    float* const numbers = reinterpret_cast<float*>(thread.shared()) + begin * Width;
    State* const ends = reinterpret_cast<State*>(thread.shared() + ends_begin) + begin;
    thread.barrier();  // nobody reads queries or tiles any more
#pragma unroll
    for (int h = 0; h < own_rows; ++h) {
      const float sum = sum_of_lanes<4>(thread, state[h].sum) * lift_down;
      if (lane % 4 == 0) ends[8 * h + lane / 4] = {state[h].largest, sum};
#pragma unroll
      for (int n = 0; n < Width / 8; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) numbers[place(8 * h + lane / 4, 8 * n + lane % 4 * 2 + k)] = sums[h / 2][n][h % 2 * 2 + k];
    }
    thread.warp_barrier();
    if (lane < warp_rows) {
      Known& known = table(thread)[begin + lane];
      known = end_row(a, part, first + lane, doubtful(known, sizes, ends[lane]), ends[lane]);
    }
    thread.warp_barrier();
    if (a.splits > 1)
      store<float>(thread, numbers, a.partial_sums, 1, a.value_width);
    else if (a.out.given())
      visit_query(a.out.type, [&]<class Stored>() { store<Stored>(thread, numbers, a.out.at.data, a.out.at.inner, a.value_width); });
  }

  /// What is told of a row, where it begins in what is written, or -1, and the factor of its numbers.
  static constexpr Known end_row(const RecallArguments& a, const Part& part, index_t r, bool doubt, const State& state) {
    if (r >= a.rows) return {};
    const index_t entry = (static_cast<index_t>(part.split) * a.outer + part.outer) * a.rows + r;
    a.doubts[entry] = doubt;
    if (doubt) return {};
    if (a.splits > 1) {
      a.partial_states[2 * entry] = state.largest, a.partial_states[2 * entry + 1] = state.sum;
      return {entry * a.value_width, lift_down, 0};
    }
    write_row_results(a, part.outer, r, state);
    return {a.offsets(part.outer, r, a.out)[0], state.sum == 0 ? 0.0f : lift_down / state.sum, 0};
  }

  template <class Stored, class Thread>
  static constexpr void store(const Thread& thread, const float* numbers, void* to, index_t inner, int width) {
    const Known* const known = table(thread) + warp_begin(thread);
    for (int row = 0; row < warp_rows; ++row) {
      if (known[row].query < 0) continue;
#pragma unroll
      for (int column = lane_of(thread); column < Width; column += warp_size)
        if (column < width) write<Stored>(to, known[row].query + column * inner, numbers[place(row, column)] * known[row].factor);
    }
  }
};

}  // namespace recollect::cuda
