// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of a recall (recall_backward.hpp, whose letters these are) for tensor cores: query, d_out, key and value of one 16-bit type,
/// d and e 64 or 128, no mask and no bias. As there, one kernel owns rows and walks over patterns, another owns patterns and walks over
/// rows, so that every sum is taken by one warp in a fixed order. Where keys are the values, [p^T | scale d_s^T] [d_out; Q] is one sum.
///
/// Scores, weights and sums are float32; weights and d_s are rounded to 16 bits where they meet d_out, Q and K. While a tile is worked on
/// the next one is on its way. A row without weights, and what no row of a block may see, is zero there whatever it holds; beyond that a
/// number that is not finite may reach the other rows, or patterns, of its block.
///
/// A long walk of few blocks is split (RecallArguments::splits): each part has a result of its own, dense and one after the other, to be
/// summed later.
#pragma once

#include "recollect/cuda/recall_backward_table.hpp"
#include "recollect/cuda/recall_halves.hpp"

namespace recollect::cuda {

template <class T, int Width>
struct RecallBackwardRowsSm80 : RecallHalves<T, Width, 2> {
  using Arguments = RecallBackwardSm80Arguments;
  using Halves = RecallHalves<T, Width, 2>;
  static constexpr int architecture = 80;
  static constexpr const char* name = "recall_backward_rows_sm80";
  using Halves::groups, Halves::met, Halves::own;
  using typename Halves::Scores, typename Halves::Sums;

  struct Stage {
    char key[Halves::tile_bytes], value[Halves::tile_bytes];
  };
  struct alignas(Halves::Rows::alignment) Room {
    char query[Halves::own_bytes], d_out[Halves::own_bytes];
    Stage stages[2];  // the second one begins as the places of rows
    RowTerms terms[own];
    RecallPart part;
  };
  static_assert(Halves::threads == own && own == Arguments::own && met == Arguments::met);
  static_assert(sizeof(RowPlaces[own]) <= sizeof(Stage));

  static constexpr index_t blocks(const Arguments& a) { return a.backward.recall.outer * a.row_tiles() * a.backward.recall.splits; }
  static constexpr index_t shared_bytes() { return sizeof(Room); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    Room& room = *reinterpret_cast<Room*>(thread.shared());
    const RecallPart& part = room.part;
    if (thread.index() == 0) room.part = part_of(arguments, thread.block());
    thread.barrier();
    load_rows(thread, arguments, room);
    load_patterns(thread, arguments.backward, room.stages[0], part, part.begin);
    Sums sums;
    float d_scales[groups][2] = {};
    float unit = Halves::first_unit();
    Halves::clear(sums);
    thread.template wait_copies<0>();
    thread.barrier();
    for (int tile = part.begin; tile < part.end; ++tile) {
      const int stage = (tile - part.begin) % 2;
      load_patterns(thread, arguments.backward, room.stages[1 - stage], part, tile + 1);
      add_tile(thread, arguments.backward, room, room.stages[stage], tile * met, unit, sums, d_scales);
      thread.template wait_copies<0>();
      thread.barrier();  // the next tile is there, this one is done with
    }
    finish(thread, arguments.backward, room, unit, sums, d_scales);
  }

 private:
  static constexpr RecallPart part_of(const Arguments& arguments, index_t block) {
    const RecallArguments& a = arguments.backward.recall;
    RecallPart part(block, arguments.row_tiles(), a.splits);
    part.own = static_cast<int>(arguments.row_tiles()) - 1 - part.own;  // the longest walks come first
    const index_t first = part.own * own, last = first + own < a.rows ? first + own - 1 : a.rows - 1;
    part.limit = static_cast<int>(a.limit(first, last));
    part.walk(tiles_of(part.limit, met), a.splits);
    return part;
  }

  template <class Thread>
  static constexpr void load_rows(const Thread& thread, const Arguments& arguments, Room& room) {
    const RecallBackwardArguments& a = arguments.backward;
    RowPlaces* const places = reinterpret_cast<RowPlaces*>(&room.stages[1]);
    const index_t row = (room.part.o * arguments.row_tiles() + room.part.own) * own + thread.index();
    places[thread.index()] = arguments.places[row];
    room.terms[thread.index()] = arguments.terms[row];
    thread.barrier();
    Halves::template fetch<own>(thread, a.recall.query.at.data, room.query, [&](int i) { return places[i].query; });
    if (!a.energy) Halves::template fetch<own>(thread, a.d_out.at.data, room.d_out, [&](int i) { return places[i].d_out; });
  }

