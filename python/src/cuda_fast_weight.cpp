// SPDX-License-Identifier: BSD-3-Clause
/// Fast weights on a device.
#include "fast_weight_options.hpp"
#include "place.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

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

}  // namespace

void bind_fast_weight(nb::module_& m) {
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
