// SPDX-License-Identifier: BSD-3-Clause
/// The tokens of a chunk as the warps of fast_weight_chunk.hpp share them, whose letters these are: tiles of keys, queries and values,
/// decays and betas, and what follows from them alone: P, and A with the diagonal blocks of I + A inverted.
#pragma once

#include "recollect/cuda/fast_weight_scan.hpp"
#include "recollect/cuda/half_product.hpp"
#include "recollect/cuda/recall_arguments.hpp"

namespace recollect::cuda {

/// What a token's decay is counted as at least, of a logarithm to base 2: less than that leaves nothing of float32.
inline constexpr float least_decay = -128;

/// A beta |k|^2 above which errors are not forgotten soon enough.
inline constexpr float strict_above = 1.25f;

template <class T, int Width, bool Delta>
struct FastWeightTokens {
  using Arguments = FastWeightArguments;
  static constexpr int warps = Width / 16, threads = warp_size * warps, columns = 16 * warps;
  static constexpr int chunk = 32, parts = chunk / 16;
  static constexpr bool places_anew = true;  // ptx_sm80.cuh: registers are scarce
  static_assert(chunk == warp_size);         // a lane for each token's gates
  using Rows = HalfTile<Width>;              // tokens x channels, or columns
  using Square = HalfTile<chunk>;            // tokens x tokens
  using State = Sums[Width / 8];             // of a warp's columns x all channels
  using Tokens = Sums[chunk / 8];            // of a warp's columns x the tokens of a chunk
  static constexpr bool narrow_range = dtype_of<T> == dtype::float16;

  static constexpr index_t column_blocks(const Arguments& a) { return (a.values + columns - 1) / columns; }

  struct alignas(Rows::alignment) Stage {
    char key[chunk * 2 * Width], query[chunk * 2 * Width], value[chunk * 2 * Width];
  };
  /// A is negated, with the inverses of I + A's diagonal blocks in their place, in two parts.
  struct alignas(Square::alignment) Products {
    char read[chunk * 2 * chunk], solve[2][chunk * 2 * chunk];
    float up[chunk];    // of the rows of P
    float step[parts];  // the largest beta |k|^2 of 16 tokens
  };
  struct Gates {
    float decay[chunk], beta[chunk];  // decay: log2 G
  };
  struct Sequence {
    index_t query = 0, key = 0, value = 0, beta = 0, decay = 0, state = 0, out = 0, out_state = 0;
    float scale = 1;
    int column = 0;  // the first of the block
  };
  struct Shared {
    Stage stages[3];
    Products products[2];
    float diagonal[parts][16 * 16 + 4];  // -A before it is inverted
    Gates gates[3];
    Sequence sequence;
  };
  struct Gate {
    float decay = 0, beta = 0;
  };

  static constexpr Sequence sequence_of(const Arguments& a, index_t block) {
    Sequence s;
    index_t scale = 0;
    walk(a.batch, block / column_blocks(a), [&](int axis, index_t place) {
      s.query += place * a.query.batch[axis], s.key += place * a.key.batch[axis], s.value += place * a.value.batch[axis];
      s.beta += place * a.beta.batch[axis], s.decay += place * a.decay.batch[axis], s.state += place * a.state.batch[axis];
      s.out += place * a.out.batch[axis], s.out_state += place * a.out_state.batch[axis], scale += place * a.scale.batch[axis];
    });
    s.scale = a.scale.given() ? read<float>(a.scale.data, scale) : a.scale_number;
    s.column = static_cast<int>(block % column_blocks(a)) * columns;
    return s;
  }

  /// The first of a warp's columns.
  template <class Thread>
  static constexpr int first_column(const Thread& thread) {
    return thread.index() / warp_size * 16;
  }

  /// Number i of a product's piece n, of a warp's columns (rows of the product) and 8 x n on.
  static constexpr int column_at(int lane, int i) { return accumulator_row(lane, i); }
  static constexpr int token_at(int lane, int n, int i) { return 8 * n + accumulator_column(lane, i); }

