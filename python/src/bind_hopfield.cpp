// SPDX-License-Identifier: BSD-3-Clause
#include "array.hpp"

#include <nanobind/stl/string.h>

#include "recollect/ops/hopfield.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

/// Every separation and the name of its parameter, or None.
nb::list separation_table() {
  nb::list table;
  for_each(separations{}, [&]<class Separation>() {
    const std::string name(Separation::name), parameter(Separation::parameter);
    table.append(nb::make_tuple(name, parameter.empty() ? nb::object(nb::none()) : nb::object(nb::str(parameter.c_str()))));
  });
  return table;
}

double separation_margin(const std::string& op, const std::string& separation, double parameter) {
  double margin = 0;
  detail::visit_separation(op, {separation, parameter}, 'N', 0, [&](const auto& chosen) { margin = chosen.margin(); });
  return margin;
}

void energy(const In& state, const In& patterns, const In& beta, const In& mask, const std::string& separation, double parameter,
            const Out& out, const Out& lse, const Out& largest, const Out& log_sum) {
  const hopfield::operands in{input(state), input(patterns), {}, input(beta), input(mask)};
  const hopfield::results to{{}, output(out), output(lse), {}, {}, {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  hopfield::energy(in, {separation, parameter}, to);
}

void energy_backward(const In& state, const In& patterns, const In& beta, const In& mask, const std::string& separation, double parameter,
                     const In& largest, const In& log_sum, const In& d_out, const Out& d_state, const Out& d_patterns, const Out& d_beta) {
  const hopfield::operands in{input(state), input(patterns), {}, input(beta), input(mask)};
  const hopfield::gradients to{output(d_state), output(d_patterns), {}, output(d_beta), {}};
  const hopfield::saved kept{input(largest), input(log_sum)};
  const ConstArray cotangent = input(d_out);
  nb::gil_scoped_release release;
  hopfield::energy_backward(in, {separation, parameter}, kept, cotangent, to);
}

void retrieve(const In& state, const In& patterns, const In& values, const In& beta, const In& mask, const std::string& separation,
              double parameter, index_t steps, double tol, const Out& out, const Out& energy, const Out& lse, const Out& taken,
              const Out& converged, const Out& largest, const Out& log_sum) {
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta), input(mask)};
  const hopfield::results to{output(out),   output(energy),    output(lse),
                             output(taken), output(converged), {output(largest), output(log_sum)}};
  nb::gil_scoped_release release;
  hopfield::retrieve(in, {{separation, parameter}, steps, tol}, to);
}

void retrieve_backward(const In& state, const In& patterns, const In& values, const In& beta, const In& mask, const std::string& separation,
                       double parameter, const In& largest, const In& log_sum, const In& out, const In& d_out, const Out& d_state,
                       const Out& d_patterns, const Out& d_values, const Out& d_beta) {
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta), input(mask)};
  const hopfield::gradients to{output(d_state), output(d_patterns), output(d_values), output(d_beta), {}};
  const hopfield::saved kept{input(largest), input(log_sum)};
  const ConstArray result = input(out), cotangent = input(d_out);
  nb::gil_scoped_release release;
  hopfield::retrieve_backward(in, {separation, parameter}, kept, result, cotangent, to);
}

void nearest(const In& state, const In& patterns, const In& beta, const In& mask, const std::string& separation, double parameter,
             const Out& indices, const Out& weights) {
  const hopfield::operands in{input(state), input(patterns), {}, input(beta), input(mask)};
  const Array indices_to = output(indices), weights_to = output(weights);
  nb::gil_scoped_release release;
  hopfield::nearest(in, {separation, parameter}, indices_to, weights_to);
}

}  // namespace

void bind_hopfield(nb::module_& m) {
  m.def("separations", &separation_table);
  m.def("separation_margin", &separation_margin, "op"_a, "separation"_a, "parameter"_a);
  m.attr("hopfield_most_steps") = hopfield::most_steps;
  m.def("hopfield_energy", &energy, array("state"_a), array("patterns"_a), array("beta"_a), optional("mask"_a), "separation"_a,
        "parameter"_a, extra("out"_a), extra("lse"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("hopfield_energy_backward", &energy_backward, array("state"_a), array("patterns"_a), array("beta"_a), optional("mask"_a),
        "separation"_a, "parameter"_a, optional("largest"_a), optional("log_sum"_a), array("d_out"_a), extra("d_state"_a),
        extra("d_patterns"_a), extra("d_beta"_a));
  m.def("hopfield_retrieve", &retrieve, array("state"_a), array("patterns"_a), optional("values"_a), array("beta"_a), optional("mask"_a),
        "separation"_a, "parameter"_a, "steps"_a, "tol"_a, array("out"_a), extra("energy"_a), extra("lse"_a), extra("taken"_a),
        extra("converged"_a), extra("largest"_a), extra("log_sum"_a));
  m.def("hopfield_nearest", &nearest, array("state"_a), array("patterns"_a), array("beta"_a), optional("mask"_a), "separation"_a,
        "parameter"_a, array("indices"_a), array("weights"_a));
  m.def("hopfield_retrieve_backward", &retrieve_backward, array("state"_a), array("patterns"_a), optional("values"_a), array("beta"_a),
        optional("mask"_a), "separation"_a, "parameter"_a, optional("largest"_a), optional("log_sum"_a), array("out"_a), array("d_out"_a),
        extra("d_state"_a), extra("d_patterns"_a), extra("d_values"_a), extra("d_beta"_a));
}

}  // namespace recollect::python
