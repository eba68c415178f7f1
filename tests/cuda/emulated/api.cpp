// SPDX-License-Identifier: BSD-3-Clause
/// recollect/cuda/api.hpp on the emulator, as a card of compute capability 9.0.
#include "recollect/cuda/api.hpp"

#include "emulator_sm90.hpp"
#include <cstdlib>
#include <cstring>

#include "recollect/cuda/energy.hpp"
#include "recollect/cuda/fast_weight_backward.hpp"
#include "recollect/cuda/recall_bank.hpp"
#include "recollect/cuda/recall_gradients.hpp"
#include "recollect/cuda/sparse_read.hpp"

namespace recollect::cuda {

int cards(std::string&) { return 1; }
std::string card_name(int) { return "emulated"; }
void* allocate(int, index_t bytes) { return std::malloc(static_cast<std::size_t>(bytes)); }
void copy(const Queue&, void* to, const void* from, index_t bytes) { std::memcpy(to, from, static_cast<std::size_t>(bytes)); }
void release(void* memory) noexcept { std::free(memory); }

void attend(const Queue&, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
            const attention::results& out) {
  emulator::Hopper device;
  attend(device, in, numbers, how, out);
}

void attend_backward(const Queue&, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  emulator::Hopper device;
  attend_backward(device, in, numbers, how, kept, out, d_out, d_in);
}

void attend_top_k(const Queue&, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                  const attention::results& out) {
  emulator::Device device;
  attend_top_k(device, in, numbers, how, out);
}

void attend_top_k_backward(const Queue&, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                           const ConstArray& d_out, const attention::gradients& d_in) {
  emulator::Device device;
  attend_top_k_backward(device, in, numbers, how, d_out, d_in);
}

void sparse_read(const Queue&, const backtracking::read_operands& in, const backtracking::read_results& out) {
  emulator::Device device;
  sparse_read(device, in, out);
}

void sparse_read_backward(const Queue&, const backtracking::read_operands& in, index_t k_top, const ConstArray& d_value,
                          const Array& d_query, const Array& d_keys, const Array& d_memory) {
  emulator::Device device;
  sparse_read_backward(device, in, k_top, d_value, d_query, d_keys, d_memory);
}

void retrieve(const Queue&, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out,
              std::span<const RetrievalStep> kept) {
  emulator::Hopper device;
  retrieve(device, in, beta, how, out, kept);
}

void retrieve_backward(const Queue&, const hopfield::operands& in, double beta, const hopfield::parameters& how,
                       std::span<const RetrievalStep> kept, const ConstArray& out, const ConstArray& d_out,
                       const hopfield::gradients& d_in) {
  emulator::Hopper device;
  retrieve_backward(device, in, beta, how, kept, out, d_out, d_in);
}

void energy(const Queue&, const hopfield::operands& in, double beta, const choice& separation, const hopfield::results& out) {
  emulator::Hopper device;
  energy(device, in, beta, separation, out);
}

void energy_backward(const Queue&, const hopfield::operands& in, double beta, const choice& separation, const hopfield::saved& kept,
                     const ConstArray& d_out, const hopfield::gradients& d_in) {
  emulator::Hopper device;
  energy_backward(device, in, beta, separation, kept, d_out, d_in);
}

std::pair<index_t, index_t> bank_line(int, dtype type, index_t width, bool alike) {
  const BankLine line = line_of(width, packs_on(90, type, width, alike));
  return {line.patterns, line.numbers};
}

void store(const Queue&, std::string_view op, const char* argument, const ConstArray& rows, const Array& bank, index_t first, bool packed) {
  emulator::Hopper device;
  store(op, argument, device, rows, bank, first, packed);
}

void retrieve_stored(const Queue&, const hopfield::operands& in, double beta, index_t patterns, index_t width, bool packed,
                     const hopfield::parameters& how, const hopfield::results& out) {
  emulator::Hopper device;
  retrieve_stored(device, in, beta, patterns, width, packed, how, out);
}

void fast_weight_forward(const Queue&, std::string_view op, const fast_weight::operands& in, double scale, std::string_view feature_map,
                         row_norm norm, const fast_weight::parameters& how, const fast_weight::results& out) {
  emulator::Hopper device;
  fast_weight_forward(op, device, in, scale, feature_map, norm, how, out);
}

void fast_weight_backward(const Queue&, std::string_view op, const fast_weight::operands& in, double scale, std::string_view feature_map,
                          row_norm norm, const fast_weight::parameters& how, const ConstArray& d_out, const ConstArray& d_state,
                          const fast_weight::gradients& d_in) {
  emulator::Hopper device;
  fast_weight_backward(op, device, in, scale, feature_map, norm, how, d_out, d_state, d_in);
}

}  // namespace recollect::cuda
