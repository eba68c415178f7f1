// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/recall.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

void attend(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
            const attention::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend(stream, in, scale, how, out);
}

void retrieve(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how,
              const hopfield::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  retrieve(stream, in, beta, how, out);
}

void attend_backward(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_backward(stream, in, scale, how, kept, out, d_out, d_in);
}

}  // namespace recollect::cuda
