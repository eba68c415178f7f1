// SPDX-License-Identifier: BSD-3-Clause
/// Attention and Hopfield retrieval for Hopper's tensor cores (sm_90a): memories of 16-bit numbers, 64 or 128 wide, packed by
/// recall_pack.hpp; no mask, no bias. One warpgroup of a block brings tiles of patterns into a ring of stages; each of the others owns 64
/// rows, holds their queries in registers, and takes two products of every tile: scores = queries . keys^T and sums += weights . values.
/// The next scores are computed while the sums of the tile before are. In a retrieval keys and values are the same bytes,
/// and a block that has all patterns can take several steps: what it read is its next operand, in the registers where it is. Where there
/// are no more than 64 rows, all warpgroups own these and take the tiles in turn: each then has a part of the patterns as blocks have, to
/// be merged. One alone would take longer for a tile than memory takes to bring it.
///
/// The largest score of a row is raised tile by tile, and what was summed shrinks each time, unless |score| <= b = scale |query| max |key|
/// is small: then scores are taken relative to b from the beginning. No weight is below 2^(-2 b), which 16 bits have to hold.
///
/// Numbers are those of recall_forward.hpp but that weights are rounded to 16 bits before they meet the values, and that an infinite value
/// makes NaN even where its weight is 0. Beyond what device.hpp says a thread of such a kernel has (ptx_sm90.cuh):
///
///     address(pointer)                      of shared memory, as a number
///     init(barrier, arrivals)               a barrier in shared memory, with phases; fence_async() before others use it
///     arrive(barrier), expect(barrier, n)   one arrival; one arrival and n bytes that copies will bring
///     wait(barrier, parity)                 until the phase of this parity is complete
///     copy(to, from, bytes, barrier)        memory into shared memory, some time; the barrier gets the bytes
///     fence_async()                         what was stored before is there for copies and products
///     products<T, n, flip>(sums, a, b, more)  starts sums (64 x n) = or (more) += a . b; nothing of it may be touched before it is done
///     start_products(), commit_products(), finish_products<left>(sums)  fence, end of a group, wait until `left` groups are not done
///     give_registers<n>(), take_registers<n>()  of the whole warpgroup, to n for each thread
///     exp2(x), rounded<T>(low, high)        2^x, approximately; two numbers of 16 bits in a word
#pragma once

#include "recollect/cuda/recall_forward.hpp"
#include "recollect/cuda/recall_pack.hpp"

namespace recollect::cuda {

struct RecallSm90Arguments {
  RecallArguments recall;
  const char *keys = nullptr, *values = nullptr;  // packed
  int steps = 1;                                  // several only where `in_one_launch`
};

/// Shared: keys are the values.
template <class T, int Width, bool Shared>
struct RecallSm90 {
  using Arguments = RecallSm90Arguments;
  using Tile = TensorTile<patterns_of_tile, Width>;
  static constexpr int architecture = 90;
  static constexpr const char* name = "recall_sm90";
  static constexpr int consumers = 2, threads = warpgroup_size * (1 + consumers), rows = 64 * consumers;
  static constexpr int stages = Shared ? (Width == 64 ? 6 : 5) : (Width == 64 ? 5 : 3);
  static constexpr std::uint32_t stage_bytes = Tile::bytes * (Shared ? 1 : 2);
  static constexpr int producer_registers = 24, consumer_registers = 240;
  /// Of 2 b; and what is read has to be longer than this, lest it vanish when it is multiplied by a small weight.
  static constexpr float widest_range = dtype_of<T> == dtype::float16 ? 14.0f : 80.0f, shortest = 1e-6f;

  /// How many parts of the patterns a block has; several only where merging them is little work beside reading the patterns.
  static constexpr int parts(const RecallArguments& a) {
    return a.rows <= 64 && a.patterns >= 32 * a.rows && a.patterns > 4 * consumers * Tile::patterns ? consumers : 1;
  }
  static constexpr index_t splits(const RecallArguments& a) {
    return parts(a) * splits_of(a.outer * tiles_of(a.rows, rows), tiles_of(a.patterns, Tile::patterns), 132, 132);
  }
  static constexpr index_t blocks(const Arguments& a) {
    return a.recall.outer * (a.recall.splits / parts(a.recall)) * tiles_of(a.recall.rows, rows);
  }
  static constexpr index_t shared_bytes() { return stages * stage_bytes + 2 * stages * 8; }

