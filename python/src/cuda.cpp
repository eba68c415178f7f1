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

attention::parameters parameters(const std::string& causal_name, const std::string& separation) {
  using attention::causal;
  const auto rule = causal_name == "none" ? causal::none : causal_name == "top-left" ? causal::top_left : causal::bottom_right;
  return {rule, {std::string_view(separation)}};
}

void attend(const Place& place, const In& query, const In& key, const In& value, const Scale& scale, const In& mask, const In& bias,
            const std::string& causal, const std::string& separation, const Out& out, const Out& lse, const Out& largest,
            const Out& log_sum) {
  const In scale_array = array_of(scale);
  check_cards("attention.attend", place, named("query", query), named("key", key), named("value", value), named("scale", scale_array),
              named("mask", mask), named("bias", bias), named("out", out), named("lse", lse), named("largest", largest),
              named("log_sum", log_sum));
  const attention::operands in{input(query), input(key), input(value), input(scale_array), input(mask), input(bias), {}};
  const attention::results to{output(out), output(lse), {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  cuda::attend(queue(place), in, scale.first, parameters(causal, separation), to);
}

void attend_backward(const Place& place, const In& query, const In& key, const In& value, const Scale& scale, const In& mask,
                     const In& bias, const std::string& causal, const std::string& separation, const In& largest, const In& log_sum,
                     const In& out, const In& d_out, const Out& d_query, const Out& d_key, const Out& d_value) {
  const In scale_array = array_of(scale);
  check_cards("attention.attend", place, named("query", query), named("key", key), named("value", value), named("scale", scale_array),
              named("mask", mask), named("bias", bias), named("largest", largest), named("log_sum", log_sum), named("out", out),
              named("d_out", d_out), named("d_query", d_query), named("d_key", d_key), named("d_value", d_value));
  const attention::operands in{input(query), input(key), input(value), input(scale_array), input(mask), input(bias), {}};
  const attention::gradients to{output(d_query), output(d_key), output(d_value), {}, {}, {}, {}};
  const attention::saved kept{input(largest), input(log_sum)};
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  cuda::attend_backward(queue(place), in, scale.first, parameters(causal, separation), kept, result, cotangent, to);
}

void retrieve(const Place& place, const In& state, const In& patterns, const In& values, const Scale& beta, const In& mask,
              const std::string& separation, index_t steps, const Out& out) {
  const In beta_array = array_of(beta);
  check_cards("hopfield.retrieve", place, named("state", state), named("patterns", patterns), named("values", values),
              named("beta", beta_array), named("mask", mask), named("out", out));
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta_array), input(mask)};
  hopfield::results to;
  to.state = output(out);
  nb::gil_scoped_release release;
  cuda::retrieve(queue(place), in, beta.first, {std::string_view(separation), steps}, to);
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
  m.def("attention_attend", &attend, "place"_a, array("query"_a), array("key"_a), array("value"_a), "scale"_a, optional("mask"_a),
        optional("bias"_a), "causal"_a, "separation"_a, array("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("attention_attend_backward", &attend_backward, "place"_a, array("query"_a), array("key"_a), array("value"_a), "scale"_a,
        optional("mask"_a), optional("bias"_a), "causal"_a, "separation"_a, array("largest"_a), array("log_sum"_a), array("out"_a),
        array("d_out"_a), extra("d_query"_a), extra("d_key"_a), extra("d_value"_a));
  m.def("hopfield_retrieve", &retrieve, "place"_a, array("state"_a), array("patterns"_a), optional("values"_a), "beta"_a,
        optional("mask"_a), "separation"_a, "steps"_a, array("out"_a));
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
