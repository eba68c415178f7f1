// SPDX-License-Identifier: BSD-3-Clause
/// What `attend`, `retrieve` and `energy` share on a device: their operands as kernels are given them, memories that are packed, and the
/// launches of a softmax. Arithmetic is float32, arrays are the device's. A scale or beta that is one number is given as such, and only
/// otherwise as an operand (float32).
#pragma once

#include "recollect/cuda/checks.hpp"
#include "recollect/cuda/select.hpp"

namespace recollect::cuda {

namespace detail {

/// The operands of a recall in the words of an op; the shape table has query, key, value, scale and mask first.
struct RecallOperands {
  const char *query_name, *key_name, *value_name, *scale_name;
  ConstArray query, key, value, scale, mask;
  char memory_letter;
};

inline void check_types(std::string_view op, const RecallOperands& in, double scale_number, bool positive) {
  check_given(op, in.query_name, in.query);
  check_given(op, in.key_name, in.key);
  check_stored(op, in.query_name, in.query);
  check_stored(op, in.key_name, in.key);
  check_stored(op, in.value_name, in.value);
  check_type(op, "mask", in.mask, dtype::boolean);
  check_scale(op, in.scale_name, in.scale, scale_number, positive);
}

inline void check_softmax(std::string_view op, const choice& separation) {
  if (separation.name != "softmax")
    fail(status::value, op, ": separation is ", separation.text(), "; expected 'softmax', the only one on a device so far");
}

inline RecallArguments arguments(std::string_view op, const RecallOperands& in, double scale_number, const Shapes& shapes,
                                 const Fold& fold) {
  RecallArguments a;
  a.outer_axes = fold.outer;
  a.row_axes = fold.rows;
  a.outer = fold.outer.count();
  a.rows = fold.rows.count();
  a.patterns = shapes.extent(in.memory_letter);
  const index_t d = shapes.extent('d'), e = in.value.given() ? shapes.extent('e') : d;
  check_width(op, in.key_name, in.key, d);
  check_width(op, in.value_name, in.value, e);
  a.width = static_cast<int>(d);
  a.value_width = static_cast<int>(e);
  a.scale_number = static_cast<float>(scale_number);
  a.query = operand(fold, shapes[0], in.query, true, 1);
  a.key = pattern_rows(fold, shapes[1], in.key.data, in.key.type);
  if (in.value.given()) a.value = pattern_rows(fold, shapes[2], in.value.data, in.value.type);
  if (in.scale.given()) a.scale = operand(fold, shapes[3], in.scale, false, -1);
  if (in.mask.given()) a.mask = operand(fold, shapes[4], in.mask, true, 1);
  return a;
}

/// Memories packed for tensor cores; nothing where portable kernels serve. Those for RecallSm80 say of which type and width.
struct Bank {
  const char *keys = nullptr, *values = nullptr;
  dtype halves = dtype::none;
  int width = 0;
};

template <class Device>
const char* packed(std::string_view op, Device& device, const RecallArguments& a, const Memory& memory) {
  const auto with = [&]<int Width>() {
    using Kernel = RecallPack<Width>;
    PackArguments pack{memory, a.outer_axes, a.outer, 0, a.patterns, nullptr};
    pack.packed = static_cast<char*>(device.scratch(Kernel::blocks(pack) * Kernel::Tile::pitch));
    launch<Kernel>(op, device, pack);
    return pack.packed;
  };
  return a.width == 64 ? with.template operator()<64>() : with.template operator()<128>();
}

template <class Device>
Bank bank(std::string_view op, Device& device, const RecallArguments& a) {
  Bank to;
  if (a.outer * a.rows == 0) return to;
  if (on_tensor_cores(device.architecture(), a)) {
    to.keys = packed(op, device, a, a.key);
    if (!a.shared()) to.values = packed(op, device, a, a.value);
    return to;
  }
  to.halves = halves_of(device.architecture(), a);
  to.width = std::max(a.width, a.value_width);
  if (to.halves == dtype::none) return to;
  select_halves(to.halves, to.width, [&]<class Pack, class Kernel>() {
    const auto pack_rows = [&](const Memory& memory, int width) {
      HalfPackArguments pack{memory, a.outer_axes, a.outer, a.patterns, width, nullptr};
      pack.packed = static_cast<char*>(device.scratch(Pack::blocks(pack) * Pack::Tiles::pitch));
      launch<Pack>(op, device, pack);
      return pack.packed;
    };
    to.keys = pack_rows(a.key, a.width);
    if (!a.shared()) to.values = pack_rows(a.value, a.value_width);
  });
  return to;
}

/// Launches Kernel with room for the parts of its splits, and what merges them.
template <class Kernel, class Device, class Arguments>
void forward_with(std::string_view op, Device& device, RecallArguments a, Arguments&& arguments) {
  a.splits = Kernel::splits(a);
  if (a.splits > 1) {
    a.partial_sums = static_cast<float*>(device.scratch(a.splits * a.outer * a.rows * a.value_width * sizeof(float)));
    a.partial_states = static_cast<float*>(device.scratch(a.splits * a.outer * a.rows * 2 * sizeof(float)));
  }
  launch<Kernel>(op, device, arguments(a));
  if (a.splits > 1) launch<RecallMerge>(op, device, a);
}

/// One softmax of all rows, or `steps` of them in one launch.
template <class Device>
void forward(std::string_view op, Device& device, RecallArguments a, const Bank& from, index_t steps = 1) {
  const auto portable = [&]<class Kernel>() { forward_with<Kernel>(op, device, a, [](const RecallArguments& all) { return all; }); };
  if (from.keys && from.halves == dtype::none)
    return select_tensor_cores(a.key.type, a.width, a.shared(), [&]<class Kernel>() {
      forward_with<Kernel>(op, device, a, [&](const RecallArguments& all) {
        return typename Kernel::Arguments{all, from.keys, from.values, static_cast<int>(steps)};
      });
    });
  if (from.keys) {
    select_halves(from.halves, from.width, [&]<class Pack, class Kernel>() {
      a.doubt_parts = Kernel::splits(a);
      a.doubts = static_cast<bool*>(device.scratch(a.doubt_parts * a.outer * a.rows));
      forward_with<Kernel>(op, device, a, [&](const RecallArguments& all) { return RecallSm80Arguments{all, from.keys, from.values}; });
    });
    a.only_doubtful = true;
  }
  select_forward(std::max(a.width, a.value_width), portable);
}

/// Rows of `width` numbers for all rows and outer entries, one after the other.
template <class P>
Placed<P> dense_rows(const Fold& fold, P* data, index_t width) {
  Placed<P> placed;
  placed.data = data;
  placed.inner = 1;
  index_t stride = width;
  for (int axis = fold.rows.rank - 1; axis >= 0; stride *= fold.rows.extents[axis--]) placed.row[axis] = stride;
  for (int axis = fold.outer.rank - 1; axis >= 0; stride *= fold.outer.extents[axis--]) placed.outer[axis] = stride;
  return placed;
}

inline Operand<const void> as_query(const Operand<void>& state) {
  return {{state.at.data, state.at.outer, state.at.row, state.at.inner}, state.type};
}

/// What RecallEnergy needs of the patterns, for any states that are compared with them.
/// Room for a number of every row.
template <class Device>
Operand<void> number_of_rows(Device& device, const Fold& fold, const RecallArguments& a) {
  return {dense_rows(fold, device.scratch(a.outer * a.rows * static_cast<index_t>(sizeof(float))), 1), dtype::float32};
}

/// Where the largest score and the logarithm of the sum go when nobody else wants them.
template <class Device>
void make_room_for_saved(Device& device, const Fold& fold, RecallArguments& a) {
  for (Operand<void>* saved : {&a.largest, &a.log_sum})
    if (!saved->given()) *saved = number_of_rows(device, fold, a);
}

}  // namespace detail
}  // namespace recollect::cuda
