// SPDX-License-Identifier: BSD-3-Clause
/// The k largest scores and where they were, as a warp keeps them. A score and its index are one number, a rank, and ranks are in the order
/// of math/top_k.hpp: a larger score first, among equals the lower index. Of ranks no two are the same, so the k largest are the same
/// however they come: nothing of a selection depends on a schedule.
#pragma once

#include <bit>

#include "recollect/cuda/device.hpp"
#include "recollect/cuda/number.hpp"

namespace recollect::cuda {

using Rank = std::uint64_t;

inline constexpr Rank no_rank = 0;  // behind every score
/// How many patterns there can be for an index to fit into a rank.
inline constexpr index_t most_ranked = 4294967295;

/// The bits of a float in the order of its value; -0 is 0.
constexpr std::uint32_t ordered_bits(float score) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// What is -inf or NaN is never selected.
constexpr Rank rank_of(float score, index_t index) {
  if (!(score > -infinity)) return no_rank;
  return static_cast<Rank>(ordered_bits(score)) << 32 | (0xffffffffu - static_cast<std::uint32_t>(index));
}

/// -inf for no rank.
constexpr float score_of_rank(Rank rank) {
  const std::uint32_t bits = static_cast<std::uint32_t>(rank >> 32);
  return rank == no_rank ? -infinity : std::bit_cast<float>(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

/// -1 for no rank.
constexpr index_t index_of_rank(Rank rank) {
  return rank == no_rank ? -1 : static_cast<index_t>(0xffffffffu - static_cast<std::uint32_t>(rank));
}

template <class Thread>
constexpr Rank shuffle(const Thread& thread, Rank rank, int lane) {
  const auto half = [&](Rank bits) {
    return std::bit_cast<std::uint32_t>(thread.shuffle(std::bit_cast<float>(static_cast<std::uint32_t>(bits)), lane));
  };
  const std::uint32_t high = half(rank >> 32);
  return static_cast<Rank>(high) << 32 | half(rank);
}

/// Places in falling order of rank, held by the lanes of a warp: place 32 j + lane is own[j]. What is behind the first k is of no meaning.
struct RankedList {
  static constexpr int groups = 4, places = groups * warp_size;

  Rank own[groups] = {};
  Rank threshold = no_rank;  // that of place k - 1, in all lanes: a rank must be above it to enter

  /// How many places of memory a list of k takes.
  static constexpr int pitch(int k) { return (k + warp_size - 1) / warp_size * warp_size; }

  template <class Thread>
  static constexpr RankedList load(const Thread& thread, int k, const Rank* from) {
    RankedList list;
#pragma unroll
    for (int j = 0; j < groups; ++j)
      if (j * warp_size < k) list.own[j] = from[j * warp_size + thread.index() % warp_size];
    list.threshold = list.at(thread, k - 1);
    return list;
  }

  /// Every lane stores what it alone loads.
  template <class Thread>
  constexpr void store(const Thread& thread, int k, Rank* to) const {
#pragma unroll
    for (int j = 0; j < groups; ++j)
      if (j * warp_size < k) to[j * warp_size + thread.index() % warp_size] = own[j];
  }

  /// The rank of a place, in all lanes. Written without a choice, for which the compiler would put the list into memory.
  template <class Thread>
  constexpr Rank at(const Thread& thread, int place) const {
    Rank found = no_rank;
#pragma unroll
    for (int j = 0; j < groups; ++j) found |= own[j] & (Rank(0) - static_cast<Rank>(j == place / warp_size));
    return shuffle(thread, found, place % warp_size);
  }

  /// Takes in a rank of each lane.
  template <class Thread>
  constexpr void offer(const Thread& thread, int k, Rank rank) {
    const int lane = thread.index() % warp_size;
    bool waits = rank > threshold;
    for (std::uint32_t waiting = thread.ballot(waits); waiting != 0; waiting = thread.ballot(waits)) {
      const int first = std::countr_zero(waiting);
      insert(thread, k, shuffle(thread, rank, first));
      threshold = at(thread, k - 1);
      waits = waits && lane != first && rank > threshold;
    }
  }

 private:
  /// What is before the new rank stays, the rest moves up by one place.
  template <class Thread>
  constexpr void insert(const Thread& thread, int k, Rank rank) {
    const int lane = thread.index() % warp_size;
    Rank last = ~no_rank;  // of the group before, as lane 0 knows it
#pragma unroll
    for (int j = 0; j < groups; ++j) {
      if (j * warp_size >= k) continue;
      const Rank moved = shuffle(thread, own[j], (lane + warp_size - 1) % warp_size), before = lane == 0 ? last : moved;
      last = moved;
      own[j] = own[j] > rank ? own[j] : before > rank ? rank : before;
    }
  }
};

}  // namespace recollect::cuda
