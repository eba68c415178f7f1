// SPDX-License-Identifier: BSD-3-Clause
/// Retrieval, attention and what selects, on a device.
#include "place.hpp"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

namespace recollect::python {

using namespace nb::literals;

namespace {

/// A name, or a name with a number.
using Separation = std::variant<std::string, std::pair<std::string, double>>;

choice choice_of(const Separation& separation) {
  if (const auto* const name = std::get_if<std::string>(&separation)) return std::string_view(*name);
  const auto& [name, number] = std::get<1>(separation);
  return {std::string_view(name), number};
}

const Scale no_sink{-std::numeric_limits<double>::infinity(), {}};

bool selects(const Separation& separation) { return choice_of(separation).name == "top_k_softmax"; }

attention::parameters parameters(const std::string& causal_name, const Separation& separation) {
  using attention::causal;
  const auto rule = causal_name == "none" ? causal::none : causal_name == "top-left" ? causal::top_left : causal::bottom_right;
  return {rule, choice_of(separation)};
}

void attend(const Place& place, const In& query, const In& key, const In& value, const Scale& scale, const In& mask, const In& bias,
            const std::string& causal, const Separation& separation, const Out& out, const Out& lse, const Out& largest, const Out& log_sum,
            const Scale& sink) {
  const In scale_array = array_of(scale), sink_array = array_of(sink);
  check_cards("attention.attend", place, named("query", query), named("key", key), named("value", value), named("scale", scale_array),
              named("mask", mask), named("bias", bias), named("out", out), named("lse", lse), named("largest", largest),
              named("log_sum", log_sum), named("sink", sink_array));
  const attention::operands in{input(query), input(key), input(value), input(scale_array), input(mask), input(bias), input(sink_array)};
  const attention::results to{output(out), output(lse), {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  (selects(separation) ? cuda::attend_top_k : cuda::attend)(queue(place), in, {scale.first, sink.first}, parameters(causal, separation),
                                                            to);
}

void attend_backward(const Place& place, const In& query, const In& key, const In& value, const Scale& scale, const In& mask,
                     const In& bias, const std::string& causal, const Separation& separation, const In& largest, const In& log_sum,
                     const In& out, const In& d_out, const Out& d_query, const Out& d_key, const Out& d_value, const Out& d_scale,
                     const Out& d_bias, const Scale& sink, const Out& d_sink) {
  const In scale_array = array_of(scale), sink_array = array_of(sink);
  check_cards("attention.attend", place, named("query", query), named("key", key), named("value", value), named("scale", scale_array),
              named("mask", mask), named("bias", bias), named("largest", largest), named("log_sum", log_sum), named("out", out),
              named("d_out", d_out), named("d_query", d_query), named("d_key", d_key), named("d_value", d_value), named("d_scale", d_scale),
              named("d_bias", d_bias), named("sink", sink_array), named("d_sink", d_sink));
  const attention::operands in{input(query), input(key), input(value), input(scale_array), input(mask), input(bias), input(sink_array)};
  const attention::gradients to{output(d_query), output(d_key), output(d_value), output(d_scale), {}, output(d_bias), output(d_sink)};
  const cuda::AttentionNumbers numbers{scale.first, sink.first};
  const attention::saved kept{input(largest), input(log_sum)};
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  if (selects(separation)) return cuda::attend_top_k_backward(queue(place), in, numbers, parameters(causal, separation), cotangent, to);
  cuda::attend_backward(queue(place), in, numbers, parameters(causal, separation), kept, result, cotangent, to);
}

void sparse_read(const Place& place, const In& query, const In& keys, const In& memory, const In& w3, const In& lengths, const Out& value,
                 const Out& indices, const Out& weights) {
  check_cards("backtracking.sparse_read", place, named("query", query), named("keys", keys), named("memory", memory), named("w3", w3),
              named("lengths", lengths), named("value", value), named("indices", indices), named("weights", weights));
  const backtracking::read_operands in{input(query), input(keys), input(memory), input(w3), input(lengths)};
  const backtracking::read_results to{output(value), output(indices), output(weights), {}, {}};
  nb::gil_scoped_release release;
  cuda::sparse_read(queue(place), in, to);
}

void sparse_read_backward(const Place& place, const In& query, const In& keys, const In& memory, const In& w3, const In& lengths,
                          index_t k_top, const In& d_value, const Out& d_query, const Out& d_keys, const Out& d_memory) {
  check_cards("backtracking.sparse_read", place, named("query", query), named("keys", keys), named("memory", memory), named("w3", w3),
              named("lengths", lengths), named("d_value", d_value), named("d_query", d_query), named("d_keys", d_keys),
              named("d_memory", d_memory));
  const backtracking::read_operands in{input(query), input(keys), input(memory), input(w3), input(lengths)};
  const ConstArray cotangent = input(d_value);
  const Array to_query = output(d_query), to_keys = output(d_keys), to_memory = output(d_memory);
  nb::gil_scoped_release release;
  cuda::sparse_read_backward(queue(place), in, k_top, cotangent, to_query, to_keys, to_memory);
}

/// What is kept of each step of a retrieval: the state that came out of it (None for the last), largest, log_sum.
using Steps = std::vector<std::tuple<std::optional<Out>, Out, Out>>;

std::vector<cuda::RetrievalStep> kept_steps(const Place& place, const Steps& steps) {
  std::vector<cuda::RetrievalStep> kept;
  for (const auto& [state, largest, log_sum] : steps) {
    const Out after = state ? *state : Out();
    check_cards("hopfield.retrieve", place, named("kept state", after), named("largest", largest), named("log_sum", log_sum));
    kept.push_back({output(after), {output(largest), output(log_sum)}});
  }
  return kept;
}

void retrieve(const Place& place, const In& state, const In& patterns, const In& values, const Scale& beta, const In& mask,
              const std::string& separation, index_t steps, double tol, const Out& out, const Steps& kept, const Out& energy,
              const Out& lse, const Out& taken, const Out& converged) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values),
              named("beta", beta_array), named("mask", mask), named("out", out), named("energy", energy), named("lse", lse),
              named("steps", taken), named("converged", converged));
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta_array), input(mask)};
  const std::vector<cuda::RetrievalStep> each = kept_steps(place, kept);
  const hopfield::results to{output(out), output(energy), output(lse), output(taken), output(converged), {}};
  nb::gil_scoped_release release;
  cuda::retrieve(queue(place), in, beta.first, {std::string_view(separation), steps, tol}, to, each);
}

