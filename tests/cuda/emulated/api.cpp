// SPDX-License-Identifier: BSD-3-Clause
/// recollect/cuda/api.hpp on the emulator, as a card of compute capability 9.0.
#include "recollect/cuda/api.hpp"

#include "emulator_sm90.hpp"
#include <cstdlib>

#include "recollect/cuda/fast_weight.hpp"
#include "recollect/cuda/recall.hpp"

namespace recollect::cuda {

int cards(std::string&) { return 1; }
std::string card_name(int) { return "emulated"; }
void* allocate(int, index_t bytes) { return std::malloc(static_cast<std::size_t>(bytes)); }
void release(void* memory) noexcept { std::free(memory); }

void attend(const Queue&, const attention::operands& in, double scale, const attention::parameters& how, const attention::results& out) {
  emulator::Hopper device;
  attend(device, in, scale, how, out);
}

void attend_backward(const Queue&, const attention::operands& in, double scale, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  emulator::Hopper device;
  attend_backward(device, in, scale, how, kept, out, d_out, d_in);
}

void retrieve(const Queue&, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out) {
  emulator::Hopper device;
  retrieve(device, in, beta, how, out);
}

void fast_weight_forward(const Queue&, std::string_view op, const fast_weight::operands& in, double scale, std::string_view feature_map,
                         row_norm norm, const fast_weight::parameters& how, const fast_weight::results& out) {
  emulator::Hopper device;
  fast_weight_forward(op, device, in, scale, feature_map, norm, how, out);
}

}  // namespace recollect::cuda
