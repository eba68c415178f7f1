// SPDX-License-Identifier: BSD-3-Clause
/// The columns of S in the gradient of fast weights (fast_weight_gradient.hpp): there and, chunk by chunk, back. With G the gradient of
/// S_t, g' that of what was read, X = D_t S_{t-1}, w what was written and u what was removed, a token is pulled back by
///
///     d_query = S_t g',  G += query g'^T;     d_key = beta G w,  d_w = beta G^T key,  d_a = G u,  d_u = G^T a (or d_w)
///     delta:    d_b = -X d_u,  G -= b d_u^T;  d_D = rowsum(G * S_{t-1}),  G <- D G
///     general:  d_D = rowsum(G * S_{t-1}),  G <- D G + b d_u^T;           d_b = S_{t-1} d_u
#pragma once

#include "recollect/cuda/fast_weight_gradient.hpp"

namespace recollect::cuda {

/// What both kernels do: the stage of some tokens, and S from token to token as in the forward pass.
template <int Per_thread>
struct FastWeightReplay {
  using Arguments = FastWeightBackwardArguments;
  using Scan = FastWeightScan<Per_thread, false>;
  using Sequence = typename Scan::Sequence;
  static constexpr int threads = Scan::threads, warps = threads / warp_size, columns = Scan::columns, chunk = Scan::chunk,
                       width = Scan::width, quads = Scan::quads;

  static constexpr index_t blocks(const Arguments& a) { return a.scan.sequences * a.column_blocks(); }

  struct Stage {
    typename Scan::Stage operands;
    float d_out[chunk * columns], of_output[chunk], of_removal[chunk];  // what outputs and removals are divided by
    float scale;                                                        // of the sequence, as are
    index_t begin_d_out, begin_d_value;                                 // where it begins
  };

  /// The columns of a thread, and where they are.
  struct Place {
    index_t h, block;
    int first_column, own, column, group;
  };

  template <class Thread>
  static constexpr Place place_of(const Thread& thread, const Arguments& a) {
    const index_t block = thread.block() % a.column_blocks();
    const int lane = thread.index() % warp_size, first_column = static_cast<int>(block) * columns;
    const int own = thread.index() / warp_size * Scan::warp_columns + lane % Scan::warp_columns;
    return {thread.block() / a.column_blocks(), block, first_column, own, first_column + own, lane / Scan::warp_columns};
  }

  /// To be done once for a sequence, before any stage.
  template <class Thread>
  static constexpr void begin(const Thread& thread, const Arguments& a, index_t h, Stage& stage) {
    Scan::begin(thread, a.scan, h, stage.operands);
    if (thread.index() != 0) return;
    stage.scale = a.scan.scale.given() ? read<float>(a.scan.scale.data, a.scan.offset(a.scan.scale, h)) : a.scan.scale_number;
    stage.begin_d_out = a.scan.offset(a.d_out, h);
    stage.begin_d_value = a.scan.offset(a.d_value, h);
  }

  /// The numbers of all threads of a block, entry `entry` of scratch: no thread reads another's.
  template <class Thread>
  static constexpr void keep(const Thread& thread, float* scratch, index_t entry, const float* numbers) {
#pragma unroll
    for (int i = 0; i < Per_thread; ++i) scratch[(entry * Per_thread + i) * threads + thread.index()] = numbers[i];
  }
  template <class Thread>
  static constexpr void recover(const Thread& thread, const float* scratch, index_t entry, float* numbers) {
#pragma unroll
    for (int i = 0; i < Per_thread; ++i) numbers[i] = scratch[(entry * Per_thread + i) * threads + thread.index()];
  }

  template <class Thread>
  static constexpr void bring(const Thread& thread, const Arguments& a, const Place& at, index_t first, int count, Stage& stage) {
    Scan::bring(thread, a.scan, at.first_column, first, count, stage.operands);
    for (int i = thread.index(); i < count * columns; i += threads) {
      const int t = i / columns, column = at.first_column + i % columns;
      const bool there = a.d_out.given() && column < a.scan.values;
      const index_t place = there ? stage.begin_d_out + (first + t) * a.d_out.time + column * a.d_out.inner : 0;
      stage.d_out[i] = there ? read(a.d_out.data, a.d_out.type, place) : 0.0f;
    }
    if (a.normaliser) divisors(thread, a, at.h, first, count, stage);
    thread.barrier();
  }