  template <class Thread>
  static constexpr void load_patterns(const Thread& thread, const RecallBackwardArguments& arguments, Stage& stage, const RecallPart& part,
                                      int tile) {
    const RecallArguments& a = arguments.recall;
    const auto load = [&](const Memory& from, char* to) {
      const index_t begin = a.outer_axes.offset(part.o, from.outer);
      Halves::template fetch<met>(thread, from.data, to, [&](int i) {
        const int pattern = tile * met + i;
        return pattern < part.limit ? begin + pattern * from.row : index_t(-1);
      });
    };
    if (tile < part.end) {
      load(a.key, stage.key);
      if (!a.shared() && !arguments.energy) load(a.value, stage.value);
    }
    thread.commit_copies();
  }

  template <class Thread>
  static constexpr void add_tile(const Thread& thread, const RecallBackwardArguments& arguments, const Room& room, const Stage& stage,
                                 int first, float& unit, Sums& sums, float (&d_scales)[groups][2]) {
    const int lane = lane_of(thread);
    Scores products, d_scores;
    Halves::products(thread, room.query, stage.key, products);
    if (arguments.energy)
      Halves::clear(d_scores);
    else
      Halves::products(thread, room.d_out, arguments.recall.shared() ? stage.key : stage.value, d_scores);
#pragma unroll
    for (int g = 0; g < groups; ++g)
#pragma unroll
      for (int half = 0; half < 4; half += 2) {
        const RowTerms row = room.terms[Halves::own_at(thread, g, half)];
        const int seen = row.limit - first;
        float d_scale = 0;
#pragma unroll
        for (int n = 0; n < met / 8; ++n)
#pragma unroll
          for (int i = half; i < half + 2; ++i) {
            float &product = products[g][n][i], &d_score = d_scores[g][n][i];
            d_score = thread.exp2(std::fma(product, row.factor, -row.shift)) * (d_score - row.dot);
            if (seen < met && Halves::met_at(lane, n, i) >= seen) product = d_score = 0;
            d_scale = std::fma(d_score, product, d_scale);
          }
        d_scales[g][half / 2] += d_scale;
      }
    Halves::grow(thread, Halves::largest(d_scores), unit, sums);
    Halves::add_weighted(thread, d_scores, unit, stage.key, sums);
  }

  /// From K^T d_s to gradients of queries and scales.
  template <class Thread>
  static constexpr void finish(const Thread& thread, const RecallBackwardArguments& arguments, Room& room, float unit, Sums& sums,
                               float (&d_scales)[groups][2]) {
    const RecallArguments& a = arguments.recall;
    const RecallPart part = room.part;
    const index_t first = part.own * own;
#pragma unroll
    for (int g = 0; g < groups; ++g)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Halves::own_at(thread, g, 2 * half), lane = lane_of(thread);
        const RowTerms terms = room.terms[row];
        const float dot = arguments.energy ? terms.dot : 0.0f;
#pragma unroll
        for (int n = 0; n < Width / 8; ++n) {
          const char* const place = room.query + Halves::Rows::offset(row, Halves::met_at(lane, n, 0));
          const std::uint32_t queries = arguments.energy ? *reinterpret_cast<const std::uint32_t*>(place) : 0;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& sum = sums[g][n][2 * half + i];
            sum = terms.scale() * std::fma(dot, half_of<T>(queries, i), unit * sum);
          }
        }
        const float d_scale = sum_of_lanes<4>(thread, d_scales[g][half]);
        if (!arguments.d_scales || lane % 4 || first + row >= a.rows) continue;
        float& to = arguments.d_scales[(part.split * a.outer + part.o) * a.rows + first + row];
        to = arguments.energy ? to + d_scale : d_scale;
      }
    if (!arguments.d_query.given()) return;
    static_assert(Halves::Whole::floats * sizeof(float) + own * sizeof(index_t) <= sizeof(Room));
    index_t* const places = reinterpret_cast<index_t*>(thread.shared() + Halves::Whole::floats * sizeof(float));
    const index_t r = first + thread.index();
    places[thread.index()] = r < a.rows ? part.split * a.outer * a.rows * Width + a.offsets(part.o, r, arguments.d_query)[0] : -1;
    Halves::store(thread, sums, 1, thread.shared(), arguments.d_query.at.data, arguments.d_query.type, arguments.d_query.at.inner,
                  [&](int i) { return places[i]; });
  }
};

