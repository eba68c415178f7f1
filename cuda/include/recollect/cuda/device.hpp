// SPDX-License-Identifier: BSD-3-Clause
/// What kernels are written against. A kernel is a struct:
///
///     struct Kernel {
///       using Arguments = ...;                                     // plain data, at most 4 KB
///       static constexpr int threads = 256;                        // of a block, a multiple of 32
///       template <class Thread> static constexpr void run(const Thread& thread, const Arguments& arguments);
///     };
///
/// and everything it does beyond arithmetic on memory goes through its thread:
///
///     int index()                       its number in the block
///     index_t block()                   the number of the block in the grid
///     void barrier()                    waits for all threads of the block
///     bool any(bool condition)          a barrier; whether any thread of the block said so
///     float shuffle_xor(float x, mask)  the x of lane (lane ^ mask) of the warp
///     float shuffle(float x, lane)      the x of that lane, all of its bits
///     std::uint32_t ballot(condition)   a bit for every lane of the warp that says so
///     char* shared()                    the block's shared memory, aligned to 16 bytes
///
/// A kernel that needs an architecture says which: static constexpr int architecture = 80 for compute capability 8.0 and all that is newer
/// (fast_weight_chunk.hpp), 90 for 9.0 alone (recall_sm90.hpp).
/// Kernels and all they call are constexpr templates, which nvcc compiles for the device without a further word
/// (--expt-relaxed-constexpr) and every C++ compiler for the emulator of tests/cuda. What starts kernels is a device:
///
///     template <class Kernel> void launch(index_t blocks, index_t shared_bytes, const Kernel::Arguments& arguments)
///     void* scratch(index_t bytes)      memory of the device, aligned to 256 bytes, for the launches that follow
///     taken(), give_back(taken)         how much of that there is; what was taken since is free again, behind the launches so far
///     int architecture()                90 for compute capability 9.0, 86 for 8.6; 0 for portable kernels alone
///
/// stream.cuh is the real one.
#pragma once

#include <bit>
#include <cstdint>

#include "recollect/core/dtype.hpp"

namespace recollect::cuda {

inline constexpr int warp_size = 32;

/// Beyond these a launch would fail, or need a card that is not everywhere: blocks of a grid, shared bytes of a block (compute
/// capability 8.6; a kernel for 9.0 has more).
inline constexpr index_t most_blocks = 2147483647, most_shared_bytes = 101376, most_shared_bytes_sm90 = 232448;

template <class Kernel>
constexpr int architecture_of() {
  if constexpr (requires { Kernel::architecture; })
    return Kernel::architecture;
  else
    return 0;
}

/// The sum, and the largest, of x over `lanes` neighbouring lanes, in every one of them: a fixed tree.
template <int lanes, class Thread>
constexpr float sum_of_lanes(const Thread& thread, float x) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += thread.shuffle_xor(x, mask);
  return x;
}

template <int lanes, class Thread>
constexpr double sum_of_lanes(const Thread& thread, double x) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
    const auto other = [&](std::uint64_t half) -> std::uint64_t {
      const float there = thread.shuffle(std::bit_cast<float>(static_cast<std::uint32_t>(half)), thread.index() % warp_size ^ mask);
      return std::bit_cast<std::uint32_t>(there);
    };
    const std::uint64_t high = other(bits >> 32);
    x += std::bit_cast<double>(high << 32 | other(bits));
  }
  return x;
}

template <int lanes, class Thread>
constexpr float largest_of_lanes(const Thread& thread, float x) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const float other = thread.shuffle_xor(x, mask);
    x = other > x ? other : x;
  }
  return x;
}

}  // namespace recollect::cuda