  /// What is removed from `s.state`, not yet faded.
  template <class Thread>
  static constexpr float removed(const Thread& thread, const Stage& stage, int t, const Sequence& s) {
    const typename Scan::Stage& o = stage.operands;
    const float* removal = (s.a.b.given() ? o.b : o.key) + t * width;
    if (!s.a.key.given() || s.a.rule == fast_weight::rule::sum) return 0;
    if (s.a.rule == fast_weight::rule::general) return Sequence::over_groups(thread, s.along(removal, s.state));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < Per_thread; ++i) sum = std::fma(removal[s.row(i)], decay(stage, t, s, i) * s.state[i], sum);
    sum = -Sequence::over_groups(thread, sum);
    return divides_removals(s.a) ? Sequence::ratio(sum, stage.of_removal[t]) : sum;
  }

  template <class Thread>
  static constexpr void advance(const Thread& thread, const Stage& stage, int t, int own, Sequence& s) {
    const typename Scan::Stage& o = stage.operands;
    const float u = removed(thread, stage, t, s);
    if (s.a.decay.given() || s.a.channel_decay.given()) s.fade(o, t);
    if (!s.a.key.given()) return;
    const float value = o.value[t * columns + own];
    s.add(o.key + t * width, o.beta[t] * (s.a.a.given() ? value : value + u), s.state);
    if (s.a.a.given()) s.add(o.a + t * width, u, s.state);
  }

  static constexpr float decay(const Stage& stage, int t, const Sequence& s, int i) {
    return s.a.channel_decay.given() ? stage.operands.channel_decay[t * width + s.row(i)] : stage.operands.decay[t];
  }

  static constexpr bool divides_removals(const FastWeightArguments& a) {
    return a.rule == fast_weight::rule::delta && a.normalise == fast_weight::normalisation::outputs_and_removals;
  }

 private:
  /// z_t . query and (D_t z_{t-1}) . key: a warp for each token.
  template <class Thread>
  static constexpr void divisors(const Thread& thread, const Arguments& a, index_t h, index_t first, int count, Stage& stage) {
    const typename Scan::Stage& o = stage.operands;
    for (int t = thread.index() / warp_size; t < count; t += warps) {
      const float *before = a.normaliser_after(h, first + t), *after = before + a.scan.keys;
      float output = 0, removal = 0;
      for (int k = thread.index() % warp_size; k < a.scan.keys; k += warp_size) {
        const float number = a.scan.channel_decay.given() ? o.channel_decay[t * width + k] : o.decay[t];
        if (a.scan.query.given()) output = std::fma(after[k], o.query[t * width + k], output);
        if (a.scan.key.given()) removal = std::fma(number * before[k], o.key[t * width + k], removal);
      }
      output = sum_of_lanes<warp_size>(thread, output);
      removal = sum_of_lanes<warp_size>(thread, removal);
      if (thread.index() % warp_size == 0) stage.of_output[t] = output, stage.of_removal[t] = removal;
    }
  }
};

/// Once through all tokens: S before every chunk.
template <int Per_thread>
struct FastWeightCheckpoints : FastWeightReplay<Per_thread> {
  using Replay = FastWeightReplay<Per_thread>;
  using typename Replay::Arguments, typename Replay::Stage;
  static constexpr const char* name = "fast_weight_checkpoints";

  static constexpr index_t shared_bytes() { return sizeof(Stage); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const auto at = Replay::place_of(thread, a);
    Stage& stage = *reinterpret_cast<Stage*>(thread.shared());
    Replay::begin(thread, a, at.h, stage);
    typename Replay::Sequence s{a.scan, at.h, at.column, at.group};
    s.load();
    const index_t end = (a.chunks() - 1) * a.chunk;  // nobody needs S behind the last chunk
    Replay::keep(thread, a.checkpoints, thread.block() * a.chunks(), s.state);
    for (index_t first = 0; first < end; first += Replay::chunk) {
      const int count = end - first < Replay::chunk ? static_cast<int>(end - first) : Replay::chunk;
      Replay::bring(thread, a, at, first, count, stage);
      for (int t = 0; t < count; ++t) {
        Replay::advance(thread, stage, t, at.own, s);
        const index_t done = first + t + 1;
        if (done % a.chunk == 0) Replay::keep(thread, a.checkpoints, thread.block() * a.chunks() + done / a.chunk, s.state);
      }
    }
  }
};

/// One chunk: its states, and back.
template <int Per_thread>
struct FastWeightReverse : FastWeightReplay<Per_thread> {
  using Replay = FastWeightReplay<Per_thread>;
  using typename Replay::Arguments, typename Replay::Sequence;
  static constexpr const char* name = "fast_weight_reverse";
  static constexpr int width = Replay::width;