  /// Starts copies of a chunk's rows, 16 at a time; what is not there is zero. `columns` of them are, from `begin` on.
  template <class Thread>
  static constexpr void fetch_rows(const Thread& thread, const TokenRows<const void>& from, index_t begin, index_t tokens, int columns,
                                   index_t c, const char* tile) {
    const int row = thread.index() / (Width / 8), column = thread.index() % (Width / 8) * 8;
    const T* const data = static_cast<const T*>(from.data);
    const std::uint32_t to = thread.address(tile) + Rows::offset(row, column);
#pragma unroll
    for (int i = 0; i < chunk; i += 16) {
      const index_t token = c * chunk + row + i;
      const bool there = token < tokens && column < columns;
      thread.copy16(to + i * Rows::row_bytes, there ? data + begin + token * from.time + column : data, there);
    }
  }

  template <class Thread>
  static constexpr void fetch(const Thread& thread, const Arguments& a, const Sequence& s, Stage& stage, index_t c) {
    if (c * chunk < a.tokens) {
      fetch_rows(thread, a.key, s.key, a.tokens, Width, c, stage.key);
      fetch_rows(thread, a.query, s.query, a.tokens, Width, c, stage.query);
      fetch_rows(thread, a.value, s.value + s.column, a.tokens, a.values - s.column, c, stage.value);
    }
    thread.commit_copies();
  }

  /// Of a lane's token; beyond the last one nothing fades and nothing is written.
  template <class Thread>
  static constexpr Gate read_gates(const Thread& thread, const Arguments& a, const Sequence& s, index_t c) {
    const index_t token = c * chunk + lane_of(thread);
    if (token >= a.tokens) return {};
    Gate gate{0, 1};
    if (a.beta.given()) gate.beta = read<T>(a.beta.data, s.beta + token * a.beta.time);
    if (!a.decay.given()) return gate;
    const float number = read<T>(a.decay.data, s.decay + token * a.decay.time);
    const float log = a.log_decay ? number * log2_e : std::log2(number);
    gate.decay = log < least_decay ? least_decay : log;
    return gate;
  }

  /// Decays become those since the chunk's beginning.
  template <class Thread>
  static constexpr void put_gates(const Thread& thread, Gate gate, Gates& to) {
    const int lane = lane_of(thread);
    float total = gate.decay;
    for (int mask = 1; mask < warp_size; mask *= 2) {
      const float other = thread.shuffle_xor(total, mask);
      if (lane & mask) gate.decay += other;
      total += other;
    }
    to.decay[lane] = gate.decay;
    to.beta[lane] = gate.beta;
  }

  /// What a warp is to do of A and P, or of their gradients: 16 rows of one of them.
  struct Job {
    int part;
    bool solve;  // of A
  };
  template <class Thread>
  static constexpr Job job_of(const Thread& thread) {
    constexpr int kinds = Delta ? 2 : 1;
    const int job = thread.index() / warp_size;
    return {parts - 1 - job / kinds, Delta && job % kinds == 1};
  }

  /// sums += (16 rows of a tile) . (rows of another, as far as these)^T; visit(k) after 16 columns each.
  template <class Thread, class Visit>
  static constexpr void multiply_rows(const Thread& thread, std::uint32_t left, std::uint32_t right, int part, Tokens& sums,
                                      Visit&& visit) {
    const int lane = lane_of(thread);
#pragma unroll
    for (int k = 0; k < Width; k += 16) {
      Words a;
      thread.template matrices<false>(a, Rows::moved(left + Rows::down(lane), 16 * part, k));
#pragma unroll
      for (int p = 0; p < parts; ++p)
        if (p <= part) add<T, false>(thread, a, Rows::moved(right + Rows::across(lane), 16 * p, k), sums[2 * p], sums[2 * p + 1]);
      visit(k);
    }
  }