void retrieve_backward(const Place& place, const In& state, const In& patterns, const In& values, const Scale& beta, const In& mask,
                       const std::string& separation, index_t steps, double tol, const Steps& kept, const In& out, const In& d_out,
                       const Out& d_state, const Out& d_patterns, const Out& d_values, const Out& d_beta) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values),
              named("beta", beta_array), named("mask", mask), named("out", out), named("d_out", d_out), named("d_state", d_state),
              named("d_patterns", d_patterns), named("d_values", d_values), named("d_beta", d_beta));
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta_array), input(mask)};
  const hopfield::gradients to{output(d_state), output(d_patterns), output(d_values), output(d_beta), {}};
  const std::vector<cuda::RetrievalStep> each = kept_steps(place, kept);
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  cuda::retrieve_backward(queue(place), in, beta.first, {std::string_view(separation), steps, tol}, each, result, cotangent, to);
}

void energy(const Place& place, const In& state, const In& patterns, const Scale& beta, const In& mask, const std::string& separation,
            const Out& out, const Out& lse, const Out& largest, const Out& log_sum) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.energy", place, named("state", state), named("patterns", patterns), named("beta", beta_array), named("mask", mask),
              named("out", out), named("lse", lse), named("largest", largest), named("log_sum", log_sum));
  const hopfield::operands in{input(state), input(patterns), {}, input(beta_array), input(mask)};
  hopfield::results to;
  to.energy = output(out);
  to.lse = output(lse);
  to.saved = {output(largest), output(log_sum)};
  nb::gil_scoped_release release;
  cuda::energy(queue(place), in, beta.first, std::string_view(separation), to);
}

void energy_backward(const Place& place, const In& state, const In& patterns, const Scale& beta, const In& mask,
                     const std::string& separation, const In& largest, const In& log_sum, const In& d_out, const Out& d_state,
                     const Out& d_patterns, const Out& d_beta) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.energy", place, named("state", state), named("patterns", patterns), named("beta", beta_array), named("mask", mask),
              named("largest", largest), named("log_sum", log_sum), named("d_out", d_out), named("d_state", d_state),
              named("d_patterns", d_patterns), named("d_beta", d_beta));
  const hopfield::operands in{input(state), input(patterns), {}, input(beta_array), input(mask)};
  const hopfield::gradients to{output(d_state), output(d_patterns), {}, output(d_beta), {}};
  const hopfield::saved kept{input(largest), input(log_sum)};
  const ConstArray cotangent = input(d_out);
  nb::gil_scoped_release release;
  cuda::energy_backward(queue(place), in, beta.first, std::string_view(separation), kept, cotangent, to);
}

/// Of a bank of rows like these on the card: how many patterns, and numbers, a line has.
std::pair<index_t, index_t> bank_line(const Place& place, const In& rows, bool alike) {
  check_cards("bank_line", place, named("rows", rows));
  const ConstArray like = input(rows);
  return cuda::bank_line(place.first, like.type, like.rank == 2 ? like.extents[1] : 0, alike);
}

