// SPDX-License-Identifier: BSD-3-Clause
/// A sink of attention: one more score c of every row that reads nothing. It joins when a softmax is done, whatever kernel took it, in
/// place: of the sum S of exp(scores) and the sum exp(c) + S,
///
///     out *= S / (exp(c) + S),   lse = log(exp(c) + S),   d_c = -exp(c - lse) d_out . out
///
/// Other gradients take what is saved here, and know nothing of sinks. An `out` of 16 bits is rounded once more.
#pragma once

#include "recollect/cuda/recall_forward.hpp"
#include "recollect/cuda/warp_rows.hpp"

namespace recollect::cuda {

struct SinkArguments {
  RecallArguments recall;  // its largest and log_sum are given
  Operand<const void> sink;
  float sink_number = 0;        // where no sink is given as an array
  const float* dots = nullptr;  // (outer, rows): d_out . out
  float* d_sinks = nullptr;     // (outer, rows): what each row adds to the gradient of its sink

  /// In units of log 2.
  constexpr float sink_at(index_t place) const { return log2_e * (sink.given() ? read(sink.at.data, sink.type, place) : sink_number); }
};

struct RecallSink : WarpRows {
  using Arguments = SinkArguments;
  static constexpr const char* name = "recall_sink";

  static constexpr index_t blocks(const Arguments& a) { return blocks_for(a.recall.outer * a.recall.rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const auto [row, o, r, lane] = place(thread, a.outer, a.rows);
    if (row < 0) return;
    const auto [at_largest, at_log_sum, at_sink, out] = a.offsets(o, r, a.largest, a.log_sum, arguments.sink, a.out);
    // All lanes have read before one of them writes.
    const float largest = thread.shuffle(read(a.largest.at.data, a.largest.type, at_largest), 0);
    const float log_sum = thread.shuffle(read(a.log_sum.at.data, a.log_sum.type, at_log_sum), 0);
    const float sink = arguments.sink_at(at_sink);
    if (sink == -infinity) return;
    math::OnlineSoftmax<float> state{largest, std::exp2(log_sum)};
    state.raise(sink);
    const float kept = state.sum;
    state.sum += std::exp2(sink - state.largest);
    if (lane == 0) write_row_results(a, o, r, state);
    if (!a.out.given()) return;
    const float factor = kept / state.sum;
    for (int e = lane; e < a.value_width; e += warp_size) {
      const index_t place = out + e * a.out.at.inner;
      write(a.out.at.data, a.out.type, place, factor * read(a.out.at.data, a.out.type, place));
    }
  }
};

struct RecallSinkGradient : WarpRows {
  using Arguments = SinkArguments;
  static constexpr const char* name = "recall_sink_gradient";
  static constexpr int rows = threads;  // a thread for each

  static constexpr index_t blocks(const Arguments& a) { return tiles_of(a.recall.outer * a.recall.rows, rows); }

  template <class Thread>
  static constexpr void run(const Thread& thread, const Arguments& arguments) {
    const RecallArguments& a = arguments.recall;
    const index_t row = thread.block() * rows + thread.index();
    if (row >= a.outer * a.rows) return;
    const auto [largest, log_sum, at_sink] = a.offsets(row / a.rows, row % a.rows, a.largest, a.log_sum, arguments.sink);
    const float sink = arguments.sink_at(at_sink);
    const float shift = read(a.largest.at.data, a.largest.type, largest) + read(a.log_sum.at.data, a.log_sum.type, log_sum);
    arguments.d_sinks[row] = sink == -infinity ? 0.0f : -std::exp2(sink - shift) * arguments.dots[row];
  }
};

}  // namespace recollect::cuda
