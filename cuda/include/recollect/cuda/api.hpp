// SPDX-License-Identifier: BSD-3-Clause
/// The ops as a C++ program calls them on a card: compiled once, in cuda/src, so that callers need neither nvcc nor kernels. Arrays are
/// of that card; everything is queued on `stream` (a cudaStream_t; null is the default stream), and nothing waits for it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "recollect/cuda/attention_numbers.hpp"
#include "recollect/cuda/retrieval_step.hpp"
#include "recollect/math/feature_map.hpp"
#include "recollect/spec/attention.hpp"
#include "recollect/spec/backtracking.hpp"
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
/// Bytes of the card to another place of it.
void copy(const Queue& queue, void* to, const void* from, index_t bytes);
void release(void* memory) noexcept;

/// Memories that stay on a card (recall_bank.hpp). How many patterns, and numbers, a line of their bank has: packed, if several patterns.
std::pair<index_t, index_t> bank_line(int card, dtype type, index_t width, bool alike);
void store(const Queue& queue, std::string_view op, const char* argument, const ConstArray& rows, const Array& bank, index_t first,
           bool packed);
void retrieve_stored(const Queue& queue, const hopfield::operands& in, double beta, index_t patterns, index_t width, bool packed,
                     const hopfield::parameters& how, const hopfield::results& out);

void attend(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
            const attention::results& out);
void attend_backward(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                     const attention::saved& kept, const ConstArray& out, const ConstArray& d_out, const attention::gradients& d_in);
/// The same with the separation ("top_k_softmax", k); nothing of the forward pass is needed for the gradient.
void attend_top_k(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers, const attention::parameters& how,
                  const attention::results& out);
void attend_top_k_backward(const Queue& queue, const attention::operands& in, const AttentionNumbers& numbers,
                           const attention::parameters& how, const ConstArray& d_out, const attention::gradients& d_in);
void sparse_read(const Queue& queue, const backtracking::read_operands& in, const backtracking::read_results& out);
/// Where keys are memory and d_keys is left out, d_memory is of both.
void sparse_read_backward(const Queue& queue, const backtracking::read_operands& in, index_t k_top, const ConstArray& d_value,
                          const Array& d_query, const Array& d_keys, const Array& d_memory);
void retrieve(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how, const hopfield::results& out,
              std::span<const RetrievalStep> kept = {});
void retrieve_backward(const Queue& queue, const hopfield::operands& in, double beta, const hopfield::parameters& how,
                       std::span<const RetrievalStep> kept, const ConstArray& out, const ConstArray& d_out,
                       const hopfield::gradients& d_in);
void energy(const Queue& queue, const hopfield::operands& in, double beta, const choice& separation, const hopfield::results& out);
void energy_backward(const Queue& queue, const hopfield::operands& in, double beta, const choice& separation, const hopfield::saved& kept,
                     const ConstArray& d_out, const hopfield::gradients& d_in);
void fast_weight_forward(const Queue& queue, std::string_view op, const fast_weight::operands& in, double scale,
                         std::string_view feature_map, row_norm norm, const fast_weight::parameters& how, const fast_weight::results& out);
void fast_weight_backward(const Queue& queue, std::string_view op, const fast_weight::operands& in, double scale,
                          std::string_view feature_map, row_norm norm, const fast_weight::parameters& how, const ConstArray& d_out,
                          const ConstArray& d_state, const fast_weight::gradients& d_in);

}  // namespace recollect::cuda
