// SPDX-License-Identifier: BSD-3-Clause
/// The fast weight recurrence token by token, portable. A block owns 16 columns of one sequence's S and keeps them in registers; columns
/// depend on each other in nothing. One token is the step of a decoder, and the state may be updated in place.
#pragma once

#include "recollect/core/placement.hpp"
#include "recollect/cuda/device.hpp"
#include "recollect/cuda/lane.hpp"
#include "recollect/cuda/tile.hpp"
#include "recollect/spec/fast_weight.hpp"

namespace recollect::cuda {

/// Rows of an operand or output of every sequence, one for each token (of a state: for each key channel).
template <class P>
struct TokenRows {
  P* data = nullptr;
  dtype type = dtype::none;
  detail::Strides batch{};
  index_t time = 0, inner = 0;

  constexpr bool given() const { return type != dtype::none; }
};

struct FastWeightArguments {
  Axes batch;
  index_t sequences = 0, tokens = 0;
  int keys = 0, values = 0;  // K, V
  TokenRows<const void> query, key, value, beta, a, b, decay, channel_decay, state, scale;
  TokenRows<void> out, out_state;
  float* normaliser = nullptr;      // (sequences, K): z before the first token, a copy; null: zeros
  std::uint32_t* states = nullptr;  // S before every chunk in 16 bits, by block of columns; null: nobody asks
  float* sizes = nullptr;           // what is to be multiplied by, by block, chunk and warp
  float scale_number = 1;           // where no scale is given
  int map = 0;                      // its number in `feature_maps`
  row_norm norm = row_norm::none;
  fast_weight::rule rule = fast_weight::rule::sum;
  fast_weight::normalisation normalise = fast_weight::normalisation::none;
  bool log_decay = false;

  template <class P>
  constexpr index_t offset(const TokenRows<P>& rows, index_t h) const {
    return batch.offset(h, rows.batch);
  }
};

/// The sum or the length of a warp's row, whose numbers each(visit) visits, every lane its own.
template <class Thread, class Each>
constexpr float divisor_of(const Thread& thread, row_norm norm, Each&& each) {
  float total = 0, largest = 0;
  each([&](float x) { total += x, largest = std::fmax(largest, std::fabs(x)); });
  if (norm == row_norm::sum) return sum_of_lanes<warp_size>(thread, total);
  largest = largest_of_lanes<warp_size>(thread, largest);  // by which all are divided first: squares could leave the range
  total = 0;
  each([&](float x) { total += largest > 0 ? x / largest * (x / largest) : 0.0f; });
  return largest * std::sqrt(sum_of_lanes<warp_size>(thread, total));
}

/// Copies z, the last column of the states, before a scan writes there.
struct CopyNormaliser {
  using Arguments = FastWeightArguments;
  static constexpr int threads = 128;
  static constexpr const char* name = "copy_normaliser";

  static constexpr index_t blocks(const Arguments& a) { return (a.sequences * a.keys + threads - 1) / threads; }
  static constexpr index_t shared_bytes() { return 0; }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t i = thread.block() * threads + thread.index();
    if (i >= a.sequences * a.keys) return;
    const index_t h = i / a.keys, k = i % a.keys;
    a.normaliser[i] = read(a.state.data, a.state.type, a.offset(a.state, h) + k * a.state.time + a.values * a.state.inner);
  }
};

/// Per_thread rows of S for each thread: lane 4 g + c of a warp holds rows 4 g + n + 32 m of column c.
template <int Per_thread, bool normalised>
struct FastWeightScan {
  using Arguments = FastWeightArguments;
  static constexpr int threads = 128, columns = 16, warp_columns = 4, chunk = 8, width = 8 * Per_thread, quads = Per_thread / 4;
  static constexpr const char* name = "fast_weight_scan";

  static constexpr index_t column_blocks(const Arguments& a) { return (a.values + columns - 1) / columns; }
  static constexpr index_t blocks(const Arguments& a) { return a.sequences * column_blocks(a); }
  static constexpr index_t shared_bytes() { return sizeof(Stage); }

