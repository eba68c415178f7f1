// SPDX-License-Identifier: BSD-3-Clause
/// The gradient of fast_weight_chunk.hpp, on the same tensor cores: chunk by chunk back, with the gradient of S where S was, a warp's 16
/// columns transposed and in registers. S before every chunk comes from a walk of FastWeightChunk, in the 16 bits in which products take
/// it. With dO the cotangent of a chunk's outputs, dS' that of S after it, U = V - diag(G) K S and C = diag(G_last / G),
///
///     dW = scale P^T dO + C K dS',   (I + A)^T Y = dW,   dV = diag(beta) Y  (by the sum rule dV = dW)
///     dP = lower(dO W^T),   dA = -strict_lower(Y W^T);   with P and A's factors of products of queries and keys: dP' and dA'
///     dQ = scale (diag(G) dO S^T + dP' K)
///     dK = C W dS'^T + scale dP'^T Q - diag(G) dV S^T + (dA' + dA'^T) K
///     dS = G_last dS' + scale (diag(G) Q)^T dO - (diag(G) K)^T dV
///     dbeta = rowsum(Y * U) + rowsum(dA * A / beta)
///
/// What is made of columns (W, Y, dS) is the work of the warp that has them; what sums over columns (dQ, dK) is split by channels, 16 of
/// them a warp, which takes W, Y and dS' of all columns from shared memory, in 16 bits.
#pragma once

#include "recollect/cuda/fast_weight_chunk_gradient.hpp"

namespace recollect::cuda {

template <class T, int Width, bool Delta>
struct FastWeightChunkReverse : FastWeightChunkGradient<T, Width, Delta> {
  using Arguments = FastWeightBackwardArguments;
  using Made = FastWeightChunkGradient<T, Width, Delta>;
  static constexpr int architecture = 80;
  static constexpr const char* name = "fast_weight_chunk_reverse";
  using Made::chunk, Made::narrow_range, Made::parts, Made::threads, Made::warps;
  using typename Made::Begin, typename Made::Gate, typename Made::Gates, typename Made::Shared;
  using typename Made::Rows, typename Made::Square, typename Made::State, typename Made::Tokens;

  static constexpr index_t blocks(const Arguments& a) { return a.scan.sequences * Made::column_blocks(a.scan); }
  static constexpr index_t shared_bytes() { return sizeof(Shared); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    Shared& shared = *reinterpret_cast<Shared*>(thread.shared());
    if (thread.index() == 0) shared.begin = Made::begin_of(a, thread.block());
    thread.barrier();
    Back<Thread>{thread, a, shared, shared.begin}.walk();
  }

 private:
  template <class Thread>
  struct Back {
    const Thread& thread;
    const Arguments& a;
    Shared& shared;
    const Begin& s;
    State gradient = {};  // of S behind the chunk

    constexpr int warp() const { return thread.index() / warp_size; }
    constexpr int lane() const { return lane_of(thread); }

    constexpr void walk() {
      Made::for_state(thread, a.scan, s, a.d_out_state, s.d_out_state, gradient, [&](float& number, index_t place) {
        number = place < 0 || !a.d_out_state.given() ? 0.0f : read<float>(a.d_out_state.data, place);
      });
      fetch_tokens(s.chunks - 1);
      if (warp() == 0) Made::put_gates(thread, Made::gate_of(thread, a, s, s.chunks - 1), shared.gates[(s.chunks - 1) % 2]);
      if (lane() == 0) shared.of_scale[warp()] = 0;
      for (int c = s.chunks - 1; c >= 0; --c) {
        const int stage = c % 2;
        thread.template wait_copies<0>();
        thread.barrier();  // keys and queries are there, the chunk behind is done with
        fetch_columns(c);
        fetch_tokens(c - 1);
        const Gate gate = warp() == 0 && c > 0 ? Made::gate_of(thread, a, s, c - 1) : Gate{};
        if (warp() == warps - 1 && c + 1 < s.chunks) Made::put_decays(thread, a, shared, c + 1);
        Made::prepare(thread, shared, stage, 0);
        Tokens removed, solved;
        look_back(stage, solved);
        thread.template wait_copies<1>();
        thread.barrier();  // all of the chunk is there, and so are A and P
        if (warp() == 0) Made::put_gates(thread, gate, shared.gates[1 - stage]);
        const float along = recall(stage, removed);
        look_around(solved);
        if (Delta && warp() == warps - 1) Made::invert(thread, shared, 0);
        if (Delta) thread.barrier();  // A's blocks are inverted
        if (lane() == 0) shared.partial.state[warp()] = along;
        const Fit size = write(stage, c, removed, solved);
        thread.barrier();  // W and Y are there
        Made::pull_pairs(thread, a, shared, stage);
        Tokens d_query, d_key;
        pull_state(stage, d_query, d_key);
        thread.barrier();  // the chunk's S is done with, dP and dA are there
        if (warp() == warps - 1) Made::gather(thread, a, shared, stage, c);
        share();
        pull_products(stage, c, d_query, d_key);
        thread.barrier();  // dS' is there
        pull_writes(stage, c, d_key);
        pass(stage, size, solved);
      }
      finish();
    }