/// Shared: into d_key goes the gradient of the values too.
template <class T, int Width, bool Shared>
struct RecallBackwardPatternsSm80 : RecallHalves<T, Width, Shared || Width == 64 ? 2 : 1> {
  using Arguments = RecallBackwardSm80Arguments;
  using Halves = RecallHalves<T, Width, Shared || Width == 64 ? 2 : 1>;
  static constexpr int architecture = 80;
  static constexpr const char* name = "recall_backward_patterns_sm80";
  using Halves::groups, Halves::met, Halves::own;
  using typename Halves::Scores, typename Halves::Sums;

  struct Stage {
    char query[Halves::tile_bytes], d_out[Halves::tile_bytes];
  };
  struct alignas(Halves::Rows::alignment) Room {
    char memory[Shared ? 1 : 2][Halves::own_bytes];  // keys, values
    Stage stages[2];
    RowTerms terms[3][met];
    RowPlaces places[2][met];
    int tiles[4];  // of rows: number i that is met, and the next ones
    RecallPart part;
  };
  static_assert(own == Arguments::own && met == Arguments::met && Halves::Whole::floats * sizeof(float) <= sizeof(Room));

  static constexpr index_t blocks(const Arguments& a) { return a.backward.recall.outer * a.pattern_tiles() * a.backward.recall.splits; }
  static constexpr index_t shared_bytes() { return sizeof(Room); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallBackwardArguments& b = arguments.backward;
    const RecallArguments& a = b.recall;
    Room& room = *reinterpret_cast<Room*>(thread.shared());
    const RecallPart& part = room.part;
    const bool first_warp = thread.index() < warp_size;
    if (thread.index() == 0) {
      room.part = RecallPart(thread.block(), arguments.pattern_tiles(), a.splits);
      room.part.walk(tiles_of(a.rows, met), a.splits);
    }
    thread.barrier();
    if (first_warp)
      for (int i = 0, tile = part.begin; i < 3; ++i) tile = look(thread, a, room, i, tile) + 1;
    thread.barrier();
    load_table(thread, arguments, room, 0);
    load_table(thread, arguments, room, 1);
    load_patterns(thread, a, room);
    thread.commit_copies();
    thread.template wait_copies<0>();
    thread.barrier();
    load_rows(thread, b, room, 0);
    thread.commit_copies();
    thread.template wait_copies<0>();
    thread.barrier();
    Sums d_keys, d_values;  // with shared keys and values all goes into d_keys
    Halves::clear(d_keys), Halves::clear(d_values);
    float unit = Halves::first_unit(), value_unit = unit;
    for (int i = 0; room.tiles[i % 4] < part.end; ++i) {
      load_rows(thread, b, room, i + 1);
      load_table(thread, arguments, room, i + 2);
      thread.commit_copies();
      if (first_warp) look(thread, a, room, i + 3, room.tiles[(i + 2) % 4] + 1);
      const Stage& stage = room.stages[i % 2];
      Scores weights, d_scores;
      weigh(thread, b, room, stage, room.terms[i % 3], part.own * own, weights, d_scores);
      add_tile(thread, b, stage, weights, d_scores, unit, value_unit, d_keys, d_values);
      thread.template wait_copies<0>();
      thread.barrier();  // the next tile and the table of the one after it are there, this one is done with
    }
    const RecallPart here = room.part;
    store(thread, a, b.d_key, here, d_keys, unit, b.adds);
    if constexpr (!Shared) store(thread, a, b.d_value, here, d_values, value_unit, false);
  }

 private:
  /// A warp finds the next tile of rows, from `tile` on, of which some row sees some of the block's patterns: the block's number i.
  template <class Thread>
  static constexpr int look(const Thread& thread, const RecallArguments& a, Room& room, int i, int tile) {
    const RecallPart& part = room.part;
    const int lane = lane_of(thread);
    const auto sees = [&](index_t first) { return a.limit(first, first + met < a.rows ? first + met - 1 : a.rows - 1) > part.own * own; };
    while (a.causal.on && tile < part.end) {
      const std::uint32_t found = thread.ballot(tile + lane < part.end && sees((tile + lane) * met));
      tile += found ? std::countr_zero(found) : warp_size;
      if (found) break;
    }
    if (lane == 0) room.tiles[i % 4] = tile;
    return tile;
  }