  /// The operands of some tokens.
  struct Stage {
    float key[chunk * width], query[chunk * width], b[chunk * width], a[chunk * width], channel_decay[chunk * width];
    float value[chunk * columns], beta[chunk], decay[chunk];
    index_t begin[8];  // of the sequence, in the order of load_stage
  };

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& a) {
    const index_t h = thread.block() / column_blocks(a);
    const int first_column = static_cast<int>(thread.block() % column_blocks(a)) * columns;
    const int lane = thread.index() % warp_size, group = lane / warp_columns;
    const int own = thread.index() / warp_size * warp_columns + lane % warp_columns, column = first_column + own;
    Stage& stage = *reinterpret_cast<Stage*>(thread.shared());
    begin(thread, a, h, stage);
    Sequence s{a, h, column, group};
    s.load();
    const float scale = a.scale.given() ? read(a.scale.data, a.scale.type, a.offset(a.scale, h)) : a.scale_number;
    const index_t out = a.out.given() ? a.offset(a.out, h) : 0;
    for (index_t first = 0; first < a.tokens; first += chunk) {
      const int count = a.tokens - first < chunk ? static_cast<int>(a.tokens - first) : chunk;
      bring(thread, a, first_column, first, count, stage);
      for (int t = 0; t < count; ++t) {
        const float number = s.step(thread, stage, t, own);
        if (a.out.given() && group == 0 && column < a.values)
          write(a.out.data, a.out.type, out + (first + t) * a.out.time + column * a.out.inner, scale * number);
      }
    }
    if (a.out_state.given()) s.store();
  }

  /// To be done once for a sequence, before any stage.
  template <class Thread>
  static constexpr void begin(const Thread& thread, const Arguments& a, index_t h, Stage& stage) {
    if (thread.index() != 0) return;
    int i = 0;
    const auto put = [&](const auto&... rows) { ((stage.begin[i++] = a.offset(rows, h)), ...); };
    put(a.query, a.key, a.b, a.a, a.channel_decay, a.value, a.beta, a.decay);
  }

  /// The stage of tokens first .. first + count - 1, once all threads are done with the one before.
  template <class Thread>
  static constexpr void bring(const Thread& thread, const Arguments& a, int first_column, index_t first, int count, Stage& stage) {
    thread.barrier();
    load_stage(thread, a, first_column, first, count, stage);
    thread.barrier();
    if (a.norm == row_norm::none) return;
    normalise_rows(thread, a, count, stage);
    thread.barrier();
  }

  /// One column of one sequence, shared by the eight lanes of a group number each.
  struct Sequence {
    const Arguments& a;
    const index_t h;
    const int column, group;
    float state[Per_thread] = {}, z[normalised ? Per_thread : 1] = {};

    constexpr int row(int i) const { return 4 * group + i % 4 + 32 * (i / 4); }

    constexpr void load() {
      const index_t begin = a.state.given() ? a.offset(a.state, h) + column * a.state.inner : 0;
#pragma unroll
      for (int i = 0; i < Per_thread; ++i) {
        if (row(i) >= a.keys) continue;
        if (a.state.given() && column < a.values) state[i] = read(a.state.data, a.state.type, begin + row(i) * a.state.time);
        if constexpr (normalised) z[i] = a.normaliser ? a.normaliser[h * a.keys + row(i)] : 0.0f;
      }
    }

    constexpr void store() const {
      const index_t begin = a.offset(a.out_state, h);
#pragma unroll
      for (int i = 0; i < Per_thread; ++i) {
        if (row(i) >= a.keys) continue;
        const index_t place = begin + row(i) * a.out_state.time;
        if (column < a.values) write(a.out_state.data, a.out_state.type, place + column * a.out_state.inner, state[i]);
        if constexpr (normalised)
          if (column == 0) write(a.out_state.data, a.out_state.type, place + a.values * a.out_state.inner, z[i]);
      }
    }

    /// The sum over the groups, in every lane.
    template <class Thread>
    static constexpr float over_groups(const Thread& thread, float x) {
      for (int mask = warp_size / 2; mask >= warp_columns; mask /= 2) x += thread.shuffle_xor(x, mask);
      return x;
    }

    constexpr void fade(const Stage& stage, int t) {
      const float number = stage.decay[t];
      for (int m = 0; m < quads; ++m) {
        const Four each =
            a.channel_decay.given() ? four(stage.channel_decay + t * width + 4 * group + 32 * m) : Four{{number, number, number, number}};
        for (int n = 0; n < 4; ++n) {
          state[4 * m + n] *= each.at[n];
          if constexpr (normalised) z[4 * m + n] *= each.at[n];
        }
      }
    }

    /// What of `numbers` (state or z) lies along a row of the stage.
    constexpr float along(const float* row, const float* numbers) const {
      float sum = 0;
      for (int m = 0; m < quads; ++m) {
        const Four part = four(row + 4 * group + 32 * m);
        for (int n = 0; n < 4; ++n) sum = std::fma(part.at[n], numbers[4 * m + n], sum);
      }
      return sum;
    }

    constexpr void add(const float* row, float factor, float* numbers) const {
      for (int m = 0; m < quads; ++m) {
        const Four part = four(row + 4 * group + 32 * m);
        for (int n = 0; n < 4; ++n) numbers[4 * m + n] = std::fma(part.at[n], factor, numbers[4 * m + n]);
      }
    }

    static constexpr float ratio(float x, float divisor) { return divisor == 0 ? 0.0f : x / divisor; }

    /// One token: fade, remove, write, read. Returns what is read, unscaled.
    template <class Thread>
    constexpr float step(const Thread& thread, const Stage& stage, int t, int own) {
      const float *key = stage.key + t * width, *query = stage.query + t * width, *b = stage.b + t * width;
      const bool writes = a.key.given(), gated = a.decay.given() || a.channel_decay.given();
      float removed = 0;
      if (writes && a.rule == fast_weight::rule::general) removed = over_groups(thread, along(b, state));
      if (gated) fade(stage, t);
      if (writes && a.rule == fast_weight::rule::delta) {
        removed = -over_groups(thread, along(a.b.given() ? b : key, state));
        if constexpr (normalised)
          if (a.normalise == fast_weight::normalisation::outputs_and_removals) removed = ratio(removed, over_groups(thread, along(key, z)));
      }
      if (writes) {
        const float beta = stage.beta[t], value = stage.value[t * columns + own];
        add(key, beta * (a.a.given() ? value : value + removed), state);
        if (a.a.given()) add(stage.a + t * width, removed, state);
        if constexpr (normalised) add(key, 1, z);
      }
      if (!a.query.given()) return 0;
      const float number = over_groups(thread, along(query, state));
      if constexpr (normalised) return ratio(number, over_groups(thread, along(query, z)));
      return number;
    }
  };

 private:
  /// Rows of some tokens; what lies beyond K is zero.
  template <class Thread>
  static constexpr void load_rows(const Thread& thread, const Arguments& a, const TokenRows<const void>& from, int map, index_t begin,
                                  index_t first, int count, float* rows) {
    if (!from.given()) return;
    begin += first * from.time;
    for (int i = thread.index(); i < count * width; i += threads) {
      const int t = i / width, k = i % width;
      rows[i] = k < a.keys ? map_value(feature_maps{}, map, read(from.data, from.type, begin + t * from.time + k * from.inner)) : 0.0f;
    }
  }

  template <class Thread>
  static constexpr void load_stage(const Thread& thread, const Arguments& a, int first_column, index_t first, int count, Stage& stage) {
    const auto& begin = stage.begin;
    load_rows(thread, a, a.query, a.map, begin[0], first, count, stage.query);
    load_rows(thread, a, a.key, a.map, begin[1], first, count, stage.key);
    load_rows(thread, a, a.b, 0, begin[2], first, count, stage.b);
    load_rows(thread, a, a.a, 0, begin[3], first, count, stage.a);
    load_rows(thread, a, a.channel_decay, 0, begin[4], first, count, stage.channel_decay);
    if (a.channel_decay.given() && a.log_decay)  // by the thread that has loaded it
      for (int i = thread.index(); i < count * width; i += threads) stage.channel_decay[i] = std::exp(stage.channel_decay[i]);
    for (int i = thread.index(); a.value.given() && i < count * columns; i += threads) {
      const int t = i / columns, column = first_column + i % columns;
      const index_t place = begin[5] + (first + t) * a.value.time + column * a.value.inner;
      stage.value[i] = column < a.values ? read(a.value.data, a.value.type, place) : 0.0f;
    }
    if (thread.index() >= count) return;
    const auto number = [&](const TokenRows<const void>& from, index_t start) {
      return from.given() ? read(from.data, from.type, start + (first + thread.index()) * from.time) : 1.0f;
    };
    const float decay = number(a.decay, begin[7]);
    stage.beta[thread.index()] = number(a.beta, begin[6]);
    stage.decay[thread.index()] = a.decay.given() && a.log_decay ? std::exp(decay) : decay;
  }

  /// phi(key) and phi(query) divided by their sum or length: a warp for each row.
  template <class Thread>
  static constexpr void normalise_rows(const Thread& thread, const Arguments& a, int count, Stage& stage) {
    const int lane = thread.index() % warp_size;
    for (int i = thread.index() / warp_size; i < 2 * count; i += threads / warp_size) {
      float* const row = (i < count ? stage.key : stage.query) + i % count * width;
      if (!(i < count ? a.key : a.query).given()) continue;
      const float divisor = divisor_of(thread, a.norm, [&](auto&& visit) {
        for (int k = lane; k < width; k += warp_size) visit(row[k]);
      });
      for (int k = lane; k < width; k += warp_size) row[k] = divisor == 0 ? 0.0f : row[k] / divisor;
    }
  }
};

}  // namespace recollect::cuda
