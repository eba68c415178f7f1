// SPDX-License-Identifier: BSD-3-Clause
/// What the warps of fast_weight_chunk_reverse.hpp, whose letters these are, share of a chunk: the gradients of P and A, of which a warp
/// makes 16 rows, and sums over all columns or channels, a number for each token, from which the gradients of beta and of decays follow.
///
/// With g_s the logarithm of token s's decay, what is multiplied by this decay is all that comes from before token s and goes to it or
/// beyond. The gradient of g_s is the sum of just that, in which nothing cancels that does not have the decay as a factor,
///
///     d_g_s = sum of s <= t (reads of S at t) + G_last dS'.S + sum of j < s (W_j kept in S') + sum of j < s <= t (dP_tj P_tj + dA_tj A_tj)
///
/// so that it can be divided by small decays. One that is less than `least_kept_decay` has the gradient that it would have there.
#pragma once

#include "recollect/cuda/fast_weight_columns.hpp"
#include "recollect/cuda/fast_weight_gradient.hpp"

namespace recollect::cuda {

/// Of a logarithm to base 2. Its power and products of numbers with it are normal float32.
inline constexpr float least_kept_decay = -96;

template <class T, int Width, bool Delta>
struct FastWeightChunkGradient : FastWeightColumns<T, Width, Delta> {
  using Made = FastWeightColumns<T, Width, Delta>;
  using Arguments = FastWeightBackwardArguments;
  using Made::chunk, Made::narrow_range, Made::parts, Made::threads, Made::warps;
  using typename Made::Gate, typename Made::Gates, typename Made::Products, typename Made::Sequence;
  using typename Made::Rows, typename Made::Square, typename Made::Tokens;
  static constexpr int tile_bytes = chunk * 2 * Width;

  struct alignas(Rows::alignment) Stage {
    char key[tile_bytes], query[tile_bytes];
  };
  /// Where the sequence begins, and the block's share of gradients that are sums over columns.
  struct Begin : Sequence {
    index_t d_out = 0, d_out_state = 0, d_query = 0, d_key = 0, d_value = 0, d_beta = 0, d_decay = 0, d_scale = 0, d_state = 0;
    index_t entry = 0;  // of the first chunk in `states`
    int chunks = 0;
  };
  /// Sums: Y . U of the columns of a warp; rows of dA . A / beta; what crosses a token, of 16 rows of P or A; dS' . S of a warp.
  struct Partial {
    float beta[warps][chunk], row[chunk], crossing[(Delta ? 2 : 1) * parts][chunk], state[warps];
  };
  /// What numbers in 16 bits are to be multiplied by where their range is narrow: of each warp's columns, and of 16 rows of dP and dA.
  struct Sizes {
    float state[warps], gradient[warps], written[warps], solved[warps], pairs[2][parts];
  };
  struct Shared {
    Stage stages[2];
    char value[tile_bytes], cotangent[tile_bytes], solved[tile_bytes];  // the values become W; Y
    char state[4 * Made::state_words];                                  // S, then dS'
    Products products[1];                                               // later dP and dA, where P and A were
    union {
      float diagonal[parts][16 * 16 + 4];  // until A's blocks are inverted
      Partial partial;
    };
    Gates gates[2];
    float numbers[warps][chunk];  // what tokens read of S, then what they write
    float known[chunk];           // of the gradients of decays, before what is written is
    float of_scale[warps];        // the gradient of scale
    Sizes sizes;
    Begin begin;
  };

