// SPDX-License-Identifier: BSD-3-Clause
/// The last steps of the gradient of fast weights (fast_weight_gradient.hpp): from sums over columns to operands, and over sequences that
/// share an operand.
#pragma once

#include "recollect/cuda/fast_weight_gradient.hpp"

namespace recollect::cuda {

/// One chunk: a warp for each token of a sequence, and a lane for every 32nd channel.
struct FastWeightPull {
  using Arguments = FastWeightBackwardArguments;
  static constexpr int threads = 128, warps = threads / warp_size;
  static constexpr const char* name = "fast_weight_pull";

  static constexpr index_t blocks(const Arguments& a) { return (a.scan.sequences * a.count() + warps - 1) / warps; }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t row = thread.block() * warps + thread.index() / warp_size;
    if (row >= a.scan.sequences * a.count()) return;  // a whole warp
    const Token<Thread> token{thread, a, row / a.count(), a.first() + row % a.count()};
    for (int i = 0; i < 2; ++i) {  // once in the code: query and key, then a and b
      token.pull_row(i == 0 ? of_query : of_key, i == 0 ? a.scan.query : a.scan.key, i == 0 ? a.d_query : a.d_key);
      token.copy_row(i == 0 ? of_a : of_b, i == 0 ? a.d_a : a.d_b);
    }
    token.pull_decay();
    if (a.d_beta.given() && token.lane() == 0)
      write(a.d_beta.data, a.d_beta.type, token.begin(a.d_beta), a.number_of(of_beta, token.h, token.t));
  }

 private:
  /// No lane reads what another has written.
  template <class Thread>
  struct Token {
    const Thread& thread;
    const Arguments& arguments;
    index_t h, t;

    constexpr int lane() const { return thread.index() % warp_size; }

    /// Where the token's row begins.
    template <class P>
    constexpr index_t begin(const TokenRows<P>& rows) const {
      return arguments.scan.offset(rows, h) + t * rows.time;
    }

    /// f(k) for the channels of the lane.
    template <class F>
    constexpr void each(F&& f) const {
      for (int k = lane(); k < arguments.scan.keys; k += warp_size) f(k);
    }

    /// The sum of all shares, the normaliser's too where it has one, in the place of the first one.
    constexpr float* collected(int kind) const {
      float* const all = arguments.sum(kind, h, 0, t);
      const index_t shares = kind == of_a || kind == of_b ? arguments.column_blocks() : arguments.shares();
      for (index_t share = 1; share < shares; ++share) {
        const float* const more = arguments.sum(kind, h, share, t);
        each([&](int k) { all[k] += more[k]; });
      }
      return all;
    }

    constexpr void copy_row(int kind, const TokenRows<void>& to) const {
      if (!to.given()) return;
      const float* const row = arguments.sums[kind] ? collected(kind) : nullptr;
      const index_t place = begin(to);
      each([&](int k) { write(to.data, to.type, place + k * to.inner, row ? row[k] : 0.0f); });
    }

    /// The gradient of a query or key from that of its phi.
    constexpr void pull_row(int kind, const TokenRows<const void>& from, const TokenRows<void>& to) const {
      if (!to.given()) return;
      const index_t row = begin(from), place = begin(to);
      const auto x = [&](int k) { return read(from.data, from.type, row + k * from.inner); };
      float* const d_phi = collected(kind);
      if (arguments.scan.norm != row_norm::none)
        pull_norm([&](int k) { return map_value(feature_maps{}, arguments.scan.map, x(k)); }, d_phi);
      each([&](int k) { write(to.data, to.type, place + k * to.inner, d_phi[k] * map_slope(feature_maps{}, arguments.scan.map, x(k))); });
    }

