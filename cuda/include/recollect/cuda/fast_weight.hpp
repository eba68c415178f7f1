// SPDX-License-Identifier: BSD-3-Clause
/// `fast_weight_forward` on a device: the contract of spec/fast_weight.hpp for feature maps that act on each number alone. Operands are
/// float32, float16 or bfloat16 and all of one type; scale and states are float32, and a scale that is one number is given as such.
#pragma once

#include <array>

#include "recollect/cuda/checks.hpp"

namespace recollect::cuda {

namespace detail {

enum { query, key, value, beta, a, b, decay, channel_decay, scale, state, operand_count };

inline void check_operands(std::string_view op, std::span<const ConstArray> all, double scale_number, const fast_weight::parameters& p) {
  if (all[key].given() != all[value].given()) fail(status::value, op, ": ", all[key].given() ? "value" : "key", " is missing");
  if (!all[query].given()) check_given(op, "key", all[key]);
  if (!all[key].given()) check_given(op, "state", all[state]);
  if (p.rule == fast_weight::rule::general && all[key].given()) check_given(op, "b", all[b]);
  const dtype type = (all[query].given() ? all[query] : all[key]).type;
  for (int i = 0; i < scale; ++i) {
    const char* argument = i == channel_decay ? "decay" : fast_weight::operand_shapes[i].name;
    check_stored(op, argument, all[i]);
    check_type(op, argument, all[i], type);
  }
  check_type(op, "state", all[state], dtype::float32);
  check_scale(op, "scale", all[scale], scale_number, false);
}

inline TokenRows<const void> token_rows(const Shapes& shapes, int operand, const ConstArray& array) {
  TokenRows<const void> rows{array.data, array.type, {}, shapes[operand].inner[0], shapes[operand].inner[1]};
  std::copy_n(shapes[operand].batch.begin(), shapes.batch_rank(), rows.batch.begin());
  return rows;
}

inline TokenRows<void> token_rows(const Shapes& shapes, const Array& array) {
  const int batch = shapes.batch_rank();
  if (!array.given()) return {};
  TokenRows<void> rows{array.data, array.type, {}, array.strides[batch], array.strides[batch + 1]};
  std::copy_n(array.strides.begin(), batch, rows.batch.begin());
  return rows;
}

/// The operands, checked, and what kernels are told of them.
struct FastWeightProblem {
  std::array<ConstArray, operand_count> all;
  Shapes shapes;
  bool normalised;
  dtype type;  // of the operands
  FastWeightArguments arguments;

  FastWeightProblem(std::string_view op, const fast_weight::operands& in, double scale_number, std::string_view feature_map, row_norm norm,
                    const fast_weight::parameters& p)
      : all(listed(op, in, scale_number, p)),
        shapes(op, fast_weight::operand_shapes, all),
        normalised(p.normalise != fast_weight::normalisation::none),
        type((in.query.given() ? in.query : in.key).type) {
    const int map = map_number(feature_maps{}, feature_map);
    if (map < 0)
      fail(status::value, op, ": feature_map is '", feature_map, "'; expected one of ", map_names(feature_maps{}), " on a device so far");
    const index_t K = shapes.extent('d'), V = in.value.given() ? shapes.extent('V') : shapes.extent('W') - normalised;
    check_widths(op, in, K, V);
    for (int axis = 0; axis < shapes.batch_rank(); ++axis) arguments.batch.add(shapes.batch_extent(axis));
    arguments.sequences = arguments.batch.count();
    arguments.tokens = shapes.extent('T');
    arguments.keys = static_cast<int>(K);
    arguments.values = static_cast<int>(V);
    TokenRows<const void>* const placed[] = {&arguments.query, &arguments.key,  &arguments.value, &arguments.beta,
                                             &arguments.a,     &arguments.b,    &arguments.decay, &arguments.channel_decay,
                                             &arguments.scale, &arguments.state};
    for (int i = 0; i < operand_count; ++i)
      if (all[i].given()) *placed[i] = token_rows(shapes, i, all[i]);
    arguments.scale_number = static_cast<float>(scale_number);
    arguments.map = map;
    arguments.norm = norm;
    arguments.rule = p.rule;
    arguments.normalise = p.normalise;
    arguments.log_decay = p.log_decay;
  }

