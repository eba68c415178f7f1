// SPDX-License-Identifier: BSD-3-Clause
/// A CUDA stream as the device that device.hpp describes. For nvcc alone, as all .cuh.
#pragma once

#include <atomic>
#include <cuda_runtime_api.h>
#include <vector>

#include "recollect/core/error.hpp"
#include "recollect/cuda/device.hpp"
#include "recollect/cuda/ptx_sm90.cuh"
#include "recollect/cuda/stream_thread.cuh"

namespace recollect::cuda {

inline void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // so that it is told once
  fail(code == cudaErrorMemoryAllocation ? status::memory : status::runtime, "CUDA: ", what, " failed: ", cudaGetErrorString(code));
}

/// What an architecture has not got the code of is empty there.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, 1) run([[maybe_unused]] const __grid_constant__ typename Kernel::Arguments arguments) {
  if constexpr (architecture_of<Kernel>() == 90) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    Kernel::run(Sm90Thread{}, arguments);
#endif
  } else if constexpr (architecture_of<Kernel>() == 80) {
#ifdef __CUDA_ARCH__
    Kernel::run(Sm80Thread{}, arguments);
#endif
  } else {
    Kernel::run(StreamThread{}, arguments);
  }
}

/// Launches go to one stream of one card, which is made current for as long as this lives; scratch is freed behind the last of them.
class Stream {
 public:
  Stream(int card, cudaStream_t stream) : stream_(stream) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(card), "cudaSetDevice");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    give_back(0);
    cudaSetDevice(before_);
  }

  template <class Kernel>
  void launch(index_t blocks, index_t shared_bytes, const typename Kernel::Arguments& arguments) {
    // More than this has to be asked for, once on every card; asking again does no harm.
    if (shared_bytes > 49152)
      check(cudaFuncSetAttribute(run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)), Kernel::name);
    run<Kernel><<<static_cast<unsigned>(blocks), Kernel::threads, static_cast<std::size_t>(shared_bytes), stream_>>>(arguments);
    check(cudaGetLastError(), Kernel::name);
  }

  void* scratch(index_t bytes) {
    void* memory = nullptr;
    if (bytes <= 0) return memory;
    check(cudaMallocAsync(&memory, static_cast<std::size_t>(bytes), stream_), "cudaMallocAsync");
    scratch_.push_back(memory);
    return memory;
  }

  std::size_t taken() const { return scratch_.size(); }
  void give_back(std::size_t before) {
    for (; scratch_.size() > before; scratch_.pop_back()) cudaFreeAsync(scratch_.back(), stream_);
  }

  int architecture() const {
    int card = 0, major = 0, minor = 0;
    check(cudaGetDevice(&card), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, card), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, card), "cudaDeviceGetAttribute");
    return 10 * major + minor;
  }

 private:
  cudaStream_t stream_;
  int before_ = 0;
  std::vector<void*> scratch_;
};

}  // namespace recollect::cuda
