// SPDX-License-Identifier: BSD-3-Clause
/// `retrieve` on a device: the contract of spec/hopfield.hpp with softmax, as recall.hpp has it.
#pragma once

#include "recollect/cuda/recall.hpp"
#include "recollect/cuda/recall_energy.hpp"
#include "recollect/cuda/recall_moved.hpp"
#include "recollect/cuda/retrieval_step.hpp"
#include "recollect/spec/hopfield.hpp"

namespace recollect::cuda {

namespace detail {

inline constexpr std::string_view retrieve_op = "hopfield.retrieve";

struct RetrievalProblem {
  Shapes shapes;
  Fold fold;
  RecallArguments arguments;
};

inline RetrievalProblem retrieval_problem(std::string_view op, const hopfield::operands& in, double beta, const hopfield::parameters& how,
                                          std::span<const ShapeRow> table, std::span<const ConstArray> list) {
  const RecallOperands given{"state", "patterns", "values", "beta", in.state, in.patterns, in.values, in.beta, in.mask, 'N'};
  check_types(op, given, beta, true);
  check_softmax(op, how.separation);
  if (how.steps < 1) fail(status::value, op, ": steps is ", how.steps, "; expected at least 1");
  RetrievalProblem p{Shapes(op, table, list), {}, {}};
  p.fold = Fold(p.shapes, 'n', {1, 2});
  p.arguments = arguments(op, given, beta, p.shapes, p.fold);
  p.arguments.lse_over_scale = true;
  return p;
}

inline void check_told(const RetrievalProblem& p, const hopfield::operands& in, const hopfield::results& out) {
  constexpr std::string_view op = retrieve_op;
  const index_t n = p.shapes.extent('n');
  check_output(op, "out", out.state, in.state.type, p.shapes, {n, p.arguments.value_width});
  check_output(op, "energy", out.energy, dtype::float32, p.shapes, {n});
  check_output(op, "lse", out.lse, dtype::float32, p.shapes, {n});
  check_output(op, "steps", out.steps, dtype::int64, p.shapes, {n});
  check_output(op, "converged", out.converged, dtype::boolean, p.shapes, {n});
}

/// Steps that are kept are kept all; `whole`: they have to be.
inline void check_kept(const RetrievalProblem& p, const hopfield::operands& in, const hopfield::parameters& how,
                       std::span<const RetrievalStep> kept, bool whole) {
  constexpr std::string_view op = retrieve_op;
  const index_t n = p.shapes.extent('n'), count = static_cast<index_t>(kept.size());
  if (count != how.steps && (whole || count > 0)) fail(status::value, op, ": ", count, " steps are kept; expected ", how.steps);
  for (const RetrievalStep& step : kept) {
    if (&step != &kept.back()) check_given(op, "kept state", step.state);
    check_given(op, "largest", step.saved.largest);
    check_given(op, "log_sum", step.saved.log_sum);
    check_output(op, "kept state", step.state, in.state.type, p.shapes, {n, p.arguments.width});
    check_output(op, "largest", step.saved.largest, dtype::float32, p.shapes, {n});
    check_output(op, "log_sum", step.saved.log_sum, dtype::float32, p.shapes, {n});
  }
}

template <class Device>
EnergyArguments ready_for_energies(std::string_view op, Device& device, const RecallArguments& a, const Operand<void>& energy) {
  EnergyArguments e;
  e.recall = a;
  e.energy = energy;
  e.squares = static_cast<float*>(device.scratch(a.outer * a.patterns * static_cast<index_t>(sizeof(float))));
  launch<RecallSquares>(op, device, e);
  return e;
}

/// The states that a retrieval went through. A step before the last reads the patterns into what is kept, or into one of two arrays of all
/// rows and outer entries.
template <class Device>
class Visited {
 public:
  Visited(Device& device, const RetrievalProblem& p, index_t steps, std::span<const RetrievalStep> kept) : p_(p), kept_(kept) {
    const index_t bytes = p.arguments.outer * p.arguments.rows * p.arguments.width * bytes_of(p.arguments.query.type);
    for (int i = 0; kept.empty() && i < 2 && i + 1 < steps; ++i) states_[i] = device.scratch(bytes);
  }

  Operand<void> after(index_t step) const {
    if (!kept_.empty()) return output(p_.fold, kept_[step].state, p_.shapes.batch_rank());
    return {dense_rows(p_.fold, states_[step % 2], p_.arguments.width), p_.arguments.query.type};
  }
  Operand<const void> before(index_t step) const { return step == 0 ? p_.arguments.query : as_query(after(step - 1)); }