void store(const Place& place, const std::string& op, const std::string& argument, const In& rows, const Out& bank, index_t first,
           bool packed) {
  check_cards(op.c_str(), place, named(argument.c_str(), rows), named("the bank", bank));
  const ConstArray from = input(rows);
  const Array to = output(bank);
  nb::gil_scoped_release release;
  cuda::store(queue(place), op, argument.c_str(), from, to, first, packed);
}

/// All of a bank to the beginning of a larger one.
void copy(const Place& place, const In& bank, const Out& larger) {
  check_cards("copy", place, named("the bank", bank), named("the larger bank", larger));
  const ConstArray from = input(bank);
  const Array to = output(larger);
  if (to.type != from.type || to.size() < from.size()) fail(status::value, "copy: the larger bank is smaller");
  nb::gil_scoped_release release;
  cuda::copy(queue(place), to.data, from.data, from.size() * bytes_of(from.type));
}

/// `memory`: how many patterns, their width, and whether the banks are packed.
void retrieve_stored(const Place& place, const In& state, const In& patterns, const In& values,
                     const std::tuple<index_t, index_t, bool>& memory, double beta, index_t steps, double tol, const Out& out) {
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values), named("out", out));
  const hopfield::operands in{input(state), input(patterns), input(values), {}, {}};
  hopfield::results to;
  to.state = output(out);
  nb::gil_scoped_release release;
  const auto [count, width, packed] = memory;
  cuda::retrieve_stored(queue(place), in, beta, count, width, packed, {"softmax", steps, tol}, to);
}

}  // namespace

void bind_recall(nb::module_& m) {
  m.def("bank_line", &bank_line, "place"_a, array("rows"_a), "alike"_a);
  m.def("store", &store, "place"_a, "op"_a, "argument"_a, array("rows"_a), array("bank"_a), "first"_a, "packed"_a);
  m.def("copy", &copy, "place"_a, array("bank"_a), array("larger"_a));
  m.def("retrieve_stored", &retrieve_stored, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "memory"_a, "beta"_a,
        "steps"_a, "tol"_a, array("out"_a));
  m.def("attention_attend", &attend, "place"_a, array("query"_a), array("key"_a), array("value"_a), "scale"_a, optional("mask"_a),
        optional("bias"_a), "causal"_a, "separation"_a, array("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a),
        "sink"_a = no_sink);
  m.def("attention_attend_backward", &attend_backward, "place"_a, array("query"_a), array("key"_a), array("value"_a), "scale"_a,
        optional("mask"_a), optional("bias"_a), "causal"_a, "separation"_a, array("largest"_a), array("log_sum"_a), array("out"_a),
        array("d_out"_a), extra("d_query"_a), extra("d_key"_a), extra("d_value"_a), extra("d_scale"_a), extra("d_bias"_a),
        "sink"_a = no_sink, extra("d_sink"_a));
  m.def("backtracking_sparse_read", &sparse_read, "place"_a, array("query"_a), array("keys"_a), array("memory"_a), optional("w3"_a),
        optional("lengths"_a), array("value"_a), array("indices"_a), array("weights"_a));
  m.def("backtracking_sparse_read_backward", &sparse_read_backward, "place"_a, array("query"_a), array("keys"_a), array("memory"_a),
        optional("w3"_a), optional("lengths"_a), "k_top"_a, array("d_value"_a), extra("d_query"_a), extra("d_keys"_a), extra("d_memory"_a));
  m.def("hopfield_retrieve", &retrieve, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "beta"_a,
        optional("mask"_a), "separation"_a, "steps"_a, "tol"_a, array("out"_a), "kept"_a = Steps(), extra("energy"_a), extra("lse"_a),
        extra("taken"_a), extra("converged"_a));
  m.def("hopfield_retrieve_backward", &retrieve_backward, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "beta"_a,
        optional("mask"_a), "separation"_a, "steps"_a, "tol"_a, "kept"_a, array("out"_a), array("d_out"_a), extra("d_state"_a),
        extra("d_patterns"_a), extra("d_values"_a), extra("d_beta"_a));
  m.def("hopfield_energy", &energy, "place"_a, array("state"_a), array("patterns"_a), "beta"_a, optional("mask"_a), "separation"_a,
        array("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("hopfield_energy_backward", &energy_backward, "place"_a, array("state"_a), array("patterns"_a), "beta"_a, optional("mask"_a),
        "separation"_a, array("largest"_a), array("log_sum"_a), array("d_out"_a), extra("d_state"_a), extra("d_patterns"_a),
        extra("d_beta"_a));
}

}  // namespace recollect::python
