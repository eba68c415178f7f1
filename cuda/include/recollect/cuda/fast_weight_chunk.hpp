// SPDX-License-Identifier: BSD-3-Clause
/// The sum rule and the delta rule, with a decay of each token or none, for tensor cores: 16-bit operands, keys 64 or 128 wide, mapped and
/// normalised before (fast_weight_rows.hpp). Tokens are taken in chunks. With S the state before a chunk, G_t the product of its decays up
/// to token t, and row t of K, Q, V and W what token t has of keys, queries, values and writes, a chunk is
///
///     (I + A) W = diag(beta) (V - diag(G) K S)     A_tj = beta_t G_t / G_j k_t . k_j  for j < t; by the sum rule W = V
///     out = scale (diag(G) Q S + P W)              P_tj = G_t / G_j q_t . k_j         for j <= t
///     S <- G_last S + K^T diag(G_last / G) W
///
/// A block owns some columns of one sequence's S, a warp 16 of them, transposed and in registers: S, V - K S and W are left operands where
/// they are, and what warps share of a chunk is its tile of keys, read in both directions, its queries, P, and A with the diagonal blocks
/// of I + A inverted. While a chunk is worked on, the next one's A and P are made and the one after it is on its way.
///
/// Numbers meet the tensor cores in 16 bits, but for the solution for W, whose operands are split into two of them; sums are float32.
/// Where beta |k|^2 comes near 2, past which nothing is stable, writes cancel each other; then W is split wherever it goes. float16 has a
/// narrow range: what is rounded there is brought near 1 first, by powers of two. A number that is not finite makes its whole chunk so, and
/// all that follows. Beyond what device.hpp says a thread of such a kernel has (ptx_sm80.cuh):
///
///     address(pointer)                   of shared memory, as a number
///     copy16(to, from, there)            16 bytes of memory into shared memory, some time; zeros if not there
///     commit_copies(), wait_copies<n>()  end of a group of this thread's copies; until all but n groups have arrived
///     warp_barrier()                     waits for all lanes of the warp
///     matrices<flip>(words, from)        four matrices of 8 x 8, lane i names row i % 8 of matrix i / 8; flip: each is transposed
///     flipped(word)                      the transpose of a matrix of 8 x 8
///     multiply<T>(sums, a, b0, b1)       sums (16 x 8) += a (16 x 16) . b (16 x 8)
///     exp2(x), rounded<T>(low, high)     2^x, approximately; two numbers of 16 bits in a word
#pragma once

#include "recollect/cuda/fast_weight_columns.hpp"

namespace recollect::cuda {

template <class T, int Width, bool Delta>
struct FastWeightChunk : FastWeightColumns<T, Width, Delta> {
  using Arguments = FastWeightArguments;
  using Made = FastWeightColumns<T, Width, Delta>;
  static constexpr int architecture = 80;
  static constexpr const char* name = "fast_weight_chunk";
  using Made::chunk, Made::narrow_range, Made::parts, Made::warps;
  using typename Made::Gate, typename Made::Gates, typename Made::Products, typename Made::Sequence, typename Made::Shared;
  using typename Made::Rows, typename Made::Square, typename Made::State, typename Made::Tokens;

  static constexpr index_t blocks(const Arguments& a) { return a.sequences * Made::column_blocks(a); }
  static constexpr index_t shared_bytes() { return sizeof(Shared); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    Shared& shared = *reinterpret_cast<Shared*>(thread.shared());
    if (thread.index() == 0) shared.sequence = Made::sequence_of(a, thread.block());
    thread.barrier();
    const Sequence& s = shared.sequence;
    const index_t chunks = (a.tokens + chunk - 1) / chunk;
    const int warp = thread.index() / warp_size;
    for (int first = 0; first < 2; ++first) {
      Made::fetch(thread, a, s, shared.stages[first], first);
      if (warp == 0) Made::put_gates(thread, Made::read_gates(thread, a, s, first), shared.gates[first]);
    }
    State state;
    Made::for_state(thread, a, s, a.state, s.state, state, [&](float& number, index_t place) {
      number = place < 0 || !a.state.given() ? 0.0f : read<float>(a.state.data, place);
    });
    thread.template wait_copies<1>();
    thread.barrier();
    Made::prepare(thread, shared, 0, 0);
    thread.barrier();
    if (Delta && warp == warps - 1) Made::invert(thread, shared, 0);
    int stage = 0, next = 1, free = 2;
    for (index_t c = 0; c < chunks; ++c) {
      thread.template wait_copies<0>();
      thread.barrier();  // the next chunk is there, this one is prepared, the one before is done with
      Made::fetch(thread, a, s, shared.stages[free], c + 2);
      const Gate gate = warp == 0 ? Made::read_gates(thread, a, s, c + 2) : Gate{};
      const int product = static_cast<int>(c % 2);
      const bool more = c + 1 < chunks;
      if (more) Made::prepare(thread, shared, next, 1 - product);
      Tokens removed, out;
      const Fit size = Made::narrow_range ? fit_of<T>(thread, state) : Fit{};
      if (a.states) keep(thread, a, thread.block() * chunks + c, size, state);
      recall(thread, shared, stage, size, state, removed, out);
      if (warp == 0) Made::put_gates(thread, gate, shared.gates[free]);
      thread.barrier();  // the next chunk's A is there
      if (Delta && more && warp == warps - 1) Made::invert(thread, shared, 1 - product);
      write(thread, shared, stage, product, s.scale, state, removed, out);
      if (a.out.given()) Made::store(thread, {a.out, s.out + s.column, a.tokens, a.values - s.column}, shared.stages[stage].value, c, out);
      const int before = stage;
      stage = next, next = free, free = before;
    }
    if (!a.out_state.given()) return;
    Made::for_state(thread, a, s, a.out_state, s.out_state, state, [&](float number, index_t place) {
      if (place >= 0) cuda::write<float>(a.out_state.data, place, number);
    });
  }

