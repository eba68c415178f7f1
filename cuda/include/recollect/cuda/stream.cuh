// SPDX-License-Identifier: BSD-3-Clause
/// A CUDA stream as the device that device.hpp describes. For nvcc alone, as all .cuh.
#pragma once

#include <cuda_runtime_api.h>
#include <map>
#include <mutex>
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

/// Where the scratch of a card comes from. The pool that every card has gives its memory back whenever the host waits for a stream, and the
/// next call would pay for getting it again; this one keeps some.
inline cudaMemPool_t scratch_pool(int card) {
  constexpr std::uint64_t kept_bytes = std::uint64_t{256} << 20;
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  const std::lock_guard lock(mutex);
  const auto [at, fresh] = pools.try_emplace(card);
  if (!fresh) return at->second;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = card;
  const cudaError_t code = cudaMemPoolCreate(&at->second, &properties);
  if (code != cudaSuccess) pools.erase(at);
  check(code, "cudaMemPoolCreate");
  std::uint64_t kept = kept_bytes;
  check(cudaMemPoolSetAttribute(at->second, cudaMemPoolAttrReleaseThreshold, &kept), "cudaMemPoolSetAttribute");
  return at->second;
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
    if constexpr (requires { Kernel::places_anew; })
      Kernel::run(AnewSm80Thread{}, arguments);
    else
      Kernel::run(Sm80Thread{}, arguments);
#endif
  } else {
    Kernel::run(StreamThread{}, arguments);
  }
}

/// Launches go to one stream of one card, which is made current for as long as this lives; scratch is freed behind the last of them.
class Stream {
 public:
  Stream(int card, cudaStream_t stream) : card_(card), stream_(stream) {
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
    check(cudaMallocFromPoolAsync(&memory, static_cast<std::size_t>(bytes), scratch_pool(card_), stream_), "cudaMallocFromPoolAsync");
    scratch_.push_back(memory);
    return memory;
  }

  std::size_t taken() const { return scratch_.size(); }
  void give_back(std::size_t before) {
    for (; scratch_.size() > before; scratch_.pop_back()) cudaFreeAsync(scratch_.back(), stream_);
  }

  int architecture() const {
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, card_), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, card_), "cudaDeviceGetAttribute");
    return 10 * major + minor;
  }

 private:
  int card_, before_ = 0;
  cudaStream_t stream_;
  std::vector<void*> scratch_;
};

}  // namespace recollect::cuda