    constexpr void fetch_tokens(int c) {
      if (c >= 0) {
        auto& stage = shared.stages[c % 2];
        Made::fetch_rows(thread, a.scan.key, s.key, a.scan.tokens, Width, c, stage.key);
        Made::fetch_rows(thread, a.scan.query, s.query, a.scan.tokens, Width, c, stage.query);
      }
      thread.commit_copies();
    }

    constexpr void fetch_columns(int c) {
      const index_t entry = s.entry + c;
      const std::uint32_t* const from = a.scan.states + entry * Made::state_words;
      for (int i = 4 * thread.index(); i < Made::state_words; i += 4 * threads)
        thread.copy16(thread.address(shared.state) + 4 * static_cast<std::uint32_t>(i), from + i, true);
      const int columns = a.scan.values - s.column;
      Made::fetch_rows(thread, a.scan.value, s.value + s.column, a.scan.tokens, columns, c, shared.value);
      Made::fetch_rows(thread, a.d_out, s.d_out, a.scan.tokens, columns, c, shared.cotangent);
      if (narrow_range && thread.index() < warps) shared.sizes.state[thread.index()] = a.scan.sizes[entry * warps + thread.index()];
      thread.commit_copies();
    }

    /// C K dS', transposed.
    constexpr void look_back(int stage, Tokens& to) {
      const Gates& gates = shared.gates[stage];
      const std::uint32_t keys = thread.address(shared.stages[stage].key) + Rows::across(lane());
      const Fit size = narrow_range ? fit_of<T>(thread, gradient) : Fit{};
      Made::clear(to);
#pragma unroll
      for (int k = 0; k < Width; k += 16) {
        Words words;
        round<T>(thread, gradient[k / 8], gradient[k / 8 + 1], size.down, words);
#pragma unroll
        for (int p = 0; p < parts; ++p) add<T, false>(thread, words, Rows::moved(keys, 16 * p, k), to[2 * p], to[2 * p + 1]);
      }
      const float last = gates.decay[chunk - 1];
      Made::each(thread, to, [&](float& number, int t, int, int) { number *= thread.exp2(last - gates.decay[t]) * size.up; });
    }

    /// diag(G) K S, transposed. Returns dS' . S of the warp's columns, if somebody asks.
    constexpr float recall(int stage, Tokens& removed) {
      if (!Delta && !a.d_decay.given()) return 0;
      const std::uint32_t keys = thread.address(shared.stages[stage].key) + Rows::across(lane());
      const std::uint32_t state = thread.address(shared.state) + 16 * static_cast<std::uint32_t>(lane());
      const float size = narrow_range ? shared.sizes.state[warp()] : 1.0f;
      float along = 0;
      Made::clear(removed);
#pragma unroll
      for (int k = 0; k < Width; k += 16) {
        Words words;
        thread.template matrices<false>(words, state + 4 * Made::operand_at(Made::first_column(thread), k));
#pragma unroll
        for (int p = 0; Delta && p < parts; ++p)
          add<T, false>(thread, words, Rows::moved(keys, 16 * p, k), removed[2 * p], removed[2 * p + 1]);
        if (!a.d_decay.given()) continue;
#pragma unroll
        for (int i = 0; i < 8; ++i) along = std::fma(half_of<T>(words[i / 2], i % 2), gradient[k / 8 + i / 4][i % 4], along);
      }
      Made::each(thread, removed, [&](float& x, int t, int, int) { x *= thread.exp2(shared.gates[stage].decay[t]) * size; });
      return a.d_decay.given() ? sum_of_lanes<warp_size>(thread, along * size) : 0.0f;
    }

