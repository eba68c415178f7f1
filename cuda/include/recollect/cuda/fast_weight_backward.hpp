// SPDX-License-Identifier: BSD-3-Clause
/// `fast_weight_backward` on a device: gradients of everything that `fast_weight_forward` takes, from its operands alone. In chunks on
/// tensor cores tokens are gone through twice: for S before every chunk, and back. Token by token it is three times: for S before every
/// chunk, for S before every token of a chunk, and back. These are what scratch is for, beside the sums of one chunk and, normalised, z
/// after every token.
#pragma once

#include <vector>

#include "recollect/cuda/fast_weight.hpp"

namespace recollect::cuda {

namespace detail {

/// The gradient of one operand: written where it belongs if every sequence has a place of its own there, otherwise into scratch, whose
/// sequences, and shares of a sequence if there are several, are then summed in order.
class SharedGradient {
 public:
  template <class Device>
  SharedGradient(Device& device, const Shapes& shapes, const BoundOperand& bound, const Array& array, index_t rows, index_t columns,
                 index_t shares) {
    if (!array.given() || array.size() == 0) return;
    sum_.to = {array.data, array.type, {}, bound.inner[0], bound.inner[1]};
    sum_.rows = rows;
    sum_.columns = columns;
    index_t stride = shares;
    Strides sequences{};
    Axes batch;
    for (int axis = 0; axis < shapes.batch_rank(); ++axis) batch.add(shapes.batch_extent(axis));
    for (int axis = batch.rank - 1; axis >= 0; stride *= batch.extents[axis--]) sequences[axis] = stride;
    for (int axis = 0; axis < batch.rank; ++axis) {
      const bool own = bound.batch[axis] != 0;
      Axes& axes = own ? sum_.own : sum_.shared;
      (own ? sum_.own_sequences : sum_.shared_sequences)[axes.rank] = sequences[axis];
      if (own) sum_.to.batch[axes.rank] = bound.batch[axis];
      axes.add(batch.extents[axis]);
    }
    if (shares > 1) {
      sum_.shared_sequences[sum_.shared.rank] = 1;
      sum_.shared.add(shares);
    }
    place_ = sum_.to;
    place_.batch = {};
    std::copy_n(bound.batch.begin(), batch.rank, place_.batch.begin());
    if (sum_.shared.count() == 1) return;
    float* const data = static_cast<float*>(device.scratch(batch.count() * shares * rows * columns * sizeof(float)));
    sum_.from = data;
    place_ = {data, dtype::float32, {}, columns, 1};
    for (int axis = 0; axis < batch.rank; ++axis) place_.batch[axis] = sequences[axis] * rows * columns;
    summed_ = true;
  }

  /// Where kernels write it.
  const TokenRows<void>& place() const { return place_; }

  template <class Device>
  void finish(std::string_view op, Device& device) const {
    if (summed_) launch<SumSequences>(op, device, sum_);
  }