  template <class Thread>
  static constexpr void load_table(const Thread& thread, const Arguments& arguments, Room& room, int i) {
    const int tile = room.tiles[i % 4], lane = thread.index() % met;
    if (tile >= room.part.end || thread.index() >= 2 * met) return;
    const index_t row = room.part.o * arguments.row_tiles() * own + tile * met + lane;
    if (thread.index() < met)
      thread.copy16(thread.address(&room.terms[i % 3][lane]), &arguments.terms[row], true);
    else
      thread.copy16(thread.address(&room.places[i % 2][lane]), &arguments.places[row], true);
  }

  template <class Thread>
  static constexpr void load_patterns(const Thread& thread, const RecallArguments& a, Room& room) {
    const auto load = [&](const Memory& from, char* to) {
      const index_t begin = a.outer_axes.offset(room.part.o, from.outer), first = room.part.own * own;
      Halves::template fetch<own>(thread, from.data, to,
                                  [&](int i) { return first + i < a.patterns ? begin + (first + i) * from.row : index_t(-1); });
    };
    load(a.key, room.memory[0]);
    if constexpr (!Shared) load(a.value, room.memory[1]);
  }

  template <class Thread>
  static constexpr void load_rows(const Thread& thread, const RecallBackwardArguments& arguments, Room& room, int i) {
    if (room.tiles[i % 4] >= room.part.end) return;
    const RowPlaces* const places = room.places[i % 2];
    Stage& stage = room.stages[i % 2];
    Halves::template fetch<met>(thread, arguments.recall.query.at.data, stage.query, [&](int r) { return places[r].query; });
    if (arguments.energy) return;
    Halves::template fetch<met>(thread, arguments.d_out.at.data, stage.d_out, [&](int r) { return places[r].d_out; });
  }

  /// Weights and the gradients of scalar products, a row for each pattern. What a row does not see has none.
  template <class Thread>
  static constexpr void weigh(const Thread& thread, const RecallBackwardArguments& arguments, const Room& room, const Stage& stage,
                              const RowTerms* rows, int first, Scores& weights, Scores& d_scores) {
    const int lane = lane_of(thread);
    Halves::products(thread, room.memory[0], stage.query, weights);
    if (arguments.energy)
      Halves::clear(d_scores);
    else
      Halves::products(thread, room.memory[Shared ? 0 : 1], stage.d_out, d_scores);
    const bool whole = ~thread.ballot(rows[lane].limit - first >= own) == 0;
#pragma unroll
    for (int n = 0; n < met / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const RowTerms row = rows[Halves::met_at(lane, n, i)];
        const float scale = row.scale(), dot = scale * row.dot;
#pragma unroll
        for (int g = 0; g < groups; ++g)
#pragma unroll
          for (int half = 0; half < 4; half += 2) {
            float &weight = weights[g][n][i + half], &d_score = d_scores[g][n][i + half];
            weight = thread.exp2(std::fma(weight, row.factor, -row.shift));
            d_score = weight * std::fma(scale, d_score, -dot);
            if (!whole && first + Halves::own_at(thread, g, half) >= row.limit) weight = d_score = 0;
          }
      }
  }

  template <class Thread>
  static constexpr void add_tile(const Thread& thread, const RecallBackwardArguments& arguments, const Stage& stage, const Scores& weights,
                                 const Scores& d_scores, float& unit, float& value_unit, Sums& d_keys, Sums& d_values) {
    const bool reads = !arguments.energy && (Shared || arguments.d_value.given());
    if constexpr (Shared) {
      Halves::grow(thread, Halves::largest(d_scores, reads ? Halves::largest(weights) : 0.0f), unit, d_keys);
      if (reads) Halves::add_weighted(thread, weights, unit, stage.d_out, d_keys);
    } else {
      if (reads) Halves::grow(thread, Halves::largest(weights), value_unit, d_values);
      if (reads) Halves::add_weighted(thread, weights, value_unit, stage.d_out, d_values);
      Halves::grow(thread, Halves::largest(d_scores), unit, d_keys);
    }
    Halves::add_weighted(thread, d_scores, unit, stage.query, d_keys);
  }

  template <class Thread>
  static constexpr void store(const Thread& thread, const RecallArguments& a, const MemoryGradient& to, const RecallPart& part,
                              const Sums& sums, float unit, bool adds) {
    if (!to.given()) return;
    const index_t first = part.own * own, begin = a.outer_axes.offset(part.o, to.outer) + part.split * a.outer * a.patterns * Width;
    Halves::store(
        thread, sums, unit, thread.shared(), to.data, to.type, to.inner,
        [&](int i) { return first + i < a.patterns ? begin + (first + i) * to.row : index_t(-1); }, adds);
  }
};

}  // namespace recollect::cuda