    /// Adds scale P^T dO, transposed.
    constexpr void look_around(Tokens& to) {
      const std::uint32_t reads = thread.address(shared.products[0].read) + Square::down(lane());
      Tokens cotangent, sums;
      Made::get_columns(thread, thread.address(shared.cotangent), cotangent);
      Fit size;
      if constexpr (narrow_range) {  // rows of P are divided by powers of two
        Made::each(thread, cotangent, [&](float& number, int t, int, int) { number *= shared.products[0].up[t]; });
        size = fit_of<T>(thread, cotangent);
      }
      Made::clear(sums);
#pragma unroll
      for (int q = 0; q < parts; ++q) {
        Words words;
        round<T>(thread, cotangent[2 * q], cotangent[2 * q + 1], size.down, words);
#pragma unroll
        for (int p = 0; p <= q; ++p) add<T, true>(thread, words, Square::moved(reads, 16 * q, 16 * p), sums[2 * p], sums[2 * p + 1]);
      }
      Made::each(thread, to, [&](float& number, int, int n, int i) { number = std::fma(s.scale * size.up, sums[n][i], number); });
    }

    /// W in the place of the values, Y of dW, and dV. Y is what `solved` becomes, times what is returned.
    constexpr Fit write(int stage, int c, Tokens& removed, Tokens& solved) {
      const typename Made::template Target<void> d_value{a.d_value, s.d_value, a.scan.tokens, a.scan.values - s.column};
      if (narrow_range && lane() == 0) shared.sizes.written[warp()] = 1;
      if constexpr (!Delta) {
        if (a.d_value.given()) Made::store(thread, d_value, shared.solved, c, solved);
        return {};
      }
      const Gates& gates = shared.gates[stage];
      Tokens written;
      Made::get_columns(thread, thread.address(shared.value), written);
      Made::each(thread, written, [&](float& number, int t, int n, int i) {
        removed[n][i] = number - removed[n][i];
        number = gates.beta[t] * removed[n][i];
      });
      const Fit size = narrow_range ? fit_of<T>(thread, written) : Fit{}, found = narrow_range ? fit_of<T>(thread, solved) : Fit{};
      if (narrow_range && lane() == 0) shared.sizes.written[warp()] = size.up, shared.sizes.solved[warp()] = found.up;
      Made::template solve<false>(thread, shared.products[0], size.down, written);
      Made::put_columns(thread, written, shared.value);
      Made::template solve<true>(thread, shared.products[0], found.down, solved);
      Made::put_sums(thread, shared.partial.beta[warp()], [&](int n, int i) { return found.up * solved[n][i] * removed[n][i]; });
      if (a.d_value.given()) {
        Made::each(thread, removed, [&](float& x, int t, int n, int i) { x = gates.beta[t] * found.up * solved[n][i]; });
        Made::store(thread, d_value, shared.solved, c, removed);  // lanes meet below before any of them writes there again
      }
      Made::put_columns(thread, solved, shared.solved);
      return found;
    }