  /// Whether a block has all that a row needs for its next step: all patterns, and what it reads is the next state.
  static constexpr bool in_one_launch(const RecallArguments& a) { return Shared && splits(a) == 1; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const Part part = part_of(a.recall, thread.block());
    if (a.recall.all_rest(thread, part.outer, part.first_row, rows)) return;
    const std::uint32_t ring = thread.address(thread.shared());
    if (thread.index() == 0) {
      for (int stage = 0; stage < stages; ++stage) {
        thread.init(full(ring, stage), 1);
        thread.init(empty(ring, stage), 4 * consumers / parts(a.recall));  // a thread of each warp
      }
      thread.fence_async();
    }
    thread.barrier();
    if (thread.index() < warpgroup_size) {
      thread.template give_registers<producer_registers>();
      if (thread.index() == 0) produce(thread, a, part, ring);
    } else {
      thread.template take_registers<consumer_registers>();
      const int consumer = thread.index() / warpgroup_size - 1;
      consume(thread, a, part_of(a.recall, part, consumer), ring);
    }
  }

 private:
  using Scores = float[Tile::patterns / 2];
  using Sums = float[Width / 2];
  using Queries = std::uint32_t[Width / 16][4];
  using Weights = std::uint32_t[Tile::patterns / 16][4];
  using State = math::OnlineSoftmax<float>[2];  // of a thread's two rows; sums are of its own columns until the end

  /// What a block, or a warpgroup, does: some rows of an outer entry, some tiles of its patterns, one in `step`. Registers are scarce, and
  /// no card has room for rows of 128 bytes that an int cannot count.
  struct Part {
    int outer = 0, split = 0, first_row = 0, tile = 0, end = 0, tiles = 0, step = 1;
  };

  static constexpr Part part_of(const RecallArguments& a, index_t block) {
    const index_t row_tiles = tiles_of(a.rows, rows), rest = block / row_tiles, tiles = tiles_of(a.patterns, Tile::patterns);
    const index_t splits = a.splits / parts(a), split = rest % splits;
    const auto small = [](index_t number) { return static_cast<int>(number); };
    return {small(rest / splits),
            small(split),
            small(block % row_tiles * rows),
            small(first_tile(tiles, split, splits)),
            small(first_tile(tiles, split + 1, splits)),
            small(tiles)};
  }
  static constexpr Part part_of(const RecallArguments& a, Part part, int consumer) {
    part.step = parts(a);
    if (part.step == 1)
      part.first_row += consumer * 64;
    else
      part.tile += consumer, part.split = part.split * part.step + consumer;
    return part;
  }

  static constexpr std::uint32_t full(std::uint32_t ring, int stage) { return ring + stages * stage_bytes + 8 * stage; }
  static constexpr std::uint32_t empty(std::uint32_t ring, int stage) { return full(ring, stages + stage); }

  /// Where a tile begins in memory.
  static constexpr index_t place_of(const Part& part, int tile) {
    return (static_cast<index_t>(part.outer) * part.tiles + tile) * Tile::pitch;
  }

  /// A place in the ring, and the parity of the round.
  struct Turn {
    int stage = 0;
    bool odd = false;

    constexpr void next(int step = 1) {
      stage += step;
      if (stage >= stages) stage -= stages, odd = !odd;
    }
  };

  template <class Thread>
  static constexpr void produce(const Thread& thread, const Arguments& a, const Part& part, std::uint32_t ring) {
    Turn turn;
    for (int step = 0; step < a.steps; ++step)
      for (int tile = part.tile; tile < part.end; ++tile, turn.next()) {
        const index_t place = place_of(part, tile);
        const std::uint32_t stage = ring + turn.stage * stage_bytes, arrived = full(ring, turn.stage);
        thread.wait(empty(ring, turn.stage), !turn.odd);  // at once in the first round
        thread.expect(arrived, stage_bytes);
        thread.copy(stage, a.keys + place, Tile::bytes, arrived);
        if constexpr (!Shared) thread.copy(stage + Tile::bytes, a.values + place, Tile::bytes, arrived);
      }
  }

  template <class Thread>
  static constexpr void consume(const Thread& thread, const Arguments& arguments, const Part& part, std::uint32_t ring) {
    const RecallArguments& a = arguments.recall;
    const int lane = thread.index() % warpgroup_size;
    const index_t first = part.first_row + operand_row(lane, 0);
    Queries queries;
    float factor[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) factor[half] = load_row(a, part.outer, first + 8 * half, lane, half, queries);
    Sums sums;
    Turn turn{part.split % part.step, false};
    for (int step = 1;; ++step) {
      State state;
      read(thread, arguments, part, ring, queries, factor, turn, state, sums);
      if (!Shared || step == arguments.steps) return finish(thread, a, part, first, lane, state, sums);
      if (lane % warp_size == 0) thread.arrive(empty(ring, turn.stage));
      turn.next();
      look_again(thread, a.rows - first, state, sums, queries);
    }
  }

