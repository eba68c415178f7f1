// SPDX-License-Identifier: BSD-3-Clause
/// `attend` on a device: the contract of spec/attention.hpp with softmax, as recall.hpp has it.
#pragma once

#include "recollect/cuda/attention_numbers.hpp"
#include "recollect/cuda/recall.hpp"
#include "recollect/cuda/recall_sink.hpp"
#include "recollect/spec/attention.hpp"

namespace recollect::cuda {

namespace detail {

struct AttentionProblem {
  Shapes shapes;
  Fold fold;
  RecallArguments arguments;
  Operand<const void> sink;
  float sink_number = -infinity;

  bool sinks() const { return sink.given() || sink_number > -infinity; }
  SinkArguments sinks_of(const RecallArguments& recall) const { return {recall, sink, sink_number, nullptr, nullptr}; }
};

inline constexpr std::string_view attend_op = "attention.attend";

inline AttentionProblem attention_problem(const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                                          std::span<const ShapeRow> table, std::span<const ConstArray> list) {
  constexpr std::string_view op = attend_op;
  const RecallOperands given{"query", "key", "value", "scale", in.query, in.key, in.value, in.scale, in.mask, 'm'};
  check_types(op, given, numbers.scale, false);
  check_given(op, "value", in.value);
  check_stored(op, "bias", in.bias);
  check_softmax(op, how.separation);
  check_type(op, "sink", in.sink, dtype::float32);
  if (!(numbers.sink < infinity)) fail(status::value, op, ": sink is ", numbers.sink, "; expected a number below +inf");
  AttentionProblem p{Shapes(op, table, list), {}, {}, {}};
  p.fold = Fold(p.shapes, 'n', {1, 2});
  p.arguments = arguments(op, given, numbers.scale, p.shapes, p.fold);
  p.arguments.causal = {how.causal != attention::causal::none,
                        how.causal == attention::causal::bottom_right ? p.arguments.patterns - p.shapes.extent('n') : 0};
  if (in.bias.given()) p.arguments.bias = operand(p.fold, p.shapes[5], in.bias, true, 1);
  if (in.sink.given()) p.sink = operand(p.fold, p.shapes[6], in.sink, false, -1);
  p.sink_number = static_cast<float>(numbers.sink);
  return p;
}

inline void check_results(const attention::operands& in, const Shapes& shapes, const attention::results& out) {
  const index_t n = shapes.extent('n');
  check_output(attend_op, "out", out.out, in.query.type, shapes, {n, shapes.extent('e')});
  check_output(attend_op, "lse", out.lse, dtype::float32, shapes, {n});
  check_output(attend_op, "largest", out.saved.largest, dtype::float32, shapes, {n});
  check_output(attend_op, "log_sum", out.saved.log_sum, dtype::float32, shapes, {n});
}

}  // namespace detail

/// `out` has the type of query; lse and what is saved are float32.
template <class Device>
void attend(Device& device, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
            const attention::results& out) {
  const ConstArray list[] = {in.query, in.key, in.value, in.scale, in.mask, in.bias, in.sink};
  detail::AttentionProblem p = detail::attention_problem(in, numbers, how, attention::operand_shapes, list);
  detail::check_results(in, p.shapes, out);
  const int batch = p.shapes.batch_rank();
  p.arguments.out = detail::output(p.fold, out.out, batch);
  p.arguments.lse = detail::output(p.fold, out.lse, batch);
  p.arguments.largest = detail::output(p.fold, out.saved.largest, batch);
  p.arguments.log_sum = detail::output(p.fold, out.saved.log_sum, batch);
  if (p.sinks()) detail::make_room_for_saved(device, p.fold, p.arguments);
  detail::forward(detail::attend_op, device, p.arguments, detail::bank(detail::attend_op, device, p.arguments));
  if (p.sinks()) detail::launch<RecallSink>(detail::attend_op, device, p.sinks_of(p.arguments));
}

}  // namespace recollect::cuda
