// SPDX-License-Identifier: BSD-3-Clause
/// Which kernel serves a problem: the one place that knows of architectures. Kernels for tensor cores are asked first, by
/// `architecture` (90 for compute capability 9.0) and the problem; portable ones remain for the rest.
#pragma once

#include <algorithm>
#include <cstdint>

#include "recollect/cuda/fast_weight_chunk.hpp"
#include "recollect/cuda/fast_weight_chunk_reverse.hpp"
#include "recollect/cuda/fast_weight_normaliser.hpp"
#include "recollect/cuda/fast_weight_pull.hpp"
#include "recollect/cuda/fast_weight_reverse.hpp"
#include "recollect/cuda/fast_weight_rows.hpp"
#include "recollect/cuda/fast_weight_scan.hpp"
#include "recollect/cuda/recall_backward.hpp"
#include "recollect/cuda/recall_backward_bias.hpp"
#include "recollect/cuda/recall_backward_sm80.hpp"
#include "recollect/cuda/recall_forward.hpp"
#include "recollect/cuda/recall_sm80.hpp"
#include "recollect/cuda/recall_sm90.hpp"
#include "recollect/cuda/top_k_scan.hpp"

namespace recollect::cuda {

inline constexpr int widest = 256;

/// Whether a recall is one for RecallSm90.
constexpr bool on_tensor_cores(int architecture, const RecallArguments& a) {
  const bool half = a.key.type == dtype::float16 || a.key.type == dtype::bfloat16, width = a.width == 64 || a.width == 128;
  const bool plain = !a.mask.given() && !a.bias.given() && !a.causal.on && a.patterns > 0;
  const bool alike = a.query.type == a.key.type && (a.shared() || (a.value.type == a.key.type && a.value_width == a.width));
  return architecture == 90 && half && width && plain && alike;
}

/// Whether such a recall takes several steps in one launch: of whatever type and width.
constexpr bool steps_in_one_launch(const RecallArguments& a) { return a.shared() && RecallSm90<bfloat16, 64, true>::in_one_launch(a); }

/// run<Kernel>() with the kernel for a recall that is.
template <class Run>
void select_tensor_cores(dtype type, int width, bool shared, Run&& run) {
  const auto with = [&]<class T, int Width>() {
    if (shared) return run.template operator()<RecallSm90<T, Width, true>>();
    run.template operator()<RecallSm90<T, Width, false>>();
  };
  const auto with_type = [&]<class T>() {
    if (width == 64) return with.template operator()<T, 64>();
    with.template operator()<T, 128>();
  };
  if (type == dtype::float16) return with_type.template operator()<float16>();
  with_type.template operator()<bfloat16>();
}

/// How RecallSm80 takes a recall: as numbers of this type, float32 for what is split, none if it does not. A memory is packed for it,
/// which is much beside a read of it by few rows.
constexpr dtype halves_of(int architecture, const RecallArguments& a) {
  constexpr index_t few_rows = 4;
  const bool widths = a.width > 0 && a.width <= 128 && a.value_width > 0 && a.value_width <= 128;
  const bool plain = !a.mask.given() && !a.bias.given() && a.patterns > 0;
  if (architecture < 80 || !widths || !plain || a.rows <= few_rows) return dtype::none;
  const bool alike = a.query.type == a.key.type && (a.shared() || a.value.type == a.key.type);
  return alike ? a.key.type : dtype::float32;
}

/// run<Pack, Kernel>() with RecallSm80 for numbers of a type and rows of up to `width` of them, and with what packs for it.
template <class Run>
void select_halves(dtype type, int width, Run&& run) {
  const auto with = [&]<class T>() {
    constexpr bool split = std::is_same_v<T, float>;
    if (width <= 64) return run.template operator()<RecallHalfPack<split, 64>, RecallSm80<T, 64>>();
    run.template operator()<RecallHalfPack<split, 128>, RecallSm80<T, 128>>();
  };
  visit_stored(type, with);
}

/// run<Kernel>() with the portable forward kernel for rows of `width` numbers, the wider of d and e.
template <class Run>
void select_forward(int width, Run&& run) {
  if (width <= 64) return run.template operator()<RecallForward<Tile<64, 4>>>();
  if (width <= 128) return run.template operator()<RecallForward<Tile<128, 4>>>();
  run.template operator()<RecallForward<Tile<256, 2>>>();
}

/// run<RowsKernel, PatternsKernel>() for the gradient.
template <class Run>
void select_backward(int width, Run&& run) {
  const auto with = [&]<class T>() { run.template operator()<RecallBackwardRows<T>, RecallBackwardPatterns<T>>(); };
  if (width <= 64) return with.template operator()<Tile<64, 2>>();
  if (width <= 128) return with.template operator()<Tile<128, 2>>();
  with.template operator()<Tile<256, 1>>();
}

/// Rows and memories that are copied 16 bytes at a time.
inline bool in_sixteens(const Axes& axes, const detail::Strides& strides) {
  for (int axis = 0; axis < axes.rank; ++axis)
    if (axes.extents[axis] > 1 && strides[axis] % 8 != 0) return false;
  return true;
}
inline bool in_sixteens(const RecallArguments& a, const Operand<const void>& rows) {
  return rows.at.inner == 1 && in_sixteens(a.outer_axes, rows.at.outer) && in_sixteens(a.row_axes, rows.at.row) &&
         reinterpret_cast<std::uintptr_t>(rows.at.data) % 16 == 0;
}
inline bool in_sixteens(const RecallArguments& a, const Memory& memory) {
  return memory.inner == 1 && memory.row % 8 == 0 && in_sixteens(a.outer_axes, memory.outer) &&
         reinterpret_cast<std::uintptr_t>(memory.data) % 16 == 0;
}

/// Whether the gradient of a recall is one for RecallBackward...Sm80. An energy reads nothing, and has no d_out.
inline bool on_tensor_cores(int architecture, const RecallBackwardArguments& b) {
  const RecallArguments& a = b.recall;
  constexpr index_t most = 2147483647 - RecallBackwardSm80Arguments::own;
  const bool half = a.key.type == dtype::float16 || a.key.type == dtype::bfloat16, width = a.width == 64 || a.width == 128;
  const bool plain = !a.mask.given() && !a.bias.given() && a.patterns > 0 && a.patterns < most && a.rows > 0 && a.rows < most;
  const bool keys = a.query.type == a.key.type && in_sixteens(a, a.query) && in_sixteens(a, a.key);
  if (architecture < 80 || !half || !width || !plain || !keys) return false;
  if (b.energy) return true;
  const bool values = a.shared() || (a.value.type == a.key.type && a.value_width == a.width && in_sixteens(a, a.value));
  return values && b.d_out.type == a.key.type && in_sixteens(a, b.d_out);
}

/// run<RowsKernel, PatternsKernel>() for the gradient of such a recall. Shared: keys that are the values, or no values.
template <class Run>
void select_backward_sm80(dtype type, int width, bool shared, Run&& run) {
  const auto with = [&]<class T, int Width>() {
    using Rows = RecallBackwardRowsSm80<T, Width>;
    if (shared) return run.template operator()<Rows, RecallBackwardPatternsSm80<T, Width, true>>();
    run.template operator()<Rows, RecallBackwardPatternsSm80<T, Width, false>>();
  };
  const auto with_type = [&]<class T>() {
    if (width == 64) return with.template operator()<T, 64>();
    with.template operator()<T, 128>();
  };
  if (type == dtype::float16) return with_type.template operator()<float16>();
  with_type.template operator()<bfloat16>();
}

/// run<Kernel>() with the scan of keys of `width` numbers for the largest scores.
template <class Run>
void select_top_k(int width, Run&& run) {
  if (width <= 64) return run.template operator()<TopKScan<Tile<64, 4>, false>>();
  if (width <= 128) return run.template operator()<TopKScan<Tile<128, 4>, false>>();
  run.template operator()<TopKScan<Tile<256, 2>, false>>();
}

/// The one for an additive score, whose products are hyperbolic tangents.
using AdditiveTopKScan = TopKScan<Tile<256, 1>, true>;

/// run<Kernel>() for the gradient of a bias.
template <class Run>
void select_bias(int width, Run&& run) {
  if (width <= 64) return run.template operator()<RecallBackwardBias<Tile<64, 2>>>();
  if (width <= 128) return run.template operator()<RecallBackwardBias<Tile<128, 2>>>();
  run.template operator()<RecallBackwardBias<Tile<256, 1>>>();
}

/// Rows that are copied 16 bytes at a time.
template <class P>
bool in_sixteens(const TokenRows<P>& rows) {
  const auto whole = [](index_t stride) { return stride % 8 == 0; };
  return rows.inner == 1 && whole(rows.time) && std::all_of(rows.batch.begin(), rows.batch.end(), whole) &&
         reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0;
}

/// Below, a token after the other is faster.
inline constexpr index_t fewest_chunked_tokens = 16;

/// Whether fast weights are ones for FastWeightChunk, or their gradient one for FastWeightChunkReverse: of the outputs, or their cotangent.
template <class P>
bool on_tensor_cores(int architecture, const FastWeightArguments& a, const TokenRows<P>& out) {
  const bool half = a.query.type == dtype::float16 || a.query.type == dtype::bfloat16, width = a.keys == 64 || a.keys == 128;
  const bool rule = (a.rule == fast_weight::rule::delta && !a.b.given()) || (a.rule == fast_weight::rule::sum && !a.beta.given());
  const bool plain = !a.a.given() && !a.channel_decay.given() && a.normalise == fast_weight::normalisation::none &&
                     a.norm == row_norm::none && a.map == map_number(feature_maps{}, "identity");
  return architecture >= 80 && half && width && rule && plain && a.key.given() && out.given() && a.tokens >= fewest_chunked_tokens &&
         a.values % 8 == 0 && in_sixteens(a.query) && in_sixteens(a.key) && in_sixteens(a.value) && in_sixteens(out);
}

inline bool maps_rows(const FastWeightArguments& a) {
  return a.map != map_number(feature_maps{}, "identity") || a.norm != row_norm::none || a.normalise != fast_weight::normalisation::none;
}

/// The same with queries and keys as FastWeightRows writes them, where 16 bits do not spoil them: float16 has to hold the largest, and
/// queries over their normaliser, which must not be a small difference. Otherwise as they are.
inline FastWeightArguments with_half_rows(const FastWeightArguments& a) {
  using fast_weight::normalisation;
  const auto is = [&](std::string_view name) { return a.map == map_number(feature_maps{}, name); };
  const bool bounded = a.norm == row_norm::l2 || is("relu") || is("elu1");
  const bool wide = a.query.type == dtype::bfloat16, held = a.normalise == normalisation::none && (wide || bounded);
  if (!held && !(a.normalise == normalisation::outputs && wide && !is("identity"))) return a;
  FastWeightArguments mapped = a;
  mapped.map = map_number(feature_maps{}, "identity");
  mapped.norm = row_norm::none;
  mapped.normalise = normalisation::none;
  index_t stride = a.tokens * a.keys;
  for (TokenRows<const void>* rows : {&mapped.query, &mapped.key})
    if (rows->given()) *rows = {nullptr, rows->type, {}, a.keys, 1};
  for (int axis = a.batch.rank - 1; axis >= 0; stride *= a.batch.extents[axis--])
    mapped.query.batch[axis] = mapped.key.batch[axis] = stride;
  return mapped;
}

/// run<Kernel, ReverseKernel>() with the kernels for fast weights that are.
template <class Run>
void select_chunk(dtype type, int width, fast_weight::rule rule, Run&& run) {
  const auto with = [&]<class T, int Width>() {
    const auto with_rule = [&]<bool delta>() {
      run.template operator()<FastWeightChunk<T, Width, delta>, FastWeightChunkReverse<T, Width, delta>>();
    };
    if (rule == fast_weight::rule::delta) return with_rule.template operator()<true>();
    with_rule.template operator()<false>();
  };
  const auto with_type = [&]<class T>() {
    if (width == 64) return with.template operator()<T, 64>();
    with.template operator()<T, 128>();
  };
  if (type == dtype::float16) return with_type.template operator()<float16>();
  with_type.template operator()<bfloat16>();
}

/// run<Kernel>() with the scan for K = `keys` key channels.
template <class Run>
void select_scan(int keys, bool normalised, Run&& run) {
  const auto with = [&]<int per_thread>() {
    if (normalised) return run.template operator()<FastWeightScan<per_thread, true>>();
    run.template operator()<FastWeightScan<per_thread, false>>();
  };
  if (keys <= 64) return with.template operator()<8>();
  if (keys <= 128) return with.template operator()<16>();
  with.template operator()<32>();
}

/// run<CheckpointsKernel, ReverseKernel>() for the gradient of that.
template <class Run>
void select_reverse(int keys, Run&& run) {
  const auto with = [&]<int per_thread>() { run.template operator()<FastWeightCheckpoints<per_thread>, FastWeightReverse<per_thread>>(); };
  if (keys <= 64) return with.template operator()<8>();
  if (keys <= 128) return with.template operator()<16>();
  with.template operator()<32>();
}

}  // namespace recollect::cuda
