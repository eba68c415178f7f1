// SPDX-License-Identifier: BSD-3-Clause
/// The module `_cuda`: device arrays by DLPack, checked to lie on one card, and the ops on them. It knows no CUDA header and no op of the
/// CPU; kernels are in cuda/.
#include "array.hpp"
#include "exceptions.hpp"
#include <algorithm>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "recollect/cuda/api.hpp"
#include "recollect/version.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

/// (card, stream as a number): where everything happens.
using Place = std::pair<int, std::uintptr_t>;
/// A number for all, or an array of the device.
using Scale = std::pair<double, std::optional<In>>;

In array_of(const Scale& scale) { return scale.second ? *scale.second : In(); }

cuda::Queue queue(const Place& place) { return {place.first, reinterpret_cast<void*>(place.second)}; }

template <class A>
void check_card(const char* op, const char* name, const A& array, int card) {
  if (!array.is_valid()) return;
  if (array.device_type() != nb::device::cuda::value && array.device_type() != nb::device::cuda_managed::value)
    fail(status::type, op, ": ", name, " is not on a CUDA device; expected cuda:", card);
  if (array.device_id() != card) fail(status::type, op, ": ", name, " is on cuda:", array.device_id(), "; expected cuda:", card);
}

/// Arrays with their names, all of which lie on the card.
template <class... Named>
void check_cards(const char* op, const Place& place, const Named&... named) {
  (check_card(op, named.first, named.second, place.first), ...);
}

template <class A>
std::pair<const char*, const A&> named(const char* name, const A& array) {
  return {name, array};
}

/// A name, or a name with a number.
using Separation = std::variant<std::string, std::pair<std::string, double>>;

choice choice_of(const Separation& separation) {
  if (const auto* const name = std::get_if<std::string>(&separation)) return std::string_view(*name);
  const auto& [name, number] = std::get<1>(separation);
  return {std::string_view(name), number};
}

bool selects(const Separation& separation) { return choice_of(separation).name == "top_k_softmax"; }

attention::parameters parameters(const std::string& causal_name, const Separation& separation) {
  using attention::causal;
  const auto rule = causal_name == "none" ? causal::none : causal_name == "top-left" ? causal::top_left : causal::bottom_right;
  return {rule, choice_of(separation)};
}

void attend(const Place& place, const In& query, const In& key, const In& value, const Scale& scale, const In& mask, const In& bias,
            const std::string& causal, const Separation& separation, const Out& out, const Out& lse, const Out& largest,
            const Out& log_sum) {
  const In scale_array = array_of(scale);
  check_cards("attention.attend", place, named("query", query), named("key", key), named("value", value), named("scale", scale_array),
              named("mask", mask), named("bias", bias), named("out", out), named("lse", lse), named("largest", largest),
              named("log_sum", log_sum));
  const attention::operands in{input(query), input(key), input(value), input(scale_array), input(mask), input(bias), {}};
  const attention::results to{output(out), output(lse), {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  (selects(separation) ? cuda::attend_top_k : cuda::attend)(queue(place), in, scale.first, parameters(causal, separation), to);
}

void attend_backward(const Place& place, const In& query, const In& key, const In& value, const Scale& scale, const In& mask,
                     const In& bias, const std::string& causal, const Separation& separation, const In& largest, const In& log_sum,
                     const In& out, const In& d_out, const Out& d_query, const Out& d_key, const Out& d_value, const Out& d_scale,
                     const Out& d_bias) {
  const In scale_array = array_of(scale);
  check_cards("attention.attend", place, named("query", query), named("key", key), named("value", value), named("scale", scale_array),
              named("mask", mask), named("bias", bias), named("largest", largest), named("log_sum", log_sum), named("out", out),
              named("d_out", d_out), named("d_query", d_query), named("d_key", d_key), named("d_value", d_value), named("d_scale", d_scale),
              named("d_bias", d_bias));
  const attention::operands in{input(query), input(key), input(value), input(scale_array), input(mask), input(bias), {}};
  const attention::gradients to{output(d_query), output(d_key), output(d_value), output(d_scale), {}, output(d_bias), {}};
  const attention::saved kept{input(largest), input(log_sum)};
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  if (selects(separation)) return cuda::attend_top_k_backward(queue(place), in, scale.first, parameters(causal, separation), cotangent, to);
  cuda::attend_backward(queue(place), in, scale.first, parameters(causal, separation), kept, result, cotangent, to);
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
              const std::string& separation, index_t steps, const Out& out, const Steps& kept, const Out& energy, const Out& lse,
              const Out& taken, const Out& converged) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values),
              named("beta", beta_array), named("mask", mask), named("out", out), named("energy", energy), named("lse", lse),
              named("steps", taken), named("converged", converged));
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta_array), input(mask)};
  const std::vector<cuda::RetrievalStep> each = kept_steps(place, kept);
  const hopfield::results to{output(out), output(energy), output(lse), output(taken), output(converged), {}};
  nb::gil_scoped_release release;
  cuda::retrieve(queue(place), in, beta.first, {std::string_view(separation), steps}, to, each);
}

