// SPDX-License-Identifier: BSD-3-Clause
/// Memories that stay on a device in the layout that their kernels read, so that a retrieval packs nothing. A bank is an array of lines; a
/// line is a packed tile where tensor cores serve, and else a pattern.
#pragma once

#include "recollect/cuda/retrieval.hpp"

namespace recollect::cuda {

struct BankLine {
  index_t patterns = 1, numbers = 0;
};

/// Whether banks of patterns are packed. `alike`: there are no values, or they have the type and width of the patterns.
inline bool packs_on(int architecture, dtype type, index_t width, bool alike) {
  RecallArguments a;
  a.query.type = a.key.type = type;
  a.width = static_cast<int>(std::min<index_t>(width, widest));
  a.patterns = 1;
  return alike && on_tensor_cores(architecture, a);
}

constexpr BankLine line_of(index_t width, bool packed) {
  if (!packed) return {1, width};
  return {patterns_of_tile, (width == 64 ? TensorTile<patterns_of_tile, 64>::pitch : TensorTile<patterns_of_tile, 128>::pitch) / 2};
}

namespace detail {

inline void check_bank(std::string_view op, const ConstArray& bank, dtype type, index_t width, index_t patterns, bool packed) {
  const BankLine line = line_of(width, packed);
  const index_t lines = tiles_of(patterns, line.patterns);
  const bool possible = !packed || packs_on(90, type, width, true);
  const bool dense = bank.rank == 2 && bank.strides[1] == 1 && (bank.strides[0] == line.numbers || bank.extents[0] <= 1);
  if (!possible || !dense || bank.type != type || bank.extents[1] != line.numbers || bank.extents[0] < lines)
    fail(status::value, op, ": a bank of ", name(bank.type), " has shape ", bank.shape_text(), "; expected (", lines, ", ", line.numbers,
         ") at least");
}

}  // namespace detail

/// Rows (n, width) become patterns first ... first + n of a bank.
template <class Device>
void store(std::string_view op, const char* argument, Device& device, const ConstArray& rows, const Array& bank, index_t first,
           bool packed) {
  using namespace detail;
  check_given(op, argument, rows);
  check_stored(op, argument, rows);
  if (rows.rank != 2) fail(status::value, op, ": ", argument, " has shape ", rows.shape_text(), "; expected two axes");
  const index_t n = rows.extents[0], width = rows.extents[1];
  check_width(op, argument, rows, width);
  check_bank(op, bank, rows.type, width, first + n, packed);
  if (n == 0) return;
  const Memory from{rows.data, rows.type, {}, rows.strides[0], rows.strides[1]};
  if (!packed) {
    char* const to = static_cast<char*>(bank.data) + first * width * bytes_of(rows.type);
    return launch<RecallStore>(op, device, StoreArguments{from, n, width, to});
  }
  const PackArguments pack{from, {}, 1, first, first + n, static_cast<char*>(bank.data)};
  if (width == 64) return launch<RecallPack<64>>(op, device, pack);
  launch<RecallPack<128>>(op, device, pack);
}

/// `retrieve` of recall.hpp from banks: `in` has these in the place of patterns and values, `patterns` of each.
template <class Device>
void retrieve_stored(Device& device, hopfield::operands in, double beta, index_t patterns, index_t width, bool packed,
                     const hopfield::parameters& how, const hopfield::results& out) {
  using namespace detail;
  constexpr std::string_view op = "hopfield.retrieve";
  const auto as_rows = [&](ConstArray& bank, index_t numbers) {
    check_bank(op, bank, bank.type, numbers, patterns, packed);
    bank.extents[0] = patterns;
    bank.extents[1] = bank.strides[0] = numbers;
  };
  const Bank banks{static_cast<const char*>(in.patterns.data), static_cast<const char*>(in.values.data)};
  as_rows(in.patterns, width);
  if (in.values.given()) as_rows(in.values, packed ? width : in.values.extents[1]);
  retrieve(device, in, beta, how, out, {}, packed ? &banks : nullptr);
}

}  // namespace recollect::cuda
