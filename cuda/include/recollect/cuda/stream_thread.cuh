// SPDX-License-Identifier: BSD-3-Clause
/// The thread of device.hpp on a card. For nvcc alone.
#pragma once

#include "recollect/cuda/device.hpp"

namespace recollect::cuda {

/// What a kernel calls its thread. Host bodies are never run; they are there because kernels are compiled for both sides.
struct StreamThread {
  __host__ __device__ int index() const {
#ifdef __CUDA_ARCH__
    return static_cast<int>(threadIdx.x);
#else
    return 0;
#endif
  }
  __host__ __device__ index_t block() const {
#ifdef __CUDA_ARCH__
    return static_cast<index_t>(blockIdx.x);
#else
    return 0;
#endif
  }
  __host__ __device__ void barrier() const {
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
  __host__ __device__ bool any(bool condition) const {
#ifdef __CUDA_ARCH__
    return __syncthreads_or(condition) != 0;
#else
    return condition;
#endif
  }
  __host__ __device__ float shuffle_xor(float x, [[maybe_unused]] int mask) const {
#ifdef __CUDA_ARCH__
    return __shfl_xor_sync(0xffffffffu, x, mask);
#else
    return x;
#endif
  }
  __host__ __device__ float shuffle(float x, [[maybe_unused]] int lane) const {
#ifdef __CUDA_ARCH__
    return __shfl_sync(0xffffffffu, x, lane);
#else
    return x;
#endif
  }
  __host__ __device__ std::uint32_t ballot(bool condition) const {
#ifdef __CUDA_ARCH__
    return __ballot_sync(0xffffffffu, condition);
#else
    return condition;
#endif
  }
  __host__ __device__ char* shared() const {
#ifdef __CUDA_ARCH__
    extern __shared__ __align__(16) char memory[];
    return memory;
#else
    return nullptr;
#endif
  }
};

}  // namespace recollect::cuda
