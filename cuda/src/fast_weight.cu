// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/fast_weight.hpp"
#include "recollect/cuda/fast_weight_backward.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

void fast_weight_forward(const Queue& queue, std::string_view op, const fast_weight::operands& in, double scale,
                         std::string_view feature_map, row_norm norm, const fast_weight::parameters& how, const fast_weight::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  fast_weight_forward(op, stream, in, scale, feature_map, norm, how, out);
}

void fast_weight_backward(const Queue& queue, std::string_view op, const fast_weight::operands& in, double scale,
                          std::string_view feature_map, row_norm norm, const fast_weight::parameters& how, const ConstArray& d_out,
                          const ConstArray& d_state, const fast_weight::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  fast_weight_backward(op, stream, in, scale, feature_map, norm, how, d_out, d_state, d_in);
}

}  // namespace recollect::cuda