  static constexpr Begin begin_of(const Arguments& a, index_t block) {
    const index_t h = block / Made::column_blocks(a.scan), share = block % Made::column_blocks(a.scan), tokens = share * a.scan.tokens;
    Begin s{Made::sequence_of(a.scan, block)};
    s.d_out = a.scan.offset(a.d_out, h) + s.column;
    s.d_value = a.scan.offset(a.d_value, h) + s.column * a.d_value.inner;
    s.d_out_state = a.scan.offset(a.d_out_state, h), s.d_state = a.scan.offset(a.d_state, h);
    s.d_query = a.scan.offset(a.d_query, h) + tokens * a.scan.keys;
    s.d_key = a.scan.offset(a.d_key, h) + tokens * a.scan.keys;
    s.d_beta = a.scan.offset(a.d_beta, h) + tokens, s.d_decay = a.scan.offset(a.d_decay, h) + tokens;
    s.d_scale = a.scan.offset(a.d_scale, h) + share;
    s.chunks = static_cast<int>((a.scan.tokens + chunk - 1) / chunk);
    s.entry = block * s.chunks;
    return s;
  }

  template <class Thread>
  static constexpr Gate gate_of(const Thread& thread, const Arguments& a, const Sequence& s, index_t c) {
    Gate gate = Made::read_gates(thread, a.scan, s, c);
    if (gate.decay < least_kept_decay) gate.decay = least_kept_decay;
    return gate;
  }

 protected:
  /// Sums of f(n, i) over a warp's columns or channels, for each token.
  template <class Thread, class F>
  static constexpr void put_sums(const Thread& thread, float* to, F&& f) {
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) put_sum(thread, f(n, i) + f(n, i + 2), to, n, i);
  }
  template <class Thread>
  static constexpr void put_sum(const Thread& thread, float sum, float* to, int n, int i) {
    for (int mask = 4; mask < warp_size; mask *= 2) sum += thread.shuffle_xor(sum, mask);
    if (lane_of(thread) < 4) to[Made::token_at(lane_of(thread), n, i)] = sum;
  }

  /// dP = lower(dO W^T) and dA = -strict_lower(Y W^T), as what the products of queries and keys are multiplied by.
  template <class Thread>
  static constexpr void pull_pairs(const Thread& thread, const Arguments& a, Shared& shared, int stage) {
    const auto [part, solve] = Made::job_of(thread);
    if (part < 0) return;
    const Stage& from = shared.stages[stage];
    const std::uint32_t keys = thread.address(from.key), written = thread.address(shared.value);
    const std::uint32_t left = thread.address(solve ? shared.solved : shared.cotangent);
    Tokens sums = {}, scores = {};
    if constexpr (narrow_range) {
      Tokens piece = {};
      Made::multiply_rows(thread, left, written, part, piece, [&, solve = solve](int k) {
        const float size = shared.sizes.written[k / 16] * (solve ? shared.sizes.solved[k / 16] : 1.0f);
        Made::each(thread, piece, [&](float& number, int, int n, int i) { sums[n][i] = std::fma(size, number, sums[n][i]), number = 0; });
      });
    } else {
      Made::multiply_rows(thread, left, written, part, sums, [](int) {});
    }
    Made::multiply_rows(thread, solve ? keys : thread.address(from.query), keys, part, scores, [](int) {});
    fade_pairs(thread, shared, stage, part, solve, sums, scores);
    if (a.d_decay.given()) put_crossing(thread, scores, part, shared.partial.crossing[thread.index() / warp_size]);
    put_pairs(thread, shared, part, solve, sums);
  }

 private:
  /// sums become factors of the scores, which become what P or A and its gradient have in common.
  template <class Thread>
  static constexpr void fade_pairs(const Thread& thread, Shared& shared, int stage, int part, bool solve, Tokens& sums, Tokens& scores) {
    const int lane = lane_of(thread);
    const Gates& gates = shared.gates[stage];
    float rows[2] = {};
    Made::each(thread, sums, [&](float& number, int j, int n, int i) {
      const int t = 16 * part + accumulator_row(lane, i);
      number = j < t || (j == t && !solve) ? number * thread.exp2(gates.decay[t] - gates.decay[j]) : 0.0f;
      if (solve) {
        rows[i / 2] = std::fma(-number, scores[n][i], rows[i / 2]);
        number *= -gates.beta[t];
      }
      scores[n][i] *= solve ? number : number * shared.begin.scale;
    });
    for (int half = 0; solve && half < 2; ++half) {
      const float row = sum_of_lanes<4>(thread, rows[half]);
      if (lane % 4 == 0) shared.partial.row[16 * part + accumulator_row(lane, 2 * half)] = row;
    }
  }

