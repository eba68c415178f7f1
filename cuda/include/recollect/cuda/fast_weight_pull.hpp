// SPDX-License-Identifier: BSD-3-Clause
/// The last steps of the gradient of fast weights (fast_weight_gradient.hpp): from sums over columns to operands, and over sequences that
/// share an operand.
#pragma once

#include "recollect/cuda/fast_weight_gradient.hpp"

namespace recollect::cuda {

/// One chunk: a warp for each token of a sequence, and a lane for every 32nd channel.
struct FastWeightPull {
  using Arguments = FastWeightBackwardArguments;
  static constexpr int threads = 128, warps = threads / warp_size, per_lane = 256 / warp_size;
  static constexpr const char* name = "fast_weight_pull";

  static constexpr index_t blocks(const Arguments& a) { return (a.scan.sequences * a.count() + warps - 1) / warps; }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const index_t row = thread.block() * warps + thread.index() / warp_size;
    if (row >= arguments.scan.sequences * arguments.count()) return;  // a whole warp
    const Token<Thread> token{thread, arguments, row / arguments.count(), arguments.first() + row % arguments.count()};
    const FastWeightArguments& a = arguments.scan;
    token.pull_row(of_query, a.query, arguments.d_query);
    token.pull_row(of_key, a.key, arguments.d_key);
    token.copy_row(of_a, arguments.d_a);
    token.copy_row(of_b, arguments.d_b);
    token.pull_decay();
    if (arguments.d_beta.given() && token.lane() == 0)
      write(arguments.d_beta.data, arguments.d_beta.type, token.begin(arguments.d_beta), arguments.number_of(of_beta, token.h, token.t));
  }

 private:
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

    /// What all shares have of one channel, the normaliser's too where it has one.
    constexpr float total(int kind, int k) const {
      if (!arguments.sums[kind]) return 0;
      const index_t shares = kind == of_a || kind == of_b ? arguments.column_blocks() : arguments.shares();
      float sum = 0;
      for (index_t share = 0; share < shares; ++share) sum += arguments.sum(kind, h, share, t)[k];
      return sum;
    }

    /// f(i, k) for the channels k of the lane.
    template <class F>
    constexpr void each(F&& f) const {
#pragma unroll
      for (int i = 0; i < per_lane; ++i)
        if (const int k = lane() + warp_size * i; k < arguments.scan.keys) f(i, k);
    }

    constexpr void copy_row(int kind, const TokenRows<void>& to) const {
      if (!to.given()) return;
      const index_t row = begin(to);
      each([&](int, int k) { write(to.data, to.type, row + k * to.inner, total(kind, k)); });
    }

    /// The gradient of a query or key from that of its phi.
    constexpr void pull_row(int kind, const TokenRows<const void>& from, const TokenRows<void>& to) const {
      if (!to.given()) return;
      const int map = arguments.scan.map;
      const index_t row = begin(from), d_row = begin(to);
      float d_phi[per_lane] = {}, x[per_lane] = {};
      each([&](int i, int k) {
        x[i] = read(from.data, from.type, row + k * from.inner);
        d_phi[i] = total(kind, k);
      });
      if (arguments.scan.norm != row_norm::none) pull_norm(x, d_phi);
      each([&](int i, int k) { write(to.data, to.type, d_row + k * to.inner, d_phi[i] * map_slope(feature_maps{}, map, x[i])); });
    }

    /// From the gradient of phi' = phi / s to that of phi: (g - g . phi') / s where s is the sum, (g - phi' (g . phi')) / s where it is the
    /// length of phi.
    constexpr void pull_norm(const float* x, float* d_phi) const {
      const bool length = arguments.scan.norm == row_norm::l2;
      float phi[per_lane] = {}, sum = 0, largest = 0, along = 0;
      each([&](int i, int) {
        phi[i] = map_value(feature_maps{}, arguments.scan.map, x[i]);
        sum += phi[i];
        largest = std::fmax(largest, std::fabs(phi[i]));
      });
      float divisor = sum_of_lanes<warp_size>(thread, sum);
      largest = largest_of_lanes<warp_size>(thread, largest);
      if (length) {  // by the largest first, as in the forward pass
        sum = 0;
        each([&](int i, int) { sum += largest > 0 ? phi[i] / largest * (phi[i] / largest) : 0.0f; });
        divisor = largest * std::sqrt(sum_of_lanes<warp_size>(thread, sum));
      }
      each([&](int i, int) {
        phi[i] = divisor == 0 ? 0.0f : phi[i] / divisor;
        along = std::fma(d_phi[i], phi[i], along);
      });
      along = sum_of_lanes<warp_size>(thread, along);
      each([&](int i, int) { d_phi[i] = divisor == 0 ? 0.0f : (d_phi[i] - (length ? phi[i] * along : along)) / divisor; });
    }

    constexpr void pull_decay() const {
      const FastWeightArguments& a = arguments.scan;
      const bool each_channel = a.channel_decay.given();
      const TokenRows<const void>& from = each_channel ? a.channel_decay : a.decay;
      const TokenRows<void>& to = each_channel ? arguments.d_channel_decay : arguments.d_decay;
      if (!to.given()) return;
      const index_t row = begin(from), d_row = begin(to);
      float sum = 0;
      each([&](int, int k) {
        float number = total(of_decay, k);
        if (a.log_decay) number *= std::exp(read(from.data, from.type, row + (each_channel ? k * from.inner : 0)));
        if (each_channel) write(to.data, to.type, d_row + k * to.inner, number);
        sum += number;
      });
      sum = sum_of_lanes<warp_size>(thread, sum);
      if (!each_channel && lane() == 0) write(to.data, to.type, d_row, sum);
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
