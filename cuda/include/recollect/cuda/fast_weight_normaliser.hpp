// SPDX-License-Identifier: BSD-3-Clause
/// The normaliser z of fast weights in the gradient (fast_weight_gradient.hpp): z_t = D_t z_{t-1} + key_t, for all tokens, and back. A
/// block for each sequence, a thread for each key channel (or two): channels depend on each other in nothing.
#pragma once

#include "recollect/cuda/fast_weight_gradient.hpp"

namespace recollect::cuda {

struct FastWeightNormaliser {
  using Arguments = FastWeightBackwardArguments;
  using Scan = FastWeightScan<32, false>;  // for the stage of tokens alone
  using Stage = Scan::Stage;
  static constexpr int threads = Scan::threads, per_thread = Scan::width / threads;
  static constexpr const char* name = "fast_weight_normaliser";

  static constexpr index_t blocks(const Arguments& a) { return a.scan.sequences; }
  static constexpr index_t shared_bytes() { return sizeof(Stage); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const FastWeightArguments& a = arguments.scan;
    const index_t h = thread.block();
    Stage& stage = *reinterpret_cast<Stage*>(thread.shared());
    Scan::begin(thread, a, h, stage);
    float z[per_thread] = {};
    const index_t state = a.state.given() ? a.offset(a.state, h) + a.values * a.state.inner : 0;
    each(thread, a, [&](int i, int k) {
      if (a.state.given()) z[i] = read<float>(a.state.data, state + k * a.state.time);
      arguments.normaliser_after(h, 0)[k] = z[i];
    });
    for (index_t first = 0; first < a.tokens; first += Scan::chunk) {
      const int count = a.tokens - first < Scan::chunk ? static_cast<int>(a.tokens - first) : Scan::chunk;
      Scan::bring(thread, a, 0, first, count, stage);
      for (int t = 0; t < count; ++t)
        each(thread, a, [&](int i, int k) {
          z[i] *= decay(a, stage, t, k);
          if (a.key.given()) z[i] += stage.key[t * Scan::width + k];
          arguments.normaliser_after(h, first + t + 1)[k] = z[i];
        });
    }
  }

  /// f(i, k) for the channels k of a thread.
  template <class Thread, class F>
  static constexpr void each(const Thread& thread, const FastWeightArguments& a, F&& f) {
#pragma unroll
    for (int i = 0; i < per_thread; ++i)
      if (const int k = thread.index() + threads * i; k < a.keys) f(i, k);
  }

  static constexpr float decay(const FastWeightArguments& a, const Stage& stage, int t, int k) {
    return a.channel_decay.given() ? stage.channel_decay[t * Scan::width + k] : stage.decay[t];
  }
};

/// Back through one chunk, with r the gradient of z_t and n and m those of what an output and a removal are divided by:
///
///     d_query = n z_t,  r += n query;   d_key = r + m D z_{t-1},  d_faded = r + m key;   d_D = d_faded * z_{t-1},  r <- D d_faded
struct FastWeightNormaliserReverse : FastWeightNormaliser {
  static constexpr const char* name = "fast_weight_normaliser_reverse";

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const FastWeightArguments& a = arguments.scan;
    const index_t h = thread.block(), begin = arguments.first(), end = begin + arguments.count();
    Stage& stage = *reinterpret_cast<Stage*>(thread.shared());
    Scan::begin(thread, a, h, stage);
    float r[per_thread] = {};
    load(thread, arguments, h, r);
    for (index_t first = begin + (end - begin + Scan::chunk - 1) / Scan::chunk * Scan::chunk; first > begin;) {
      first -= Scan::chunk;
      const int count = end - first < Scan::chunk ? static_cast<int>(end - first) : Scan::chunk;
      Scan::bring(thread, a, 0, first, count, stage);
      for (int t = count - 1; t >= 0; --t) {
        const float n = arguments.number_of(of_output, h, first + t), m = arguments.number_of(of_removal, h, first + t);
        each(thread, a, [&](int i, int k) { pull(arguments, stage, h, t, first + t, k, n, m, r[i]); });
      }
    }
    store(thread, arguments, h, r);
  }

 private:
  static constexpr void pull(const Arguments& arguments, const Stage& stage, index_t h, int t, index_t token, int k, float n, float m,
                             float& r) {
    const FastWeightArguments& a = arguments.scan;
    const float before = arguments.normaliser_after(h, token)[k], fading = decay(a, stage, t, k);
    const auto put = [&](int kind, float x) {
      if (arguments.sums[kind]) arguments.sum(kind, h, arguments.column_blocks(), token)[k] = x;
    };
    if (a.query.given()) {
      put(of_query, n * arguments.normaliser_after(h, token + 1)[k]);
      r = std::fma(n, stage.query[t * Scan::width + k], r);
    }
    if (a.key.given()) {
      put(of_key, std::fma(m * fading, before, r));
      r = std::fma(m, stage.key[t * Scan::width + k], r);
    }
    put(of_decay, r * before);
    r *= fading;
  }

  template <class Thread>
  static constexpr void load(const Thread& thread, const Arguments& arguments, index_t h, float* r) {
    const FastWeightArguments& a = arguments.scan;
    const auto& from = arguments.d_out_state;
    const index_t begin = from.given() ? a.offset(from, h) + a.values * from.inner : 0;
    each(thread, a, [&](int i, int k) {
      if (!arguments.last())
        r[i] = arguments.carried_normaliser[h * a.keys + k];
      else if (from.given())
        r[i] = read<float>(from.data, begin + k * from.time);
    });
  }

  template <class Thread>
  static constexpr void store(const Thread& thread, const Arguments& arguments, index_t h, const float* r) {
    const FastWeightArguments& a = arguments.scan;
    const auto& to = arguments.d_state;
    const index_t begin = to.given() ? a.offset(to, h) + a.values * to.inner : 0;
    each(thread, a, [&](int i, int k) {
      if (arguments.number > 0)
        arguments.carried_normaliser[h * a.keys + k] = r[i];
      else if (to.given())
        write<float>(to.data, begin + k * to.time, r[i]);
    });
  }
};

}  // namespace recollect::cuda
