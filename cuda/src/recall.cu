// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/energy.hpp"
#include "recollect/cuda/recall_bank.hpp"
#include "recollect/cuda/recall_gradients.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

void attend(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
            const attention::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend(stream, in, numbers, how, out);
}

void retrieve(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out,
              std::span<const RetrievalStep> kept) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  retrieve(stream, in, beta, how, out, kept);
}

std::pair<index_t, index_t> bank_line(int card, dtype type, index_t width, bool alike) {
  const BankLine line = line_of(width, packs_on(Stream(card, nullptr).architecture(), type, width, alike));
  return {line.patterns, line.numbers};
}

void store(const Queue& queue, std::string_view op, const char* argument, const ConstArray& rows, const Array& bank, index_t first,
           bool packed) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  store(op, argument, stream, rows, bank, first, packed);
}

void retrieve_stored(const Queue& queue, const hopfield::operands& in, double beta, index_t patterns, index_t width, bool packed,
                     const hopfield::parameters& how, const hopfield::results& out) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  retrieve_stored(stream, in, beta, patterns, width, packed, how, out);
}

void attend_backward(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in) {
  Stream stream(queue.card, static_cast<cudaStream_t>(queue.stream));
  attend_backward(stream, in, numbers, how, kept, out, d_out, d_in);
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