  static constexpr index_t shared_bytes() { return sizeof(Stage); }

  /// Sums of the warps, of one token and the next in turn: those of one are added while the next one's are made.
  struct Stage : Replay::Stage {
    float sums[2][Replay::warps][column_sum_count][width], numbers[2][Replay::warps][token_number_count];
  };

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const auto at = Replay::place_of(thread, a);
    Stage& stage = *reinterpret_cast<Stage*>(thread.shared());
    Replay::begin(thread, a, at.h, stage);
    Back back{a, at, stage, {a.scan, at.h, at.column, at.group}};
    Replay::recover(thread, a.checkpoints, thread.block() * a.chunks() + a.number, back.s.state);
    back.load(thread);
    const index_t begin = a.first(), end = begin + a.count(), entry = thread.block() * a.chunk;
    const index_t stages = (end - begin + Replay::chunk - 1) / Replay::chunk;
    for (index_t i = 0; i < 2 * stages; ++i) {  // there and back; the stage at which it turns is still there
      const bool there = i < stages;
      const index_t first = begin + (there ? i : 2 * stages - 1 - i) * Replay::chunk;
      const int count = end - first < Replay::chunk ? static_cast<int>(end - first) : Replay::chunk;
      if (i != stages) Replay::bring(thread, a, at, first, count, stage);
      for (int t = 0; there && t < count; ++t) {
        Replay::keep(thread, a.states, entry + first - begin + t, back.s.state);
        Replay::advance(thread, stage, t, at.own, back.s);
      }
      for (int t = count - 1; !there && t >= 0; --t) back.pull(thread, t, first + t, entry + first - begin + t);
    }
    back.store(thread);
  }

 private:
  /// One column on its way back: `s.state` is S after the token, `gradient` that of it.
  struct Back {
    const Arguments& a;
    const typename Replay::Place& at;
    Stage& stage;
    Sequence s;
    float gradient[Per_thread] = {}, numbers[token_number_count] = {};

    template <class Thread>
    constexpr void load(const Thread& thread) {
      if (!a.last()) return Replay::recover(thread, a.carried, thread.block(), gradient);
      if (!a.d_out_state.given() || at.column >= a.scan.values) return;
      const index_t begin = a.scan.offset(a.d_out_state, at.h) + at.column * a.d_out_state.inner;
#pragma unroll
      for (int i = 0; i < Per_thread; ++i)
        if (s.row(i) < a.scan.keys) gradient[i] = read<float>(a.d_out_state.data, begin + s.row(i) * a.d_out_state.time);
    }

    template <class Thread>
    constexpr void store(const Thread& thread) const {
      if (a.number > 0) return Replay::keep(thread, a.carried, thread.block(), gradient);
      if (!a.d_state.given() || at.column >= a.scan.values) return;
      const index_t begin = a.scan.offset(a.d_state, at.h) + at.column * a.d_state.inner;
#pragma unroll
      for (int i = 0; i < Per_thread; ++i)
        if (s.row(i) < a.scan.keys) write<float>(a.d_state.data, begin + s.row(i) * a.d_state.time, gradient[i]);
    }

    template <class Thread>
    constexpr void pull(const Thread& thread, int t, index_t token, index_t entry) {
      for (float& number : numbers) number = 0;
      if (a.scan.query.given()) pull_read(thread, t);
      Replay::recover(thread, a.states, entry, s.state);
      if (a.scan.key.given())
        pull_write(thread, t, token);
      else
        fade(thread, t, nullptr, 0);
      put_numbers(thread, t);
      thread.barrier();
      add_warps(thread, t, token);
    }

    /// From what was read of S after the token.
    template <class Thread>
    constexpr void pull_read(const Thread& thread, int t) {
      const float* query = stage.operands.query + t * width;
      const float divided = a.normaliser ? inverse(stage.of_output[t]) : 1.0f, g = stage.d_out[t * Replay::columns + at.own];
      const float number = divided * Sequence::over_groups(thread, s.along(query, s.state)), d_number = stage.scale * g * divided;
      numbers[of_scale] = g * number;
      numbers[of_output] = -d_number * number;
      put(thread, t, of_query, [&](int i) { return d_number * s.state[i]; });
      s.add(query, d_number, gradient);
    }

    /// From the token's write; from here on `s.state` is S before it.
    template <class Thread>
    constexpr void pull_write(const Thread& thread, int t, index_t token) {
      const auto& o = stage.operands;
      const bool delta = a.scan.rule == fast_weight::rule::delta, own_removal = a.scan.b.given();
      const float *key = o.key + t * width, *removal = (own_removal ? o.b : o.key) + t * width;
      const float u = Replay::removed(thread, stage, t, s), value = o.value[t * Replay::columns + at.own], beta = o.beta[t];
      const float written = a.scan.a.given() ? value : value + u, along = Sequence::over_groups(thread, s.along(key, gradient));
      if (a.d_value.given() && at.group == 0 && at.column < a.scan.values)
        write(a.d_value.data, a.d_value.type, stage.begin_d_value + token * a.d_value.time + at.column * a.d_value.inner, beta * along);
      numbers[of_beta] = written * along;
      float d_u = 0;
      if (a.scan.rule != fast_weight::rule::sum)
        d_u = a.scan.a.given() ? Sequence::over_groups(thread, s.along(o.a + t * width, gradient)) : beta * along;
      const float divided = Replay::divides_removals(a.scan) ? inverse(stage.of_removal[t]) : 1.0f;
      const float d_product = delta ? -d_u * divided : 0.0f;  // of (D_t S)^T b
      if (Replay::divides_removals(a.scan)) numbers[of_removal] = d_product * u;
      put(thread, t, of_a, [&](int i) { return u * gradient[i]; });
      put(thread, t, of_b, [&](int i) { return s.state[i] * (delta ? d_product * Replay::decay(stage, t, s, i) : d_u); });
      put(thread, t, of_key, [&](int i) {
        const float removes = own_removal ? 0.0f : d_product * Replay::decay(stage, t, s, i) * s.state[i];
        return std::fma(beta * written, gradient[i], removes);
      });
      if (delta) s.add(removal, d_product, gradient);
      fade(thread, t, delta || !own_removal ? nullptr : removal, d_u);
    }

    /// G <- D G + b d_u^T, the last term where b is given
    template <class Thread>
    constexpr void fade(const Thread& thread, int t, const float* b, float d_u) {
      put(thread, t, of_decay, [&](int i) { return gradient[i] * s.state[i]; });
#pragma unroll
      for (int i = 0; i < Per_thread; ++i) gradient[i] *= Replay::decay(stage, t, s, i);
      if (b) s.add(b, d_u, gradient);
    }

    /// value(i) of the thread's rows, summed over the columns of the warp. Neighbours share the work: each of four lanes keeps the sums of
    /// another quarter of the rows, which makes row 32 m + lane that of a lane.
    template <class Thread, class Value>
    constexpr void put(const Thread& thread, int t, int kind, Value&& value) {
      if (!a.sums[kind]) return;
      const int lane = thread.index() % warp_size;
      const bool upper = lane & 2, odd = lane & 1;
      float* const row = stage.sums[t % 2][thread.index() / warp_size][kind];
#pragma unroll
      for (int m = 0; m < Replay::quads; ++m) {
        const float x[4] = {value(4 * m), value(4 * m + 1), value(4 * m + 2), value(4 * m + 3)};
        const float even = (upper ? x[2] : x[0]) + thread.shuffle_xor(upper ? x[0] : x[2], 2);
        const float uneven = (upper ? x[3] : x[1]) + thread.shuffle_xor(upper ? x[1] : x[3], 2);
        row[warp_size * m + lane] = (odd ? uneven : even) + thread.shuffle_xor(odd ? even : uneven, 1);
      }
    }

    template <class Thread>
    constexpr void put_numbers(const Thread& thread, int t) {
#pragma unroll
      for (int i = 0; i < token_number_count; ++i) {
        const float sum = sum_of_lanes<Replay::Scan::warp_columns>(thread, numbers[i]);
        if (thread.index() % warp_size == 0) stage.numbers[t % 2][thread.index() / warp_size][i] = sum;
      }
    }

    /// The sums of the block, into scratch.
    template <class Thread>
    constexpr void add_warps(const Thread& thread, int t, index_t token) const {
      for (int kind = 0; kind < column_sum_count; ++kind) {
        if (!a.sums[kind]) continue;
        float* const to = a.sum(kind, at.h, at.block, token);
        for (int k = thread.index(); k < a.scan.keys; k += Replay::threads) {
          float total = 0;
          for (int warp = 0; warp < Replay::warps; ++warp) total += stage.sums[t % 2][warp][kind][k];
          to[k] = total;
        }
      }
      if (thread.index() >= token_number_count) return;
      float total = 0;
      for (int warp = 0; warp < Replay::warps; ++warp) total += stage.numbers[t % 2][warp][thread.index()];
      a.numbers_of(at.h, at.block, token)[thread.index()] = total;
    }
  };
};

}  // namespace recollect::cuda
