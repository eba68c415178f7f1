// SPDX-License-Identifier: BSD-3-Clause
/// Gradients of `attend` and `retrieve` on a device: each in the type of its operand, a scale's in float32. What was broadcast is summed.
/// All that are not wanted are left out.
#pragma once

#include "recollect/cuda/attention.hpp"
#include "recollect/cuda/recall_pullback.hpp"
#include "recollect/cuda/retrieval.hpp"

namespace recollect::cuda {

/// Of query, key, value, scale, bias and sink, with what `attend` saved.
template <class Device>
void attend_backward(Device& device, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  using namespace detail;
  constexpr std::string_view op = attend_op;
  for (const auto& [argument, array] :
       {std::pair{"out", out}, std::pair{"d_out", d_out}, std::pair{"largest", kept.largest}, std::pair{"log_sum", kept.log_sum}})
    check_given(op, argument, array);
  check_gradient(op, "d_query", d_in.query, in.query, in.query.type);
  check_gradient(op, "d_key", d_in.key, in.key, in.key.type);
  check_gradient(op, "d_value", d_in.value, in.value, in.value.type);
  check_scale_gradient(op, "d_scale", d_in.scale, in.scale);
  check_gradient(op, "d_bias", d_in.bias, in.bias, in.bias.type);
  check_scale_gradient(op, "d_sink", d_in.sink, in.sink);
  const ConstArray list[] = {in.query,   in.key,   in.value,   in.scale,   in.mask,   in.bias,  in.sink,
                             d_in.query, d_in.key, d_in.value, d_in.scale, d_in.bias, d_in.sink};
  const AttentionProblem p = attention_problem(in, numbers, how, attention::gradient_shapes, list);
  check_results(in, p.shapes, {as_output(out), {}, {as_output(kept.largest), as_output(kept.log_sum)}});
  check_output(op, "d_out", as_output(d_out), in.query.type, p.shapes, {p.shapes.extent('n'), p.shapes.extent('e')});
  const int batch = p.shapes.batch_rank();
  RecallBackwardArguments a;
  a.recall = p.arguments;
  a.recall.out = output(p.fold, as_output(out), batch);
  a.recall.largest = output(p.fold, as_output(kept.largest), batch);
  a.recall.log_sum = output(p.fold, as_output(kept.log_sum), batch);
  a.d_out = {p.fold.template place_output<const void>(as_output(d_out), batch), d_out.type};
  enum { d_query = 7, d_key, d_value, d_scale, d_bias, d_sink };
  RecallPullback<Device> pull(op, device, p.fold, a.recall);
  a.d_query = pull.rows({d_in.query, p.shapes[d_query]}, a.recall.width);
  a.d_key = pull.memory({d_in.key, p.shapes[d_key]}, a.recall.width, false);
  a.d_value = pull.memory({d_in.value, p.shapes[d_value]}, a.recall.value_width, false);
  a.d_scales = pull.scales({d_in.scale, p.shapes[d_scale]}, 1);
  SinkArguments sink = p.sinks_of(a.recall);
  sink.d_sinks = pull.scales({d_in.sink, p.shapes[d_sink]}, 1);
  pull.run(a);
  sink.dots = a.dots;
  if (sink.d_sinks) launch<RecallSinkGradient>(op, device, sink);
  pull.bias({d_in.bias, p.shapes[d_bias]}, a);
  pull.finish();
}

/// Of state, patterns, values and beta, back through all steps of a `retrieve` that kept them.
template <class Device>
void retrieve_backward(Device& device, const hopfield::operands& in, double beta, const hopfield::parameters& how,
                       std::span<const RetrievalStep> kept, const ConstArray& out, const ConstArray& d_out,
                       const hopfield::gradients& d_in) {
  using namespace detail;
  constexpr std::string_view op = retrieve_op;
  check_given(op, "out", out);
  check_given(op, "d_out", d_out);
  check_gradient(op, "d_state", d_in.state, in.state, in.state.type);
  check_gradient(op, "d_patterns", d_in.patterns, in.patterns, in.patterns.type);
  check_gradient(op, "d_values", d_in.values, in.values, in.values.type);
  check_scale_gradient(op, "d_beta", d_in.beta, in.beta);
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask, d_in.state, d_in.patterns, d_in.values, d_in.beta};
  const RetrievalProblem p = retrieval_problem(op, in, beta, how, hopfield::gradient_shapes, list);
  const index_t n = p.shapes.extent('n');
  check_output(op, "out", as_output(out), in.state.type, p.shapes, {n, p.arguments.value_width});
  check_output(op, "d_out", as_output(d_out), in.state.type, p.shapes, {n, p.arguments.value_width});
  check_kept(p, in, how, kept, true);
  const int batch = p.shapes.batch_rank(), width = p.arguments.width;
  enum { d_state = 5, d_patterns, d_values, d_beta };
  RecallPullback<Device> pull(op, device, p.fold, p.arguments);
  RecallBackwardArguments a;
  a.recall = p.arguments;
  a.d_out = {p.fold.template place_output<const void>(as_output(d_out), batch), d_out.type};
  a.d_key = pull.memory({d_in.patterns, p.shapes[d_patterns]}, width, how.steps > 1);
  a.d_value = pull.memory({d_in.values, p.shapes[d_values]}, p.arguments.value_width, false);
  a.d_scales = pull.scales({d_in.beta, p.shapes[d_beta]}, how.steps);
  float* const states[2] = {how.steps > 2 ? pull.floats(pull.all_rows() * width) : nullptr,
                            how.steps > 1 ? pull.floats(pull.all_rows() * width) : nullptr};
  const dtype between = how.steps > 1 ? pull.between(p.arguments, output(p.fold, kept[0].state, batch)) : dtype::float32;
  for (index_t step = how.steps - 1; step >= 0; --step) {
    const bool last = step + 1 == how.steps;
    a.recall.query = step == 0 ? p.arguments.query : as_query(output(p.fold, kept[step - 1].state, batch));
    a.recall.out = output(p.fold, last ? as_output(out) : kept[step].state, batch);
    a.recall.largest = output(p.fold, kept[step].saved.largest, batch);
    a.recall.log_sum = output(p.fold, kept[step].saved.log_sum, batch);
    if (!last) {
      a.d_out = pull.template dense<const void>(states[(step + 1) % 2], width, between);
      a.recall.value = {};
      a.recall.value_width = width;
      a.d_value = {};
      a.adds = true;
      if (a.d_scales) a.d_scales += pull.all_rows();
    }
    a.d_query = step == 0 ? pull.rows({d_in.state, p.shapes[d_state]}, width) : pull.dense(states[step % 2], width, between);
    pull.run(a);
    if (how.tol >= 0 && step > 0 && !(last && in.values.given())) launch<RecallRested>(op, device, a);
  }
  pull.finish();
}

}  // namespace recollect::cuda
