// SPDX-License-Identifier: BSD-3-Clause
/// `attend` with the separation top_k_softmax on a device, and its gradient: the contract of spec/attention.hpp, arrays and arithmetic as
/// in recall.hpp.
#pragma once

#include "recollect/cuda/attention.hpp"
#include "recollect/cuda/recall_pullback.hpp"
#include "recollect/cuda/top_k_backward.hpp"
#include "recollect/math/separation.hpp"

namespace recollect::cuda {

namespace detail {

/// Arguments with room in the lists for `k` of the patterns there are.
inline TopKArguments top_k_arguments(std::string_view op, const RecallArguments& recall, const char* patterns_name, index_t k,
                                     const char* k_name) {
  if (recall.patterns > most_ranked)
    fail(status::value, op, ": ", patterns_name, " has ", recall.patterns, " rows; expected at most ", most_ranked, " on a device");
  if (k > RankedList::places) fail(status::value, op, ": ", k_name, " is ", k, "; expected at most ", RankedList::places, " on a device");
  TopKArguments top;
  top.recall = recall;
  top.k = static_cast<int>(k);
  return top;
}

/// The lists of all rows.
template <class Kernel, class Device>
void scan(std::string_view op, Device& device, TopKArguments& top) {
  RecallArguments& a = top.recall;
  a.splits = Kernel::splits(top);
  top.lists = static_cast<Rank*>(device.scratch(a.splits * a.outer * a.rows * RankedList::pitch(top.k) * sizeof(Rank)));
  launch<Kernel>(op, device, top);
}

template <class Device>
void scan_products(std::string_view op, Device& device, TopKArguments& top) {
  select_top_k(top.recall.width, [&]<class Kernel>() { scan<Kernel>(op, device, top); });
}

/// What comes after the scan.
template <class Choice, class Device>
void backward(std::string_view op, Device& device, TopKBackwardArguments& a) {
  const RecallArguments& recall = a.top.recall;
  a.selected = static_cast<Selected*>(device.scratch(recall.outer * recall.rows * a.top.k * sizeof(Selected)));
  launch<TopKBackwardRows<Choice>>(op, device, a);
  if (a.d_key.given() || a.d_value.given()) launch<TopKBackwardPatterns>(op, device, a);
}

/// k of ("top_k_softmax", k), no more than there are keys; at least 1.
inline index_t selected_keys(std::string_view op, const choice& separation, index_t keys) {
  using rule = top_k_softmax::parameter_rule;
  if (separation.name != top_k_softmax::name || !rule::allows(separation.parameter))
    fail(status::value, op, ": separation is ", separation.text(), "; expected ('top_k_softmax', ", rule::expected, ")");
  return std::max<index_t>(std::min(static_cast<index_t>(separation.parameter), keys), 1);
}

}  // namespace detail

template <class Device>
void attend_top_k(Device& device, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                  const attention::results& out) {
  using namespace detail;
  constexpr std::string_view op = attend_op;
  const ConstArray list[] = {in.query, in.key, in.value, in.scale, in.mask, in.bias, in.sink};
  const AttentionProblem p = attention_problem(in, numbers, {how.causal}, attention::operand_shapes, list);
  check_results(in, p.shapes, out);
  const index_t k = selected_keys(op, how.separation, p.arguments.patterns);
  TopKArguments top = top_k_arguments(op, p.arguments, "key", k, "top_k");
  const int batch = p.shapes.batch_rank();
  top.recall.out = output(p.fold, out.out, batch);
  top.recall.lse = output(p.fold, out.lse, batch);
  top.recall.largest = output(p.fold, out.saved.largest, batch);
  top.recall.log_sum = output(p.fold, out.saved.log_sum, batch);
  scan_products(op, device, top);
  if (p.sinks()) make_room_for_saved(device, p.fold, top.recall);
  launch<TopKRead>(op, device, top);
  if (p.sinks()) launch<RecallSink>(op, device, p.sinks_of(top.recall));
}

/// Gradients of query, key, value and scale. The selection is made again, so nothing has to be kept of the forward pass.
template <class Device>
void attend_top_k_backward(Device& device, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                           const ConstArray& d_out, const attention::gradients& d_in) {
  using namespace detail;
  constexpr std::string_view op = attend_op;
  check_given(op, "d_out", d_out);
  for (const auto& [argument, array] : {std::pair{"d_bias", d_in.bias}, std::pair{"d_sink", d_in.sink}})
    if (array.given()) fail(status::value, op, ": ", argument, " is given beside top_k; expected none on a device so far");
  check_gradient(op, "d_query", d_in.query, in.query, in.query.type);
  check_gradient(op, "d_key", d_in.key, in.key, in.key.type);
  check_gradient(op, "d_value", d_in.value, in.value, in.value.type);
  check_scale_gradient(op, "d_scale", d_in.scale, in.scale);
  const ConstArray list[] = {in.query,   in.key,   in.value,   in.scale,   in.mask, in.bias, in.sink,
                             d_in.query, d_in.key, d_in.value, d_in.scale, {},      {}};
  const AttentionProblem p = attention_problem(in, numbers, {how.causal}, attention::gradient_shapes, list);
  check_output(op, "d_out", as_output(d_out), in.query.type, p.shapes, {p.shapes.extent('n'), p.shapes.extent('e')});
  if (p.sinks()) fail(status::value, op, ": sink is given beside top_k; expected none in the gradient on a device so far");
  const index_t k = selected_keys(op, how.separation, p.arguments.patterns);
  TopKBackwardArguments a;
  a.top = top_k_arguments(op, p.arguments, "key", k, "top_k");
  a.d_out = {p.fold.template place_output<const void>(as_output(d_out), p.shapes.batch_rank()), d_out.type};
  enum { d_query = 7, d_key, d_value, d_scale };
  RecallPullback<Device> pull(op, device, p.fold, p.arguments);
  a.d_query = pull.rows({d_in.query, p.shapes[d_query]}, p.arguments.width);
  a.d_key = pull.memory({d_in.key, p.shapes[d_key]}, p.arguments.width, false);
  a.d_value = pull.memory({d_in.value, p.shapes[d_value]}, p.arguments.value_width, false);
  a.d_scales = pull.scales({d_in.scale, p.shapes[d_scale]}, 1);
  scan_products(op, device, a.top);
  backward<SoftmaxChoice>(op, device, a);
  pull.finish();
}

}  // namespace recollect::cuda
