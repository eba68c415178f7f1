// SPDX-License-Identifier: BSD-3-Clause
/// The ops as a C++ program calls them on a card: compiled once, in cuda/src, so that callers need neither nvcc nor kernels. Arrays are
/// of that card; everything is queued on `stream` (a cudaStream_t; null is the default stream), and nothing waits for it.
#pragma once

#include <string>
#include <string_view>

#include "recollect/math/feature_map.hpp"
#include "recollect/spec/attention.hpp"
#include "recollect/spec/fast_weight.hpp"
#include "recollect/spec/hopfield.hpp"

namespace recollect::cuda {

struct Queue {
  int card = 0;
  void* stream = nullptr;
};

/// How many cards there are; without any, `why` says in words what is missing.
int cards(std::string& why);
/// Its name and compute capability: "NVIDIA H200, 9.0".
std::string card_name(int card);
/// Memory of the card that is no framework's, and the way back.
void* allocate(int card, index_t bytes);
void release(void* memory) noexcept;

void attend(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
            const attention::results& out);
void attend_backward(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in);
void retrieve(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out);
void fast_weight_forward(const Queue& queue, std::string_view op, const fast_weight::operands& in, double scale,
                         std::string_view feature_map, row_norm norm, const fast_weight::parameters& how, const fast_weight::results& out);
void fast_weight_backward(const Queue& queue, std::string_view op, const fast_weight::operands& in, double scale,
                          std::string_view feature_map, row_norm norm, const fast_weight::parameters& how, const ConstArray& d_out,
                          const ConstArray& d_state, const fast_weight::gradients& d_in);

}  // namespace recollect::cuda
