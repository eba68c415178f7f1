// SPDX-License-Identifier: BSD-3-Clause
/// The compiled module of one instruction-set level. Every bind_*.cpp adds its functions: convert, release the GIL, call.
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "exceptions.hpp"
#include "recollect/core/parallel.hpp"
#include "recollect/ops/packet.hpp"
#include "recollect/spec/attention.hpp"
#include "recollect/spec/fast_weight.hpp"
#include "recollect/spec/hopfield.hpp"
#include "recollect/version.hpp"

namespace nb = nanobind;

namespace recollect::python {
void bind_attention(nb::module_& m);
void bind_backtracking(nb::module_& m);
void bind_fast_weight(nb::module_& m);
void bind_hopfield(nb::module_& m);
void bind_score(nb::module_& m);
}  // namespace recollect::python

namespace {

nb::dict build_info() {
  nb::dict info;
  info["version"] = recollect::version;
  info["compiler"] = __VERSION__;
  info["eigen"] =
      std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." + std::to_string(EIGEN_MINOR_VERSION);
  info["packet_bytes"] = recollect::Packet<float>::width * static_cast<int>(sizeof(float));
  return info;
}

/// The shape tables of all ops, so that what documentation says can be held against them.
nb::dict shapes() {
  nb::dict tables;
  const auto add = [&](const char* op, const auto& table) {
    nb::dict rows;
    for (const recollect::ShapeRow& row : table) rows[row.name] = row.dims;
    tables[op] = rows;
  };
  add("hopfield", recollect::hopfield::operand_shapes);
  add("attention", recollect::attention::operand_shapes);
  add("fastweight", recollect::fast_weight::operand_shapes);
  return tables;
}

}  // namespace

NB_MODULE(RECOLLECT_MODULE, m) {
  recollect::python::translate_exceptions();
  m.def("build_info", &build_info);
  m.def("shapes", &shapes);
  m.def("get_num_threads", &recollect::get_num_threads);
  m.def("set_num_threads", &recollect::set_num_threads, nb::arg("n"));
  recollect::python::bind_hopfield(m);
  recollect::python::bind_attention(m);
  recollect::python::bind_score(m);
  recollect::python::bind_backtracking(m);
  recollect::python::bind_fast_weight(m);
}