  /// For every token s the sum over 16 rows of the pairs j < s <= t.
  template <class Thread>
  static constexpr void put_crossing(const Thread& thread, const Tokens& pairs, int part, float* to) {
    const int lane = lane_of(thread);
    float before[2] = {};  // in a row, in the pieces before
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n) {
      float columns[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = before[half], total = pairs[n][2 * half] + pairs[n][2 * half + 1];
        for (int mask = 1; mask < 4; mask *= 2) {
          const float other = thread.shuffle_xor(total, mask);
          if (lane & mask) sum += other;
          total += other;
        }
        before[half] += total;
        const int t = 16 * part + accumulator_row(lane, 2 * half), s = Made::token_at(lane, n, 0);
        if (s <= t) columns[0] += sum;
        if (s + 1 <= t) columns[1] += sum + pairs[n][2 * half];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) put_sum(thread, columns[i], to, n, i);
    }
  }

  template <class Thread>
  static constexpr void put_pairs(const Thread& thread, Shared& shared, int part, bool solve, const Tokens& pairs) {
    const int lane = lane_of(thread);
    char* const square = solve ? shared.products[0].solve[0] : shared.products[0].read;
    const Fit size = narrow_range ? fit_of<T>(thread, pairs) : Fit{};
    if (narrow_range && lane == 0) shared.sizes.pairs[solve][part] = size.up;
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (n / 2 <= part)
          Made::put_word(thread.template rounded<T>(pairs[n][2 * half] * size.down, pairs[n][2 * half + 1] * size.down), square,
                         16 * part + accumulator_row(lane, 2 * half), Made::token_at(lane, n, 0));
  }

 protected:
  /// The sums of all warps, a lane for each token: writes the gradient of beta, and keeps what is known of that of the decays.
  template <class Thread>
  static constexpr void gather(const Thread& thread, const Arguments& a, Shared& shared, int stage, index_t c) {
    const int lane = lane_of(thread);
    const index_t token = c * chunk + lane;
    const Partial& sums = shared.partial;
    if (Delta && a.d_beta.given()) {
      float sum = sums.row[lane];
      for (int warp = 0; warp < warps; ++warp) sum += sums.beta[warp][lane];
      if (token < a.scan.tokens) write(a.d_beta.data, a.d_beta.type, shared.begin.d_beta + token * a.d_beta.time, sum);
    }
    if (!a.d_decay.given()) return;
    float read = 0, state = 0;
    for (int warp = 0; warp < warps; ++warp) read += shared.numbers[warp][lane], state += sums.state[warp];
    float total = read, known = thread.exp2(shared.gates[stage].decay[chunk - 1]) * state;
    for (const auto& of_job : sums.crossing) known += of_job[lane];
    for (int mask = 1; mask < warp_size; mask *= 2) {
      const float other = thread.shuffle_xor(total, mask);
      if (!(lane & mask)) read += other;
      total += other;
    }
    shared.known[lane] = known + read;
  }

  /// The gradients of a chunk's decays, when all has been summed.
  template <class Thread>
  static constexpr void put_decays(const Thread& thread, const Arguments& a, const Shared& shared, index_t c) {
    if (!a.d_decay.given()) return;
    const int lane = lane_of(thread);
    const index_t token = c * chunk + lane;
    float total = 0, known = shared.known[lane];
    for (int warp = 0; warp < warps; ++warp) total += shared.numbers[warp][lane];
    for (int mask = 1; mask < warp_size; mask *= 2) {
      const float other = thread.shuffle_xor(total, mask);
      if (lane & mask) known += other;
      total += other;
    }
    if (!a.scan.log_decay) known /= thread.exp2(gate_of(thread, a, shared.begin, c).decay);
    if (token < a.scan.tokens) write(a.d_decay.data, a.d_decay.type, shared.begin.d_decay + token * a.d_decay.time, known);
  }
};

}  // namespace recollect::cuda
