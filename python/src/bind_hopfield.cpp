// SPDX-License-Identifier: BSD-3-Clause
#include <nanobind/stl/string.h>

#include "array.hpp"
#include "recollect/ops/hopfield.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

void energy(const In& state, const In& patterns, const In& beta, const In& mask, const std::string& separation, const Out& out) {
  const hopfield::operands in{input(state), input(patterns), {}, input(beta), input(mask)};
  const Array to = output(out);
  nb::gil_scoped_release release;
  hopfield::energy(in, separation, to);
}

void retrieve(const In& state, const In& patterns, const In& values, const In& beta, const In& mask, const std::string& separation,
              index_t steps, double tol, const Out& out, const Out& energy, const Out& lse, const Out& taken, const Out& converged) {
  const hopfield::operands in{input(state), input(patterns), input(values), input(beta), input(mask)};
  const hopfield::results to{output(out), output(energy), output(lse), output(taken), output(converged)};
  nb::gil_scoped_release release;
  hopfield::retrieve(in, {separation, steps, tol}, to);
}

}  // namespace

void bind_hopfield(nb::module_& m) {
  m.attr("hopfield_most_steps") = hopfield::most_steps;
  m.def("hopfield_energy", &energy, "state"_a.noconvert(), "patterns"_a.noconvert(), "beta"_a.noconvert(),
        "mask"_a.noconvert().none(), "separation"_a, "out"_a.noconvert());
  m.def("hopfield_retrieve", &retrieve, "state"_a.noconvert(), "patterns"_a.noconvert(), "values"_a.noconvert().none(),
        "beta"_a.noconvert(), "mask"_a.noconvert().none(), "separation"_a, "steps"_a, "tol"_a, "out"_a.noconvert(),
        "energy"_a.noconvert().none(), "lse"_a.noconvert().none(), "taken"_a.noconvert().none(), "converged"_a.noconvert().none());
}

}  // namespace recollect::python
