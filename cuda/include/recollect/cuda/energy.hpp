// SPDX-License-Identifier: BSD-3-Clause
/// `energy` and its gradient on a device: the contract of spec/hopfield.hpp with softmax. Energies, lse and what is saved are float32.
#pragma once

#include "recollect/cuda/recall_energy.hpp"
#include "recollect/cuda/recall_pullback.hpp"
#include "recollect/cuda/retrieval.hpp"

namespace recollect::cuda {

namespace detail {

inline constexpr std::string_view energy_op = "hopfield.energy";

/// A recall that reads nothing.
inline RetrievalProblem energy_problem(const hopfield::operands& in, double beta, const choice& separation, std::span<const ShapeRow> table,
                                       std::span<const ConstArray> list) {
  if (in.values.given()) fail(status::value, energy_op, ": values are given; an energy reads none");
  RetrievalProblem p = retrieval_problem(energy_op, in, beta, {separation}, table, list);
  p.arguments.value = {nullptr, dtype::float32, {}, 0, 0};
  p.arguments.value_width = 0;
  return p;
}

}  // namespace detail

/// Energies and lse (over beta) of state patterns; what a gradient needs again, if wanted.
template <class Device>
void energy(Device& device, const hopfield::operands& in, double beta, const choice& separation, const hopfield::results& out) {
  using namespace detail;
  constexpr std::string_view op = energy_op;
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask};
  const RetrievalProblem p = energy_problem(in, beta, separation, hopfield::operand_shapes, list);
  const index_t n = p.shapes.extent('n');
  const int batch = p.shapes.batch_rank();
  check_output(op, "out", out.energy, dtype::float32, p.shapes, {n});
  check_output(op, "lse", out.lse, dtype::float32, p.shapes, {n});
  check_output(op, "largest", out.saved.largest, dtype::float32, p.shapes, {n});
  check_output(op, "log_sum", out.saved.log_sum, dtype::float32, p.shapes, {n});
  RecallArguments a = p.arguments;
  a.largest = output(p.fold, out.saved.largest, batch);
  a.log_sum = output(p.fold, out.saved.log_sum, batch);
  a.lse = output(p.fold, out.lse, batch);
  make_room_for_saved(device, p.fold, a);
  forward(op, device, a, bank(op, device, a));
  if (out.energy.given()) launch<RecallEnergy>(op, device, ready_for_energies(op, device, a, output(p.fold, out.energy, batch)));
}

/// Gradients of state, patterns and beta, with what `energy` saved.
template <class Device>
void energy_backward(Device& device, const hopfield::operands& in, double beta, const choice& separation, const hopfield::saved& kept,
                     const ConstArray& d_out, const hopfield::gradients& d_in) {
  using namespace detail;
  constexpr std::string_view op = energy_op;
  for (const auto& [argument, array] : {std::pair{"d_out", d_out}, std::pair{"largest", kept.largest}, std::pair{"log_sum", kept.log_sum}})
    check_given(op, argument, array);
  check_gradient(op, "d_state", d_in.state, in.state, in.state.type);
  check_gradient(op, "d_patterns", d_in.patterns, in.patterns, in.patterns.type);
  check_scale_gradient(op, "d_beta", d_in.beta, in.beta);
  const ConstArray list[] = {in.state, in.patterns, {}, in.beta, in.mask, d_in.state, d_in.patterns, {}, d_in.beta};
  const RetrievalProblem p = energy_problem(in, beta, separation, hopfield::gradient_shapes, list);
  const index_t n = p.shapes.extent('n');
  const int batch = p.shapes.batch_rank();
  for (const auto& [argument, array] : {std::pair{"d_out", d_out}, std::pair{"largest", kept.largest}, std::pair{"log_sum", kept.log_sum}})
    check_output(op, argument, as_output(array), dtype::float32, p.shapes, {n});
  enum { d_state = 5, d_patterns = 6, d_beta = 8 };
  RecallPullback<Device> pull(op, device, p.fold, p.arguments);
  RecallBackwardArguments a;
  a.recall = p.arguments;
  a.energy = true;
  a.recall.largest = output(p.fold, as_output(kept.largest), batch);
  a.recall.log_sum = output(p.fold, as_output(kept.log_sum), batch);
  a.d_query = pull.rows({d_in.state, p.shapes[d_state]}, a.recall.width);
  a.d_key = pull.memory({d_in.patterns, p.shapes[d_patterns]}, a.recall.width, false);
  a.d_scales = pull.scales({d_in.beta, p.shapes[d_beta]}, 1);
  a.dots = pull.floats(pull.all_rows());
  EnergyArguments e;
  e.recall = a.recall;
  e.d_energy = {p.fold.template place_output<const void>(as_output(d_out), batch), d_out.type};
  e.dots = a.dots;
  e.d_scales = a.d_scales;
  launch<RecallEnergyDots>(op, device, e);
  pull.run(a);
  pull.finish();
}

}  // namespace recollect::cuda
