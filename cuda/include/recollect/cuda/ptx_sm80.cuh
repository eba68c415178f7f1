// SPDX-License-Identifier: BSD-3-Clause
/// A thread of a kernel for the tensor cores of compute capability 8.0 and all that is newer: the inline PTX, all of it. What each word
/// means is told in fast_weight_chunk.hpp.
#pragma once

#include <cstdint>

#include "recollect/core/dtype.hpp"
#include "recollect/cuda/stream_thread.cuh"

namespace recollect::cuda {

struct Sm80Thread : StreamThread {
#ifdef __CUDA_ARCH__
  __device__ char* shared() const {
    extern __shared__ __align__(1024) char aligned_memory[];
    return aligned_memory;
  }
  __device__ std::uint32_t address(const void* pointer) const { return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer)); }

  __device__ void copy16(std::uint32_t to, const void* from, bool there) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
  }
  __device__ void commit_copies() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int left>
  __device__ void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
  }

  __device__ void warp_barrier() const { __syncwarp(); }

  template <bool flip>
  __device__ void matrices(std::uint32_t (&words)[4], std::uint32_t from) const {
    if constexpr (flip)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(from)
                   : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(from)
                   : "memory");
  }
  __device__ std::uint32_t flipped(std::uint32_t word) const {
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(word) : "r"(word));
    return word;
  }

  template <class T>
  __device__ void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) const {
    if constexpr (dtype_of<T> == dtype::bfloat16)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  __device__ float exp2(float x) const {
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
    return x;
  }
  template <class T>
  __device__ std::uint32_t rounded(float low, float high) const {
    std::uint32_t word;
    if constexpr (dtype_of<T> == dtype::bfloat16)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    else
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
#endif
};

/// The same for a kernel that says `places_anew`: its index is opaque, so that places are made from it wherever they are asked for. Kept
/// from one end of a loop to the other, they would fill the registers.
struct AnewSm80Thread : Sm80Thread {
#ifdef __CUDA_ARCH__
  __device__ int index() const {
    int own = StreamThread::index();
    asm volatile("" : "+r"(own));
    return own;
  }
#endif
};

}  // namespace recollect::cuda
