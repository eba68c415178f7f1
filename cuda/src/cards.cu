// SPDX-License-Identifier: BSD-3-Clause
#include "recollect/cuda/api.hpp"
#include "recollect/cuda/stream.cuh"

namespace recollect::cuda {

int cards(std::string& why) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (code != cudaSuccess) {
    why = cudaGetErrorString(code);
    return 0;
  }
  if (count == 0) why = "no CUDA-capable device is detected";
  return count;
}

std::string card_name(int card) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, card), "cudaGetDeviceProperties");
  return std::string(properties.name) + ", " + std::to_string(properties.major) + "." + std::to_string(properties.minor);
}

void* allocate(int card, index_t bytes) {
  const Stream current(card, nullptr);
  void* memory = nullptr;
  if (bytes > 0) check(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "cudaMalloc");
  return memory;
}

void copy(const Queue& queue, void* to, const void* from, index_t bytes) {
  const Stream current(queue.card, nullptr);
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
}

void release(void* memory) noexcept { cudaFree(memory); }

}  // namespace recollect::cuda
