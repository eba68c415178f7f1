// SPDX-License-Identifier: BSD-3-Clause
#include "array.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "recollect/ops/additive_score.hpp"
#include "recollect/ops/weights.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

score::causality causality(std::optional<index_t> shift) { return {shift.has_value(), shift.value_or(0)}; }

void dot(const std::string& op, const In& query, const In& key, const In& scale, const In& mask, const In& bias,
         std::optional<index_t> shift, const Out& out) {
  const score::dot_operands in{input(query), input(key), input(scale), input(mask), input(bias)};
  const Array to = output(out);
  nb::gil_scoped_release release;
  score::dot(op, in, causality(shift), to);
}

void additive(const std::string& op, const In& query, const In& key, const In& vector, const In& mask, const In& bias,
              std::optional<index_t> shift, const Out& out) {
  const score::additive_operands in{input(query), input(key), input(vector), input(mask), input(bias)};
  const Array to = output(out);
  nb::gil_scoped_release release;
  score::additive(op, in, causality(shift), to);
}

void additive_backward(const std::string& op, const In& query, const In& key, const In& vector, const In& d_scores, const Out& d_query,
                       const Out& d_key, const Out& d_vector) {
  const score::additive_operands in{input(query), input(key), input(vector), {}, {}};
  const ConstArray cotangent = input(d_scores);
  const score::additive_gradients to{output(d_query), output(d_key), output(d_vector)};
  nb::gil_scoped_release release;
  score::additive_backward(op, in, cotangent, to);
}

void weigh(const std::string& op, const In& scores, const std::string& separation, double parameter, const Out& out) {
  const ConstArray from = input(scores);
  const Array to = output(out);
  nb::gil_scoped_release release;
  weights::forward(op, from, {separation, parameter}, to);
}

void weigh_backward(const std::string& op, const In& given, const std::string& separation, double parameter, const In& d_weights,
                    const Out& d_scores) {
  const ConstArray from = input(given), cotangent = input(d_weights);
  const Array to = output(d_scores);
  nb::gil_scoped_release release;
  weights::backward(op, from, {separation, parameter}, cotangent, to);
}

}  // namespace

void bind_score(nb::module_& m) {
  m.def("score_dot", &dot, "op"_a, array("query"_a), array("key"_a), array("scale"_a), optional("mask"_a), optional("bias"_a),
        "shift"_a.none(), array("out"_a));
  m.def("score_additive", &additive, "op"_a, array("query"_a), array("key"_a), array("vector"_a), optional("mask"_a), optional("bias"_a),
        "shift"_a.none(), array("out"_a));
  m.def("score_additive_backward", &additive_backward, "op"_a, array("query"_a), array("key"_a), array("vector"_a), array("d_scores"_a),
        array("d_query"_a), array("d_key"_a), array("d_vector"_a));
  m.def("weights", &weigh, "op"_a, array("scores"_a), "separation"_a, "parameter"_a, array("out"_a));
  m.def("weights_backward", &weigh_backward, "op"_a, array("weights"_a), "separation"_a, "parameter"_a, array("d_weights"_a),
        array("d_scores"_a));
}

}  // namespace recollect::python