 private:
  static std::array<ConstArray, operand_count> listed(std::string_view op, const fast_weight::operands& in, double scale_number,
                                                      const fast_weight::parameters& p) {
    const std::array<ConstArray, operand_count> all{in.query, in.key,   in.value,         in.beta,  in.a,
                                                    in.b,     in.decay, in.channel_decay, in.scale, in.state};
    check_operands(op, all, scale_number, p);
    return all;
  }

  void check_widths(std::string_view op, const fast_weight::operands& in, index_t K, index_t V) const {
    check_width(op, in.query.given() ? "query" : "key", in.query.given() ? in.query : in.key, K);
    for (const auto& [argument, array] : {std::pair{"a", in.a}, std::pair{"b", in.b}, std::pair{"decay", in.channel_decay}})
      if (array.given() && array.extents[array.rank - 1] != K)
        fail(status::value, op, ": ", argument, " has shape ", array.shape_text(), "; expected a last axis of ", K,
             ", the width of the feature map");
    if (in.state.given() && (shapes.extent('K') != K || shapes.extent('W') != V + normalised))
      fail(status::value, op, ": state has shape ", in.state.shape_text(), "; expected (..., K=", K, ", ", V + normalised, ")",
           normalised ? ", the last column of which is the normaliser" : "");
  }
};

/// Arguments for FastWeightChunk, if it serves the problem once queries and keys are mapped, which then they are; or as they came.
template <class Device>
FastWeightArguments mapped_for_chunks(std::string_view op, Device& device, const FastWeightArguments& a) {
  FastWeightArguments mapped = with_half_rows(a);
  if (!maps_rows(a) || !on_tensor_cores(device.architecture(), mapped, mapped.out)) return a;
  const index_t bytes = a.sequences * a.tokens * a.keys * bytes_of(a.query.type);
  const FastWeightRowsArguments rows{a, device.scratch(bytes), device.scratch(bytes)};
  mapped.query.data = rows.queries;
  mapped.key.data = rows.keys;
  launch<FastWeightRows>(op, device, rows);
  if (a.normalise != fast_weight::normalisation::none) launch<FastWeightDivide>(op, device, rows);
  return mapped;
}

}  // namespace detail

/// One pass over all tokens. out.state may be the very array that was given as the state.
template <class Device>
void fast_weight_forward(std::string_view op, Device& device, const fast_weight::operands& in, double scale_number,
                         std::string_view feature_map, row_norm norm, const fast_weight::parameters& p, const fast_weight::results& out) {
  using namespace detail;
  const FastWeightProblem problem(op, in, scale_number, feature_map, norm, p);
  const Shapes& shapes = problem.shapes;
  FastWeightArguments arguments = problem.arguments;
  const index_t K = arguments.keys, V = arguments.values;
  if (out.out.given()) check_given(op, "query", in.query);
  if (out.saved.written.given() || out.saved.checkpoints.given())
    fail(status::value, op, ": written or checkpoints are given; expected none, as gradients on a device take the operands alone");
  check_output(op, "out", out.out, problem.type, shapes, {arguments.tokens, V});
  check_output(op, "state", out.state, dtype::float32, shapes, {K, V + problem.normalised});
  arguments.out = token_rows(shapes, out.out);
  arguments.out_state = token_rows(shapes, out.state);
  if (problem.normalised && in.state.given()) {
    arguments.normaliser = static_cast<float*>(device.scratch(arguments.sequences * K * sizeof(float)));
    launch<CopyNormaliser>(op, device, arguments);
  }
  const FastWeightArguments chunked = mapped_for_chunks(op, device, arguments);
  if (on_tensor_cores(device.architecture(), chunked, chunked.out))
    return select_chunk(chunked.query.type, chunked.keys, p.rule, [&]<class Kernel, class>() { launch<Kernel>(op, device, chunked); });
  select_scan(arguments.keys, problem.normalised, [&]<class Kernel>() { launch<Kernel>(op, device, arguments); });
}

}  // namespace recollect::cuda