    /// sums (a warp's channels x tokens) = (S or dS') . (W, Y or dO)^T; size(v) is what their columns 16 v and on are multiplied by.
    template <class Size>
    constexpr void multiply_columns(const char* rows, Tokens& sums, Size&& size) {
      const int row = (lane() / 8 % 2 * 2 + lane() / 16) * 8 + lane() % 8;  // matrices beside each other come to lie below each other
      const std::uint32_t state = thread.address(shared.state) + 16 * static_cast<std::uint32_t>(row);
      const std::uint32_t tile = thread.address(rows) + Rows::across(lane());
      Made::clear(sums);
#pragma unroll 2
      for (int v = 0; v < Width; v += 16) {
        Words words;
        thread.template matrices<true>(words, state + 4 * Made::operand_at(v, Made::first_column(thread)));
        if constexpr (narrow_range) {
          Tokens piece = {};
#pragma unroll
          for (int p = 0; p < parts; ++p) add<T, false>(thread, words, Rows::moved(tile, 16 * p, v), piece[2 * p], piece[2 * p + 1]);
          Made::each(thread, sums, [&](float& sum, int, int n, int i) { sum = std::fma(size(v / 16), piece[n][i], sum); });
        } else {
#pragma unroll
          for (int p = 0; p < parts; ++p) add<T, false>(thread, words, Rows::moved(tile, 16 * p, v), sums[2 * p], sums[2 * p + 1]);
        }
      }
    }

    /// What queries and keys have of S, and what they read of it.
    constexpr void pull_state(int stage, Tokens& d_query, Tokens& d_key) {
      const Gates& gates = shared.gates[stage];
      const auto& sizes = shared.sizes;
      multiply_columns(shared.cotangent, d_query, [&](int v) { return sizes.state[v]; });
      Made::clear(d_key);
      if (Delta) multiply_columns(shared.solved, d_key, [&](int v) { return sizes.state[v] * sizes.solved[v]; });
      Made::each(thread, d_query, [&](float& number, int t, int n, int i) {
        const float factor = thread.exp2(gates.decay[t]);
        number *= factor;
        if (Delta) d_key[n][i] *= -gates.beta[t] * factor;
      });
      if (!a.d_decay.given()) return;
      Tokens queries, keys;
      Made::get_columns(thread, thread.address(shared.stages[stage].query), queries);
      if (Delta) Made::get_columns(thread, thread.address(shared.stages[stage].key), keys);
      Made::put_sums(thread, shared.numbers[warp()], [&](int n, int i) {
        const float read = s.scale * queries[n][i] * d_query[n][i];
        return Delta ? std::fma(keys[n][i], d_key[n][i], read) : read;
      });
    }

    /// dS' into shared memory, in the place of S.
    constexpr void share() {
      const Fit size = narrow_range ? fit_of<T>(thread, gradient) : Fit{};
      Made::put_state(thread, gradient, size.down, reinterpret_cast<std::uint32_t*>(shared.state));
      if (narrow_range && lane() == 0) shared.sizes.gradient[warp()] = size.up;
    }

    /// On to the gradient of S before the chunk.
    constexpr void pass(int stage, const Fit& of_solved, Tokens& solved) {
      const Gates& gates = shared.gates[stage];
      const float* const steps = shared.products[0].step;
      const bool strict = Delta && std::fmax(steps[0], steps[1]) > strict_above;
      Tokens cotangent;
      Made::get_columns(thread, thread.address(shared.cotangent), cotangent);
      Made::each(thread, cotangent, [&](float& number, int t, int, int) { number *= s.scale * thread.exp2(gates.decay[t]); });
      fold(shared.stages[stage].query, thread.exp2(gates.decay[chunk - 1]), {}, false, cotangent);
      if constexpr (!Delta) return;
      Made::each(thread, solved, [&](float& number, int t, int, int) { number *= -gates.beta[t] * thread.exp2(gates.decay[t]); });
      fold(shared.stages[stage].key, 1, of_solved, strict, solved);
    }

    constexpr void fold(const char* rows, float fade, Fit size, bool strict, Tokens& numbers) {
      if constexpr (narrow_range) {
        const Fit more = fit_of<T>(thread, numbers);
        Made::each(thread, numbers, [&](float& number, int, int, int) { number *= more.down; });
        size = {size.down * more.down, size.up * more.up};
      }
      Made::fold(thread, thread.address(rows), fade, size, strict, numbers, gradient);
    }