 private:
  const RetrievalProblem& p_;
  std::span<const RetrievalStep> kept_;
  void* states_[2] = {};
};

/// What is told of rows that move. `ends`: an update of at most tol ends a row; otherwise it only counts as converged.
template <class Device>
MovedArguments moved_arguments(Device& device, const RetrievalProblem& p, double tol, const hopfield::results& out, bool ends) {
  MovedArguments moved;
  moved.steps = output(p.fold, out.steps, p.shapes.batch_rank());
  moved.converged = output(p.fold, out.converged, p.shapes.batch_rank());
  moved.tol = tol >= 0 ? tol : hopfield::default_tolerance(dtype::float32);
  if (ends) moved.resting = static_cast<bool*>(device.scratch(p.arguments.outer * p.arguments.rows));
  return moved;
}

}  // namespace detail

/// `steps` softmaxes, in one launch or one after the other; states between them are of the state's type. With `tol` all are launched too,
/// and those find little to do whose rows have come to rest: nothing waits for the device. `kept` is none, or room for every step.
/// `banks`: the memories as they were packed before (recall_bank.hpp).
template <class Device>
void retrieve(Device& device, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out,
              std::span<const RetrievalStep> kept = {}, const detail::Bank* banks = nullptr) {
  using namespace detail;
  constexpr std::string_view op = retrieve_op;
  const ConstArray list[] = {in.state, in.patterns, in.values, in.beta, in.mask};
  const RetrievalProblem p = retrieval_problem(op, in, beta, how, hopfield::operand_shapes, list);
  check_told(p, in, out);
  check_kept(p, in, how, kept, false);
  const int batch = p.shapes.batch_rank();
  const auto place = [&](const Array& array) { return output(p.fold, array, batch); };
  if (banks && !on_tensor_cores(device.architecture(), p.arguments))
    fail(status::type, op, ": state has dtype ", name(in.state.type), "; expected ", name(in.patterns.type), ", as the packed patterns");
  const Bank from = banks ? *banks : bank(op, device, p.arguments);
  const index_t updates = how.steps - (in.values.given() ? 1 : 0);
  const bool ends = how.tol >= 0 && updates > 1, counts = out.steps.given() || out.converged.given();
  // Nobody wants to know of the states between, and no block needs what another one reads.
  const bool silent = kept.empty() && !out.energy.given() && !counts && !ends;
  const bool at_once = silent && from.keys && from.halves == dtype::none && steps_in_one_launch(p.arguments);
  const index_t launches = at_once ? 1 : how.steps;
  const Visited<Device> visited(device, p, launches, kept);
  RecallArguments update = p.arguments, read = p.arguments;
  update.value = {};
  update.value_width = update.width;
  EnergyArguments energies;
  if (out.energy.given()) {
    energies = ready_for_energies(op, device, p.arguments, place(out.energy));
    make_room_for_saved(device, p.fold, read);
    update.largest = read.largest;
    update.log_sum = read.log_sum;
  }
  MovedArguments moved = moved_arguments(device, p, how.tol, out, ends);
  read.lse = place(out.lse);
  if (ends && updates == how.steps && out.lse.given()) {
    moved.lse = read.lse;
    update.lse = read.lse = number_of_rows(device, p.fold, p.arguments);
  }
  for (index_t step = 0; step < launches; ++step) {
    const bool last = step + 1 == launches, moves = step < updates, tells = last || (ends && updates == how.steps);
    RecallArguments& a = last ? read : update;
    a.query = visited.before(step);
    a.out = last ? place(out.state) : visited.after(step);
    a.resting = moves && step > 0 ? moved.resting : nullptr;
    if (!kept.empty()) {
      a.largest = place(kept[step].saved.largest);
      a.log_sum = place(kept[step].saved.log_sum);
    }
    const auto taken = device.taken();
    forward(op, device, a, from, at_once ? how.steps : 1);
    device.give_back(taken);  // a thousand steps need no more than one
    if (tells && out.energy.given()) {
      energies.recall = a;
      launch<RecallEnergy>(op, device, energies);
    }
    if (!(ends ? moves : counts && step + 1 == std::max<index_t>(updates, 1))) continue;
    moved.recall = a;
    moved.taken = ends ? step + 1 + how.steps - updates : how.steps;
    if (moves) moved.before = a.query, moved.after = a.out;
    launch<RecallMoved>(op, device, moved);
  }
}

}  // namespace recollect::cuda