 private:
  /// S before a chunk, for its gradient.
  template <class Thread>
  static constexpr void keep(const Thread& thread, const Arguments& a, index_t entry, const Fit& size, const State& state) {
    Made::put_state(thread, state, size.down, a.states + entry * Made::state_words);
    if (narrow_range && lane_of(thread) == 0) a.sizes[entry * warps + thread.index() / warp_size] = size.up;
  }

  /// diag(G) K S and diag(G) Q S, transposed.
  template <class Thread>
  static constexpr void recall(const Thread& thread, const Shared& shared, int stage, const Fit& size, const State& state, Tokens& removed,
                               Tokens& out) {
    const int lane = lane_of(thread);
    const std::uint32_t keys = thread.address(shared.stages[stage].key) + Rows::across(lane);
    const std::uint32_t queries = thread.address(shared.stages[stage].query) + Rows::across(lane);
    Made::clear(removed), Made::clear(out);
#pragma unroll
    for (int k = 0; k < Width; k += 16) {
      Words a;
      round<T>(thread, state[k / 8], state[k / 8 + 1], size.down, a);
#pragma unroll
      for (int p = 0; p < parts; ++p) {
        if (Delta) add<T, false>(thread, a, Rows::moved(keys, 16 * p, k), removed[2 * p], removed[2 * p + 1]);
        add<T, false>(thread, a, Rows::moved(queries, 16 * p, k), out[2 * p], out[2 * p + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float factor = thread.exp2(shared.gates[stage].decay[Made::token_at(lane, n, i)]) * size.up;
#pragma unroll
        for (int half = 0; half < 4; half += 2) removed[n][i + half] *= factor, out[n][i + half] *= factor;
      }
  }

  /// W from what the state holds of it, the outputs, and the new state.
  template <class Thread>
  static constexpr void write(const Thread& thread, const Shared& shared, int stage, int product, float scale, State& state,
                              Tokens& removed, Tokens& out) {
    const int lane = lane_of(thread);
    const std::uint32_t reads = thread.address(shared.products[product].read);
    const Gates& gates = shared.gates[stage];
    Tokens written;
    Fit size;
    const float* const steps = shared.products[product].step;
    const bool strict = Delta && std::fmax(steps[0], steps[1]) > strict_above;
    Made::get_columns(thread, thread.address(shared.stages[stage].value), written);
    if constexpr (Delta) {
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) written[n][i] = gates.beta[Made::token_at(lane, n, i)] * (written[n][i] - removed[n][i]);
      if constexpr (narrow_range) size = fit_of<T>(thread, written);
      Made::template solve<false>(thread, shared.products[product], size.down, written);
    }
    Made::clear(removed);  // from here on P W
#pragma unroll
    for (int q = 0; q < parts; ++q) {
      Words whole, rest;
      split<T>(thread, written[2 * q], written[2 * q + 1], whole, rest);
#pragma unroll
      for (int p = q; p < parts; ++p) {
        const std::uint32_t place = Square::moved(reads + Square::across(lane), 16 * p, 16 * q);
        add<T, false>(thread, whole, place, removed[2 * p], removed[2 * p + 1]);
        if (strict) add<T, false>(thread, rest, place, removed[2 * p], removed[2 * p + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float up = narrow_range ? shared.products[product].up[Made::token_at(lane, n, i)] * size.up : 1.0f;
        out[n][i] = scale * std::fma(removed[n][i], up, out[n][i]);
      }
    const float last = gates.decay[chunk - 1];
    Made::each(thread, written, [&](float& number, int t, int, int) { number *= thread.exp2(last - gates.decay[t]); });
    Made::fold(thread, thread.address(shared.stages[stage].key), thread.exp2(last), size, strict, written, state);
  }
};

}  // namespace recollect::cuda