    /// From the gradient of phi' = phi / s to that of phi: (g - g . phi') / s where s is the sum, (g - phi' (g . phi')) / s where it is the
    /// length of phi.
    template <class Phi>
    constexpr void pull_norm(Phi&& phi, float* g) const {
      const bool length = arguments.scan.norm == row_norm::l2;
      float sum = 0, largest = 0, along = 0;
      each([&](int k) {
        sum += phi(k);
        largest = std::fmax(largest, std::fabs(phi(k)));
      });
      float divisor = sum_of_lanes<warp_size>(thread, sum);
      largest = largest_of_lanes<warp_size>(thread, largest);
      if (length) {  // by the largest first, as in the forward pass
        sum = 0;
        each([&](int k) { sum += largest > 0 ? phi(k) / largest * (phi(k) / largest) : 0.0f; });
        divisor = largest * std::sqrt(sum_of_lanes<warp_size>(thread, sum));
      }
      const auto ratio = [&](float y) { return divisor == 0 ? 0.0f : y / divisor; };
      each([&](int k) { along = std::fma(g[k], ratio(phi(k)), along); });
      along = sum_of_lanes<warp_size>(thread, along);
      each([&](int k) { g[k] = ratio(g[k] - (length ? ratio(phi(k)) * along : along)); });
    }

    constexpr void pull_decay() const {
      const FastWeightArguments& a = arguments.scan;
      const bool by_channel = a.channel_decay.given();
      const TokenRows<const void>& from = by_channel ? a.channel_decay : a.decay;
      const TokenRows<void>& to = by_channel ? arguments.d_channel_decay : arguments.d_decay;
      if (!to.given()) return;
      const index_t row = begin(from), place = begin(to);
      const float* const d_decay = collected(of_decay);
      float sum = 0;
      each([&](int k) {
        const float logarithm = a.log_decay ? read(from.data, from.type, row + (by_channel ? k * from.inner : 0)) : 0.0f;
        const float number = a.log_decay ? d_decay[k] * std::exp(logarithm) : d_decay[k];
        if (by_channel) write(to.data, to.type, place + k * to.inner, number);
        sum += number;
      });
      sum = sum_of_lanes<warp_size>(thread, sum);
      if (!by_channel && lane() == 0) write(to.data, to.type, place, sum);
    }
  };
};

/// The gradient of scale, a warp for each sequence.
struct FastWeightScaleGradient {
  using Arguments = FastWeightBackwardArguments;
  static constexpr int threads = 128, warps = threads / warp_size;
  static constexpr const char* name = "fast_weight_scale_gradient";

  static constexpr index_t blocks(const Arguments& a) { return (a.scan.sequences + warps - 1) / warps; }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t h = thread.block() * warps + thread.index() / warp_size, count = a.column_blocks() * a.scan.tokens;
    if (h >= a.scan.sequences) return;
    float sum = 0;
    for (index_t i = thread.index() % warp_size; i < count; i += warp_size) sum += a.numbers_of(h, 0, i)[of_scale];
    sum = sum_of_lanes<warp_size>(thread, sum);
    if (thread.index() % warp_size == 0) write<float>(a.d_scale.data, a.scan.offset(a.d_scale, h), sum);
  }
};

struct SumSequencesArguments {
  const float* from = nullptr;  // (sequences, rows, columns)
  TokenRows<void> to;
  Axes own, shared;  // leading axes that the gradient has, and those that are summed
  detail::Strides own_sequences{}, shared_sequences{};
  index_t rows = 0, columns = 0;
};

/// The gradient of an operand that several sequences share: a thread for each number.
struct SumSequences {
  using Arguments = SumSequencesArguments;
  static constexpr int threads = 128;
  static constexpr const char* name = "sum_sequences";

  static constexpr index_t blocks(const Arguments& a) { return (a.own.count() * a.rows * a.columns + threads - 1) / threads; }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t i = thread.block() * threads + thread.index(), size = a.rows * a.columns;
    if (i >= a.own.count() * size) return;
    const index_t o = i / size, row = i % size / a.columns, column = i % a.columns, first = a.own.offset(o, a.own_sequences);
    float sum = 0;
    for (index_t s = 0; s < a.shared.count(); ++s) sum += a.from[(first + a.shared.offset(s, a.shared_sequences)) * size + i % size];
    write(a.to.data, a.to.type, a.own.offset(o, a.to.batch) + row * a.to.time + column * a.to.inner, sum);
  }
};

}  // namespace recollect::cuda
