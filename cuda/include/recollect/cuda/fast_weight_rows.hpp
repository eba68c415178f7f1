// SPDX-License-Identifier: BSD-3-Clause
/// Queries and keys as FastWeightChunk takes them: mapped and normalised in float32, rounded to 16 bits, in rows of their own for every
/// sequence. Where outputs are divided by query . z, it is the queries that are: S^T q / (q . z) = S^T (q / (q . z)).
#pragma once

#include "recollect/cuda/fast_weight_scan.hpp"
#include "recollect/cuda/warp_rows.hpp"

namespace recollect::cuda {

struct FastWeightRowsArguments {
  FastWeightArguments from;
  void *queries = nullptr, *keys = nullptr;  // (sequences, tokens, K), of the type of the operands

  constexpr dtype type() const { return from.query.type; }
  constexpr index_t place(index_t h, index_t t) const { return (h * from.tokens + t) * from.keys; }
};

/// A warp for each row, queries first; a lane has two neighbours of every 64 numbers.
struct FastWeightRows : WarpRows {
  using Arguments = FastWeightRowsArguments;
  static constexpr int widest = 128, groups = widest / (2 * warp_size);
  static constexpr const char* name = "fast_weight_rows";

  static constexpr index_t blocks(const Arguments& a) { return blocks_for(2 * a.from.sequences * a.from.tokens); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const FastWeightArguments& a = arguments.from;
    const auto [row, o, r, lane] = place(thread, 2, a.sequences * a.tokens);
    if (row < 0) return;
    const TokenRows<const void>& rows = o == 0 ? a.query : a.key;
    const index_t h = r / a.tokens, t = r % a.tokens, begin = a.offset(rows, h) + t * rows.time;
    float numbers[2 * groups] = {};
#pragma unroll
    for (int i = 0; i < 2 * groups; ++i)
      if (const int k = column(lane, i); k < a.keys)
        numbers[i] = map_value(feature_maps{}, a.map, read(rows.data, rows.type, begin + k * rows.inner));
    float divisor = 1;
    if (a.norm != row_norm::none)
      divisor = divisor_of(thread, a.norm, [&](auto&& visit) {
#pragma unroll
        for (int i = 0; i < 2 * groups; ++i) visit(numbers[i]);
      });
    void* const to = o == 0 ? arguments.queries : arguments.keys;
#pragma unroll
    for (int i = 0; i < 2 * groups; ++i)
      if (const int k = column(lane, i); k < a.keys)
        write(to, arguments.type(), arguments.place(h, t) + k, divisor == 0 ? 0.0f : numbers[i] / divisor);
  }

 private:
  static constexpr int column(int lane, int i) { return i / 2 * 2 * warp_size + 2 * lane + i % 2; }
};

/// Divides every query by its product with z, the sum of the keys so far: z_t = D_t z_{t-1} + key_t. A block for each sequence; a thread
/// has a channel of z through some tokens, and then a warp the queries of some of these.
struct FastWeightDivide {
  using Arguments = FastWeightRowsArguments;
  static constexpr int threads = 128, warps = threads / warp_size, chunk = 32, ahead = 8;
  static constexpr const char* name = "fast_weight_divide";

  struct Shared {
    float z[chunk * threads], decay[chunk];
  };

  static constexpr index_t blocks(const Arguments& a) { return a.from.sequences; }
  static constexpr index_t shared_bytes() { return sizeof(Shared); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const FastWeightArguments& a = arguments.from;
    Shared& shared = *reinterpret_cast<Shared*>(thread.shared());
    const index_t h = thread.block(), decay = a.decay.given() ? a.offset(a.decay, h) : 0;
    const int k = thread.index();
    float z = k < a.keys && a.normaliser ? a.normaliser[h * a.keys + k] : 0.0f;
    for (index_t first = 0; first < a.tokens; first += chunk) {
      const int count = a.tokens - first < chunk ? static_cast<int>(a.tokens - first) : chunk;
      if (k < count) shared.decay[k] = decay_of(a, decay + (first + k) * a.decay.time);
      thread.barrier();
      for (int t = 0; k < a.keys && t < count; t += ahead)
        add_keys(arguments, shared.decay + t, arguments.place(h, first + t) + k, count - t, z, shared.z + t * threads + k);
      thread.barrier();
      for (int t = k / warp_size; t < count; t += warps) divide(thread, arguments, arguments.place(h, first + t), shared.z + t * threads);
    }
    if (a.out_state.given() && k < a.keys)
      write(a.out_state.data, a.out_state.type, a.offset(a.out_state, h) + k * a.out_state.time + a.values * a.out_state.inner, z);
  }

 private:
  static constexpr float decay_of(const FastWeightArguments& a, index_t place) {
    if (!a.decay.given()) return 1;
    const float number = read(a.decay.data, a.decay.type, place);
    return a.log_decay ? std::exp(number) : number;
  }

  /// Some keys' numbers of a channel, which are all on their way before the first is added.
  static constexpr void add_keys(const Arguments& arguments, const float* decay, index_t place, int count, float& z, float* to) {
    float numbers[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) numbers[i] = i < count ? read(arguments.keys, arguments.type(), place + i * arguments.from.keys) : 0.0f;
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (i >= count) break;
      z = std::fma(decay[i], z, numbers[i]);
      to[i * threads] = z;
    }
  }

  /// One query, by a warp.
  template <class Thread>
  static constexpr void divide(const Thread& thread, const Arguments& arguments, index_t begin, const float* z) {
    const int lane = thread.index() % warp_size, width = arguments.from.keys;
    float sum = 0;
    for (int k = lane; k < width; k += warp_size) sum = std::fma(read(arguments.queries, arguments.type(), begin + k), z[k], sum);
    sum = sum_of_lanes<warp_size>(thread, sum);
    for (int k = lane; k < width; k += warp_size) {
      const float query = read(arguments.queries, arguments.type(), begin + k);
      write(arguments.queries, arguments.type(), begin + k, sum == 0 ? 0.0f : query / sum);
    }
  }
};

}  // namespace recollect::cuda
