// SPDX-License-Identifier: BSD-3-Clause
/// `attend`, its gradient and `retrieve` on a device: the contracts of spec/attention.hpp and spec/hopfield.hpp with softmax, float32
/// arithmetic, and arrays of the device. A scale or beta that is one number is given as such, and only otherwise as an operand (float32).
#pragma once

#include "recollect/cuda/checks.hpp"
#include "recollect/spec/attention.hpp"
#include "recollect/spec/hopfield.hpp"

namespace recollect::cuda {

namespace detail {

/// The operands of a recall in the words of an op; the shape table has query, key, value, scale and mask first.
struct RecallOperands {
  const char *query_name, *key_name, *value_name, *scale_name;
  ConstArray query, key, value, scale, mask;
  char memory_letter;
};

inline void check_types(std::string_view op, const RecallOperands& in, double scale_number, bool positive) {
  check_given(op, in.query_name, in.query);
  check_given(op, in.key_name, in.key);
  check_stored(op, in.query_name, in.query);
  check_stored(op, in.key_name, in.key);
  check_stored(op, in.value_name, in.value);
  check_type(op, "mask", in.mask, dtype::boolean);
  check_scale(op, in.scale_name, in.scale, scale_number, positive);
}

inline void check_softmax(std::string_view op, const choice& separation) {
  if (separation.name != "softmax")
    fail(status::value, op, ": separation is ", separation.text(), "; expected 'softmax', the only one on a device so far");
}

inline RecallArguments arguments(std::string_view op, const RecallOperands& in, double scale_number, const Shapes& shapes,
                                 const Fold& fold) {
  RecallArguments a;
  a.outer_axes = fold.outer;
  a.row_axes = fold.rows;
  a.outer = fold.outer.count();
  a.rows = fold.rows.count();
  a.patterns = shapes.extent(in.memory_letter);
  const index_t d = shapes.extent('d'), e = in.value.given() ? shapes.extent('e') : d;
  check_width(op, in.key_name, in.key, d);
  check_width(op, in.value_name, in.value, e);
  a.width = static_cast<int>(d);
  a.value_width = static_cast<int>(e);
  a.scale_number = static_cast<float>(scale_number);
  a.query = operand(fold, shapes[0], in.query, true, 1);
  a.key = pattern_rows(fold, shapes[1], in.key.data, in.key.type);
  if (in.value.given()) a.value = pattern_rows(fold, shapes[2], in.value.data, in.value.type);
  if (in.scale.given()) a.scale = operand(fold, shapes[3], in.scale, false, -1);
  if (in.mask.given()) a.mask = operand(fold, shapes[4], in.mask, true, 1);
  return a;
}

/// Memories packed for tensor cores; nothing where portable kernels serve.
struct Bank {
  const char *keys = nullptr, *values = nullptr;
};

template <class Device>
const char* packed(std::string_view op, Device& device, const RecallArguments& a, const Memory& memory) {
  const auto with = [&]<int Width>() {
    using Kernel = RecallPack<Width>;
    PackArguments pack{memory, a.outer_axes, a.outer, 0, a.patterns, nullptr};
    pack.packed = static_cast<char*>(device.scratch(Kernel::blocks(pack) * Kernel::Tile::pitch));
    launch<Kernel>(op, device, pack);
    return pack.packed;
  };
  return a.width == 64 ? with.template operator()<64>() : with.template operator()<128>();
}

template <class Device>
Bank bank(std::string_view op, Device& device, const RecallArguments& a) {
  Bank to;
  if (!on_tensor_cores(device.architecture(), a) || a.outer * a.rows == 0) return to;
  to.keys = packed(op, device, a, a.key);
  if (!a.shared()) to.values = packed(op, device, a, a.value);
  return to;
}

/// One softmax of all rows.
template <class Device>
void forward(std::string_view op, Device& device, RecallArguments a, const Bank& from) {
  const auto run = [&]<class Kernel>() {
    a.splits = Kernel::splits(a);
    if (a.splits > 1) {
      a.partial_sums = static_cast<float*>(device.scratch(a.splits * a.outer * a.rows * a.value_width * sizeof(float)));
      a.partial_states = static_cast<float*>(device.scratch(a.splits * a.outer * a.rows * 2 * sizeof(float)));
    }
    if constexpr (requires { Kernel::architecture; })
      launch<Kernel>(op, device, {a, from.keys, from.values});
    else
      launch<Kernel>(op, device, a);
    if (a.splits > 1) launch<RecallMerge>(op, device, a);
  };
  if (from.keys)
    select_tensor_cores(a.key.type, a.width, a.shared(), run);
  else
    select_forward(std::max(a.width, a.value_width), run);
}

struct AttentionProblem {
  Shapes shapes;
  Fold fold;
  RecallArguments arguments;
};

inline constexpr std::string_view attend_op = "attention.attend";

inline AttentionProblem attention_problem(const attention::operands& in, double scale, const attention::parameters& how,
                                          std::span<const ShapeRow> table, std::span<const ConstArray> list) {
  constexpr std::string_view op = attend_op;
  const RecallOperands given{"query", "key", "value", "scale", in.query, in.key, in.value, in.scale, in.mask, 'm'};
  check_types(op, given, scale, false);
  check_given(op, "value", in.value);
  check_stored(op, "bias", in.bias);
  check_softmax(op, how.separation);
  if (in.sink.given()) fail(status::value, op, ": sink is given; expected none, as a device has no sinks yet");
  AttentionProblem p{Shapes(op, table, list), {}, {}};
  p.fold = Fold(p.shapes, 'n', {1, 2});
  p.arguments = arguments(op, given, scale, p.shapes, p.fold);
  p.arguments.causal = {how.causal != attention::causal::none,
                        how.causal == attention::causal::bottom_right ? p.arguments.patterns - p.shapes.extent('n') : 0};
  if (in.bias.given()) p.arguments.bias = operand(p.fold, p.shapes[5], in.bias, true, 1);
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
void attend(Device& device, const attention::operands& in, double scale, const attention::parameters& how, const attention::results& out) {
  const ConstArray list[] = {in.query, in.key, in.value, in.scale, in.mask, in.bias, in.sink};
  detail::AttentionProblem p = detail::attention_problem(in, scale, how, attention::operand_shapes, list);
  detail::check_results(in, p.shapes, out);
  const int batch = p.shapes.batch_rank();
  p.arguments.out = detail::output(p.fold, out.out, batch);
  p.arguments.lse = detail::output(p.fold, out.lse, batch);
  p.arguments.largest = detail::output(p.fold, out.saved.largest, batch);
  p.arguments.log_sum = detail::output(p.fold, out.saved.log_sum, batch);
  detail::forward(detail::attend_op, device, p.arguments, detail::bank(detail::attend_op, device, p.arguments));
}

/// Gradients of query, key and value. A query or memory that is broadcast has none yet: give it the full shape.
template <class Device>
void attend_backward(Device& device, const attention::operands& in, double scale, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  using namespace detail;
  constexpr std::string_view op = attend_op;
  for (const auto& [argument, array] :
       {std::pair{"out", out}, std::pair{"d_out", d_out}, std::pair{"largest", kept.largest}, std::pair{"log_sum", kept.log_sum}})
    check_given(op, argument, array);
  if (d_in.scale.given() || d_in.bias.given() || d_in.sink.given())
    fail(status::value, op, ": a device has gradients of query, key and value alone so far");
  check_gradient(op, "d_query", d_in.query, in.query, in.query.type);
  check_gradient(op, "d_key", d_in.key, in.key, in.key.type);
  check_gradient(op, "d_value", d_in.value, in.value, in.value.type);
  const ConstArray list[] = {in.query, in.key, in.value, in.scale, in.mask, in.bias, in.sink, d_in.query, d_in.key, d_in.value, {}, {}, {}};
  const AttentionProblem p = attention_problem(in, scale, how, attention::gradient_shapes, list);
  check_results(in, p.shapes, {as_output(out), {}, {as_output(kept.largest), as_output(kept.log_sum)}});
  check_output(op, "d_out", as_output(d_out), in.query.type, p.shapes, {p.shapes.extent('n'), p.shapes.extent('e')});
  const int batch = p.shapes.batch_rank();
  RecallBackwardArguments a{p.arguments, {}, nullptr, {}, {}, {}};
  a.recall.out = output(p.fold, as_output(out), batch);
  a.recall.largest = output(p.fold, as_output(kept.largest), batch);
  a.recall.log_sum = output(p.fold, as_output(kept.log_sum), batch);
  a.d_out = {p.fold.template place_output<const void>(as_output(d_out), batch), d_out.type};
  const auto refuse = [&](const char* argument) {
    fail(status::value, op, ": ", argument, " is that of an operand which is broadcast; a device takes gradients of full operands alone");
  };
  if (d_in.query.given()) {
    a.d_query = {p.fold.place(p.shapes[7], d_in.query.data, true, 1), d_in.query.type};
    if (!covers(p.fold.outer, a.d_query.at.outer) || !covers(p.fold.rows, a.d_query.at.row)) refuse("d_query");
  }
  if (d_in.key.given()) a.d_key = pattern_rows(p.fold, p.shapes[8], d_in.key.data, d_in.key.type);
  if (d_in.key.given() && !covers(p.fold.outer, a.d_key.outer)) refuse("d_key");
  if (d_in.value.given()) a.d_value = pattern_rows(p.fold, p.shapes[9], d_in.value.data, d_in.value.type);
  if (d_in.value.given() && !covers(p.fold.outer, a.d_value.outer)) refuse("d_value");
  a.dots = static_cast<float*>(device.scratch(a.recall.outer * a.recall.rows * sizeof(float)));
  launch<RecallDots>(op, device, a);
  select_backward(std::max(a.recall.width, a.recall.value_width), [&]<class RowsKernel, class PatternsKernel>() {
    if (a.d_query.given()) launch<RowsKernel>(op, device, a);
    if (a.d_key.given() || a.d_value.given()) launch<PatternsKernel>(op, device, a);
  });
}

/// `steps` softmaxes, one launch after the other; states between them are float32, or of the state's type on tensor cores. Without `tol`,
/// energies and counts so far. `banks`: the memories as they were packed before (recall_bank.hpp).
template <class Device>
void retrieve(Device& device, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out,
              const detail::Bank* banks = nullptr) {
  using namespace detail;
  constexpr std::string_view op = "hopfield.retrieve";
  const RecallOperands given{"state", "patterns", "values", "beta", in.state, in.patterns, in.values, in.beta, in.mask, 'N'};
  check_types(op, given, beta, true);
  check_softmax(op, how.separation);
  if (how.steps < 1) fail(status::value, op, ": steps is ", how.steps, "; expected at least 1");
  if (how.tol >= 0) fail(status::value, op, ": tol is given; expected None on a device, where every state takes all its steps");
  if (out.energy.given() || out.steps.given() || out.converged.given())
    fail(status::value, op, ": a device tells states and lse alone so far");
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask};
  const Shapes shapes(op, hopfield::operand_shapes, list);
  const Fold fold(shapes, 'n', {1, 2});
  RecallArguments last = arguments(op, given, beta, shapes, fold);
  const index_t n = shapes.extent('n');
  check_output(op, "out", out.state, in.state.type, shapes, {n, last.value_width});
  check_output(op, "lse", out.lse, dtype::float32, shapes, {n});
  const int batch = shapes.batch_rank();
  last.out = output(fold, out.state, batch);
  last.lse = output(fold, out.lse, batch);
  // A step before the last reads the patterns into one of two arrays of all rows and outer entries.
  void* states[2] = {};
  if (banks && !on_tensor_cores(device.architecture(), last))
    fail(status::type, op, ": state has dtype ", name(in.state.type), "; expected ", name(in.patterns.type), ", as the packed patterns");
  const Bank from = banks ? *banks : bank(op, device, last);
  const dtype state_type = from.keys ? last.query.type : dtype::float32;
  for (int i = 0; i < 2 && i + 1 < how.steps; ++i) states[i] = device.scratch(last.outer * last.rows * last.width * bytes_of(state_type));
  const auto dense = [&](auto* data) {
    Placed<std::remove_pointer_t<decltype(data)>> placed;
    placed.data = data;
    placed.inner = 1;
    index_t stride = last.width;
    for (int axis = fold.rows.rank - 1; axis >= 0; stride *= fold.rows.extents[axis--]) placed.row[axis] = stride;
    for (int axis = fold.outer.rank - 1; axis >= 0; stride *= fold.outer.extents[axis--]) placed.outer[axis] = stride;
    return placed;
  };
  for (index_t step = 0; step < how.steps; ++step) {
    RecallArguments a = last;
    if (step > 0) a.query = {dense(static_cast<const void*>(states[(step - 1) % 2])), state_type};
    if (step + 1 < how.steps) {
      a.value = {};
      a.value_width = a.width;
      a.lse = {};
      a.out = {dense(states[step % 2]), state_type};
    }
    forward(op, device, a, from);
  }
}

}  // namespace recollect::cuda
