// SPDX-License-Identifier: BSD-3-Clause
#include "array.hpp"

#include <nanobind/stl/string.h>

#include "recollect/ops/attention.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

attention::parameters parameters(const std::string& causal_name, const std::string& separation, double parameter) {
  using attention::causal;
  const auto rule = causal_name == "none" ? causal::none : causal_name == "top-left" ? causal::top_left : causal::bottom_right;
  return {rule, {separation, parameter}};
}

attention::operands operands(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias,
                             const In& sink) {
  return {input(query), input(key), input(value), input(scale), input(mask), input(bias), input(sink)};
}

void attend(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias, const In& sink,
            const std::string& causal, const std::string& separation, double parameter, const Out& out, const Out& lse, const Out& largest,
            const Out& log_sum) {
  const attention::operands in = operands(query, key, value, scale, mask, bias, sink);
  const attention::results to{output(out), output(lse), {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  attention::attend(in, parameters(causal, separation, parameter), to);
}

void attend_backward(const In& query, const In& key, const In& value, const In& scale, const In& mask, const In& bias, const In& sink,
                     const std::string& causal, const std::string& separation, double parameter, const In& largest, const In& log_sum,
                     const In& out, const In& d_out, const Out& d_query, const Out& d_key, const Out& d_value, const Out& d_scale,
                     const Out& d_bias, const Out& d_sink) {
  const attention::operands in = operands(query, key, value, scale, mask, bias, sink);
  const attention::gradients to{output(d_query), output(d_key), output(d_value), output(d_scale), {}, output(d_bias), output(d_sink)};
  const attention::saved kept{input(largest), input(log_sum)};
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  attention::attend_backward(in, parameters(causal, separation, parameter), kept, result, cotangent, to);
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attention_attend", &attend, array("query"_a), array("key"_a), array("value"_a), array("scale"_a), optional("mask"_a),
        optional("bias"_a), optional("sink"_a), "causal"_a, "separation"_a, "parameter"_a, array("out"_a), extra("lse"_a),
        extra("largest"_a), extra("log_sum"_a));
  m.def("attention_attend_backward", &attend_backward, array("query"_a), array("key"_a), array("value"_a), array("scale"_a),
        optional("mask"_a), optional("bias"_a), optional("sink"_a), "causal"_a, "separation"_a, "parameter"_a, optional("largest"_a),
        optional("log_sum"_a), array("out"_a), array("d_out"_a), extra("d_query"_a), extra("d_key"_a), extra("d_value"_a),
        extra("d_scale"_a), extra("d_bias"_a), extra("d_sink"_a));
}

}  // namespace recollect::python