  /// A and P of a chunk. What is shared may be more than this kernel's.
  template <class Thread, class Held>
  static constexpr void prepare(const Thread& thread, Held& shared, int stage, int product) {
    const auto [part, solve] = job_of(thread);
    if (part < 0) return;
    const std::uint32_t keys = thread.address(shared.stages[stage].key);
    Tokens sums = {};
    multiply_rows(thread, solve ? keys : thread.address(shared.stages[stage].query), keys, part, sums, [](int) {});
    float step = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (solve)
        step = std::fmax(step, put_solve(thread, shared, stage, product, part, half, sums));
      else
        put_read(thread, shared, stage, product, part, half, sums);
    }
    if (!solve) return;
    step = largest_of_lanes<warp_size>(thread, step);
    if (lane_of(thread) == 0) shared.products[product].step[part] = step;
  }

  /// Half of a lane's numbers of 16 rows of P.
  template <class Thread, class Held>
  static constexpr void put_read(const Thread& thread, Held& shared, int stage, int product, int part, int half, Tokens& sums) {
    const int lane = lane_of(thread), t = 16 * part + accumulator_row(lane, 2 * half);
    const float* const decay = shared.gates[stage].decay;
    Products& to = shared.products[product];
    float largest = 0;
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int j = token_at(lane, n, i);
        sums[n][i] = j <= t ? sums[n][i] * thread.exp2(decay[t] - decay[j]) : 0.0f;
        largest = std::fmax(largest, std::fabs(sums[n][i]));
      }
    Fit row;
    if constexpr (narrow_range) {
      row = fit<T>(largest_of_lanes<4>(thread, largest));
      if (lane % 4 == 0) to.up[t] = row.up;
    }
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
      put_word(thread.template rounded<T>(sums[n][2 * half] * row.down, sums[n][2 * half + 1] * row.down), to.read, t,
               token_at(lane, n, 2 * half));
  }

  /// Half of a lane's numbers of 16 rows of -A. Returns beta |k|^2 where the lane has one, or 0.
  template <class Thread, class Held>
  static constexpr float put_solve(const Thread& thread, Held& shared, int stage, int product, int part, int half, const Tokens& sums) {
    const int lane = lane_of(thread), row = accumulator_row(lane, 2 * half), t = 16 * part + row;
    const Gates& gates = shared.gates[stage];
    float step = 0;
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n) {
      float numbers[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = token_at(lane, n, i);
        if (j < t) numbers[i] = -gates.beta[t] * sums[n][2 * half + i] * thread.exp2(gates.decay[t] - gates.decay[j]);
        if (j == t) step = gates.beta[t] * sums[n][2 * half + i];
        if (n / 2 == part) shared.diagonal[part][16 * row + j % 16] = numbers[i];
      }
      if (n / 2 >= part) continue;
      std::uint32_t words[2] = {};
      split<T>(thread, numbers[0], numbers[1], words);
#pragma unroll
      for (int u = 0; u < 2; ++u) put_word(words[u], shared.products[product].solve[u], t, token_at(lane, n, 0));
    }
    return step;
  }

  static constexpr void put_word(std::uint32_t word, char* square, int row, int column) {
    *reinterpret_cast<std::uint32_t*>(square + Square::offset(row, column)) = word;
  }

  /// The inverses of the diagonal blocks of I + A, each column by a lane.
  template <class Thread, class Held>
  static constexpr void invert(const Thread& thread, Held& shared, int product) {
    const int part = lane_of(thread) / 16, column = lane_of(thread) % 16;
    const float* const rows = shared.diagonal[part];
    float x[16];
#pragma unroll
    for (int t = 0; t < 16; ++t) {
      x[t] = t == column ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < t; j += 4) {
        const Four four_of_row = four(rows + 16 * t + j);
#pragma unroll
        for (int u = 0; u < 4; ++u)
          if (j + u < t) x[t] = std::fma(four_of_row.at[u], x[j + u], x[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < 16; ++t) {
      std::uint32_t words[2] = {};
      split<T>(thread, x[t], 0, words);
#pragma unroll
      for (int u = 0; u < 2; ++u)
        *reinterpret_cast<std::uint16_t*>(shared.products[product].solve[u] + Square::offset(16 * part + t, 16 * part + column)) =
            static_cast<std::uint16_t>(words[u]);
    }
  }
};

}  // namespace recollect::cuda
