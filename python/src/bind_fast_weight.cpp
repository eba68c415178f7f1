// SPDX-License-Identifier: BSD-3-Clause
#include "array.hpp"
#include "fast_weight_options.hpp"

#include <nanobind/stl/vector.h>

#include "recollect/ops/fast_weight.hpp"
#include "recollect/ops/feature_map.hpp"

namespace recollect::python {

using namespace nb::literals;

namespace {

/// (name, row norm, nu, matrix or None)
using MapChoice = std::tuple<std::string, std::string, index_t, In>;
feature_map::choice chosen(const MapChoice& map) {
  return {std::get<0>(map), divisor(std::get<1>(map)), std::get<2>(map), input(std::get<3>(map))};
}

index_t row_width(const fast_weight::operands& in) {
  const ConstArray& rows = in.query.given() ? in.query : in.key;
  return rows.rank > 0 ? rows.extents[rows.rank - 1] : 0;
}

fast_weight::operands operands(const In& query, const In& key, const In& value, const In& beta, const In& a, const In& b, const In& decay,
                               const In& channel_decay, const In& scale, const In& state) {
  return {input(query), input(key),   input(value),         input(beta),  input(a),
          input(b),     input(decay), input(channel_decay), input(scale), input(state)};
}

void forward(const In& query, const In& key, const In& value, const In& beta, const In& a, const In& b, const In& decay,
             const In& channel_decay, const In& scale, const In& state, const MapChoice& map, const Options& options, const Out& out,
             const Out& out_state, const Out& written, const Out& checkpoints) {
  const fast_weight::operands in = operands(query, key, value, beta, a, b, decay, channel_decay, scale, state);
  const fast_weight::results to{output(out), output(out_state), {output(written), output(checkpoints)}};
  const feature_map::choice choice = chosen(map);
  const std::string& op = std::get<0>(options);
  nb::gil_scoped_release release;
  feature_map::with_map(op, choice, row_width(in),
                        [&](const auto& phi) { fast_weight::forward(op, in, phi, choice.norm, parameters(options), to); });
}

void backward(const In& query, const In& key, const In& value, const In& beta, const In& a, const In& b, const In& decay,
              const In& channel_decay, const In& scale, const In& state, const MapChoice& map, const Options& options, const In& written,
              const In& checkpoints, const In& d_out, const In& d_out_state, const Out& d_query, const Out& d_key, const Out& d_value,
              const Out& d_beta, const Out& d_a, const Out& d_b, const Out& d_decay, const Out& d_channel_decay, const Out& d_scale,
              const Out& d_state) {
  const fast_weight::operands in = operands(query, key, value, beta, a, b, decay, channel_decay, scale, state);
  const fast_weight::gradients to{output(d_query), output(d_key),   output(d_value),         output(d_beta),  output(d_a),
                                  output(d_b),     output(d_decay), output(d_channel_decay), output(d_scale), output(d_state)};
  const fast_weight::saved kept{input(written), input(checkpoints)};
  const ConstArray cotangent = input(d_out), state_cotangent = input(d_out_state);
  const feature_map::choice choice = chosen(map);
  const std::string& op = std::get<0>(options);
  nb::gil_scoped_release release;
  feature_map::with_map(op, choice, row_width(in), [&](const auto& phi) {
    fast_weight::backward(op, in, phi, choice.norm, parameters(options), kept, cotangent, state_cotangent, to);
  });
}

void feature_map_forward(const std::string& op, const In& x, const MapChoice& map, const Out& out) {
  const ConstArray from = input(x);
  const Array to = output(out);
  const feature_map::choice choice = chosen(map);
  nb::gil_scoped_release release;
  feature_map::forward(op, from, choice, to);
}

void feature_map_backward(const std::string& op, const In& x, const MapChoice& map, const In& d_out, const Out& d_x) {
  const ConstArray from = input(x), cotangent = input(d_out);
  const Array to = output(d_x);
  const feature_map::choice choice = chosen(map);
  nb::gil_scoped_release release;
  feature_map::backward(op, from, choice, cotangent, to);
}

index_t feature_map_width(const std::string& op, const MapChoice& map, index_t d) { return feature_map::width(op, chosen(map), d); }

index_t columns_behind(const MapChoice& map, const Options& options, index_t d) {
  const feature_map::choice choice = chosen(map);
  index_t columns = 0;
  feature_map::with_map(std::get<0>(options), choice, d,
                        [&](const auto& phi) { columns = fast_weight::columns_behind(phi, d, choice.norm, parameters(options)); });
  return columns;
}

std::vector<std::string> feature_map_names() {
  std::vector<std::string> names;
  for_each(feature_maps{}, [&]<class Map>() { names.emplace_back(Map::name); });
  return names;
}

}  // namespace

void bind_fast_weight(nb::module_& m) {
  m.def("fast_weight", &forward, optional("query"_a), optional("key"_a), optional("value"_a), optional("beta"_a), optional("a"_a),
        optional("b"_a), optional("decay"_a), optional("channel_decay"_a), array("scale"_a), optional("state"_a), "feature_map"_a,
        "options"_a, extra("out"_a), extra("out_state"_a), extra("written"_a), extra("checkpoints"_a));
  m.def("fast_weight_backward", &backward, optional("query"_a), optional("key"_a), optional("value"_a), optional("beta"_a), optional("a"_a),
        optional("b"_a), optional("decay"_a), optional("channel_decay"_a), array("scale"_a), optional("state"_a), "feature_map"_a,
        "options"_a, optional("written"_a), array("checkpoints"_a), optional("d_out"_a), optional("d_out_state"_a), extra("d_query"_a),
        extra("d_key"_a), extra("d_value"_a), extra("d_beta"_a), extra("d_a"_a), extra("d_b"_a), extra("d_decay"_a),
        extra("d_channel_decay"_a), extra("d_scale"_a), extra("d_state"_a));
  m.def("fast_weight_columns_behind", &columns_behind, "feature_map"_a, "options"_a, "d"_a);
  m.def("feature_map", &feature_map_forward, "op"_a, array("x"_a), "feature_map"_a, array("out"_a));
  m.def("feature_map_backward", &feature_map_backward, "op"_a, array("x"_a), "feature_map"_a, array("d_out"_a), array("d_x"_a));
  m.def("feature_map_width", &feature_map_width, "op"_a, "feature_map"_a, "d"_a);
  m.def("feature_map_names", &feature_map_names);
}

}  // namespace recollect::python