    /// What they have of each other, with which the query's is complete. It goes out by way of the warp's own columns of Y.
    constexpr void pull_products(int stage, int c, Tokens& d_query, Tokens& d_key) {
      const char *keys = shared.stages[stage].key, *queries = shared.stages[stage].query;
      mix<false>(keys, 0, 1, d_query);
      mix<true>(queries, 0, s.scale, d_key);
      if constexpr (Delta) mix<false>(keys, 1, 1, d_key), mix<true>(keys, 1, 1, d_key);
      if (a.d_scale.given()) {
        float d_scale = 0;
        Tokens rows;
        Made::get_columns(thread, thread.address(queries), rows);
        Made::each(thread, rows, [&](float& number, int, int n, int i) { d_scale = std::fma(number, d_query[n][i], d_scale); });
        d_scale = sum_of_lanes<warp_size>(thread, d_scale);
        if (lane() == 0) shared.of_scale[warp()] += d_scale;
      }
      if (!a.d_query.given()) return;
      Made::each(thread, d_query, [&](float& number, int, int, int) { number *= s.scale; });
      Made::store(thread, {a.d_query, s.d_query, a.scan.tokens, Width}, shared.solved, c, d_query);
    }

    /// to += factor (dP' or dA' or its transpose . rows)^T
    template <bool transposed>
    constexpr void mix(const char* rows, int kind, float factor, Tokens& to) {
      const char* const square = kind ? shared.products[0].solve[0] : shared.products[0].read;
      const std::uint32_t pairs = thread.address(square) + (transposed ? Square::down(lane()) : Square::across(lane()));
      const std::uint32_t tile = thread.address(rows) + Rows::across(lane());
#pragma unroll
      for (int q = 0; q < parts; ++q) {
        Words words;
        thread.template matrices<true>(words, Rows::moved(tile, 16 * q, Made::first_column(thread)));
#pragma unroll
        for (int p = 0; p < parts; ++p) {
          const int row = transposed ? q : p, column = transposed ? p : q;
          if (column > row) continue;
          Sums left = {}, right = {};
          add<T, transposed>(thread, words, Square::moved(pairs, 16 * row, 16 * column), left, right);
          const float size = narrow_range ? factor * shared.sizes.pairs[kind][row] : factor;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[2 * p][i] = std::fma(size, left[i], to[2 * p][i]);
            to[2 * p + 1][i] = std::fma(size, right[i], to[2 * p + 1][i]);
          }
        }
      }
    }

    /// What keys have of the writes that are kept in S, with which theirs is complete.
    constexpr void pull_writes(int stage, int c, Tokens& d_key) {
      const Gates& gates = shared.gates[stage];
      const auto& sizes = shared.sizes;
      Tokens wrote;
      multiply_columns(shared.value, wrote, [&](int v) { return sizes.gradient[v] * sizes.written[v]; });
      const float last = gates.decay[chunk - 1];
      Made::each(thread, wrote, [&](float& number, int t, int n, int i) {
        number *= thread.exp2(last - gates.decay[t]);
        d_key[n][i] += number;
      });
      if (a.d_key.given()) Made::store(thread, {a.d_key, s.d_key, a.scan.tokens, Width}, shared.solved, c, d_key);
      if (!a.d_decay.given()) return;
      Tokens keys;
      Made::get_columns(thread, thread.address(shared.stages[stage].key), keys);
      Made::put_sums(thread, shared.numbers[warp()], [&](int n, int i) { return keys[n][i] * wrote[n][i]; });
    }

    constexpr void finish() {
      thread.barrier();  // the last sums are there
      if (warp() == warps - 1) Made::put_decays(thread, a, shared, 0);
      if (a.d_scale.given() && thread.index() == 0) {
        float sum = 0;
        for (float part : shared.of_scale) sum += part;
        cuda::write<float>(a.d_scale.data, s.d_scale, sum);
      }
      if (!a.d_state.given()) return;
      Made::for_state(thread, a.scan, s, a.d_state, s.d_state, gradient, [&](float number, index_t place) {
        if (place >= 0) cuda::write<float>(a.d_state.data, place, number);
      });
    }
  };
};

}  // namespace recollect::cuda