  /// One softmax of a thread's rows over the tiles of a part. `turn` is where the first of them is, and then where the last one was.
  template <class Thread>
  static constexpr void read(const Thread& thread, const Arguments& arguments, const Part& part, std::uint32_t ring, const Queries& queries,
                             const float (&factor)[2], Turn& turn, State& state, Sums& sums) {
    const RecallArguments& a = arguments.recall;
    const int lane = thread.index() % warpgroup_size;
    Scores scores;
    Weights weights;
    const bool bounded = bound(thread, arguments, part, queries, factor, state);
#pragma unroll
    for (int i = 0; i < Width / 2; ++i) sums[i] = 0;
    Turn before = turn;
    thread.wait(full(ring, turn.stage), turn.odd);
    start_scores(thread, ring + turn.stage * stage_bytes, queries, scores);
    thread.template finish_products<0>(scores);
    for (int tile = part.tile;; tile += part.step) {
      // Here the scores of `tile` are known, and the sums of the tile before it are being added to.
      float shrink[2] = {1, 1};
      if (tile + 1 == part.tiles) hide(lane, static_cast<int>(a.patterns - static_cast<index_t>(tile) * Tile::patterns), scores);
      weigh(thread, factor, bounded, scores, state, shrink);
      thread.template finish_products<0>(sums);
      if (tile > part.tile) {
        if (lane % warp_size == 0) thread.arrive(empty(ring, before.stage));
        before.next(part.step);
      }
      round(thread, scores, weights);
      if (!bounded) {
#pragma unroll
        for (int i = 0; i < Width / 2; ++i) sums[i] *= shrink[i / 2 % 2];
      }
      const std::uint32_t values = ring + turn.stage * stage_bytes + (Shared ? 0 : Tile::bytes);
      if (tile + part.step >= part.end) {
        add_weighted(thread, values, weights, sums);
        break;
      }
      turn.next(part.step);
      thread.wait(full(ring, turn.stage), turn.odd);
      start_scores(thread, ring + turn.stage * stage_bytes, queries, scores);
      add_weighted(thread, values, weights, sums);
      thread.template finish_products<1>(scores);
    }
    thread.template finish_products<0>(sums);
  }

