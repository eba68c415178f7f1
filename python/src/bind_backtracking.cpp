// SPDX-License-Identifier: BSD-3-Clause
#include "array.hpp"
#include <array>
#include <string>
#include <type_traits>

#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include "recollect/ops/backtracking.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

/// A group of arrays in the order of the fields of a struct, None for one that is not given.
template <class Struct, class Field>
Struct group(const nb::tuple& arrays) {
  if (arrays.size() != 7) fail(status::value, "backtracking: a group has ", arrays.size(), " arrays; expected 7");
  std::array<Field, 7> fields;
  for (std::size_t i = 0; i < 7; ++i) {
    if (arrays[i].is_none()) continue;
    if constexpr (std::is_same_v<Field, Array>)
      fields[i] = output(nb::cast<Out>(arrays[i], false));
    else
      fields[i] = input(nb::cast<In>(arrays[i], false));
  }
  return {fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6]};
}

/// k_top, k_att, k_trunc, time, max_memories, reminders, released: whole numbers, as they travel.
backtracking::options options(const std::array<index_t, 7>& how) {
  return {how[0], how[1], how[2], how[3], how[4], how[5] != 0, how[6] ? backtracking::rule::released : backtracking::rule::paper};
}

void forward(const std::string& cell, const In& x, const In& hidden, const In& carry, const nb::tuple& by, const Out& states,
             const Out& keys, index_t count, const std::array<index_t, 7>& how, const Out& outputs, const nb::tuple& tape) {
  const backtracking::inputs in{input(x), input(hidden), input(carry)};
  const auto weights = group<backtracking::parameters, ConstArray>(by);
  const backtracking::memory kept{output(states), output(keys), count};
  const Array to = output(outputs);
  const auto on = group<backtracking::tape, Array>(tape);
  nb::gil_scoped_release release;
  backtracking::forward(cell, in, weights, kept, options(how), to, on);
}

void backward(const std::string& cell, const In& x, const In& hidden, const In& carry, const nb::tuple& by, const Out& states,
              const Out& keys, index_t count, const std::array<index_t, 7>& how, const nb::tuple& tape, const In& d_outputs, const Out& d_x,
              const nb::tuple& d_by) {
  const backtracking::inputs in{input(x), input(hidden), input(carry)};
  const auto weights = group<backtracking::parameters, ConstArray>(by);
  const backtracking::memory kept{output(states), output(keys), count};
  const auto on = group<backtracking::const_tape, ConstArray>(tape);
  const ConstArray cotangent = input(d_outputs);
  const Array d_in = output(d_x);
  const auto to = group<backtracking::parameter_gradients, Array>(d_by);
  nb::gil_scoped_release release;
  backtracking::backward(cell, in, weights, kept, options(how), on, cotangent, d_in, to);
}

void sparse_read(const In& query, const In& keys, const In& memory, const In& w3, const In& lengths, const Out& value, const Out& indices,
                 const Out& weights, const Out& threshold, const Out& total) {
  const backtracking::read_operands in{input(query), input(keys), input(memory), input(w3), input(lengths)};
  const backtracking::read_results to{output(value), output(indices), output(weights), output(threshold), output(total)};
  nb::gil_scoped_release release;
  backtracking::read(in, to);
}

void sparse_read_backward(const In& query, const In& keys, const In& memory, const In& w3, const In& lengths, const Out& value,
                          const Out& indices, const Out& weights, const Out& threshold, const Out& total, const In& d_value,
                          const Out& d_query, const Out& d_keys, const Out& d_memory, const Out& d_w3) {
  const backtracking::read_operands in{input(query), input(keys), input(memory), input(w3), input(lengths)};
  const backtracking::read_results kept{output(value), output(indices), output(weights), output(threshold), output(total)};
  const backtracking::read_gradients to{output(d_query), output(d_keys), output(d_memory), output(d_w3)};
  const ConstArray cotangent = input(d_value);
  nb::gil_scoped_release release;
  backtracking::read_backward(in, kept, cotangent, to);
}

}  // namespace

void bind_backtracking(nb::module_& m) {
  m.def("backtracking_forward", &forward, "cell"_a, array("x"_a), array("hidden"_a), optional("carry"_a), "parameters"_a,
        optional("states"_a), optional("keys"_a), "count"_a, "options"_a, array("outputs"_a), "tape"_a);
  m.def("backtracking_backward", &backward, "cell"_a, array("x"_a), array("hidden"_a), optional("carry"_a), "parameters"_a,
        optional("states"_a), optional("keys"_a), "count"_a, "options"_a, "tape"_a, array("d_outputs"_a), array("d_x"_a), "d_parameters"_a);
  m.def("backtracking_sparse_read", &sparse_read, array("query"_a), array("keys"_a), array("memory"_a), optional("w3"_a),
        optional("lengths"_a), array("value"_a), array("indices"_a), array("weights"_a), array("threshold"_a), array("total"_a));
  m.def("backtracking_sparse_read_backward", &sparse_read_backward, array("query"_a), array("keys"_a), array("memory"_a), optional("w3"_a),
        optional("lengths"_a), array("value"_a), array("indices"_a), array("weights"_a), array("threshold"_a), array("total"_a),
        array("d_value"_a), array("d_query"_a), array("d_keys"_a), array("d_memory"_a), optional("d_w3"_a));
}

}  // namespace recollect::python