 private:
  SumSequencesArguments sum_;
  TokenRows<void> place_;
  bool summed_ = false;
};

inline void check_gradients(std::string_view op, std::span<const ConstArray> all, std::span<const Array> wanted) {
  static constexpr const char* names[] = {"d_query", "d_key",   "d_value", "d_beta",  "d_a",
                                          "d_b",     "d_decay", "d_decay", "d_scale", "d_state"};
  for (int i = 0; i < operand_count; ++i) {
    if (i == scale && wanted[i].given() && !all[i].given()) {  // that of a number is a number
      if (wanted[i].rank != 0) fail(status::value, op, ": d_scale has shape ", wanted[i].shape_text(), "; expected ()");
      if (wanted[i].type != dtype::float32) fail(status::type, op, ": d_scale has dtype ", name(wanted[i].type), "; expected float32");
    } else {
      check_gradient(op, names[i], wanted[i], all[i], all[i].type);
    }
  }
}

inline TokenRows<const void> readable(const TokenRows<void>& rows) { return {rows.data, rows.type, rows.batch, rows.time, rows.inner}; }

/// Scratch for all that is not a gradient.
template <class Device>
void take_scratch(Device& device, FastWeightBackwardArguments& a, int rows_per_block, bool normalised) {
  const auto floats = [&](index_t count) { return static_cast<float*>(device.scratch(count * sizeof(float))); };
  const FastWeightArguments& s = a.scan;
  const index_t blocks = s.sequences * a.column_blocks(), state = rows_per_block * FastWeightScan<8, false>::columns;
  a.checkpoints = floats(blocks * a.chunks() * state);
  a.states = floats(blocks * a.chunk * state);
  a.carried = floats(blocks * state);
  a.numbers = floats(blocks * s.tokens * token_number_count);
  if (normalised) {
    a.normaliser = floats(s.sequences * (s.tokens + 1) * s.keys);
    a.carried_normaliser = floats(s.sequences * s.keys);
  }
  const bool asked[] = {a.d_query.given(), a.d_key.given(), a.d_a.given() && s.key.given(), a.d_b.given() && s.key.given(),
                        a.d_decay.given() || a.d_channel_decay.given()};
  for (int kind = 0; kind < column_sum_count; ++kind)
    if (asked[kind]) a.sums[kind] = floats(s.sequences * a.shares() * a.chunk * s.keys);
}

/// The gradient in chunks on tensor cores: S before every chunk, in 16 bits, and back.
template <class Device>
void pull_chunks(std::string_view op, Device& device, FastWeightBackwardArguments a) {
  FastWeightArguments& s = a.scan;
  select_chunk(s.query.type, s.keys, s.rule, [&]<class Chunk, class Reverse>() {
    const index_t entries = Reverse::blocks(a) * ((s.tokens + Chunk::chunk - 1) / Chunk::chunk);
    s.states = static_cast<std::uint32_t*>(device.scratch(entries * Chunk::state_words * 4));
    if (Chunk::narrow_range) s.sizes = static_cast<float*>(device.scratch(entries * Chunk::warps * sizeof(float)));
    launch<Chunk>(op, device, s);
    launch<Reverse>(op, device, a);
  });
}

/// And token by token.
template <class Device>
void pull_tokens(std::string_view op, Device& device, FastWeightBackwardArguments a, bool normalised) {
  select_reverse(a.scan.keys, [&]<class Checkpoints, class Reverse>() {
    take_scratch(device, a, Reverse::width, normalised);
    if (a.normaliser) launch<FastWeightNormaliser>(op, device, a);
    launch<Checkpoints>(op, device, a);
    for (a.number = a.chunks() - 1; a.number >= 0; --a.number) {
      launch<Reverse>(op, device, a);
      if (a.normaliser) launch<FastWeightNormaliserReverse>(op, device, a);
      launch<FastWeightPull>(op, device, a);
    }
  });
  if (a.d_scale.given()) launch<FastWeightScaleGradient>(op, device, a);
}

}  // namespace detail

/// d_in = J^T (d_out, d_state); a cotangent that is not given is zero, a gradient that is not is left out.
template <class Device>
void fast_weight_backward(std::string_view op, Device& device, const fast_weight::operands& in, double scale_number,
                          std::string_view feature_map, row_norm norm, const fast_weight::parameters& p, const ConstArray& d_out,
                          const ConstArray& d_state, const fast_weight::gradients& d_in) {
  using namespace detail;
  const FastWeightProblem problem(op, in, scale_number, feature_map, norm, p);
  const Array wanted[] = {d_in.query, d_in.key,   d_in.value,         d_in.beta,  d_in.a,
                          d_in.b,     d_in.decay, d_in.channel_decay, d_in.scale, d_in.state};
  if (d_out.given()) check_given(op, "query", in.query);
  if (p.chunk < 1) fail(status::value, op, ": chunk is ", p.chunk, "; expected a number of 1 or more");
  check_gradients(op, problem.all, wanted);
  const Shapes& shapes = problem.shapes;
  const index_t T = problem.arguments.tokens, K = problem.arguments.keys, V = problem.arguments.values, W = V + problem.normalised;
  check_output(op, "d_out", as_output(d_out), problem.type, shapes, {T, V});
  check_output(op, "d_state", as_output(d_state), dtype::float32, shapes, {K, W});

  // Gradients lie at strides of their own: the operands' shapes are bound once more, with the gradients in their places.
  std::array<ConstArray, operand_count> places = problem.all;
  for (int i = 0; i < operand_count; ++i)
    if (wanted[i].given()) places[i] = wanted[i];
  const Shapes gradient_shapes(op, fast_weight::operand_shapes, places);
  FastWeightBackwardArguments a;
  a.scan = problem.arguments;
  a.d_out = readable(token_rows(shapes, as_output(d_out)));
  a.d_out_state = readable(token_rows(shapes, as_output(d_state)));
  a.chunk = std::clamp<index_t>(p.chunk, 1, std::max<index_t>(T, 1));
  TokenRows<void>* const placed[] = {&a.d_query, &a.d_key,   &a.d_value,         &a.d_beta,  &a.d_a,
                                     &a.d_b,     &a.d_decay, &a.d_channel_decay, &a.d_scale, &a.d_state};
  const index_t rows[] = {T, T, T, T, T, T, T, T, 1, K}, columns[] = {K, K, V, 1, K, K, 1, K, 1, W};
  const auto copied = [&](int i) { return !wanted[i].given() || in_sixteens(token_rows(gradient_shapes, i, wanted[i])); };
  const bool chunked =
      V > 0 && on_tensor_cores(device.architecture(), a.scan, a.d_out) && copied(query) && copied(key) && copied(detail::value);
  const index_t shares = chunked ? (V + K - 1) / K : 1;  // of what is a sum over columns: a block has K of them
  std::vector<SharedGradient> gradients;
  for (int i = 0; i < operand_count; ++i) {
    gradients.emplace_back(device, shapes, gradient_shapes[i], wanted[i], rows[i], columns[i],
                           i == detail::value || i == detail::state ? 1 : shares);
    *placed[i] = gradients.back().place();
  }
  if (chunked)
    pull_chunks(op, device, a);
  else
    pull_tokens(op, device, a, problem.normalised);
  for (const SharedGradient& gradient : gradients) gradient.finish(op, device);
}

}  // namespace recollect::cuda