void retrieve_backward(const Place& place, const In& state, const In& patterns, const In& values, const Scale& beta, const In& mask,
                       const std::string& separation, index_t steps, const Steps& kept, const In& out, const In& d_out, const Out& d_state,
                       const Out& d_patterns, const Out& d_values, const Out& d_beta) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values),
              named("beta", beta_array), named("mask", mask), named("out", out), named("d_out", d_out), named("d_state", d_state),
              named("d_patterns", d_patterns), named("d_values", d_values), named("d_beta", d_beta));
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta_array), input(mask)};
  const hopfield::gradients to{output(d_state), output(d_patterns), output(d_values), output(d_beta), {}};
  const std::vector<cuda::RetrievalStep> each = kept_steps(place, kept);
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  cuda::retrieve_backward(queue(place), in, beta.first, {std::string_view(separation), steps}, each, result, cotangent, to);
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
                     const std::tuple<index_t, index_t, bool>& memory, double beta, index_t steps, const Out& out) {
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values), named("out", out));
  const hopfield::operands in{input(state), input(patterns), input(values), {}, {}};
  hopfield::results to;
  to.state = output(out);
  nb::gil_scoped_release release;
  const auto [count, width, packed] = memory;
  cuda::retrieve_stored(queue(place), in, beta, count, width, packed, {"softmax", steps}, to);
}

/// (op, rule, normalisation, decays are logarithms, chunk), as the core takes them
using Options = std::tuple<std::string, std::string, std::string, bool, index_t>;

fast_weight::parameters parameters(const Options& options) {
  const std::string &rule = std::get<1>(options), &normalise = std::get<2>(options);
  using fast_weight::normalisation;
  return {rule == "sum"     ? fast_weight::rule::sum
          : rule == "delta" ? fast_weight::rule::delta
                            : fast_weight::rule::general,
          normalise == "none"      ? normalisation::none
          : normalise == "outputs" ? normalisation::outputs
                                   : normalisation::outputs_and_removals,
          std::get<3>(options), std::get<4>(options)};
}

row_norm divisor(const std::string& norm) { return norm == "sum" ? row_norm::sum : norm == "l2" ? row_norm::l2 : row_norm::none; }

void fast_weight(const Place& place, const In& query, const In& key, const In& value, const In& beta, const In& a, const In& b,
                 const In& decay, const In& channel_decay, const Scale& scale, const In& state, const std::string& feature_map,
                 const std::string& norm, const Options& options, const Out& out, const Out& out_state) {
  const char* op = std::get<0>(options).c_str();
  const In scale_array = array_of(scale);
  check_cards(op, place, named("query", query), named("key", key), named("value", value), named("beta", beta), named("a", a), named("b", b),
              named("decay", decay), named("decay", channel_decay), named("scale", scale_array), named("state", state), named("out", out),
              named("out_state", out_state));
  const fast_weight::operands in{input(query), input(key),   input(value),         input(beta),        input(a),
                                 input(b),     input(decay), input(channel_decay), input(scale_array), input(state)};
  const fast_weight::results to{output(out), output(out_state), {}};
  nb::gil_scoped_release release;
  cuda::fast_weight_forward(queue(place), op, in, scale.first, feature_map, divisor(norm), parameters(options), to);
}