  /// What was read, rounded as on its way through memory, is what is compared next: sums are an operand where they are. Rows that are
  /// not there stay zero; `left`: how many there are from a thread's first one on.
  template <class Thread>
  static constexpr void look_again(const Thread& thread, index_t left, const State& state, const Sums& sums, Queries& queries) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_lanes<4>(thread, state[half].sum), factor = sum == 0 || left <= 8 * half ? 0.0f : 1 / sum;
#pragma unroll
      for (int i = half; i < Width / 4; i += 2)
        queries[i / 4][i % 4] = thread.template rounded<T>(sums[2 * i] * factor, sums[2 * i + 1] * factor);
    }
  }

  /// Half of a thread's query words; returns what scores are multiplied by, which is positive: the sign is the query's, and -inf
  /// stays what it is.
  static constexpr float load_row(const RecallArguments& a, index_t o, index_t r, int lane, int half, Queries& queries) {
    const Row row = row_of(a, o, r);
    const std::uint16_t* const from = static_cast<const std::uint16_t*>(a.query.at.data);
    const std::uint16_t sign = row.factor < 0 ? 0x8000 : 0;
    const auto number = [&](int column) -> std::uint16_t {
      return row.query < 0 ? 0 : static_cast<std::uint16_t>(from[row.query + column * a.query.at.inner] ^ sign);
    };
#pragma unroll
    for (int step = 0; step < Width / 16; ++step)
#pragma unroll
      for (int word = 0; word < 2; ++word) {
        const int column = 16 * step + operand_column(lane, 2 * word);
        queries[step][2 * word + half] = pair(number(column), number(column + 1));
      }
    const float size = row.factor < 0 ? -row.factor : row.factor;
    return size < 1e-36f ? 1e-36f : size;
  }

  /// Whether all rows of the warp have a bound that is small enough; states then begin with it.
  template <class Thread>
  static constexpr bool bound(const Thread& thread, const Arguments& a, const Part& part, const Queries& queries, const float (&factor)[2],
                              State& state) {
    const float key = longest(thread, a.keys, part), read = Shared ? key : longest(thread, a.values, part);
    float bounds[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float square = 0;
#pragma unroll
      for (int step = 0; step < Width / 16; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float x = widen<float>(T{static_cast<std::uint16_t>(queries[step][i / 2 * 2 + half] >> i % 2 * 16)});
          square = std::fma(x, x, square);
        }
      bounds[half] = factor[half] * std::sqrt(sum_of_lanes<4>(thread, square)) * key;
    }
    const bool small = 2 * bounds[0] <= widest_range && 2 * bounds[1] <= widest_range && read >= shortest;
    const bool bounded = largest_of_lanes<warp_size>(thread, small ? 0.0f : 1.0f) == 0;
    if (bounded) state[0].largest = bounds[0], state[1].largest = bounds[1];
    return bounded;
  }

  /// The length of the longest pattern in a part's tiles.
  template <class Thread>
  static constexpr float longest(const Thread& thread, const char* packed, const Part& part) {
    float length = 0;
    for (int tile = part.tile + thread.index() % warp_size * part.step; tile < part.end; tile += warp_size * part.step) {
      const float of_tile = *reinterpret_cast<const float*>(packed + place_of(part, tile) + Tile::bytes);
      length = of_tile > length ? of_tile : length;
    }
    return largest_of_lanes<warp_size>(thread, length);
  }

  template <class Thread>
  static constexpr void start_scores(const Thread& thread, std::uint32_t keys, const Queries& queries, Scores& scores) {
    thread.start_products();
#pragma unroll
    for (int step = 0; step < Width / 16; ++step)
      thread.template products<T, Tile::patterns, false>(scores, queries[step], columns_descriptor<Tile>(keys, step), step > 0);
    thread.commit_products();
  }

  template <class Thread>
  static constexpr void add_weighted(const Thread& thread, std::uint32_t values, const Weights& weights, Sums& sums) {
    thread.start_products();
#pragma unroll
    for (int step = 0; step < Tile::patterns / 16; ++step)
      thread.template products<T, Width, true>(sums, weights[step], patterns_descriptor<Tile>(values, step), true);
    thread.commit_products();
  }

  /// Of the last tile only `seen` patterns are there.
  static constexpr void hide(int lane, int seen, Scores& scores) {
#pragma unroll
    for (int i = 0; i < Tile::patterns / 2; ++i)
      if (accumulator_column(lane, i) >= seen) scores[i] = -infinity;
  }

  /// Products become weights, and what was summed before shrinks by a factor.
  template <class Thread>
  static constexpr void weigh(const Thread& thread, const float (&factor)[2], bool bounded, Scores& scores, State& state,
                              float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -infinity, sum = 0;
      if (!bounded) {
#pragma unroll
        for (int i = 2 * half; i < Tile::patterns / 2; i += 4)
#pragma unroll
          for (int k = 0; k < 2; ++k) largest = scores[i + k] > largest ? scores[i + k] : largest;
        shrink[half] = state[half].raise(factor[half] * largest_of_lanes<4>(thread, largest));
      }
      const float reference = state[half].reference();
#pragma unroll
      for (int i = 2 * half; i < Tile::patterns / 2; i += 4)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          scores[i + k] = thread.exp2(std::fma(scores[i + k], factor[half], -reference));
          sum += scores[i + k];
        }
      state[half].sum += sum;
    }
  }

  template <class Thread>
  static constexpr void round(const Thread& thread, const Scores& scores, Weights& weights) {
#pragma unroll
    for (int i = 0; i < Tile::patterns / 4; ++i) weights[i / 4][i % 4] = thread.template rounded<T>(scores[2 * i], scores[2 * i + 1]);
  }

  template <class Thread>
  static constexpr void finish(const Thread& thread, const RecallArguments& a, const Part& part, index_t first, int lane, State& state,
                               const Sums& sums) {
    const bool whole = a.splits == 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t r = first + 8 * half, entry = (part.split * a.outer + part.outer) * a.rows + r;
      state[half].sum = sum_of_lanes<4>(thread, state[half].sum);
      if (r >= a.rows) continue;
      if (lane % 4 == 0 && whole) write_row_results(a, part.outer, r, state[half]);
      if (lane % 4 == 0 && !whole) a.partial_states[2 * entry] = state[half].largest, a.partial_states[2 * entry + 1] = state[half].sum;
      const index_t begin = whole ? a.offsets(part.outer, r, a.out)[0] : entry * Width;
      const float factor = !whole ? 1.0f : state[half].sum == 0 ? 0.0f : 1 / state[half].sum;
#pragma unroll
      for (int i = 2 * half; i < Width / 2; i += 4)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int column = accumulator_column(lane, i + k);
          if (!whole)
            a.partial_sums[begin + column] = sums[i + k];
          else if (a.out.given())
            write<T>(a.out.at.data, begin + column * a.out.at.inner, sums[i + k] * factor);
        }
    }
  }
};

}  // namespace recollect::cuda
