// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/sparse_read.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

void attend_top_k(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
                  const attention::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_top_k(stream, in, scale, how, out);
}

void attend_top_k_backward(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
                           const ConstArray& d_out, const attention::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_top_k_backward(stream, in, scale, how, d_out, d_in);
}

void sparse_read(const Queue& queue, const backtracking::read_operands& in, const backtracking::read_results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  sparse_read(stream, in, out);
}

}  // namespace recollect::cuda
