// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/sparse_read.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

void attend_top_k(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                  const attention::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_top_k(stream, in, numbers, how, out);
}

void attend_top_k_backward(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers,
                           const attention::parameters& how, const ConstArray& d_out, const attention::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_top_k_backward(stream, in, numbers, how, d_out, d_in);
}

void sparse_read(const Queue& queue, const backtracking::read_operands& in, const backtracking::read_results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  sparse_read(stream, in, out);
}

void sparse_read_backward(const Queue& queue, const backtracking::read_operands& in, index_t k_top, const ConstArray& d_value,
                          const Array& d_query, const Array& d_keys, const Array& d_memory) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  sparse_read_backward(stream, in, k_top, d_value, d_query, d_keys, d_memory);
}

}  // namespace recollect::cuda
