// SPDX-License-Identifier: BSD-3-Clause
/// What cards since compute capability 8.0 have more: copies into shared memory that arrive some time, and products that the lanes of a
/// warp take together (fast_weight_chunk.hpp tells the words). What this finds beside what emulator.hpp does: copies that nobody waits for
/// (they arrive as late as they may; until then there is NaN), lanes that are not together, addresses that are not aligned or beyond shared
/// memory.
#pragma once

#include "emulator.hpp"
#include <array>

#include "recollect/cuda/number.hpp"
#include "recollect/cuda/tensor_tile.hpp"

namespace emulator {

class AmpereBlock : public Block {
 public:
  using Block::Block;

  void copy16(int thread, std::uint32_t to, const void* from, bool there) {
    if (to % 16 || (there && reinterpret_cast<std::uintptr_t>(from) % 16)) fail("a copy is not aligned to 16 bytes");
    std::memset(shared_at(to, 16), 0xff, 16);
    copies_[thread].back().push_back({to, there ? from : nullptr});
  }
  void commit_copies(int thread) { copies_[thread].emplace_back(); }
  void wait_copies(int thread, int left) {
    auto& groups = copies_[thread];  // the last one is not complete
    while (static_cast<int>(groups.size()) - 1 > left) {
      for (const auto& [to, from] : groups.front()) from ? std::memcpy(shared_at(to, 16), from, 16) : std::memset(shared_at(to, 16), 0, 16);
      groups.erase(groups.begin());
    }
  }

  /// All lanes of a warp come with something of the same kind, and the last one does the work for all: work(what they brought).
  template <class Brought, class Work>
  void together(int thread, Brought* own, Location at, Work&& work) {
    const int warp = thread / warp_size, first = warp * warp_size;
    brought_[thread] = own;
    places_[thread] = at;
    if (++met_[warp] < warp_size) return wait(thread, at);
    met_[warp] = 0;
    std::array<Brought*, warp_size> all;
    for (int lane = 0; lane < warp_size; ++lane) {
      const Location& other = places_[first + lane];
      if (other.line() != at.line() || std::strcmp(other.file_name(), at.file_name()) != 0)
        fail("the lanes of a warp are apart, at " + text(other) + " and " + text(at));
      all[lane] = static_cast<Brought*>(brought_[first + lane]);
    }
    work(all);
    for (int lane = 0; lane < warp_size; ++lane)
      if (first + lane != thread) wake(first + lane);
  }

  unsigned char* shared_at(std::uint32_t address, std::uint32_t bytes) {
    if (address + bytes > shared_bytes_) fail("an address is beyond the shared memory of the block");
    return shared_ + address;
  }

 protected:
  void begin() override {
    const std::size_t n = static_cast<std::size_t>(size());
    copies_.assign(n, {{}});
    brought_.assign(n, nullptr);
    places_.assign(n, {});
    met_.assign(n / warp_size, 0);
  }

 private:
  std::vector<std::vector<std::vector<std::pair<std::uint32_t, const void*>>>> copies_;  // of each thread, in groups
  std::vector<void*> brought_;
  std::vector<Location> places_;
  std::vector<int> met_;
};

/// Sums of tensor cores are not rounded but cut off, towards 0.
inline float cut_off(double sum) {
  const float nearest = static_cast<float>(sum);
  return std::isfinite(nearest) && std::abs(nearest) > std::abs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

class AmpereThread : public Thread {
 public:
  static constexpr int architecture = 80;

  AmpereThread(AmpereBlock& block, int index) : Thread(block, index), ampere_(block) {}

  std::uint32_t address(const void* pointer) const { return static_cast<std::uint32_t>(static_cast<const char*>(pointer) - shared()); }
  void copy16(std::uint32_t to, const void* from, bool there) const { ampere_.copy16(index_, to, from, there); }
  void commit_copies() const { ampere_.commit_copies(index_); }
  template <int left>
  void wait_copies() const {
    ampere_.wait_copies(index_, left);
  }
  void warp_barrier(Location at = Location::current()) const {
    int nothing = 0;
    ampere_.together(index_, &nothing, at, [](const auto&) {});
  }

  template <bool flip>
  void matrices(std::uint32_t (&words)[4], std::uint32_t from, Location at = Location::current()) const {
    std::pair<std::uint32_t*, std::uint32_t> own{words, from};
    ampere_.together(index_, &own, at, [&](const auto& lanes) {
      for (int matrix = 0; matrix < 4; ++matrix)
        for (int lane = 0; lane < warp_size; ++lane) {
          const auto number = [&](int row, int column) {
            const std::uint32_t begin = lanes[8 * matrix + row]->second;
            if (begin % 16) throw std::runtime_error("a row of a matrix is not aligned to 16 bytes");
            std::uint16_t bits;
            std::memcpy(&bits, ampere_.shared_at(begin + 2 * column, 2), 2);
            return bits;
          };
          const int row = lane / 4, column = lane % 4 * 2;
          lanes[lane]->first[matrix] = flip ? recollect::cuda::pair(number(column, row), number(column + 1, row))
                                            : recollect::cuda::pair(number(row, column), number(row, column + 1));
        }
    });
  }

  std::uint32_t flipped(std::uint32_t word, Location at = Location::current()) const {
    std::pair<std::uint32_t, std::uint32_t> own{word, 0};
    ampere_.together(index_, &own, at, [](const auto& lanes) {
      const auto number = [&](int row, int column) {
        return static_cast<std::uint16_t>(lanes[row * 4 + column / 2]->first >> 16 * (column % 2));
      };
      for (int lane = 0; lane < warp_size; ++lane)
        lanes[lane]->second = recollect::cuda::pair(number(lane % 4 * 2, lane / 4), number(lane % 4 * 2 + 1, lane / 4));
    });
    return own.second;
  }

  template <class T>
  void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                Location at = Location::current()) const {
    struct Part {
      float* sums;
      const std::uint32_t* a;
      std::uint32_t b[2];
    } own{sums, a, {b0, b1}};
    ampere_.together(index_, &own, at, [](const auto& lanes) {
      using namespace recollect::cuda;
      float left[16][16], right[16][8];
      const auto widen = [](std::uint32_t word, int i) { return recollect::widen<float>(T{static_cast<std::uint16_t>(word >> 16 * i)}); };
      for (int lane = 0; lane < warp_size; ++lane)
        for (int i = 0; i < 2; ++i) {
          for (int w = 0; w < 4; ++w) left[operand_row(lane, w)][operand_column(lane, w) + i] = widen(lanes[lane]->a[w], i);
          for (int w = 0; w < 2; ++w) right[8 * w + lane % 4 * 2 + i][lane / 4] = widen(lanes[lane]->b[w], i);
        }
      for (int lane = 0; lane < warp_size; ++lane)
        for (int i = 0; i < 4; ++i) {
          double sum = lanes[lane]->sums[i];
          for (int k = 0; k < 16; ++k)
            sum += static_cast<double>(left[accumulator_row(lane, i)][k]) * right[k][accumulator_column(lane, i)];
          lanes[lane]->sums[i] = cut_off(sum);
        }
    });
  }

  float exp2(float x) const { return std::exp2(x); }
  template <class T>
  std::uint32_t rounded(float low, float high) const {
    return recollect::cuda::pair(recollect::cuda::narrow<T>(low).bits, recollect::cuda::narrow<T>(high).bits);
  }

 private:
  AmpereBlock& ampere_;
};

/// Compute capability 8.0.
using Ampere = DeviceOf<AmpereBlock, AmpereThread>;

}  // namespace emulator
