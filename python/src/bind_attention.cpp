// SPDX-License-Identifier: BSD-3-Clause
#include "array.hpp"

#include <nanobind/stl/string.h>

#include "recollect/ops/attention.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

attention::causal rule(const std::string& name) {
  if (name == "none") return attention::causal::none;
  return name == "top-left" ? attention::causal::top_left : attention::causal::bottom_right;
}

attention::operands operands(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias,
                             const In& sink) {
  return {input(query), input(key), input(value), input(scale), input(mask), input(bias), input(sink)};
}

void attend(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias, const In& sink,
            const std::string& causal, const Out& out, const Out& lse, const Out& largest, const Out& log_sum) {
  const attention::operands in = operands(query, key, value, scale, mask, bias, sink);
  const attention::results to{output(out), output(lse), {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  attention::attend(in, rule(causal), to);
}

void attend_backward(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias, const In& sink,
                     const std::string& causal, const In& largest, const In& log_sum, const In& out, const In& d_out, const Out& d_query,
                     const Out& d_key, const Out& d_value, const Out& d_scale, const Out& d_bias, const Out& d_sink) {
  const attention::operands in = operands(query, key, value, scale, mask, bias, sink);
  const attention::gradients to{output(d_query), output(d_key), output(d_value), output(d_scale), {}, output(d_bias), output(d_sink)};
  const attention::saved kept{input(largest), input(log_sum)};
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  attention::attend_backward(in, rule(causal), kept, result, cotangent, to);
}

void attend_top_k(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias, const In& sink,
                  const std::string& causal, const Out& out, const Out& indices, const Out& weights, const Out& lse) {
  const attention::operands in = operands(query, key, value, scale, mask, bias, sink);
  const attention::results to{output(out), output(lse), {}};
  const Array indices_to = output(indices), weights_to = output(weights);
  nb::gil_scoped_release release;
  attention::attend_top_k(in, rule(causal), to, indices_to, weights_to);
}

void attend_top_k_backward(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias, const In& sink,
                           const std::string& causal, const In& indices, const In& weights, const In& out, const In& d_out,
                           const Out& d_query, const Out& d_key, const Out& d_value, const Out& d_scale, const Out& d_bias,
                           const Out& d_sink) {
  const attention::operands in = operands(query, key, value, scale, mask, bias, sink);
  const attention::gradients to{output(d_query), output(d_key), output(d_value), output(d_scale), {}, output(d_bias), output(d_sink)};
  const ConstArray chosen = input(indices), weighed = input(weights), result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  attention::attend_top_k_backward(in, rule(causal), chosen, weighed, result, cotangent, to);
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attention_attend", &attend, array("query"_a), array("key"_a), array("value"_a), array("scale"_a), optional("mask"_a),
        optional("bias"_a), optional("sink"_a), "causal"_a, array("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("attention_attend_backward", &attend_backward, array("query"_a), array("key"_a), array("value"_a), array("scale"_a),
        optional("mask"_a), optional("bias"_a), optional("sink"_a), "causal"_a, array("largest"_a), array("log_sum"_a), array("out"_a),
        array("d_out"_a), extra("d_query"_a), extra("d_key"_a), extra("d_value"_a), extra("d_scale"_a), extra("d_bias"_a),
        extra("d_sink"_a));
  m.def("attention_top_k", &attend_top_k, array("query"_a), array("key"_a), array("value"_a), array("scale"_a), optional("mask"_a),
        optional("bias"_a), optional("sink"_a), "causal"_a, array("out"_a), array("indices"_a), array("weights"_a), extra("lse"_a));
  m.def("attention_top_k_backward", &attend_top_k_backward, array("query"_a), array("key"_a), array("value"_a), array("scale"_a),
        optional("mask"_a), optional("bias"_a), optional("sink"_a), "causal"_a, array("indices"_a), array("weights"_a), array("out"_a),
        array("d_out"_a), extra("d_query"_a), extra("d_key"_a), extra("d_value"_a), extra("d_scale"_a), extra("d_bias"_a),
        extra("d_sink"_a));
}

}  // namespace recollect::python