void fast_weight_backward(const Place& place, const In& query, const In& key, const In& value, const In& beta, const In& a, const In& b,
                          const In& decay, const In& channel_decay, const Scale& scale, const In& state, const std::string& feature_map,
                          const std::string& norm, const Options& options, const In& d_out, const In& d_out_state, const Out& d_query,
                          const Out& d_key, const Out& d_value, const Out& d_beta, const Out& d_a, const Out& d_b, const Out& d_decay,
                          const Out& d_channel_decay, const Out& d_scale, const Out& d_state) {
  const char* op = std::get<0>(options).c_str();
  const In scale_array = array_of(scale);
  check_cards(op, place, named("query", query), named("key", key), named("value", value), named("beta", beta), named("a", a), named("b", b),
              named("decay", decay), named("decay", channel_decay), named("scale", scale_array), named("state", state),
              named("d_out", d_out), named("d_state", d_out_state), named("d_query", d_query), named("d_key", d_key),
              named("d_value", d_value), named("d_beta", d_beta), named("d_a", d_a), named("d_b", d_b), named("d_decay", d_decay),
              named("d_decay", d_channel_decay), named("d_scale", d_scale), named("d_state", d_state));
  const fast_weight::operands in{input(query), input(key),   input(value),         input(beta),        input(a),
                                 input(b),     input(decay), input(channel_decay), input(scale_array), input(state)};
  const fast_weight::gradients to{output(d_query), output(d_key),   output(d_value),         output(d_beta),  output(d_a),
                                  output(d_b),     output(d_decay), output(d_channel_decay), output(d_scale), output(d_state)};
  const ConstArray cotangent = input(d_out), state_cotangent = input(d_out_state);
  nb::gil_scoped_release release;
  cuda::fast_weight_backward(queue(place), op, in, scale.first, feature_map, divisor(norm), parameters(options), cotangent, state_cotangent,
                             to);
}

/// How many cards there are and, if none, why.
std::pair<int, std::string> cards() {
  std::string why;
  const int count = cuda::cards(why);
  return {count, why};
}

/// An array of the card that any framework can take over by DLPack.
nb::ndarray<nb::array_api> empty(int card, const std::vector<std::size_t>& shape, const std::string& type) {
  nb::dlpack::dtype element = nb::dtype<float>();
  if (type == "float16" || type == "bfloat16") {
    element.bits = 16;
    if (type == "bfloat16") element.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
  }
  if (type == "int64") element = nb::dtype<std::int64_t>();
  if (type == "bool") element = nb::dtype<bool>();
  index_t bytes = element.bits / 8;
  for (std::size_t extent : shape) bytes *= static_cast<index_t>(extent);
  void* const memory = cuda::allocate(card, std::max<index_t>(bytes, 1));  // an owner needs something to own
  nb::capsule owner(memory, [](void* p) noexcept { cuda::release(p); });
  return nb::ndarray<nb::array_api>(memory, shape.size(), shape.data(), owner, nullptr, element, nb::device::cuda::value, card);
}

}  // namespace

