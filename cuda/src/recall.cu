// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/energy.hpp"
#include "recollect/cuda/recall_gradients.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

void attend(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
            const attention::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend(stream, in, scale, how, out);
}

void retrieve(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out,
              std::span<const RetrievalStep> kept) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  retrieve(stream, in, beta, how, out, kept);
}

void attend_backward(const Queue& queue, const attention::operands& in, double scale, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_backward(stream, in, scale, how, kept, out, d_out, d_in);
}

void retrieve_backward(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how,
                       std::span<const RetrievalStep> kept, const ConstArray& out, const ConstArray& d_out,
                       const hopfield::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  retrieve_backward(stream, in, beta, how, kept, out, d_out, d_in);
}

void energy(const Queue& queue, const hopfield::operands& in, double beta, const choice& separation, const hopfield::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  energy(stream, in, beta, separation, out);
}

void energy_backward(const Queue& queue, const hopfield::operands& in, double beta, const choice& separation, const hopfield::saved& kept,
                     const ConstArray& d_out, const hopfield::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  energy_backward(stream, in, beta, separation, kept, d_out, d_in);
}

}  // namespace recollect::cuda
