// SPDX-License-Identifier: BSD-3-Clause
/// `attend` and `retrieve` on a device: the contracts of spec/attention.hpp and spec/hopfield.hpp with softmax, float32 arithmetic, and
/// arrays of the device. A scale or beta that is one number is given as such, and only otherwise as an operand (float32).
#pragma once

#include "recollect/cuda/attention_numbers.hpp"
#include "recollect/cuda/checks.hpp"
#include "recollect/cuda/recall_energy.hpp"
#include "recollect/cuda/recall_moved.hpp"
#include "recollect/cuda/recall_sink.hpp"
#include "recollect/cuda/retrieval_step.hpp"
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

/// Memories packed for tensor cores; nothing where portable kernels serve. Those for RecallSm80 say of which type and width.
struct Bank {
  const char *keys = nullptr, *values = nullptr;
  dtype halves = dtype::none;
  int width = 0;
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
  if (a.outer * a.rows == 0) return to;
  if (on_tensor_cores(device.architecture(), a)) {
    to.keys = packed(op, device, a, a.key);
    if (!a.shared()) to.values = packed(op, device, a, a.value);
    return to;
  }
  to.halves = halves_of(device.architecture(), a);
  to.width = std::max(a.width, a.value_width);
  if (to.halves == dtype::none) return to;
  select_halves(to.halves, to.width, [&]<class Pack, class Kernel>() {
    const auto pack_rows = [&](const Memory& memory, int width) {
      HalfPackArguments pack{memory, a.outer_axes, a.outer, a.patterns, width, nullptr};
      pack.packed = static_cast<char*>(device.scratch(Pack::blocks(pack) * Pack::Tiles::pitch));
      launch<Pack>(op, device, pack);
      return pack.packed;
    };
    to.keys = pack_rows(a.key, a.width);
    if (!a.shared()) to.values = pack_rows(a.value, a.value_width);
  });
  return to;
}

/// Launches Kernel with room for the parts of its splits, and what merges them.
template <class Kernel, class Device, class Arguments>
void forward_with(std::string_view op, Device& device, RecallArguments a, Arguments&& arguments) {
  a.splits = Kernel::splits(a);
  if (a.splits > 1) {
    a.partial_sums = static_cast<float*>(device.scratch(a.splits * a.outer * a.rows * a.value_width * sizeof(float)));
    a.partial_states = static_cast<float*>(device.scratch(a.splits * a.outer * a.rows * 2 * sizeof(float)));
  }
  launch<Kernel>(op, device, arguments(a));
  if (a.splits > 1) launch<RecallMerge>(op, device, a);
}

/// One softmax of all rows, or `steps` of them in one launch.
template <class Device>
void forward(std::string_view op, Device& device, RecallArguments a, const Bank& from, index_t steps = 1) {
  const auto portable = [&]<class Kernel>() { forward_with<Kernel>(op, device, a, [](const RecallArguments& all) { return all; }); };
  if (from.keys && from.halves == dtype::none)
    return select_tensor_cores(a.key.type, a.width, a.shared(), [&]<class Kernel>() {
      forward_with<Kernel>(op, device, a, [&](const RecallArguments& all) {
        return typename Kernel::Arguments{all, from.keys, from.values, static_cast<int>(steps)};
      });
    });
  if (from.keys) {
    select_halves(from.halves, from.width, [&]<class Pack, class Kernel>() {
      a.doubt_parts = Kernel::splits(a);
      a.doubts = static_cast<bool*>(device.scratch(a.doubt_parts * a.outer * a.rows));
      forward_with<Kernel>(op, device, a, [&](const RecallArguments& all) { return RecallSm80Arguments{all, from.keys, from.values}; });
    });
    a.only_doubtful = true;
  }
  select_forward(std::max(a.width, a.value_width), portable);
}

/// Rows of `width` numbers for all rows and outer entries, one after the other.
template <class P>
Placed<P> dense_rows(const Fold& fold, P* data, index_t width) {
  Placed<P> placed;
  placed.data = data;
  placed.inner = 1;
  index_t stride = width;
  for (int axis = fold.rows.rank - 1; axis >= 0; stride *= fold.rows.extents[axis--]) placed.row[axis] = stride;
  for (int axis = fold.outer.rank - 1; axis >= 0; stride *= fold.outer.extents[axis--]) placed.outer[axis] = stride;
  return placed;
}

/// Room for a number of every row.
template <class Device>
Operand<void> number_of_rows(Device& device, const Fold& fold, const RecallArguments& a) {
  return {dense_rows(fold, device.scratch(a.outer * a.rows * static_cast<index_t>(sizeof(float))), 1), dtype::float32};
}

/// Where the largest score and the logarithm of the sum go when nobody else wants them.
template <class Device>
void make_room_for_saved(Device& device, const Fold& fold, RecallArguments& a) {
  for (Operand<void>* saved : {&a.largest, &a.log_sum})
    if (!saved->given()) *saved = number_of_rows(device, fold, a);
}

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

inline Operand<const void> as_query(const Operand<void>& state) {
  return {{state.at.data, state.at.outer, state.at.row, state.at.inner}, state.type};
}

/// What RecallEnergy needs of the patterns, for any states that are compared with them.
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