void bind_cuda(nb::module_& m) {
  m.attr("version") = version;
  m.attr("evidence") = RECOLLECT_CUDA_EVIDENCE;
  m.def("cards", &cards);
  m.def("card_name", &cuda::card_name, "card"_a);
  m.def("empty", &empty, "card"_a, "shape"_a, "dtype"_a);
  m.def("bank_line", &bank_line, "place"_a, array("rows"_a), "alike"_a);
  m.def("store", &store, "place"_a, "op"_a, "argument"_a, array("rows"_a), array("bank"_a), "first"_a, "packed"_a);
  m.def("copy", &copy, "place"_a, array("bank"_a), array("larger"_a));
  m.def("retrieve_stored", &retrieve_stored, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "memory"_a, "beta"_a,
        "steps"_a, array("out"_a));
  m.def("attention_attend", &attend, "place"_a, array("query"_a), array("key"_a), array("value"_a), "scale"_a, optional("mask"_a),
        optional("bias"_a), "causal"_a, "separation"_a, array("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("attention_attend_backward", &attend_backward, "place"_a, array("query"_a), array("key"_a), array("value"_a), "scale"_a,
        optional("mask"_a), optional("bias"_a), "causal"_a, "separation"_a, array("largest"_a), array("log_sum"_a), array("out"_a),
        array("d_out"_a), extra("d_query"_a), extra("d_key"_a), extra("d_value"_a), extra("d_scale"_a), extra("d_bias"_a));
  m.def("backtracking_sparse_read", &sparse_read, "place"_a, array("query"_a), array("keys"_a), array("memory"_a), optional("w3"_a),
        optional("lengths"_a), array("value"_a), array("indices"_a), array("weights"_a));
  m.def("backtracking_sparse_read_backward", &sparse_read_backward, "place"_a, array("query"_a), array("keys"_a), array("memory"_a),
        optional("w3"_a), optional("lengths"_a), "k_top"_a, array("d_value"_a), extra("d_query"_a), extra("d_keys"_a), extra("d_memory"_a));
  m.def("hopfield_retrieve", &retrieve, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "beta"_a,
        optional("mask"_a), "separation"_a, "steps"_a, array("out"_a), "kept"_a = Steps(), extra("energy"_a), extra("lse"_a),
        extra("taken"_a), extra("converged"_a));
  m.def("hopfield_retrieve_backward", &retrieve_backward, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "beta"_a,
        optional("mask"_a), "separation"_a, "steps"_a, "kept"_a, array("out"_a), array("d_out"_a), extra("d_state"_a),
        extra("d_patterns"_a), extra("d_values"_a), extra("d_beta"_a));
  m.def("hopfield_energy", &energy, "place"_a, array("state"_a), array("patterns"_a), "beta"_a, optional("mask"_a), "separation"_a,
        array("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("hopfield_energy_backward", &energy_backward, "place"_a, array("state"_a), array("patterns"_a), "beta"_a, optional("mask"_a),
        "separation"_a, array("largest"_a), array("log_sum"_a), array("d_out"_a), extra("d_state"_a), extra("d_patterns"_a),
        extra("d_beta"_a));
  m.def("fast_weight", &fast_weight, "place"_a, optional("query"_a), optional("key"_a), optional("value"_a), optional("beta"_a),
        optional("a"_a), optional("b"_a), optional("decay"_a), optional("channel_decay"_a), "scale"_a, optional("state"_a), "feature_map"_a,
        "norm"_a, "options"_a, extra("out"_a), extra("out_state"_a));
  m.def("fast_weight_backward", &fast_weight_backward, "place"_a, optional("query"_a), optional("key"_a), optional("value"_a),
        optional("beta"_a), optional("a"_a), optional("b"_a), optional("decay"_a), optional("channel_decay"_a), "scale"_a,
        optional("state"_a), "feature_map"_a, "norm"_a, "options"_a, optional("d_out"_a), optional("d_out_state"_a), extra("d_query"_a),
        extra("d_key"_a), extra("d_value"_a), extra("d_beta"_a), extra("d_a"_a), extra("d_b"_a), extra("d_decay"_a),
        extra("d_channel_decay"_a), extra("d_scale"_a), extra("d_state"_a));
}

}  // namespace recollect::python

NB_MODULE(_cuda, m) {
  recollect::python::translate_exceptions();
  recollect::python::bind_cuda(m);
}
